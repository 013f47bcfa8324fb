"""Blocks of which only gains are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from lipcert.network.nodes.base import Node
from lipcert.network.nonlinearity import GainFunction
from lipcert.network.relations import BlockCell, Local, LocalGains, Relation


@dataclass(frozen=True, eq=False, kw_only=True)
class GainNode(Node):
    """A block of known gain applied to its one parent."""

    function: GainFunction

    def value(self, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
        """The block's value."""
        return self.function(inputs[0])

    def relation(self, position: int, local: Local | None = None) -> Relation:
        """‖δz‖_p ≤ g_p ‖δv‖_p."""
        gains = local.gains if isinstance(local, LocalGains) else self.function.gains
        return BlockCell(
            self.parents, self.shape, self.name, self.origin, position, gains, "gain",
            self.function.source, self.function.runs(self.shape),
        )  # fmt: skip

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """With the function's tensors moved."""
        return replace(self, function=self.function.to(dtype, device))

    def update_hash(self, digest: Any) -> None:
        """Kind, wiring and function."""
        super().update_hash(digest)
        self.function.update_hash(digest)
