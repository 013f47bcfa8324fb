"""Sums of variables, products and quotients by constants, and the patterns that give products a constant."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.linear import Identity, LinearMap, Shape, compose
from lipcert.ops.context import Constant, Context, is_number, number
from lipcert.ops.patterns import match_product, match_quotient
from lipcert.ops.registry import rule


def _shape(x: Any) -> Shape:
    return x.shape if isinstance(x, (Var, Constant)) else ()


def _broadcast(ctx: Context, x: Var, shape: Shape) -> LinearMap:
    """The map that broadcasts ``x`` to ``shape``."""
    if x.shape == shape:
        return Identity(shape)
    repeats = 1
    for s in shape:
        repeats *= max(1, s)
    return ctx.map(x.shape, lambda v: v.expand(shape) + v.new_zeros(shape), (), repeats, extra=f" to {shape}")


def _sum(ctx: Context, terms: list[tuple[Any, float]]) -> Var:
    shape = tuple(torch.broadcast_shapes(*(_shape(x) for x, _ in terms)))
    offset: Tensor | None = None
    parts = []
    for x, scale in terms:
        if isinstance(x, Var):
            parts.append((x, compose(_broadcast(ctx, x, shape), Identity(shape, scale))))
        else:
            value = ctx.constant(x).value.double() * scale
            ctx.require_finite(value)
            offset = value if offset is None else offset + value
    return ctx.builder.affine(parts, shape, offset, ctx.op, ctx.where)


@rule("add", kind="linear")
def add(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Var:
    """a + α b; two variables add their constants (a residual connection)."""
    return _sum(ctx, [(a, 1.0), (b, float(alpha))])


@rule("sub", kind="linear")
def sub(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Var:
    """a − α b."""
    return _sum(ctx, [(a, 1.0), (b, -float(alpha))])


@rule("rsub", kind="linear")
def rsub(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Var:
    """b − α a."""
    return _sum(ctx, [(b, 1.0), (a, -float(alpha))])


@rule("neg", kind="linear")
def neg(ctx: Context, x: Any) -> Var:
    """−x."""
    return ctx.scaled(ctx.variable(x), -1.0)


def multiply_by(ctx: Context, x: Var, factor: Any) -> Var:
    """x times a number or a constant tensor (broadcast both ways)."""
    if is_number(factor) and len(_shape(factor)) <= len(x.shape):
        ctx.require_finite(torch.tensor(number(factor)))
        if isinstance(factor, Constant) and factor.rounding:
            return ctx.linear(x, lambda v, c: v * c.reshape(()), (factor,), 1.0)
        return ctx.scaled(x, number(factor))
    constant = ctx.constant(factor)
    if not constant.value.is_floating_point():
        constant = Constant(constant.value.double(), constant.rounding)
    shape = torch.broadcast_shapes(x.shape, constant.shape)
    repeats = 1
    for wide in shape:
        repeats *= max(1, wide)
    terms = 1.0 if tuple(shape) == x.shape else float(repeats)
    return ctx.linear(x, lambda v, c: v * c, (constant,), terms)


@rule("mul", kind="linear")
def mul(ctx: Context, a: Any, b: Any) -> Var:
    """Product with a constant; a product of two variables only where a pattern gives it a constant."""
    if isinstance(a, Var) and isinstance(b, Var):
        return match_product(ctx, a, b)
    return multiply_by(ctx, a, b) if isinstance(a, Var) else multiply_by(ctx, b, a)


@rule("div.Tensor", "div.Scalar", "true_divide", kind="linear")
def div(ctx: Context, a: Any, b: Any) -> Var:
    """Quotient by a constant."""
    if isinstance(b, Var):
        return match_quotient(ctx, a, b)
    divisor = ctx.constant(b)
    if bool((divisor.value == 0).any()):
        raise ctx.not_lipschitz("division by a constant that holds a zero.")
    reciprocal = Constant(1.0 / divisor.value.double(), divisor.rounding + 1.0)
    if is_number(b) and abs(math.frexp(number(b))[0]) == 0.5:
        reciprocal = Constant(reciprocal.value, divisor.rounding)  # a power of two: exact
    return multiply_by(ctx, ctx.variable(a), reciprocal)
