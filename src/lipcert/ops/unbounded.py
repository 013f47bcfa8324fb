"""Elementwise ops without a global constant: errors, unless a pattern that uses them has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lipcert.network.activations import steep
from lipcert.network.builder import Var
from lipcert.network.source import Fixed
from lipcert.ops.arithmetic import mul, quotient
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context, is_number, number
from lipcert.ops.left_out import is_infinite, left_out
from lipcert.ops.nonlinearities import COS, SIGMOID, SIN
from lipcert.ops.recognise.registry import recognise
from lipcert.ops.registry import rule
from lipcert.ops.terms import moved

_DISCONTINUOUS = (
    "it is discontinuous, so no Lipschitz constant exists. Replace it by a continuous activation "
    "(softshrink for hardshrink, tanh or hardtanh for sign)."
)


def _jumps(*names: str, summary: str) -> None:
    @rule(*names, kind="pattern")
    def jump(ctx: Context, x: Any, *settings: Any, **named: Any) -> Var:
        return ctx.without_constant((x, *settings), _DISCONTINUOUS, settings)

    jump.__doc__ = summary


_jumps("sign", "sgn", summary="Sign: rejected, discontinuous (understood inside softshrink).")
_jumps("floor", "ceil", "round", "trunc", "fix", "frac", summary="Rounding: rejected, discontinuous.")
_jumps("floor_divide", "remainder", "fmod", summary="Remainder: rejected, discontinuous.")
_jumps("div.Tensor_mode", "div.Scalar_mode", summary="Rounded division: rejected, discontinuous.")
_jumps("hardshrink", summary="Hardshrink: rejected, it jumps at ±λ.")
_jumps("heaviside", summary="Heaviside step: rejected, discontinuous.")
_jumps("signbit", "logical_not", summary="Test of a value: rejected, discontinuous.")


def _equality(name: str, *others: str, equal: bool) -> None:
    @rule(name, *others, kind="pattern")
    def test(ctx: Context, x: Any, other: Any) -> Any:
        if isinstance(x, Var) and is_infinite(other):
            _, places = left_out(ctx, x)
            same = torch.zeros(x.shape, dtype=torch.bool) if places is None or number(other) > 0 else places
            return Constant.exactly(same if equal else ~same)
        return ctx.without_constant((x, other), _DISCONTINUOUS, (other,))

    test.__doc__ = "Test of a value: rejected, discontinuous; whether it is ∞ is a constant."


_equality("eq", equal=True)
_equality("ne", "not_equal", equal=False)


#: What ops compute that have slopes on intervals.
STEEP: dict[str, steep.Steep] = {
    name: steep.steep(kind, names[0])
    for kind, names in (
        (steep.Exp, ("exp",)),
        (steep.Expm1, ("expm1",)),
        (steep.Exp2, ("exp2",)),
        (steep.Sinh, ("sinh",)),
        (steep.Cosh, ("cosh",)),
        (steep.Log, ("log",)),
        (steep.Log1p, ("log1p",)),
        (steep.Log2, ("log2",)),
        (steep.Log10, ("log10",)),
        (steep.Asin, ("asin", "arcsin")),
        (steep.Acos, ("acos", "arccos")),
        (steep.Acosh, ("acosh", "arccosh")),
        (steep.Atanh, ("atanh", "arctanh")),
        (steep.Logit, ("logit", "special_logit")),
    )
    for name in names
} | {
    "square": steep.power(2.0, name="square"),
    "sqrt": steep.power(0.5, name="sqrt"),
    "rsqrt": steep.power(-0.5, name="rsqrt"),
}


def advised(reason: str, known: bool) -> str:
    """The reason and what helps; ranges of values are of use only where slopes on intervals are known."""
    if not known:
        return (
            f"{reason} What an earlier operation bounds (a clamp, a tanh) is not taken into account: use an activation "
            "with a constant."
        )
    return (
        f"{reason} Bound its argument where its slope is finite, by an earlier operation (a clamp, a tanh) or by a "
        "domain, or use an activation with a constant."
    )


def _unbounded(*names: str, summary: str, reason: str) -> None:
    for name in names:
        rule(name, kind="pattern")(_rule_of(summary, reason, STEEP.get(name)))


def _rule_of(summary: str, reason: str, known: steep.Steep | None) -> Callable[[Context, Any], Var]:
    def unbounded(ctx: Context, x: Any) -> Var:
        return ctx.without_constant((ctx.variable(x),), advised(reason, known is not None), steep=known)

    unbounded.__doc__ = summary
    return unbounded


_GROWS = "its slope grows without limit, so by itself it has no Lipschitz constant on the whole space."
_POLE = "its slope is infinite at the edge of its domain, so by itself it has no Lipschitz constant there."
_unbounded("expm1", summary="exp(x) − 1: rejected alone; part of ELU written by hand.", reason=_GROWS)
_unbounded("exp2", "sinh", "cosh", summary="Exponential growth: rejected.", reason=_GROWS)
_unbounded(
    "log2", "log10", "rsqrt", "asin", "acos", "acosh", "atanh", "arcsin", "arccos", "arccosh",
    "arctanh", "logit", "special_logit", "erfinv", "special_erfinv", "lgamma", "digamma",
    summary="Unbounded slope at a finite point: rejected.", reason=_POLE,
)  # fmt: skip


@rule("square", kind="pattern")
def square(ctx: Context, x: Any) -> Var:
    """x²: rejected alone; part of √(x² + c) and of the tanh GELU."""
    return ctx.without_constant((ctx.variable(x),), advised(_GROWS, True), function=torch.square, steep=STEEP["square"])


@rule("exp", kind="pattern")
def exponential(ctx: Context, x: Any) -> Var:
    """Exponential: rejected alone; part of sigmoid, SiLU, softplus, ELU; exp(−q x²) has slopes ±√(2q/e)."""
    return _alone(ctx, x, "exp", advised(_GROWS, True))


def _alone(ctx: Context, x: Any, op: str, reason: str) -> Var:
    """What a pattern that starts at ``op`` makes of x, else an open value."""
    x = ctx.variable(x)
    found = recognise(ctx, op, x)
    return found if found is not None else ctx.without_constant((x,), reason, steep=STEEP[op])


@rule("log", kind="pattern")
def logarithm(ctx: Context, x: Any) -> Var:
    """Logarithm: rejected alone; log(1 + exp(x)) is softplus, log(sigmoid(x)) is logsigmoid."""
    return _alone(ctx, x, "log", advised(_POLE, True))


@rule("log1p", kind="pattern")
def logarithm_of_next(ctx: Context, x: Any) -> Var:
    """Logarithm of 1 + x: rejected alone; log1p(exp(x)) is softplus."""
    return _alone(ctx, x, "log1p", advised(_POLE, True))


@rule("sqrt", kind="pattern")
def sqrt(ctx: Context, x: Any) -> Var:
    """√: rejected alone (infinite slope at 0); √(q x² + b x + c) with q > 0, 4qc > b² has slopes ±√q."""
    reason = (
        "the slope of a square root is infinite at 0; √(x² + c) with a constant c > 0 has one. "
        "For the length of a vector use torch.linalg.vector_norm."
    )
    return _alone(ctx, x, "sqrt", reason)


@rule("reciprocal", kind="pattern")
def reciprocal(ctx: Context, x: Any) -> Var:
    """1/x: rejected alone; 1/(1 + exp(−x)) is the sigmoid."""
    return quotient(ctx, 1.0, ctx.variable(x))


@rule("tan", kind="pattern")
def tangent(ctx: Context, x: Any) -> Var:
    """tan: rejected alone; between two poles it is sin x/cos x with the slopes of that."""
    x = ctx.variable(x)
    parts = ctx.activation(x, SIN), ctx.activation(x, COS)
    return ctx.without_constant(parts, advised(_POLE, True), function=torch.div, combines="div")


@rule("glu", kind="product")
def glu(ctx: Context, x: Any, dim: int = -1) -> Var:
    """Gated linear unit a·sigmoid(b): on a domain, or where a is bounded, by the ranges of both."""
    x = ctx.variable(x)
    half = x.shape[dim] // 2
    a, b = (moved(ctx, x, lambda v, k=k: v.narrow(dim, k * half, half)) for k in range(2))
    return mul(ctx, a, ctx.activation(b, SIGMOID))


# -- constants of the shape of a value ---------------------------------------------------------------------


def _filled(name: str, value: float) -> None:
    @rule(name, kind="linear")
    def filled(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Constant:
        filled = torch.full(ctx.variable(x).shape, value, dtype=torch.float64)
        return Constant.exactly(filled, ctx.dtype, Fixed(filled))

    filled.__doc__ = f"A constant of the shape of x: {value:g}."


_filled("zeros_like", 0.0)
_filled("ones_like", 1.0)
_filled("empty_like", float("nan"))  # never read (the noise of rrelu); NaN is refused wherever it matters


@rule("full_like", kind="linear")
def full_like(ctx: Context, x: Any, value: Any, *args: Any, **kwargs: Any) -> Constant:
    """A constant of the shape of x."""
    return _full(ctx, ctx.variable(x).shape, value)


@rule("new_zeros", kind="linear")
def new_zeros(ctx: Context, x: Any, size: Any, *args: Any, **kwargs: Any) -> Constant:
    """A constant tensor of zeros."""
    return _full(ctx, size, 0.0)


@rule("new_ones", kind="linear")
def new_ones(ctx: Context, x: Any, size: Any, *args: Any, **kwargs: Any) -> Constant:
    """A constant tensor of ones."""
    return _full(ctx, size, 1.0)


@rule("new_full", kind="linear")
def new_full(ctx: Context, x: Any, size: Any, value: Any, *args: Any, **kwargs: Any) -> Constant:
    """A constant tensor of one value."""
    return _full(ctx, size, value)


def _full(ctx: Context, size: Any, value: Any) -> Constant:
    """The value as the model's dtype holds it."""
    if not is_number(value):
        raise ctx.unsupported("the value it fills with is not a number.")
    dtype = ctx.dtype if ctx.dtype is not None and ctx.dtype.is_floating_point else torch.float64
    return Constant.exactly(torch.full(tuple(size), number(value), dtype=dtype))
