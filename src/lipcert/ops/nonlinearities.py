"""The elementwise activations: function, slope range [α, β], kinks.

Hard-coded decimals are the suprema rounded outward to doubles; ``tests/ops/test_activations.py`` recomputes
every one of them to 50 digits.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.network.nonlinearity import Kink, Nonlinearity, Slope
from lipcert.ops.rational import Real, above, below, exactly, hull, nearest

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
#: SELU's scale and α·scale (Klambauer et al. 2017), rounded up from the decimals and from their doubles.
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
SELU_SLOPE = 1.758099340847377

TANH = Nonlinearity("tanh", torch.tanh, 0.0, 1.0)
SIGMOID = Nonlinearity("sigmoid", torch.sigmoid, 0.0, 0.25)
LOG_SIGMOID = Nonlinearity("log_sigmoid", F.logsigmoid, 0.0, 1.0)
SOFTSIGN = Nonlinearity("softsign", F.softsign, 0.0, 1.0)
TANHSHRINK = Nonlinearity("tanhshrink", F.tanhshrink, 0.0, 1.0)
ABS = Nonlinearity("abs", torch.abs, -1.0, 1.0, (Kink(0.0, 2.0),))
SIN = Nonlinearity("sin", torch.sin, -1.0, 1.0)
COS = Nonlinearity("cos", torch.cos, -1.0, 1.0)
ATAN = Nonlinearity("atan", torch.atan, 0.0, 1.0)
ASINH = Nonlinearity("asinh", torch.asinh, 0.0, 1.0)
ERF = Nonlinearity("erf", torch.erf, 0.0, ERF_SLOPE)
ERFC = Nonlinearity("erfc", torch.erfc, -ERF_SLOPE, 0.0)
SILU = Nonlinearity("silu", F.silu, *SILU_SLOPES)
MISH = Nonlinearity("mish", F.mish, *MISH_SLOPES)
GELU = Nonlinearity("gelu", F.gelu, *GELU_SLOPES)
GELU_TANH = Nonlinearity("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), *GELU_TANH_SLOPES)
HARDSWISH = Nonlinearity("hardswish", F.hardswish, -0.5, 1.5, (Kink(-3.0, -0.5), Kink(3.0, -0.5)))
# torch cannot differentiate its own hardsigmoid twice, which the attack needs.
HARDSIGMOID = Nonlinearity(
    "hardsigmoid",
    lambda x: F.relu6(x + 3.0) / 6.0,
    0.0,
    above(Fraction(1, 6)),
    (Kink(-3.0, 1 / 6), Kink(3.0, -1 / 6)),
)


def softplus(beta: float) -> Nonlinearity:
    """(1/β) log(1 + exp(βx)), any β ≠ 0: the derivative is sigmoid(βx)."""
    # A threshold of 40 changes no double: log1p(exp(-40)) is below the last bit of 40.
    return Nonlinearity("softplus", lambda x: F.softplus(x, beta, 40.0), 0.0, 1.0, attributes=f"beta={float(beta)!r}")


SOFTPLUS = softplus(1.0)


def leaky_relu(slope: float) -> Nonlinearity:
    """Slope 1 right of 0, ``slope`` left of it."""
    slope = float(slope)
    kinks = () if slope == 1.0 else (Kink(0.0, 1.0 - slope),)
    return Nonlinearity(
        "leaky_relu",
        lambda x: F.leaky_relu(x, slope),
        min(1.0, slope),
        max(1.0, slope),
        kinks,
        (),
        repr(slope),
    )


def prelu(slopes: Tensor, lower: Tensor, upper: Tensor) -> Nonlinearity:
    """LeakyReLU with a slope per neuron; ``lower`` ≤ true slope ≤ ``upper``."""
    return Nonlinearity(
        "prelu",
        lambda x, a: torch.where(x > 0, x, a * x),
        lower.clamp(max=1.0),
        upper.clamp(min=1.0),
        (Kink(0.0, 1.0 - slopes),),
        (slopes,),
    )


def two_slopes(left: tuple[Real, Real], right: tuple[Real, Real], at: Fraction, name: str) -> Nonlinearity:
    """a·x + b with (a, b) = ``left`` for x < at, ``right`` for x > at; the caller has proved continuity."""
    position = nearest(at)
    (a, b), (c, d) = [(s.middle, o.middle) for s, o in (left, right)]
    kinks = () if a == c else (Kink(position, c - a),)
    attributes = repr((position, a, b, c, d))
    return Nonlinearity(
        name,
        lambda x: torch.where(x > position, c * x + d, a * x + b),
        *hull(left[0], right[0]),
        kinks,
        (),
        attributes,
    )


def odd_two_slopes(inner: Real, outer: Real, jump: Real, at: Fraction) -> Nonlinearity:
    """inner·x for |x| ≤ at, outer·x + jump·sign(x) beyond; continuity proved by the caller (softshrink)."""
    t, a, c, d = nearest(at), inner.middle, outer.middle, jump.middle
    return Nonlinearity(
        "softshrink",
        lambda x: torch.where(x.abs() > t, c * x + d * torch.sign(x), a * x),
        *hull(inner, outer),
        (Kink(-t, a - c), Kink(t, c - a)),
        (),
        repr((t, a, c, d)),
    )


def elu(positive: Real, negative: Real, rate: Real, name: str = "elu") -> Nonlinearity:
    """positive·x for x > 0, negative·(exp(rate·x) − 1) for x ≤ 0; extreme slopes 0, negative·rate, positive.

    ``rate`` must not be negative: exp(rate·x) is then at most 1 on the left half line.
    """
    s, a, r = positive.middle, negative.middle, rate.middle
    steepest = negative * rate
    jump = s - steepest.middle
    return Nonlinearity(
        name,
        lambda x: torch.where(x > 0, s * x, a * torch.expm1(r * torch.clamp(x, max=0.0))),
        *hull(exactly(0), positive, steepest),
        (Kink(0.0, jump),) if jump else (),
        (),
        repr((s, a, r)),
    )


def celu(alpha: float) -> Nonlinearity:
    """max(0, x) + min(0, α (exp(x/α) − 1)), α > 0: continuously differentiable."""
    return Nonlinearity("celu", lambda x: F.celu(x, alpha), 0.0, 1.0, (), (), repr(float(alpha)))


SELU = Nonlinearity("selu", F.selu, 0.0, SELU_SLOPE, (Kink(0.0, SELU_SCALE - SELU_SCALE * SELU_ALPHA),))


def clamp(low: float | None, high: float | None, name: str = "clamp") -> Nonlinearity:
    """min(max(x, low), high); an end that is None or infinite is open."""
    low = None if low is None or low == -math.inf else float(low)
    high = None if high is None or high == math.inf else float(high)
    kinks: tuple[Kink, ...] = ()
    upper = 1.0
    if low is not None and high is not None and low >= high:
        upper = 0.0  # the constant ``high``
    else:
        kinks += () if low is None else (Kink(low, 1.0),)
        kinks += () if high is None else (Kink(high, -1.0),)
    if low is None and high is None:
        return Nonlinearity(name, lambda x: x, 1.0, 1.0)
    attributes = repr((low, high))
    return Nonlinearity(name, lambda x: torch.clamp(x, low, high), 0.0, upper, kinks, (), attributes)


def clamp_ends(function: Nonlinearity) -> tuple[float | None, float | None] | None:
    """(low, high) of a clamp made by ``clamp``; None for any other activation, or for a constant one."""
    if function.name not in ("clamp", "hardtanh", "relu6", "relu") or function.parameters:
        return None
    if function.upper != 1.0:
        return None
    low = high = None
    for kink in function.kinks:
        if not isinstance(kink.position, float):
            return None
        if kink.jump == 1.0:
            low = kink.position
        else:
            high = kink.position
    return low, high


def clamp_tensors(low: Tensor, high: Tensor) -> Nonlinearity:
    """min(max(x, low), high) with tensor ends; infinite ends are open."""
    moving = low < high

    def kink(position: Tensor, jump: float) -> Kink:
        finite = torch.isfinite(position)
        zero = torch.zeros((), dtype=position.dtype)
        return Kink(torch.where(finite, position, zero), torch.where(finite & moving, jump, zero))

    return Nonlinearity(
        "clamp",
        lambda x, a, b: torch.minimum(torch.maximum(x, a), b),
        0.0,
        1.0,
        (kink(low, 1.0), kink(high, -1.0)),
        (low, high),
    )


def softshrink(threshold: float) -> Nonlinearity:
    """x − λ, 0, x + λ."""
    t = float(threshold)
    kinks = (Kink(-t, -1.0), Kink(t, 1.0)) if t else ()
    return Nonlinearity("softshrink", lambda x: F.softshrink(x, t), 0.0, 1.0, kinks, (), repr(t))


# -- activations that only occur written by hand -----------------------------------------------------------


def swish(rate: float | Tensor) -> Nonlinearity:
    """x·sigmoid(βx) = SiLU(βx)/β: its slopes are SiLU's for every β ≠ 0, and 1/2 for β = 0."""
    if isinstance(rate, Tensor):
        return Nonlinearity("swish", lambda x, b: x * torch.sigmoid(b * x), *SILU_SLOPES, (), (rate,))
    if rate == 1.0:
        return SILU
    return Nonlinearity("swish", lambda x: x * torch.sigmoid(rate * x), *SILU_SLOPES, (), (), repr(rate))


