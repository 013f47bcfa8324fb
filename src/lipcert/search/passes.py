"""Forward and backward passes through scaled increments, in any precision and on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.increments import Cell, Linear, ScaledIncrements
from lipcert.network.linear import Composition, Dense, Identity, LinearMap

#: From a gradient at a value to the gradient at what it was computed from.
Pull = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Passes:
    """Runs values through scaled increments.

    Attributes:
        scaled: what is run.
        dtype, device: of the maps' constants.
    """

    scaled: ScaledIncrements
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"

    @cached_property
    def maps(self) -> Mapping[int, tuple[LinearMap, ...]]:
        """The linear relations' maps, small ones as matrices."""
        if self.dtype == torch.float64 and torch.device(self.device).type == "cpu":
            return self.scaled.matrices
        return self.scaled.written(self.dtype, self.device)

    def forward(self, inputs: Tensor, cell_output: Callable[[Cell, Tensor], Tensor]) -> list[Tensor]:
        """Values of all nodes, (B, *shape) each, for inputs (B, *in_shape); ``cell_output`` is (cell, v) → z."""
        return self.scaled.run(inputs, cell_output, self.maps)

    def both_ways(
        self, inputs: Tensor, cell_output: Callable[[Cell, Tensor], tuple[Tensor, Pull]]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor | None]]:
        """As ``forward``, with the way back.

        Args:
            inputs: (B, *in_shape).
            cell_output: function (cell, v) → z and the pull-back of a gradient from z to v.

        Returns:
            The output, and a function to call once: from a gradient there to the gradient at the input, or None where
            the output does not depend on it.
        """
        ways: list[list[tuple[int, Pull]]] = []

        def start(*_: object) -> Tensor:
            ways.append([])
            return inputs

        def linear(k: int, relation: Linear, before: list[Tensor]) -> Tensor:
            total, back = None, []
            for parent, map_, value in zip(relation.parents, self.maps[k], before, strict=True):
                image, pull = with_transpose(map_, value)
                total = image if total is None else total + image
                back.append((parent, pull))
            ways.append(back)
            return inputs.new_zeros(len(inputs), *relation.shape) if total is None else total

        def cell(_: int, relation: Cell, v: Tensor) -> Tensor:
            z, pull = cell_output(relation, v)
            ways.append([(relation.parent, pull)])
            return z

        output = self.scaled.increments.walk(start, linear, cell)[-1]

        def pull_back(gradient: Tensor) -> Tensor | None:
            pending = {len(ways) - 1: gradient}
            for k in range(len(ways) - 1, 0, -1):
                g = pending.pop(k, None)
                if g is None:
                    continue
                for parent, pull in ways[k]:
                    part = pull(g)
                    pending[parent] = pending[parent] + part if parent in pending else part
            return pending.get(0)

        return output, pull_back


def steps_to_output(scaled: ScaledIncrements) -> dict[int, int]:
    """For each cell: how many cells lie on the longest path from it to the output, itself included."""
    increments = scaled.increments
    depth = [0] * len(increments.relations)
    for k in range(len(depth) - 1, -1, -1):
        depth[k] = (k in increments.cell_at) + max((depth[c] for c in increments.consumers[k]), default=0)
    return {cell.node: depth[cell.node] for cell in increments.cells}


def with_transpose(linear: LinearMap, x: Tensor) -> tuple[Tensor, Pull]:
    """The image of a batch and the transposed map; the latter may use what the forward pass has computed, once."""
    if isinstance(linear, Composition):
        return _through(linear, x)
    if isinstance(linear, (Dense, Identity)):
        return linear.apply(x), linear.transpose
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        image = linear.apply(x)

    def transpose(y: Tensor) -> Tensor:
        return torch.autograd.grad(image, x, y, materialize_grads=True)[0]

    return image.detach(), transpose


def _through(linear: Composition, x: Tensor) -> tuple[Tensor, Pull]:
    pulls: list[Pull] = []
    for factor in linear.maps:
        x, pull = with_transpose(factor, x)
        pulls.append(pull)

    def transpose(y: Tensor) -> Tensor:
        for pull in reversed(pulls):
            y = pull(y)
        return y

    return x, transpose
