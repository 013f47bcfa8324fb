"""The elementwise activations with their slope ranges [α, β], proved here; their kinds are in ``network/activations``.

Hard-coded decimals are the suprema rounded outward to doubles; ``tests/ops/test_activations.py`` recomputes
every one of them to 50 digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from lipcert.network.activations.clamp import RELU, Clamp
from lipcert.network.activations.exponential import CELU, ELU
from lipcert.network.activations.exponential import SELU as _SELU
from lipcert.network.activations.gates import GELU as _GELU
from lipcert.network.activations.gates import (
    ErfGELU,
    GELUTanh,
    Hardswish,
    ScaledMish,
    SiLU,
    Swish,
    TanhGELU,
    TimesClamp,
)
from lipcert.network.activations.gates import Mish as _Mish
from lipcert.network.activations.piecewise import (
    Abs,
    ClampBetween,
    ExtremeLine,
    HardSigmoid,
    LeakyReLU,
    OddTwoSlopes,
    PReLU,
    Softshrink,
    TwoSlopes,
)
from lipcert.network.activations.profiles import (
    CUBIC,
    ERF_SLOPE,
    GELU_SLOPES,
    GELU_TANH_SLOPES,
    MISH_SLOPES,
    SILU_SLOPES,
)
from lipcert.network.activations.quadratics import Huber, LogQuadratic, Lorentzian
from lipcert.network.activations.smooth import (
    Asinh,
    Atan,
    Cos,
    Erf,
    Erfc,
    Gaussian,
    InverseRoot,
    LogSigmoid,
    RatioSoftsign,
    Root,
    Sigmoid,
    Sin,
    Softplus,
    Softsign,
    Tanh,
    Tanhshrink,
)
from lipcert.network.nonlinearity import Nonlinearity, Slope
from lipcert.numerics.midrad import Near
from lipcert.ops.rational import Real, above, below, exactly, hull, root_above

#: SELU's greatest slope, rounded up from the decimals and from their doubles.
SELU_SLOPE = 1.758099340847377

TANH = Tanh("tanh", 0.0, 1.0)
SIGMOID = Sigmoid("sigmoid", 0.0, 0.25)
LOG_SIGMOID = LogSigmoid("log_sigmoid", 0.0, 1.0)
SOFTSIGN = Softsign("softsign", 0.0, 1.0)
TANHSHRINK = Tanhshrink("tanhshrink", 0.0, 1.0)
ABS = Abs("abs", -1.0, 1.0)
SIN = Sin("sin", -1.0, 1.0)
COS = Cos("cos", -1.0, 1.0)
ATAN = Atan("atan", 0.0, 1.0)
ASINH = Asinh("asinh", 0.0, 1.0)
ERF = Erf("erf", 0.0, ERF_SLOPE)
ERFC = Erfc("erfc", -ERF_SLOPE, 0.0)
SILU = SiLU("silu", *SILU_SLOPES)
MISH = _Mish("mish", *MISH_SLOPES)
GELU = _GELU("gelu", *GELU_SLOPES)
GELU_TANH = GELUTanh("gelu_tanh", *GELU_TANH_SLOPES)
HARDSWISH = Hardswish("hardswish", -0.5, 1.5)
HARDSIGMOID = HardSigmoid("hardsigmoid", 0.0, above(Fraction(1, 6)))
SELU = _SELU("selu", 0.0, SELU_SLOPE)


def softplus(beta: float) -> Softplus:
    """(1/β) log(1 + exp(βx)), any β ≠ 0: the derivative is sigmoid(βx)."""
    return Softplus("softplus", 0.0, 1.0, float(beta))


SOFTPLUS = softplus(1.0)


def leaky_relu(slope: float) -> LeakyReLU:
    """Slope 1 right of 0, ``slope`` left of it."""
    slope = float(slope)
    return LeakyReLU("leaky_relu", min(1.0, slope), max(1.0, slope), slope)


def prelu(slopes: Tensor, lower: Tensor, upper: Tensor, spread: Tensor | None = None) -> PReLU:
    """LeakyReLU with a slope per neuron, within ``spread`` of ``slopes``; ``lower`` ≤ true slope ≤ ``upper``."""
    return PReLU("prelu", lower.clamp(max=1.0), upper.clamp(min=1.0), slopes, spread)


def two_slopes(left: tuple[Real, Real], right: tuple[Real, Real], at: Fraction, name: str) -> Nonlinearity:
    """a·x + b with (a, b) = ``left`` for x < at, ``right`` for x > at; the caller has proved continuity."""
    if at == 0 and all(n.is_(0) for n in (*left, right[1])) and right[0].is_(1):
        return RELU
    lines = tuple((slope.middle, offset.middle) for slope, offset in (left, right))
    return TwoSlopes(name, *hull(left[0], right[0]), exactly(at).middle, *lines)


def odd_two_slopes(inner: Real, outer: Real, jump: Real, at: Fraction) -> OddTwoSlopes:
    """inner·x for |x| ≤ at, outer·x + jump·sign(x) beyond; continuity proved by the caller (softshrink)."""
    settings = exactly(at).middle, inner.middle, outer.middle, jump.middle
    return OddTwoSlopes("softshrink", *hull(inner, outer), *settings)


def elu(positive: Real, negative: Real, rate: Real, name: str = "elu") -> ELU:
    """positive·x for x > 0, negative·(exp(rate·x) − 1) for x ≤ 0; extreme slopes 0, negative·rate, positive.

    ``rate`` must not be negative: exp(rate·x) is then at most 1 on the left half line.
    """
    s, a, r = positive.middle, negative.middle, rate.middle
    steepest = negative * rate
    return ELU(name, *hull(exactly(0), positive, steepest), s, a, r, s - steepest.middle)


def celu(alpha: float) -> CELU:
    """max(0, x) + min(0, α (exp(x/α) − 1)), α > 0: continuously differentiable."""
    return CELU("celu", 0.0, 1.0, float(alpha))


def clamp(low: float | None, high: float | None, name: str = "clamp") -> Clamp:
    """min(max(x, low), high); an end that is None or infinite is open."""
    low = None if low is None or low == -math.inf else float(low)
    high = None if high is None or high == math.inf else float(high)
    if low is None and high is None:
        return Clamp(name, 1.0, 1.0)
    constant = low is not None and high is not None and low >= high
    return Clamp(name, 0.0, 0.0 if constant else 1.0, low, high)


def clamp_between(low: Tensor, high: Tensor, low_spread: Tensor | None, high_spread: Tensor | None) -> ClampBetween:
    """min(max(x, low), high) with tensor ends, each within its spread; infinite ends are open."""
    return ClampBetween("clamp", 0.0, 1.0, low, high, low_spread, high_spread)


def softshrink(threshold: float) -> Softshrink:
    """x − λ, 0, x + λ."""
    return Softshrink("softshrink", 0.0, 1.0, float(threshold))


def extreme_line(
    largest: bool,
    slopes: tuple[Real, Real],
    offsets: tuple[Slope, Slope],
    spread: Tensor | None = None,
) -> ExtremeLine:
    """The larger or smaller of two lines; tensor offsets differ by what they should within ``spread``."""
    first, second = slopes
    name = "max of two lines" if largest else "min of two lines"
    return ExtremeLine(name, *hull(first, second), largest, first.middle, second.middle, *offsets, spread)


# -- activations that only occur written by hand -----------------------------------------------------------


def swish(rate: float | Tensor, error: float = 0.0) -> Nonlinearity:
    """x·sigmoid(βx) = SiLU(βx)/β: its slopes are SiLU's for every β ≠ 0, and 1/2 for β = 0.

    ``error`` bounds the relative error of a tensor of rates.
    """
    if isinstance(rate, float) and not isinstance(rate, Near) and rate == 1.0:
        return SILU
    return Swish("swish", *SILU_SLOPES, rate, error)


def scaled_mish(rate: float) -> Nonlinearity:
    """x·tanh(softplus(kx)) = Mish(kx)/k, k ≠ 0: Mish's slopes."""
    if rate == 1.0 and not isinstance(rate, Near):
        return MISH
    return ScaledMish("mish", *MISH_SLOPES, rate)


