"""The larger or smaller of two lines in one value, entry by entry: LeakyReLU, |x| and their like written by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import AffineNode
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.numerics.midrad import known as known_range
from lipcert.ops import nonlinearities as known
from lipcert.ops.context import Context
from lipcert.ops.rational import OutOfRange, Real, exactly
from lipcert.ops.recognise.expression import one_term
from lipcert.ops.recognise.registry import pattern
from lipcert.ops.recognise.scalings import parent, scalar_of

#: v, c and d of c·v + d, with d a number, or doubles entry by entry and how far off they may be.
Line = tuple[Var, Real, "float | Tensor", "Tensor | None"]


@pattern("larger of two lines", "maximum", 10, "max(a·x + b, c·x + d)")
def larger_line(ctx: Context, a: Var, b: Var) -> Var | None:
    """max(a·x + b, c·x + d): slopes between a and c."""
    return _extreme_line(ctx, a, b, True)


@pattern("smaller of two lines", "minimum", 10, "min(a·x + b, c·x + d)")
def smaller_line(ctx: Context, a: Var, b: Var) -> Var | None:
    """min(a·x + b, c·x + d): slopes between a and c."""
    return _extreme_line(ctx, a, b, False)


def _extreme_line(ctx: Context, a: Var, b: Var, largest: bool) -> Var | None:
    """One activation: every slope of the larger (smaller) of two lines lies between theirs, whatever their offsets.

    Numbers without a faithful double are no error here: the two are still a maximum of two values.
    """
    if a.shape != b.shape:
        return None
    try:
        for read in (_line, _line_with_any_offset):
            first, second = read(ctx.builder, a), read(ctx.builder, b)
            if first[0] == second[0]:
                return ctx.activation(first[0], _of_two(first, second, largest))
    except OutOfRange:
        pass
    return None


def _of_two(first: Line, second: Line, largest: bool) -> Nonlinearity:
    (_, c1, q, e1), (_, c2, t, e2) = first, second
    return known.extreme_line(largest, (c1, c2), (q, t), None if e1 is None or e2 is None else e1 + e2)


def _line(builder: NetworkBuilder, x: Var) -> Line:
    """``x`` as a line in the last value that is not one with a single number as its offset."""
    found = one_term(builder, x)
    return (found[1], found[0], found[2].middle, None) if found else (x, exactly(1), 0.0, None)


def _line_with_any_offset(builder: NetworkBuilder, x: Var) -> Line:
    """``x`` as a line in an earlier value, with an offset per entry."""
    here, slope = x, exactly(1)
    shift = spread = torch.zeros((), dtype=torch.float64)
    while True:
        node = builder.node(here)
        factor = scalar_of(node.maps[0]) if isinstance(node, AffineNode) and len(node.maps) == 1 else None
        if factor is None or not isinstance(node, AffineNode):
            return here, slope, shift, spread
        if node.offset is not None:
            offset, scale = node.offset.double(), known_range(slope.middle)
            error = torch.full((), math.inf) if node.offset_error is None else node.offset_error
            moved = scale * known_range(offset).widened(error.double().expand(offset.shape))
            total = known_range(shift).widened(spread.expand(shift.shape)) + moved
            shift, spread = total.mid, total.rad
        slope, here = slope * factor, parent(builder, node)
