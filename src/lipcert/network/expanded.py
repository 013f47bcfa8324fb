"""Functions that are nearly linear on small boxes, as sums of parts: a map of each argument, and what is left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from lipcert.network.expansion import Expansion, diagonal, image_of_product, product_of_matrices
from lipcert.network.joint import Joint
from lipcert.network.linear import Identity, Shape
from lipcert.network.nonlinearity import GainFunction
from lipcert.network.relations import Local, LocalGains, LocalMap
from lipcert.numerics.interval import Interval


@dataclass(frozen=True, eq=False)
class Expanded(Joint):
    """A function of ``count`` arguments that has an ``Expansion`` on boxes.

    Its increment is the sum of the maps' and the rests'. For each argument: part i is the map's; part count + 2i, of
    the argument's shape and none of the sum, scales; part count + 2i + 1 is the rest and reads the scaled.
    """

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of arguments."""

    @property
    def reads(self) -> tuple[int, ...]:  # type: ignore[override]
        """The scaled argument is what comes after the arguments."""
        n = self.count
        return (*range(n), *(place for i in range(n) for place in (i, n)))

    @property
    def chain(self) -> Mapping[int, int]:  # type: ignore[override]
        """Rests read what is scaled."""
        return {self.count + 2 * i + 1: self.count + 2 * i for i in range(self.count)}

    @abstractmethod
    def expansion(self, boxes: Sequence[Interval], least: Tensor | None = None) -> Expansion | None:
        """On boxes of the arguments; ``least`` as for ``GainFunction.expansion``."""

    def obeyed(self, boxes: Sequence[Interval], anchored: Sequence[Interval] | None = None) -> tuple[Local, ...]:
        """By the expansion; the same for pairs with an anchor."""
        found = self.expansion(boxes[: self.count])
        return (LocalGains({}),) * len(self.reads) if found is None else self.by(found)

    def by(self, found: Expansion) -> tuple[Local, ...]:
        """What the parts obey by an expansion."""
        parts: list[Local] = [LocalMap(linear) for linear in found.maps]
        for scale, gains in zip(found.scales, found.gains, strict=True):
            parts += [LocalMap(diagonal(scale)), LocalGains(gains)]
        return tuple(parts)


@dataclass(frozen=True, eq=False)
class MatrixProduct(Expanded):
    """X Y of matrices with the same batches."""

    name = "matmul"
    count = 2

    def value(self, inputs: Sequence[Any]) -> Any:
        """The products."""
        return torch.matmul(inputs[0], inputs[1])

    def expansion(self, boxes: Sequence[Interval], least: Tensor | None = None) -> Expansion | None:
        """Around the middles of both."""
        return product_of_matrices(*boxes[:2])

    def image(self, boxes: Sequence[Interval]) -> Interval:
        """Around the product of the middles."""
        return image_of_product(*boxes[:2])


@dataclass(frozen=True, eq=False)
class SmoothBlock(Expanded):
    """A block of one argument that may be more than its gains."""

    block: GainFunction
    count = 1

    @property
    def name(self) -> str:  # type: ignore[override]
        """The block's."""
        return self.block.name

    def value(self, inputs: Sequence[Any]) -> Any:
        """Of batches."""
        return self.block(inputs[0]) if isinstance(inputs[0], Tensor) else self.block.value(inputs[0])

    def image(self, boxes: Sequence[Interval]) -> Interval:
        """Not asked for: interval arithmetic goes through the block's own code."""
        raise NotImplementedError

    def expansion(self, boxes: Sequence[Interval], least: Tensor | None = None) -> Expansion | None:
        """The block's."""
        return self.block.expansion(boxes[0], least)

    def obeyed(self, boxes: Sequence[Interval], anchored: Sequence[Interval] | None = None) -> tuple[Local, ...]:
        """By the expansion, or by the gains of the whole space."""
        found = self.expansion(boxes)
        return (
            self.bounded(LocalGains(self.block.gains_on(boxes[0])), boxes[0].low.shape)
            if found is None
            else self.by(found)
        )

    def bounded(self, gains: LocalGains, shape: Shape) -> tuple[Local, ...]:
        """No map, and nothing but gains."""
        return LocalMap(None), LocalMap(Identity(tuple(shape))), gains

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """With the block moved."""
        return replace(self, block=self.block.to(dtype, device))

    def update_hash(self, digest: Any) -> None:
        """The block's."""
        self.block.update_hash(digest)
