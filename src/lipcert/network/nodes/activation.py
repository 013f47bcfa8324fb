"""Elementwise activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from lipcert.network.nodes.base import Node
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.relations import EntryCell, Local, LocalSlopes, Relation


@dataclass(frozen=True, eq=False, kw_only=True)
class ActivationNode(Node):
    """An elementwise activation of its one parent."""

    function: Nonlinearity

    def value(self, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
        """φ of the parent's value."""
        return self.function(inputs[0])

    def relation(self, position: int, local: Local | None = None) -> Relation:
        """δz_j = s_j δv_j with α_j ≤ s_j ≤ β_j."""
        known = local if isinstance(local, LocalSlopes) else None
        lower, upper = self.function.slope_range(self.shape) if known is None else (known.lower, known.upper)
        return EntryCell(self.parents, self.shape, self.name, self.origin, position, lower, upper)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """With the function's tensors moved."""
        return replace(self, function=self.function.to(dtype, device))

    def update_hash(self, digest: Any) -> None:
        """Kind, wiring and function."""
        super().update_hash(digest)
        self.function.update_hash(digest)
