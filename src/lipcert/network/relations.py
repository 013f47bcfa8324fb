"""What the increments of a node obey: linear relations and cells, and no third.

An increment δz of a node is its value at one point minus its value at another. A *linear* relation is
δz = Σ A_i δp_i. A *cell* is δz = c δv + d δw with |δw_j| ≤ |δv_j| entry by entry (``EntryCell``), or with
c = 0 and ‖δw‖ ≤ ‖δv‖ for the node as a whole or in groups (``BlockCell``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.errors import UnsupportedNormError
from lipcert.network.linear import LinearMap, Shape, size

if TYPE_CHECKING:
    from lipcert.network.origin import Origins
    from lipcert.numerics.interval import Interval


@dataclass(frozen=True, eq=False)
class LocalSlopes:
    """What is known of an activation where its argument lies in a box.

    Attributes:
        lower, upper: slopes of all pairs of points that the increments are of; float64, of the node's shape.
        box: of the argument.
    """

    lower: Tensor
    upper: Tensor
    box: Interval


@dataclass(frozen=True, eq=False)
class LocalGains:
    """What is known of a block where its argument lies in a part of the space.

    Attributes:
        gains: p → g_p for the p for which one is known.
        remark: where there is none, why.
    """

    gains: Mapping[float, float]
    remark: str = ""


@dataclass(frozen=True, eq=False)
class LocalMap:
    """The map of a part of an increment that is linear; None for 0."""

    map: LinearMap | None


Local = LocalSlopes | LocalGains | LocalMap


@dataclass(frozen=True, eq=False)
class Relation:
    """What one node's increments obey.

    Attributes:
        parents: positions of the nodes that the relation reads.
        shape: of the increment.
        name, origin: of the node, for reports and messages.
    """

    parents: tuple[int, ...]
    shape: Shape
    name: str
    origin: Origins

    @property
    def where(self) -> str:
        """The place in the user's code, for messages."""
        return str(self.origin[-1]) if self.origin else ""

    @property
    def size(self) -> int:
        """Number of entries of the increment."""
        return size(self.shape)


@dataclass(frozen=True, eq=False)
class Start(Relation):
    """The input: its increment is free."""


@dataclass(frozen=True, eq=False)
class Linear(Relation):
    """δz = Σ_i maps[i] δp_i, the parents p_i distinct; no parents: δz = 0."""

    maps: tuple[LinearMap, ...]


@dataclass(frozen=True, eq=False)
class Cell(Relation):
    """δz = c δv + d δw with δw bounded by δv; v is the one parent.

    Attributes:
        node: the node's own position.
    """

    node: int

    @property
    def parent(self) -> int:
        """Position of v."""
        return self.parents[0]

    @property
    def c(self) -> Tensor:
        """Float64, of the node's shape."""
        raise NotImplementedError

    @property
    def d(self) -> Tensor:
        """Float64 and ≥ 0, of the node's shape; rounded up."""
        raise NotImplementedError

    @property
    def block(self) -> bool:
        """Whether ‖δw‖ ≤ ‖δv‖ for the node as a whole is all that is known or used."""
        raise NotImplementedError

    @property
    def groups(self) -> int:
        """How many inequalities ‖δw_g‖ ≤ ‖δv_g‖ there are: one per entry, or, of a block, per group.

        Groups of a block are equal runs of the entries of z, in order, and as many of those of v.
        """
        return 1 if self.block else self.size

    @property
    def kind(self) -> str:
        """``activation``, ``gain`` or ``selection``, for reports."""
        raise NotImplementedError

    @property
    def remark(self) -> str:
        """Where the constants come from, for reports."""
        return ""

    def gain(self, p: float) -> float:
        """g with ‖δz‖_p ≤ g ‖δv‖_p, rounded up.

        Raises:
            UnsupportedNormError: none is known.
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class EntryCell(Cell):
    """δz_j = s_j δv_j with lower_j ≤ s_j ≤ upper_j.

    Attributes:
        lower, upper: float64, of the node's shape.
        whole: use ‖δw‖ ≤ ‖δv‖ for the layer as a whole only (weaker, one multiplier).
    """

    lower: Tensor
    upper: Tensor
    whole: bool = False

    @cached_property
    def c(self) -> Tensor:
        """The middle of the slopes."""
        middle = self.lower / 2 + self.upper / 2  # the sum of two large slopes might overflow
        return torch.where(self.lower == self.upper, self.lower, middle).contiguous()

    @cached_property
    def d(self) -> Tensor:
        """Half their distance, such that [c − d, c + d] contains [lower, upper]."""
        return torch.maximum(_difference_up(self.upper, self.c), _difference_up(self.c, self.lower)).contiguous()

    @property
    def block(self) -> bool:
        """Only on request."""
        return self.whole

    @property
    def kind(self) -> str:
        """An activation."""
        return "activation"

    @cached_property
    def greatest_slope(self) -> float:
        """The largest |slope| of all entries (0 for none)."""
        if not self.size:
            return 0.0
        return max(float(self.lower.abs().max()), float(self.upper.abs().max()))

    def gain(self, p: float) -> float:
        """The greatest |slope|, in every norm."""
        return self.greatest_slope

    @property
    def free(self) -> Tensor:
        """Which entries, flattened, have more than one slope."""
        return (self.lower < self.upper).reshape(-1)

    def fixing(self, slopes: Tensor) -> EntryCell:
        """With some entries' slopes fixed: ``slopes`` of the node's shape, NaN where an entry stays free."""
        free = slopes.isnan()
        return replace(self, lower=torch.where(free, self.lower, slopes), upper=torch.where(free, self.upper, slopes))


@dataclass(frozen=True, eq=False)
class BlockCell(Cell):
    """‖δz‖_p ≤ g_p ‖δv‖_p.

    Attributes:
        gains: p → g_p for the p for which a gain is known.
        label: ``gain`` or ``selection``.
        source: where the gains come from.
        runs: into how many equal runs entries are divided, each of v with one of z, for which g_2 holds one by one.
    """

    gains: Mapping[float, float]
    label: str
    source: str = ""
    runs: int = 1

    @property
    def c(self) -> Tensor:
        """0."""
        return torch.zeros(self.shape, dtype=torch.float64)

    @property
    def d(self) -> Tensor:
        """The gain in l2."""
        return torch.full(self.shape, self.gain(2.0), dtype=torch.float64)

    @property
    def block(self) -> bool:
        """Always."""
        return True

    @property
    def groups(self) -> int:
        """The runs."""
        return self.runs

    @property
    def kind(self) -> str:
        """The label."""
        return self.label

    @property
    def remark(self) -> str:
        """The source."""
        return self.source

    def gain(self, p: float) -> float:
        """g_p."""
        if p not in self.gains:
            raise UnsupportedNormError(
                f"{self.name} at {self.where} has no known constant in l{p:g}; "
                f"known: {', '.join(f'l{k:g}' for k in sorted(self.gains))}."
            )
        return self.gains[p]


def _difference_up(a: Tensor, b: Tensor) -> Tensor:
    """a − b ≥ 0, exact where the subtraction is (Knuth's two-sum tells), else rounded up."""
    difference = a - b
    back = difference - a
    error = (a - (difference - back)) + (-b - back)
    return torch.where(error == 0, difference, torch.nextafter(difference, torch.full_like(difference, math.inf)))
