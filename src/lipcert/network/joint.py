"""Functions of several values that all depend on the input: what they are on boxes, and what their increments obey.

The increment of such a function is a sum of *parts*, each of which obeys a relation of one of the arguments alone
(``nodes/part.py``). For a product, xy − x'y' = ȳ(x − x') + x̄(y − y') with x̄ and ȳ the means of the two points' values,
which lie in every interval that holds both: δ(xy) = s δx + t δy with s in the range of y and t in that of x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lipcert.network.relations import Local, LocalSlopes
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import TINY, Range


@dataclass(frozen=True, eq=False)
class Planes:
    """Σ_i slopes[i]·z_i + least ≤ f(z) ≤ Σ_i slopes[i]·z_i + greatest for all z in a box, entry by entry."""

    slopes: tuple[Tensor, ...]
    least: Tensor
    greatest: Tensor


class Joint(ABC):
    """A function of several values, with what is known of it on boxes.

    Attributes:
        name: short, for reports.
        reads: for every part of the increment, which argument its relation reads.
        chain: part → a part before it that it reads as another argument, after all others; that one is not of the sum.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[int, ...]]
    chain: ClassVar[Mapping[int, int]] = {}

    @abstractmethod
    def value(self, inputs: Sequence[Any]) -> Any:
        """f of batches (B, *shape) of arguments; of enclosures (``ranges/enclosure.py``) too."""

    @abstractmethod
    def image(self, boxes: Sequence[Interval]) -> Interval:
        """A box of f on boxes, whose ends may be infinite; rounded outward."""

    @abstractmethod
    def obeyed(self, boxes: Sequence[Interval], anchored: Sequence[Interval] | None = None) -> tuple[Local, ...]:
        """What the parts of the increment obey, in the order of ``reads``; infinite where nothing is known.

        Args:
            boxes: of the arguments; every pair of points whose arguments lie there is meant.
            anchored: boxes of the arguments at one point x̂: only pairs of which x̂ is one point are meant then.
        """

    def planes(self, boxes: Sequence[Interval]) -> Planes | None:
        """Linear bounds of f on boxes; None where there are none."""
        return None

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """With its tensors, if any, in another dtype and on another device."""
        return self

    def update_hash(self, digest: Any) -> None:
        """Feed what determines the function to a hashlib object."""
        digest.update(self.name.encode())


