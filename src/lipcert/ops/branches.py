"""``where``, masks and comparisons: linear for a constant condition, else only as patterns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.linear import Shape
from lipcert.network.source import Fixed, Source, derived
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.enclosure import Ball, exact, plus
from lipcert.ops.left_out import finite_part, infinite, leave_out
from lipcert.ops.recognise.pieces import COMPARISONS
from lipcert.ops.recognise.registry import forms, recognise
from lipcert.ops.registry import rule

_COMPARISON = (
    "a comparison is discontinuous. It is understood only inside where(x > t, a·x + b, c·x + d) "
    "that is continuous at t, inside where(x > 0, a·x, α(exp(x) − 1)), and as a ReLU mask x·(x > 0); "
    "use an activation from torch.nn.functional, or a continuous one."
)


@rule(*COMPARISONS, kind="pattern")
def comparison(ctx: Context, a: Any, b: Any) -> Var:
    """Comparison: discontinuous; only as the condition of a continuous ``where`` or as a ReLU mask."""
    return ctx.without_constant((a, b), _COMPARISON, (a, b))


@rule("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar", kind="pattern")
def where(ctx: Context, condition: Any, a: Any, b: Any) -> Var:
    """Choice by a condition: linear if constant; else only continuous pieces (LeakyReLU, ELU, softshrink)."""
    if not isinstance(condition, Var):
        mask = ctx.constant(condition)
        if mask.value.dtype != torch.bool:
            raise ctx.unsupported("its condition is not boolean.")
        if mask.rounding:
            raise ctx.unsupported("its condition comes from rounded constants; store the mask in a buffer.")
        return _constant_mask(ctx, mask, a, b)
    found = recognise(ctx, "where", condition, a, b)
    if found is not None:
        return found
    reason = (
        "a choice between two values by a condition on the input is discontinuous unless the two meet, and it is "
        f"none of the activations that are recognised ({forms('where')}). Use the torch.nn activation."
    )
    return ctx.without_constant((condition, a, b), reason, (condition, a, b))


@rule("masked_fill", kind="pattern")
def masked_fill(ctx: Context, x: Any, mask: Any, value: Any) -> Var:
    """Masked fill: linear for a constant mask; else as ``where(mask, value, x)``."""
    return where(ctx, mask, value, x)


def _kept(number: Ball, chosen: Tensor, shape: Shape) -> Ball:
    zero = torch.zeros((), dtype=torch.float64)
    return number.map(lambda t: torch.where(chosen, t, zero).expand(shape))


def _constant_mask(ctx: Context, mask: Constant, a: Any, b: Any) -> Var:
    """Linear: the entries of ``a`` where the mask is true, those of ``b`` elsewhere."""
    shapes = [x.shape for x in (a, b) if isinstance(x, (Var, Constant))]
    shape = tuple(torch.broadcast_shapes(mask.shape, *shapes))
    sides = [infinite(x) for x in (a, b)]
    if any(side is not None for side in sides):
        pairs = zip((mask.value, ~mask.value), sides, strict=True)
        places = [(taken & side).expand(shape) for taken, side in pairs if side is not None]
        a, b = (x if side is None else finite_part(x) for x, side in zip((a, b), sides, strict=True))
        return leave_out(ctx, _constant_mask(ctx, mask, a, b), torch.stack(places).any(dim=0))
    source: Source | None = Fixed(torch.zeros(shape, dtype=torch.float64))
    terms = []
    offset = exact(torch.zeros(shape, dtype=torch.float64))
    for value, chosen, of in (
        (a, mask.value, mask.source),
        (b, ~mask.value, derived(torch.logical_not, mask.source)),
    ):
        if isinstance(value, Var):
            copies = 0.0 if value.shape == shape else math.prod(shape) / max(1, math.prod(value.shape))
            whole = derived(lambda m: m.double().expand(shape), of)
            kept = Constant.exactly(chosen.double().expand(shape).clone(), source=whole)
            terms.append((value, ctx.map(value.shape, lambda v, m: v * m, (kept,), max(1.0, copies), "times")))
        else:
            own = ctx.constant(value)
            part = _kept(own.floating, chosen, shape)
            source = derived(lambda s, m, c: s + torch.where(m, c.double(), 0.0), source, of, own.source)
            ctx.require_finite(Constant.within(part))
            offset = plus(offset, part)
    kept_offset = Constant.within(offset, source) if bool(offset.reach.any()) else None
    return ctx.affine(terms, shape, kept_offset)