def scaled_mish(rate: float) -> Nonlinearity:
    """x·tanh(softplus(kx)) = Mish(kx)/k, k ≠ 0: Mish's slopes."""
    if rate == 1.0:
        return MISH
    return Nonlinearity("mish", lambda x: x * torch.tanh(F.softplus(rate * x)), *MISH_SLOPES, (), (), repr(rate))


def erf_gelu(rate: float) -> Nonlinearity:
    """½ x (1 + erf(kx)) = GELU(k√2 x)/(k√2), k ≠ 0: GELU's slopes."""
    return Nonlinearity("gelu", lambda x: 0.5 * x * (1.0 + torch.erf(rate * x)), *GELU_SLOPES, (), (), f"erf {rate!r}")


#: 0.044715 · π/2, the cubic coefficient of the tanh GELU in the variable t = kx.
_CUBIC = 0.0702381577526338


def tanh_gelu(linear: Real, cubic: Real) -> Nonlinearity | None:
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
    distance = max(abs(r - Fraction(_CUBIC)) for r in ratios) + Fraction(1, 10**16)
    if distance > Fraction(1, 1000):
        return None
    k, c = linear.middle, cubic.middle
    return Nonlinearity(
        "gelu_tanh",
        lambda x: 0.5 * x * (1.0 + torch.tanh(x * (k + c * (x * x)))),
        below(Fraction(GELU_TANH_SLOPES[0]) - 5 * distance),
        above(Fraction(GELU_TANH_SLOPES[1]) + 5 * distance),
        (),
        (),
        f"tanh {k!r} {c!r}",
    )


