"""Pieces that meet: continuous ``where``, and a mask times its value."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch

from lipcert.network.builder import Var
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.ops import nonlinearities as known
from lipcert.ops.context import Constant, Context
from lipcert.ops.rational import Real, exactly
from lipcert.ops.recognise.expression import (
    activation_of,
    affine_in,
    ancestors,
    coefficients,
    one_term,
    open_op,
    polynomial,
    proportional,
)
from lipcert.ops.recognise.facts import ends
from lipcert.ops.recognise.gates import Found, gated
from lipcert.ops.recognise.registry import pattern
from lipcert.ops.recognise.scalings import core, handle, parent, scalar_of, scalings, uniform

COMPARISONS = ("gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal")
#: Slope and offset of c·x + d.
Line = tuple[Real, Real]


# -- patterns ----------------------------------------------------------------------------------------------


@pattern("product with a mask", "mul", 80, "x·(x > 0)")
def times_mask(ctx: Context, a: Var, b: Var) -> Var | None:
    """x·(x > 0) and its mirror images."""

    def gate(ctx: Context, base: Var, other: Var) -> Found | None:
        mask = open_op(ctx.builder, other, *COMPARISONS)
        side = half_line(ctx, base, mask.op, *mask.settings) if mask else None
        if not side or side[0] != 0:
            return None
        zero, one = (exactly(0), exactly(0)), (exactly(1), exactly(0))
        left, right = (zero, one) if side[1] else (one, zero)
        return known.two_slopes(left, right, Fraction(0), "relu" if side[1] else "min(x, 0)"), ()

    return gated(ctx, a, b, gate)


@pattern(
    "two half lines", "where", 10, "where(x > t, a·x + b, c·x + d) continuous at t", "where(x > 0, a·x, α(exp(x) − 1))"
)
def two_half_lines(ctx: Context, condition: Var, a: Any, b: Any) -> Var | None:
    """Pieces left and right of one threshold, with equal values there: LeakyReLU, ELU."""
    for base, op, operands in comparisons(ctx, condition, a, b):
        function = _half_lines(ctx, base, op, operands, a, b)
        if function:
            return ctx.activation(base, function)
    return None


@pattern("outside a band", "where", 20, "softshrink")
def outside_a_band(ctx: Context, condition: Var, a: Any, b: Any) -> Var | None:
    """Softshrink: one slope for |x| ≤ λ, another beyond."""
    for base, op, operands in comparisons(ctx, condition, a, b):
        function = _outside_band(ctx, base, op, operands, a, b)
        if function:
            return ctx.activation(base, function)
    return None


# -- where -------------------------------------------------------------------------------------------------


def comparisons(ctx: Context, condition: Var, a: Any, b: Any) -> list[tuple[Var, str, list[Any]]]:
    """(base, comparison, its operands) for every value that the condition may be about."""
    node = open_op(ctx.builder, condition, *COMPARISONS)
    if not node:
        return []
    operands = list(node.settings)
    nearest = ancestors(ctx.builder, next(x for x in operands if isinstance(x, Var)))
    fit = [v for v in nearest if v.shape == condition.shape and _fits(a, v) and _fits(b, v)]
    return [(base, node.op, operands) for base in fit]


def _fits(x: Any, base: Var) -> bool:
    shape = x.shape if isinstance(x, (Var, Constant)) else ()
    return tuple(torch.broadcast_shapes(shape, base.shape)) == base.shape


def half_line(ctx: Context, base: Var, op: str, *operands: Any) -> tuple[Fraction, bool] | None:
    """(t, right): the comparison holds on one side of base = t, the right one or the left one."""
    if len(operands) != 2:
        return None
    sides = [coefficients(polynomial(ctx.builder, x, base), 0, 1) for x in operands]
    if sides[0] is None or sides[1] is None:
        return None
    offset, rate = (p - q for p, q in zip(*sides, strict=True))
    if not (offset.exact and rate.exact and rate.sign):
        return None
    return -offset.low / rate.low, (rate.sign > 0) == (op[0] == "g")


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


def _line(ctx: Context, x: Any, base: Var) -> Line | None:
    found = coefficients(polynomial(ctx.builder, x, base), 1, 0)
    return (found[0], found[1]) if found else None


def _equal_at(at: Fraction, p: Line, q: Line) -> bool:
    """p and q agree at ``at``, provably: at 0 the slopes do not matter."""
    if at == 0:
        return p[1].exact and q[1].exact and p[1] == q[1]
    return ((p[0] - q[0]) * exactly(at) + p[1] - q[1]).is_(0)


def _named(left: Line, right: Line, at: Fraction) -> Nonlinearity:
    through_zero = at == 0 and left[1].is_(0) and right[0].is_(1)
    if through_zero and left[0].exact:
        return known.two_slopes(left, right, at, "relu" if left[0].is_(0) else "leaky_relu")
    return known.two_slopes(left, right, at, "two slopes")


def _exponential(ctx: Context, x: Any, base: Var) -> Line | None:
    """(α, k) if, for base ≤ 0, ``x`` is α (exp(k·base) − 1) with k > 0."""
    term = one_term(ctx.builder, x) if isinstance(x, Var) else None
    scale, var, offset = term or (exactly(1), x, exactly(0))
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
        open_to = ends(found[0]) if found else None
        if not rate and found and open_to in ((None, 0.0), (0.0, None)):
            rate = proportional(ctx.builder, found[1], base)
            kept = 1 if open_to == (None, 0.0) else -1  # the sign that takes base ≤ 0 to the open side
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
    found = activation_of(ctx.builder, size, "abs")
    threshold = uniform(limit)
    if not found or core(ctx.builder, found[1]) != core(ctx.builder, base):
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


def _line_and_sign(ctx: Context, x: Any, base: Var) -> Line | None:
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
        scale, inner, shift = one_term(ctx.builder, term) or (exactly(1), term, exactly(0))
        sign = open_op(ctx.builder, inner, "sign", "sgn")
        if not sign or not shift.is_(0) or core(ctx.builder, parent(ctx.builder, sign)) != core(ctx.builder, base):
            return None
        jump = jump + factor * scale
    return slope, jump
