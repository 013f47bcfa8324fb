"""Maxima and sorts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipcert.network.nodes.base import Node
from lipcert.network.nonlinearity import Selection
from lipcert.network.relations import BlockCell, Local, Relation


@dataclass(frozen=True, eq=False, kw_only=True)
class SelectionNode(Node):
    """A maximum or a sort of its one parent's entries."""

    function: Selection

    def value(self, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
        """The selection's value."""
        return self.function(inputs[0])

    def relation(self, position: int, local: Local | None = None) -> Relation:
        """‖δz‖_p ≤ g_p ‖δv‖_p: the selection as a block; ``transform.expand`` makes more of it."""
        gains = {p: self.function.gain(p) for p in (1.0, 2.0, math.inf)}
        return BlockCell(self.parents, self.shape, self.name, self.origin, position, gains, "selection")

    def update_hash(self, digest: Any) -> None:
        """Kind, wiring and index table."""
        super().update_hash(digest)
        self.function.update_hash(digest)
