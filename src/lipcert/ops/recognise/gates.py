"""Products and quotients of a value with a gate of its own: x·sigmoid(βx), x·(1 + erf(kx)), x/(1 + |x|) and so on.

Each slope range holds for the very coefficients found. Elementwise scalings around a match stay separate nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch

from lipcert.network.builder import Var
from lipcert.network.linear import Identity, LinearMap, Shape, compose
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.ops import nonlinearities as known
from lipcert.ops.context import Constant, Context
from lipcert.ops.rational import Real, exactly
from lipcert.ops.recognise.expression import activation_of, coefficients, one_term, open_op, polynomial, proportional
from lipcert.ops.recognise.facts import ends, kind
from lipcert.ops.recognise.registry import pattern
from lipcert.ops.recognise.scalings import multiple, parent, scalings, uniform

#: φ and the scalings that follow it.
Found = tuple[Nonlinearity, tuple[LinearMap, ...]]
Gate = Callable[[Context, Var, Var], Found | None]


def apply(ctx: Context, base: Var, function: Nonlinearity, maps: Sequence[LinearMap] = ()) -> Var:
    """``maps`` applied to φ(base)."""
    result = ctx.activation(base, function)
    if not maps:
        return result
    linear = compose(*maps)
    return ctx.builder.affine([(result, linear)], base.shape, None, ctx.op, ctx.where)


def joint_shape(a: Any, b: Any) -> Shape:
    """Shape of ``a`` and ``b`` broadcast together."""
    return tuple(torch.broadcast_shapes(*(x.shape for x in (a, b) if isinstance(x, (Var, Constant)))))


def gated(ctx: Context, a: Var, b: Var, gate: Gate) -> Var | None:
    """``a · b`` with either factor as x and the other as its gate, scalings taken off both."""
    if a.shape != b.shape:
        return None
    for factor, other in ((a, b), (b, a)):
        for base in scalings(ctx.builder, factor):
            for scaled in scalings(ctx.builder, other):
                found = gate(ctx, base.var, scaled.var)
                if found:
                    return apply(ctx, base.var, found[0], (*base.maps, *scaled.maps, *found[1]))
    return None


# -- products with an activation ---------------------------------------------------------------------------


@pattern("swish", "mul", 30, "x·sigmoid(βx)")
def swish(ctx: Context, a: Var, b: Var) -> Var | None:
    """x·sigmoid(βx) with β a number or a number per entry, also as the tanh GELU, sigmoid(2u) = (1 + tanh u)/2."""

    def gate(ctx: Context, base: Var, other: Var) -> Found | None:
        found = activation_of(ctx.builder, other, "sigmoid")
        if not found:
            return None
        plain = swish_of(ctx, base, found[1])
        odd = None if plain else coefficients(polynomial(ctx.builder, found[1], base), 1, 3)
        half = exactly(Fraction(1, 2))
        plain = known.tanh_gelu(odd[0] * half, odd[1] * half) if odd else plain
        return (plain, ()) if plain else None

    return gated(ctx, a, b, gate)


def swish_of(ctx: Context, base: Var, inner: Var) -> Nonlinearity | None:
    """The swish base·sigmoid(inner) if ``inner`` is a multiple of ``base``, entry by entry."""
    rate = proportional(ctx.builder, inner, base)
    if rate:
        return known.swish(rate.middle)
    for scaled in scalings(ctx.builder, inner):
        if scaled.var.position == base.position:
            rates = scaled.rates(base)
            return None if rates is None else known.swish(rates, scaled.error)
    return None


@pattern("gelu by erfc", "mul", 40, "x·erfc(−kx)")
def gelu_by_erfc(ctx: Context, a: Var, b: Var) -> Var | None:
    """x·erfc(−kx) = x·(1 + erf(kx))."""

    def gate(ctx: Context, base: Var, other: Var) -> Found | None:
        found = activation_of(ctx.builder, other, "erfc")
        rate = proportional(ctx.builder, found[1], base) if found else None
        return (known.erf_gelu(-rate.middle), (Identity(base.shape, 2.0),)) if rate and rate.sign else None

    return gated(ctx, a, b, gate)


@pattern("mish", "mul", 50, "x·tanh(softplus(kx))")
def mish(ctx: Context, a: Var, b: Var) -> Var | None:
    """x·tanh(softplus(kx)), k ≠ 0."""

    def gate(ctx: Context, base: Var, other: Var) -> Found | None:
        found = activation_of(ctx.builder, other, "tanh")
        smooth = activation_of(ctx.builder, found[1], "softplus") if found else None
        rate = proportional(ctx.builder, smooth[1], base) if smooth else None
        return (known.scaled_mish(rate.middle), ()) if rate and rate.sign else None

    return gated(ctx, a, b, gate)


@pattern("product with a clamp", "mul", 60, "x·clamp(kx + o)")
def times_clamp(ctx: Context, a: Var, b: Var) -> Var | None:
    """x·clamp(kx + o, low, high), k ≠ 0, and x·hardsigmoid(kx + o)."""

    def gate(ctx: Context, base: Var, other: Var) -> Found | None:
        found = activation_of(ctx.builder, other)
        line = coefficients(polynomial(ctx.builder, found[1], base), 0, 1) if found else None
        if not found or not line:
            return None
        between, (offset, rate) = ends(found[0]), line
        if kind(found[0]) == "hardsigmoid":  # clamp(v/6 + 1/2, 0, 1)
            sixth = exactly(Fraction(1, 6))
            between, rate, offset = (0.0, 1.0), rate * sixth, offset * sixth + exactly(Fraction(1, 2))
        if not between or between[0] is None or between[1] is None or not rate.sign:
            return None
        return known.times_clamp(rate, offset, between[0], between[1]), ()

    return gated(ctx, a, b, gate)


@pattern("product with a shifted gate", "mul", 70, "x·(1 + erf(kx))", "x·(1 + tanh(kx))", "the tanh GELU")
def times_shifted(ctx: Context, a: Var, b: Var) -> Var | None:
    """x·(c ± c·φ(v)): GELU in both forms, swish written with tanh or with 1 − sigmoid."""
    return gated(ctx, a, b, _shifted_gate)


def _shifted_gate(ctx: Context, base: Var, other: Var) -> Found | None:
    shifted = one_term(ctx.builder, other)
    found = activation_of(ctx.builder, shifted[1], "sigmoid", "erf", "tanh") if shifted else None
    if not shifted or not found:
        return None
    scale, _, offset = shifted
    if not (scale.exact and offset.exact and offset.sign) or abs(scale.low) != abs(offset.low):
        return None
    sign = exactly(1 if scale.low == offset.low else -1)
    half, twice = (multiple(base.shape, offset),), (multiple(base.shape, offset + offset),)
    inner = found[1]
    if kind(found[0]) == "sigmoid":
        swish_ = swish_of(ctx, base, ctx.scaled(inner, -1.0)) if sign.is_(-1) else None
        return (swish_, half) if swish_ else None
    if kind(found[0]) == "erf":
        rate = proportional(ctx.builder, inner, base)
        return (known.erf_gelu((rate * sign).middle), twice) if rate and rate.sign else None
    odd = coefficients(polynomial(ctx.builder, inner, base), 1, 3)
    if not odd:
        return None
    linear, cubic = odd[0] * sign, odd[1] * sign
    if cubic.is_(0):
        return known.swish((linear + linear).middle), twice
    gelu = known.tanh_gelu(linear, cubic)
    return (gelu, twice) if gelu else None


# -- quotients ---------------------------------------------------------------------------------------------


@pattern("quotient by 1 + exp", "div", 40, "c/(1 + exp(−v))", "x/(1 + exp(−βx))")
def over_exponential(ctx: Context, a: Any, b: Var) -> Var | None:
    """a / (1 + exp(−v)) = a·sigmoid(v)."""
    shifted = one_term(ctx.builder, b)
    exponent = open_op(ctx.builder, shifted[1], "exp") if shifted else None
    if not shifted or not exponent or not shifted[0].is_(1) or not shifted[2].is_(1):
        return None
    minus = ctx.scaled(parent(ctx.builder, exponent), -1.0)
    if not isinstance(a, Var):
        number = uniform(a)
        if not number or not number.exact or joint_shape(a, minus) != minus.shape:
            return None
        return apply(ctx, minus, known.SIGMOID, () if number.is_(1) else (multiple(minus.shape, number),))
    if a.shape != minus.shape:
        return None
    for base in scalings(ctx.builder, a):
        found = swish_of(ctx, base.var, minus)
        if found:
            return apply(ctx, base.var, found, base.maps)
    return None


@pattern("quotient by 1 + abs", "div", 50, "x/(c + m|x|)")
def over_absolute(ctx: Context, a: Any, b: Var) -> Var | None:
    """x / (c + m·|k·x|), c, m > 0."""
    shifted = one_term(ctx.builder, b)
    if not shifted or not isinstance(a, Var) or a.shape != b.shape:
        return None
    for base in scalings(ctx.builder, a):
        soft = _over_absolute(ctx, base.var, *shifted)
        if soft:
            return apply(ctx, base.var, soft, base.maps)
    return None


def _over_absolute(ctx: Context, base: Var, scale: Real, term: Var, offset: Real) -> Nonlinearity | None:
    found = activation_of(ctx.builder, term, "abs")
    rate = proportional(ctx.builder, found[1], base) if found else None
    if not rate or not rate.sign or scale.sign <= 0 or offset.sign <= 0 or not offset.exact:
        return None
    return known.ratio_softsign(offset.low, scale * (rate if rate.sign > 0 else -rate))