def times_clamp(rate: Real, offset: Real, low: float, high: float) -> Nonlinearity:
    """x·clamp(kx + o, low, high), k ≠ 0: slopes low, high outside, from 2·low − o to 2·high − o inside."""
    k, o = rate.middle, offset.middle
    ends = [exactly(low), exactly(high)]
    inside = [e + e - offset for e in ends]
    direction = 1.0 if k > 0 else -1.0
    kinks = (Kink((low - o) / k, direction * (low - o)), Kink((high - o) / k, direction * (o - high)))
    return Nonlinearity(
        "x*clamp",
        lambda x: x * torch.clamp(k * x + o, low, high),
        *hull(*ends, *inside),
        kinks,
        (),
        repr((k, o, low, high)),
    )


def ratio_softsign(constant: Fraction, rate: Real) -> Nonlinearity:
    """x/(c + m|x|) with c, m > 0: slope c/(c + m|x|)², in (0, 1/c]."""
    if constant == 1 and rate.is_(1):
        return SOFTSIGN
    c, m = nearest(constant), rate.middle
    return Nonlinearity("softsign", lambda x: x / (c + m * x.abs()), 0.0, above(1 / constant), (), (), repr((c, m)))


def root(square: Real, linear: Real, constant: Real) -> Nonlinearity:
    """√(qx² + bx + c) with q > 0 and 4qc > b²: √q times a distance to a point off the line, so slopes ±√q."""
    q, b, c = square.middle, linear.middle, constant.middle
    high = math.nextafter(math.sqrt(above(square.high)), math.inf)
    slope: Slope = 1.0 if square.is_(1) else high
    return Nonlinearity("sqrt", lambda x: torch.sqrt(x * (q * x + b) + c), -slope, slope, (), (), repr((q, b, c)))


def gaussian(constant: Real, linear: Real, square: Real) -> Nonlinearity | None:
    """exp(c + bx − qx²), q > 0: slopes ±√(2q/e)·exp(c + b²/(4q)), one standard deviation from the peak."""
    c, b, q = constant.middle, linear.middle, -square.middle
    steep = -square.low
    largest = max(abs(linear.low), abs(linear.high))
    exponent = above(constant.high + largest**2 / (4 * -square.high))
    if not -600.0 < exponent < 600.0 or not 1e-200 < steep < 1e200:
        return None
    slope = math.exp(exponent - 0.5) * math.sqrt(2.0 * above(steep))
    slope *= 1.0 + 1e-15 * (8.0 + abs(exponent))  # a few roundings, and one of the exponent
    return Nonlinearity("gaussian", lambda x: torch.exp(x * (b - q * x) + c), -slope, slope, (), (), repr((c, b, q)))
