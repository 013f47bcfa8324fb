"""Every kind of activation with its derivative in 50 digits: pieces between kinks, their turning points and limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import mpmath as mp
import torch
from activation_cases import ENDS, SELU

from lipcert.network.activations import clamp, exponential, gates, piecewise, quadratics, smooth
from lipcert.ops import nonlinearities as known
from lipcert.ops.rational import Real, exactly

mp.mp.dps = 50
INF = mp.inf


@dataclass(frozen=True)
class Part:
    """The derivative between two kinks."""

    left: mp.mpf
    right: mp.mpf
    slope: Callable
    turns: Sequence = ()
    limits: tuple = (0, 0)

    def at(self, x):
        return mp.mpf(self.limits[0] if x == -INF else self.limits[1] if x == INF else self.slope(x))


def true_range(parts, low, high):
    """Least and greatest derivative on [low, high] in 50 digits."""
    low, high, values = mp.mpf(low), mp.mpf(high), []
    for part in parts:
        if (high > part.left and low < part.right) or (low == high and part.left <= low <= part.right):
            a, b = max(low, part.left), min(high, part.right)
            values += [part.at(a), part.at(b), *(part.at(t) for t in part.turns if a < t < b)]
    return min(values), max(values)


def logistic(t):
    return 1 / (1 + mp.exp(-t))


def bump(t):
    return mp.exp(-abs(t)) / (1 + mp.exp(-abs(t))) ** 2


def silu(t):
    return logistic(t) + t * bump(t)


def gelu(t):
    return mp.erfc(-t / mp.sqrt(2)) / 2 + t * mp.exp(-t * t / 2) / mp.sqrt(2 * mp.pi)


def mish(t):
    s = mp.log1p(mp.exp(t)) if t < 50 else t + mp.exp(-t)
    return mp.tanh(s) + t * mp.sech(s) ** 2 * logistic(t)


def gelu_tanh(k, c):
    def slope(x):
        u = k * x + c * x**3
        return logistic(2 * u) + x * mp.sech(u) ** 2 * (k + 3 * c * x * x) / 2

    return slope


def whole(slope, turns=(), limits=(0, 0)):
    return [Part(-INF, INF, slope, turns, limits)]


def level(left, right, value):
    return Part(mp.mpf(left), mp.mpf(right), lambda x: value, (), (value, value))


def steps(positions, values):
    ends = [-INF, *map(mp.mpf, positions), INF]
    return [level(a, b, mp.mpf(v)) for a, b, v in zip(ends, ends[1:], values, strict=False) if a < b]


def scaled(slope, turns, k, limits=(0, 1)):
    """slope(k·x)."""
    if k == 0:
        return whole(lambda x: slope(mp.mpf(0)), (), (slope(mp.mpf(0)),) * 2)
    return whole(lambda x: slope(k * x), [t / mp.mpf(k) for t in turns], limits if k > 0 else limits[::-1])


def turns_of(name):
    return [ENDS[name][0][0], ENDS[name][1][0]]


def wave(slope, first):
    return whole(slope, first)


def multiples(start, low=-1200, high=1200):
    return [(start + k) * mp.pi for k in range(low, high)]


def _elu(s, a, r):
    return [Part(-INF, mp.mpf(0), lambda x: a * r * mp.exp(r * x), (), (0 if r else a * r, 0)), level(0, INF, s)]


def _times_clamp(k, o, low, high):
    ends = [((mp.mpf(low) - o) / k, low), ((mp.mpf(high) - o) / k, high)]
    (start, first), (stop, last) = ends if k > 0 else ends[::-1]
    return [level(-INF, start, first), Part(start, stop, lambda x: 2 * k * x + o), level(stop, INF, last)]


def _root(q, b, c):
    s = mp.sqrt(q)
    return whole(lambda x: (2 * q * x + b) / (2 * mp.sqrt((q * x + b) * x + c)), (), (-s, s))


def _gaussian(c, b, q):
    m, d = b / (2 * q), 1 / mp.sqrt(2 * q)
    return whole(lambda x: (b - 2 * q * x) * mp.exp(c + b * x - q * x * x), [m - d, m + d])


def _vertex(f):
    q, b, c = num(f.square), num(f.linear), num(f.constant)
    return q, b, c, b / (-2 * q), mp.sqrt(c / q - (b / (2 * q)) ** 2)


def _lorentzian(f):
    q, b, c, s, d = _vertex(f)
    turns = [s - d / mp.sqrt(3), s + d / mp.sqrt(3)]
    return whole(lambda x: -num(f.top) * (2 * q * x + b) / ((q * x + b) * x + c) ** 2, turns)


def _log_quadratic(f):
    q, b, c, s, d = _vertex(f)
    return whole(lambda x: (2 * q * x + b) / ((q * x + b) * x + c), [s - d, s + d])


def _huber(f):
    t, q, c = num(f.limit), num(f.square), num(f.slope)
    return [level(-INF, -t, -c), Part(-t, t, lambda x: 2 * q * x), level(t, INF, c)]


def _line(f):
    p, r, q, t = (mp.mpf(float(n)) for n in (f.first, f.second, f.first_offset, f.second_offset))
    return steps([(t - q) / (p - r)], sorted((p, r), reverse=not f.largest))


def _tanh_gelu(k, c):
    slope = gelu_tanh(k, c)
    start = [sign * mp.mpf("1.1318") / k for sign in (-1, 1)]
    turns = [mp.findroot(lambda t: mp.diff(slope, t), t) for t in start]
    return whole(slope, turns, (0, 1) if k > 0 else (1, 0))


def num(x):
    return mp.mpf(float(x))


#: Kind → the derivative of an instance. A kind without a row fails ``test_slopes.py``.
PARTS = {
    clamp.Clamp: lambda f: (
        steps([], [0])
        if f.constant
        else steps([-INF if f.low is None else f.low, INF if f.high is None else f.high], [0, 1, 0])
    ),
    piecewise.Abs: lambda f: steps([0], [-1, 1]),
    piecewise.HardSigmoid: lambda f: steps([-3, 3], [0, mp.mpf(1) / 6, 0]),
    piecewise.LeakyReLU: lambda f: steps([0], [f.slope, 1]),
    piecewise.PReLU: lambda f: steps([0], [num(f.slopes), 1]),
    piecewise.TwoSlopes: lambda f: steps([f.at], [f.left[0], f.right[0]]),
    piecewise.OddTwoSlopes: lambda f: steps([-f.at, f.at], [f.outer, f.inner, f.outer]),
    piecewise.Softshrink: lambda f: steps([-f.threshold, f.threshold], [1, 0, 1]),
    piecewise.ClampBetween: lambda f: steps([num(f.low), num(f.high)], [0, 1, 0]) if f.low < f.high else steps([], [0]),
    piecewise.ExtremeLine: _line,
    smooth.Tanh: lambda f: whole(lambda x: mp.sech(x) ** 2, [0]),
    smooth.Sigmoid: lambda f: whole(bump, [0]),
    smooth.LogSigmoid: lambda f: whole(lambda x: logistic(-x), (), (1, 0)),
    smooth.Softsign: lambda f: whole(lambda x: 1 / (1 + abs(x)) ** 2, [0]),
    smooth.Tanhshrink: lambda f: whole(lambda x: mp.tanh(x) ** 2, [0], (1, 1)),
    smooth.Sin: lambda f: wave(mp.cos, multiples(0)),
    smooth.Cos: lambda f: wave(lambda x: -mp.sin(x), multiples(mp.mpf(1) / 2)),
    smooth.Atan: lambda f: whole(lambda x: 1 / (1 + x * x), [0]),
    smooth.Asinh: lambda f: whole(lambda x: 1 / mp.sqrt(1 + x * x), [0]),
    smooth.Erf: lambda f: whole(lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-x * x), [0]),
    smooth.Erfc: lambda f: whole(lambda x: -2 / mp.sqrt(mp.pi) * mp.exp(-x * x), [0]),
    smooth.Softplus: lambda f: scaled(logistic, [], f.beta),
    smooth.RatioSoftsign: lambda f: whole(lambda x: f.constant / (f.constant + f.rate * abs(x)) ** 2, [0]),
    smooth.InverseRoot: lambda f: whole(lambda x: f.constant / mp.sqrt(f.square * x * x + f.constant) ** 3, [0]),
    smooth.Root: lambda f: _root(num(f.square), num(f.linear), num(f.constant)),
    known.QuadraticRoot: lambda f: _root(num(f.square), num(f.linear), num(f.constant)),
    smooth.Gaussian: lambda f: _gaussian(num(f.constant), num(f.linear), num(f.square)),
    quadratics.Lorentzian: _lorentzian,
    quadratics.LogQuadratic: _log_quadratic,
    quadratics.Huber: _huber,
    gates.SiLU: lambda f: scaled(silu, turns_of("SILU"), 1),
    gates.Mish: lambda f: scaled(mish, turns_of("MISH"), 1),
    gates.GELU: lambda f: scaled(gelu, turns_of("GELU"), 1),
    gates.GELUTanh: lambda f: _tanh_gelu(mp.sqrt(2 / mp.pi), mp.sqrt(2 / mp.pi) * mp.mpf("0.044715")),
    gates.Swish: lambda f: scaled(silu, turns_of("SILU"), num(f.rate)),
    gates.ScaledMish: lambda f: scaled(mish, turns_of("MISH"), num(f.rate)),
    gates.ErfGELU: lambda f: scaled(gelu, turns_of("GELU"), num(f.rate) * mp.sqrt(2)),
    gates.TanhGELU: lambda f: _tanh_gelu(num(f.linear), num(f.cubic)),
    gates.TimesClamp: lambda f: _times_clamp(num(f.rate), num(f.offset), num(f.low), num(f.high)),
    gates.Hardswish: lambda f: [
        level(-INF, -3, 0),
        Part(-mp.mpf(3), mp.mpf(3), lambda x: (2 * x + 3) / 6),
        level(3, INF, 1),
    ],
    exponential.ELU: lambda f: _elu(num(f.positive), num(f.negative), num(f.rate)),
    exponential.CELU: lambda f: _elu(1, num(f.alpha), 1 / num(f.alpha)),
    exponential.SELU: lambda f: _elu(SELU / mp.mpf("1.6732632423543772848170429916717"), SELU, 1),
}


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def line(a, b):
    return exactly(a), exactly(b)


K = 0.7978845608028654
INSTANCES = [
    known.TANH, known.SIGMOID, known.LOG_SIGMOID, known.SOFTSIGN, known.TANHSHRINK, known.ABS, known.SIN, known.COS,
    known.ATAN, known.ASINH, known.ERF, known.ERFC, known.SILU, known.MISH, known.GELU, known.GELU_TANH,
    known.HARDSWISH, known.HARDSIGMOID, known.SELU, known.RELU,
    known.softplus(1.0), known.softplus(-0.3), known.softplus(1e6), known.leaky_relu(0.01), known.leaky_relu(-3.0),
    known.prelu(tensor(0.3), tensor(0.3), tensor(0.3)), known.prelu(tensor(-7.0), tensor(-7.0), tensor(-7.0)),
    known.two_slopes(line(0.1, 0.0), line(-2.0, 0.0), Fraction(0), "bent"),
    known.two_slopes(line(1.0, 0.0), line(3.0, -0.5), Fraction(1, 4), "bent"),
    known.odd_two_slopes(exactly(0.5), exactly(2.0), exactly(-1.5), Fraction(1)),
    known.elu(exactly(1), exactly(1), exactly(1)), known.elu(exactly(2), exactly(-0.7), exactly(3)),
    known.elu(exactly(1), exactly(1), exactly(0)), known.celu(0.3), known.celu(1e5),
    known.clamp(-1.0, 2.0), known.clamp(None, 0.1), known.clamp(0.1, None), known.clamp(2.0, 1.0),
    known.clamp(None, None),
    known.clamp_between(tensor(-1.0), tensor(0.3), None, None),
    known.clamp_between(tensor(-math.inf), tensor(0.3), None, None),
    known.clamp_between(tensor(2.0), tensor(1.0), None, None), known.softshrink(0.7), known.softshrink(0.0),
    known.extreme_line(True, line(0.1, 2.0), (0.5, -0.25)), known.extreme_line(False, line(-3.0, 2.0), (0.1, 0.7)),
    known.swish(1.702), known.swish(-2e5), known.swish(0.0), known.swish(tensor(0.5)), known.scaled_mish(2.0),
    known.scaled_mish(-1e-4), known.erf_gelu(-3.0), known.erf_gelu(0.7071067811865476),
    known.tanh_gelu(exactly(K), exactly(K * 0.044715)), known.tanh_gelu(exactly(-2 * K), exactly(-8 * K * 0.044715)),
    known.times_clamp(exactly(Fraction(1, 4)), exactly(0.5), 0.0, 1.0),
    known.times_clamp(exactly(-2), exactly(1), -1.0, 1.0),
    known.ratio_softsign(Fraction(2), exactly(3)), known.ratio_softsign(Fraction(1, 1024), exactly(1e5)),
    known.inverse_root(exactly(0.1), exactly(4)), known.inverse_root(exactly(1e8), exactly(1e-8)),
    known.root(exactly(1), exactly(0), exactly(0.1)), known.root(exactly(4), exactly(-7), exactly(4)),
    known.lorentzian(exactly(1), exactly(1), exactly(0), exactly(1)),
    known.lorentzian(exactly(-3), exactly(0.1), exactly(-2), exactly(11)),
    known.lorentzian(exactly(5), exactly(1e6), exactly(1), exactly(1e-6)),
    known.log_quadratic(exactly(1), exactly(0), exactly(1)),
    known.log_quadratic(exactly(0.1), exactly(-2), exactly(11)),
    known.huber(exactly(1), exactly(0.5), exactly(0), exactly(1), exactly(-0.5)),
    known.huber(exactly(0.5), exactly(-2), exactly(0), exactly(1), exactly(-1)),
    known.gaussian(exactly(0), exactly(0), exactly(-0.5)), known.gaussian(exactly(1), exactly(-3), exactly(-2)),
]  # fmt: skip

#: Numbers known up to rounding: the slopes must hold for every number they stand for.
LOOSE = Real(Fraction(1, 3) - Fraction(1, 10**9), Fraction(1, 3) + Fraction(1, 10**9))
