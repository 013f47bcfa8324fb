"""Smooth activations with one bounded derivative: sigmoids, their integrals, waves, roots, the Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.network.activations import profiles
from lipcert.network.activations.rationals import between, ends, ends_of, one_sided, quotient, square
from lipcert.network.nonlinearity import Nonlinearity, Piece, Slope
from lipcert.numerics.midrad import Range, known

#: π/2, rounded up.
HALF_PI = 1.5707963267948968


class Smooth(Nonlinearity):
    """One piece."""

    @property
    def piece(self) -> Piece:
        """The derivative on the whole line."""
        raise NotImplementedError

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The one piece."""
        return (self.piece,)


class Tanh(Smooth):
    """tanh x."""

    image = (-1.0, 1.0)
    piece = Piece(profile=profiles.TANH)

    def value(self, x: Tensor) -> Tensor:
        """Tanh x."""
        return torch.tanh(x)


class Sigmoid(Smooth):
    """1/(1 + e⁻ˣ)."""

    image = (0.0, 1.0)
    piece = Piece(profile=profiles.SIGMOID)

    def value(self, x: Tensor) -> Tensor:
        """σ(x)."""
        return torch.sigmoid(x)


class LogSigmoid(Smooth):
    """log σ(x)."""

    image = (-math.inf, 0.0)
    piece = Piece(profile=profiles.LOGISTIC, rate=-1.0)

    def value(self, x: Tensor) -> Tensor:
        """Log σ(x)."""
        return F.logsigmoid(x)


class Softsign(Smooth):
    """x/(1 + |x|)."""

    image = (-1.0, 1.0)
    piece = Piece(profile=profiles.SOFTSIGN)

    def value(self, x: Tensor) -> Tensor:
        """x/(1 + |x|)."""
        return F.softsign(x)


class Tanhshrink(Smooth):
    """x − tanh x."""

    piece = Piece(profile=profiles.TANHSHRINK)

    def value(self, x: Tensor) -> Tensor:
        """X − tanh x."""
        return F.tanhshrink(x)


class Sin(Smooth):
    """sin x."""

    image = (-1.0, 1.0)
    piece = Piece(profile=profiles.COS)

    def value(self, x: Tensor) -> Tensor:
        """Sin x."""
        return torch.sin(x)


class Cos(Smooth):
    """cos x."""

    image = (-1.0, 1.0)
    piece = Piece(profile=profiles.MINUS_SIN)

    def value(self, x: Tensor) -> Tensor:
        """Cos x."""
        return torch.cos(x)


class Atan(Smooth):
    """arctan x."""

    image = (-HALF_PI, HALF_PI)
    piece = Piece(profile=profiles.ATAN)

    def value(self, x: Tensor) -> Tensor:
        """Arctan x."""
        return torch.atan(x)


class Asinh(Smooth):
    """arsinh x."""

    piece = Piece(profile=profiles.ASINH)

    def value(self, x: Tensor) -> Tensor:
        """Arsinh x."""
        return torch.asinh(x)


class Erf(Smooth):
    """erf x."""

    image = (-1.0, 1.0)
    piece = Piece(profile=profiles.ERF)

    def value(self, x: Tensor) -> Tensor:
        """Erf x."""
        return torch.erf(x)


class Erfc(Smooth):
    """1 − erf x."""

    image = (0.0, 2.0)
    piece = Piece(factor=-1.0, profile=profiles.ERF)

    def value(self, x: Tensor) -> Tensor:
        """1 − erf x."""
        return torch.erfc(x)


@dataclass(frozen=True, eq=False, repr=False)
class Softplus(Smooth):
    """(1/β) log(1 + exp(βx)), any β ≠ 0."""

    beta: float

    def value(self, x: Tensor) -> Tensor:
        """A threshold of 40 changes no double: log1p(exp(−40)) is below the last bit of 40."""
        return F.softplus(x, self.beta, 40.0)

    @property
    def piece(self) -> Piece:
        """σ(βx)."""
        return Piece(profile=profiles.LOGISTIC, rate=self.beta)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """0 is the limit at one end, the least value for β > 0 and the greatest for β < 0."""
        beta = known(self.beta)
        return one_sided(known(0.0), beta.low > 0, beta.high < 0)


@dataclass(frozen=True, eq=False, repr=False)
class RatioSoftsign(Smooth):
    """x/(c + m|x|) with c, m > 0."""

    constant: float
    rate: float

    def value(self, x: Tensor) -> Tensor:
        """x/(c + m|x|)."""
        return x / (self.constant + self.rate * x.abs())

    @property
    def piece(self) -> Piece:
        """1/c · 1/(1 + |mx/c|)²."""
        inverse = known(self.constant).reciprocal()
        return Piece(factor=inverse, profile=profiles.SOFTSIGN, rate=known(self.rate) * inverse)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """±1/m."""
        limit = known(self.rate).reciprocal()
        return ends_of(-limit, limit)


