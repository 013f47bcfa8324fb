"""Powers: of a variable to a number, and of a number to a variable."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch

from lipcert.network.activations import steep
from lipcert.network.builder import Var
from lipcert.network.source import derived
from lipcert.ops.arithmetic import add, exact_double, multiply_by
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.enclosure import Ball, monotone
from lipcert.ops.recognise.registry import recognise
from lipcert.ops.recognise.scalings import number_of, uniform
from lipcert.ops.registry import rule
from lipcert.ops.unbounded import STEEP, advised, reciprocal, sqrt

#: Beyond it a power of a double is 0, 1 or infinite but for a few.
_MOST_POWER = 1000.0
_GROWS = "its slope grows without limit, so by itself it has no Lipschitz constant on the whole space."


@rule("pow", kind="pattern")
def pow_(ctx: Context, x: Any, exponent: Any) -> Var:
    """Powers: x¹ is the identity, x^½ as sqrt; others rejected alone, x², x³ parts of patterns; aˣ is exp(x log a)."""
    if isinstance(x, Var) and not isinstance(exponent, Var):
        power = uniform(exponent)
        shape = exponent.shape if isinstance(exponent, Constant) else ()
        if tuple(torch.broadcast_shapes(shape, x.shape)) == x.shape and power:
            if power.is_(1):
                return ctx.scaled(x, 1.0)
            if power.exact and 2 * power.low == 1:
                return sqrt(ctx, x)
            if power.is_(-1):
                return reciprocal(ctx, x)
            roots = {Fraction(1, 4): "fourth root", Fraction(1, 8): "eighth root"}
            found = recognise(ctx, roots[power.low], x) if power.exact and power.low in roots else None
            if found is not None:
                return found
            p = number_of(exponent)
            known = steep.power(p) if p is not None and p != 0.0 and abs(p) <= _MOST_POWER else None
            reason = (
                f"the slope of x^{power.middle:g} is unbounded: by itself it has no Lipschitz constant on the whole "
                "space."
            )
            return ctx.without_constant((x,), advised(reason, known is not None), (exponent,), steep=known)
    if isinstance(exponent, Var) and not isinstance(x, Var):
        found = _exponential(ctx, x, exponent)
        if found is not None:
            return found
    return ctx.without_constant((x, exponent), advised(_GROWS, False), (exponent,))


def _exponential(ctx: Context, base: Any, x: Var) -> Var | None:
    """aˣ = exp(x log a) for numbers a > 0 of the shape of x; None for others."""
    constant = exact_double(ctx, base)
    ball = constant.floating
    if ctx.whole or not bool((ball.middle > ball.spread).all() & ball.middle.isfinite().all()):
        return None
    if tuple(torch.broadcast_shapes(constant.shape, x.shape)) != x.shape:
        return None
    logarithm = monotone(torch.log, ball)
    one = (ball.middle == 1.0) & (ball.spread == 0.0)
    if bool(one.all()):
        return add(ctx, ctx.scaled(x, 0.0), 1.0)
    logarithm = Ball(logarithm.middle, torch.where(one, 0.0, logarithm.spread))
    inner = multiply_by(ctx, x, Constant.within(logarithm, derived(torch.log, constant.source)))
    found = recognise(ctx, "exp", inner)
    if found is not None:
        return found
    error = ctx.not_lipschitz(advised(_GROWS, True))
    power = ctx.builder.unresolved((inner,), x.shape, "exp", error, (), ctx.where, "pow", steep=STEEP["exp"])
    ctx.builder.evaluated(power, (inner,), lambda values, _: torch.exp(values[0]), (), "exp of a multiple")
    return power
