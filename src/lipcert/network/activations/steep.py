"""Functions without a constant on their whole domain, of which intervals have slopes: powers, exp, logarithms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lipcert.network.activations import profiles
from lipcert.network.activations.smooth import HALF_PI
from lipcert.network.nonlinearity import Nonlinearity, Piece, Slope
from lipcert.network.slopes import slopes
from lipcert.numerics.midrad import Range, known

#: π, rounded up.
_PI = 2.0 * HALF_PI
#: log 2 and 1/log 2, 1/log 10, to within half a unit in the last place (``Range.literal`` grants four).
_LOG_TWO, _PER_LOG_TWO, _PER_LOG_TEN = 0.6931471805599453, 1.4426950408889634, 0.4342944819032518


class Steep(Nonlinearity):
    """φ on ``valid``, where it is monotone from kink to pole or as its derivative says.

    ``lower`` and ``upper`` are infinite, whatever ``valid`` is: only slopes on intervals are meant to be used.
    """

    function: ClassVar[Callable[[Tensor], Tensor]]

    def value(self, x: Tensor) -> Tensor:
        """φ(x), as the library computes it; of an enclosure (``ranges/enclosure.py``) by the facts of this class."""
        if isinstance(x, Tensor):
            return self.computed(x)
        given: Any = x
        return given.chain(self.enclosed(given.value), self._slope(given.value))

    def computed(self, x: Tensor) -> Tensor:
        """φ of doubles."""
        return type(self).function(x)

    def enclosed(self, x: Range) -> Range:
        """φ of a range, roundings included; a NaN midpoint where φ may not be defined, or is beyond the doubles."""
        return self._where_defined(x, self._enclosed(x))

    def _enclosed(self, x: Range) -> Range:
        """``enclosed`` where φ is defined on all of x, by default for an increasing φ."""
        return x.increasing(type(self).function)

    def _slope(self, x: Range) -> Range:
        low, high = slopes(self, x.low.nan_to_num(-math.inf, math.inf, -math.inf), _up_to(x))
        return self._where_defined(x, Range.between(low, high))

    def _where_defined(self, x: Range, result: Range) -> Range:
        certain = self.defined(x.low, x.high) & result.mid.isfinite() & result.reach.isfinite()
        return Range(torch.where(certain, result.mid, math.nan), torch.where(certain, result.reach, math.inf))


def _up_to(x: Range) -> Tensor:
    return x.high.nan_to_num(math.inf, math.inf, -math.inf)


class Exp(Steep):
    """eˣ."""

    function = torch.exp
    image = (0.0, math.inf)
    pieces = (Piece(profile=profiles.EXP),)


class Expm1(Steep):
    """eˣ − 1."""

    function = torch.expm1
    image = (-1.0, math.inf)
    pieces = (Piece(profile=profiles.EXP),)


class Exp2(Steep):
    """2ˣ."""

    function = torch.exp2
    image = (0.0, math.inf)
    pieces = (Piece(factor=Range.literal(_LOG_TWO), profile=profiles.EXP, rate=Range.literal(_LOG_TWO)),)


class Sinh(Steep):
    """(eˣ − e⁻ˣ)/2."""

    function = torch.sinh
    pieces = (Piece(profile=profiles.COSH),)


class Cosh(Steep):
    """(eˣ + e⁻ˣ)/2."""

    function = torch.cosh
    image = (1.0, math.inf)
    pieces = (Piece(profile=profiles.SINH),)

    def _enclosed(self, x: Range) -> Range:
        return super()._enclosed(x.abs())


class Log(Steep):
    """log x."""

    function = torch.log
    valid = (0.0, math.inf)
    pieces = (Piece(left=0.0, profile=profiles.monomial(-1.0)),)


class Log1p(Steep):
    """log(1 + x)."""

    function = torch.log1p
    valid = (-1.0, math.inf)
    pieces = (Piece(left=-1.0, profile=profiles.monomial(-1.0), shift=-1.0),)


class Log2(Steep):
    """log x/log 2."""

    function = torch.log2
    valid = (0.0, math.inf)
    pieces = (Piece(left=0.0, factor=Range.literal(_PER_LOG_TWO), profile=profiles.monomial(-1.0)),)


class Log10(Steep):
    """log x/log 10."""

    function = torch.log10
    valid = (0.0, math.inf)
    pieces = (Piece(left=0.0, factor=Range.literal(_PER_LOG_TEN), profile=profiles.monomial(-1.0)),)


class Asin(Steep):
    """arcsin x."""

    function = torch.asin
    valid = (-1.0, 1.0)
    image = (-HALF_PI, HALF_PI)
    pieces = (Piece(-1.0, 1.0, profile=profiles.ASIN),)


class Acos(Steep):
    """arccos x."""

    function = torch.acos
    valid = (-1.0, 1.0)
    image = (0.0, _PI)
    pieces = (Piece(-1.0, 1.0, factor=-1.0, profile=profiles.ASIN),)

    def _enclosed(self, x: Range) -> Range:
        return (-x).increasing(lambda t: torch.acos(-t))


class Acosh(Steep):
    """arcosh x."""

    function = torch.acosh
    valid = (1.0, math.inf)
    image = (0.0, math.inf)
    pieces = (Piece(left=1.0, profile=profiles.ACOSH),)


class Atanh(Steep):
    """artanh x."""

    function = torch.atanh
    valid = (-1.0, 1.0)
    pieces = (Piece(-1.0, 1.0, profile=profiles.ATANH),)


class Logit(Steep):
    """log(x/(1 − x))."""

    function = torch.logit
    valid = (0.0, 1.0)
    pieces = (Piece(0.0, 1.0, profile=profiles.LOGIT),)

    def _enclosed(self, x: Range) -> Range:
        """The library rounds x/(1 − x), whose logarithm is small near 1/2: log x − log(1 − x) instead."""
        return x.log() - (-x).increasing(torch.log1p)


@dataclass(frozen=True, eq=False, repr=False)
class Power(Steep):
    """factor · x^p, factor ≠ 0 and p ≠ 0, 1: for x ≠ 0 where p is whole, for x ≥ 0 where not, for all x where p ≥ 2.

    Both are the doubles themselves.
    """

    exponent: float
    factor: float = 1.0

    @property
    def whole(self) -> bool:
        """Whether p is a whole number."""
        return self.exponent == math.floor(self.exponent)

    @property
    def odd(self) -> bool:
        """Whether p is an odd number."""
        return self.whole and self.exponent % 2.0 == 1.0

    def computed(self, x: Tensor) -> Tensor:
        """By the library's own function where p has one."""
        named = {2.0: torch.square, 0.5: torch.sqrt, -0.5: torch.rsqrt}.get(self.exponent)
        if self.exponent == -1.0:
            return self.factor / x
        result = torch.pow(x, self.exponent) if named is None else named(x)
        return result if self.factor == 1.0 else self.factor * result

    def _enclosed(self, x: Range) -> Range:
        size = profiles.power(x.abs(), known(self.exponent)) * known(self.factor)
        if not self.odd:
            return size
        crosses = (x.low < 0) & (x.high > 0)
        return Range(torch.where(x.high <= 0, -size.mid, size.mid), torch.where(crosses, 2.0 * size.mag, size.rad))

    @property
    def valid(self) -> tuple[float, float]:
        """Negative numbers have whole powers only."""
        return (-math.inf, math.inf) if self.whole else (0.0, math.inf)

    def defined(self, low: Tensor, high: Tensor) -> Tensor:
        """Negative powers have a pole at 0."""
        inside = super().defined(low, high)
        return inside if self.exponent > 0 else inside & ((low > 0) | (high < 0))

    @property
    def image(self) -> tuple[Slope, Slope]:
        """One sign, unless p is odd."""
        if self.odd:
            return -math.inf, math.inf
        return (0.0, math.inf) if self.factor > 0 else (-math.inf, 0.0)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """factor·p·|x|^(p − 1), of the other sign left of 0 where p is even."""
        steep = known(self.exponent) * known(self.factor)
        right = Piece(left=0.0, factor=steep, profile=profiles.monomial(self.exponent, 1.0))
        if not self.whole:
            return (right,)
        left = steep if self.odd else -steep
        return Piece(right=0.0, factor=left, profile=right.profile, rate=-1.0), right


def steep(kind: type[Steep], name: str) -> Steep:
    """One without settings."""
    return kind(name, -math.inf, math.inf)


def power(exponent: float, factor: float = 1.0, name: str = "pow") -> Power:
    """factor · x^p."""
    return Power(name, -math.inf, math.inf, float(exponent), float(factor))
