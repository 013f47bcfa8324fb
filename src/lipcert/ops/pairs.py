"""Elementwise ops of two arguments by their algebra: atan2, hypot, Huber's losses; and nan_to_num."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch

from lipcert.network.builder import Var
from lipcert.ops import nonlinearities as known
from lipcert.ops.arithmetic import add, div, exact_double, mul, sub, under_name
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context, is_number, number
from lipcert.ops.losses import reduced
from lipcert.ops.rational import exactly
from lipcert.ops.recognise.scalings import uniform
from lipcert.ops.registry import rule
from lipcert.ops.unbounded import sqrt


@rule("atan2", "arctan2", kind="pattern")
def atan2(ctx: Context, y: Any, x: Any) -> Var:
    """The angle of (x, y): atan(y/x) for a positive constant x; else rejected, it jumps by 2π."""
    if isinstance(x, Var):
        raise ctx.not_lipschitz("the angle of a point jumps by 2π where it turns; a positive constant x is understood.")
    constant = exact_double(ctx, x)
    ctx.require_finite(constant)
    ball = constant.floating
    if not bool((ball.middle > 2.0 * ball.spread).all()):
        raise ctx.not_lipschitz("the angle jumps at y = 0 unless x is positive.")
    return ctx.activation(ctx.variable(div(ctx, y, x)), known.ATAN)


@rule("hypot", kind="pattern")
def hypot(ctx: Context, x: Any, y: Any) -> Var:
    """√(x² + y²): slopes ±1 for a constant number y; 1 in l2 for two variables."""
    if isinstance(x, Var) and isinstance(y, Var):
        squares = [under_name(ctx, "mul", mul, v, v) for v in (x, y)]
        return under_name(ctx, "sqrt", sqrt, under_name(ctx, "add", add, *squares))
    var, constant = (x, y) if isinstance(x, Var) else (y, x)
    size = uniform(constant)
    shape = constant.shape if isinstance(constant, Constant) else ()
    if size is None or tuple(torch.broadcast_shapes(shape, var.shape)) != var.shape:
        raise ctx.unsupported("its constant argument is not one number.")
    if size.is_(0):
        return ctx.activation(var, known.ABS)
    if not size.sign:
        raise ctx.unsupported("its constant argument is not known well enough.")
    return ctx.activation(var, known.root(exactly(1), exactly(0), size * size))


@rule("nan_to_num", kind="linear")
def nan_to_num(ctx: Context, x: Any, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Var:
    """The identity on real numbers: constant 1."""
    return ctx.scaled(ctx.variable(x), 1.0)


def _loss(ctx: Context, x: Any, target: Any, reduction: int, limit: Any, smooth: bool) -> Var:
    """Of x − target: z²/2 for |z| ≤ t and t(|z| − t/2) beyond, over t if ``smooth``."""
    if not is_number(limit) or not math.isfinite(number(limit)) or number(limit) < 0.0 or (not smooth and not limit):
        raise ctx.unsupported("its threshold is not a positive number.")
    difference = ctx.variable(sub(ctx, x, target))
    t = Fraction(number(limit))
    if t == 0:
        return reduced(ctx, ctx.activation(difference, known.ABS), reduction)
    unit = t if smooth else Fraction(1)
    numbers = (1 / (2 * unit), Fraction(0), t / unit, -t * t / (2 * unit))
    function = known.huber(exactly(t), *(exactly(n) for n in numbers))
    return reduced(ctx, ctx.activation(difference, function), reduction)


@rule("smooth_l1_loss", kind="activation")
def smooth_l1_loss(ctx: Context, x: Any, target: Any, reduction: int = 1, beta: float = 1.0) -> Var:
    """Smooth l1 loss of each entry: slopes [−1, 1]; their mean or sum."""
    return _loss(ctx, x, target, reduction, beta, True)


@rule("huber_loss", kind="activation")
def huber_loss(ctx: Context, x: Any, target: Any, reduction: int = 1, delta: float = 1.0) -> Var:
    """Huber's loss of each entry: slopes [−δ, δ]; their mean or sum."""
    return _loss(ctx, x, target, reduction, delta, False)
