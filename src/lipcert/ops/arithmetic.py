"""Sums of variables, products and quotients by constants, and the patterns that give products a constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lipcert.network.activations.steep import power
from lipcert.network.builder import Var
from lipcert.network.linear import Identity, LinearMap, Shape, compose
from lipcert.network.source import Source, derived
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context, number
from lipcert.ops.enclosure import Ball, exact, over, plus, rounded
from lipcert.ops.enclosure import times as product
from lipcert.ops.left_out import finite_part, infinite, leave_out
from lipcert.ops.recognise.registry import forms, recognise
from lipcert.ops.recognise.scalings import number_of, times
from lipcert.ops.registry import rule

#: Divisors between 2^−this and 2^this have a normal reciprocal.
_PLAIN_DIVISOR = 900


def _shape(x: Any) -> Shape:
    return x.shape if isinstance(x, (Var, Constant)) else ()


def broadcast(ctx: Context, x: Var, shape: Shape, scale: float = 1.0) -> LinearMap:
    """The map that broadcasts ``x`` to ``shape`` and multiplies it by ``scale``."""
    if x.shape == shape:
        return Identity(shape, scale)
    repeats = math.prod(shape) / max(1, math.prod(x.shape))
    wide = ctx.map(x.shape, lambda v: v + v.new_zeros(shape), (), repeats)
    return compose(wide, Identity(shape, scale))


def _sum(ctx: Context, terms: list[tuple[Any, float]]) -> Var:
    shape = tuple(torch.broadcast_shapes(*(_shape(x) for x, _ in terms)))
    masks = [infinite(x) if scale > 0 else None for x, scale in terms]
    if any(mask is not None for mask in masks):
        finite = [(x if mask is None else finite_part(x), s) for (x, s), mask in zip(terms, masks, strict=True)]
        places = [mask.expand(shape) for mask in masks if mask is not None]
        return leave_out(ctx, _sum(ctx, finite), torch.stack(places).any(dim=0))
    offset: Ball | None = None
    source: Source | None = None
    parts = []
    for x, scale in terms:
        if not math.isfinite(scale):
            raise ctx.unsupported(f"its factor alpha is {scale}.")
        if isinstance(x, Var):
            parts.append((x, broadcast(ctx, x, shape, scale)))
        else:
            constant = exact_double(ctx, x)
            ctx.require_finite(constant)
            value = constant.floating
            value = Ball(scale * value.middle, value.radius) if abs(scale) == 1.0 else product(value, exact(scale))
            own = derived(lambda c, scale=scale: scale * c.double(), constant.source)
            source = own if offset is None else derived(torch.add, source, own)
            offset = value if offset is None else plus(offset, value)
    kept = None if offset is None else Constant.within(offset, source)
    if kept is not None:
        ctx.require_finite(kept)
    return ctx.affine(parts, shape, kept)


def under_name(ctx: Context, op: str, own: Callable[..., Var], *arguments: Any) -> Var:
    """What the rule of another op makes of the arguments, under that op's name: patterns know it by that."""
    before, ctx.op = ctx.op, op
    try:
        return own(ctx, *arguments)
    finally:
        ctx.op = before


def exact_double(ctx: Context, x: Any) -> Constant:
    """``x`` as a constant in float64; whole numbers that float64 does not hold count as rounded."""
    constant = ctx.constant(x)
    value = constant.value.double()
    if isinstance(x, int) and int(float(x)) != x:
        return Constant.within(rounded(value), constant.source)
    if constant.value.is_floating_point():
        return constant
    if constant.error is None and value.numel() and float(value.abs().max()) >= 2.0**53:
        return Constant.within(rounded(value), constant.source)
    return Constant.within(constant.floating, constant.source)


