"""The rules of ``enclosure`` for smooth functions, sums and blocks: value and derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.numerics import derivatives
from lipcert.numerics.matrices import product_of_ranges
from lipcert.numerics.midrad import TINY, ULPS, UNIT, Range, choose, hull
from lipcert.ranges.enclosure import (
    Enclosure,
    Truth,
    abs_,
    add,
    clamp,
    div,
    exact,
    greater,
    mul,
    of,
    rule,
    square,
    where,
)

#: √(2/π), of the tanh form of GELU.
_GELU_TANH = 0.7978845608028654

# -- smooth functions ---------------------------------------------------------------------------------------


@rule("exp")
def exp(x: Enclosure) -> Enclosure:
    """eˣ."""
    value = x.value.exp()
    return x.chain(value, value)


@rule("expm1")
def expm1(x: Enclosure) -> Enclosure:
    """eˣ − 1."""
    return x.chain(x.value.increasing(torch.expm1), x.value.exp())


@rule("log")
def log(x: Enclosure) -> Enclosure:
    """log x."""
    return x.chain(x.value.log(), x.value.reciprocal())


@rule("log1p")
def log1p(x: Enclosure) -> Enclosure:
    """log(1 + x)."""
    shifted = add(x, 1).value
    exact = shifted.log()
    value = x.value.increasing(torch.log1p)
    return x.chain(choose(exact.mid.isnan(), exact, value), shifted.reciprocal())


@rule("sqrt")
def sqrt(x: Enclosure) -> Enclosure:
    """√x; unknown where 0 is not excluded."""
    value = x.value.sqrt()
    return x.chain(value, (value + value).reciprocal())


@rule("rsqrt")
def rsqrt(x: Enclosure) -> Enclosure:
    """1/√x."""
    return div(1, sqrt(x))


@rule("pow", "__pow__")
def pow_(x: Enclosure, power: Any) -> Enclosure:
    """x^p: repeated products for a whole p ≥ 0, exp(p log x) for the rest and x > 0."""
    p = float(power)
    if p == int(p) and 0 <= p <= 64:
        result = exact(torch.ones_like(x.value.mid))
        for bit in bin(int(p))[2:]:
            result = square(result)
            result = mul(result, x) if bit == "1" else result
        return result
    if p == 0.5:
        return sqrt(x)
    if p == int(p):
        return div(1, pow_(x, -p))
    return exp(mul(log(x), p))


@rule("sigmoid", "special_expit")
def sigmoid(x: Enclosure) -> Enclosure:
    """1/(1 + e⁻ˣ)."""
    return x.chain(derivatives.logistic(x.value), derivatives.sigmoid(x.value))


@rule("tanh")
def tanh(x: Enclosure) -> Enclosure:
    """tanh."""
    return x.chain(x.value.increasing(torch.tanh), derivatives.tanh(x.value))


@rule("softplus")
def softplus(x: Enclosure, beta: float = 1.0, threshold: float = 20.0) -> Enclosure:
    """log(1 + exp(βx))/β or, beyond the threshold of the library, x: the hull of the two where they may differ."""
    if beta < 0:  # log(1 + exp(βx))/β, decreasing in βx
        return -softplus(-x, -beta, threshold)
    scaled = mul(x, beta)
    inner = scaled.value
    value = inner.increasing(lambda t: torch.nn.functional.softplus(t, 1.0, 40.0))
    smooth = div(scaled.chain(value, derivatives.logistic(inner)), beta)
    beyond = greater(scaled, min(threshold, 20.0))
    wide = Enclosure(hull(smooth.value, x.value), hull(smooth.tangent, x.tangent))
    return where(Truth(beyond.no, beyond.yes), smooth, wide)


@rule("log_sigmoid", "logsigmoid")
def logsigmoid(x: Enclosure) -> Enclosure:
    """log σ(x)."""
    return -softplus(-x, 1.0, 40.0)


@rule("erf", "special_erf")
def erf(x: Enclosure) -> Enclosure:
    """erf."""
    return x.chain(x.value.increasing(torch.erf), derivatives.erf(x.value))


@rule("erfc", "special_erfc")
def erfc(x: Enclosure) -> Enclosure:
    """1 − erf."""
    value = (-x.value).increasing(lambda t: torch.erfc(-t), 2 * ULPS)
    return x.chain(value, -derivatives.erf(x.value))


@rule("sin")
def sin(x: Enclosure) -> Enclosure:
    """sin."""
    return x.chain(_wave(torch.sin, x.value), _wave(torch.cos, x.value))


@rule("cos")
def cos(x: Enclosure) -> Enclosure:
    """cos."""
    return x.chain(_wave(torch.cos, x.value), -_wave(torch.sin, x.value))


def _wave(function: Callable[[Tensor], Tensor], x: Range) -> Range:
    mid = function(x.mid)
    return Range(mid, torch.clamp(x.rad + ULPS * UNIT + TINY, max=2.0))


@rule("atan", "arctan")
def atan(x: Enclosure) -> Enclosure:
    """arctan."""
    return x.chain(x.value.increasing(torch.atan), derivatives.atan(x.value))


@rule("asinh", "arcsinh")
def asinh(x: Enclosure) -> Enclosure:
    """arsinh."""
    return x.chain(x.value.increasing(torch.asinh), derivatives.asinh(x.value))


@rule("gelu")
def gelu(x: Enclosure, approximate: str = "none") -> Enclosure:
    """x Φ(x), or its tanh form."""
    if approximate == "tanh":
        inner = mul(x, add(mul(square(x), 0.044715), 1))
        return mul(mul(x, 0.5), add(tanh(mul(inner, _GELU_TANH)), 1))
    return x.chain(x.value * derivatives.normal(x.value), derivatives.gelu(x.value))


@rule("silu")
def silu(x: Enclosure, inplace: bool = False) -> Enclosure:
    """x σ(x)."""
    return mul(x, sigmoid(x))


@rule("mish")
def mish(x: Enclosure, inplace: bool = False) -> Enclosure:
    """x tanh(softplus(x))."""
    return mul(x, tanh(softplus(x)))


@rule("hardswish")
def hardswish(x: Enclosure, inplace: bool = False) -> Enclosure:
    """x · relu6(x + 3)/6."""
    return mul(x, div(relu6(add(x, 3)), 6))


@rule("relu6")
def relu6(x: Enclosure, inplace: bool = False) -> Enclosure:
    """min(max(x, 0), 6)."""
    return clamp(x, 0.0, 6.0)


@rule("hardtanh")
def hardtanh(x: Enclosure, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Enclosure:
    """Clamp."""
    return clamp(x, min_val, max_val)


@rule("leaky_relu")
def leaky_relu(x: Enclosure, negative_slope: float = 0.01, inplace: bool = False) -> Enclosure:
    """x or slope·x."""
    return where(greater(x, 0), x, mul(x, negative_slope))


@rule("elu")
def elu(x: Enclosure, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0, **_: Any) -> Enclosure:
    """scale·x, or scale·α·(exp(input_scale·x) − 1)."""
    left = mul(expm1(mul(clamp(x, None, 0.0), input_scale)), alpha)
    return mul(where(greater(x, 0), x, left), scale)


@rule("celu")
def celu(x: Enclosure, alpha: float = 1.0, inplace: bool = False) -> Enclosure:
    """max(0, x) + min(0, α (exp(x/α) − 1))."""
    return where(greater(x, 0), x, mul(expm1(div(clamp(x, None, 0.0), alpha)), alpha))


@rule("selu")
def selu(x: Enclosure, inplace: bool = False) -> Enclosure:
    """SELU with the constants of Klambauer et al. 2017."""
    return elu(x, 1.6732632423543772, 1.0507009873554805)


@rule("softshrink")
def softshrink(x: Enclosure, lambd: float = 0.5) -> Enclosure:
    """x ∓ λ outside [−λ, λ], 0 inside."""
    zero = exact(torch.zeros_like(x.value.mid))
    return where(greater(x, lambd), x - lambd, where(greater(-lambd, x), x + lambd, zero))


@rule("softsign")
def softsign(x: Enclosure) -> Enclosure:
    """x/(1 + |x|)."""
    below = x.value.abs() + Range.literal(1)
    return x.chain(x.value * below.reciprocal(), derivatives.softsign(x.value))


@rule("tanhshrink")
def tanhshrink(x: Enclosure) -> Enclosure:
    """x − tanh x, of derivative tanh²."""
    value = x.value - x.value.increasing(torch.tanh)
    return x.chain(value, x.value.increasing(torch.tanh).square())


# -- sums, blocks, moves ------------------------------------------------------------------------------------


def _axes(x: Enclosure, dim: Any) -> tuple[int, ...]:
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return tuple(range(x.dim()))
    return tuple(d % x.dim() for d in ([dim] if isinstance(dim, int) else dim))


@rule("sum")
def sum_(x: Enclosure, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Enclosure:
    """Sum over axes."""
    axes = _axes(x, dim)
    return Enclosure(x.value.sum(axes, keepdim), x.tangent.sum(axes, keepdim))


@rule("mean")
def mean(x: Enclosure, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Enclosure:
    """Mean over axes."""
    return div(sum_(x, dim, keepdim), math.prod(x.shape[a] for a in _axes(x, dim)))


@rule("matmul", "bmm", "mm", "__matmul__")
def matmul(x: Any, y: Any) -> Enclosure:
    """Products of matrices, by the product rule."""
    x, y = of(x), of(y)
    return Enclosure(
        product_of_ranges(x.value, y.value),
        product_of_ranges(x.value, y.tangent) + product_of_ranges(x.tangent, y.value),
    )


def _peak(x: Enclosure, axes: tuple[int, ...]) -> Tensor:
    top = x.value.mid.amax(axes, keepdim=True)
    return torch.where(torch.isfinite(top), top, 0.0)


@rule("logsumexp")
def logsumexp(x: Enclosure, dim: Any, keepdim: bool = False) -> Enclosure:
    """log Σ exp x, around the largest entry."""
    axes = _axes(x, dim)
    top = exact(_peak(x, axes))
    total = log(sum_(exp(x - top), axes, True)) + top
    return total if keepdim else total.map(lambda t: t.reshape([n for a, n in enumerate(x.shape) if a not in axes]))


@rule("softmax")
def softmax(x: Enclosure, dim: int, dtype: Any = None, **_: Any) -> Enclosure:
    """exp x/Σ exp x, of derivative p_i (t_i − Σ p_k t_k)."""
    p, change = _probabilities(x, dim)
    return Enclosure(p, p * change)


@rule("softmax_of_kept")
def softmax_of_kept(x: Enclosure, dim: int, kept: Tensor) -> Enclosure:
    """Softmax over the entries where ``kept`` is 1; 0 elsewhere, and in rows of which nothing is kept."""
    chosen = kept.to(torch.float64).expand(x.shape)
    row = chosen.amax(dim, keepdim=True) > 0
    weighed = torch.where(row, chosen, 1.0)

    def like_the_kept(t: Tensor) -> Tensor:  # what is left out is to be no peak
        return torch.where(weighed > 0, t, torch.where(weighed > 0, t, -math.inf).amax(dim, keepdim=True))

    p, change = _probabilities(x.map(like_the_kept), dim, weighed)
    return Enclosure(p * Range.exact(chosen), p * Range.exact(chosen) * change)


@rule("log_softmax")
def log_softmax(x: Enclosure, dim: int, dtype: Any = None, **_: Any) -> Enclosure:
    """x − log Σ exp x."""
    return Enclosure((x - logsumexp(x, dim, True)).value, _probabilities(x, dim)[1])


def _probabilities(x: Enclosure, dim: int, kept: Tensor | None = None) -> tuple[Range, Range]:
    """p, and t_i − Σ p_k t_k: unchanged if all t are moved together, so they are taken relative to the largest entry's.

    That entry's own difference is then exactly 0, and the sum is as small as the other probabilities are.
    """
    axes = _axes(x, dim)
    weights = (x - exact(_peak(x, axes))).value.exp()
    weights = weights if kept is None else weights * Range.exact(kept)
    p = weights * weights.sum(axes, True).reciprocal()
    top = x.value.mid.argmax(dim, keepdim=True)
    moved = x.tangent - x.tangent.map(lambda t: t.gather(dim, top))
    moved = moved.map(lambda t: t.scatter(dim, top, 0.0))
    return p, moved - (p * moved).sum(axes, True)


@rule("linalg_vector_norm", "vector_norm")
def vector_norm(x: Enclosure, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Enclosure:
    """(Σ |x|^p)^(1/p), relative to the largest entry."""
    axes = _axes(x, dim)
    top = x.value.mid.abs().amax(axes, keepdim=True)
    scale = exact(
        torch.where((top > 0) & torch.isfinite(top), 2.0 ** torch.frexp(top)[1].double().clamp(-1000, 1000), 1.0)
    )
    ratio = div(x, scale)
    power = float(ord)
    powers = square(ratio) if power == 2.0 else pow_(abs_(ratio), power)
    total = sum_(powers, axes, True)
    result = mul(sqrt(total) if power == 2.0 else pow_(total, 1.0 / power), scale)
    return result if keepdim else result.map(lambda t: t.reshape([n for a, n in enumerate(x.shape) if a not in axes]))


@rule("layer_norm")
def layer_norm(x: Enclosure, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Enclosure:
    """(x − mean)/√(var + ε)."""
    if weight is not None or bias is not None:
        raise NumericsError("the derivative at the witness cannot be enclosed: layer_norm with its own weights.")
    axes = tuple(range(-len(shape), 0))
    centred = x - mean(x, axes, True)
    scale = rsqrt(mean(square(centred), axes, True) + eps)
    # d(cs) = s t_c − c s³ mean(c t_c)
    coupling = (centred.value * centred.tangent).sum(_axes(x, axes), True) * Range.literal(
        math.prod(shape)
    ).reciprocal()
    unit = centred.value * scale.value
    return Enclosure(unit, scale.value * (centred.tangent - unit * (scale.value * coupling)))
