"""Hand-written activations recognised as one: x·sigmoid(βx), x·(1 + erf(kx)), x/(1 + |x|), log(1 + eˣ).

A match is a proof: coefficients are compared as exact rationals, and each slope range holds for the very
coefficients found. Elementwise scalings around a match stay separate affine nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from lipcert.network.builder import Var
from lipcert.network.linear import Identity, LinearMap, Shape, compose
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
    scalings,
    tensor_rate,
    uniform,
)
from lipcert.ops.rational import Real, exactly

#: φ and the scalings that follow it.
Match = tuple[Nonlinearity, tuple[LinearMap, ...]]

COMPARISONS = ("gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal")
_PRODUCT = (
    "a product of two values that both depend on the input has no global Lipschitz constant, and it is "
    "none of the activations that are recognised (x·sigmoid(βx), x·tanh(softplus(x)), x·(1 + erf(kx)), "
    "the tanh GELU, x·clamp(kx + o), x·(x > 0)). Use the torch.nn activation, or remove the product."
)
_QUOTIENT = (
    "division by a value that depends on the input has no global Lipschitz constant, and it is none of the "
    "activations that are recognised (1/(1 + exp(−x)), x/(1 + exp(−βx)), x/(1 + |x|)). "
    "Use the torch.nn activation, or remove the division."
)


def apply(ctx: Context, base: Var, function: Nonlinearity, maps: Sequence[LinearMap] = ()) -> Var:
    """``maps`` applied to φ(base)."""
    result = ctx.activation(base, function)
    if not maps:
        return result
    linear = compose(*maps)
    return ctx.builder.affine([(result, linear)], base.shape, None, ctx.op, ctx.where)


# -- products ----------------------------------------------------------------------------------------------


def match_product(ctx: Context, a: Var, b: Var) -> Var:
    """The activation that ``a * b`` is, or an unresolved value that raises if it is needed."""
    if a.shape == b.shape:
        for factor, gate in ((a, b), (b, a)):
            for base in scalings(ctx.builder, factor):
                for scaled in scalings(ctx.builder, gate):
                    match = _times_gate(ctx, base.var, scaled.var)
                    if match:
                        return apply(ctx, base.var, match[0], (*base.maps, *scaled.maps, *match[1]))
    return ctx.unresolved((a, b), _joint_shape(a, b), ctx.not_lipschitz(_PRODUCT))


def _joint_shape(a: Any, b: Var) -> Shape:
    return tuple(torch.broadcast_shapes(a.shape if isinstance(a, (Var, Constant)) else (), b.shape))


def _times_gate(ctx: Context, base: Var, gate: Var) -> Match | None:
    """φ with φ(base) = base·gate, up to the scalings returned."""
    found = activation_of(ctx.builder, gate)
    if found:
        return _times_activation(ctx, base, *found)
    mask = open_op(ctx.builder, gate, *COMPARISONS)
    if mask:
        return _times_mask(ctx, base, mask.op, *mask.settings)
    return _times_shifted(ctx, base, gate)


def _times_activation(ctx: Context, base: Var, function: Nonlinearity, inner: Var) -> Match | None:
    if function.name == "sigmoid":
        swish = _swish(ctx, base, inner)
        odd = coefficients(polynomial(ctx.builder, inner, base), 1, 3)
        half = exactly(Fraction(1, 2))
        if not swish and odd:  # sigmoid(2u) = (1 + tanh u)/2
            swish = known.tanh_gelu(odd[0] * half, odd[1] * half)
        return (swish, ()) if swish else None
    if function.name == "erfc":  # 1 − erf
        rate = proportional(ctx.builder, inner, base)
        return (known.erf_gelu(-rate.middle), (Identity(base.shape, 2.0),)) if rate and rate.sign else None
    if function.name == "tanh":
        smooth = activation_of(ctx.builder, inner)
        if smooth and smooth[0].name == "softplus" and smooth[0].attributes == known.SOFTPLUS.attributes:
            rate = proportional(ctx.builder, smooth[1], base)
            return (known.scaled_mish(rate.middle), ()) if rate and rate.sign else None
        return None
    ends = known.clamp_ends(function)
    line = coefficients(polynomial(ctx.builder, inner, base), 0, 1)
    if not line:
        return None
    offset, rate = line
    if function.name == "hardsigmoid":  # clamp(v/6 + 1/2, 0, 1)
        sixth = exactly(Fraction(1, 6))
        ends, rate, offset = (0.0, 1.0), rate * sixth, offset * sixth + exactly(Fraction(1, 2))
    if not ends or ends[0] is None or ends[1] is None or not rate.sign:
        return None
    return known.times_clamp(rate, offset, ends[0], ends[1]), ()


def _swish(ctx: Context, base: Var, inner: Var) -> Nonlinearity | None:
    rate = proportional(ctx.builder, inner, base)
    if rate:
        return known.swish(rate.middle)
    for scaled in scalings(ctx.builder, inner):
        if scaled.var.position == base.position:
            factor = tensor_rate(scaled, base)
            return None if factor is None else known.swish(factor)
    return None


def _times_shifted(ctx: Context, base: Var, gate: Var) -> Match | None:
    """base·(c ± c·φ(v)): GELU in both forms, swish written with tanh or with 1 − σ."""
    shifted = _one_term(ctx, gate)
    if not shifted:
        return None
    scale, term, offset = shifted
    found = activation_of(ctx.builder, term)
    if not found or not (scale.exact and offset.exact and offset.sign) or abs(scale.low) != abs(offset.low):
        return None
    function, inner = found
    sign = exactly(1 if scale.low == offset.low else -1)
    c = offset.middle
    twice = (Identity(base.shape, 2.0 * c),)
    if function.name == "sigmoid" and sign.is_(-1):
        swish = _swish(ctx, base, ctx.scaled(inner, -1.0))
        return (swish, (Identity(base.shape, c),)) if swish else None
    if function.name == "erf":
        rate = proportional(ctx.builder, inner, base)
        return (known.erf_gelu((rate * sign).middle), twice) if rate and rate.sign else None
    if function.name == "tanh":
        odd = coefficients(polynomial(ctx.builder, inner, base), 1, 3)
        if not odd:
            return None
        linear, cubic = odd[0] * sign, odd[1] * sign
        if cubic.is_(0):
            return known.swish((linear + linear).middle), twice
        gelu = known.tanh_gelu(linear, cubic)
        return (gelu, twice) if gelu else None
    return None


def _one_term(ctx: Context, var: Var) -> tuple[Real, Var, Real] | None:
    """(c, v, o) with var = c·v + o, seen through scalings of v."""
    affine = affine_in(ctx.builder, var)
    if not affine or len(affine[0]) != 1:
        return None
    ((position, scale),) = affine[0].items()
    inner = handle(ctx.builder, position)
    while True:
        deeper = affine_in(ctx.builder, inner)
        if not deeper or len(deeper[0]) != 1 or not deeper[1].is_(0):
            return scale, inner, affine[1]
        ((position, factor),) = deeper[0].items()
        scale, inner = scale * factor, handle(ctx.builder, position)


def _times_mask(ctx: Context, base: Var, op: str, *operands: Any) -> Match | None:
    """base·(base > 0) and its mirror images."""
    threshold = half_line(ctx, base, op, *operands)
    if not threshold or threshold[0] != 0:
        return None
    zero, one = (exactly(0), exactly(0)), (exactly(1), exactly(0))
    left, right = (zero, one) if threshold[1] else (one, zero)
    return known.two_slopes(left, right, Fraction(0), "relu" if threshold[1] else "min(x, 0)"), ()


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


# -- quotients, roots and logarithms -----------------------------------------------------------------------


def match_quotient(ctx: Context, a: Any, b: Var) -> Var:
    """The activation that ``a / b`` is, or an unresolved value that raises if it is needed."""
    shifted = _one_term(ctx, b)
    if shifted:
        exponent = open_op(ctx.builder, shifted[1], "exp")
        if exponent and shifted[0].is_(1) and shifted[2].is_(1):
            found = _over_exponential(ctx, a, ctx.scaled(parent(ctx.builder, exponent), -1.0))
            if found:
                return found
        if isinstance(a, Var):
            for base in scalings(ctx.builder, a):
                soft = _over_absolute(ctx, base.var, *shifted)
                if soft and a.shape == b.shape:
                    return apply(ctx, base.var, soft, base.maps)
    parents = (a, b) if isinstance(a, Var) else (b,)
    return ctx.unresolved(parents, _joint_shape(a, b), ctx.not_lipschitz(_QUOTIENT))


def _over_exponential(ctx: Context, a: Any, minus: Var) -> Var | None:
    """a / (1 + exp(−v)) = a·sigmoid(v)."""
    if not isinstance(a, Var):
        number = uniform(a)
        if not number or not number.exact:
            return None
        if _joint_shape(a, minus) != minus.shape:
            return None
        maps = () if number.is_(1) else (Identity(minus.shape, number.middle),)
        return apply(ctx, minus, known.SIGMOID, maps)
    if a.shape != minus.shape:
        return None
    for base in scalings(ctx.builder, a):
        swish = _swish(ctx, base.var, minus)
        if swish:
            return apply(ctx, base.var, swish, base.maps)
    return None


def _over_absolute(ctx: Context, base: Var, scale: Real, term: Var, offset: Real) -> Nonlinearity | None:
    """base / (c + m·|k·base|)."""
    found = activation_of(ctx.builder, term)
    if not found or found[0].name != "abs":
        return None
    rate = proportional(ctx.builder, found[1], base)
    if not rate or not rate.sign or scale.sign <= 0 or offset.sign <= 0 or not offset.exact:
        return None
    return known.ratio_softsign(offset.low, scale * (rate if rate.sign > 0 else -rate))


def match_logarithm(ctx: Context, x: Var, plus_one: bool) -> Var | None:
    """log(1 + exp(v)) (``plus_one`` for log1p) is softplus, log(sigmoid(v)) is logsigmoid."""
    builder = ctx.builder
    if plus_one:
        exponent = open_op(builder, x, "exp")
    else:
        found = activation_of(builder, x)
        if found and found[0].name == "sigmoid":
            return ctx.activation(found[1], known.LOG_SIGMOID)
        shifted = _one_term(ctx, x)
        matched = shifted and shifted[0].is_(1) and shifted[2].is_(1)
        exponent = open_op(builder, shifted[1], "exp") if shifted and matched else None
    return ctx.activation(parent(builder, exponent), known.SOFTPLUS) if exponent else None


def match_root(ctx: Context, x: Var) -> Var | None:
    """√(q v² + b v + c), q > 0 and 4qc > b², is smooth with slopes ±√q."""
    for base in ancestors(ctx.builder, x):
        found = coefficients(polynomial(ctx.builder, x, base), 0, 1, 2)
        if not found:
            continue
        constant, linear, square = found
        discriminant = exactly(4) * square * constant - linear * linear
        if square.sign > 0 and discriminant.sign > 0:
            return ctx.activation(base, known.root(square, linear, constant))
    return None


def match_gaussian(ctx: Context, x: Var) -> Var | None:
    """exp(c + b v − q v²), q > 0, is a Gaussian."""
    for base in ancestors(ctx.builder, x):
        found = coefficients(polynomial(ctx.builder, x, base), 0, 1, 2)
        if found and found[2].sign < 0:
            bell = known.gaussian(*found)
            return ctx.activation(base, bell) if bell else None
    return None


def match_difference(ctx: Context, a: Var, b: Var) -> Var | None:
    """v − tanh(v) is tanhshrink."""
    found = activation_of(ctx.builder, b)
    if found and found[0].name == "tanh" and a.shape == b.shape:
        base = core(ctx.builder, a)
        rate = proportional(ctx.builder, found[1], base)
        if rate and rate.is_(1):
            return ctx.activation(base, known.TANHSHRINK)
    return None