class Product(Joint):
    """x ⊙ y for two values of one shape."""

    name = "product"
    reads = (0, 1)

    def value(self, inputs: Sequence[Any]) -> Any:
        """Entry by entry."""
        return inputs[0] * inputs[1]

    def image(self, boxes: Sequence[Interval]) -> Interval:
        """Least and greatest of the products of ends; 0 times infinity is 0, as the factor 0 is a number."""
        x, y = boxes
        ends = [(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]
        lows = [_end(a, b, -math.inf) for a, b in ends]
        highs = [_end(a, b, math.inf) for a, b in ends]
        return Interval(torch.stack(lows).amin(0), torch.stack(highs).amax(0))

    def obeyed(self, boxes: Sequence[Interval], anchored: Sequence[Interval] | None = None) -> tuple[Local, ...]:
        """Slopes of δx in the range of y, and of δy in that of x.

        With an anchor, xy − x̂ŷ = ŷ(x − x̂) + x(y − ŷ) = y(x − x̂) + x̂(y − ŷ): of the two, entry by entry, the one whose
        slopes vary less relative to what they are at the anchor.
        """
        x, y = boxes
        if anchored is None:
            return LocalSlopes(y.low, y.high, x), LocalSlopes(x.low, x.high, y)
        at_x, at_y = anchored
        first = _width(x) * at_y.greatest <= _width(y) * at_x.greatest  # where either is right, any choice is
        first = torch.where(x.finite, first | ~y.finite, False)
        return (
            LocalSlopes(torch.where(first, at_y.low, y.low), torch.where(first, at_y.high, y.high), x),
            LocalSlopes(torch.where(first, x.low, at_x.low), torch.where(first, x.high, at_x.high), y),
        )

    def planes(self, boxes: Sequence[Interval]) -> Planes:
        """Both sides parallel to the tangent plane at the middle of the box.

        Why these hold: xy − ax − by is, for any numbers a and b, linear in x and in y, hence least and greatest at
        corners of the box; its values there are computed with their roundings. For a and b the middles of y and x the
        offsets are the least that any plane has at the middle (McCormick 1976).
        """
        x, y = boxes
        finite = x.finite & y.finite
        x, y = (Interval(torch.where(finite, z.low, 0.0), torch.where(finite, z.high, 0.0)) for z in (x, y))
        a, b = (0.5 * z.low + 0.5 * z.high for z in (y, x))
        least, greatest = torch.full_like(a, math.inf), torch.full_like(a, -math.inf)
        for one in (x.low, x.high):
            for two in (y.low, y.high):
                corner = [Range.exact(t) for t in (one, two, a, b)]
                off = corner[0] * corner[1] - corner[2] * corner[0] - corner[3] * corner[1]
                least, greatest = torch.minimum(least, off.low), torch.maximum(greatest, off.high)
        known = finite & least.isfinite() & greatest.isfinite()
        return Planes(
            (torch.where(known, a, 0.0), torch.where(known, b, 0.0)),
            torch.where(known, least, -math.inf), torch.where(known, greatest, math.inf),
        )  # fmt: skip


class Blend(Joint):
    """n + z ⊙ d, given z, d, n and h = n + d: between n and h where z lies in [0, 1].

    For any numbers c its increment is c δh + (1 − c) δn + (z̄ − c) δd + d̄ δz, as for a product; c is the middle of z, so
    that for a gate that is hardly known no more than the sizes of δh and δn enters.
    """

    name = "blend"
    reads = (0, 1, 2, 3)

    def value(self, inputs: Sequence[Any]) -> Any:
        """Entry by entry."""
        return inputs[2] + inputs[0] * inputs[1]

    def image(self, boxes: Sequence[Interval]) -> Interval:
        """That of the sum, and where z lies in [0, 1] the hull of those of n and h."""
        z, d, n, h = boxes
        moved = Product().image([z, d])
        low, high = _sum(moved.low, n.low, -math.inf), _sum(moved.high, n.high, math.inf)
        between = (z.low >= 0) & (z.high <= 1)
        return Interval(
            torch.where(between, torch.maximum(low, torch.minimum(n.low, h.low)), low),
            torch.where(between, torch.minimum(high, torch.maximum(n.high, h.high)), high),
        )

    def obeyed(self, boxes: Sequence[Interval], anchored: Sequence[Interval] | None = None) -> tuple[Local, ...]:
        """Those of the product z ⊙ d with c taken off the slopes of δd, and δn and δh times 1 − c and c."""
        of_z, of_d = Product().obeyed(boxes[:2], None if anchored is None else anchored[:2])
        assert isinstance(of_d, LocalSlopes)
        middle = (0.5 * of_d.lower + 0.5 * of_d.upper).nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 1.0)
        c = (middle * 2.0**20).round() / 2.0**20  # 1 − c is a double, too
        away = LocalSlopes(_sum(of_d.lower, -c, -math.inf), _sum(of_d.upper, -c, math.inf), of_d.box)
        return of_z, away, LocalSlopes(1.0 - c, 1.0 - c, boxes[2]), LocalSlopes(c, c, boxes[3])

    def planes(self, boxes: Sequence[Interval]) -> Planes:
        """Those of the product, and n itself."""
        z, d, n, _ = boxes
        own = Product().planes([z, d])
        known = n.finite & own.least.isfinite() & own.greatest.isfinite()
        one = torch.where(known, torch.ones_like(n.low), 0.0)
        return Planes(
            (*(torch.where(known, slope, 0.0) for slope in own.slopes), one, torch.zeros_like(one)),
            torch.where(known, own.least, -math.inf), torch.where(known, own.greatest, math.inf),
        )  # fmt: skip


def _sum(a: Tensor, b: Tensor, direction: float) -> Tensor:
    """a + b, rounded towards ``direction``, exact where b is 0; nothing is known where it is no number."""
    total = a + b
    total = torch.where(b == 0, total, torch.nextafter(total, torch.full_like(total, direction)))
    return torch.where(total.isnan(), direction, total)


def _end(a: Tensor, b: Tensor, direction: float) -> Tensor:
    """a·b, rounded towards ``direction``."""
    product = a * b
    outward = torch.nextafter(product, torch.full_like(product, direction)) + math.copysign(TINY, direction)
    return torch.where((a == 0) | (b == 0), 0.0, outward)


def _width(box: Interval) -> Tensor:
    return box.high - box.low
