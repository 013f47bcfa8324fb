"""The graph of a network's increments: one relation per node, two kinds, one traversal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from lipcert.network.linear import Shape
from lipcert.network.relations import BlockCell, Cell, EntryCell, Linear, Relation, Start

if TYPE_CHECKING:
    from lipcert.network.graph import Network
    from lipcert.ranges import Ranges


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Increments:
    """δz of every node of a network, as relations in topological order; the last is the output's.

    Every pair of points of the domain gives increments that obey all relations; what is proved of all solutions of
    the relations therefore holds for the network. Position k is node k of the network it was built from.
    """

    relations: tuple[Relation, ...]

    @classmethod
    def of(cls, network: Network, ranges: Ranges | None = None) -> Increments:
        """The increments of a network on the domain that the ranges are for; None: on the whole space."""
        local = {} if ranges is None else ranges.local
        return cls(tuple(node.relation(position, local.get(position)) for position, node in enumerate(network.nodes)))

    def walk(
        self,
        start: Callable[[int, Start], T],
        linear: Callable[[int, Linear, list[T]], T],
        cell: Callable[[int, Cell, T], T],
    ) -> list[T]:
        """One value per node, in topological order.

        Args:
            start: (position, relation) → value of the input.
            linear: (position, relation, parents' values) → value.
            cell: (position, relation, v's value) → value.
        """
        values: list[T] = []
        for position, relation in enumerate(self.relations):
            if isinstance(relation, Cell):
                values.append(cell(position, relation, values[relation.parent]))
            elif isinstance(relation, Linear):
                values.append(linear(position, relation, [values[p] for p in relation.parents]))
            else:
                assert isinstance(relation, Start)
                values.append(start(position, relation))
        return values

    @property
    def in_shape(self) -> Shape:
        """Shape of the input."""
        return self.relations[0].shape

    @property
    def out_shape(self) -> Shape:
        """Shape of the output."""
        return self.relations[-1].shape

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The cells, in topological order."""
        return tuple(relation for relation in self.relations if isinstance(relation, Cell))

    @cached_property
    def linears(self) -> Mapping[int, Linear]:
        """Position → linear relation, in topological order."""
        return {k: relation for k, relation in enumerate(self.relations) if isinstance(relation, Linear)}

    @cached_property
    def cell_at(self) -> Mapping[int, Cell]:
        """Position → cell."""
        return {cell.node: cell for cell in self.cells}

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each position, those of the relations that read it."""
        readers: list[list[int]] = [[] for _ in self.relations]
        for position, relation in enumerate(self.relations):
            for parent in relation.parents:
                readers[parent].append(position)
        return tuple(tuple(r) for r in readers)

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Positions through which every path from input to output passes, input and output included."""
        reach = 0
        result = []
        for k, readers in enumerate(self.consumers):
            if reach <= k:
                result.append(k)
            reach = max(reach, max(readers, default=k))
        return tuple(result)

    def layerwise(self) -> Increments:
        """With one inequality ‖δw‖ ≤ ‖δv‖ per layer instead of one per entry (weaker, fewer multipliers)."""
        return Increments(
            tuple(
                replace(relation, whole=True)
                if isinstance(relation, EntryCell)
                else replace(relation, runs=1)
                if isinstance(relation, BlockCell)
                else relation
                for relation in self.relations
            )
        )

    def fixing(self, slopes: Mapping[int, Tensor]) -> Increments:
        """With some entries' slopes fixed: position of an entry cell → slopes, NaN where an entry stays free."""
        return Increments(
            tuple(
                relation.fixing(slopes[k]) if k in slopes and isinstance(relation, EntryCell) else relation
                for k, relation in enumerate(self.relations)
            )
        )
