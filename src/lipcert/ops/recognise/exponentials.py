"""Logarithms of exponentials, Gaussians, and x − tanh(x)."""

from __future__ import annotations

from lipcert.network.builder import Var
from lipcert.ops import nonlinearities as known
from lipcert.ops.context import Context
from lipcert.ops.rational import OutOfRange
from lipcert.ops.recognise.expression import (
    activation_of,
    ancestors,
    coefficients,
    one_term,
    open_op,
    polynomial,
    proportional,
)
from lipcert.ops.recognise.registry import pattern
from lipcert.ops.recognise.scalings import core, parent


@pattern("softplus by log1p", "log1p", 10, "log1p(exp(v))")
def softplus_by_log1p(ctx: Context, x: Var) -> Var | None:
    """log1p(exp(v)) is softplus."""
    exponent = open_op(ctx.builder, x, "exp")
    return ctx.activation(parent(ctx.builder, exponent), known.SOFTPLUS) if exponent else None


@pattern("log of a sigmoid", "log", 10, "log(sigmoid(v))")
def log_of_sigmoid(ctx: Context, x: Var) -> Var | None:
    """log(sigmoid(v)) is logsigmoid."""
    found = activation_of(ctx.builder, x, "sigmoid")
    return ctx.activation(found[1], known.LOG_SIGMOID) if found else None


@pattern("softplus by log", "log", 20, "log(1 + exp(v))")
def softplus_by_log(ctx: Context, x: Var) -> Var | None:
    """log(1 + exp(v)) is softplus."""
    shifted = one_term(ctx.builder, x)
    exponent = open_op(ctx.builder, shifted[1], "exp") if shifted else None
    if not shifted or not exponent or not shifted[0].is_(1) or not shifted[2].is_(1):
        return None
    return ctx.activation(parent(ctx.builder, exponent), known.SOFTPLUS)


@pattern("gaussian", "exp", 10, "exp(c + b x − q x²) with q > 0")
def gaussian(ctx: Context, x: Var) -> Var | None:
    """exp(c + b v − q v²), q > 0, is a Gaussian."""
    for base in ancestors(ctx.builder, x):
        found = coefficients(polynomial(ctx.builder, x, base), 0, 1, 2)
        if found and found[2].sign < 0:
            bell = known.gaussian(*found)
            if bell is None:
                raise OutOfRange("its height or its width is of extreme size; rescale it.")
            return ctx.activation(base, bell)
    return None


@pattern("tanhshrink", "sub", 10, "x − tanh(x)")
def tanhshrink(ctx: Context, a: Var, b: Var) -> Var | None:
    """v − tanh(v)."""
    found = activation_of(ctx.builder, b, "tanh")
    if not found or a.shape != b.shape:
        return None
    base = core(ctx.builder, a)
    rate = proportional(ctx.builder, found[1], base)
    return ctx.activation(base, known.TANHSHRINK) if rate and rate.is_(1) else None
