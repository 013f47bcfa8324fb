"""A convolution's matrix, written straight from its geometry: no pass of the map per column, and no sum, so exact."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution: output o sees inputs o · stride − before + tap · dilation.

    Attributes:
        inside, outside: numbers of inputs and outputs.
        stride, before, dilation: as above; ``before`` is the padding in front.
    """

    inside: int
    outside: int
    stride: int
    before: int
    dilation: int

    def pairs(self, tap: int) -> tuple[Tensor, Tensor]:
        """(outputs, inputs) that a tap joins: of each at most one to another, and no other tap joins them."""
        outputs = torch.arange(self.outside)
        inputs = outputs * self.stride - self.before + tap * self.dilation
        real = (inputs >= 0) & (inputs < self.inside)  # the others are padding
        return outputs[real], inputs[real]


@dataclass(frozen=True)
class Geometry:
    """Of a convolution of one example.

    Attributes:
        axes: one per spatial axis.
        groups: of channels, each seen by its own.
        turned: it is the transposed one, and the kernel that of the convolution whose transpose it is.
    """

    axes: tuple[Axis, ...]
    groups: int
    turned: bool = False

    def matrix(self, kernel: Tensor) -> Tensor:
        """(outputs, inputs), flattened, in the kernel's dtype and on its device.

        Args:
            kernel: (channels out, channels in per group, *taps), of the convolution itself.
        """
        outside, per_group = kernel.shape[:2]
        outputs, inputs = ([getattr(axis, end) for axis in self.axes] for end in ("outside", "inside"))
        whole = kernel.new_zeros(outside, *outputs, per_group * self.groups, *inputs)
        every = itertools.product(*(range(n) for n in kernel.shape[2:]))
        for weights, taps in zip(kernel.flatten(2).unbind(2), every, strict=True):
            pairs = [axis.pairs(tap) for axis, tap in zip(self.axes, taps, strict=True)]
            if all(len(seeing) for seeing, _ in pairs):
                self._put(whole, weights, pairs)
        rows = math.prod((outside, *outputs))
        matrix = whole.reshape(rows, -1) if rows else whole.reshape(0, math.prod((per_group * self.groups, *inputs)))
        return matrix.mT.contiguous() if self.turned else matrix

    def _put(self, whole: Tensor, weights: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Entries of one tap, (channels out, channels in per group), at all its places."""
        count = len(pairs)

        def along(index: Tensor, axis: int) -> Tensor:
            return index.reshape([-1 if i == axis else 1 for i in range(count)]).to(weights.device)

        outputs = [along(o, axis) for axis, (o, _) in enumerate(pairs)]
        inputs = [along(i, axis) for axis, (_, i) in enumerate(pairs)]
        high, low = (n // self.groups for n in (whole.shape[0], whole.shape[count + 1]))
        for group in range(self.groups):
            rows, columns = (slice(group * n, (group + 1) * n) for n in (high, low))
            place: list[slice | Tensor] = [rows, *outputs, columns, *inputs]
            whole[tuple(place)] = weights[rows]  # an index that tensors part puts their axes first, the channels last
