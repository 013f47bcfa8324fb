"""Norms of maps of many blocks, and several sources as one: against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lipcert.certificates.norms.block_norm import block_axes, block_norm, greatest_norm
from lipcert.certificates.norms.merging import Source, merged
from lipcert.certificates.norms.operator_norm import map_norm
from lipcert.certificates.norms.written_map import EnclosedMatrix
from lipcert.network.linear import LinearMap, OpMap, compose
from lipcert.network.stacked import Stacked
from lipcert.numerics.magnitude import Magnitude

D = torch.float64


def mapped(function, in_shape, *constants: Tensor, out_shape=None) -> OpMap:  # type: ignore[no-untyped-def]
    out = tuple(function(torch.zeros(in_shape, dtype=D), *constants).shape) if out_shape is None else out_shape
    return OpMap("test", function, in_shape, out, constants, "test", 16.0, stored=True)


def cases() -> dict[str, tuple[LinearMap, int]]:
    """Maps, and how many blocks they have."""
    torch.manual_seed(0)
    weight, keys = torch.randn(5, 4, dtype=D), torch.randn(1, 2, 3, 7, dtype=D)
    tokens = mapped(torch.nn.functional.linear, (1, 6, 4), weight)
    heads = mapped(lambda x, c: torch.matmul(x, c), (1, 2, 5, 3), keys)
    moved = mapped(lambda x: x.transpose(1, 2).reshape(1, 5, 6), (1, 2, 5, 3))
    own = mapped(lambda x, c: torch.einsum("btij,btj->bti", c, x), (1, 40, 4), torch.randn(1, 40, 3, 4, dtype=D))
    return {
        "tokens": (tokens, 6),
        "heads and tokens": (heads, 10),
        "heads beside each other": (
            compose(moved, mapped(torch.nn.functional.linear, (1, 5, 6), weight.new_ones(3, 6))),
            5,
        ),
        "all different": (own, 40),
        "one block": (mapped(lambda x, c: torch.einsum("st,bti->bsi", c, x), (1, 6, 1), torch.randn(6, 6, dtype=D)), 1),
    }


@pytest.mark.parametrize("name", cases())
def test_norms_of_blocks_are_those_of_the_matrix(name: str) -> None:
    linear, count = cases()[name]
    true = float(torch.linalg.matrix_norm(linear.matrix(), 2))
    assert math.prod(linear.in_shape[a] for a, _ in block_axes(linear)) == count
    found = block_norm(linear, 0.0)
    if count == 1:
        assert found is None
    else:
        assert found is not None
        assert true <= found * (1.0 + 1e-14)
        assert found <= true * 1.06
    bound = map_norm(linear, 2.0, route="blocks")
    assert bound.guarantee == "rigorous"
    assert true <= bound.value * (1.0 + 1e-14)


def test_what_is_all_but_0_keeps_blocks_together() -> None:
    """A number that would underflow in a product couples two tokens, however small it is."""
    mix = torch.eye(6, dtype=D)
    mix[0, 5] = 1e-300
    apart = mapped(lambda x, c: torch.einsum("st,bti->bsi", c, x), (1, 6, 4), mix)
    scaled = mapped(lambda x, c: x * c, (1, 6, 4), torch.full((1, 1, 1), 1e-300, dtype=D))
    assert [a for a, _ in block_axes(apart)] == [2]
    assert [a for a, _ in block_axes(compose(apart, scaled))] == [2]
    assert [a for a, _ in block_axes(scaled)] == [1, 2]


def test_of_maps_beside_each_other_nothing_is_told() -> None:
    """Their patterns are sizes, which may underflow."""
    scaled = mapped(lambda x, c: x * c, (1, 6, 4), torch.full((1, 1, 1), 1e-200, dtype=D))
    assert block_norm(scaled, 0.0) is not None
    assert block_norm(Stacked((scaled, scaled)), 0.0) is None


@pytest.mark.parametrize("shape", [(7, 1, 1), (5, 3, 9), (4, 30, 20), (2, 6, 6)])
@pytest.mark.parametrize("size", [1.0, 1e-140, 1e140])
def test_squaring_bounds_norms(shape: tuple[int, int, int], size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(shape, generator=generator, dtype=D) * torch.rand(shape[0], 1, 1, generator=generator) * size
    true = float(torch.linalg.matrix_norm(blocks / size, 2).max()) * size
    assert true <= greatest_norm(blocks) * (1.0 + 1e-13)
    assert greatest_norm(blocks) <= 1.05 * true
    alike = torch.eye(shape[1], shape[2], dtype=D).expand(shape) * size  # all singular values are the same
    assert size <= greatest_norm(alike) <= 1.06 * size
    assert greatest_norm(torch.zeros(shape, dtype=D)) < 1e-90


@pytest.mark.parametrize("seed", range(6))
def test_merged_sources_hold_all_sums(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=D)

    rows = [3, 12, 40][seed % 3]
    sources: list[Source] = []
    for width, size in ((rows, 1.0), (2 * rows, 1e-3), (1, 30.0), (5, 1e-12), (2, 0.0)):
        matrix = draw(rows, width) * size
        block = EnclosedMatrix(matrix, int(draw(1) * 4), [0.0, 1e-9, 1e-3][seed % 3] * size)
        sources.append((block, Magnitude.of(float(draw(1).abs())).times_power(seed * 30)))
    off = Magnitude.of([0.0, 1e-4][seed % 2]).times_power(seed * 30)
    found = merged(sources, off)
    assert found is not None
    (b, length), ratios = found, []
    assert b.error == 0.0
    unit = 2.0 ** -(seed * 30)
    for y in [*draw(200, rows), *torch.eye(rows, dtype=D)]:
        reach = float(off.times_power(-seed * 30)) * float(y.norm())
        for block, own in sources:
            here = float((block.matrix.T @ y).norm()) + block.error * float(y.norm())
            reach += here * 2.0**block.exponent * float(own) * unit
        within = float((b.matrix.T @ y).norm()) * float(length) * unit * 2.0**b.exponent
        assert reach <= within * (1.0 + 1e-12)
        ratios.append(within / reach)
    assert min(ratios) <= 2.5  # √6 for six sources of one size


def test_nothing_is_merged_of_nothing() -> None:
    zero = EnclosedMatrix(torch.zeros(3, 2, dtype=D), 0, 0.0)
    assert merged([]) is None
    assert merged([(zero, Magnitude.of(1.0))]) is None
