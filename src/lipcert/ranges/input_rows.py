"""Linear functions of the input: their greatest values on boxes and balls, and affine nodes that are such functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lipcert.network.graph import AffineNode
from lipcert.network.linear import LinearMap
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import TINY, UNIT, UP, lengths

if TYPE_CHECKING:
    from lipcert.ranges.linear_bounds import LinearBounds

#: p → the norm dual to that of an l_p ball.
DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of coefficients of the input, with what is needed of them for every domain.

    Attributes:
        matrix: (R, n).
    """

    matrix: Tensor
    _lengths: dict[float, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, linear: LinearMap) -> Rows:
        """Those of a map; kept as long as the map is."""
        found = _WRITTEN.get(linear)
        if found is None:
            found = _WRITTEN[linear] = cls(linear.matrix())
        return found

    @cached_property
    def sizes(self) -> Tensor:
        """|matrix|."""
        return self.matrix.abs()

    def lengths(self, p: float) -> Tensor:
        """‖row‖_p, rounded up."""
        if p not in self._lengths:
            self._lengths[p] = lengths(self.matrix, p)
        return self._lengths[p]

    def chosen(self, index: Tensor) -> Rows:
        """Some of the rows."""
        result = Rows(self.matrix[index], {p: length[index] for p, length in self._lengths.items()})
        result.__dict__["sizes"] = self.sizes[index]
        return result

    def turned(self) -> Rows:
        """Times −1."""
        result = Rows(-self.matrix, self._lengths)
        result.__dict__["sizes"] = self.sizes
        return result

    def over_box(self, box: Interval) -> tuple[Tensor, Tensor]:
        """(greatest value of rows·x for x in the box, what its rounding may be)."""
        n = self.matrix.shape[1]
        gamma = (n + 4.0) * UNIT * UP
        low, high = box.low.reshape(-1), box.high.reshape(-1)
        middle = 0.5 * low + 0.5 * high
        reach = torch.maximum(high - middle, middle - low) * UP + TINY
        if bool(reach.isfinite().all()):
            best = self.matrix @ middle + self.sizes @ reach
            return best, (self.sizes @ (middle.abs() + reach)) * 2.0 * gamma + 2.0 * n * TINY
        flat = self.matrix
        parts = torch.where(flat == 0, 0.0, torch.where(flat > 0, flat * high, flat * low))  # no number stays none
        return parts.sum(dim=1), parts.abs().sum(dim=1) * gamma + n * TINY


#: Maps of the input that were written down, for the next domain.
_WRITTEN: WeakKeyDictionary[LinearMap, Rows] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """An affine node that reads the input alone: its rows are those of its map, whatever the domain.

    What is computed of c·x + b is off by at most the same in both directions: the error of the written map, γ|W| max|x|
    (``_reach``), that of the offset, and the rounding of the sum.
    """

    bounds: LinearBounds
    position: int
    node: AffineNode
    rows: Rows

    def box(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high) of some entries."""
        reach, floor = self.bounds.reach(self.position, 0, self.node.maps[0], 0)
        error = (reach.reshape(-1)[entries] + 2.0 * floor) * UP
        offset = self.node.known_offset
        middle = torch.zeros_like(error) if offset is None else offset.mid.reshape(-1)[entries]
        if offset is not None:
            error = error + offset.rad.reshape(-1)[entries] * UP
        for ball in () if self.bounds.domain is None else self.bounds.domain.balls():
            self.rows.lengths(DUAL[float(ball.p)])  # of all rows, for the next domain
        some = self.rows.chosen(entries)
        high = self.bounds.topped(*self.bounds.support(some, middle, error))
        low = self.bounds.topped(*self.bounds.support(some.turned(), -middle, error))
        return -low, high