@dataclass(frozen=True, eq=False, repr=False)
class InverseRoot(Smooth):
    """x/√(q x² + c) with q, c > 0."""

    constant: float
    square: float

    def value(self, x: Tensor) -> Tensor:
        """x/√(q x² + c)."""
        return x / torch.sqrt(x * (self.square * x) + self.constant)

    @property
    def piece(self) -> Piece:
        """1/√c · (1 + q x²/c)^(−3/2)."""
        inverse = known(self.constant).sqrt().reciprocal()
        return Piece(factor=inverse, profile=profiles.INVERSE_ROOT, rate=known(self.square).sqrt() * inverse)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """±1/√q."""
        limit = known(self.square).sqrt().reciprocal()
        return ends_of(-limit, limit)


@dataclass(frozen=True, eq=False, repr=False)
class Root(Smooth):
    """√(qx² + bx + c) with q > 0 and 4qc > b²: √q times the distance of x to a point off the line."""

    square: float
    linear: float
    constant: float

    def value(self, x: Tensor) -> Tensor:
        """The root."""
        return torch.sqrt(x * (self.square * x + self.linear) + self.constant)

    @property
    def piece(self) -> Piece:
        """√q · t/√(1 + t²), t = (x + b/2q)/√D, D = c/q − (b/2q)²."""
        _, rate, shift = vertex(self.square, self.linear, self.constant)
        return Piece(factor=known(self.square).sqrt(), profile=profiles.ROOT, rate=rate, shift=shift)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """The least radicand is c − b²/4q."""
        (q, _), b, (c, _) = (ends(s) for s in (self.square, self.linear, self.constant))
        least = max(Fraction(0), c - square(*b)[1] / (4 * q)) if q > 0 else Fraction(0)
        return ends_of(between(least, least).sqrt(), known(math.inf))


def vertex(square_: float, linear: float, constant: float) -> tuple[Range, Range, Range]:
    """(D, 1/√D, s) with qx² + bx + c = q((x − s)² + D): D in rationals, as it cancels."""
    (q, q_high), (b, b_high), (c, c_high) = (ends(s) for s in (square_, linear, constant))
    least, most = square(b, b_high)
    corners = [(4 * s * o - d) / (4 * s * s) for s in (q, q_high) for o, d in ((c, most), (c_high, least))]
    distance = between(max(Fraction(0), min(corners)), _largest(q, q_high, c_high, least, corners))
    rate = distance.sqrt().reciprocal()
    rate = Range(rate.mid.nan_to_num(1.0), torch.where(rate.mid.isfinite(), rate.rad, math.inf))
    return distance, rate, quotient((-b_high / 2, -b / 2), (q, q_high))


def _largest(q: Fraction, q_high: Fraction, c: Fraction, b2: Fraction, corners: list[Fraction]) -> Fraction:
    """The greatest c/q − b²/(4q²) over [q, q_high]: at an end, or at 2/q = 4c/b² where its derivative vanishes."""
    inside = [c * c / b2] if c and b2 and q < b2 / (2 * c) < q_high else []
    return max([*corners, *inside])


@dataclass(frozen=True, eq=False, repr=False)
class Gaussian(Smooth):
    """exp(c + bx − qx²), q > 0."""

    constant: float
    linear: float
    square: float

    def value(self, x: Tensor) -> Tensor:
        """The bell."""
        return torch.exp(x * (self.linear - self.square * x) + self.constant)

    @property
    def piece(self) -> Piece:
        """−h√(2q) t exp(−t²/2), t = √(2q)(x − b/2q), of height h = exp(c + b²/4q)."""
        (q, q_high), (b, b_high) = (ends(s) for s in (self.square, self.linear))
        rate = between(2 * q, 2 * q_high).sqrt()
        shift = quotient((b / 2, b_high / 2), (q, q_high))
        return Piece(factor=self._height * rate, profile=profiles.GAUSSIAN, rate=rate, shift=shift)

    @property
    def _height(self) -> Range:
        (q, q_high), (b, b_high), (c, c_high) = (ends(s) for s in (self.square, self.linear, self.constant))
        least, most = square(b, b_high)
        return between(c + least / (4 * q_high), c_high + most / (4 * q)).exp()

    @property
    def image(self) -> tuple[Slope, Slope]:
        """From 0, the limits, to h."""
        return ends_of(known(0.0), self._height)
