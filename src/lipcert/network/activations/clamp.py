"""min(max(x, low), high) between numbers, ReLU included."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.activations.rationals import ends_of
from lipcert.network.nonlinearity import Kink, Nonlinearity, Piece, Slope
from lipcert.numerics.midrad import known


@dataclass(frozen=True, eq=False, repr=False)
class Clamp(Nonlinearity):
    """min(max(x, low), high); an end that is None is open. With low ≥ high it is the constant ``high``."""

    low: float | None = None
    high: float | None = None

    def value(self, x: Tensor) -> Tensor:
        """The clamp."""
        if self.low is None and self.high is None:
            return x
        if self.low == 0.0 and self.high is None:
            return torch.relu(x)
        return torch.clamp(x, _within(self.low, x.dtype), _within(self.high, x.dtype))

    @property
    def constant(self) -> bool:
        """Whether the ends meet."""
        return self.low is not None and self.high is not None and self.low >= self.high

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """The ends."""
        if self.constant:
            return ()
        ends = ((self.low, 1.0), (self.high, -1.0))
        return tuple(Kink(end, jump) for end, jump in ends if end is not None)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """0, 1, 0."""
        if self.constant:
            return (Piece(factor=0.0),)
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return Piece(right=low, factor=0.0), Piece(low, high), Piece(left=high, factor=0.0)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """The ends; a constant's is the upper one."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return ends_of(known(min(low, high)), known(high))


def _within(end: float | None, dtype: torch.dtype) -> float | None:
    """An end, or the nearest number of a dtype that does not reach so far, as that of a search."""
    most = torch.finfo(dtype).max if dtype.is_floating_point else math.inf
    return end if end is None or not math.isfinite(end) else min(max(end, -most), most)


RELU = Clamp("relu", 0.0, 1.0, 0.0, None)
