"""Products that leave out zeros: exact entries, bands, every size of piece."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lipcert.numerics import matrices
from lipcert.numerics.matrices import Pieces
from lipcert.numerics.psd import by_first_entry

F64 = torch.float64


def convolution(channels: int, side: int) -> Tensor:
    """The matrix of one with stride 2."""
    torch.manual_seed(1)
    layer = nn.Conv2d(2, channels, 4, 2, 1, bias=False, dtype=F64)
    inputs = torch.eye(2 * side**2, dtype=F64).reshape(-1, 2, side, side)
    return layer(inputs).detach().flatten(1).mT.contiguous()


def sparse(rows: int, columns: int) -> Tensor:
    """Some rows and columns are all zero."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, columns, generator=generator, dtype=F64)
    x = torch.where(torch.rand(rows, columns, generator=generator) < 0.1, x, 0.0)
    x[rows // 3 : rows // 2] = 0.0
    x[:, columns // 2 :: 3] = 0.0
    return x


CASES = {
    "convolution": convolution(6, 14),
    "transposed": convolution(6, 14).mT,
    "sparse": sparse(300, 70),
    "dense": torch.randn(290, 40, generator=torch.Generator().manual_seed(2), dtype=F64),
    "zero": torch.zeros(270, 5, dtype=F64),
    "empty": torch.zeros(0, 5, dtype=F64),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("small", [0, 256])
def test_gram_without_zeros_is_the_gram(name: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_SMALL", small)
    x = CASES[name]
    w = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(3), dtype=F64) + 0.1
    order = by_first_entry(x)
    assert torch.equal(order.sort().values, torch.arange(len(x)))
    mine, wanted = Pieces.of(x[order]).weighted_gram(w), (x[order] * w) @ x[order].mT
    assert torch.equal(mine, mine.mT)
    assert bool(((mine - wanted).abs() <= 1e-14 * ((x[order].abs() * w) @ x[order].abs().mT)).all())
    assert bool((mine[(x[order].abs() @ x[order].abs().mT) == 0.0] == 0.0).all())


def test_integers_come_out_exactly() -> None:
    """No product is left out or counted twice: sums of small integers do not round."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(-3, 4, (333, 65), generator=generator).double()
    x = torch.where(torch.rand(333, 65, generator=generator) < 0.15, x, 0.0)
    w = torch.randint(1, 9, (65,), generator=generator).double()
    assert torch.equal(Pieces.of(x).weighted_gram(w), (x * w) @ x.mT)


def test_rows_of_a_convolution_become_a_band() -> None:
    x = CASES["convolution"]
    x = x[by_first_entry(x)]
    near = (x.abs() @ x.abs().mT).nonzero()
    assert int((near[:, 0] - near[:, 1]).abs().max()) < len(x) // 3
