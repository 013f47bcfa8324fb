"""The increments of a network with parameters in them: what the searches of training run, differentiably."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lipcert.increments import Cell, EntryCell, Increments
from lipcert.network.graph import ActivationNode, Network
from lipcert.network.linear import Composition, LinearMap, OpMap
from lipcert.network.source import Values
from lipcert.training.binding import bound_function, bound_map, place_of


@dataclass(frozen=True, eq=False)
class Layers:
    """Increments on the whole space with the maps and slopes that belong to some parameters.

    Attributes:
        increments: their graph; its own numbers are those of the capture.
        maps: position of a linear relation → its maps, one for each parent.
        slopes: position of a cell → (c, d) with δz = c δv + d δw, |δw| ≤ |δv|; scalars of a block.
        gains: position of a cell → its greatest slope, where that does not depend on the parameters.
    """

    increments: Increments
    maps: dict[int, tuple[LinearMap, ...]]
    slopes: dict[int, tuple[Tensor, Tensor]]
    gains: dict[int, float]

    def gain(self, k: int) -> Tensor | float:
        """g with ‖δz‖₂ ≤ g ‖δv‖₂ at the cell k."""
        if k in self.gains:
            return self.gains[k]
        c, d = self.slopes[k]
        return (c.abs() + d).max()

    def run(self, start: Tensor, cell: Callable[[Cell, Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        """Values of all relations for a batch (B, *in_shape); ``cell`` is (relation, v, c, d) → z."""

        def linear(k: int, _: object, before: list[Tensor]) -> Tensor:
            rows = max((len(v) for v in before), default=len(start))
            images = [m.apply(widened(v, rows)) for m, v in zip(self.maps[k], before, strict=True)]
            if not images:
                return start.new_zeros(rows, *self.increments.relations[k].shape)
            return sum(images[1:], images[0])

        return self.increments.walk(lambda *_: start, linear, lambda k, relation, v: cell(relation, v, *self.slopes[k]))


def alone(linear: LinearMap, x: Tensor) -> Tensor:
    """The image of a batch of one; without vmap, which costs more than a small layer."""
    if isinstance(linear, Composition):
        for part in linear.maps:
            x = alone(part, x)
        return x
    return linear.function(x[0], *linear.constants)[None] if isinstance(linear, OpMap) else linear.apply(x)


def widened(v: Tensor, rows: int) -> Tensor:
    """With rows of zeros at the end."""
    return v if len(v) == rows else torch.cat([v, v.new_zeros(rows - len(v), *v.shape[1:])])


@dataclass(frozen=True, eq=False)
class Template:
    """A network whose ``Layers`` can be made for any parameters."""

    network: Network
    increments: Increments
    _fixed: dict[tuple[int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, network: Network) -> Template:
        """Of a fused network without open nodes."""
        return cls(network, Increments.of(network))

    def layers(self, values: Values) -> Layers:
        """With these parameters; gradients pass to them.

        Raises:
            InputError, CaptureError: as ``lipcert.training.binding.bind``.
        """
        nodes, linears = self.network.nodes, self.increments.linears
        maps = {
            k: tuple(bound_map(linear, values, place_of(nodes[k])) for linear in relation.maps)
            for k, relation in linears.items()
        }
        slopes = {cell.node: self._slopes(cell, values) for cell in self.increments.cells}
        return Layers(self.increments, maps, slopes, self._gains)

    @cached_property
    def _gains(self) -> dict[int, float]:
        return {c.node: c.gain(2.0) for c in self.increments.cells if not self._moving(c)}

    def _moving(self, cell: Cell) -> bool:
        """Whether slopes depend on the parameters."""
        node = self.network.nodes[cell.node]
        return isinstance(node, ActivationNode) and bool(node.function.sources)

    def _slopes(self, cell: Cell, values: Values) -> tuple[Tensor, Tensor]:
        node = self.network.nodes[cell.node]
        if isinstance(node, ActivationNode) and self._moving(cell):
            function = bound_function(node.function, values, place_of(node))
            low, high = (values.placed(torch.as_tensor(s)).expand(cell.shape) for s in (function.lower, function.upper))
            return (low + high) / 2, (high - low) / 2
        key = cell.node, values.dtype, torch.device(values.device)
        if key not in self._fixed:
            own = (cell.c, cell.d) if isinstance(cell, EntryCell) else _block(cell)
            c, d = (values.placed(s) for s in own)
            self._fixed[key] = c, d
        return self._fixed[key]


def _block(cell: Cell) -> tuple[Tensor, Tensor]:
    gain = torch.tensor(cell.gain(2.0), dtype=torch.float64)
    return torch.zeros_like(gain), gain
