"""Distances between rows, and losses that are distances: to constant centres, or between two computed values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipcert.network.activations.clamp import RELU
from lipcert.network.builder import Var
from lipcert.network.linear import Shape
from lipcert.ops import nonlinearities as known
from lipcert.ops.arithmetic import add, div, exact_double, mul, multiply_by, rsub, sub, under_name
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context, is_number, number
from lipcert.ops.enclosure import added, exact, over, plus, root, times
from lipcert.ops.losses import MEAN, reduced
from lipcert.ops.norms import reduced_norm
from lipcert.ops.registry import rule
from lipcert.ops.structure import sum_
from lipcert.ops.terms import moved
from lipcert.ops.unbounded import sqrt, square

#: What torch adds to the squared lengths in cosine_embedding_loss.
_EPSILON = 1e-12


@rule("cdist", "_cdist_forward", kind="gain")
def cdist(ctx: Context, a: Any, b: Any, p: Any = 2.0, compute_mode: Any = None) -> Var:
    """All p-norm distances of rows, p ≥ 1: to m centres each has gain 1 in l_p, so √m for all of them in l2.

    Of a, (…, n, k), and b, (…, m, k), they are the norms of the rows of a[…, :, None, :] − b[…, None, :, :].
    """
    first, second = (_shape(x) for x in (a, b))
    if len(first) < 2 or len(second) < 2 or first[-1] != second[-1]:
        raise ctx.unsupported(f"distances between rows of shapes {first} and {second}.")
    difference = ctx.variable(sub(ctx, _with_axis(ctx, a, -2), _with_axis(ctx, b, -3)))
    return reduced_norm(ctx, difference, p, -1, False, None)


@rule("mse_loss", kind="pattern")
def mse_loss(ctx: Context, x: Any, target: Any, reduction: int = MEAN) -> Var:
    """Squared error of each entry: rejected alone, by the ranges of x − target on a domain; their mean or sum."""
    return reduced(ctx, under_name(ctx, "square", square, _difference(ctx, x, target)), reduction)


@rule("l1_loss", kind="activation")
def l1_loss(ctx: Context, x: Any, target: Any, reduction: int = MEAN) -> Var:
    """Absolute error of each entry: slopes [−1, 1]; their mean or sum."""
    return reduced(ctx, ctx.activation(_difference(ctx, x, target), known.ABS), reduction)


@rule("cosine_embedding_loss", kind="gain")
def cosine_embedding_loss(ctx: Context, a: Any, b: Any, target: Any, margin: Any = 0.0, reduction: int = MEAN) -> Var:
    """1 − c where the constant target is 1, max(c − margin, 0) where it is −1; c is the cosine by x/√(Σ x² + 10⁻¹²)."""
    if not is_number(margin):
        raise ctx.unsupported("its margin is not a number.")
    sign = ctx.constant(target, "target").value
    axis = sign.dim()
    rows = tuple(torch.broadcast_shapes(_shape(a), _shape(b)))
    if axis > 1 or len(rows) != axis + 1:
        raise ctx.unsupported(f"targets of shape {tuple(sign.shape)} for values of shape {rows}.")
    units = [_unit(ctx, x, axis) for x in (a, b)]
    cosine = sum_(ctx, under_name(ctx, "mul", mul, *units), [axis])
    shape = tuple(torch.broadcast_shapes(cosine.shape, tuple(sign.shape)))
    losses = [
        (rsub(ctx, cosine, 1.0), sign == 1),
        (ctx.activation(ctx.variable(sub(ctx, cosine, number(margin))), RELU), sign == -1),
    ]
    parts = [multiply_by(ctx, loss, kept.double().expand(shape)) for loss, kept in losses if bool(kept.any())]
    if not parts:
        parts = [multiply_by(ctx, cosine, torch.zeros(shape, dtype=torch.float64))]
    return reduced(ctx, parts[0] if len(parts) == 1 else add(ctx, *parts), reduction)


def _shape(x: Any) -> Shape:
    return tuple(x.shape)


def _with_axis(ctx: Context, x: Any, place: int) -> Any:
    """With an axis of length 1 more."""

    def function(v: Tensor) -> Tensor:
        return v.unsqueeze(place)

    return moved(ctx, x, function) if isinstance(x, Var) else ctx.constant(x).map(function)


def _difference(ctx: Context, x: Any, target: Any) -> Var:
    return ctx.variable(sub(ctx, x, target))


def _unit(ctx: Context, x: Any, axis: int) -> Any:
    """x/√(Σ x² + ε) over an axis."""
    if isinstance(x, Var):
        length = add(ctx, sum_(ctx, under_name(ctx, "square", square, x), [axis], True), _EPSILON)
        return under_name(ctx, "div", div, x, under_name(ctx, "sqrt", sqrt, length))
    ball = exact_double(ctx, x).floating
    length = plus(added(lambda v: v.sum(axis, keepdim=True), times(ball, ball)), exact(_EPSILON))
    return Constant.within(over(ball, root(length)))
