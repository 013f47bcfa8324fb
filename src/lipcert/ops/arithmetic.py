"""Sums of variables, products and quotients by constants, and the patterns that give products a constant."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.linear import Identity, LinearMap, Shape, compose
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context, number
from lipcert.ops.elementwise import times
from lipcert.ops.enclosure import exact, over
from lipcert.ops.norm_patterns import match_normalised, match_rms_product
from lipcert.ops.patterns import match_difference, match_product, match_quotient
from lipcert.ops.registry import rule


def _shape(x: Any) -> Shape:
    return x.shape if isinstance(x, (Var, Constant)) else ()


def broadcast(ctx: Context, x: Var, shape: Shape, scale: float = 1.0) -> LinearMap:
    """The map that broadcasts ``x`` to ``shape`` and multiplies it by ``scale``."""
    if x.shape == shape:
        return Identity(shape, scale)
    repeats = math.prod(shape) / max(1, math.prod(x.shape))
    wide = ctx.map(x.shape, lambda v: v + v.new_zeros(shape), (), repeats, extra=f" to {shape}")
    return compose(wide, Identity(shape, scale))


def _sum(ctx: Context, terms: list[tuple[Any, float]]) -> Var:
    shape = tuple(torch.broadcast_shapes(*(_shape(x) for x, _ in terms)))
    offset: Tensor | None = None
    parts = []
    for x, scale in terms:
        if not math.isfinite(scale):
            raise ctx.unsupported(f"its factor alpha is {scale}.")
        if isinstance(x, Var):
            parts.append((x, broadcast(ctx, x, shape, scale)))
        else:
            constant = ctx.constant(x)
            value = constant.value.double() * scale
            ctx.require_finite(value)
            if value.dim() == 0 and (constant.rounding or abs(scale) != 1.0 or offset is not None):
                value = value.reshape(1)  # patterns take a 0-dimensional offset for an exact number
            offset = value if offset is None else offset + value
    return ctx.builder.affine(parts, shape, offset, ctx.op, ctx.where)


@rule("add", kind="linear")
def add(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Var:
    """Sum a + α b: L₁ + |α| L₂ for two variables (a residual connection); a constant changes nothing."""
    return _sum(ctx, [(a, 1.0), (b, float(alpha))])


@rule("sub", kind="linear")
def sub(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Var:
    """Difference a − α b: L₁ + |α| L₂ for two variables; x − tanh(x) is tanhshrink, slopes [0, 1]."""
    if isinstance(a, Var) and isinstance(b, Var) and alpha == 1:
        shrunk = match_difference(ctx, a, b)
        if shrunk is not None:
            return shrunk
    return _sum(ctx, [(a, 1.0), (b, -float(alpha))])


@rule("rsub", kind="linear")
def rsub(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Var:
    """Difference b − α a: L₂ + |α| L₁ for two variables."""
    return _sum(ctx, [(b, 1.0), (a, -float(alpha))])


@rule("neg", kind="linear")
def neg(ctx: Context, x: Any) -> Var:
    """Negation −x: constant 1."""
    return ctx.scaled(ctx.variable(x), -1.0)


def multiply_by(ctx: Context, x: Var, factor: Any) -> Var:
    """x times a number or a constant tensor (broadcast both ways)."""
    constant = ctx.constant(factor)
    if not constant.value.is_floating_point():
        constant = Constant.within(constant.floating)
    ctx.require_finite(constant)
    shape = tuple(torch.broadcast_shapes(x.shape, constant.shape))
    if constant.value.numel() == 1 and not constant.rounding and shape == x.shape:
        return ctx.scaled(x, number(constant))
    repeats = math.prod(shape) / max(1, math.prod(x.shape))
    return ctx.linear(x, times, (constant,), max(1.0, repeats))


@rule("mul", kind="linear")
def mul(ctx: Context, a: Any, b: Any) -> Var:
    """Product with a constant c: max |c| if nothing is broadcast; of two variables only as a pattern."""
    if isinstance(a, Var) and isinstance(b, Var):
        return match_rms_product(ctx, a, b) or match_product(ctx, a, b)
    return multiply_by(ctx, a, b) if isinstance(a, Var) else multiply_by(ctx, b, a)


@rule("div.Tensor", "div.Scalar", "true_divide", kind="linear")
def div(ctx: Context, a: Any, b: Any) -> Var:
    """Quotient by a constant c: max 1/|c|; by a variable only as a known pattern (F.normalize)."""
    if isinstance(b, Var):
        return match_normalised(ctx, a, b) or match_quotient(ctx, a, b)
    divisor = ctx.constant(b)
    ctx.require_finite(divisor)
    if bool((divisor.value == 0).any()):
        raise ctx.not_lipschitz("division by a constant that holds a zero.")
    return multiply_by(ctx, ctx.variable(a), Constant.within(over(exact(1.0), divisor.floating)))
