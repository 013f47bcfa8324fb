"""The power methods: from below, attained, and exact where decompositions say what they approach."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lipcert.attack.norms import dual, lengths, maximiser
from lipcert.search.power import dual_power_method, power_method


def matrix(seed: int, m: int = 7, n: int = 5) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_it_approaches_the_norm_from_below(seed: int) -> None:
    a, start = matrix(seed), matrix(seed + 100)[0]
    norm = float(torch.linalg.matrix_norm(a, 2))
    values = [power_method(lambda x: a.T @ (a @ x), start, steps)[0] for steps in (1, 5, 25, 2000)]
    assert values == sorted(values)
    assert values[0] < norm * (1.0 - 1e-3)
    assert norm * (1.0 - 1e-12) <= values[-1] <= norm * (1.0 + 1e-12)


def test_the_vector_attains_the_value_and_a_tolerance_ends_early() -> None:
    a, calls = matrix(0), 0

    def gram(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return a.T @ (a @ x)

    value, x = power_method(gram, matrix(1)[0], 10_000, 1e-12)
    assert calls < 1000
    assert float(x.norm()) == pytest.approx(1.0, rel=1e-14)
    assert float((a @ x).norm()) == pytest.approx(value, rel=1e-9)


def test_zero_maps_zero_starts_and_overflow() -> None:
    one = torch.ones(3, dtype=torch.float64)
    assert power_method(lambda x: 0 * x, one, 10)[0] == 0.0
    assert power_method(lambda x: x, 0 * one, 10)[0] == 0.0
    with pytest.raises(ValueError, match="infinity"):
        power_method(lambda x: x * math.inf, one, 10)
    with pytest.raises(ValueError, match="shape"):
        power_method(lambda x: x[:-1], one, 10)


@pytest.mark.parametrize(("p", "q"), list(itertools.product([1.0, 2.0, math.inf], repeat=2)))
def test_the_dual_method_is_never_above_the_norm_and_its_directions_attain_its_values(p: float, q: float) -> None:
    """Norms from vertices: of the unit ball for p in {1, inf}, of the dual ball for q in {1, inf}."""
    maps = torch.stack([matrix(seed, 3, 4) for seed in range(20)])

    def pull(v: Tensor) -> tuple[Tensor, Tensor]:
        image = torch.einsum("bmn,bn->bm", maps, v)
        return lengths(image, q) / lengths(v, p), torch.einsum("bmn,bm->bn", maps, dual(image, q))

    start = torch.randn(20, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    first, _ = dual_power_method(pull, lambda g: maximiser(g, p), start, 0)
    values, v = dual_power_method(pull, lambda g: maximiser(g, p), start, 300)
    assert bool((values >= first).all())
    assert torch.allclose(pull(v)[0], values, rtol=1e-12)
    if p == q == 2.0:
        assert torch.allclose(values, torch.linalg.matrix_norm(maps, 2), rtol=1e-6)
        return
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    if p != 2.0:
        vertices = torch.eye(4, dtype=torch.float64) if p == 1.0 else signs
        exact = torch.einsum("bmn,kn->bkm", maps, vertices).norm(p=q, dim=2).amax(1)
    else:
        rows = torch.eye(3, dtype=torch.float64) if q == math.inf else signs[:, :3]
        exact = torch.einsum("bmn,km->bkn", maps, rows).norm(dim=2).amax(1)
    assert bool((values <= exact * (1.0 + 1e-12)).all())
    assert int((values >= exact * (1.0 - 1e-9)).sum()) >= 5  # others end in local maxima
