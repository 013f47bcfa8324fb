"""Settings in exact arithmetic, where a place that floating point would blur follows from them."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from lipcert.network.nonlinearity import Slope
from lipcert.numerics.midrad import Near, Range


def ends(x: float) -> tuple[Fraction, Fraction]:
    """Least and greatest number that a setting stands for."""
    radius = Fraction(x.radius) if isinstance(x, Near) else Fraction(0)
    return Fraction(x) - radius, Fraction(x) + radius


def is_double(x: Fraction) -> bool:
    """Whether float64 has the number."""
    try:
        return Fraction(float(x)) == x
    except OverflowError:
        return False


def between(low: Fraction, high: Fraction) -> Range:
    """[low, high], exact for one double; any number where an end is beyond the range of doubles."""
    try:
        close = [float(low), float(high)]
    except OverflowError:
        return unknown()
    if low == high == Fraction(close[0]):
        return Range.exact(torch.tensor(close[0], dtype=torch.float64))
    a, b = (math.nextafter(end, to) for end, to in zip(close, (-math.inf, math.inf), strict=True))
    return Range.between(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))


def square(low: Fraction, high: Fraction) -> tuple[Fraction, Fraction]:
    """Least and greatest square of the numbers in [low, high]."""
    least, greatest = sorted((low * low, high * high))
    return Fraction(0) if low < 0 < high else least, greatest


def quotient(top: tuple[Fraction, Fraction], bottom: tuple[Fraction, Fraction]) -> Range:
    """The quotients of two intervals; any number where the divisor may be 0."""
    if bottom[0] <= 0 <= bottom[1]:
        return unknown()
    values = [t / b for t in top for b in bottom]
    return between(min(values), max(values))


def ends_of(low: Range, high: Range) -> tuple[Slope, Slope]:
    """From the least number of ``low`` to the greatest of ``high``; infinite where nothing is known."""
    return low.low.nan_to_num(-math.inf, posinf=math.inf, neginf=-math.inf), high.high.nan_to_num(
        math.inf, posinf=math.inf, neginf=-math.inf
    )


def one_sided(extreme: Range, below: Tensor, above: Tensor) -> tuple[Slope, Slope]:
    """The image of a function with one extremum, its least value where ``below``, its greatest where ``above``."""
    least, greatest = ends_of(extreme, extreme)
    return torch.where(below, least, -math.inf), torch.where(above, greatest, math.inf)


def unknown() -> Range:
    """Any number."""
    return Range(torch.zeros((), dtype=torch.float64), torch.full((), math.inf, dtype=torch.float64))
