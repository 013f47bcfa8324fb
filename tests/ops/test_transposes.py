"""Transposed maps without a pass forward, matrices without a pass at all: those of the map itself, to the last bit.

Weights and inputs are small whole numbers, of which all sums are exact: nothing is compared within a tolerance.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipcert.increments.reduction import _diagonal
from lipcert.network.builder import NetworkBuilder
from lipcert.network.linear import Dense, LinearMap, OpMap, Sum, add, compose
from lipcert.network.moves import combination, gather, scatter
from lipcert.network.nodes.affine import AffineNode
from lipcert.network.stacked import Stacked
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.registry import find_rule


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Numbers from −8 to 8."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).double()


def by_rule(op: str, shape: tuple[int, ...], weight: Tensor, *settings: object) -> LinearMap:
    """The map that lipcert's rule makes."""
    rule = find_rule(op, "")
    assert rule is not None
    ctx = Context(NetworkBuilder())
    ctx.op = op
    node = ctx.builder.node(rule(ctx, ctx.builder.input(shape), Constant.exactly(weight), None, *settings))
    assert isinstance(node, AffineNode)
    return node.maps[0]


def agrees(linear: LinearMap) -> None:
    """⟨Wx, y⟩ = ⟨x, Wᵀy⟩ for batches, and Wᵀ is that of the derivative, in both precisions, also of |W|."""
    for map_ in (linear, linear.absolute()):
        for dtype in (torch.float64, torch.float32):
            here = map_.to(dtype, "cpu")
            x, y = whole(3, *here.in_shape, seed=1).to(dtype), whole(3, *here.out_shape, seed=2).to(dtype)
            back = here.transpose(y)
            assert back.shape == x.shape
            assert back.dtype == dtype
            assert not back.requires_grad
            forward = (here.apply(x) * y).reshape(3, -1).sum(1)
            assert torch.equal(forward, (x * back).reshape(3, -1).sum(1))
            assert torch.equal(back, LinearMap.transpose(here, y))
            for one, alone in zip(y, back, strict=True):
                assert torch.equal(here.transpose(one[None])[0], alone)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[str, tuple[int, ...], tuple[int, ...], tuple[object, ...]]:
    """(op, input shape, weight shape, settings), with one number per axis or one for all."""
    spatial, turned = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.integers(1, 3))
    inside, outside = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))

    def each(least: int, most: int) -> list[int]:
        return [draw(st.integers(least, most)) for _ in range(spatial)]

    kernel, sides = each(1, 4 if spatial < 3 else 3), each(1, 8 if spatial < 3 else 4)
    stride, dilation, padding = each(1, 3), each(1, 3), each(0, 3)
    batch = draw(st.sampled_from([(1,), (2,), ()]))
    shape = (*batch, inside, *sides)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if turned:
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        out = [
            (n - 1) * s - 2 * p + r + e + 1 for n, s, p, r, e in zip(sides, stride, padding, reach, extra, strict=True)
        ]
        assume(min(out) >= 1)
        weight = (inside, outside // groups, *kernel)
        return f"conv_transpose{spatial}d", shape, weight, (stride, padding, extra, groups, dilation)
    name = draw(st.sampled_from([None, None, "same", "valid"]))
    if name == "same":
        stride = [1] * spatial
    else:
        known = padding if name is None else [0] * spatial
        assume(all(n + 2 * p > r for n, p, r in zip(sides, known, reach, strict=True)))
    choice: object = padding if name is None else name
    if draw(st.booleans()) and len(set(stride)) == 1:
        return f"conv{spatial}d", shape, (outside, inside // groups, *kernel), (stride[0], choice, dilation, groups)
    return f"conv{spatial}d", shape, (outside, inside // groups, *kernel), (stride, choice, dilation, groups)


@settings(max_examples=100, deadline=None)
@given(convolutions())
def test_convolutions(case: tuple[str, tuple[int, ...], tuple[int, ...], tuple[object, ...]]) -> None:
    """Every dimension, stride, dilation, group, padding and output padding, with and without a batch dimension."""
    op, shape, weight, chosen = case
    linear = by_rule(op, shape, whole(*weight), *chosen)
    assert isinstance(linear, OpMap)
    assert linear.transposed is not None
    agrees(linear)
    assert (linear.written is None) == (len(shape) == len(weight) and shape[0] == 2)
    for map_ in (linear, linear.absolute()):
        for dtype in (torch.float64, torch.float32):
            matrix = map_.matrix(dtype)
            assert matrix.dtype == dtype
            assert torch.equal(matrix, LinearMap.matrix(map_, dtype))  # by passes


@pytest.mark.parametrize("kernel", [(2, 3), (4, 2), (1, 2)])
def test_even_kernels_pad_by_name_at_the_end(kernel: tuple[int, int]) -> None:
    """An asymmetric ``same``: the column sums of the matrix say at which side an entry is missing."""
    linear = by_rule("conv2d", (1, 2, 5, 4), whole(3, 2, *kernel), 1, "same", [2, 1], 1)
    assert torch.equal(
        linear.transpose(torch.eye(60).double().reshape(60, *linear.out_shape)).reshape(60, 40), forward(linear)
    )
    assert torch.equal(linear.matrix(), forward(linear))
    agrees(linear)


def forward(linear: LinearMap) -> Tensor:
    """The matrix column by column."""
    units = torch.eye(linear.in_size, dtype=torch.float64).reshape(linear.in_size, *linear.in_shape)
    return linear.apply(units).reshape(linear.in_size, linear.out_size).T


def moves() -> dict[str, LinearMap]:
    """Maps of moves and scalings, some that repeat entries, sums and compositions of them."""
    twice = torch.tensor([[0, 3, 3], [1, 0, 5]])
    apart = torch.tensor([4, 0, 2])
    picked = gather(apart, (1, 6), (3,))
    pairs = combination(twice, whole(2, 3, seed=3), (1, 6), (1, 2))
    put = scatter(apart, (3,), (1, 6))
    dense = Dense((whole(6, 6, seed=5),), (1, 6), (1, 6), 6.0)
    lines = by_rule("linear", (1, 3, 2), whole(4, 2, seed=7))
    return {
        "gather": picked,
        "gather, repeated": gather(twice, (1, 6), (2, 3)),
        "gather, negative": gather(apart, (1, 6), (1, 3), -1.0),
        "scatter": put,
        "combination": pairs,
        "slopes": _diagonal(whole(2, 3, seed=4), (1, 6)),
        "linear on rows": lines,
        "composition": compose(picked, put, dense, pairs),
        "sum": add(dense, compose(picked, put), _diagonal(whole(1, 6, seed=6), (1, 6))),
    }


@pytest.mark.parametrize("name", moves())
def test_moves_and_scalings(name: str) -> None:
    """The same of maps that are no convolutions."""
    linear = moves()[name]
    assert isinstance(linear, Sum) or all(getattr(leaf, "transposed", True) for leaf in linear.leaves())
    agrees(linear)


def test_maps_side_by_side() -> None:
    """The transpose of [A B] is Aᵀ above Bᵀ."""
    a, b = moves()["slopes"], Dense((whole(6, 4),), (4,), (2, 3), 4.0)
    y = whole(3, 2, 3, seed=8)
    both = Stacked((a, b)).transpose(y)
    assert torch.equal(both, torch.cat([a.transpose(y).reshape(3, -1), b.transpose(y)], 1))
    assert torch.equal(both, LinearMap.transpose(Stacked((a, b)), y))


def test_a_changed_constant_changes_the_transpose() -> None:
    """``replace(map, constants=…)``, by which positive parts and patterns are made, reaches both directions."""
    linear = by_rule("conv2d", (1, 2, 4, 4), whole(2, 2, 3, 3), 1, 1, 1, 1)
    assert isinstance(linear, OpMap)
    agrees(replace(linear, constants=(whole(2, 2, 3, 3, seed=9),)))


def test_nothing_to_transpose() -> None:
    """Empty batches."""
    linear = by_rule("conv2d", (1, 2, 4, 4), whole(2, 2, 3, 3), 1, 1, 1, 1)
    assert linear.transpose(torch.zeros(0, *linear.out_shape, dtype=torch.float64)).shape == (0, 1, 2, 4, 4)
