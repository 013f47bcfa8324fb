"""How sums, products, norms and normalisations act on enclosures; the other ops are in ``folding_rules``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.ops import enclosure as on
from lipcert.ops.enclosure import Ball
from lipcert.ops.folding_rules import as_ball, rule

# -- sums ---------------------------------------------------------------------------------------------------


def _truncates(dtype: torch.dtype | None) -> bool:
    """Whether a sum or product in this dtype first makes its terms whole numbers."""
    return dtype is not None and not dtype.is_floating_point


@rule("sum", "cumsum")
def _sum(target: Any, a: Any, *args: Any, **named: Any) -> Ball | None:
    if _truncates(named.pop("dtype", None)):
        return None
    return on.added(lambda m: target(m, *args, **named), as_ball(a))


@rule("mean")
def _mean(target: Any, a: Any, *args: Any, **named: Any) -> Ball:
    named.pop("dtype", None)
    ball = as_ball(a)
    shape = target(ball.middle, *args, **named).shape
    count = ball.middle.numel() / max(1, math.prod(shape))
    return on.added(lambda m: target(m, *args, **named), ball, steps=2.0, weights=1.0 / max(1.0, count))


@rule("index_add", "scatter_add")
def _accumulated(target: Any, a: Any, dim: int, index: Tensor, source: Any, alpha: Any = 1) -> Ball | None:
    if isinstance(index, Ball) or alpha != 1:
        return None
    return on.added(lambda m, s: target(m, dim, index, s), as_ball(a), as_ball(source))


@rule("index_put", "_unsafe_index_put")
def _index_put(target: Any, a: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Ball | None:
    if any(isinstance(i, Ball) for i in indices):
        return None
    base, written = as_ball(a), as_ball(values)
    if not accumulate:
        counts = target(torch.zeros_like(base.middle), indices, torch.ones_like(written.middle), True)
        if bool((counts > 1).any()):  # which of several values stays is not defined
            return None
    return on.added(lambda m, v: target(m, indices, v, accumulate), base, written)


@rule("scatter")
def _scatter(target: Any, a: Any, dim: int, index: Any, source: Any, reduce: str | None = None) -> Ball | None:
    if isinstance(index, Ball) or reduce is not None or not isinstance(source, (Ball, int, float)):
        return None
    base = as_ball(a)
    values = as_ball(source).map(lambda m: m.expand(index.shape) if m.dim() == 0 else m)
    counts = torch.zeros_like(base.middle).scatter_add(dim, index, torch.ones(index.shape, dtype=torch.float64))
    if bool((counts > 1).any()):
        return None
    return on.added(lambda m, s: torch.scatter(m, dim, index, s), base, values)


@rule("constant_pad_nd", "pad")
def _pad(target: Any, a: Any, widths: Any, *rest: Any) -> Ball | None:
    if any(isinstance(r, (Ball, Tensor)) for r in rest):
        return None
    ball = as_ball(a)
    zeros = [0.0 if isinstance(r, (int, float)) else r for r in rest]
    radius = None if ball.radius is None else target(ball.radius, widths, *zeros)
    return Ball(target(ball.middle, widths, *rest), radius)


@rule("where")
def _where(target: Any, condition: Any, a: Any, b: Any) -> Ball | None:
    if isinstance(condition, Ball):
        return None
    a, b = as_ball(a), as_ball(b)
    radius = torch.where(condition, a.spread, b.spread)
    return Ball(torch.where(condition, a.middle, b.middle), radius if bool(radius.any()) else None)


@rule("masked_fill")
def _masked_fill(target: Any, a: Any, mask: Any, value: Any) -> Ball | None:
    return _where(target, mask, value, a)


@rule("fill")
def _fill(target: Any, a: Any, value: Any) -> Ball:
    value = as_ball(value)
    return value.map(lambda m: m.expand(as_ball(a).middle.shape).clone())


# -- products -----------------------------------------------------------------------------------------------


@rule("mm", "bmm", "matmul", "mv", "dot", "vdot", "inner", "outer", "kron")
def _product(target: Any, a: Any, b: Any) -> Ball:
    return on.product(target, as_ball(a), as_ball(b))


@rule("linear")
def _linear(target: Any, x: Any, weight: Any, bias: Any = None) -> Ball:
    result = on.product(torch.nn.functional.linear, as_ball(x), as_ball(weight))
    return result if bias is None else on.plus(result, as_ball(bias))


@rule("addmm", "addmv", "baddbmm")
def _addmm(target: Any, bias: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> Ball:
    product = on.times(on.product(torch.matmul, as_ball(a), as_ball(b)), as_ball(alpha))
    return product if beta == 0 else on.plus(on.times(as_ball(bias), as_ball(beta)), product)


@rule("einsum")
def _einsum(target: Any, equation: str, operands: Any, path: Any = None) -> Ball | None:
    if len(operands) == 1:
        return on.added(lambda m: torch.einsum(equation, m), as_ball(operands[0]))
    if len(operands) != 2:
        return None
    return on.product(lambda p, q: torch.einsum(equation, p, q), *(as_ball(o) for o in operands))


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(target: Any, x: Any, weight: Any, bias: Any = None, *rest: Any) -> Ball | None:
    if bias is not None:
        return None
    return on.product(lambda p, q: target(p, q, None, *rest), as_ball(x), as_ball(weight))


def _taken(ball: Ball, dim: int, place: int) -> Ball:
    return ball.map(lambda m: m.select(dim, place))


@rule("prod")
def _prod(target: Any, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Ball | None:
    if isinstance(dim, torch.dtype) or _truncates(dtype):
        return None
    ball = as_ball(a) if dim is not None else as_ball(a).map(lambda m: m.reshape(-1))
    axis = 0 if dim is None else dim
    result = on.exact(1.0)
    for place in range(ball.middle.shape[axis]):
        result = on.times(result, _taken(ball, axis, place))
    return result.map(lambda m: m.unsqueeze(axis)) if keepdim else result


@rule("cumprod")
def _cumprod(target: Any, a: Any, dim: int, dtype: Any = None) -> Ball | None:
    if _truncates(dtype):
        return None
    ball, running, pieces = as_ball(a), on.exact(1.0), []
    for place in range(ball.middle.shape[dim]):
        running = on.times(running, _taken(ball, dim, place))
        pieces.append(running)
    middle = torch.stack([p.middle for p in pieces], dim)
    return Ball(middle, torch.stack([p.spread for p in pieces], dim))


# -- norms and normalisations -------------------------------------------------------------------------------


def _axes(ball: Ball, dim: Any) -> tuple[int, ...]:
    n = ball.middle.dim()
    if dim is None or dim == []:
        return tuple(range(n))
    return tuple(d % n for d in ((dim,) if isinstance(dim, int) else dim))


@rule("linalg_vector_norm", "norm")
def _vector_norm(target: Any, a: Any, order: Any = 2, dim: Any = None, keepdim: bool = False, **named: Any) -> Any:
    order = named.get("ord", named.get("p", order))
    dim, keepdim = named.get("dim", dim), named.get("keepdim", keepdim)
    ball = as_ball(a)
    axes = _axes(ball, dim)
    if order is None or order == 2:
        return on.length(ball, axes, keepdim)
    sizes = on.contraction(torch.abs, ball)
    if order == 1:
        return on.added(lambda m: m.sum(axes, keepdim), sizes)
    if order == math.inf:
        return sizes.map(lambda m: m.amax(axes, keepdim))
    return None


@rule("frobenius_norm")
def _frobenius_norm(target: Any, a: Any, dim: Any = None, keepdim: bool = False) -> Ball:
    return on.length(as_ball(a), _axes(as_ball(a), dim), keepdim)


@rule("norm_except_dim")
def _norm_except_dim(target: Any, a: Any, order: Any = 2, dim: int = 0) -> Ball | None:
    ball = as_ball(a)
    if order != 2:
        return None
    axes = tuple(d for d in range(ball.middle.dim()) if dim == -1 or d != dim % ball.middle.dim())
    result = on.length(ball, axes, True)
    return result.map(lambda m: m.reshape(())) if dim == -1 else result


@rule("_weight_norm")
def _weight_norm(target: Any, v: Any, g: Any, dim: int = 0) -> Ball | None:
    norm = _norm_except_dim(target, v, 2, dim)
    return None if norm is None else on.times(as_ball(v), on.over(as_ball(g), norm))


@rule("_weight_norm_interface")
def _weight_norm_interface(target: Any, v: Any, g: Any, dim: int = 0) -> tuple[Ball, Ball] | None:
    norm = _norm_except_dim(target, v, 2, dim)
    return None if norm is None else (on.times(as_ball(v), on.over(as_ball(g), norm)), norm)


@rule("var", "std", "var_mean", "std_mean")
def _variance(
    target: Any, a: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, correction: Any = None
) -> Any:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    ball, axes = as_ball(a), _axes(as_ball(a), dim)
    count = math.prod(ball.middle.shape[d] for d in axes)
    freedom = count - (correction if correction is not None else 1 if unbiased else 0)
    mean = on.added(lambda m: m.mean(axes, keepdim=True), ball, steps=2.0, weights=1.0 / count)
    centred = on.minus(ball, mean)
    total = on.added(lambda m: m.sum(axes, keepdim=keepdim), on.times(centred, centred))
    result = on.over(total, on.exact(float(freedom)))
    if "std" in str(target):
        result = on.root(result)
    return (result, mean if keepdim else mean.map(lambda m: m.squeeze(axes))) if "mean" in str(target) else result


@rule("softmax", "_softmax")
def _softmax(target: Any, a: Any, dim: int, *rest: Any) -> Ball:
    ball = as_ball(a)
    shifted = on.minus(ball, on.exact(ball.middle.amax(dim, keepdim=True)))
    powers = on.monotone(torch.exp, shifted)
    return on.over(powers, on.added(lambda m: m.sum(dim, keepdim=True), powers))
