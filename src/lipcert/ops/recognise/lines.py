"""The larger or smaller of two lines in one value, entry by entry: LeakyReLU, |x| and their like written by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import AffineNode
from lipcert.network.nonlinearity import Kink, Nonlinearity
from lipcert.ops.context import Context
from lipcert.ops.rational import OutOfRange, Real, exactly, hull
from lipcert.ops.recognise.expression import one_term
from lipcert.ops.recognise.registry import pattern
from lipcert.ops.recognise.scalings import parent, scalar_of

#: v, c and d of c·v + d; d is a double, or doubles entry by entry, and matters to no slope.
Line = tuple[Var, Real, "float | Tensor"]


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
    (_, c1, q), (_, c2, t) = first, second
    p, r = c1.middle, c2.middle
    choose = torch.maximum if largest else torch.minimum
    jump = abs(p - r) if largest else -abs(p - r)
    kinks = (Kink((t - q) / (p - r), jump),) if p != r else ()
    name = "max of two lines" if largest else "min of two lines"
    if isinstance(q, Tensor) and isinstance(t, Tensor):
        return Nonlinearity(
            name, lambda x, u, v: choose(p * x + u, r * x + v), *hull(c1, c2), kinks, (q, t), repr((p, r))
        )
    return Nonlinearity(name, lambda x: choose(p * x + q, r * x + t), *hull(c1, c2), kinks, (), repr((p, q, r, t)))


def _line(builder: NetworkBuilder, x: Var) -> Line:
    """``x`` as a line in the last value that is not one with a single number as its offset."""
    found = one_term(builder, x)
    return (found[1], found[0], found[2].middle) if found else (x, exactly(1), 0.0)


def _line_with_any_offset(builder: NetworkBuilder, x: Var) -> Line:
    """``x`` as a line in an earlier value, with an offset per entry."""
    here, slope, shift = x, exactly(1), torch.zeros((), dtype=torch.float64)
    while True:
        node = builder.node(here)
        factor = scalar_of(node.maps[0]) if isinstance(node, AffineNode) and len(node.maps) == 1 else None
        if factor is None or not isinstance(node, AffineNode):
            return here, slope, shift
        if node.offset is not None:
            shift = shift + slope.middle * node.offset.double()
        slope, here = slope * factor, parent(builder, node)