@rule("add", kind="linear")
def add(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Var:
    """Sum a + α b: L₁ + |α| L₂ for two variables (a residual connection); a constant changes nothing."""
    return _sum(ctx, [(a, 1.0), (b, float(alpha))])


@rule("sub", kind="linear")
def sub(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Var:
    """Difference a − α b: L₁ + |α| L₂ for two variables; x − tanh(x) is tanhshrink, slopes [0, 1]."""
    if isinstance(a, Var) and isinstance(b, Var) and alpha == 1:
        shrunk = recognise(ctx, "sub", a, b)
        if shrunk is not None:
            return shrunk
    return _sum(ctx, [(a, 1.0), (b, -float(alpha))])


@rule("rsub", kind="linear")
def rsub(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Var:
    """Difference b − α a: L₂ + |α| L₁ for two variables."""
    return _sum(ctx, [(b, 1.0), (a, -float(alpha))])


@rule("neg", "_neg_view", kind="linear")
def neg(ctx: Context, x: Any) -> Var:
    """Negation −x: constant 1."""
    return ctx.scaled(ctx.variable(x), -1.0)


def multiply_by(ctx: Context, x: Var, factor: Any) -> Var:
    """x times a number or a constant tensor (broadcast both ways)."""
    constant = exact_double(ctx, factor)
    ctx.require_finite(constant)
    shape = tuple(torch.broadcast_shapes(x.shape, constant.shape))
    if constant.value.numel() == 1 and not constant.rounding and shape == x.shape:
        return ctx.scaled(x, number(constant), constant.source)
    repeats = math.prod(shape) / max(1, math.prod(x.shape))
    return ctx.linear(x, times, (constant,), max(1.0, repeats), key="times")


@rule("mul", kind="linear")
def mul(ctx: Context, a: Any, b: Any) -> Var:
    """Product with a constant c: max |c| if nothing is broadcast; of two variables a pattern, or by their ranges."""
    if not (isinstance(a, Var) and isinstance(b, Var)):
        return multiply_by(ctx, a, b) if isinstance(a, Var) else multiply_by(ctx, b, a)
    found = recognise(ctx, "mul", a, b)
    if found is not None:
        return found
    reason = (
        "a product of two values that both depend on the input has a constant where both keep to finite ranges. Here "
        f"they do not, and it is none of the products that are recognised ({forms('mul')}). Bound both factors (by a "
        "sigmoid, tanh or clamp), or give a bounded domain."
    )
    square = power(2.0, name="square") if a.position == b.position else None
    return ctx.without_constant((a, b), reason, function=torch.mul, steep=square, combines="mul")


@rule("div.Tensor", "div.Scalar", "true_divide", kind="linear")
def div(ctx: Context, a: Any, b: Any) -> Var:
    """Quotient by a constant c: max 1/|c|; by a variable a pattern (F.normalize), or by the ranges of both."""
    if isinstance(b, Var):
        return quotient(ctx, a, b)
    divisor = exact_double(ctx, b)
    ctx.require_finite(divisor)
    if bool((divisor.value == 0).any()):
        raise ctx.not_lipschitz("division by a constant that holds a zero.")
    # Over a power of two, so that no reciprocal leaves the normal numbers: x/c = (x·2^−e)·(1/(c·2^−e)).
    exponent = math.frexp(float(divisor.value.abs().max()))[1] - 1 if divisor.value.numel() else 0
    if abs(exponent) <= _PLAIN_DIVISOR:
        exponent = 0
    x, unit = ctx.variable(a), divisor.ball
    for half in (exponent // 2, exponent - exponent // 2):
        x, unit = (ctx.scaled(x, 2.0**-half), product(unit, exact(2.0**-half))) if half else (x, unit)
    if bool((unit.middle.abs() < 2.0**-1000).any()):
        raise ctx.unsupported("its divisor holds numbers of too different size; rescale them.")
    halves = 2.0 ** -(exponent // 2), 2.0 ** (exponent // 2 - exponent)
    source = derived(lambda c: 1.0 / (c * halves[0] * halves[1]), divisor.source)
    return multiply_by(ctx, x, Constant.within(over(exact(1.0), unit), source))


def quotient(ctx: Context, a: Any, b: Var) -> Var:
    """The pattern that ``a / b`` is, or an open value: of a constant tensor, that tensor times 1/b."""
    found = recognise(ctx, "div", a, b)
    if found is not None:
        return found
    reason = (
        "division by a value that depends on the input has a constant where that value keeps away from 0 and what is "
        "divided keeps to a finite range. Here they do not, and it is none of the quotients that are recognised "
        f"({forms('div')}). Bound both, or give a bounded domain."
    )
    if isinstance(a, Var):
        return ctx.without_constant((a, b), reason, combines="div")
    top = number_of(a)
    if top:
        return ctx.without_constant((a, b), reason, steep=power(-1.0, top, "reciprocal"))
    inverse = recognise(ctx, "div", 1.0, b)
    if inverse is None:
        known = power(-1.0, name="reciprocal")
        inverse = ctx.without_constant((b,), reason, function=torch.reciprocal, steep=known)
    return multiply_by(ctx, inverse, a)