def erf_gelu(rate: float) -> ErfGELU:
    """½ x (1 + erf(kx)) = GELU(k√2 x)/(k√2), k ≠ 0: GELU's slopes."""
    return ErfGELU("gelu", *GELU_SLOPES, rate)


def tanh_gelu(linear: Real, cubic: Real) -> TanhGELU | None:
    """½ x (1 + tanh(kx + cx³)) for c/k³ within 1e-3 of the usual 0.044715·π/2; None otherwise.

    With t = kx and u = t + rt³ its slope is a function S(t, r) of t and r = c/k³ alone, and
    |∂S/∂r| = ½ sech²u |4t³ − 2t⁴ tanh u (1 + 3rt²)|. For 0 ≤ r ≤ 0.08, sech²u ≤ 4e^(−2|t|) makes it at most
    8·0.169 + 4·0.294 + 0.96·1.81 < 5, so the range widens by at most 5|r − r₀| (the literals people write for
    √(2/π) differ in their last digits).
    """
    if not linear.sign or linear.sign != cubic.sign:
        return None
    cubes = sorted([abs(linear.low) ** 3, abs(linear.high) ** 3])
    cubics = sorted([abs(cubic.low), abs(cubic.high)])
    ratios = (cubics[0] / cubes[1], cubics[1] / cubes[0])
    distance = max(abs(r - Fraction(CUBIC)) for r in ratios) + Fraction(1, 10**16)
    if distance > Fraction(1, 1000):
        return None
    lower = below(Fraction(GELU_TANH_SLOPES[0]) - 5 * distance)
    upper = above(Fraction(GELU_TANH_SLOPES[1]) + 5 * distance)
    return TanhGELU("gelu_tanh", lower, upper, linear.middle, cubic.middle)


