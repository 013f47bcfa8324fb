"""Expressions of lines alone as one activation: relu(x) − 0.1·relu(−x) is a leaky relu, x + relu(−2x) is |x|."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from lipcert.network.activations.clamp import Clamp
from lipcert.network.activations.piecewise import Abs, LeakyReLU, Softshrink, TwoSlopes
from lipcert.network.activations.rationals import between, is_double
from lipcert.network.nonlinearity import Kink, Nonlinearity, Piece, Slope
from lipcert.numerics.midrad import Near
from lipcert.ranges.composite import Composite
from lipcert.ranges.normal_form import number
from lipcert.ranges.steps import Apply, Combine, Step

#: Most kinks of one expression.
MOST_KINKS = 32
#: Slopes beyond are left to the steps: differences of them must be doubles, too.
GREATEST_RATE = 2.0**1000


@dataclass(frozen=True)
class Lines:
    """A continuous function: rates[i]·x + levels[i] between kinks[i − 1] and kinks[i]."""

    kinks: tuple[Fraction, ...]
    rates: tuple[Fraction, ...]
    levels: tuple[Fraction, ...]

    def piece(self, x: Fraction) -> int:
        """Number of the piece to the right of x."""
        return sum(k <= x for k in self.kinks)

    def at(self, x: Fraction) -> Fraction:
        """The value."""
        return self.rates[self.piece(x)] * x + self.levels[self.piece(x)]


@dataclass(frozen=True, eq=False, repr=False)
class Polyline(Composite):
    """Lines that meet at ``lines.kinks``, each a double; values step by step, slopes from the exact lines."""

    lines: Lines

    curved = False

    @property
    def pieces(self) -> tuple[Piece, ...]:  # type: ignore[override]
        """One per line."""
        ends = [-math.inf, *(float(k) for k in self.lines.kinks), math.inf]
        return tuple(
            Piece(a, b, between(rate, rate)) for a, b, rate in zip(ends, ends[1:], self.lines.rates, strict=False)
        )

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """Where lines meet."""
        rates = self.lines.rates
        jumps = (float(b - a) for a, b in itertools.pairwise(rates))
        return tuple(Kink(float(at), jump) for at, jump in zip(self.lines.kinks, jumps, strict=True))

    @property
    def image(self) -> tuple[Slope, Slope]:  # type: ignore[override]
        """The least and the greatest kink's value, unless the outer lines go on."""
        lines = self.lines
        values = [lines.at(k) for k in lines.kinks]
        least, greatest = between(min(values), max(values)).low, between(min(values), max(values)).high
        falls, rises = lines.rates[0] > 0 or lines.rates[-1] < 0, lines.rates[0] < 0 or lines.rates[-1] > 0
        return -math.inf if falls else least, math.inf if rises else greatest

    def own_image(self, low: torch.Tensor, high: torch.Tensor) -> None:  # type: ignore[override]
        """What ends and slopes tell is exact."""

    def own_slopes(self, low: torch.Tensor, high: torch.Tensor, fine: bool) -> None:  # type: ignore[override]
        """Those of ``pieces``."""


def polyline(name: str, steps: Sequence[Step]) -> Nonlinearity | Lines | None:
    """The activation that steps of lines are, or their one line; None for any other steps."""
    lines = lines_of(steps)
    if lines is None or len(lines.kinks) > MOST_KINKS or not all(is_double(k) for k in lines.kinks):
        return None
    if any(abs(rate) > GREATEST_RATE for rate in lines.rates):
        return None
    if not lines.kinks:
        rate = abs(lines.rates[0])
        return lines if rate == 0 or 2.0**-900 < rate < 2.0**900 else None
    low, high = (between(end, end) for end in (min(lines.rates), max(lines.rates)))
    return Polyline(name, float(low.low), float(high.high), tuple(steps), lines)


