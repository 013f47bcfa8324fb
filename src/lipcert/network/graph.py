"""The Network: an immutable graph of linear maps, activations, gain blocks, selections and open values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lipcert.errors import CaptureError
from lipcert.network.linear import Shape
from lipcert.network.nodes import (
    ActivationNode,
    AffineNode,
    GainNode,
    HeadNode,
    InputNode,
    Node,
    OpenNode,
    PartNode,
    SelectionNode,
)

__all__ = [
    "ActivationNode", "AffineNode", "GainNode", "HeadNode", "InputNode", "Network", "Node", "OpenNode", "PartNode",
    "SelectionNode",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Network:
    """f: R^n → R^m as an immutable DAG; the last node is the output.

    Shapes carry the captured graph's leading batch dimension of 1; ``forward`` adds a true batch in front.
    """

    nodes: tuple[Node, ...]

    @property
    def in_shape(self) -> Shape:
        """Shape of the input node."""
        return self.nodes[0].shape

    @property
    def out_shape(self) -> Shape:
        """Shape of the output node."""
        return self.nodes[-1].shape

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the positions of the nodes that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for position, node in enumerate(self.nodes):
            for parent in node.parents:
                readers[parent].append(position)
        return tuple(tuple(r) for r in readers)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over kinds, wiring, shapes, functions and parameters, in canonical order.

        It is over what every node is, not over the op it was called as; a node that is its parent's value counts as
        the parent.
        """
        digest = hashlib.sha256()
        place: list[int] = []
        distinct = 0
        for node in self.nodes:
            parents = tuple(place[p] for p in node.parents)
            if isinstance(node, AffineNode) and node.is_identity:
                place.append(parents[0])
                continue
            place.append(distinct)
            distinct += 1
            replace(node, parents=parents).update_hash(digest)
        return digest.hexdigest()

    @property
    def refusal(self) -> CaptureError | None:
        """Why there is no constant on the whole space, told of the first node without one; None where there may be."""
        return next((node.error for node in self.nodes if isinstance(node, OpenNode)), None)

    @property
    def hopeless(self) -> CaptureError | None:
        """The error of the first node of which nothing is known on any domain; None where there is none."""
        open_ = [node for node in self.nodes if isinstance(node, OpenNode)]
        return next((n.error for n in open_ if n.steep is None and n.block is None and not n.combines), None)

    def values(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Run on a batch (B, *in_shape), yielding (position, value); values are dropped after their last use."""
        alive: dict[int, Tensor] = {}
        last_use = [max(c, default=len(self.nodes)) for c in self.consumers]
        for position, node in enumerate(self.nodes):
            inputs = [alive[p] for p in node.parents]
            value = node.value(inputs, x)
            alive[position] = value
            yield position, value
            for parent in node.parents:
                if last_use[parent] == position:
                    alive.pop(parent, None)

    def forward(self, x: Tensor) -> Tensor:
        """f on a batch: (B, *in_shape) → (B, *out_shape), in the dtype of x (constants must match: see ``to``)."""
        *_, (_, value) = self.values(x)
        return value

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Network:
        """The same network with its constants in another dtype and on another device."""
        return Network(tuple(node.to(dtype, device) for node in self.nodes))
