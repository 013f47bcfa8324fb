"""Reciprocals and logarithms of quadratics without real zeros, and squares that go on as lines (Huber)."""

from __future__ import annotations

from typing import Any

from lipcert.network.builder import Var
from lipcert.ops import nonlinearities as known
from lipcert.ops.context import Context
from lipcert.ops.rational import Real, exactly
from lipcert.ops.recognise.expression import activation_of, ancestors, coefficients, polynomial
from lipcert.ops.recognise.pieces import comparisons, half_line
from lipcert.ops.recognise.registry import pattern
from lipcert.ops.recognise.scalings import uniform


def _quadratic(ctx: Context, x: Var, added: int = 0) -> tuple[Var, tuple[Real, Real, Real]] | None:
    """(v, (q, b, c)) if ``x`` plus a number is q v² + b v + c with 4qc > b²: it has no real zero, and the sign of q."""
    for base in ancestors(ctx.builder, x):
        found = coefficients(polynomial(ctx.builder, x, base), 0, 1, 2)
        if not found:
            continue
        constant, linear, square = found
        constant = constant + exactly(added)
        if square.sign and (exactly(4) * square * constant - linear * linear).sign > 0:
            return base, (square, linear, constant)
    return None


@pattern("number over a quadratic", "div", 15, "k/(q x² + b x + c) with 4qc > b²")
def over_quadratic(ctx: Context, a: Any, b: Var) -> Var | None:
    """k/(q v² + b v + c), 4qc > b²: a bell, steepest where (v − s)² = D/3."""
    top = None if isinstance(a, Var) else uniform(a)
    if top is None or not top.sign or getattr(a, "shape", ()) not in ((), b.shape):
        return None
    found = _quadratic(ctx, b)
    if not found:
        return None
    base, numbers = found
    if numbers[0].sign < 0:
        top, numbers = -top, tuple(-n for n in numbers)  # type: ignore[assignment]
    return ctx.activation(base, known.lorentzian(top, *numbers))


def _log(ctx: Context, x: Var, added: int) -> Var | None:
    found = _quadratic(ctx, x, added)
    if not found or found[1][0].sign < 0:
        return None
    return ctx.activation(found[0], known.log_quadratic(*found[1]))


@pattern("log of a quadratic", "log", 30, "log(q x² + b x + c) with q > 0 and 4qc > b²")
def log_of_quadratic(ctx: Context, x: Var) -> Var | None:
    """log(q v² + b v + c): slopes ±1/√D, D = c/q − (b/2q)²."""
    return _log(ctx, x, 0)


@pattern("log1p of a quadratic", "log1p", 20, "log1p(q x²) with q > 0")
def log1p_of_quadratic(ctx: Context, x: Var) -> Var | None:
    """log(1 + q v² + …)."""
    return _log(ctx, x, 1)


@pattern("square inside, line outside", "where", 30, "where(|x| < t, q·x² + o, c·|x| + d) continuous at ±t")
def square_and_lines(ctx: Context, condition: Var, a: Any, b: Any) -> Var | None:
    """Huber's function: q v² + o for |v| ≤ t, c|v| + d beyond."""
    for size, op, operands in comparisons(ctx, condition, a, b):
        found = activation_of(ctx.builder, size, "abs")
        side = half_line(ctx, size, op, *operands) if found else None
        if not found or not side or side[0] <= 0:
            continue
        limit, holds_outside = side
        outer, inner = (a, b) if holds_outside else (b, a)
        line = coefficients(polynomial(ctx.builder, outer, size), 0, 1)
        bases = (size, found[1])
        bowls = [coefficients(polynomial(ctx.builder, inner, base), 0, 2) for base in bases]
        bowl = bowls[0] or bowls[1]
        if not line or not bowl:
            continue
        t = exactly(limit)
        if (bowl[1] * t * t + bowl[0] - line[1] * t - line[0]).is_(0):
            return ctx.activation(found[1], known.huber(t, bowl[1], bowl[0], line[1], line[0]))
    return None