def lines_of(steps: Sequence[Step]) -> Lines | None:
    """The last of some steps, in exact arithmetic; None where one is no line, or not known exactly."""
    found = [Lines((), (Fraction(1),), (Fraction(0),))]
    for step in steps:
        arguments = [found[k] for k in step.arguments]
        if isinstance(step, Combine):
            factors = [number(factor) for factor in step.factors]
            offset = Fraction(0) if step.offset is None else number(step.offset)
            if offset is None or any(factor is None for factor in factors):
                return None
            result = _sum(arguments, [f for f in factors if f is not None], offset)
        else:
            outer = _of(step.function) if isinstance(step, Apply) else None
            if outer is None:
                return None
            result = _composed(outer, arguments[0])
        if len(result.kinks) > MOST_KINKS:
            return None
        found.append(result)
    return found[-1]


def _of(function: Nonlinearity) -> Lines | None:
    zero, one = Fraction(0), Fraction(1)
    if isinstance(function, Clamp) and not function.constant:
        ends = [None if e is None else Fraction(e) for e in (function.low, function.high)]
        pieces = [(zero, ends[0])] if ends[0] is not None else []
        pieces += [(one, zero)]
        pieces += [(zero, ends[1])] if ends[1] is not None else []
        rates, levels = zip(*pieces, strict=True)
        return Lines(tuple(e for e in ends if e is not None), rates, levels)
    if isinstance(function, Abs):
        return Lines((zero,), (-one, one), (zero, zero))
    if isinstance(function, LeakyReLU) and not isinstance(function.slope, Near):
        return _tidy(Lines((zero,), (Fraction(function.slope), one), (zero, zero)))
    if isinstance(function, Softshrink) and not isinstance(function.threshold, Near):
        t = Fraction(function.threshold)
        return _tidy(Lines((-t, t), (one, zero, one), (t, zero, -t))) if t else None
    if isinstance(function, TwoSlopes):
        numbers = (function.at, *function.left, *function.right)
        if any(isinstance(n, Near) for n in numbers):
            return None
        at, a, b, c, d = (Fraction(n) for n in numbers)
        return _tidy(Lines((at,), (a, c), (b, d))) if a * at + b == c * at + d else None
    return None


def _sum(arguments: Sequence[Lines], factors: Sequence[Fraction], offset: Fraction) -> Lines:
    kinks = sorted({k for lines in arguments for k in lines.kinks})
    rates, levels = [], []
    for x in _inside(kinks):
        places = [lines.piece(x) for lines in arguments]
        pieces = list(zip(arguments, places, factors, strict=True))
        rates.append(sum((f * lines.rates[p] for lines, p, f in pieces), Fraction(0)))
        levels.append(sum((f * lines.levels[p] for lines, p, f in pieces), offset))
    return _tidy(Lines(tuple(kinks), tuple(rates), tuple(levels)))


def _composed(outer: Lines, inner: Lines) -> Lines:
    """Outer of inner: kinks are those of inner, and where inner meets one of outer's."""
    kinks = set(inner.kinks)
    ends = [None, *inner.kinks, None]
    for (low, high), rate, level in zip(itertools.pairwise(ends), inner.rates, inner.levels, strict=True):
        for at in outer.kinks if rate else ():
            x = (at - level) / rate
            if (low is None or x > low) and (high is None or x < high):
                kinks.add(x)
    rates, levels = [], []
    for x in _inside(sorted(kinks)):
        p = inner.piece(x)
        q = outer.piece(inner.rates[p] * x + inner.levels[p])
        rates.append(outer.rates[q] * inner.rates[p])
        levels.append(outer.rates[q] * inner.levels[p] + outer.levels[q])
    return _tidy(Lines(tuple(sorted(kinks)), tuple(rates), tuple(levels)))


def _inside(kinks: Sequence[Fraction]) -> list[Fraction]:
    """A point inside every piece."""
    if not kinks:
        return [Fraction(0)]
    return [kinks[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(kinks)), kinks[-1] + 1]


def _tidy(lines: Lines) -> Lines:
    """Without kinks between equal lines."""
    kept = [i for i in range(len(lines.kinks)) if lines.rates[i] != lines.rates[i + 1]]
    chosen = [*kept, len(lines.kinks)]
    return Lines(
        tuple(lines.kinks[i] for i in kept), tuple(lines.rates[i] for i in chosen),
        tuple(lines.levels[i] for i in chosen),
    )  # fmt: skip
