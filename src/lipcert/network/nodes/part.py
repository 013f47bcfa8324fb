"""Parts of functions of several values: each has one of the relations that single arguments give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from lipcert.errors import CaptureError
from lipcert.network.joint import Joint
from lipcert.network.nodes.base import Node, explained
from lipcert.network.relations import BlockCell, EntryCell, Linear, Local, LocalGains, LocalMap, LocalSlopes, Relation


@dataclass(frozen=True, eq=False, kw_only=True)
class PartNode(Node):
    """Part number ``which`` of a function of all parents; the sum of all its parts is the function.

    The first part has the function's value, the others are 0 everywhere. Relations know nothing of values: what they
    say of all parts together is that f's increment is the sum of increments δw_k, each of which obeys a relation of the
    one parent ``function.reads[k]`` (``Joint``). The increments of the parts' values are others, with the same sum.

    Attributes:
        function: of the parents.
        which: number of the part.
        error: what to raise where nothing is known of the part's increment.
    """

    function: Joint
    which: int = 0
    error: CaptureError

    @property
    def arguments(self) -> tuple[int, ...]:
        """The parents that the function reads: all but a part before this one that its relation reads."""
        return self.parents[:-1] if self.which in self.function.chain else self.parents

    def value(self, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
        """f of the parents' values, or 0."""
        if self.which:
            return torch.zeros(len(like), *self.shape, dtype=like.dtype, device=like.device)
        result: Tensor = self.function.value(inputs)
        return result

    def relation(self, position: int, local: Local | None = None) -> Relation:
        """Slopes of one parent, or gains.

        Raises:
            CaptureError: nothing is known, or slopes that are infinite.
        """
        parents = (self.parents[self.function.reads[self.which]],)
        if isinstance(local, LocalSlopes) and bool((local.lower.isfinite() & local.upper.isfinite()).all()):
            return EntryCell(parents, self.shape, self.name, self.origin, position, local.lower, local.upper)
        if isinstance(local, LocalGains) and local.gains:
            return BlockCell(parents, self.shape, self.name, self.origin, position, local.gains, "gain")
        if isinstance(local, LocalMap):
            own, maps = ((), ()) if local.map is None else (parents, (local.map,))
            return Linear(own, self.shape, self.name, self.origin, maps)
        raise explained(self.error, local)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """With the function's tensors moved."""
        return replace(self, function=self.function.to(dtype, device))

    def update_hash(self, digest: Any) -> None:
        """Kind, wiring, function and number."""
        super().update_hash(digest)
        self.function.update_hash(digest)
        digest.update(repr(self.which).encode())
