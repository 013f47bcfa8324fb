"""Where costs go in a network: which nodes carry one, linear or quadratic, and which multipliers there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.floors import Floor, floors
from lipcert.certificates.cost_to_go.multipliers import Edge
from lipcert.network.graph import AffineNode, InputNode, Network
from lipcert.network.linear import Identity, Shape, size
from lipcert.ranges.build import applied, maximum
from lipcert.search.cost_to_go.maps import BothWays

if TYPE_CHECKING:
    from lipcert.certificates.cost_to_go.bases import Basis
    from lipcert.network.nonlinearity import MaxSelection, Nonlinearity

#: Position of an affine node → an upper bound of the norm of each of its maps.
Norms = Mapping[int, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Plan:
    """A network, read for the way back of a cost from its output.

    Attributes:
        network: with constants in the dtype and on the device of the search.
        norms: of the maps of affine nodes.
        relaxed: position → parents of the nodes that linear bounds replace.
        bases: position of a maximum → in which its windows hand on their quadratic costs.
    """

    network: Network
    norms: Norms
    relaxed: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    bases: Mapping[int, Basis] = field(default_factory=dict)

    @cached_property
    def floors(self) -> dict[int, Floor]:
        """The activations that leave their costs to the maximum before them."""
        return floors(self.network)

    @cached_property
    def levels(self) -> dict[int, float]:
        """Position of such a maximum → below which number nothing counts."""
        return {floor.maximum: floor.level for floor in self.floors.values()}

    @cached_property
    def functions(self) -> dict[int, Nonlinearity]:
        """What the other activations that a cost comes to compute."""
        found = ((k, _elementwise(self.network, k)) for k in sorted(self._costly) if k not in self.floors)
        return {k: function for k, function in found if function is not None}

    @cached_property
    def maxima(self) -> dict[int, MaxSelection]:
        """The maxima over windows that a cost comes to."""
        found = ((k, maximum(self.network.nodes[k])) for k in sorted(self._costly))
        return {k: windows for k, windows in found if windows is not None}

    @cached_property
    def affine(self) -> tuple[int, ...]:
        """The affine nodes that a cost comes to."""
        return tuple(k for k in sorted(self._costly) if isinstance(self.network.nodes[k], AffineNode))

    @cached_property
    def maps(self) -> dict[int, tuple[BothWays, ...]]:
        """Of these nodes."""
        return {k: tuple(BothWays(m) for m in self._affine_node(k).maps) for k in self.affine}

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """The nodes at which a cost is bounded by its range alone."""
        known = (*self.functions, *self.floors, *self.maxima, *self.affine)
        return tuple(
            k for k in sorted(self._costly) if k not in known and not isinstance(self.network.nodes[k], InputNode)
        )

    @cached_property
    def bent(self) -> tuple[int, ...]:
        """The affine nodes that a quadratic cost comes to."""
        found = {self.bending(k) for k in (*self.functions, *self.maxima)}
        for k in reversed(self.affine):
            if k in found:
                found |= {self.network.nodes[k].parents[i] for i in self.linked(k)}
        return tuple(k for k in self.affine if k in found)

    @cached_property
    def anchored(self) -> tuple[Edge, ...]:
        """The edges whose quadratic cost is centred at an anchor: those into a parent that is not affine."""
        edges = [(k, i) for k in self.bent for i in self.linked(k)]
        edges += [(k, 0) for k in (*self.functions, *self.maxima) if k not in self.bases]
        return tuple((k, i) for k, i in edges if self.network.nodes[k].parents[i] not in self.affine)

    @cached_property
    def ranged(self) -> tuple[int, ...]:
        """The nodes whose ranges are asked for."""
        nodes = self.network.nodes
        return tuple(
            sorted(
                {nodes[k].parents[0] for k in (*self.functions, *self.maxima)}
                | {*self.cuts}
                | {k for k in self.levels if k in self.maxima}
                | {nodes[k].parents[i] for k, i in self.anchored}
            )
        )

    def bending(self, k: int) -> int:
        """The node that takes the quadratic cost of an activation or a maximum."""
        return self.bases[k].position if k in self.bases else self.network.nodes[k].parents[0]

    def linked(self, k: int) -> tuple[int, ...]:
        """Places of the parents of an affine node that it depends on."""
        return tuple(i for i, norm in enumerate(self.gains(k)) if norm > 0)

    def gains(self, k: int) -> tuple[float, ...]:
        """Norms of the maps of an affine node."""
        maps, given = self._affine_node(k).maps, self.norms.get(k)
        if given is not None:
            return tuple(given)
        return tuple(abs(m.scale) if isinstance(m, Identity) else float("inf") for m in maps)

    def parent_shape(self, edge: Edge) -> Shape:
        """Of the parent on an edge."""
        return self.network.nodes[self.network.nodes[edge[0]].parents[edge[1]]].shape

    def smaller_side(self, k: int) -> int:
        """Of the matrix of an affine node."""
        return min(size(self.network.nodes[k].shape), sum(size(self.parent_shape((k, i))) for i in self.linked(k)))

    def reads_input(self, k: int) -> bool:
        """Whether the input is a parent."""
        return any(isinstance(self.network.nodes[p], InputNode) for p in self.network.nodes[k].parents)

    def values_at(self, x: Tensor) -> dict[int, Tensor]:
        """Values of all nodes at a batch of inputs."""
        with torch.no_grad():
            kept: dict[int, Tensor] = {}
            for k, node in enumerate(self.network.nodes):
                kept[k] = node.value([kept[p] for p in node.parents], x)
        return kept

    def _affine_node(self, k: int) -> AffineNode:
        node = self.network.nodes[k]
        assert isinstance(node, AffineNode)
        return node

    @cached_property
    def _costly(self) -> frozenset[int]:
        """The nodes that a cost of the output comes to; it goes no further than a node that is cut."""
        reached = {len(self.network.nodes) - 1}
        for k in range(len(self.network.nodes) - 1, -1, -1):
            node = self.network.nodes[k]
            if k not in reached:
                continue
            if isinstance(node, AffineNode):
                reached |= set(node.parents)
            elif _elementwise(self.network, k) is not None or maximum(node) is not None:
                reached |= {node.parents[0], self.bending(k)}
            else:
                reached |= set(self.relaxed.get(k, ()))
        return frozenset(reached)


def _elementwise(network: Network, k: int) -> Nonlinearity | None:
    """The function that a node applies to every entry of its parent; None if there is none, or it repeats entries."""
    node = network.nodes[k]
    function = applied(node)
    if function is None or size(network.nodes[node.parents[0]].shape) != size(node.shape):
        return None
    return function
