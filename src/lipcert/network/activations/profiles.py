"""Shapes of derivatives: g with φ'(x) = factor · g(rate · (x − shift)), monotone between its turning points.

Each is evaluated in midpoint–radius arithmetic (``numerics/midrad.py``), so that the errors of the library's exp, erf
and tanh are in the result. Hard-coded decimals are recomputed to 50 digits by ``tests/ops/test_slopes.py`` and
``tests/ops/test_activations.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.numerics import derivatives
from lipcert.numerics.midrad import ULPS, UNIT, Range, choose, known

Slopes = tuple[float, float]

#: 2/√π, rounded up.
ERF_SLOPE = 1.1283791670955128
#: Greatest slope of ½ t (1 + erf(t/√2)) and one minus it, at ±√2.
GELU_SLOPES = (-0.1289041451851548, 1.128904145185155)
#: The same for the tanh form, k = √(2/π), 0.044715.
GELU_TANH_SLOPES = (-0.12899306865877178, 1.128993068658772)
#: x·sigmoid(x), where x tanh(x/2) = ±2.
SILU_SLOPES = (-0.09983932012886693, 1.099839320128867)
#: x·tanh(softplus(x)).
MISH_SLOPES = (-0.11252612238946257, 1.088498161251728)
#: Least values of the four gates themselves, and of ½ t (1 + tanh(t + 0.044715·π/2·t³)), rounded down.
SILU_LEAST, MISH_LEAST, GELU_LEAST, GELU_TANH_LEAST, CUBIC_LEAST = (
    -0.2784645427610738, -0.30884341301725043, -0.16997120747990369, -0.17004075057125406, -0.13567288958813462,
)  # fmt: skip
#: Where 1/(1 + t²) is steepest, 1/√3, and its slope there, 3√3/8, rounded up.
LORENTZIAN_TURN, LORENTZIAN_SLOPE = 0.5773502691896258, 0.649519052838329
#: e^(−1/2), rounded up.
ROOT_E = 0.6065306597126334
#: 0.044715 · π/2, the cubic coefficient of the tanh GELU in the variable t = kx, and where its slope is greatest there.
CUBIC, CUBIC_TURN = 0.0702381577526338, 1.1318024480511739
#: How far a hard-coded turning point may be from the true one: the slope changes by 1e-18 in between.
_NEAR = 1e-9


@dataclass(frozen=True)
class Turn:
    """An extremum of g: it lies in [start, end]; ``value`` is g there, a minimum rounded down, a maximum up."""

    start: float
    end: float
    value: float


def _turn(position: float, value: float) -> Turn:
    near = _NEAR if position else 0.0
    return Turn(position - near, position + near, value)


@dataclass(frozen=True, eq=False)
class Profile:
    """One g.

    Attributes:
        at: g of a ``Range``, enclosed.
        limits: of g at −∞ and ∞, exact.
        reach: beyond these two numbers g is only known to lie between its value there and the limit.
        turns: all extrema; between them, and up to the limits, g is monotone.
    """

    at: Callable[[Range], Range]
    limits: tuple[float, float]
    reach: tuple[float, float]
    turns: tuple[Turn, ...] = ()

    def between(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest value of g on [low, high], rounded outward; infinite ends are allowed."""
        least, greatest = torch.full_like(low, math.inf), torch.full_like(low, -math.inf)
        for end in (low, high):
            value = self.at(Range.exact(end.clamp(*self.reach)))
            least, greatest = torch.minimum(least, value.low), torch.maximum(greatest, value.high)
            for beyond, limit in zip((end < self.reach[0], end > self.reach[1]), self.limits, strict=True):
                least = torch.where(beyond, least.clamp(max=limit), least)
                greatest = torch.where(beyond, greatest.clamp(min=limit), greatest)
        for turn in self.turns:
            inside = (low <= turn.end) & (high >= turn.start)
            least = torch.where(inside, least.clamp(max=turn.value), least)
            greatest = torch.where(inside, greatest.clamp(min=turn.value), greatest)
        return least, greatest


