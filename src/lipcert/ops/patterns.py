"""Products and quotients of variables that are really one activation: x·sigmoid(βx), x·tanh(softplus(x)) …"""

from __future__ import annotations

from typing import Any

from lipcert.network.builder import Var
from lipcert.ops.context import Context


def match_product(ctx: Context, a: Var, b: Var) -> Var:
    """The activation that ``a * b`` is, or an unresolved value that raises if it is needed."""
    error = ctx.not_lipschitz("a product of two values that both depend on the input has no global constant.")
    return ctx.unresolved((a, b), a.shape, error)


def match_quotient(ctx: Context, a: Any, b: Var) -> Var:
    """The activation that ``a / b`` is, or an unresolved value that raises if it is needed."""
    error = ctx.not_lipschitz("division by a value that depends on the input has no global constant.")
    return ctx.unresolved((a, b) if isinstance(a, Var) else (b,), b.shape, error)
