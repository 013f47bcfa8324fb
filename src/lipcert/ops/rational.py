"""Real numbers known exactly, or enclosed between two rationals: what pattern rules reason with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

#: Unit roundoff of float64.
_UNIT = Fraction(1, 2**53)


def below(x: Fraction) -> float:
    """Greatest double ≤ ``x``."""
    nearest = float(x)
    return nearest if Fraction(nearest) <= x else math.nextafter(nearest, -math.inf)


def above(x: Fraction) -> float:
    """Least double ≥ ``x``."""
    return -below(-x)


@dataclass(frozen=True)
class Real:
    """A real number in [low, high]; exact when the two agree."""

    low: Fraction
    high: Fraction

    @staticmethod
    def of(x: float, rounding: float = 0.0) -> Real | None:
        """What the double ``x``, computed with ``rounding`` units of error, stands for; None if unknown."""
        if not (math.isfinite(x) and 0.0 <= rounding <= 2.0**40):
            return None
        value = Fraction(x)
        # |true/x − 1| ≤ γ/(1 − γ) with γ = ku/(1 − ku); 2ku covers both since ku ≤ 2^-13.
        slack = 2 * Fraction(rounding) * _UNIT * abs(value)
        return Real(value - slack, value + slack)

    @property
    def exact(self) -> bool:
        """True when the number is known exactly."""
        return self.low == self.high

    @property
    def middle(self) -> float:
        """A double close to the number."""
        return float((self.low + self.high) / 2)

    @property
    def sign(self) -> int:
        """+1 or −1 when that is certain, 0 for the exact zero and for anything undecided."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def is_(self, value: Fraction | int) -> bool:
        """True when the number is certainly ``value``."""
        return self.low == self.high == value

    def __add__(self, other: Real) -> Real:
        return Real(self.low + other.low, self.high + other.high)

    def __neg__(self) -> Real:
        return Real(-self.high, -self.low)

    def __sub__(self, other: Real) -> Real:
        return self + (-other)

    def __mul__(self, other: Real) -> Real:
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Real(min(ends), max(ends))


def exactly(x: float | Fraction | int) -> Real:
    """The number ``x`` itself."""
    return Real(Fraction(x), Fraction(x))


def hull(*numbers: Real) -> tuple[float, float]:
    """(lower, upper): doubles that enclose all the numbers."""
    return below(min(n.low for n in numbers)), above(max(n.high for n in numbers))
