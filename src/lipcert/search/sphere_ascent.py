"""Ascent over unit vectors by forward and backward passes: what every vector-neuron search makes its steps of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.increments import Cell
from lipcert.problem import Norm
from lipcert.search.passes import Passes, Pull


@dataclass(eq=False)
class Point:
    """What one forward and backward pass found, for B problems and r columns.

    Attributes:
        value: (B,) squared norms of Y.
        y: (B, r, m).
        g: half the gradient for X, None where nothing depends on it.
        h: node → half the gradient for its z, (B, r, *shape); without nodes that do not matter.
        lengths: node → ‖v_j‖, (B, 1, *shape), of a block (B, groups).
        v: node → (B, r, *shape), if they were asked for.
    """

    value: Tensor
    y: Tensor
    g: Tensor | None = None
    h: dict[int, Tensor] = field(default_factory=dict)
    lengths: dict[int, Tensor] = field(default_factory=dict)
    v: dict[int, Tensor] = field(default_factory=dict)


class SphereAscent:
    """Maximise ‖Y‖ over X and unit vectors u_j, with z_j = c_j v_j + d_j ‖v_j‖ u_j for vectors in R^columns.

    The generalised power method (u ← h/‖h‖, X ← G/‖G‖ with h, G the gradients of the value) with Nesterov
    extrapolation on the spheres and a restart whenever the value falls. Input norm 2: ‖X‖_F = 1; ∞: every input row a
    unit vector. Output norm 2: ‖Y‖_F; 1: Σ_i ‖y_i‖; ∞: problem i is about output i. Problems are a batch: they share
    the maps and, unless ``slopes`` says otherwise, c and d.

    Args:
        network: what is run.
        norm: (p, q).
        x: (B, r, *in_shape) first point, of unit length.
        units: node → (B, r, *shape) first unit vectors.
        slopes: node → c and d of every problem, (B, *shape) each; None: the cells' own.
        growth: what every d is multiplied by.
    """

    def __init__(
        self,
        network: Passes,
        norm: Norm,
        x: Tensor,
        units: Mapping[int, Tensor],
        slopes: Mapping[int, tuple[Tensor, Tensor]] | None = None,
        growth: float = 1.0,
    ) -> None:
        self.network, self.norm, self.growth = network, norm, growth
        self.cells = network.scaled.cells
        self.problems, self.columns = x.shape[:2]
        self.passes = 0
        dtype, device = network.dtype, network.device
        self.tiny = torch.finfo(dtype).tiny
        self._c: dict[int, Tensor] = {}
        self._d: dict[int, Tensor] = {}
        for cell in self.cells:
            c, d = (cell.c, cell.d) if slopes is None else (end[:, None] for end in slopes[cell.node])
            self._c[cell.node], self._d[cell.node] = c.to(device, dtype), growth * d.to(device, dtype)
        self._x = self._last_x = x
        self._units, self._last_units = dict(units), dict(units)
        self._best = torch.full((self.problems,), -1.0, dtype=dtype, device=device)
        self._restart()

    def _restart(self) -> None:
        """Forget the way here: the next step is not extrapolated."""
        self._last_x, self._last_units = self._x, dict(self._units)
        self._momentum = torch.zeros_like(self._best)
        self._previous = torch.full_like(self._best, -1.0)

    @property
    def rho(self) -> Tensor:
        """(B,) squared values of the best points so far, float64: below the SDP's optimum, never a bound."""
        return self._best.clamp(min=0.0).double().cpu()

    def _unit_input(self, x: Tensor, otherwise: Tensor | None = None) -> Tensor:
        return scaled_to_unit(x, otherwise, input_axes(x, self.norm))

    def _each(self, values: Tensor, like: Tensor) -> Tensor:
        """(B,) values shaped to broadcast against ``like``."""
        if self.problems == 1:
            return values
        return values.reshape(-1, *([1] * (like.dim() - 1)))

    def _remember(self, better: Tensor, point: Point) -> None:
        """Keep what is wanted of a point for the problems (B,) that got better; ``_x`` and ``_units`` are its place."""
        raise NotImplementedError

    def step(self) -> None:
        """One forward and backward pass for all problems."""
        point = self.evaluate()
        value = point.value
        self.passes += 1
        fell = (value < self._previous * (1.0 - 4.0 * torch.finfo(value.dtype).eps)) & (self._momentum > 1)
        self._previous = torch.where(fell, -1.0, value)
        better = (value >= self._best) & ~fell
        if bool(better.any()):
            self._best = torch.where(better, value, self._best)
            self._remember(better, point)
        self._momentum = torch.where(fell, 0.0, self._momentum + 1)
        weight = ((self._momentum - 1) / (self._momentum + 2)).clamp(min=0.0)
        back = fell if bool(fell.any()) else None
        new_x = self._x if point.g is None else self._unit_input(point.g, self._x)
        self._x, self._last_x = self._moved(new_x, self._last_x, back, weight, None)
        for cell in self.cells:
            h, old = point.h.get(cell.node), self._units[cell.node]
            if h is not None and cell.block:
                h = self._d[cell.node] * h
            new = old if h is None else unit(h, old, cell)
            moved = self._moved(new, self._last_units[cell.node], back, weight, cell)
            self._units[cell.node], self._last_units[cell.node] = moved

    def _moved(
        self, new: Tensor, last: Tensor, fell: Tensor | None, weight: Tensor, cell: Cell | None
    ) -> tuple[Tensor, Tensor]:
        """(next point, next 'last'): extrapolated, or back to the last proposal where the value fell."""
        ahead = torch.lerp(last, new, 1.0 + self._each(weight, new))  # no shorter than 1, as both are units
        ahead = self._unit_input(ahead) if cell is None else unit(ahead, None, cell)
        if fell is None:
            return ahead, new
        back = self._each(fell, new)
        return torch.where(back, last, ahead), torch.where(back, last, new)

    @torch.no_grad()
    def evaluate(self, inputs: bool = False) -> Point:
        """One forward and backward pass at the present place; with the v of all cells where ``inputs`` are wanted."""
        lengths: dict[int, Tensor] = {}
        at_z: dict[int, Tensor] = {}
        kept: dict[int, Tensor] = {}

        def output(cell: Cell, flat: Tensor) -> tuple[Tensor, Pull]:
            u, c, d = self._units[cell.node], self._c[cell.node], self._d[cell.node]
            v = flat.reshape(self.problems, self.columns, *flat.shape[1:])
            if inputs:
                kept[cell.node] = v
            if cell.block:
                whole = _group_lengths(v, cell).clamp_(min=self.tiny**0.5)
                lengths[cell.node], length = whole, _spread(whole, u)
            else:
                lengths[cell.node] = length = length_over(v, (1,)).clamp_(min=self.tiny**0.5)
            z = u * (d * length)
            same = v.shape == z.shape
            if same:
                z.addcmul_(c, v)

            def pull(h: Tensor) -> Tensor:
                """c h + d ⟨h, u⟩ v/‖v‖."""
                at_z[cell.node] = h = h.reshape(u.shape)
                if cell.block:
                    inner = _by_group(h * u * d, cell).sum(dim=(1, 3)) / whole
                    back = v * _spread(inner, v)
                else:
                    back = v * (torch.linalg.vecdot(h, u, dim=1).unsqueeze(1) * d / length)
                if same:
                    back.addcmul_(c, h)
                return back.flatten(0, 1)

            return z.flatten(0, 1), pull

        out, pull_back = self.network.both_ways(self._x.flatten(0, 1), output)
        y = out.reshape(self.problems, self.columns, -1)
        value, slope = self._value(y)
        g = pull_back(slope.reshape(out.shape))
        return Point(value, y, None if g is None else g.reshape(self._x.shape), at_z, lengths, kept)

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


