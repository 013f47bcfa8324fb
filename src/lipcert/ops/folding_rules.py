"""How each op acts on enclosures: ``rule(target, *arguments)`` with Balls for floating operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.ops import enclosure as on
from lipcert.ops.enclosure import Ball

#: Ops that move, copy, drop or choose entries, or fill with zeros, without arithmetic.
MOVES = frozenset(
    "view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze permute transpose t mT numpy_T "  # noqa: SIM905
    "clone alias contiguous detach slice select index_select index expand expand_as view_as reshape_as repeat cat "
    "concat stack split lift_fresh_copy lift_fresh split_with_sizes chunk flip roll unbind diagonal tril triu narrow "
    "gather take "
    "slice_scatter select_scatter copy diag_embed diag movedim swapaxes rot90 tile repeat_interleave "
    "pixel_shuffle pixel_unshuffle unfold broadcast_to as_strided".split()
)
RULES: dict[str, Callable[..., Any]] = {}


def _rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            RULES[name] = function
        return function

    return register


def _ball(x: Any) -> Ball:
    """An operand as a ball: numbers and whole tensors are exact."""
    if isinstance(x, Ball):
        if x.middle.is_floating_point():
            return x
        return Ball(x.middle.double(), None if x.radius is None else x.radius.expand(x.middle.shape))
    if isinstance(x, float):
        return on.exact(x)
    value = torch.as_tensor(x)
    if not value.is_floating_point() and not value.dtype == torch.bool and bool((value.abs() > 2**53).any()):
        raise ValueError("whole numbers beyond 2^53 are no doubles")
    return on.exact(value.double())


@_rule("add")
def _add(target: Any, a: Any, b: Any, alpha: Any = 1) -> Ball:
    b = _ball(b) if alpha == 1 else on.times(_ball(b), _ball(alpha))
    return on.plus(_ball(a), b)


@_rule("sub")
def _sub(target: Any, a: Any, b: Any, alpha: Any = 1) -> Ball:
    return _add(target, a, b, -alpha)


@_rule("rsub")
def _rsub(target: Any, a: Any, b: Any, alpha: Any = 1) -> Ball:
    return _add(target, b, a, -alpha)


@_rule("mul", "multiply")
def _mul(target: Any, a: Any, b: Any) -> Ball:
    return on.times(_ball(a), _ball(b))


@_rule("div", "true_divide", "divide")
def _div(target: Any, a: Any, b: Any, rounding_mode: str | None = None) -> Ball:
    quotient = on.over(_ball(a), _ball(b))
    if rounding_mode is None:
        return quotient
    return on.monotone(torch.floor if rounding_mode == "floor" else torch.trunc, quotient, 0.0)


@_rule("square")
def _square(target: Any, a: Any) -> Ball:
    return on.times(_ball(a), _ball(a))


@_rule("reciprocal")
def _reciprocal(target: Any, a: Any) -> Ball:
    return on.over(on.exact(1.0), _ball(a))


@_rule("sqrt")
def _sqrt(target: Any, a: Any) -> Ball:
    return on.root(_ball(a))


@_rule("rsqrt")
def _rsqrt(target: Any, a: Any) -> Ball:
    return on.over(on.exact(1.0), on.root(_ball(a)))


@_rule("pow")
def _pow(target: Any, a: Any, exponent: Any) -> Ball | None:
    power = exponent.item() if isinstance(exponent, Tensor) and exponent.numel() == 1 else exponent
    if isinstance(power, Ball) and power.middle.numel() == 1 and power.radius is None:
        power = power.middle.item()
    if not isinstance(power, (int, float)) or power == 0 or abs(power) > 16 or 2 * power != int(2 * power):
        return None
    base = _ball(a) if power == int(power) else on.root(_ball(a))
    result = base
    for _ in range(abs(int(power if power == int(power) else 2 * power)) - 1):
        result = on.times(result, base)
    return result if power > 0 else on.over(on.exact(1.0), result)


@_rule("abs", "neg", "relu")
def _contraction(target: Any, a: Any) -> Ball:
    return on.contraction(target, _ball(a))


@_rule("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "maximum", "minimum")
def _choose(target: Any, a: Any, *ends: Any, **named: Any) -> Ball:
    balls = [_ball(x) for x in (a, *ends, *named.values()) if isinstance(x, (Ball, Tensor))]
    if len(balls) == 1:
        return on.contraction(lambda m: target(m, *ends, **named), balls[0])
    ends = tuple(_ball(e).middle if e is not None else None for e in ends)
    named = {k: _ball(e).middle if e is not None else None for k, e in named.items()}
    middle = target(_ball(a).middle, *ends, **named)
    return on.chosen(lambda *_: middle, *balls)


@_rule("amax", "amin")
def _extreme(target: Any, a: Any, dim: Any = (), keepdim: bool = False) -> Ball:
    ball = _ball(a)
    radius = None if ball.radius is None else torch.amax(ball.radius, dim, keepdim)
    return Ball(target(ball.middle, dim, keepdim), radius)


@_rule("max", "min")
def _largest(target: Any, a: Any, *rest: Any) -> Any:
    ball = _ball(a)
    if not rest:
        return Ball(target(ball.middle), None if ball.radius is None else ball.radius.max())
    if ball.radius is not None or isinstance(rest[0], (Ball, Tensor)):
        return None
    values, places = target(ball.middle, *rest)
    return Ball(values, None), places


@_rule(
    "exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "tanh", "sigmoid", "atan", "asinh", "sinh", "erf",
    "erfc", "acos", "asin", "log_sigmoid", "hardsigmoid",
)  # fmt: skip
def _monotone(target: Any, a: Any) -> Ball:
    return on.monotone(target, _ball(a))


@_rule("elu", "leaky_relu")
def _bent(target: Any, a: Any, slope: float = 1.0) -> Ball | None:
    return on.monotone(lambda m: target(m, slope), _ball(a)) if slope >= 0 else None


@_rule("softplus")
def _softplus(target: Any, a: Any, beta: float = 1, threshold: float = 20) -> Ball | None:
    """As in ``activations.softplus``: the curve itself, also beyond the threshold where torch leaves it."""
    return on.monotone(lambda m: target(m, 1, 40.0), _ball(a)) if beta == 1 and threshold >= 20 else None


@_rule("floor", "ceil", "round", "trunc", "sign", "sgn")
def _step(target: Any, a: Any, **named: Any) -> Ball | None:
    return None if named.get("decimals") else on.monotone(target, _ball(a), 0.0)


@_rule("sin", "cos")
def _wave(target: Any, a: Any) -> Ball:
    return on.gentle(target, _ball(a))


@_rule("to", "_to_copy")
def _to(target: Any, a: Any, *args: Any, **named: Any) -> Any:
    """Between floating dtypes the identity; towards whole numbers a step, known if the whole ball agrees."""
    dtype = next((v for v in (*args, *named.values()) if isinstance(v, torch.dtype)), None)
    ball = _ball(a)
    if dtype is None or dtype.is_floating_point:
        return ball if isinstance(a, Ball) or dtype is not None else None
    if dtype.is_complex or not isinstance(a, Ball):
        return None
    if dtype == torch.bool:
        zero = ball.middle == 0
        certain = ball.radius is None or bool((ball.middle.abs() > ball.radius).all())
        return ~zero if certain else None
    stepped = on.monotone(torch.trunc, ball, 0.0)
    return stepped.middle.to(dtype) if stepped.radius is None else None


# -- sums ---------------------------------------------------------------------------------------------------


def _truncates(dtype: torch.dtype | None) -> bool:
    """Whether a sum or product in this dtype first makes its terms whole numbers."""
    return dtype is not None and not dtype.is_floating_point


@_rule("sum", "cumsum")
def _sum(target: Any, a: Any, *args: Any, **named: Any) -> Ball | None:
    if _truncates(named.pop("dtype", None)):
        return None
    return on.added(lambda m: target(m, *args, **named), _ball(a))


@_rule("mean")
def _mean(target: Any, a: Any, *args: Any, **named: Any) -> Ball:
    named.pop("dtype", None)
    ball = _ball(a)
    shape = target(ball.middle, *args, **named).shape
    count = ball.middle.numel() / max(1, math.prod(shape))
    return on.added(lambda m: target(m, *args, **named), ball, steps=2.0, weights=1.0 / max(1.0, count))


@_rule("index_add", "scatter_add")
def _accumulated(target: Any, a: Any, dim: int, index: Tensor, source: Any, alpha: Any = 1) -> Ball | None:
    if isinstance(index, Ball) or alpha != 1:
        return None
    return on.added(lambda m, s: target(m, dim, index, s), _ball(a), _ball(source))


@_rule("index_put", "_unsafe_index_put")
def _index_put(target: Any, a: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Ball | None:
    if any(isinstance(i, Ball) for i in indices):
        return None
    base, written = _ball(a), _ball(values)
    if not accumulate:
        counts = target(torch.zeros_like(base.middle), indices, torch.ones_like(written.middle), True)
        if bool((counts > 1).any()):  # which of several values stays is not defined
            return None
    return on.added(lambda m, v: target(m, indices, v, accumulate), base, written)


@_rule("scatter")
def _scatter(target: Any, a: Any, dim: int, index: Any, source: Any, reduce: str | None = None) -> Ball | None:
    if isinstance(index, Ball) or reduce is not None or not isinstance(source, (Ball, int, float)):
        return None
    base = _ball(a)
    values = _ball(source).map(lambda m: m.expand(index.shape) if m.dim() == 0 else m)
    counts = torch.zeros_like(base.middle).scatter_add(dim, index, torch.ones(index.shape, dtype=torch.float64))
    if bool((counts > 1).any()):
        return None
    return on.added(lambda m, s: torch.scatter(m, dim, index, s), base, values)


@_rule("constant_pad_nd", "pad")
def _pad(target: Any, a: Any, widths: Any, *rest: Any) -> Ball | None:
    if any(isinstance(r, (Ball, Tensor)) for r in rest):
        return None
    ball = _ball(a)
    zeros = [0.0 if isinstance(r, (int, float)) else r for r in rest]
    radius = None if ball.radius is None else target(ball.radius, widths, *zeros)
    return Ball(target(ball.middle, widths, *rest), radius)


@_rule("where")
def _where(target: Any, condition: Any, a: Any, b: Any) -> Ball | None:
    if isinstance(condition, Ball):
        return None
    a, b = _ball(a), _ball(b)
    radius = torch.where(condition, a.spread, b.spread)
    return Ball(torch.where(condition, a.middle, b.middle), radius if bool(radius.any()) else None)


@_rule("masked_fill")
def _masked_fill(target: Any, a: Any, mask: Any, value: Any) -> Ball | None:
    return _where(target, mask, value, a)


@_rule("fill")
def _fill(target: Any, a: Any, value: Any) -> Ball:
    value = _ball(value)
    return value.map(lambda m: m.expand(_ball(a).middle.shape).clone())


# -- products -----------------------------------------------------------------------------------------------


@_rule("mm", "bmm", "matmul", "mv", "dot", "vdot", "inner", "outer", "kron")
def _product(target: Any, a: Any, b: Any) -> Ball:
    return on.product(target, _ball(a), _ball(b))


@_rule("linear")
def _linear(target: Any, x: Any, weight: Any, bias: Any = None) -> Ball:
    result = on.product(torch.nn.functional.linear, _ball(x), _ball(weight))
    return result if bias is None else on.plus(result, _ball(bias))


@_rule("addmm", "addmv", "baddbmm")
def _addmm(target: Any, bias: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> Ball:
    product = on.times(on.product(torch.matmul, _ball(a), _ball(b)), _ball(alpha))
    return product if beta == 0 else on.plus(on.times(_ball(bias), _ball(beta)), product)


@_rule("einsum")
def _einsum(target: Any, equation: str, operands: Any, path: Any = None) -> Ball | None:
    if len(operands) == 1:
        return on.added(lambda m: torch.einsum(equation, m), _ball(operands[0]))
    if len(operands) != 2:
        return None
    return on.product(lambda p, q: torch.einsum(equation, p, q), *(_ball(o) for o in operands))


@_rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(target: Any, x: Any, weight: Any, bias: Any = None, *rest: Any) -> Ball | None:
    if bias is not None:
        return None
    return on.product(lambda p, q: target(p, q, None, *rest), _ball(x), _ball(weight))


def _taken(ball: Ball, dim: int, place: int) -> Ball:
    return ball.map(lambda m: m.select(dim, place))


@_rule("prod")
def _prod(target: Any, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Ball | None:
    if isinstance(dim, torch.dtype) or _truncates(dtype):
        return None
    ball = _ball(a) if dim is not None else _ball(a).map(lambda m: m.reshape(-1))
    axis = 0 if dim is None else dim
    result = on.exact(1.0)
    for place in range(ball.middle.shape[axis]):
        result = on.times(result, _taken(ball, axis, place))
    return result.map(lambda m: m.unsqueeze(axis)) if keepdim else result


@_rule("cumprod")
def _cumprod(target: Any, a: Any, dim: int, dtype: Any = None) -> Ball | None:
    if _truncates(dtype):
        return None
    ball, running, pieces = _ball(a), on.exact(1.0), []
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


@_rule("linalg_vector_norm", "norm")
def _vector_norm(target: Any, a: Any, order: Any = 2, dim: Any = None, keepdim: bool = False, **named: Any) -> Any:
    order = named.get("ord", named.get("p", order))
    dim, keepdim = named.get("dim", dim), named.get("keepdim", keepdim)
    ball = _ball(a)
    axes = _axes(ball, dim)
    if order is None or order == 2:
        return on.length(ball, axes, keepdim)
    sizes = on.contraction(torch.abs, ball)
    if order == 1:
        return on.added(lambda m: m.sum(axes, keepdim), sizes)
    if order == math.inf:
        return sizes.map(lambda m: m.amax(axes, keepdim))
    return None


@_rule("frobenius_norm")
def _frobenius_norm(target: Any, a: Any, dim: Any = None, keepdim: bool = False) -> Ball:
    return on.length(_ball(a), _axes(_ball(a), dim), keepdim)


@_rule("norm_except_dim")
def _norm_except_dim(target: Any, a: Any, order: Any = 2, dim: int = 0) -> Ball | None:
    ball = _ball(a)
    if order != 2:
        return None
    axes = tuple(d for d in range(ball.middle.dim()) if dim == -1 or d != dim % ball.middle.dim())
    result = on.length(ball, axes, True)
    return result.map(lambda m: m.reshape(())) if dim == -1 else result


@_rule("_weight_norm")
def _weight_norm(target: Any, v: Any, g: Any, dim: int = 0) -> Ball | None:
    norm = _norm_except_dim(target, v, 2, dim)
    return None if norm is None else on.times(_ball(v), on.over(_ball(g), norm))


@_rule("_weight_norm_interface")
def _weight_norm_interface(target: Any, v: Any, g: Any, dim: int = 0) -> tuple[Ball, Ball] | None:
    norm = _norm_except_dim(target, v, 2, dim)
    return None if norm is None else (on.times(_ball(v), on.over(_ball(g), norm)), norm)


@_rule("var", "std", "var_mean", "std_mean")
def _variance(
    target: Any, a: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, correction: Any = None
) -> Any:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    ball, axes = _ball(a), _axes(_ball(a), dim)
    count = math.prod(ball.middle.shape[d] for d in axes)
    freedom = count - (correction if correction is not None else 1 if unbiased else 0)
    mean = on.added(lambda m: m.mean(axes, keepdim=True), ball, steps=2.0, weights=1.0 / count)
    centred = on.minus(ball, mean)
    total = on.added(lambda m: m.sum(axes, keepdim=keepdim), on.times(centred, centred))
    result = on.over(total, on.exact(float(freedom)))
    if "std" in str(target):
        result = on.root(result)
    return (result, mean if keepdim else mean.map(lambda m: m.squeeze(axes))) if "mean" in str(target) else result


@_rule("softmax", "_softmax")
def _softmax(target: Any, a: Any, dim: int, *rest: Any) -> Ball:
    ball = _ball(a)
    shifted = on.minus(ball, on.exact(ball.middle.amax(dim, keepdim=True)))
    powers = on.monotone(torch.exp, shifted)
    return on.over(powers, on.added(lambda m: m.sum(dim, keepdim=True), powers))
