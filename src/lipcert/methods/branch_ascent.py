"""The vector-neuron ascent for many branch-and-bound nodes at once: what a relaxation's value is at least.

The nodes of a batch differ in their slopes only: c and d carry a leading axis of nodes, the maps are shared.
Untrusted: everything here is plain floating point, and the branch-tree certificate proves again what is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.increments import Cell, EntryCell, ScaledIncrements
from lipcert.network.linear import size
from lipcert.search.passes import Passes
from lipcert.search.sphere_ascent import Point, SphereAscent, force, unit

#: A pattern's entry for a free neuron; 0 and 1 stand for the slopes α and β.
FREE = -1

_TINY = 1e-300


class Neurons:
    """All entries of all cells in one row, with their slopes."""

    def __init__(self, transformed: ScaledIncrements) -> None:
        self.cells = transformed.cells
        self.places = []
        ends: list[tuple[Tensor, Tensor]] = []
        start = 0
        for cell in self.cells:
            self.places.append(slice(start, start + cell.size))
            start += cell.size
            both = (cell.lower, cell.upper) if isinstance(cell, EntryCell) else (cell.c, cell.c)
            ends.append((both[0].reshape(-1), both[1].reshape(-1)))
        self.count = start
        nothing = [torch.zeros(0, dtype=torch.float64)]
        self.low = torch.cat([low for low, _ in ends] or nothing)
        self.high = torch.cat([high for _, high in ends] or nothing)
        self.c = torch.cat([cell.c.reshape(-1) for cell in self.cells] or nothing)
        self.d = torch.cat([cell.d.reshape(-1) for cell in self.cells] or nothing)

    def slopes(self, patterns: Tensor) -> tuple[Tensor, Tensor]:
        """(c, d), each (B, count), for patterns (B, count) of −1, 0 and 1."""
        free = patterns == FREE
        fixed = torch.where(patterns == 1, self.high, self.low)
        return torch.where(free, self.c, fixed), torch.where(free, self.d, torch.zeros_like(self.d))

    def split(self, rows: Tensor) -> dict[int, Tensor]:
        """Rows (..., count) as node → (..., size of the cell)."""
        return {cell.node: rows[..., place] for cell, place in zip(self.cells, self.places, strict=True)}


@dataclass(eq=False)
class Vectors:
    """Points of the relaxation: X (B, r, n) and the unit vectors of all neurons (B, r, count)."""

    x: Tensor
    units: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> Vectors:
        """The points of some nodes."""
        return Vectors(self.x[rows], self.units[rows])


@dataclass(eq=False)
class Ascent:
    """What passes over a batch found: the best points and what belongs to them.

    Attributes:
        rho: (B,) squared value reached.
        multipliers: (B, count) λ_j = d_j‖h_j‖/‖v_j‖ (a block's in each of its entries).
        strength: (B, count) d_j‖h_j‖‖v_j‖.
        cosine: (B, count) between h_j and v_j.
        y: (B, r, m) outputs.
    """

    vectors: Vectors
    rho: Tensor
    multipliers: Tensor
    strength: Tensor
    cosine: Tensor
    y: Tensor

    @classmethod
    def join(cls, parts: list[Ascent]) -> Ascent:
        """One after the other."""
        return cls._combined(lambda *tensors: torch.cat(tensors), *parts)

    def replaced(self, rows: Tensor, by: Ascent) -> Ascent:
        """The same with other results for some nodes."""
        return self._combined(lambda old, new: old.index_copy(0, rows, new), self, by)

    @classmethod
    def _combined(cls, combine: Callable[..., Tensor], *parts: Ascent) -> Ascent:
        vectors = (combine(*(getattr(p.vectors, name) for p in parts)) for name in ("x", "units"))
        names = ("rho", "multipliers", "strength", "cosine", "y")
        return cls(Vectors(*vectors), *(combine(*(getattr(p, name) for p in parts)) for name in names))


class _NodeAscent(SphereAscent):
    """The ascent of a batch of nodes, which keeps the places of their best points."""

    def __init__(self, network: Passes, start: Vectors, neurons: Neurons, patterns: Tensor) -> None:
        c, d, units = (neurons.split(rows) for rows in (*neurons.slopes(patterns), start.units))

        def shaped(rows: Tensor, cell: Cell) -> Tensor:
            return rows.reshape(*rows.shape[:-1], *cell.shape)

        super().__init__(
            network,
            (2.0, 2.0),
            start.x.reshape(*start.x.shape[:2], *network.scaled.increments.in_shape),
            {cell.node: shaped(units[cell.node], cell) for cell in neurons.cells},
            {cell.node: (shaped(c[cell.node], cell), shaped(d[cell.node], cell)) for cell in neurons.cells},
        )
        self._best_x, self._best_units = self._x, dict(self._units)

    def _remember(self, better: Tensor, point: Point) -> None:
        whole = bool(better.all())

        def chosen(old: Tensor, new: Tensor) -> Tensor:
            return new if whole else torch.where(self._each(better, new), new, old)

        self._best_x = chosen(self._best_x, self._x)
        self._best_units = {node: chosen(old, self._units[node]) for node, old in self._best_units.items()}

    def ended(self) -> Ascent:
        """The best points with what belongs to them, by one pass more."""
        self._x, self._units = self._best_x, self._best_units
        point = self.evaluate(inputs=True)
        x = self._x.flatten(2)
        none = x.new_zeros(len(x), 0)
        units, lengths, forces, products = [x.new_zeros(*x.shape[:2], 0)], [none], [none], [none]
        for cell in self.cells:
            d, v, u = self._d[cell.node], point.v[cell.node], self._units[cell.node]
            h = point.h.get(cell.node, torch.zeros_like(u))
            units.append(u.flatten(2))
            each = cell.size // max(1, cell.groups)
            lengths.append(point.lengths[cell.node].flatten(1).repeat_interleave(each, dim=1))
            forces.append(force(h, d, cell).repeat_interleave(each, dim=1))
            products.append((d * h * (v if v.shape == u.shape else 0.0)).sum(dim=1).flatten(1))
        length, pull = torch.cat(lengths, dim=1), torch.cat(forces, dim=1)
        # v = 0: nothing is known of λ_j, and the repair gives it what it needs
        multipliers = torch.where(length > 1e-140, pull / length.clamp(min=1e-150), 0.0)
        strength = pull * length
        cosine = torch.cat(products, dim=1) / strength.clamp(min=_TINY)
        return Ascent(Vectors(x, torch.cat(units, dim=2)), point.value, multipliers, strength, cosine, point.y)


@dataclass(eq=False)
class Climber:
    """The vector-neuron iteration on batches of nodes."""

    transformed: ScaledIncrements
    neurons: Neurons = field(init=False)

    def __post_init__(self) -> None:
        self.neurons = Neurons(self.transformed)
        self._passes = Passes(self.transformed)

    def random(self, count: int, columns: int, generator: torch.Generator) -> Vectors:
        """Random points for ``count`` nodes."""
        n = size(self.transformed.increments.in_shape)
        x = torch.randn(count, columns, n, generator=generator, dtype=torch.float64)
        rows = torch.randn(count, columns, self.neurons.count, generator=generator, dtype=torch.float64)
        parts = self.neurons.split(rows)
        units = [unit(parts[cell.node], parts[cell.node], cell) for cell in self.neurons.cells]
        return Vectors(x / x.norm(dim=(1, 2), keepdim=True), torch.cat(units, dim=2) if units else rows)

    def run(self, patterns: Tensor, start: Vectors, passes: int) -> Ascent:
        """``passes`` forward and backward passes from ``start``; the best point of each node."""
        ascent = _NodeAscent(self._passes, start, self.neurons, patterns)
        for _ in range(passes):
            ascent.step()
        return ascent.ended()
