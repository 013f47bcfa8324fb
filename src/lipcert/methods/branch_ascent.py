"""The vector-neuron ascent for many branch-and-bound nodes at once: what a relaxation's value is at least.

The nodes of a batch differ in their slopes only: c and d carry a leading axis of nodes, the maps are shared.
Untrusted: everything here is plain floating point, and the branch-tree certificate proves again what is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.increments import Cell, EntryCell, ScaledIncrements
from lipcert.network.linear import size
from lipcert.search.passes import Passes

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

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        vectors = Vectors(torch.cat([p.vectors.x for p in parts]), torch.cat([p.vectors.units for p in parts]))
        return cls(vectors, *(joined(n) for n in ("rho", "multipliers", "strength", "cosine", "y")))


@dataclass(eq=False)
class Climber:
    """The vector-neuron iteration (DESIGN §3) on a batch of nodes: u ← h/‖h‖, X ← G/‖G‖, extrapolated."""

    transformed: ScaledIncrements
    neurons: Neurons = field(init=False)

    def __post_init__(self) -> None:
        self.neurons = Neurons(self.transformed)
        self._passes = Passes(self.transformed)

    def random(self, count: int, columns: int, generator: torch.Generator) -> Vectors:
        """Random points for ``count`` nodes."""
        n = size(self.transformed.increments.in_shape)
        x = torch.randn(count, columns, n, generator=generator, dtype=torch.float64)
        units = torch.randn(count, columns, self.neurons.count, generator=generator, dtype=torch.float64)
        return Vectors(x / x.norm(dim=(1, 2), keepdim=True), self._normalised(units, units))

    def _normalised(self, rows: Tensor, otherwise: Tensor) -> Tensor:
        """Unit vectors per neuron (per block); ``otherwise`` where a vector is nearly zero."""
        parts = []
        for cell, place in zip(self.neurons.cells, self.neurons.places, strict=True):
            part = rows[..., place]
            length = _length(part, cell)
            safe = length > 1e-150
            parts.append(torch.where(safe, part / torch.where(safe, length, 1.0), otherwise[..., place]))
        return torch.cat(parts, dim=2) if parts else rows

    def run(self, patterns: Tensor, start: Vectors, passes: int) -> Ascent:
        """``passes`` forward and backward passes from ``start``; the best point of each node."""
        c, d = self.neurons.slopes(patterns)
        x, units = start.x, start.units
        last_x, last_units = x, units
        previous = torch.full((len(x),), -1.0, dtype=torch.float64)
        momentum = torch.zeros(len(x), dtype=torch.float64)
        best: Ascent | None = None
        for _ in range(passes):
            g, h, now = self._evaluate(c, d, x, units)
            fell = (now.rho < previous * (1.0 - 1e-15)) & (momentum > 1)
            previous = torch.where(fell, -1.0, now.rho)
            best = now if best is None else _better(best, now)
            momentum = torch.where(fell, 0.0, momentum + 1)
            weight = ((momentum - 1) / (momentum + 2)).clamp(min=0.0)[:, None, None]
            back = fell[:, None, None]
            length = g.norm(dim=(1, 2), keepdim=True)
            new_x = torch.where(length > 1e-150, g / length.clamp(min=1e-150), x)
            new_units = self._normalised(h, units)
            ahead_x = new_x + weight * (new_x - last_x)
            ahead_x = ahead_x / ahead_x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-150)
            ahead = self._normalised(new_units + weight * (new_units - last_units), new_units)
            x, last_x = torch.where(back, last_x, ahead_x), torch.where(back, last_x, new_x)
            units, last_units = torch.where(back, last_units, ahead), torch.where(back, last_units, new_units)
        assert best is not None
        return best

    def _evaluate(self, c: Tensor, d: Tensor, x: Tensor, units: Tensor) -> tuple[Tensor, Tensor, Ascent]:
        """Gradients with respect to X and to the units (B, r, count), and the point with its multipliers."""
        count, columns, _ = x.shape
        per_cell = {name: self.neurons.split(rows) for name, rows in (("c", c), ("d", d), ("u", units))}
        shape = self.transformed.increments.in_shape
        leaf = x.detach().requires_grad_(True)
        outputs: list[Tensor] = []
        inputs: list[Tensor] = []
        lengths: list[Tensor] = []

        def output(cell: Cell, flat: Tensor) -> Tensor:
            v = flat.reshape(count, columns, -1)
            own_d = per_cell["d"][cell.node][:, None]
            length = (v.square().sum(dim=(1, 2) if cell.block else 1, keepdim=True) + _TINY).sqrt()
            z = own_d * length * per_cell["u"][cell.node]
            if v.shape == z.shape:
                z = z + per_cell["c"][cell.node][:, None] * v
            outputs.append(z)
            inputs.append(v.detach())
            lengths.append(length.detach().expand(count, 1, cell.size))
            return z.reshape(count * columns, *cell.shape)

        with torch.enable_grad():
            y = self._passes.forward(leaf.reshape(-1, *shape), output)[-1].reshape(count, columns, -1)
            value = y.square().sum(dim=(1, 2))
            found: tuple[Tensor | None, ...] = (None,) * (1 + len(outputs))
            if value.requires_grad:
                found = torch.autograd.grad(0.5 * value.sum(), [leaf, *outputs], allow_unused=True)
        g = torch.zeros_like(x) if found[0] is None else found[0]
        if not outputs:
            nothing = torch.zeros(count, 0, dtype=torch.float64)
            point = Ascent(Vectors(x, units), value.detach(), nothing, nothing, nothing, y.detach())
            return g, units, point
        raw = [torch.zeros_like(z) if h is None else h for z, h in zip(outputs, found[1:], strict=True)]
        h = torch.cat(raw, dim=2)
        length = torch.cat(lengths, dim=2)[:, 0]
        pull = d[:, None] * h
        norms = []
        for cell, place in zip(self.neurons.cells, self.neurons.places, strict=True):
            part = pull[..., place]
            norms.append(_length(part, cell).expand(count, 1, cell.size))
        force = torch.cat(norms, dim=2)[:, 0]
        products = [
            (p * v).sum(dim=1) if p.shape == v.shape else torch.zeros(count, p.shape[2], dtype=torch.float64)
            for p, v in zip(pull.split([z.shape[2] for z in outputs], dim=2), inputs, strict=True)
        ]
        strength = force * length
        cosine = torch.cat(products, dim=1) / strength.clamp(min=_TINY)
        # v = 0: nothing is known of λ_j, and the repair gives it what it needs
        multipliers = torch.where(length > 1e-140, force / length.clamp(min=1e-150), 0.0)
        point = Ascent(Vectors(x, units), value.detach(), multipliers, strength, cosine, y.detach())
        return g, h, point


def _length(rows: Tensor, cell: Cell) -> Tensor:
    """‖·‖ of the vectors (B, r, size) of a cell, per entry or per block."""
    return rows.square().sum(dim=(1, 2) if cell.block else 1, keepdim=True).sqrt()


def _better(old: Ascent, new: Ascent) -> Ascent:
    better = new.rho >= old.rho
    if bool(better.all()):
        return new

    def chosen(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(better.reshape(-1, *([1] * (a.dim() - 1))), b, a)

    vectors = Vectors(chosen(old.vectors.x, new.vectors.x), chosen(old.vectors.units, new.vectors.units))
    names = ("rho", "multipliers", "strength", "cosine", "y")
    return Ascent(vectors, *(chosen(getattr(old, name), getattr(new, name)) for name in names))
