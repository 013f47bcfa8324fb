"""Norms of vectors and matrices over axes: |‖a‖_p − ‖b‖_p| ≤ ‖a − b‖_p."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipcert.network.builder import Var
from lipcert.ops.context import Context
from lipcert.ops.nonlinearities import ABS
from lipcert.ops.radial import VectorNorm
from lipcert.ops.registry import rule
from lipcert.ops.selections import amax
from lipcert.ops.softmax import root_up
from lipcert.ops.structure import sum_


def norm_gains(n: int, order: float) -> dict[float, float]:
    """Constants l_q → l_q of the p-norm of n entries, p = order: n^max(0, 1/p − 1/q), attained at 0."""
    gains = {}
    for q in (1.0, 2.0, math.inf):
        exponent = 1.0 / order - 1.0 / q
        gains[q] = root_up(n, 1.0 / exponent) if exponent > 0.0 and n > 1 else 1.0
    return gains


def reduced_norm(ctx: Context, x: Any, order: Any, dim: Any, keepdim: bool, dtype: Any) -> Var:
    """The norm of any order ≥ 1 over the axes ``dim``, None for all; other arguments as PyTorch has them."""
    x = ctx.variable(x)
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise ctx.not_lipschitz(f"conversion to {dtype} is discontinuous.")
    order = 2.0 if order is None else float(order)
    if not order >= 1.0:
        raise ctx.not_lipschitz(f"a norm of order {order} is not Lipschitz; orders from 1 to inf are.")
    dims = () if dim is None else tuple(dim) if isinstance(dim, (list, tuple)) else (int(dim),)
    axes = tuple(sorted(d % len(x.shape) for d in dims)) or tuple(range(len(x.shape)))
    n = math.prod(x.shape[d] for d in axes)
    if n == 0 or not x.shape:
        raise ctx.unsupported("the norm of an empty or scalar tensor.")
    if order == 1.0:
        return sum_(ctx, ctx.activation(x, ABS), list(axes), keepdim)
    if order == math.inf:
        return amax(ctx, ctx.activation(x, ABS), list(axes), keepdim)

    source = f"{order:g}-norm of {n} entries: triangle inequality and n^max(0, 1/{order:g} − 1/q)"
    return ctx.gain(x, VectorNorm("vector_norm", norm_gains(n, order), source, order, axes, bool(keepdim)))


@rule("linalg_vector_norm", kind="gain")
def vector_norm(ctx: Context, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Var:
    """Norm of order p ≥ 1 of n entries: n^max(0, 1/p − 1/q) in l_q (triangle inequality), so 1 for p = q."""
    return reduced_norm(ctx, x, ord, dim, keepdim, dtype)


@rule("norm.Scalar", "norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype", "norm.ScalarOpt_dtype", kind="gain")
def norm(ctx: Context, x: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Var:
    """Norm of order p ≥ 1 of n entries: n^max(0, 1/p − 1/q) in l_q (triangle inequality)."""
    if isinstance(dim, torch.dtype):
        dim, dtype = None, dim
    return reduced_norm(ctx, x, p, dim, keepdim, dtype)


@rule("linalg_norm", kind="gain")
def linalg_norm(
    ctx: Context, x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Var:
    """Vector norm of order p ≥ 1, or Frobenius norm: n^max(0, 1/p − 1/q) in l_q, so 1 in l2 for p = 2."""
    axes = dim if isinstance(dim, (list, tuple)) else None if dim is None else [dim]
    matrix = (len(ctx.variable(x).shape) if axes is None else len(axes)) == 2 and ord is not None
    if matrix or isinstance(ord, str):
        return matrix_norm(ctx, x, ord, axes or [-2, -1], keepdim, dtype)
    return reduced_norm(ctx, x, ord, axes, keepdim, dtype)


@rule("linalg_matrix_norm", kind="gain")
def matrix_norm(
    ctx: Context, x: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, dtype: Any = None
) -> Var:
    """Frobenius norm of a matrix: 1 in l1 and l2, √n in l∞; other matrix norms are not supported."""
    if ord != "fro":
        raise ctx.unsupported(f"matrix norm {ord!r}; the Frobenius norm ('fro') is supported.")
    return reduced_norm(ctx, x, 2, dim, keepdim, dtype)
