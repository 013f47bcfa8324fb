"""The network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lipcert.network.nodes.base import Node
from lipcert.network.relations import Local, Relation, Start


@dataclass(frozen=True, eq=False, kw_only=True)
class InputNode(Node):
    """The network's input, always node 0."""

    def value(self, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
        """The batch itself."""
        return like

    def relation(self, position: int, local: Local | None = None) -> Relation:
        """Free."""
        return Start((), self.shape, self.name, self.origin)