def force(h: Tensor, d: Tensor, cell: Cell) -> Tensor:
    """‖d h‖ per neuron, or per block, of a gradient h for the cell's z: (B, neurons)."""
    return _group_lengths(d * h, cell) if cell.block else length_over(d * h, (1,)).flatten(1)


def input_axes(x: Tensor, norm: Norm) -> tuple[int, ...]:
    """Over what an input of unit length extends: its columns, and in the l2 norm its entries too."""
    return (1,) if norm[0] == math.inf else tuple(range(1, x.dim()))


def _by_group(x: Tensor, cell: Cell) -> Tensor:
    """(B, r, groups, entries of one) of a block's v or z (B, r, …)."""
    return x.reshape(*x.shape[:2], cell.groups, -1)


def _group_lengths(x: Tensor, cell: Cell) -> Tensor:
    """(B, groups): the lengths over columns and entries."""
    return _by_group(x, cell).square().sum(dim=(1, 3)).sqrt()


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """(B, groups) put at the entries of each group, to multiply ``like``, (B, r, …)."""
    if values.shape[1] == 1:
        return values.reshape(-1, *([1] * (like.dim() - 1)))
    count = like[0, 0].numel() // values.shape[1]
    return values.repeat_interleave(count, dim=1).reshape(len(values), 1, *like.shape[2:])


def unit(h: Tensor, otherwise: Tensor | None, cell: Cell) -> Tensor:
    """h/‖h‖ per problem and neuron (per problem and group of a block)."""
    if not cell.block:
        return scaled_to_unit(h, otherwise, (1,))
    return _scaled(h, otherwise, _spread(_group_lengths(h, cell), h))


def length_over(h: Tensor, over: tuple[int, ...]) -> Tensor:
    """Euclidean length over some axes, kept as axes of size 1; torch's vector_norm is many times slower there."""
    return h.square().sum(dim=over, keepdim=True).sqrt()


def scaled_to_unit(h: Tensor, otherwise: Tensor | None, over: tuple[int, ...]) -> Tensor:
    """h divided by its length over some axes; ``otherwise`` where that length is (nearly) zero."""
    return _scaled(h, otherwise, length_over(h, over))


def _scaled(h: Tensor, otherwise: Tensor | None, length: Tensor) -> Tensor:
    if otherwise is None:
        return h / length
    return torch.where(length > torch.finfo(h.dtype).tiny ** 0.5 * 1e-2, h / length, otherwise)
