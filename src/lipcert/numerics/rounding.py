"""Outward rounding of nonnegative float64 scalars.

Every function here returns the least double that is not below the exact result of its operation on
the given doubles (``norm_up``: a double not below it, within a few units in the last place). The
comparison with the exact result is done in exact arithmetic, so results that are exact stay exact:
``mul_up(1.0, 1.0) == 1.0``.

Conventions shared by all of them: arguments are nonnegative floats, infinity included; NaN and
negative numbers raise ``ValueError``; undetermined forms (``0 * inf``, ``0 / 0``, ``inf / inf``) give
``inf``, which is always an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

UNIT = 2.0**-53
"""Unit roundoff u of IEEE binary64, round to nearest."""

_WHOLE = 2.0**53

UNDERFLOW = 2.0**-1022
"""Least normal double. Bounds the absolute error that one operation can suffer from underflow, also
where a library flushes subnormal results to zero."""


def _checked(x: float) -> float:
    x = float(x)
    if not x >= 0.0:
        raise ValueError(f"expected a nonnegative number, got {x!r}")
    return x


def _fraction_up(x: Fraction) -> float:
    """Least double >= the rational ``x`` >= 0 (``inf`` above the largest double)."""
    try:
        c = x.numerator / x.denominator  # int / int is correctly rounded
    except OverflowError:
        return math.inf
    return c if Fraction(c) >= x else math.nextafter(c, math.inf)


def up(x: float) -> float:
    """Next double above ``x`` (``inf`` stays ``inf``)."""
    return math.nextafter(x, math.inf)


def down(x: float) -> float:
    """Next double below ``x`` (``-inf`` stays ``-inf``)."""
    return math.nextafter(x, -math.inf)


@lru_cache(maxsize=1 << 12)
def gamma(k: float) -> float:
    """``k u / (1 - k u)`` rounded up, the usual factor of an accumulated rounding error.

    Source: Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., Lemma 3.1.

    Args:
        k: number of roundings, >= 0.

    Raises:
        ValueError: ``k`` is negative or NaN, or ``k u >= 1/2``.
    """
    ku = Fraction(_checked(k) if math.isfinite(k) else 2.0**60) * Fraction(UNIT)
    if 2 * ku >= 1:
        raise ValueError(f"gamma({k}) is meaningless: k * 2**-53 >= 1/2")
    return _fraction_up(ku / (1 - ku))


def add_up(*xs: float) -> float:
    """Least double >= the exact sum of nonnegative doubles.

    Why this is an upper bound: ``math.fsum`` rounds the exact sum once, and so gives the sign of
    ``sum - c`` exactly.
    """
    values = [_checked(x) for x in xs]
    if any(math.isinf(x) for x in values):
        return math.inf
    try:
        c = math.fsum(values)
    except OverflowError:
        return math.inf
    if math.isinf(c):
        return c
    return up(c) if math.fsum([*values, -c]) > 0.0 else c


def mul_up(*xs: float) -> float:
    """Double >= the exact product of nonnegative doubles, rounded up after each factor."""
    product = 1.0
    for x in [_checked(x) for x in xs]:
        c = product * x
        if not math.isfinite(c):
            return math.inf
        product = up(c) if _exceeds(product, x, c) else c
    return product


def _exceeds(a: float, b: float, c: float) -> bool:
    """Whether a·b > c, exactly: as whole numbers times powers of two."""
    (m, e), (n, f), (k, g) = math.frexp(a), math.frexp(b), math.frexp(c)
    product, other = int(m * _WHOLE) * int(n * _WHOLE), int(k * _WHOLE)  # · 2^(e + f − 106), · 2^(g − 53)
    shift = e + f - g - 53
    return product << shift > other if shift >= 0 else product > other << -shift


def div_up(a: float, b: float) -> float:
    """Least double >= ``a / b``; ``inf`` for ``b == 0``."""
    a, b = _checked(a), _checked(b)
    if b == 0.0 or math.isinf(a):
        return math.inf
    if math.isinf(b):
        return 0.0
    return _fraction_up(Fraction(a) / Fraction(b))


def sqrt_up(x: float) -> float:
    """Least double >= the square root of ``x``."""
    x = _checked(x)
    c = math.sqrt(x)
    if math.isinf(c) or Fraction(c) ** 2 >= Fraction(x):
        return c
    return up(c)


def ldexp_up(x: float, exponent: int) -> float:
    """Least double >= ``x * 2**exponent`` for ``x`` >= 0 (``inf`` where that overflows)."""
    x = _checked(x)
    try:
        c = math.ldexp(x, exponent)
    except OverflowError:
        return math.inf
    if math.isinf(c) or c >= 2 * UNDERFLOW or x == 0.0:  # normal: exact
        return c
    exact = Fraction(x) * Fraction(2) ** exponent
    return c if Fraction(c) >= exact else up(c)


def ldexp_down(x: float, exponent: int) -> float:
    """Double <= ``x * 2**exponent`` for ``x`` >= 0, never negative."""
    x = _checked(x)
    try:
        c = math.ldexp(x, exponent)
    except OverflowError:
        return math.nextafter(math.inf, 0.0)
    if math.isinf(c) or c >= 2 * UNDERFLOW or x == 0.0:
        return c
    exact = Fraction(x) * Fraction(2) ** exponent
    return c if Fraction(c) <= exact else max(0.0, down(c))


def norm_up(xs: Iterable[float]) -> float:
    """Double >= the Euclidean norm ``sqrt(sum x_i**2)`` of nonnegative doubles.

    Why this is an upper bound: the values are scaled by a power of two so that squares neither
    overflow nor vanish, and scaling, squares, sum, root and scaling back are each rounded up.
    """
    values = [x for x in map(_checked, xs) if x > 0.0]
    if not values:
        return 0.0
    largest = max(values)
    if math.isinf(largest) or len(values) == 1:
        return largest
    exponent = math.frexp(largest)[1]
    scaled = [ldexp_up(x, -exponent) for x in values]
    return ldexp_up(sqrt_up(add_up(*(mul_up(x, x) for x in scaled))), exponent)
