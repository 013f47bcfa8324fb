"""Functions of a quadratic without real zeros: its reciprocal, its logarithm; and squares that go on as lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.activations import profiles
from lipcert.network.activations.rationals import ends_of
from lipcert.network.activations.smooth import Smooth, vertex
from lipcert.network.nonlinearity import Kink, Nonlinearity, Piece, Slope
from lipcert.numerics.midrad import known


@dataclass(frozen=True, eq=False, repr=False)
class Lorentzian(Smooth):
    """k/(qx² + bx + c) with q > 0 and 4qc > b²: a bell k/(qD) · 1/(1 + t²), t = (x − s)/√D."""

    square: float
    linear: float
    constant: float
    top: float = 1.0

    def value(self, x: Tensor) -> Tensor:
        """The quotient."""
        return self.top / (x * (self.square * x + self.linear) + self.constant)

    @property
    def piece(self) -> Piece:
        """−k/(qD√D) · 2t/(1 + t²)²."""
        distance, rate, shift = vertex(self.square, self.linear, self.constant)
        height = known(self.top) * (known(self.square) * distance).reciprocal()
        return Piece(factor=height * rate, profile=profiles.LORENTZIAN, rate=rate, shift=shift)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """Between 0 and k/(qD)."""
        distance, _, _ = vertex(self.square, self.linear, self.constant)
        low, high = ends_of(*[known(self.top) * (known(self.square) * distance).reciprocal()] * 2)
        zero = torch.zeros((), dtype=torch.float64)
        return torch.minimum(torch.as_tensor(low), zero), torch.maximum(torch.as_tensor(high), zero)


@dataclass(frozen=True, eq=False, repr=False)
class LogQuadratic(Smooth):
    """log(qx² + bx + c) with q > 0 and 4qc > b²: log(qD) + log(1 + t²), t = (x − s)/√D."""

    square: float
    linear: float
    constant: float

    def value(self, x: Tensor) -> Tensor:
        """The logarithm."""
        return torch.log(x * (self.square * x + self.linear) + self.constant)

    @property
    def piece(self) -> Piece:
        """1/√D · 2t/(1 + t²)."""
        _, rate, shift = vertex(self.square, self.linear, self.constant)
        return Piece(factor=rate, profile=profiles.LOG_SQUARE, rate=rate, shift=shift)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """From log(qD) on."""
        distance, _, _ = vertex(self.square, self.linear, self.constant)
        return ends_of((known(self.square) * distance).log(), known(math.inf))


@dataclass(frozen=True, eq=False, repr=False)
class Huber(Nonlinearity):
    """qx² + o for |x| ≤ t, c|x| + d beyond, which meet at t > 0."""

    limit: float
    square: float
    offset: float
    slope: float
    shift: float

    def value(self, x: Tensor) -> Tensor:
        """The one or the other."""
        size = abs(x)
        return torch.where(size <= self.limit, size * size * self.square + self.offset, size * self.slope + self.shift)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """From the value at 0 or at ±t to infinity, on the side that c tells."""
        c, ends = known(self.slope), [known(self.offset), known(self.slope) * known(self.limit) + known(self.shift)]
        least = torch.minimum(ends[0].low, ends[1].low)
        greatest = torch.maximum(ends[0].high, ends[1].high)
        return torch.where(c.low >= 0, least, -math.inf), torch.where(c.high <= 0, greatest, math.inf)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """±t, unless the slopes meet, too."""
        jump = self.slope - 2.0 * self.square * self.limit
        return (Kink(-self.limit, jump), Kink(self.limit, jump)) if jump else ()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """−c, 2qx, c."""
        t, q, c = self.limit, known(self.square), known(self.slope)
        return (
            Piece(right=-t, factor=-c),
            Piece(-t, t, factor=q + q, profile=profiles.LINE),
            Piece(left=t, factor=c),
        )
