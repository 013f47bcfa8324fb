"""Numbers that carry enclosures of a value and of its one-sided directional derivative through torch code.

The code of an activation or a block is run on an ``Enclosure`` instead of a tensor: every torch function it calls is
replaced by a rule below (``__torch_function__``). A function without a rule is an error, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.network.linear import Composition, Identity, LinearMap, OpMap, Sum
from lipcert.numerics.midrad import TINY, ULPS, UNIT, UP, Range, choose, hull

#: 2/√π and 1/√(2π), to within half a unit in the last place (``Range.literal`` grants four).
_ERF, _NORMAL = 1.1283791670955126, 0.3989422804014327
#: √(2/π), of the tanh form of GELU.
_GELU_TANH = 0.7978845608028654


@dataclass(frozen=True, eq=False)
class Truth:
    """A comparison: ``yes`` where it certainly holds, ``no`` where it certainly does not."""

    yes: Tensor
    no: Tensor

    def __and__(self, other: Truth) -> Truth:
        return Truth(self.yes & other.yes, self.no | other.no)

    def __or__(self, other: Truth) -> Truth:
        return Truth(self.yes | other.yes, self.no & other.no)

    def __invert__(self) -> Truth:
        return Truth(self.no, self.yes)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Enclosure.__torch_function__(func, types, args, kwargs)


@dataclass(frozen=True, eq=False)
class Enclosure:
    """``value`` encloses f(x), ``tangent`` every limit of f'(x'; v) as x' → x.

    Why a hull is right where a comparison is undecided: the function then follows one of the two branches at every
    x' near x (both, on either side of a kink at x), and its one-sided derivative there is that of the branch it
    follows in the direction v; the hull holds both, so it holds all their limits.
    """

    value: Range
    tangent: Range

    @property
    def shape(self) -> torch.Size:
        """Shape of the value."""
        return self.value.mid.shape

    @property
    def dtype(self) -> torch.dtype:
        """Always float64."""
        return torch.float64

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    def dim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of entries."""
        return self.value.mid.numel()

    def map(self, move: Callable[[Tensor], Tensor]) -> Enclosure:
        """Entries moved, copied or dropped."""
        return Enclosure(self.value.map(move), self.tangent.map(move))

    def chain(self, value: Range, slope: Range) -> Enclosure:
        """φ(x) for an elementwise φ, from enclosures of φ and of φ' on the value."""
        return Enclosure(value, slope * self.tangent)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = _RULES.get(getattr(func, "__name__", ""))
        if rule is None:
            raise NumericsError(
                f"the derivative at the witness cannot be enclosed: no rule for {getattr(func, '__name__', func)}."
            )
        return rule(*args, **(kwargs or {}))

    def through(self, linear: LinearMap) -> Enclosure:
        """The image of a batch (B, *in_shape) under a linear map."""
        return image(linear, self)

    def __getitem__(self, key: Any) -> Enclosure:
        return self.map(lambda t: t[key])

    def __getattr__(self, name: str) -> Any:
        rule = _RULES.get(name)
        if rule is None or name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: rule(self, *args, **kwargs)

    def __add__(self, other: Any) -> Enclosure:
        return add(self, other)

    __radd__ = __add__

    def __neg__(self) -> Enclosure:
        return Enclosure(-self.value, -self.tangent)

    def __sub__(self, other: Any) -> Enclosure:
        return add(self, -_of(other))

    def __rsub__(self, other: Any) -> Enclosure:
        return add(_of(other), -self)

    def __mul__(self, other: Any) -> Enclosure:
        return mul(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Enclosure:
        return div(self, other)

    def __rtruediv__(self, other: Any) -> Enclosure:
        return div(other, self)

    def __pow__(self, power: Any) -> Enclosure:
        return pow_(self, power)

    def __abs__(self) -> Enclosure:
        return abs_(self)

    def __gt__(self, other: Any) -> Truth:
        return greater(self, other)

    def __ge__(self, other: Any) -> Truth:
        return greater(self, other)

    def __lt__(self, other: Any) -> Truth:
        return greater(other, self)

    def __le__(self, other: Any) -> Truth:
        return greater(other, self)


def _of(x: Any) -> Enclosure:
    if isinstance(x, Enclosure):
        return x
    value = Range.literal(x)
    return Enclosure(value, Range.exact(torch.zeros_like(value.mid)))


def _exact(x: Tensor) -> Enclosure:
    return Enclosure(Range.exact(x), Range.exact(torch.zeros_like(x)))


# -- linear maps --------------------------------------------------------------------------------------------


def image(linear: LinearMap, x: Enclosure) -> Enclosure:
    """W x on a batch (B, *in_shape).

    Why this encloses: the computed image is within γ_k|W||x| of the exact one (``LinearMap.rounding``, which counts
    the errors of folded constants too), an error r of x moves it by at most |W|r, and |W| computed by ``absolute``
    is short by at most another factor 1 − γ_k. Compositions and sums are taken apart, so that the term for underflow
    is passed on by what follows.

    Raises:
        NumericsError: a map whose constants have no error bound.
    """
    if isinstance(linear, Composition):
        for part in linear.maps:
            x = image(part, x)
        return x
    if isinstance(linear, Sum):
        total = image(linear.maps[0], x)
        for part in linear.maps[1:]:
            total = add(total, image(part, x))
        return total
    if isinstance(linear, Identity):
        return x if linear.scale == 1.0 else -x if linear.scale == -1.0 else mul(x, linear.scale)
    if not math.isfinite(linear.rounding):
        label = linear.label if isinstance(linear, OpMap) else "linear"
        raise NumericsError(
            f"the constants of {label} are folded by operations without an error bound: no derivative can be proved."
        )
    pair = torch.cat([x.value.mid, x.tangent.mid])
    gamma = _gamma(linear.rounding)
    mid = linear.apply(pair)
    spread = pair.abs() * gamma + torch.cat([x.value.rad, x.tangent.rad])
    rad = linear.absolute().apply(spread) * (1.0 + 2.0 * gamma) * UP
    rad = torch.where(rad > 0, rad + TINY * _factor(linear) * linear.in_size, rad)
    values, tangents = Range(mid, rad).halves()
    return Enclosure(values, tangents)


def _gamma(count: float) -> float:
    """γ of one rounding more than counted, which covers the product γ|x|; 0 for a map that only moves entries."""
    k = (count + 1.0) * UNIT if count else 0.0
    return k / (1.0 - k) * (1.0 + 4.0 * UNIT) if k < 0.25 else math.inf


def _factor(linear: LinearMap) -> float:
    """What may multiply an intermediate product that has underflowed: the map's other constants."""
    factor = 1.0
    for constant in getattr(linear, "constants", ()):
        factor *= max(1.0, float(constant.abs().max()) if constant.numel() else 1.0)
    return factor


# -- arithmetic and choices ---------------------------------------------------------------------------------


def add(x: Any, y: Any, alpha: float = 1) -> Enclosure:
    """x + alpha·y."""
    x, y = _of(x), _of(y) if alpha == 1 else mul(y, alpha)
    return Enclosure(x.value + y.value, x.tangent + y.tangent)


def sub(x: Any, y: Any, alpha: float = 1) -> Enclosure:
    """x − alpha·y."""
    return add(x, y, -alpha)


def mul(x: Any, y: Any) -> Enclosure:
    """Product rule."""
    x, y = _of(x), _of(y)
    return Enclosure(x.value * y.value, x.value * y.tangent + y.value * x.tangent)


def div(x: Any, y: Any) -> Enclosure:
    """Quotient rule."""
    x, y = _of(x), _of(y)
    inverse = y.value.reciprocal()
    quotient = x.value * inverse
    return Enclosure(quotient, (x.tangent - quotient * y.tangent) * inverse)


def square(x: Enclosure) -> Enclosure:
    """x²."""
    return x.chain(x.value.square(), x.value + x.value)


def pow_(x: Enclosure, power: Any) -> Enclosure:
    """x^p: repeated products for a whole p ≥ 0, exp(p log x) for the rest and x > 0."""
    p = float(power)
    if p == int(p) and 0 <= p <= 64:
        result = _exact(torch.ones_like(x.value.mid))
        for bit in bin(int(p))[2:]:
            result = square(result)
            result = mul(result, x) if bit == "1" else result
        return result
    if p == 0.5:
        return sqrt(x)
    if p == int(p):
        return div(1, pow_(x, -p))
    return exp(mul(log(x), p))


def greater(x: Any, y: Any) -> Truth:
    """x > y; where the two may be equal, undecided: every caller's branches agree there."""
    difference = _of(x).value - _of(y).value
    return Truth(difference.low > 0, difference.high < 0)


def where(condition: Any, yes: Any, no: Any) -> Enclosure:
    """A branch, or the hull of both."""
    yes, no = _of(yes), _of(no)
    if isinstance(condition, Tensor):
        condition = Truth(condition, ~condition)
    values, tangents = hull(yes.value, no.value), hull(yes.tangent, no.tangent)
    for sure, branch in ((condition.yes, yes), (condition.no, no)):
        values, tangents = choose(sure, branch.value, values), choose(sure, branch.tangent, tangents)
    return Enclosure(values, tangents)


def relu(x: Enclosure, inplace: bool = False) -> Enclosure:
    """max(x, 0)."""
    return where(greater(x, 0), x, _exact(torch.zeros_like(x.value.mid)))


def maximum(x: Any, y: Any) -> Enclosure:
    """The larger."""
    return where(greater(x, y), x, y)


def minimum(x: Any, y: Any) -> Enclosure:
    """The smaller."""
    return where(greater(x, y), y, x)


def clamp(x: Enclosure, min: Any = None, max: Any = None) -> Enclosure:
    """min(max(x, min), max); infinite ends are open."""
    for end, bound in ((min, maximum), (max, minimum)):
        if end is not None:
            ends = torch.as_tensor(end, dtype=torch.float64)
            finite = torch.isfinite(ends)
            bounded = bound(x, torch.where(finite, ends, 0.0))
            x = where(finite.expand(bounded.shape), bounded, x)
    return x


def abs_(x: Enclosure) -> Enclosure:
    """|x|."""
    return where(greater(x, 0), x, -x)


def sign(x: Enclosure) -> Enclosure:
    """±1; unknown, with its derivative, where the sign is."""
    one = _exact(torch.ones_like(x.value.mid))
    return where(greater(x, 0), one, where(greater(0, x), -one, mul(one, math.nan)))


# -- smooth functions ---------------------------------------------------------------------------------------


def exp(x: Enclosure) -> Enclosure:
    """eˣ."""
    value = x.value.exp()
    return x.chain(value, value)


def expm1(x: Enclosure) -> Enclosure:
    """eˣ − 1."""
    return x.chain(x.value.increasing(torch.expm1), x.value.exp())


def log(x: Enclosure) -> Enclosure:
    """log x."""
    return x.chain(x.value.log(), x.value.reciprocal())


def log1p(x: Enclosure) -> Enclosure:
    """log(1 + x)."""
    shifted = add(x, 1).value
    exact = shifted.log()
    value = x.value.increasing(torch.log1p)
    return x.chain(choose(exact.mid.isnan(), exact, value), shifted.reciprocal())


def sqrt(x: Enclosure) -> Enclosure:
    """√x; unknown where 0 is not excluded."""
    value = x.value.sqrt()
    return x.chain(value, (value + value).reciprocal())


def rsqrt(x: Enclosure) -> Enclosure:
    """1/√x."""
    return div(1, sqrt(x))


def _logistic(x: Range) -> Range:
    """σ'(x) = q/(1 + q)², q = e^(−|x|)."""
    q = (-x.abs()).exp()
    return q * (q + Range.literal(1)).square().reciprocal()


def sigmoid(x: Enclosure) -> Enclosure:
    """1/(1 + e⁻ˣ)."""
    return x.chain(x.value.increasing(torch.sigmoid), _logistic(x.value))


def tanh(x: Enclosure) -> Enclosure:
    """tanh, of derivative 4σ'(2x)."""
    return x.chain(x.value.increasing(torch.tanh), Range.literal(4) * _logistic(x.value + x.value))


def softplus(x: Enclosure, beta: float = 1.0, threshold: float = 20.0) -> Enclosure:
    """log(1 + exp(βx))/β or, beyond the threshold of the library, x: the hull of the two where they may differ."""
    if beta < 0:  # log(1 + exp(βx))/β, decreasing in βx
        return -softplus(-x, -beta, threshold)
    scaled = mul(x, beta)
    inner = scaled.value
    value = inner.increasing(lambda t: torch.nn.functional.softplus(t, 1.0, 40.0))
    smooth = div(scaled.chain(value, inner.increasing(torch.sigmoid)), beta)
    beyond = greater(scaled, min(threshold, 20.0))
    wide = Enclosure(hull(smooth.value, x.value), hull(smooth.tangent, x.tangent))
    return where(Truth(beyond.no, beyond.yes), smooth, wide)


def logsigmoid(x: Enclosure) -> Enclosure:
    """log σ(x)."""
    return -softplus(-x, 1.0, 40.0)


def erf(x: Enclosure) -> Enclosure:
    """erf."""
    return x.chain(x.value.increasing(torch.erf), Range.literal(_ERF) * (-x.value.square()).exp())


def erfc(x: Enclosure) -> Enclosure:
    """1 − erf."""
    value = (-x.value).increasing(lambda t: torch.erfc(-t), 2 * ULPS)
    return x.chain(value, -(Range.literal(_ERF) * (-x.value.square()).exp()))


def sin(x: Enclosure) -> Enclosure:
    """sin."""
    return x.chain(_wave(torch.sin, x.value), _wave(torch.cos, x.value))


def cos(x: Enclosure) -> Enclosure:
    """cos."""
    return x.chain(_wave(torch.cos, x.value), -_wave(torch.sin, x.value))


def _wave(function: Callable[[Tensor], Tensor], x: Range) -> Range:
    mid = function(x.mid)
    return Range(mid, torch.clamp(x.rad + ULPS * UNIT + TINY, max=2.0))


def atan(x: Enclosure) -> Enclosure:
    """arctan."""
    return x.chain(x.value.increasing(torch.atan), (x.value.square() + Range.literal(1)).reciprocal())


def asinh(x: Enclosure) -> Enclosure:
    """arsinh."""
    slope = (x.value.square() + Range.literal(1)).sqrt().reciprocal()
    return x.chain(x.value.increasing(torch.asinh), slope)


def gelu(x: Enclosure, approximate: str = "none") -> Enclosure:
    """x Φ(x), of derivative Φ(x) + x Φ'(x); or its tanh form."""
    if approximate == "tanh":
        inner = mul(x, add(mul(square(x), 0.044715), 1))
        return mul(mul(x, 0.5), add(tanh(mul(inner, _GELU_TANH)), 1))
    half = mul(x, -math.sqrt(0.5))
    cumulative = erfc(half).value * Range.literal(0.5)
    density = Range.literal(_NORMAL) * (-(x.value.square() * Range.literal(0.5))).exp()
    return x.chain(x.value * cumulative, cumulative + x.value * density)


def silu(x: Enclosure, inplace: bool = False) -> Enclosure:
    """x σ(x)."""
    return mul(x, sigmoid(x))


def mish(x: Enclosure, inplace: bool = False) -> Enclosure:
    """x tanh(softplus(x))."""
    return mul(x, tanh(softplus(x)))


def hardswish(x: Enclosure, inplace: bool = False) -> Enclosure:
    """x · relu6(x + 3)/6."""
    return mul(x, div(relu6(add(x, 3)), 6))


def relu6(x: Enclosure, inplace: bool = False) -> Enclosure:
    """min(max(x, 0), 6)."""
    return clamp(x, 0.0, 6.0)


def hardtanh(x: Enclosure, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Enclosure:
    """Clamp."""
    return clamp(x, min_val, max_val)


def leaky_relu(x: Enclosure, negative_slope: float = 0.01, inplace: bool = False) -> Enclosure:
    """x or slope·x."""
    return where(greater(x, 0), x, mul(x, negative_slope))


def elu(x: Enclosure, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0, **_: Any) -> Enclosure:
    """scale·x, or scale·α·(exp(input_scale·x) − 1)."""
    left = mul(expm1(mul(clamp(x, None, 0.0), input_scale)), alpha)
    return mul(where(greater(x, 0), x, left), scale)


def celu(x: Enclosure, alpha: float = 1.0, inplace: bool = False) -> Enclosure:
    """max(0, x) + min(0, α (exp(x/α) − 1))."""
    return where(greater(x, 0), x, mul(expm1(div(clamp(x, None, 0.0), alpha)), alpha))


def selu(x: Enclosure, inplace: bool = False) -> Enclosure:
    """SELU with the constants of Klambauer et al. 2017."""
    return elu(x, 1.6732632423543772, 1.0507009873554805)


def softshrink(x: Enclosure, lambd: float = 0.5) -> Enclosure:
    """x ∓ λ outside [−λ, λ], 0 inside."""
    zero = _exact(torch.zeros_like(x.value.mid))
    return where(greater(x, lambd), x - lambd, where(greater(-lambd, x), x + lambd, zero))


def softsign(x: Enclosure) -> Enclosure:
    """x/(1 + |x|), of derivative 1/(1 + |x|)²."""
    below = x.value.abs() + Range.literal(1)
    return x.chain(x.value * below.reciprocal(), below.square().reciprocal())


def tanhshrink(x: Enclosure) -> Enclosure:
    """x − tanh x, of derivative tanh²."""
    value = x.value - x.value.increasing(torch.tanh)
    return x.chain(value, x.value.increasing(torch.tanh).square())


# -- sums, blocks, moves ------------------------------------------------------------------------------------


def _axes(x: Enclosure, dim: Any) -> tuple[int, ...]:
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return tuple(range(x.dim()))
    return tuple(d % x.dim() for d in ([dim] if isinstance(dim, int) else dim))


def sum_(x: Enclosure, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Enclosure:
    """Sum over axes."""
    axes = _axes(x, dim)
    return Enclosure(x.value.sum(axes, keepdim), x.tangent.sum(axes, keepdim))


def mean(x: Enclosure, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Enclosure:
    """Mean over axes."""
    return div(sum_(x, dim, keepdim), math.prod(x.shape[a] for a in _axes(x, dim)))


def _peak(x: Enclosure, axes: tuple[int, ...]) -> Tensor:
    top = x.value.mid.amax(axes, keepdim=True)
    return torch.where(torch.isfinite(top), top, 0.0)


def logsumexp(x: Enclosure, dim: Any, keepdim: bool = False) -> Enclosure:
    """log Σ exp x, around the largest entry."""
    axes = _axes(x, dim)
    top = _exact(_peak(x, axes))
    total = log(sum_(exp(x - top), axes, True)) + top
    return total if keepdim else total.map(lambda t: t.reshape([n for a, n in enumerate(x.shape) if a not in axes]))


def softmax(x: Enclosure, dim: int, dtype: Any = None, **_: Any) -> Enclosure:
    """exp x/Σ exp x, of derivative p_i (t_i − Σ p_k t_k)."""
    p, change = _probabilities(x, dim)
    return Enclosure(p, p * change)


def log_softmax(x: Enclosure, dim: int, dtype: Any = None, **_: Any) -> Enclosure:
    """x − log Σ exp x."""
    return Enclosure((x - logsumexp(x, dim, True)).value, _probabilities(x, dim)[1])


def _probabilities(x: Enclosure, dim: int) -> tuple[Range, Range]:
    """p, and t_i − Σ p_k t_k: unchanged if all t are moved together, so they are taken relative to the largest entry's.

    That entry's own difference is then exactly 0, and the sum is as small as the other probabilities are.
    """
    axes = _axes(x, dim)
    weights = (x - _exact(_peak(x, axes))).value.exp()
    p = weights * weights.sum(axes, True).reciprocal()
    top = x.value.mid.argmax(dim, keepdim=True)
    moved = x.tangent - x.tangent.map(lambda t: t.gather(dim, top))
    moved = moved.map(lambda t: t.scatter(dim, top, 0.0))
    return p, moved - (p * moved).sum(axes, True)


def vector_norm(x: Enclosure, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Enclosure:
    """(Σ |x|^p)^(1/p), relative to the largest entry."""
    axes = _axes(x, dim)
    top = x.value.mid.abs().amax(axes, keepdim=True)
    scale = _exact(torch.where((top > 0) & torch.isfinite(top), 2.0 ** torch.frexp(top)[1].clamp(-1000, 1000), 1.0))
    ratio = div(x, scale)
    power = float(ord)
    powers = square(ratio) if power == 2.0 else pow_(abs_(ratio), power)
    total = sum_(powers, axes, True)
    result = mul(sqrt(total) if power == 2.0 else pow_(total, 1.0 / power), scale)
    return result if keepdim else result.map(lambda t: t.reshape([n for a, n in enumerate(x.shape) if a not in axes]))


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


def _moved(name: str) -> Callable[..., Enclosure]:
    def rule(x: Enclosure, *args: Any, **kwargs: Any) -> Enclosure:
        return x.map(lambda t: getattr(t, name)(*args, **kwargs))

    return rule


def _same(x: Enclosure, *_: Any, **__: Any) -> Enclosure:
    return x


_RULES: dict[str, Callable[..., Any]] = {
    **{
        name: _moved(name)
        for name in (
            "reshape view flatten unflatten squeeze unsqueeze permute transpose expand expand_as movedim narrow select"
        ).split()
    },
    **{name: _same for name in "to double contiguous clone detach".split()},
    **{name: add for name in "add __add__ __radd__".split()},
    **{name: mul for name in "mul multiply __mul__ __rmul__".split()},
    **{name: lambda x, y, **kw: div(x, y) for name in "div divide true_divide __truediv__".split()},
    **{name: lambda x, y: div(y, x) for name in "__rtruediv__ __rdiv__".split()},
    **{name: sub for name in "sub subtract __sub__".split()},
    **{name: lambda x, y: sub(y, x) for name in "rsub __rsub__".split()},
    **{name: greater for name in "gt __gt__ ge __ge__ greater greater_equal".split()},
    **{name: lambda x, y: greater(y, x) for name in "lt __lt__ le __le__ less less_equal".split()},
    **{name: abs_ for name in "abs absolute __abs__".split()},
    **{name: lambda x: -x for name in "neg negative __neg__".split()},
    **{name: pow_ for name in "pow __pow__".split()},
    **{name: clamp for name in "clamp clip".split()},
    "clamp_min": lambda x, min: clamp(x, min, None),
    "clamp_max": lambda x, max: clamp(x, None, max),
    "reciprocal": lambda x: div(1, x),
    "rsqrt": rsqrt,
    "sqrt": sqrt,
    "square": square,
    "where": where,
    "maximum": maximum,
    "minimum": minimum,
    "sign": sign,
    "exp": exp,
    "expm1": expm1,
    "log": log,
    "log1p": log1p,
    "sin": sin,
    "cos": cos,
    "atan": atan,
    "arctan": atan,
    "asinh": asinh,
    "arcsinh": asinh,
    "erf": erf,
    "special_erf": erf,
    "erfc": erfc,
    "special_erfc": erfc,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "special_expit": sigmoid,
    "softplus": softplus,
    "log_sigmoid": logsigmoid,
    "logsigmoid": logsigmoid,
    "relu": relu,
    "relu6": relu6,
    "hardtanh": hardtanh,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "celu": celu,
    "selu": selu,
    "gelu": gelu,
    "silu": silu,
    "mish": mish,
    "hardswish": hardswish,
    "softshrink": softshrink,
    "softsign": softsign,
    "tanhshrink": tanhshrink,
    "sum": sum_,
    "mean": mean,
    "logsumexp": logsumexp,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "linalg_vector_norm": vector_norm,
    "vector_norm": vector_norm,
    "layer_norm": layer_norm,
}