@dataclass(frozen=True, eq=False)
class Wave(Profile):
    """±sine or ±cosine, with its derivative ``prime``.

    On an interval shorter than π the derivative has at most one zero, and one just where its signs at the ends differ:
    no argument needs to be reduced. Longer intervals are halved; those of a whole period take both extremes. An end
    where the computed sign is wrong is so near to the extremum that its own value, with its error, covers it.
    """

    prime: Callable[[Tensor], Tensor] = torch.cos

    def between(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest value on [low, high]."""
        finite = low.isfinite() & high.isfinite()
        low, high = torch.where(finite, low, 0.0), torch.where(finite, high, 0.0)
        points = (low, (0.5 * low + 0.5 * high).clamp(low, high), high)
        values = [self.at(Range.exact(t)) for t in points]
        slopes = [self.prime(t) for t in points]
        least = torch.minimum(torch.minimum(values[0].low, values[1].low), values[2].low)
        greatest = torch.maximum(torch.maximum(values[0].high, values[1].high), values[2].high)
        whole = ~finite | (0.5 * high - 0.5 * low > math.pi * (1.0 - 2.0**-32))
        top, bottom = whole, whole
        for before, after in (slopes[:2], slopes[1:]):
            top = top | ((before > 0) & (after < 0))
            bottom = bottom | ((before < 0) & (after > 0))
        return torch.where(bottom, -1.0, least.clamp(min=-1.0)), torch.where(top, 1.0, greatest.clamp(max=1.0))


def _wave(function: Callable[[Tensor], Tensor], prime: Callable[[Tensor], Tensor]) -> Wave:
    def at(t: Range) -> Range:
        mid = function(t.mid)
        return Range(mid, t.reach + 2.0 * ULPS * UNIT)

    return Wave(at, (0.0, 0.0), (-math.inf, math.inf), (), prime)


#: Far enough for 1/t² to vanish, near enough for its square to be a double.
_FAR = (-1e60, 1e60)


def _bump(at: Callable[[Range], Range], reach: tuple[float, float], peak: float = 1.0) -> Profile:
    """Even, greatest at 0, falling to 0."""
    return Profile(at, (0.0, 0.0), reach, (_turn(0.0, peak),))


def _unit(at: Callable[[Range], Range], low: float, high: float, reach: tuple[float, float], ends: Slopes) -> Profile:
    """From 0 down to ``ends[0]`` at ``low``, up to ``ends[1]`` at ``high``, down to 1: the derivatives of gates."""
    return Profile(at, (0.0, 1.0), reach, (_turn(low, ends[0]), _turn(high, ends[1])))


COS = _wave(torch.cos, lambda t: -torch.sin(t))
MINUS_SIN = _wave(lambda t: -torch.sin(t), lambda t: -torch.cos(t))
LOGISTIC = Profile(derivatives.logistic, (0.0, 1.0), (-700.0, 700.0))
SIGMOID = _bump(derivatives.sigmoid, (-700.0, 700.0), 0.25)
TANH = _bump(derivatives.tanh, (-350.0, 350.0))
TANHSHRINK = Profile(lambda t: t.increasing(torch.tanh).square(), (1.0, 1.0), (-40.0, 40.0), (_turn(0.0, 0.0),))
ERF = _bump(derivatives.erf, (-26.0, 26.0), ERF_SLOPE)
ATAN = _bump(derivatives.atan, _FAR)
ASINH = _bump(derivatives.asinh, _FAR)
SOFTSIGN = _bump(derivatives.softsign, _FAR)
#: (1 + t²)^(−3/2), of t/√(1 + t²).
INVERSE_ROOT = _bump(lambda t: derivatives.asinh(t) * derivatives.atan(t), _FAR)
#: t/√(1 + t²), of √(1 + t²).
ROOT = Profile(lambda t: t * derivatives.asinh(t), (-1.0, 1.0), _FAR)
#: −t exp(−t²/2), of exp(−t²/2).
GAUSSIAN = Profile(
    lambda t: -t * (-(t.square() * Range.literal(0.5))).exp(),
    (0.0, 0.0),
    (-37.0, 37.0),
    (_turn(-1.0, ROOT_E), _turn(1.0, -ROOT_E)),
)
#: −2t/(1 + t²)², of 1/(1 + t²); 2t/(1 + t²), of log(1 + t²).
LORENTZIAN = Profile(
    lambda t: -(t + t) * derivatives.atan(t).square(),
    (0.0, 0.0),
    _FAR,
    (_turn(-LORENTZIAN_TURN, LORENTZIAN_SLOPE), _turn(LORENTZIAN_TURN, -LORENTZIAN_SLOPE)),
)
LOG_SQUARE = Profile(lambda t: (t + t) * derivatives.atan(t), (0.0, 0.0), _FAR, (_turn(-1.0, -1.0), _turn(1.0, 1.0)))
#: eᵗ for t ≤ 0.
EXPONENTIAL = Profile(lambda t: t.exp(), (0.0, math.inf), (-700.0, 700.0))
#: The same up to where it overflows.
EXP = Profile(lambda t: t.exp(), (0.0, math.inf), (-700.0, 709.0))
SINH = Profile(lambda t: t.increasing(torch.sinh), (-math.inf, math.inf), (-709.0, 709.0))
COSH = Profile(
    lambda t: (t.exp() + (-t).exp()) * Range.literal(0.5), (math.inf, math.inf), (-709.0, 709.0), (_turn(0.0, 1.0),)
)
LINE = Profile(lambda t: t, (-math.inf, math.inf), (-math.inf, math.inf))
SILU = _unit(derivatives.silu, -2.3993572805154677, 2.3993572805154677, (-700.0, 700.0), SILU_SLOPES)
MISH = _unit(derivatives.mish, -2.2563763963607932, 1.4905711794854284, (-350.0, 100.0), MISH_SLOPES)
GELU = _unit(derivatives.gelu, -math.sqrt(2.0), math.sqrt(2.0), (-37.0, 37.0), GELU_SLOPES)


def gelu_tanh(cubic: Range, slopes: Slopes) -> Profile:
    """The derivative of ½ t (1 + tanh(t + rt³)) for r within 1e-3 of the usual one; ``slopes`` are its extremes.

    The place of the extremes moves by −1.08 |r − r₀|.
    """
    near = _NEAR + 2.0 * float((cubic - Range.literal(CUBIC)).mag)
    turns = tuple(
        Turn(position - near, position + near, value)
        for position, value in zip((-CUBIC_TURN, CUBIC_TURN), slopes, strict=True)
    )
    return Profile(lambda t: derivatives.gelu_tanh(t, cubic), (0.0, 1.0), (-15.0, 15.0), turns)


# -- derivatives without a bound, on the interval where they are defined -------------------------------------

#: The double next to 1, below it.
_BELOW_ONE = 1.0 - 2.0**-53
_ONE = Range.literal(1.0)


def _edged(t: Range) -> Range:
    """1 − t²."""
    return (_ONE - t) * (_ONE + t)


#: 1/√(1 − t²) and 1/(1 − t²) on (−1, 1), 1/√(t² − 1) on (1, ∞), 1/(t − t²) on (0, 1).
ASIN = Profile(
    lambda t: _edged(t).sqrt().reciprocal(), (math.inf, math.inf), (-_BELOW_ONE, _BELOW_ONE), (_turn(0.0, 1.0),)
)
ATANH = Profile(lambda t: _edged(t).reciprocal(), (math.inf, math.inf), (-_BELOW_ONE, _BELOW_ONE), (_turn(0.0, 1.0),))
ACOSH = Profile(
    lambda t: ((t - _ONE).sqrt() * (t + _ONE).sqrt()).reciprocal(), (math.inf, 0.0), (1.0 + 2.0**-52, 2.0**1000)
)
LOGIT = Profile(
    lambda t: (t * (_ONE - t)).reciprocal(), (math.inf, math.inf), (2.0**-1000, _BELOW_ONE), (_turn(0.5, 4.0),)
)


def power(t: Range, exponent: Range) -> Range:
    """t^p for t ≥ 0: products and a root where 2p is a small whole number, else exp(p log t)."""
    twice = 2.0 * float(exponent.mid)
    if float(exponent.reach) or twice != math.floor(twice) or abs(twice) > 128:
        zero = t.is_zero & (exponent.low > 0)
        return choose(zero, known(0.0), (exponent * t.log()).exp())
    base, count = (t, int(abs(twice)) // 2) if twice % 2 == 0 else (t.sqrt(), int(abs(twice)))
    base = base.reciprocal() if twice < 0 else base
    result = _ONE
    for bit in bin(count)[2:]:
        result = result * result
        result = result * base if bit == "1" else result
    return result


def monomial(exponent: float, less: float = 0.0) -> Profile:
    """t^(exponent − less) on (0, ∞), not constant."""
    q = known(exponent) - known(less)
    e = min(1000.0, math.floor(1000.0 / float(q.mag)))
    falling = float(q.mid) < 0
    limits = (math.inf, 0.0) if falling else (0.0, math.inf)
    return Profile(lambda t: power(t, q), limits, (2.0**-e if falling else 0.0, 2.0**e))
