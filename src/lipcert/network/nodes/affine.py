"""Sums of linear maps of other nodes, with an offset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from lipcert.network.hashing import update_hash_with_tensor
from lipcert.network.linear import Identity, LinearMap
from lipcert.network.nodes.base import Node
from lipcert.network.relations import Linear, Local, Relation
from lipcert.numerics.midrad import Range

if TYPE_CHECKING:
    from lipcert.network.source import Source


@dataclass(frozen=True, eq=False, kw_only=True)
class AffineNode(Node):
    """``Σ_i maps[i](parent_i) + offset``; the parents are distinct.

    ``offset`` stands for a real tensor within ``offset_error`` of it, entry by entry; None when nothing is known. No
    bound reads it: what an expression is recognised as does, and the proof that a point is off a kink. ``source`` is
    the offset's, None where it is not known.
    """

    maps: tuple[LinearMap, ...] = ()
    offset: Tensor | None = None
    offset_error: Tensor | None = None
    source: Source | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the node is its one parent's value."""
        return (
            self.offset is None
            and len(self.maps) == 1
            and isinstance(self.maps[0], Identity)
            and self.maps[0].scale == 1.0
        )

    @property
    def known_offset(self) -> Range | None:
        """What the offset stands for, of the node's shape; a radius of infinity where nothing is known; None for 0."""
        if self.offset is None:
            return None
        unknown = torch.full((), math.inf, dtype=torch.float64)
        error = unknown if self.offset_error is None else torch.nan_to_num(self.offset_error, math.inf, math.inf)
        return Range.exact(self.offset.expand(self.shape)).widened(error.expand(self.shape))

    def value(self, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
        """The sum."""
        total: Tensor | None = None
        for linear, value in zip(self.maps, inputs, strict=True):
            image = linear.apply(value)
            total = image if total is None else total + image
        if total is None:
            total = torch.zeros(len(like), *self.shape, dtype=like.dtype, device=like.device)
        return total if self.offset is None else total + self.offset

    def relation(self, position: int, local: Local | None = None) -> Relation:
        """δz = Σ A_i δp_i."""
        return Linear(self.parents, self.shape, self.name, self.origin, self.maps)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """With maps and offset moved."""
        offset = None if self.offset is None else self.offset.to(device=device, dtype=dtype)
        return replace(self, maps=tuple(m.to(dtype, device) for m in self.maps), offset=offset)

    def update_hash(self, digest: Any) -> None:
        """Kind, wiring, maps and offset."""
        super().update_hash(digest)
        for linear in self.maps:
            linear.update_hash(digest)
        if self.offset is not None:
            update_hash_with_tensor(digest, self.offset)