def times_clamp(rate: Real, offset: Real, low: float, high: float) -> TimesClamp:
    """x·clamp(kx + o, low, high), k ≠ 0: slopes low, high outside, from 2·low − o to 2·high − o inside."""
    ends = [exactly(low), exactly(high)]
    inside = [e + e - offset for e in ends]
    return TimesClamp("x*clamp", *hull(*ends, *inside), rate.middle, offset.middle, low, high)


def ratio_softsign(constant: Fraction, rate: Real) -> Nonlinearity:
    """x/(c + m|x|) with c, m > 0: slope c/(c + m|x|)², in (0, 1/c]."""
    if constant == 1 and rate.is_(1):
        return SOFTSIGN
    return RatioSoftsign("softsign", 0.0, above(1 / constant), exactly(constant).middle, rate.middle)


def inverse_root(constant: Real, square: Real) -> InverseRoot:
    """x/√(q x² + c), q, c > 0: its slope c/(q x² + c)^(3/2) lies in (0, 1/√c]."""
    return InverseRoot("isru", 0.0, root_above(1 / constant.low, 2), constant.middle, square.middle)


@dataclass(frozen=True, eq=False, repr=False)
class QuadraticRoot(Root):
    """A root whose coefficients are kept as they are known, so that a later quotient by it can be recognised."""

    exact: tuple[Real, Real, Real]


def root(square: Real, linear: Real, constant: Real) -> QuadraticRoot:
    """√(qx² + bx + c) with q > 0 and 4qc > b²: √q times a distance to a point off the line, so slopes ±√q."""
    settings = square.middle, linear.middle, constant.middle
    high = math.nextafter(math.sqrt(above(square.high)), math.inf)
    slope: Slope = 1.0 if square.is_(1) else high
    return QuadraticRoot("sqrt", -slope, slope, *settings, (square, linear, constant))


def gaussian(constant: Real, linear: Real, square: Real) -> Gaussian | None:
    """exp(c + bx − qx²), q > 0: slopes ±√(2q/e)·exp(c + b²/(4q)), one standard deviation from the peak."""
    c, b, q = constant.middle, linear.middle, -square.middle
    steep = -square.low
    largest = max(abs(linear.low), abs(linear.high))
    exponent = above(constant.high + largest**2 / (4 * -square.high))
    if not -600.0 < exponent < 600.0 or not 1e-200 < steep < 1e200:
        return None
    slope = math.exp(exponent - 0.5) * math.sqrt(2.0 * above(steep))
    slope *= 1.0 + 1e-15 * (8.0 + abs(exponent))  # a few roundings, and one of the exponent
    return Gaussian("gaussian", -slope, slope, c, b, q)


def lorentzian(top: Real, square: Real, linear: Real, constant: Real) -> Lorentzian:
    """k/(qx² + bx + c), q > 0 and 4qc > b²: steepest 1/√3 widths √D from its peak k/(qD), by 3√3/8 · |k|/(qD√D)."""
    least = _least_distance(square, linear, constant)
    largest = max(abs(top.low), abs(top.high))
    slope = root_above(Fraction(27, 64) * largest**2 / (square.low**2 * least**3), 2)
    return Lorentzian("lorentzian", -slope, slope, square.middle, linear.middle, constant.middle, top.middle)


def log_quadratic(square: Real, linear: Real, constant: Real) -> LogQuadratic:
    """log(qx² + bx + c), q > 0 and 4qc > b²: slope 2(x − s)/((x − s)² + D), at most 1/√D, where x − s is ±√D."""
    slope = root_above(1 / _least_distance(square, linear, constant), 2)
    return LogQuadratic("log", -slope, slope, square.middle, linear.middle, constant.middle)


def _least_distance(square: Real, linear: Real, constant: Real) -> Fraction:
    """A positive number that D = (4qc − b²)/4q² is not below, for q > 0."""
    most = max(linear.low**2, linear.high**2)
    return (4 * square.low * constant.low - most) / (4 * square.high**2)


def huber(limit: Real, square: Real, offset: Real, slope: Real, shift: Real) -> Huber:
    """qx² + o for |x| ≤ t, c|x| + d beyond; continuity proved by the caller."""
    steepest = exactly(2) * square * limit
    settings = limit.middle, square.middle, offset.middle, slope.middle, shift.middle
    return Huber("huber", *hull(steepest, -steepest, slope, -slope), *settings)
