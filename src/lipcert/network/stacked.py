"""Several maps into one space as one map of the inputs side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipcert.network.linear import LinearMap, Shape


class Stacked(LinearMap):
    """The map (x_1, …, x_k) ↦ Σ W_i x_i of the concatenated, flattened inputs."""

    def __init__(self, maps: tuple[LinearMap, ...]) -> None:
        self.maps = maps
        self.in_shape: Shape = (sum(m.in_size for m in maps),)
        self.out_shape: Shape = maps[0].out_shape
        self.rounding = max(m.rounding for m in maps) + len(maps)

    def apply(self, x: Tensor) -> Tensor:
        pieces = torch.split(x, [m.in_size for m in self.maps], dim=1)
        images = [m.apply(p.reshape(len(x), *m.in_shape)) for m, p in zip(self.maps, pieces, strict=True)]
        return sum(images[1:], images[0])

    def transpose(self, y: Tensor) -> Tensor:
        return torch.cat([m.transpose(y).reshape(len(y), m.in_size) for m in self.maps], dim=1)

    def absolute(self) -> LinearMap:
        return Stacked(tuple(m.absolute() for m in self.maps))

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearMap:
        return Stacked(tuple(m.to(dtype, device) for m in self.maps))

    def leaves(self) -> tuple[LinearMap, ...]:
        return tuple(leaf for m in self.maps for leaf in m.leaves())

    @property
    def is_zero(self) -> bool:
        """Whether every map is zero."""
        return all(m.is_zero for m in self.maps)

    def update_hash(self, digest: Any) -> None:
        digest.update(f"stacked {len(self.maps)}".encode())
        for linear in self.maps:
            linear.update_hash(digest)
