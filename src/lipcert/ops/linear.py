"""Matrix products with a constant: linear, matmul, addmm, bilinear, einsum."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.linear import Dense, Identity, size
from lipcert.network.source import derived
from lipcert.ops.arithmetic import add
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.enclosure import exact, times
from lipcert.ops.keys import equation_key
from lipcert.ops.matrix_products import contraction, matrix_product
from lipcert.ops.registry import rule
from lipcert.ops.terms import longest_sum, moved


@rule("linear", kind="linear")
def linear(ctx: Context, x: Any, weight: Any, bias: Any = None) -> Var:
    """Fully connected layer x Wᵀ + b: σ_max(W) in l2, greatest absolute row / column sum in l∞ / l1."""
    x, weight = ctx.variable(x), ctx.constant(weight, "weight")
    offset = None if bias is None else ctx.constant(bias, "bias")
    terms = float(max(weight.shape, default=1))
    back = torch.matmul if weight.value.dim() == 2 else None
    if size(x.shape) != x.shape[-1] or not weight.value.numel():
        return ctx.linear(x, torch.nn.functional.linear, (weight,), terms, offset, "linear", back)
    ctx.require_finite(weight)
    parts = weight.parts
    if parts.rest is not None:
        return ctx.linear(x, torch.nn.functional.linear, (weight,), terms, offset, "linear", back)
    out_shape = (*x.shape[:-1], *weight.value.shape[:-1])
    matrix = weight.value.reshape(-1, x.shape[-1])
    majorant = None if parts.majorant is None else parts.majorant.reshape(matrix.shape)
    source = derived(lambda w: w.reshape(matrix.shape), weight.source)
    dense = Dense((matrix,), x.shape, out_shape, terms + parts.count, weight.error is None, majorant, (source,))
    return ctx.affine([(x, dense)], out_shape, offset)


def _product(ctx: Context, a: Any, b: Any, multiply: Any) -> Var:
    """Product of two tensors of which one varies, or both."""
    if isinstance(a, Var) and isinstance(b, Var):
        if multiply is torch.outer:
            a, b = moved(ctx, a, lambda t: t.unsqueeze(-1)), moved(ctx, b, lambda t: t.unsqueeze(0))
        return matrix_product(ctx, a, b)
    if isinstance(a, Var):
        fixed, x = ctx.constant(b), a
        if multiply is torch.matmul and fixed.value.dim() == 2:
            return linear(ctx, x, fixed.map(lambda c: c.t().contiguous()))
        terms = longest_sum(multiply, x.shape, (fixed.shape,))
        return ctx.linear(x, multiply, (fixed,), terms, key=f"{multiply.__name__} from the right")
    fixed, x = ctx.constant(a), ctx.variable(b)

    def swapped(v: Tensor, c: Tensor) -> Tensor:
        return multiply(c, v)

    terms = longest_sum(swapped, x.shape, (fixed.shape,))
    return ctx.linear(x, swapped, (fixed,), terms, key=f"{multiply.__name__} from the left")


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", kind="linear")
def matmul(ctx: Context, a: Any, b: Any) -> Var:
    """Matrix product with a constant on either side: σ_max of the constant in l2; of two variables on a domain."""
    return _product(ctx, a, b, torch.matmul)


@rule("outer", kind="linear")
def outer(ctx: Context, a: Any, b: Any) -> Var:
    """Outer product with a constant vector c: ‖c‖ in each norm."""
    return _product(ctx, a, b, torch.outer)


@rule("addmm", kind="linear")
def addmm(ctx: Context, bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Var:
    """Affine map β·bias + α·a b with a constant bias and one constant factor: |α| σ_max in l2."""
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        raise ctx.unsupported(f"its factors alpha = {alpha} and beta = {beta} must be finite.")
    if alpha == beta == 1 and isinstance(a, Var) and isinstance(b, Constant) and isinstance(bias, Constant):
        return linear(ctx, a, b.map(lambda c: c.t().contiguous()), bias)
    product = ctx.scaled(_product(ctx, a, b, torch.matmul), float(alpha))
    if not beta:
        return product
    own = ctx.constant(bias, "bias")
    source = derived(lambda b: b.double() * beta, own.source)
    offset = Constant.within(times(own.floating, exact(float(beta))), source)
    return ctx.affine([(product, Identity(product.shape))], product.shape, offset)


@rule("baddbmm", kind="linear")
def baddbmm(ctx: Context, bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Var:
    """β·bias + α·a b for batches of matrices: |α| σ_max of a constant factor in l2; of two variables on a domain."""
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        raise ctx.unsupported(f"its factors alpha = {alpha} and beta = {beta} must be finite.")
    if not (isinstance(a, Var) or isinstance(b, Var)):
        raise ctx.unsupported("a batch of products of constants that is added to a variable; use torch.add.")
    product = _product(ctx, a, b, torch.matmul)
    product = product if alpha == 1 else ctx.scaled(product, float(alpha))
    return add(ctx, product, bias, float(beta)) if beta else product


@rule("bilinear", kind="linear")
def bilinear(ctx: Context, a: Any, b: Any, weight: Any, bias: Any = None) -> Var:
    """Bilinear form with one of its two arguments constant: σ_max of what remains, in l2."""
    weight = ctx.constant(weight, "weight")
    offset = None if bias is None else ctx.constant(bias, "bias")
    if isinstance(a, Var) == isinstance(b, Var):
        raise ctx.not_lipschitz("a bilinear form of two variables has no global constant.")
    fixed = ctx.constant(b if isinstance(a, Var) else a)
    x = a if isinstance(a, Var) else b

    def function(v: Tensor, c: Tensor, w: Tensor) -> Tensor:
        return _bilinear(v, c, w) if isinstance(a, Var) else _bilinear(c, v, w)

    terms = longest_sum(function, x.shape, (fixed.shape, weight.shape)) + 2.0
    key = "bilinear of the " + ("first" if isinstance(a, Var) else "second")
    return ctx.linear(x, function, (fixed, weight), terms, offset, key)


def _bilinear(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("...i,kij,...j->...k", a, weight, b)


@rule("einsum", kind="linear")
def einsum(ctx: Context, equation: str, operands: Any, path: Any = None) -> Var:
    """Tensor contraction in which one operand varies: σ_max of the map it is, in l2; of two variables on a domain."""
    varying = [i for i, o in enumerate(operands) if isinstance(o, Var)]
    if len(varying) == 2 == len(operands):
        return contraction(ctx, equation, *operands)
    if len(varying) != 1:
        raise ctx.unsupported("a contraction of more than two tensors of which several vary; contract two at a time.")
    place = varying[0]
    fixed = [o for i, o in enumerate(operands) if i != place]

    def contract(x: Tensor, *constants: Tensor) -> Tensor:
        return torch.einsum(equation, *constants[:place], x, *constants[place:])

    constants = [ctx.constant(c) for c in fixed]
    terms = longest_sum(contract, operands[place].shape, [c.shape for c in constants]) + len(operands)
    return ctx.linear(operands[place], contract, constants, terms, key=equation_key(equation, place))
