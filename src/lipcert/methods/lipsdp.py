"""LipSDP on any graph by the vector-neuron iteration: forward and backward passes alone (DESIGN §3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.loop_transform import Cell, LoopTransformed


@dataclass(eq=False)
class VectorState:
    """Primal point of the iteration: X of unit Frobenius norm and a unit vector (block) per neuron (block)."""

    x: Tensor
    units: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class Pass:
    """What one forward and backward pass returns: the value ρ = ‖Y‖², and per cell ‖h‖ and ‖v‖."""

    rho: float
    multipliers: dict[int, Tensor]


def initial_state(transformed: LoopTransformed, columns: int, generator: torch.Generator) -> VectorState:
    """Random X and directions."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(transformed.device, transformed.dtype)

    x = random(columns, *transformed.network.in_shape)
    units = {}
    for cell in transformed.cells:
        units[cell.node] = _normalised(random(columns, *cell.out_shape), cell)
    return VectorState(x / x.norm(), units)


def _normalised(h: Tensor, cell: Cell) -> Tensor:
    if cell.block:
        return h / h.norm().clamp(min=1e-300)
    return h / h.norm(dim=0, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny)


def sweep(transformed: LoopTransformed, state: VectorState) -> Pass:
    """One pass of the generalised power method; ``state`` is moved to the next point."""
    x = state.x.detach().requires_grad_(True)
    outputs: dict[int, Tensor] = {}
    lengths: dict[int, Tensor] = {}

    def output(cell: Cell, v: Tensor) -> Tensor:
        d = cell.d.to(v)
        if cell.block:
            length = v.norm()
            z = d * length * state.units[cell.node]
        else:
            length = (v.square().sum(dim=0) + 1e-300 if v.dtype == torch.float64 else v.square().sum(dim=0) + 1e-36).sqrt()
            z = cell.c.to(v) * v + d * length * state.units[cell.node]
        lengths[cell.node] = length.detach()
        outputs[cell.node] = z
        return z

    with torch.enable_grad():
        y = transformed.spread(x, output)[-1]
        value = 0.5 * y.square().sum()
        order = [cell.node for cell in transformed.cells]
        gradients = torch.autograd.grad(value, [x, *(outputs[k] for k in order)], allow_unused=True)
    rho = 2.0 * float(value)
    multipliers: dict[int, Tensor] = {}
    for cell, h in zip(transformed.cells, gradients[1:], strict=True):
        if h is None:
            h = torch.zeros_like(outputs[cell.node])
        if cell.block:
            size = h.norm()
            multipliers[cell.node] = (cell.d.reshape(-1)[0].to(size) * size / lengths[cell.node].clamp(min=1e-300)).reshape(1)
        else:
            size = h.norm(dim=0)
            multipliers[cell.node] = (cell.d.to(size) * size / lengths[cell.node].clamp(min=1e-300)).reshape(-1)
        if float(h.norm()) > 0:
            state.units[cell.node] = _normalised(h, cell)
    g = gradients[0]
    if g is not None and float(g.norm()) > 0:
        state.x = (g / g.norm()).detach()
    return Pass(rho, multipliers)


def lifted(transformed: LoopTransformed, multipliers: Mapping[int, Tensor], p: float) -> dict[int, Tensor]:
    """λ_k · (1 + p)^{steps from k to the output}: the geometric repair."""
    steps = steps_to_output(transformed)
    return {k: m.double().cpu() * (1.0 + p) ** steps[k] for k, m in multipliers.items()}


def steps_to_output(transformed: LoopTransformed) -> dict[int, int]:
    """For each nonlinear node, how many nonlinear nodes lie on the longest path from it to the output, itself included."""
    nodes = transformed.network.nodes
    depth = [0] * len(nodes)
    for k in range(len(nodes) - 1, -1, -1):
        own = 1 if k in transformed.cell_at else 0
        depth[k] = own + max((depth[c] for c in transformed.network.consumers[k]), default=0)
    return {cell.node: depth[cell.node] for cell in transformed.cells}


_ = math
