"""Real numbers known exactly, or enclosed between two rationals: what pattern rules reason with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from lipcert.errors import UnsupportedOpError
from lipcert.numerics.midrad import Near

#: Unit roundoff of float64.
_UNIT = Fraction(1, 2**53)
#: Least normal double: above it a conversion from a rational errs by a relative 2^-53 at most.
_LEAST_NORMAL = Fraction(1, 2**1022)
#: A computed number this small (or zero) may be the rest of an underflow: nothing is known of it.
_UNDERFLOW = 2.0**-900


class OutOfRange(UnsupportedOpError):  # noqa: N818  (a fact about a number, turned into an error of the op)
    """A number that a recognised expression needs is exact as a rational and has no faithful double."""


def _size(x: Fraction) -> str:
    """About how large ``x`` is, also where no double is."""
    bits = abs(x.numerator).bit_length() - x.denominator.bit_length()
    return f"about 1e{bits * 0.30103:+.0f}"


def nearest(x: Fraction) -> float:
    """The double nearest to ``x``, with a relative error of at most 2^-53.

    Raises:
        OutOfRange: ``x`` overflows, or lies so near to 0 that its double would have another size.
    """
    try:
        value = float(x)
    except OverflowError:
        raise OutOfRange(f"one of its numbers is {_size(x)}, above the range of doubles; rescale it.") from None
    if abs(x) < _LEAST_NORMAL and Fraction(value) != x:
        raise OutOfRange(f"one of its numbers is {_size(x)}, below the range of doubles; rescale it.")
    return value


def below(x: Fraction) -> float:
    """Greatest double ≤ ``x``.

    Raises:
        OutOfRange: ``x`` is beyond the range of doubles.
    """
    try:
        close = float(x)
    except OverflowError:
        raise OutOfRange(f"one of its numbers is {_size(x)}, above the range of doubles; rescale it.") from None
    return close if Fraction(close) <= x else math.nextafter(close, -math.inf)


def above(x: Fraction) -> float:
    """Least double ≥ ``x``.

    Raises:
        OutOfRange: ``x`` is beyond the range of doubles.
    """
    return -below(-x)


def root_above(x: Fraction, order: int) -> float:
    """A double ≥ x^(1/order), above it by less than a relative 2^-50, for x ≥ 0; exact where the root is a double.

    The root of x·2^(order·k), rounded up to a whole number of at least 55 bits, over 2^k: whole numbers only.

    Raises:
        OutOfRange: the root is beyond the range of doubles.
    """
    if x == 0:
        return 0.0
    shift = 56 - (x.numerator.bit_length() - x.denominator.bit_length()) // order
    grown = x * Fraction(2) ** (order * shift)
    # Newton's iteration from above on whole numbers: the greatest integer whose power is ≤ grown.
    guess = 1 << 58
    while True:
        better = ((order - 1) * guess + int(grown) // guess ** (order - 1)) // order
        if better >= guess:
            break
        guess = better
    low = guess if Fraction(guess) ** order == grown else guess + 1
    return above(low / Fraction(2) ** shift)


@dataclass(frozen=True)
class Real:
    """A real number in [low, high]; exact when the two agree."""

    low: Fraction
    high: Fraction

    @staticmethod
    def of(x: float, rounding: float = 0.0) -> Real | None:
        """What the double ``x``, computed with ``rounding`` units of relative error, stands for; None if unknown.

        A number that is only computed as 0, or as next to 0, is unknown: an intermediate may have underflowed.
        """
        if not (math.isfinite(x) and 0.0 <= rounding <= 2.0**40):
            return None
        if rounding and abs(x) < _UNDERFLOW:
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
        """A double close to the number; it knows how far off it may be."""
        value = nearest((self.low + self.high) / 2)
        if self.exact and Fraction(value) == self.low:
            return value
        return Near(value, above(max(self.high - Fraction(value), Fraction(value) - self.low)))

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
