"""The map from one source of the loop-transformed network to a node, as code: for networks too wide for matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.network.graph import AffineNode, Network
from lipcert.network.linear import LinearMap, Shape
from lipcert.network.loop_transform import Cell, LoopTransformed


def reachable(network: Network, cells: Mapping[int, Cell], source: int, target: int) -> bool:
    """Whether a path leads from source to target through affine nodes and activations with c ≠ 0."""
    reached = {source}
    for k in range(source + 1, target + 1):
        node = network.nodes[k]
        passes = isinstance(node, AffineNode) or (k in cells and bool(cells[k].c.any()))
        if passes and any(parent in reached for parent in node.parents):
            reached.add(k)
    return target in reached


@dataclass(frozen=True, eq=False)
class Pathway(LinearMap):
    """The value of node ``target`` as a linear function of w at an activation (``spiked``) or of the value of a node.

    Activations in between are replaced by c, everything else is zero. Both sides are in the units of ``transformed``.
    """

    transformed: LoopTransformed
    cells: Mapping[int, Cell]
    source: int
    target: int
    spiked: bool
    positive: bool = False
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"

    @property
    def in_shape(self) -> Shape:  # type: ignore[override]
        """Shape of the source."""
        return self.transformed.network.nodes[self.source].shape

    @property
    def out_shape(self) -> Shape:  # type: ignore[override]
        """Shape of the target."""
        return self.transformed.network.nodes[self.target].shape

    @property
    def rounding(self) -> float:  # type: ignore[override]
        """The longest path's sum of counts."""
        counts = {self.source: 1.0}
        for k in range(self.source + 1, self.target + 1):
            node = self.transformed.network.nodes[k]
            inside = [parent for parent in node.parents if parent in counts]
            if not inside:
                continue
            if isinstance(node, AffineNode):
                pairs = zip(node.parents, self.transformed.exact_maps[k], strict=True)
                counts[k] = max(counts[i] + m.rounding for i, m in pairs if i in counts) + len(inside)
            elif k in self.cells:
                counts[k] = counts[inside[0]] + 1.0
        return counts.get(self.target, 0.0)

    def _factor(self, values: Tensor, like: Tensor) -> Tensor:
        return (values.abs() if self.positive else values).to(like)

    def apply(self, x: Tensor) -> Tensor:
        """Image of a batch."""
        nodes = self.transformed.network.nodes
        known: dict[int, Tensor] = {}
        known[self.source] = x * self._factor(self.cells[self.source].d, x) if self.spiked else x
        for k in range(self.source + 1, self.target + 1):
            node = nodes[k]
            if isinstance(node, AffineNode):
                images = [
                    (m.absolute() if self.positive else m).to(x.dtype, x.device).apply(known[parent])
                    for parent, m in zip(node.parents, self.transformed.exact_maps[k], strict=True)
                    if parent in known
                ]
                if images:
                    known[k] = sum(images[1:], images[0])
            elif k in self.cells and node.parents[0] in known and bool(self.cells[k].c.any()):
                known[k] = self._factor(self.cells[k].c, x) * known[node.parents[0]]
        return known[self.target]

    def absolute(self) -> LinearMap:
        """With absolute values of maps, c and d."""
        return Pathway(self.transformed, self.cells, self.source, self.target, self.spiked, True)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearMap:
        """Itself: constants follow the argument."""
        return self

    def leaves(self) -> tuple[LinearMap, ...]:
        """Itself."""
        return (self,)

    def update_hash(self, digest: Any) -> None:
        """Source and target; for the interface only."""
        digest.update(f"pathway {self.source} {self.target} {self.spiked}".encode())
