"""The vector-neuron iteration: LipSDP's dual by forward and backward passes alone (DESIGN §3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.network.loop_transform import Cell, LoopTransformed


@dataclass(eq=False)
class Point:
    """X with ‖X‖_F = 1 and a unit vector per neuron (a unit block per block); (columns, *shape) tensors."""

    x: Tensor
    units: dict[int, Tensor]


@dataclass(eq=False)
class VectorNeuron:
    """Maximise ‖Y‖_F over ‖X‖_F = 1 and unit u_j, with z_j = c_j v_j + d_j ‖v_j‖ u_j for vectors in R^columns.

    The generalised power method (u ← h/‖h‖, X ← G/‖G‖ with h, G the gradients of ½‖Y‖²) with Nesterov extrapolation
    on the spheres and a restart whenever the value falls: about √ of the passes of the plain iteration on deep nets.

    Attributes:
        transformed: the loop-transformed network, in the dtype and on the device of the search.
        columns: rank r of the relaxation; 16 has always been enough.
        rho: ‖Y‖² of the best point so far: a value of the dual problem, below the SDP's optimum; never a bound.
        multipliers: λ_j = d_j‖h_j‖/‖v_j‖ at that point.
    """

    transformed: LoopTransformed
    columns: int
    generator: torch.Generator
    rho: float = 0.0
    multipliers: dict[int, Tensor] = field(default_factory=dict)
    passes: int = 0

    def __post_init__(self) -> None:
        cells = self.transformed.cells
        x = self._random(self.transformed.network.in_shape)
        units = {cell.node: _unit(self._random(cell.out_shape), None, cell) for cell in cells}
        self._point = Point(x / x.norm(), units)
        self._last = self._point
        self._momentum = 0
        self._previous = -1.0
        dtype, device = self.transformed.dtype, self.transformed.device
        self._c = {cell.node: cell.c.to(device, dtype) for cell in cells}
        self._d = {cell.node: cell.d.to(device, dtype) for cell in cells}

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        sample = torch.randn(self.columns, *shape, generator=self.generator, dtype=torch.float64)
        return sample.to(self.transformed.device, self.transformed.dtype)

    def step(self) -> float:
        """One forward and backward pass; returns ρ at the point visited."""
        value, gradients, lengths = self._evaluate(self._point)
        self.passes += 1
        if value < self._previous * (1.0 - 1e-12) and self._momentum > 1:
            self._momentum, self._previous, self._point = 0, -1.0, self._last
            return value
        self._previous = value
        if value >= self.rho:
            self.rho = value
            self.multipliers = self._multipliers(gradients, lengths)
        if value == 0.0:
            return value
        proposal = self._power_step(gradients)
        self._momentum += 1
        weight = (self._momentum - 1) / (self._momentum + 2)
        self._point = self._extrapolated(proposal, weight) if weight > 0 else proposal
        self._last = proposal
        return value

    def _evaluate(self, point: Point) -> tuple[float, list[Tensor | None], dict[int, Tensor]]:
        x = point.x.detach().requires_grad_(True)
        outputs: dict[int, Tensor] = {}
        lengths: dict[int, Tensor] = {}
        tiny = torch.finfo(self.transformed.dtype).tiny

        def output(cell: Cell, v: Tensor) -> Tensor:
            square = v.square().sum() if cell.block else v.square().sum(dim=0)
            length = (square + tiny).sqrt()
            lengths[cell.node] = length.detach()
            z = self._d[cell.node] * length * point.units[cell.node]
            if v.shape == z.shape:
                z = z + self._c[cell.node] * v
            outputs[cell.node] = z
            return z

        with torch.enable_grad():
            y = self.transformed.spread(x, output)[-1]
            value = 0.5 * y.square().sum()
            wanted = [x, *outputs.values()]
            if not value.requires_grad:
                return 2.0 * value.item(), [None] * len(wanted), lengths
            gradients = torch.autograd.grad(value, wanted, allow_unused=True)
        return 2.0 * value.item(), list(gradients), lengths

    def _power_step(self, gradients: list[Tensor | None]) -> Point:
        g = gradients[0]
        x = self._point.x if g is None or not bool(g.norm() > 0) else g / g.norm()
        units = {}
        for cell, h in zip(self.transformed.cells, gradients[1:], strict=True):
            old = self._point.units[cell.node]
            if h is not None and cell.block:
                h = self._d[cell.node] * h
            units[cell.node] = old if h is None else _unit(h, old, cell)
        return Point(x, units)

    def _extrapolated(self, new: Point, weight: float) -> Point:
        x = new.x + weight * (new.x - self._last.x)
        units = {}
        for cell in self.transformed.cells:
            a, b = new.units[cell.node], self._last.units[cell.node]
            units[cell.node] = _unit(a + weight * (a - b), a, cell)
        return Point(x / x.norm(), units)

    def _multipliers(self, gradients: list[Tensor | None], lengths: dict[int, Tensor]) -> dict[int, Tensor]:
        result = {}
        for cell, h in zip(self.transformed.cells, gradients[1:], strict=True):
            length = lengths[cell.node].clamp(min=torch.finfo(self.transformed.dtype).tiny ** 0.5)
            if h is None:
                result[cell.node] = torch.zeros_like(length).reshape(-1).double().cpu()
            elif cell.block:
                result[cell.node] = ((self._d[cell.node] * h).norm() / length).reshape(1).double().cpu()
            else:
                result[cell.node] = (self._d[cell.node] * h.norm(dim=0) / length).reshape(-1).double().cpu()
        return result


def _unit(h: Tensor, otherwise: Tensor | None, cell: Cell) -> Tensor:
    """h/‖h‖ per neuron (per block); ``otherwise`` where h is zero."""
    if cell.block:
        length = h.norm()
        return h / length if bool(length > 0) else (h if otherwise is None else otherwise)
    length = h.norm(dim=0, keepdim=True)
    safe = length > torch.finfo(h.dtype).tiny * 1e3
    result = h / torch.where(safe, length, torch.ones_like(length))
    return result if otherwise is None else torch.where(safe, result, otherwise)
