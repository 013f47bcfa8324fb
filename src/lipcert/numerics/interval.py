"""Boxes: an interval for every entry of a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.numerics.midrad import Range


@dataclass(frozen=True, eq=False)
class Interval:
    """All z with ``low`` ≤ z ≤ ``high`` entry by entry, float64 of one shape; ends are infinite where unknown."""

    low: Tensor
    high: Tensor

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Interval:
        """Nothing is known."""
        infinite = torch.full(shape, math.inf, dtype=torch.float64)
        return cls(-infinite, infinite)

    @classmethod
    def point(cls, value: Tensor) -> Interval:
        """One double per entry."""
        return cls(value, value)

    @property
    def greatest(self) -> Tensor:
        """The largest absolute value of every entry."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def finite(self) -> Tensor:
        """Where both ends are known."""
        return self.low.isfinite() & self.high.isfinite()

    def meet(self, other: Interval) -> Interval:
        """What lies in both, where that is certainly not empty; rounding may make two true boxes of a point miss."""
        low, high = torch.maximum(self.low, other.low), torch.minimum(self.high, other.high)
        empty = low > high
        return Interval(torch.where(empty, self.low, low), torch.where(empty, self.high, high))

    def reshaped(self, shape: tuple[int, ...]) -> Interval:
        """In another shape."""
        return Interval(self.low.reshape(shape), self.high.reshape(shape))

    def expanded(self, shape: tuple[int, ...]) -> Interval:
        """Broadcast to another shape."""
        return Interval(self.low.expand(shape), self.high.expand(shape))


@dataclass(frozen=True, eq=False)
class Around(Interval):
    """The points of a box that are also within ``reach`` of ``centre`` in l2, a point that need not lie in the box."""

    centre: Tensor
    reach: float


def middle_of(box: Interval) -> tuple[Range, float]:
    """A point, how far points of the box may be from it entry by entry, and in l2; ∞ where that is not known apart."""
    if not isinstance(box, Around):
        return Range.between(box.low, box.high), math.inf
    far = torch.maximum(box.high - box.centre, box.centre - box.low).clamp(min=0.0)
    return Range(box.centre, torch.where(far > 0, torch.nextafter(far, torch.full_like(far, math.inf)), 0.0)), box.reach
