"""``where`` and comparisons: piecewise activations that are continuous where the pieces meet."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.ops import nonlinearities as known
from lipcert.ops.context import Constant, Context
from lipcert.ops.elementwise import (
    activation_of,
    affine_in,
    ancestors,
    coefficients,
    core,
    handle,
    open_op,
    parent,
    polynomial,
    proportional,
    scalar_of,
    scalings,
    uniform,
)
from lipcert.ops.patterns import COMPARISONS, half_line
from lipcert.ops.rational import Real, exactly
from lipcert.ops.registry import rule

_COMPARISON = (
    "a comparison is discontinuous. It is understood only inside where(x > t, a·x + b, c·x + d) "
    "that is continuous at t, inside where(x > 0, a·x, α(exp(x) − 1)), and as a ReLU mask x·(x > 0); "
    "use an activation from torch.nn.functional, or a continuous one."
)
_WHERE = (
    "a choice between two values by a condition on the input is discontinuous unless the two meet, and it is "
    "none of the activations that are recognised (where(x > t, a·x + b, c·x + d) continuous at t, "
    "where(x > 0, a·x, α(exp(x) − 1)), softshrink). Use the torch.nn activation."
)


@rule(*COMPARISONS, kind="pattern")
def comparison(ctx: Context, a: Any, b: Any) -> Var:
    """Comparison: discontinuous; only as the condition of a continuous ``where`` or as a ReLU mask."""
    variables = [x for x in (a, b) if isinstance(x, Var)]
    shapes = [x.shape for x in (a, b) if isinstance(x, (Var, Constant))]
    shape = tuple(torch.broadcast_shapes(*shapes))
    return ctx.unresolved(variables, shape, ctx.not_lipschitz(_COMPARISON), (a, b))


@rule("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar", kind="pattern")
def where(ctx: Context, condition: Any, a: Any, b: Any) -> Var:
    """Choice by a condition: linear if constant; else only continuous pieces (LeakyReLU, ELU, softshrink)."""
    if not isinstance(condition, Var):
        mask = ctx.constant(condition)
        if mask.value.dtype != torch.bool:
            raise ctx.unsupported("its condition is not boolean.")
        if mask.rounding:
            raise ctx.unsupported("its condition comes from rounded constants; store the mask in a buffer.")
        return _constant_mask(ctx, mask.value, a, b)
    node = open_op(ctx.builder, condition, *COMPARISONS)
    if node:
        operands = list(node.settings)
        for base in ancestors(ctx.builder, next(x for x in operands if isinstance(x, Var))):
            if base.shape != condition.shape or not _fits(a, base) or not _fits(b, base):
                continue
            function = _half_lines(ctx, base, node.op, operands, a, b)
            function = function or _outside_band(ctx, base, node.op, operands, a, b)
            if function:
                return ctx.activation(base, function)
    variables = [x for x in (condition, a, b) if isinstance(x, Var)]
    shapes = [x.shape for x in (condition, a, b) if isinstance(x, (Var, Constant))]
    shape = tuple(torch.broadcast_shapes(*shapes))
    return ctx.unresolved(variables, shape, ctx.not_lipschitz(_WHERE), (condition, a, b))


@rule("masked_fill", kind="pattern")
def masked_fill(ctx: Context, x: Any, mask: Any, value: Any) -> Var:
    """Masked fill: linear for a constant mask; else as ``where(mask, value, x)``."""
    return where(ctx, mask, value, x)


def _constant_mask(ctx: Context, mask: Tensor, a: Any, b: Any) -> Var:
    """Linear: the entries of ``a`` where the mask is true, those of ``b`` elsewhere."""
    shapes = [x.shape for x in (a, b) if isinstance(x, (Var, Constant))]
    shape = tuple(torch.broadcast_shapes(tuple(mask.shape), *shapes))
    terms = []
    offset = torch.zeros(shape, dtype=torch.float64)
    for value, chosen in ((a, mask), (b, ~mask)):
        if isinstance(value, Var):
            copies = 0.0 if value.shape == shape else math.prod(shape) / max(1, math.prod(value.shape))
            kept = Constant.exactly(chosen.double().expand(shape).clone())
            terms.append((value, ctx.map(value.shape, lambda v, m: v * m, (kept,), max(1.0, copies))))
        else:
            number = ctx.constant(value).value.double()
            part = torch.where(chosen, number, torch.zeros((), dtype=torch.float64)).expand(shape)
            ctx.require_finite(part)
            offset = offset + part
    return ctx.builder.affine(terms, shape, offset if bool(offset.any()) else None, ctx.op, ctx.where)


def _fits(x: Any, base: Var) -> bool:
    shape = x.shape if isinstance(x, (Var, Constant)) else ()
    return tuple(torch.broadcast_shapes(shape, base.shape)) == base.shape


def _half_lines(ctx: Context, base: Var, op: str, operands: list[Any], a: Any, b: Any) -> Nonlinearity | None:
    """Pieces left and right of one threshold."""
    side = half_line(ctx, base, op, *operands)
    if not side:
        return None
    at, holds_right = side
    right, left = (a, b) if holds_right else (b, a)
    right_line = _line(ctx, right, base)
    if not right_line:
        return None
    left_line = _line(ctx, left, base)
    if left_line:
        if not _equal_at(at, left_line, right_line):
            return None
        return _named(left_line, right_line, at)
    exponential = _exponential(ctx, left, base)
    if exponential and at == 0 and right_line[1].is_(0):
        return known.elu(right_line[0], *exponential)
    return None


def _line(ctx: Context, x: Any, base: Var) -> tuple[Real, Real] | None:
    found = coefficients(polynomial(ctx.builder, x, base), 1, 0)
    return (found[0], found[1]) if found else None


def _equal_at(at: Fraction, p: tuple[Real, Real], q: tuple[Real, Real]) -> bool:
    """p and q agree at ``at``, provably: at 0 the slopes do not matter."""
    if at == 0:
        return p[1].exact and q[1].exact and p[1] == q[1]
    return ((p[0] - q[0]) * exactly(at) + p[1] - q[1]).is_(0)


def _named(left: tuple[Real, Real], right: tuple[Real, Real], at: Fraction) -> Nonlinearity:
    through_zero = at == 0 and left[1].is_(0) and right[0].is_(1)
    if through_zero and left[0].exact:
        return known.two_slopes(left, right, at, "relu" if left[0].is_(0) else "leaky_relu")
    return known.two_slopes(left, right, at, "two slopes")


def _exponential(ctx: Context, x: Any, base: Var) -> tuple[Real, Real] | None:
    """(α, k) if, for base ≤ 0, ``x`` is α (exp(k·base) − 1) with k > 0."""
    if not isinstance(x, Var):
        return None
    scale = exactly(1)
    var = x
    offset = exactly(0)
    while True:
        affine = affine_in(ctx.builder, var)
        if not affine or len(affine[0]) != 1:
            break
        ((position, factor),) = affine[0].items()
        offset = offset + scale * affine[1]
        scale = scale * factor
        var = handle(ctx.builder, position)
    node = open_op(ctx.builder, var, "exp", "expm1")
    if not node:
        return None
    if node.op == "exp":
        offset = offset + scale
        if not scale.exact:  # α(eˣ − 1) with a rounded α: compare before α is applied
            offset = exactly(0) if _minus_one(ctx, x) else offset
    if not offset.is_(0):
        return None
    rate = _rate_on_left(ctx, parent(ctx.builder, node), base)
    return (scale, rate) if rate and rate.sign > 0 else None


def _minus_one(ctx: Context, x: Var) -> bool:
    """``x`` is scalings of (exp(v) − 1), exactly."""
    var = x
    while True:
        affine = affine_in(ctx.builder, var)
        if not affine or len(affine[0]) != 1:
            return False
        ((position, factor),) = affine[0].items()
        if affine[1].is_(0):
            var = handle(ctx.builder, position)
            continue
        inner = open_op(ctx.builder, handle(ctx.builder, position), "exp")
        return bool(inner) and factor.is_(1) and affine[1].is_(-1)


def _rate_on_left(ctx: Context, var: Var, base: Var) -> Real | None:
    """k with var = k·base for base ≤ 0, also through min(base, 0) = −relu(−base)."""
    scale = exactly(1)
    for here in scalings(ctx.builder, var):
        rate = proportional(ctx.builder, here.var, base)
        found = activation_of(ctx.builder, here.var)
        ends = known.clamp_ends(found[0]) if found else None
        if not rate and found and ends in ((None, 0.0), (0.0, None)):
            rate = proportional(ctx.builder, found[1], base)
            kept = 1 if ends == (None, 0.0) else -1  # the sign that takes base ≤ 0 to the open side
            rate = rate if rate and rate.sign == kept else None
        if rate:
            factors = [scalar_of(linear) for linear in here.maps]
            for factor in factors:
                if factor is None:
                    return None
                scale = scale * factor
            return rate * scale
    return None


def _outside_band(ctx: Context, base: Var, op: str, operands: list[Any], a: Any, b: Any) -> Nonlinearity | None:
    """Softshrink: a·x for |x| ≤ λ, c·x + d·sign(x) beyond, continuous at ±λ."""
    size, limit = operands
    if not isinstance(size, Var):
        return None
    found = activation_of(ctx.builder, size)
    threshold = uniform(limit)
    if not found or found[0].name != "abs" or core(ctx.builder, found[1]) != core(ctx.builder, base):
        return None
    if not threshold or not threshold.exact or threshold.low < 0:
        return None
    outer, inner = (a, b) if op[0] == "g" else (b, a)
    middle = proportional(ctx.builder, inner, base)
    beyond = _line_and_sign(ctx, outer, base)
    if not middle or not beyond:
        return None
    slope, jump = beyond
    if not (slope * threshold + jump - middle * threshold).is_(0):
        return None
    return known.odd_two_slopes(middle, slope, jump, threshold.low)


def _line_and_sign(ctx: Context, x: Any, base: Var) -> tuple[Real, Real] | None:
    """(c, d) if ``x`` is c·base + d·sign(base)."""
    affine = affine_in(ctx.builder, x) if isinstance(x, Var) else None
    if not affine or not affine[1].is_(0):
        return None
    slope = jump = exactly(0)
    for position, factor in affine[0].items():
        term = handle(ctx.builder, position)
        rate = proportional(ctx.builder, term, base)
        if rate:
            slope = slope + factor * rate
            continue
        scale = factor
        while True:
            deeper = affine_in(ctx.builder, term)
            if not deeper or len(deeper[0]) != 1 or not deeper[1].is_(0):
                break
            ((place, more),) = deeper[0].items()
            scale, term = scale * more, handle(ctx.builder, place)
        sign = open_op(ctx.builder, term, "sign", "sgn")
        if not sign or core(ctx.builder, parent(ctx.builder, sign)) != core(ctx.builder, base):
            return None
        jump = jump + scale
    return slope, jump
