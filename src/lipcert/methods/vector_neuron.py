"""The vector-neuron iteration: LipSDP's dual by forward and backward passes alone (DESIGN §3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.network.linear import Shape, size
from lipcert.network.loop_transform import Cell, LoopTransformed
from lipcert.problem import Norm

#: Stands for the multiplier of a neuron whose v is zero: free of cost, so as large as one likes.
DEAD = -1.0


class VectorNeuron:
    """Maximise ‖Y‖ over X and unit vectors u_j, with z_j = c_j v_j + d_j ‖v_j‖ u_j for vectors in R^columns.

    The generalised power method (u ← h/‖h‖, X ← G/‖G‖ with h, G the gradients of the value) with Nesterov
    extrapolation on the spheres and a restart whenever the value falls. Input norm 2: ‖X‖_F = 1; ∞: every input row a
    unit vector. Output norm 2: ‖Y‖_F; 1: Σ_i ‖y_i‖; ∞: one problem per output, all in one batch.

    Attributes:
        rho: (problems,) squared value of the best points so far: below the SDP's optimum; never a bound.
        multipliers: node → (problems, neurons) λ_j = d_j‖h_j‖/‖v_j‖ at those points (one entry for a block), DEAD
            where v_j = 0.
        input_weights: (problems, n) with sum 1 for input norm ∞, ones for 2.
        output_weights: (problems, m): e with Σ 1/e_i = 1 for output norm 1, one-hot rows for ∞, ones for 2.
    """

    def __init__(self, transformed: LoopTransformed, norm: Norm, columns: int, generator: torch.Generator) -> None:
        self.transformed = transformed
        self.norm = norm
        self.columns = columns
        self.generator = generator
        self.passes = 0
        in_shape, out_shape = transformed.network.in_shape, transformed.network.out_shape
        self.problems = size(out_shape) if norm[1] == math.inf else 1
        dtype, device = transformed.dtype, transformed.device
        self.tiny = torch.finfo(dtype).tiny
        self._c = {cell.node: cell.c.to(device, dtype) for cell in transformed.cells}
        self._d = {cell.node: cell.d.to(device, dtype) for cell in transformed.cells}
        self._x = self._unit_input(self._random(in_shape))
        self._units = {cell.node: _unit(self._random(cell.out_shape), None, cell) for cell in transformed.cells}
        self._last_x, self._last_units = self._x, dict(self._units)
        self._momentum = torch.zeros(self.problems, dtype=dtype, device=device)
        self._previous = torch.full((self.problems,), -1.0, dtype=dtype, device=device)
        self._best = torch.full((self.problems,), -1.0, dtype=dtype, device=device)
        self.multipliers: dict[int, Tensor] = {}
        self.input_weights = torch.ones(self.problems, size(in_shape), dtype=torch.float64)
        self.output_weights = self._initial_output_weights(size(out_shape))

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
        for cell in self.transformed.cells:
            self._units[cell.node] = _unit(wider(self._units[cell.node]), None, cell)
        self._last_units = dict(self._units)
        self._momentum = torch.zeros_like(self._momentum)
        self._previous = torch.full_like(self._previous, -1.0)

    @property
    def rho(self) -> Tensor:
        """Squared value per problem, float64."""
        return self._best.clamp(min=0.0).double().cpu()

    def _initial_output_weights(self, m: int) -> Tensor:
        if self.norm[1] == math.inf:
            return torch.eye(m, dtype=torch.float64)
        return torch.full((1, m), float(m) if self.norm[1] == 1 else 1.0, dtype=torch.float64)

    def _random(self, shape: Shape) -> Tensor:
        sample = torch.randn(self.problems, self.columns, *shape, generator=self.generator, dtype=torch.float64)
        return sample.to(self.transformed.device, self.transformed.dtype)

    def _unit_input(self, x: Tensor, otherwise: Tensor | None = None) -> Tensor:
        axes = (1,) if self.norm[0] == math.inf else tuple(range(1, x.dim()))
        return _scaled_to_unit(x, otherwise, axes)

    def _each(self, values: Tensor, like: Tensor) -> Tensor:
        """(problems,) values shaped to broadcast against ``like``."""
        return values.reshape(-1, *([1] * (like.dim() - 1)))

    def step(self) -> None:
        """One forward and backward pass for all problems."""
        value, gradients, lengths, y = self._evaluate()
        self.passes += 1
        fell = (value < self._previous * (1.0 - 4.0 * torch.finfo(value.dtype).eps)) & (self._momentum > 1)
        self._previous = torch.where(fell, torch.full_like(value, -1.0), value)
        better = (value >= self._best) & ~fell
        if bool(better.any()):
            self._best = torch.where(better, value, self._best)
            self._remember(better, gradients, lengths, y)
        momentum = torch.where(fell, torch.zeros_like(self._momentum), self._momentum + 1)
        weight = ((momentum - 1) / (momentum + 2)).clamp(min=0.0)
        g = gradients[0]
        new_x = self._x if g is None else self._unit_input(g, self._x)
        self._x, self._last_x = self._moved(new_x, self._last_x, fell, weight, None)
        for cell, h in zip(self.transformed.cells, gradients[1:], strict=True):
            old = self._units[cell.node]
            if h is not None and cell.block:
                h = self._d[cell.node] * h
            new = old if h is None else _unit(h, old, cell)
            moved = self._moved(new, self._last_units[cell.node], fell, weight, cell)
            self._units[cell.node], self._last_units[cell.node] = moved
        self._momentum = momentum

    def _moved(
        self, new: Tensor, last: Tensor, fell: Tensor, weight: Tensor, cell: Cell | None
    ) -> tuple[Tensor, Tensor]:
        """(next point, next 'last'): extrapolated, or back to the last proposal where the value fell."""
        ahead = new + self._each(weight, new) * (new - last)
        ahead = self._unit_input(ahead, new) if cell is None else _unit(ahead, new, cell)
        back = self._each(fell, new)
        proposal = torch.where(back, last, new)
        return torch.where(back, last, ahead), proposal

    def _evaluate(self) -> tuple[Tensor, list[Tensor | None], dict[int, Tensor], Tensor]:
        x = self._x.detach().requires_grad_(True)
        outputs: dict[int, Tensor] = {}
        lengths: dict[int, Tensor] = {}

        def output(cell: Cell, flat: Tensor) -> Tensor:
            v = flat.reshape(self.problems, self.columns, *flat.shape[1:])
            axes = tuple(range(1, v.dim())) if cell.block else (1,)
            length = (v.square().sum(dim=axes, keepdim=True) + self.tiny).sqrt()
            if cell.block:
                length = self._each(length.reshape(-1), self._units[cell.node])
            lengths[cell.node] = length.detach()
            z = self._d[cell.node] * length * self._units[cell.node]
            if v.shape == z.shape:
                z = z + self._c[cell.node] * v
            outputs[cell.node] = z
            return z.reshape(-1, *cell.out_shape)

        with torch.enable_grad():
            y = self.transformed.spread(x.reshape(-1, *x.shape[2:]), output)[-1]
            y = y.reshape(self.problems, self.columns, -1)
            value = self._value(y)
            wanted = [x, *outputs.values()]
            if not value.requires_grad:
                return value, [None] * len(wanted), lengths, y
            gradients = torch.autograd.grad(0.5 * value.sum(), wanted, allow_unused=True)
        return value.detach(), list(gradients), lengths, y.detach()

    def _value(self, y: Tensor) -> Tensor:
        if self.norm[1] == 1:
            return (y.square().sum(dim=1) + self.tiny).sqrt().sum(dim=1).square()
        if self.norm[1] == 2:
            return y.square().sum(dim=(1, 2))
        return y.square().sum(dim=1).diagonal()

    def _remember(self, better: Tensor, gradients: list[Tensor | None], lengths: dict[int, Tensor], y: Tensor) -> None:
        keep = better.cpu()[:, None]

        def update(old: Tensor | None, new: Tensor) -> Tensor:
            new = new.reshape(self.problems, -1).double().cpu()
            return new if old is None else torch.where(keep, new, old)

        for cell, h in zip(self.transformed.cells, gradients[1:], strict=True):
            length = lengths[cell.node]
            weighted = torch.zeros_like(self._units[cell.node]) if h is None else self._d[cell.node] * h
            axes = tuple(range(1, weighted.dim())) if cell.block else (1,)
            strength = weighted.square().sum(dim=axes, keepdim=True).sqrt()
            length = length.reshape(self.problems, -1)
            ratio = strength.reshape(self.problems, -1) / length
            dead = length <= 1e3 * self.tiny**0.5
            ratio = torch.where(dead, torch.full_like(ratio, DEAD), ratio)
            self.multipliers[cell.node] = update(self.multipliers.get(cell.node), ratio)
        g = gradients[0]
        if self.norm[0] == math.inf and g is not None:
            strength = g.square().sum(dim=1).sqrt().reshape(self.problems, -1)
            self.input_weights = update(self.input_weights, _shares(strength))
        if self.norm[1] == 1:
            self.output_weights = update(self.output_weights, 1.0 / _shares(y.square().sum(dim=1).sqrt()))


def _shares(strength: Tensor) -> Tensor:
    """Row by row: non-negative numbers divided by their sum, none quite zero."""
    strength = strength.double()
    total = strength.sum(dim=1, keepdim=True)
    strength = torch.where(total > 0, strength / total.clamp(min=1e-300), torch.ones_like(strength))
    strength = strength + 1e-7 * strength.mean(dim=1, keepdim=True)
    return strength / strength.sum(dim=1, keepdim=True)


def _unit(h: Tensor, otherwise: Tensor | None, cell: Cell) -> Tensor:
    """h/‖h‖ per problem and neuron (per problem and block)."""
    return _scaled_to_unit(h, otherwise, tuple(range(1, h.dim())) if cell.block else (1,))


def _scaled_to_unit(h: Tensor, otherwise: Tensor | None, axes: tuple[int, ...]) -> Tensor:
    """h divided by its length over ``axes``; ``otherwise`` where that length is (nearly) zero."""
    length = h.square().sum(dim=axes, keepdim=True).sqrt()
    safe = length > torch.finfo(h.dtype).tiny ** 0.5 * 1e-2
    result = h / torch.where(safe, length, torch.ones_like(length))
    return result if otherwise is None else torch.where(safe, result, otherwise)
