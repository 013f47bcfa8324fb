"""LipSDP's dual by forward and backward passes alone: values from below, and multipliers (docs/soundness.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.errors import InputError
from lipcert.increments import Cell
from lipcert.network.linear import Shape, size
from lipcert.problem import Norm
from lipcert.search.passes import Passes
from lipcert.search.sphere_ascent import Point, SphereAscent, force, input_axes, scaled_to_unit, unit

#: Stands for the multiplier of a neuron whose v is zero: free of cost, so as large as one likes.
DEAD = -1.0


class VectorNeuron(SphereAscent):
    """The ascent from a random start, or from where an earlier one ended, and the multipliers of its best points.

    Output norm ∞: one problem per output, all in one batch; else one problem. With ``growth`` every d is so many times
    larger: its multipliers leave a check that margin.
    """

    def __init__(
        self,
        network: Passes,
        norm: Norm,
        columns: int,
        generator: torch.Generator,
        start: Mapping[str, Tensor] | None = None,
        growth: float = 1.0,
    ) -> None:
        self.generator = generator
        increments = network.scaled.increments
        problems = size(increments.out_shape) if norm[1] == math.inf else 1
        columns = start["x"].shape[1] if start else columns

        def first(name: str, shape: Shape) -> Tensor:
            return _first(network, start, name, (problems, columns, *shape), generator)

        x = first("x", increments.in_shape)
        x = scaled_to_unit(x, None, input_axes(x, norm))
        units = {c.node: unit(first(f"unit.{c.node}", c.shape), None, c) for c in network.scaled.cells}
        super().__init__(network, norm, x, units, growth=growth)
        self.dead = 1e3 * self.tiny**0.5
        self._kept: dict[int, tuple[_Strength, Tensor]] = {}
        self._kept_g: Tensor | None = None
        self._kept_y: Tensor | None = None

    @property
    def state(self) -> dict[str, Tensor]:
        """Where the iteration is, in float32 on the CPU: a ``start`` for a network with the same layers."""
        parts = {"x": self._x, **{f"unit.{node}": unit for node, unit in self._units.items()}}
        return {name: part.float().cpu() for name, part in parts.items()}

    def widen(self, columns: int) -> None:
        """Go on with more columns: the new ones start small and random, the iteration starts afresh from there.

        A point that is stationary with few columns may be a saddle point with more; its multipliers are then far
        from feasible however long one iterates.
        """
        extra = columns - self.columns
        if extra < 1:
            raise ValueError(f"widen() needs more than the {self.columns} columns there are, not {columns}")
        self.columns = columns

        def wider(kept: Tensor) -> Tensor:
            new = torch.randn(self.problems, extra, *kept.shape[2:], generator=self.generator, dtype=torch.float64).to(
                kept
            )
            size_of_both = [t.square().sum(dim=1).mean().sqrt() for t in (kept, new)]
            return torch.cat([kept, new * (0.3 * size_of_both[0] / size_of_both[1])], dim=1)

        self._x = self._unit_input(wider(self._x))
        for cell in self.cells:
            self._units[cell.node] = unit(wider(self._units[cell.node]), None, cell)
        self._restart()

    def grow(self, growth: float) -> None:
        """Go on with another ``growth``; values and multipliers start afresh, the point does not."""
        for cell in self.cells:
            self._d[cell.node] = self._d[cell.node] * (growth / self.growth)
        self.growth = growth
        self._restart()
        self._best = torch.full_like(self._best, -1.0)
        self._kept = {}
        self.__dict__.pop("multipliers", None)

    def _remember(self, better: Tensor, point: Point) -> None:
        """Keep what the multipliers are made of, for the problems that got better."""
        self.__dict__.pop("multipliers", None)
        whole = bool(better.all())

        def update(old: Tensor | None, new: Tensor) -> Tensor:
            return new if old is None or whole else torch.where(self._each(better, new), new, old)

        for cell in self.cells:
            length = point.lengths[cell.node].reshape(self.problems, -1)
            strength = _Strength(point.h.get(cell.node), self._d[cell.node], cell)
            dead = length <= self.dead
            if cell.node in self._kept and not (whole and not bool(dead.any())):
                # Where v has vanished its last ratio stands: often λ is needed exactly although v = 0 at the optimum.
                old, before = self._kept[cell.node]
                merged = torch.where(dead, old.value(length), strength.value(length))
                strength.known = update(old.value(length), merged)
                length = update(before, torch.where(dead, before, length))
            self._kept[cell.node] = strength, length
        if point.g is not None:
            self._kept_g = update(self._kept_g, point.g)
        self._kept_y = update(self._kept_y, point.y)

    @cached_property
    def multipliers(self) -> dict[int, Tensor]:
        """Node → (problems, neurons) λ_j = d_j‖h_j‖/‖v_j‖ at the best points so far, DEAD where v_j = 0.

        A block has one entry.
        """
        return {
            node: torch.where(length <= self.dead, DEAD, strength.value(length) / length).double().cpu()
            for node, (strength, length) in self._kept.items()
        }

    @property
    def input_weights(self) -> Tensor:
        """(problems, n) weights with sum 1 at the best points so far for input norm ∞, ones for 2."""
        n = size(self.network.scaled.increments.in_shape)
        if self.norm[0] != math.inf or self._kept_g is None:
            return torch.ones(self.problems, n, dtype=torch.float64)
        return _shares(self._kept_g.square().sum(dim=1).sqrt().reshape(self.problems, -1)).cpu()

    @property
    def output_weights(self) -> Tensor:
        """(problems, m): e with Σ 1/e_i = 1 for output norm 1, one-hot rows for ∞, ones for 2."""
        m = size(self.network.scaled.increments.out_shape)
        if self.norm[1] == math.inf:
            return torch.eye(m, dtype=torch.float64)
        if self.norm[1] != 1:
            return torch.ones(1, m, dtype=torch.float64)
        if self._kept_y is None:
            return torch.full((1, m), float(m), dtype=torch.float64)
        return 1.0 / _shares(self._kept_y.square().sum(dim=1).sqrt()).cpu()


@dataclass
class _Strength:
    """‖d h‖ per neuron or block, worked out when it is asked for."""

    h: Tensor | None
    d: Tensor
    cell: Cell
    known: Tensor | None = None

    def value(self, like: Tensor) -> Tensor:
        """In the shape of ``like``, (problems, neurons)."""
        if self.known is None:
            self.known = torch.zeros_like(like) if self.h is None else force(self.h, self.d, self.cell)
            self.h = None
        return self.known


def _first(
    network: Passes, start: Mapping[str, Tensor] | None, name: str, wanted: Shape, generator: torch.Generator
) -> Tensor:
    """A tensor of the start, or a random one where there is no start."""
    if not start:
        return torch.randn(wanted, generator=generator, dtype=torch.float64).to(network.device, network.dtype)
    if name not in start or tuple(start[name].shape) != wanted:
        raise InputError(
            "start= is a bound of another network or pair of norms; LipSDP starts from its own Bound of a network "
            "with the same layers, for the same norm= and select=."
        )
    return start[name].to(network.device, network.dtype)


def _shares(strength: Tensor) -> Tensor:
    """Row by row: non-negative numbers divided by their sum, none quite zero."""
    strength = strength.double()
    total = strength.sum(dim=1, keepdim=True)
    strength = torch.where(total > 0, strength / total.clamp(min=1e-300), torch.ones_like(strength))
    strength = strength + 1e-7 * strength.mean(dim=1, keepdim=True)
    return strength / strength.sum(dim=1, keepdim=True)
