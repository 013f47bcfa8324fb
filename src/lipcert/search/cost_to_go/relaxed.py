"""Nodes that are no activation of one value, as linear functions of their parents from below: in floating point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipcert.network.graph import AffineNode
from lipcert.network.joint import Planes
from lipcert.ranges.linear_bounds import LinearBounds
from lipcert.search.cost_to_go.maps import BothWays

#: What is handed to a parent: its position and a linear cost (P, *shape of the parent).
Handed = tuple[int, Tensor]


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Linear bounds of such nodes on B domains, and which of these P functions are asked on.

    Attributes:
        planes: position → bounds of a function entry by entry, all tensors with a leading axis of domains.
        maps: position → bounds by linear maps, one per domain.
        parents: position → what either reads.
        example: (P,), the domain of each function, on the CPU.
    """

    planes: Mapping[int, Planes] = field(default_factory=dict)
    maps: Mapping[int, Sequence[AffineNode]] = field(default_factory=dict)
    parents: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    example: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @classmethod
    def of(
        cls, bounds: Sequence[LinearBounds], example: Tensor, dtype: torch.dtype, device: torch.device | str
    ) -> Relaxed:
        """Of the nodes that have such bounds on every domain."""
        planes: dict[int, Planes] = {}
        maps: dict[int, Sequence[AffineNode]] = {}
        parents: dict[int, tuple[int, ...]] = {}
        for k in set.intersection(*(set(b.planes) for b in bounds)) if bounds else ():
            own = [moved for b in bounds if (moved := _moved(b.planes[k], dtype, device)) is not None]
            affine = [p for p in own if isinstance(p, AffineNode)]
            flat = [p for p in own if isinstance(p, Planes)]
            if len(affine) == len(bounds):
                maps[k], parents[k] = affine, tuple(sorted({i for p in affine for i in p.parents}))
            elif len(flat) == len(bounds):
                slopes = tuple(torch.stack(s) for s in zip(*(p.slopes for p in flat), strict=True))
                ends = (torch.stack([p.least for p in flat]), torch.stack([p.greatest for p in flat]))
                planes[k], parents[k] = Planes(slopes, *ends), bounds[0].network.nodes[k].parents
        return cls(planes, maps, parents, example)

    def at(self, rows: Tensor) -> Relaxed:
        """Of some of the functions."""
        return replace(self, example=self.example[rows.cpu()]) if len(self.example) else self

    def back(self, k: int, g: Tensor) -> tuple[list[Handed], Tensor]:
        """Costs of the parents and a number (P,) that together are at most the cost g of the node, (P, *shape)."""
        if k in self.planes:
            at, own = self.example.to(g.device), self.planes[k]
            low, high = g.clamp(min=0.0) * own.least[at], g.clamp(max=0.0) * own.greatest[at]
            handed = [(p, g * slope[at]) for p, slope in zip(self.parents[k], own.slopes, strict=True)]
            return handed, (low + high).flatten(1).sum(1)
        total: dict[int, Tensor] = {}
        constant = g.new_zeros(len(g))
        for domain in self.example.unique().tolist():
            here = (self.example == domain).nonzero().reshape(-1).to(g.device)
            node, cost = self.maps[k][domain], g[here]
            value = cost.new_zeros(len(cost)) if node.offset is None else (cost * node.offset).flatten(1).sum(1)
            if node.offset_error is not None:
                value = value - (cost.abs() * node.offset_error).flatten(1).sum(1)
            constant = constant.index_add(0, here, value)
            for parent, linear in zip(node.parents, node.maps, strict=True):
                part = BothWays(linear).transpose(cost)
                before = total.get(parent)
                before = g.new_zeros(len(g), *part.shape[1:]) if before is None else before
                total[parent] = before.index_add(0, here, part)
        return list(total.items()), constant


def _moved(planes: object, dtype: torch.dtype, device: torch.device | str) -> Planes | AffineNode | None:
    """In the dtype of the search; None for what is no such bound or is infinite."""
    if isinstance(planes, AffineNode):
        error = planes.offset_error
        node = planes.to(dtype, device)
        if error is not None:
            node = replace(node, offset_error=error.to(device, dtype))
            return node if bool(error.isfinite().all()) else None
        return node
    if not isinstance(planes, Planes) or not bool((planes.least.isfinite() & planes.greatest.isfinite()).all()):
        return None
    slopes = tuple(s.to(device, dtype) for s in planes.slopes)
    return Planes(slopes, planes.least.to(device, dtype), planes.greatest.to(device, dtype))
