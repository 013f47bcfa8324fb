"""Matrix products with a constant: linear, matmul, addmm, bilinear, einsum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.ops.context import Constant, Context
from lipcert.ops.registry import rule


@rule("linear", kind="linear")
def linear(ctx: Context, x: Any, weight: Any, bias: Any = None) -> Var:
    """Fully connected layer x Wᵀ + b: σ_max(W) in l2, greatest absolute row / column sum in l∞ / l1."""
    x, weight = ctx.variable(x), ctx.constant(weight, "weight")
    offset = None if bias is None else ctx.constant(bias, "bias").value
    if offset is not None:
        ctx.require_finite(offset)
    return ctx.linear(x, torch.nn.functional.linear, (weight,), max(weight.shape, default=1), offset)


def _product(ctx: Context, a: Any, b: Any, multiply: Any) -> Var:
    """Product of two tensors of which exactly one varies."""
    if isinstance(a, Var) and isinstance(b, Var):
        raise ctx.not_lipschitz(
            "a product of two values that both depend on the input (attention, for one) has no global constant."
        )
    terms = max([1, *a.shape, *b.shape])
    if isinstance(a, Var):
        return ctx.linear(a, multiply, (ctx.constant(b),), terms)
    fixed = ctx.constant(a)
    return ctx.linear(ctx.variable(b), lambda x, c: multiply(c, x), (fixed,), terms)


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", kind="linear")
def matmul(ctx: Context, a: Any, b: Any) -> Var:
    """Matrix product with a constant on either side."""
    return _product(ctx, a, b, torch.matmul)


@rule("outer", kind="linear")
def outer(ctx: Context, a: Any, b: Any) -> Var:
    """Outer product with a constant vector."""
    return _product(ctx, a, b, torch.outer)


@rule("addmm", kind="linear")
def addmm(ctx: Context, bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Var:
    """β·bias + α·a b with a constant bias and one constant factor."""
    product = ctx.scaled(_product(ctx, a, b, torch.matmul), float(alpha))
    offset = ctx.constant(bias, "bias").value * beta
    ctx.require_finite(offset)
    return ctx.linear(product, lambda x: x, (), 0.0, offset)


@rule("bilinear", kind="linear")
def bilinear(ctx: Context, a: Any, b: Any, weight: Any, bias: Any = None) -> Var:
    """Bilinear form with one of its two arguments constant: linear in the other."""
    weight = ctx.constant(weight, "weight")
    offset = None if bias is None else ctx.constant(bias, "bias").value
    if isinstance(a, Var) == isinstance(b, Var):
        raise ctx.not_lipschitz("a bilinear form of two variables has no global constant.")
    terms = weight.value[0].numel() if weight.value.numel() else 1
    if isinstance(a, Var):
        fixed = ctx.constant(b)
        return ctx.linear(a, lambda x, c, w: _bilinear(x, c, w), (fixed, weight), terms, offset)
    fixed = ctx.constant(a)
    return ctx.linear(ctx.variable(b), lambda x, c, w: _bilinear(c, x, w), (fixed, weight), terms, offset)


def _bilinear(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("...i,kij,...j->...k", a, weight, b)


@rule("einsum", kind="linear")
def einsum(ctx: Context, equation: str, operands: Any, path: Any = None) -> Var:
    """Tensor contraction in which exactly one operand varies."""
    varying = [i for i, o in enumerate(operands) if isinstance(o, Var)]
    if len(varying) != 1:
        raise ctx.not_lipschitz("a contraction of several varying tensors has no global constant.")
    place = varying[0]
    fixed = [o for i, o in enumerate(operands) if i != place]

    def contract(x: Tensor, *constants: Tensor) -> Tensor:
        return torch.einsum(equation, *constants[:place], x, *constants[place:])

    terms = 1
    for operand in operands:
        terms *= max(1, operand.value.numel()) if isinstance(operand, Constant) else 1
    terms = max(terms, max(operands[place].shape, default=1)) + len(operands)
    return ctx.linear(operands[place], contract, [ctx.constant(c) for c in fixed], terms)
