"""x/√(q x² + c) entry by entry, the inverse square root unit (Carlile et al. 2017)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from lipcert.network.builder import Var
from lipcert.network.graph import ActivationNode
from lipcert.ops import nonlinearities as known
from lipcert.ops.context import Context
from lipcert.ops.recognise.expression import coefficients, open_op, polynomial, proportional
from lipcert.ops.recognise.gates import Found, apply, gated
from lipcert.ops.recognise.registry import pattern
from lipcert.ops.recognise.scalings import core, parent, scalings, uniform


@pattern("inverse square root unit", "mul", 5, "x·rsqrt(q x² + c)")
def times_inverse_root(ctx: Context, a: Var, b: Var) -> Var | None:
    """x·rsqrt(q x² + c), q, c > 0: slopes [0, 1/√c]."""

    def gate(ctx: Context, base: Var, other: Var) -> Found | None:
        node = open_op(ctx.builder, other, "rsqrt", "pow")
        exponent = uniform(node.settings[0]) if node and node.op == "pow" and len(node.parents) == 1 else None
        if not node or (node.op == "pow" and not (exponent and exponent.is_(Fraction(-1, 2)))):
            return None
        found = coefficients(polynomial(ctx.builder, parent(ctx.builder, node), base), 0, 2)
        return (known.inverse_root(*found), ()) if found and found[0].sign > 0 and found[1].sign > 0 else None

    return gated(ctx, a, b, gate)


@pattern("quotient by the root of a quadratic", "div", 5, "x/√(q x² + c)")
def over_quadratic_root(ctx: Context, a: Any, b: Var) -> Var | None:
    """x/√(q x² + c), q, c > 0: slopes [0, 1/√c]."""
    node = ctx.builder.node(core(ctx.builder, b))
    root = node.function if isinstance(node, ActivationNode) else None
    if not isinstance(a, Var) or a.shape != b.shape or not isinstance(root, known.QuadraticRoot):
        return None
    square, linear, constant = root.exact
    if not linear.is_(0):
        return None
    for base in scalings(ctx.builder, a):
        rate = proportional(ctx.builder, parent(ctx.builder, node), base.var)
        if rate and rate.sign:
            return apply(ctx, base.var, known.inverse_root(constant, square * rate * rate), base.maps)
    return None
