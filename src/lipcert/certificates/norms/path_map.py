"""The map from one source of the loop-transformed network to a node, as code: for networks too wide for matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.increments import EntryCell, Increments, Linear, Relation, ScaledIncrements
from lipcert.network.linear import LinearMap, Shape


def passes(relation: Relation) -> bool:
    """Whether anything goes through a node when w is zero everywhere: linear relations and cells with c ≠ 0."""
    return isinstance(relation, Linear) or (isinstance(relation, EntryCell) and bool(relation.c.any()))


def reachable(increments: Increments, source: int, target: int) -> bool:
    """Whether a path leads from source to target through nodes that pass something on."""
    reached = {source}
    for k in range(source + 1, target + 1):
        relation = increments.relations[k]
        if any(parent in reached for parent in relation.parents) and passes(relation):
            reached.add(k)
    return target in reached


@dataclass(frozen=True, eq=False)
class Pathway(LinearMap):
    """The value of node ``target`` as a linear function of w at a cell (``spiked``) or of the value of a node.

    Cells in between are replaced by c, everything else is zero. Both sides are in the units of ``transformed``.
    """

    transformed: ScaledIncrements
    source: int
    target: int
    spiked: bool
    positive: bool = False
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"

    @property
    def _relations(self) -> tuple[Relation, ...]:
        return self.transformed.increments.relations

    @property
    def in_shape(self) -> Shape:  # type: ignore[override]
        """Shape of the source."""
        return self._relations[self.source].shape

    @property
    def out_shape(self) -> Shape:  # type: ignore[override]
        """Shape of the target."""
        return self._relations[self.target].shape

    @property
    def rounding(self) -> float:  # type: ignore[override]
        """The longest path's sum of counts."""
        counts = {self.source: 1.0}
        for k in range(self.source + 1, self.target + 1):
            node = self._relations[k]
            inside = [parent for parent in node.parents if parent in counts]
            if not inside:
                continue
            if isinstance(node, Linear):
                pairs = zip(node.parents, self.transformed.maps[k], strict=True)
                counts[k] = max(counts[i] + m.rounding for i, m in pairs if i in counts) + len(inside)
            elif isinstance(node, EntryCell):
                counts[k] = counts[inside[0]] + 1.0
        return counts.get(self.target, 0.0)

    def _factor(self, values: Tensor, like: Tensor) -> Tensor:
        return (values.abs() if self.positive else values).to(like)

    def apply(self, x: Tensor) -> Tensor:
        """Image of a batch."""
        known: dict[int, Tensor] = {}
        known[self.source] = x * self._factor(self.transformed.cell_at[self.source].d, x) if self.spiked else x
        for k in range(self.source + 1, self.target + 1):
            node = self._relations[k]
            if isinstance(node, Linear):
                images = [
                    (m.absolute() if self.positive else m).to(x.dtype, x.device).apply(known[parent])
                    for parent, m in zip(node.parents, self.transformed.maps[k], strict=True)
                    if parent in known
                ]
                if images:
                    known[k] = sum(images[1:], images[0])
            elif isinstance(node, EntryCell) and node.parent in known and passes(node):
                known[k] = self._factor(node.c, x) * known[node.parent]
        return known[self.target]

    def absolute(self) -> LinearMap:
        """With absolute values of maps, c and d."""
        return Pathway(self.transformed, self.source, self.target, self.spiked, True)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearMap:
        """Itself: constants follow the argument."""
        return self

    def leaves(self) -> tuple[LinearMap, ...]:
        """Itself."""
        return (self,)

    def update_hash(self, digest: Any) -> None:
        """Source and target; for the interface only."""
        digest.update(f"pathway {self.source} {self.target} {self.spiked}".encode())
