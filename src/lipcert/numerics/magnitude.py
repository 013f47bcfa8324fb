"""Non-negative numbers m · 2^e rounded upward, so that products over 100 layers neither overflow nor vanish."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipcert.numerics.rounding import UNIT, add_up, ldexp_up, mul_up, sqrt_up


@dataclass(frozen=True)
class Magnitude:
    """``mantissa · 2**exponent`` with mantissa 0 or in [1/2, 1]; every operation rounds up."""

    mantissa: float
    exponent: int = 0

    @classmethod
    def of(cls, value: float) -> Magnitude:
        """The magnitude of a finite float ≥ 0."""
        if not value >= 0.0 or math.isinf(value):
            raise ValueError(f"a magnitude needs a finite value ≥ 0, not {value}")
        return cls(*math.frexp(value))

    def __mul__(self, other: Magnitude) -> Magnitude:
        product = mul_up(self.mantissa, other.mantissa)
        mantissa, shift = math.frexp(product)
        return Magnitude(mantissa, self.exponent + other.exponent + shift if mantissa else 0)

    def __add__(self, other: Magnitude) -> Magnitude:
        high, low = (self, other) if self._key() >= other._key() else (other, self)
        if not low.mantissa:
            return high
        gap = high.exponent - low.exponent
        small = ldexp_up(low.mantissa, -gap) if gap < 1000 else 5e-324
        mantissa, shift = math.frexp(add_up(high.mantissa, small))
        return Magnitude(mantissa, high.exponent + shift)

    def times_power(self, exponent: int) -> Magnitude:
        """self · 2**exponent, exactly."""
        return Magnitude(self.mantissa, self.exponent + exponent if self.mantissa else 0)

    def hypot(self, other: Magnitude) -> Magnitude:
        """√(self² + other²), rounded up."""
        square = self * self + other * other
        odd = square.exponent % 2
        mantissa, shift = math.frexp(sqrt_up(math.ldexp(square.mantissa, odd)))
        return Magnitude(mantissa, (square.exponent - odd) // 2 + shift if mantissa else 0)

    def _key(self) -> tuple[bool, int, float]:
        return (self.mantissa > 0, self.exponent, self.mantissa)

    def __lt__(self, other: Magnitude) -> bool:
        return self._key() < other._key()

    def __float__(self) -> float:
        """The value rounded up: ``inf`` if it overflows, at least the least subnormal unless exactly zero."""
        if self.mantissa == 0.0:
            return 0.0
        if self.exponent > 1024:
            return math.inf
        return ldexp_up(self.mantissa, self.exponent)

    @property
    def log10(self) -> float:
        """Decimal logarithm rounded up (−inf for zero), for values that are not floats any more."""
        if self.mantissa == 0.0:
            return -math.inf
        if (self.mantissa, self.exponent) == (0.5, 1):
            return 0.0
        fraction, whole = math.log10(self.mantissa), self.exponent * math.log10(2.0)
        return math.nextafter(fraction + whole + 4.0 * UNIT * (abs(fraction) + abs(whole)), math.inf)


ONE = Magnitude.of(1.0)
ZERO = Magnitude.of(0.0)
