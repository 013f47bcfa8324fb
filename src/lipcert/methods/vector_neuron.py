"""The vector-neuron iteration: LipSDP's dual by forward and backward passes alone (DESIGN §3)."""

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
from lipcert.search.passes import Passes, Pull

#: Stands for the multiplier of a neuron whose v is zero: free of cost, so as large as one likes.
DEAD = -1.0


class VectorNeuron:
    """Maximise ‖Y‖ over X and unit vectors u_j, with z_j = c_j v_j + d_j ‖v_j‖ u_j for vectors in R^columns.

    The generalised power method (u ← h/‖h‖, X ← G/‖G‖ with h, G the gradients of the value) with Nesterov
    extrapolation on the spheres and a restart whenever the value falls. Input norm 2: ‖X‖_F = 1; ∞: every input row a
    unit vector. Output norm 2: ‖Y‖_F; 1: Σ_i ‖y_i‖; ∞: one problem per output, all in one batch. With ``growth``
    every d is so many times larger: its multipliers leave a check that margin.
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
        self.network = network
        self.cells = network.scaled.cells
        self.norm = norm
        self.columns = columns
        self.growth = growth
        self.generator = generator
        self.passes = 0
        in_shape, out_shape = network.scaled.increments.in_shape, network.scaled.increments.out_shape
        self.problems = size(out_shape) if norm[1] == math.inf else 1
        dtype, device = network.dtype, network.device
        self.tiny = torch.finfo(dtype).tiny
        self.dead = 1e3 * self.tiny**0.5
        self._c = {cell.node: cell.c.to(device, dtype) for cell in self.cells}
        self._d = {cell.node: growth * cell.d.to(device, dtype) for cell in self.cells}
        if start:
            self.columns = start["x"].shape[1]
        self._x = self._unit_input(self._first(start, "x", in_shape))
        self._units = {
            cell.node: _unit(self._first(start, f"unit.{cell.node}", cell.shape), None, cell) for cell in self.cells
        }
        self._last_x, self._last_units = self._x, dict(self._units)
        self._momentum = torch.zeros(self.problems, dtype=dtype, device=device)
        self._previous = torch.full((self.problems,), -1.0, dtype=dtype, device=device)
        self._best = torch.full((self.problems,), -1.0, dtype=dtype, device=device)
        self._kept: dict[int, tuple[_Strength, Tensor]] = {}
        self._kept_g: Tensor | None = None
        self._kept_y: Tensor | None = None

    def _first(self, start: Mapping[str, Tensor] | None, name: str, shape: Shape) -> Tensor:
        """A tensor of the start, or a random one where there is no start."""
        if not start:
            return self._random(shape)
        wanted = (self.problems, self.columns, *shape)
        if name not in start or tuple(start[name].shape) != wanted:
            raise InputError(
                "start= is a bound of another network or pair of norms; LipSDP starts from its own Bound of a network "
                "with the same layers, for the same norm= and select=."
            )
        return start[name].to(self.network.device, self.network.dtype)

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

        self._x = self._last_x = self._unit_input(wider(self._x))
        for cell in self.cells:
            self._units[cell.node] = _unit(wider(self._units[cell.node]), None, cell)
        self._last_units = dict(self._units)
        self._momentum = torch.zeros_like(self._momentum)
        self._previous = torch.full_like(self._previous, -1.0)

    def grow(self, growth: float) -> None:
        """Go on with another ``growth``; values and multipliers start afresh, the point does not."""
        for cell in self.cells:
            self._d[cell.node] = self._d[cell.node] * (growth / self.growth)
        self.growth = growth
        self._momentum = torch.zeros_like(self._momentum)
        self._previous = torch.full_like(self._previous, -1.0)
        self._best = torch.full_like(self._best, -1.0)
        self._kept = {}
        self.__dict__.pop("multipliers", None)

    @property
    def rho(self) -> Tensor:
        """(problems,) squared values of the best points so far, float64: below the SDP's optimum, never a bound."""
        return self._best.clamp(min=0.0).double().cpu()

    def _random(self, shape: Shape) -> Tensor:
        sample = torch.randn(self.problems, self.columns, *shape, generator=self.generator, dtype=torch.float64)
        return sample.to(self.network.device, self.network.dtype)

    def _unit_input(self, x: Tensor, otherwise: Tensor | None = None) -> Tensor:
        axes = (1,) if self.norm[0] == math.inf else tuple(range(1, x.dim()))
        return _scaled_to_unit(x, otherwise, axes)

    def _each(self, values: Tensor, like: Tensor) -> Tensor:
        """(problems,) values shaped to broadcast against ``like``."""
        if self.problems == 1:
            return values
        return values.reshape(-1, *([1] * (like.dim() - 1)))

    def step(self) -> None:
        """One forward and backward pass for all problems."""
        value, gradients, lengths, y = self._evaluate()
        self.passes += 1
        fell = (value < self._previous * (1.0 - 4.0 * torch.finfo(value.dtype).eps)) & (self._momentum > 1)
        self._previous = torch.where(fell, -1.0, value)
        better = (value >= self._best) & ~fell
        if bool(better.any()):
            self._best = torch.where(better, value, self._best)
            self._remember(better, gradients, lengths, y)
        self._momentum = torch.where(fell, 0.0, self._momentum + 1)
        weight = ((self._momentum - 1) / (self._momentum + 2)).clamp(min=0.0)
        back = fell if bool(fell.any()) else None
        g = gradients[0]
        new_x = self._x if g is None else self._unit_input(g, self._x)
        self._x, self._last_x = self._moved(new_x, self._last_x, back, weight, None)
        for cell, h in zip(self.cells, gradients[1:], strict=True):
            old = self._units[cell.node]
            if h is not None and cell.block:
                h = self._d[cell.node] * h
            new = old if h is None else _unit(h, old, cell)
            moved = self._moved(new, self._last_units[cell.node], back, weight, cell)
            self._units[cell.node], self._last_units[cell.node] = moved

    def _moved(
        self, new: Tensor, last: Tensor, fell: Tensor | None, weight: Tensor, cell: Cell | None
    ) -> tuple[Tensor, Tensor]:
        """(next point, next 'last'): extrapolated, or back to the last proposal where the value fell."""
        ahead = torch.lerp(last, new, 1.0 + self._each(weight, new))  # no shorter than 1, as both are units
        ahead = self._unit_input(ahead) if cell is None else _unit(ahead, None, cell)
        if fell is None:
            return ahead, new
        back = self._each(fell, new)
        return torch.where(back, last, ahead), torch.where(back, last, new)

    @torch.no_grad()
    def _evaluate(self) -> tuple[Tensor, list[Tensor | None], dict[int, Tensor], Tensor]:
        """The value; the gradients of half of it for X and every z; the lengths ‖v‖; Y."""
        lengths: dict[int, Tensor] = {}
        at_z: dict[int, Tensor] = {}

        def output(cell: Cell, flat: Tensor) -> tuple[Tensor, Pull]:
            unit, c, d = self._units[cell.node], self._c[cell.node], self._d[cell.node]
            v = flat.reshape(self.problems, self.columns, *flat.shape[1:])
            length = _length(v, tuple(range(1, v.dim())) if cell.block else (1,)).clamp_(min=self.tiny**0.5)
            if cell.block:
                length = length.reshape(-1, *([1] * (unit.dim() - 1)))
            lengths[cell.node] = length
            z = unit * (d * length)
            same = v.shape == z.shape
            if same:
                z.addcmul_(c.expand(v.shape[2:]), v)

            def pull(h: Tensor) -> Tensor:
                """c h + d ⟨h, u⟩ v/‖v‖."""
                at_z[cell.node] = h = h.reshape(unit.shape)
                if cell.block:
                    inner = (h * unit * d).flatten(1).sum(dim=1) / length.flatten()
                    back = v * inner.reshape(-1, *([1] * (v.dim() - 1)))
                else:
                    back = v * (torch.linalg.vecdot(h, unit, dim=1).unsqueeze(1) * d / length)
                if same:
                    back.addcmul_(c, h)
                return back.flatten(0, 1)

            return z.flatten(0, 1), pull

        out, pull_back = self.network.both_ways(self._x.flatten(0, 1), output)
        y = out.reshape(self.problems, self.columns, -1)
        value, slope = self._value(y)
        g = pull_back(slope.reshape(out.shape))
        gradients = [None if g is None else g.reshape(self._x.shape)]
        return value, [*gradients, *(at_z.get(cell.node) for cell in self.cells)], lengths, y

    def _value(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The squared output norm per problem, and half its gradient."""
        if self.norm[1] == 1:
            sizes = (y.square().sum(dim=1, keepdim=True) + self.tiny).sqrt()
            total = sizes.sum(dim=2, keepdim=True)
            return total.reshape(-1).square(), total * y / sizes
        if self.norm[1] == 2:
            return y.square().sum(dim=(1, 2)), y
        own = torch.eye(self.problems, dtype=y.dtype, device=y.device)[:, None]
        return (y * own).square().sum(dim=(1, 2)), y * own

    def _remember(self, better: Tensor, gradients: list[Tensor | None], lengths: dict[int, Tensor], y: Tensor) -> None:
        """Keep what the multipliers are made of, for the problems that got better."""
        self.__dict__.pop("multipliers", None)
        whole = bool(better.all())

        def update(old: Tensor | None, new: Tensor) -> Tensor:
            return new if old is None or whole else torch.where(self._each(better, new), new, old)

        for cell, h in zip(self.cells, gradients[1:], strict=True):
            length = lengths[cell.node].reshape(self.problems, -1)
            strength = _Strength(h, self._d[cell.node], cell)
            dead = length <= self.dead
            if cell.node in self._kept and not (whole and not bool(dead.any())):
                # Where v has vanished its last ratio stands: often λ is needed exactly although v = 0 at the optimum.
                old, before = self._kept[cell.node]
                merged = torch.where(dead, old.value(length), strength.value(length))
                strength.known = update(old.value(length), merged)
                length = update(before, torch.where(dead, before, length))
            self._kept[cell.node] = strength, length
        if gradients[0] is not None:
            self._kept_g = update(self._kept_g, gradients[0])
        self._kept_y = update(self._kept_y, y)

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
            if self.h is None:
                self.known = torch.zeros_like(like)
            else:
                length = _length(self.d * self.h, _axes(self.h, self.cell))
                self.known = length.reshape(like.shape)
            self.h = None
        return self.known


def _shares(strength: Tensor) -> Tensor:
    """Row by row: non-negative numbers divided by their sum, none quite zero."""
    strength = strength.double()
    total = strength.sum(dim=1, keepdim=True)
    strength = torch.where(total > 0, strength / total.clamp(min=1e-300), torch.ones_like(strength))
    strength = strength + 1e-7 * strength.mean(dim=1, keepdim=True)
    return strength / strength.sum(dim=1, keepdim=True)


def _axes(h: Tensor, cell: Cell) -> tuple[int, ...]:
    """Over what a unit vector of the cell extends: the columns, and for a block its entries too."""
    return tuple(range(1, h.dim())) if cell.block else (1,)


def _unit(h: Tensor, otherwise: Tensor | None, cell: Cell) -> Tensor:
    """h/‖h‖ per problem and neuron (per problem and block)."""
    return _scaled_to_unit(h, otherwise, _axes(h, cell))


def _length(h: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Euclidean length over ``axes``, kept as axes of size 1; torch's vector_norm is many times slower there."""
    return h.square().sum(dim=axes, keepdim=True).sqrt()


def _scaled_to_unit(h: Tensor, otherwise: Tensor | None, axes: tuple[int, ...]) -> Tensor:
    """h divided by its length over ``axes``; ``otherwise`` where that length is (nearly) zero."""
    length = _length(h, axes)
    if otherwise is None:
        return h / length
    return torch.where(length > torch.finfo(h.dtype).tiny ** 0.5 * 1e-2, h / length, otherwise)
