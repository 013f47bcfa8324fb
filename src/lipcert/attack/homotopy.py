"""The softplus homotopy: ascend the gain of a rounded-off network while it sharpens into the true one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.attack.jacobian import SearchNetwork
from lipcert.attack.norms import lengths, maximiser
from lipcert.attack.starts import Region

#: Sharpness at the beginning and at the end, relative to the size of the pre-activations.
FIRST, LAST = 3.0, 100.0
#: Sharpness at the beginning of a round that starts from good points.
REFINE = 10.0
#: Adam's step at the beginning and at the end, relative to the region's scale.
STEP, LAST_STEP = 0.15, 0.01
_DECAY1, _DECAY2 = 0.9, 0.99

Report = Callable[[Tensor, Tensor, Tensor], None]


def anneal(
    search: SearchNetwork,
    region: Region,
    x: Tensor,
    v: Tensor,
    steps: int,
    every: int,
    report: Report,
    expired: Callable[[], bool],
    first: float = FIRST,
) -> tuple[Tensor, Tensor]:
    """Maximise log‖J_β(x)v‖_q − log‖v‖_p over a batch of (x, v), β from ``first`` to ``LAST`` geometrically.

    A ReLU network's Jacobian is piecewise constant, so its norm has no gradient; with softplus of sharpness β
    it has one, and as β grows the maximum moves to a maximum of the network itself. x
    moves by Adam; v by one step of the power method of Boyd (1974), v ← argmax of <J_βᵀw, ·> over the unit
    ball of l_p with w dual to J_β v, which the same backward pass provides.

    Args:
        search: the prepared network.
        region: domain and scale of x.
        x: (B, *in_shape) starts inside the domain.
        v: (B, *in_shape) directions.
        steps: number of ascent steps.
        every: steps between evaluations of the true Jacobian.
        report: called with (x, values, directions) of the true network.
        expired: whether time is up.
        first: β at the beginning.

    Returns:
        The last (x, v).
    """
    p, q = search.norm
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(steps):
        if expired():
            return x, v
        done = step / max(1, steps - 1)
        beta = first * (LAST / first) ** done
        rate = STEP * (LAST_STEP / STEP) ** done
        gradient, pulled = _gradients(search, x, v, beta, q)
        gradient = gradient * region.scale
        mean = _DECAY1 * mean + (1 - _DECAY1) * gradient
        square = _DECAY2 * square + (1 - _DECAY2) * gradient.square()
        update = (mean / (1 - _DECAY1 ** (step + 1))) / ((square / (1 - _DECAY2 ** (step + 1))).sqrt() + 1e-12)
        x = region.project(x + rate * region.scale * update * search.mask)
        v = maximiser(pulled.reshape(len(x), -1), p).reshape(v.shape) * search.mask
        if (step + 1) % every == 0 and not expired():
            values, best = search.gains(x, v)
            report(x, values, best)
            if p != 2:
                v = best
    return x, v


def _gradients(search: SearchNetwork, x: Tensor, v: Tensor, beta: float, q: float) -> tuple[Tensor, Tensor]:
    """Gradient of Σ log‖J_β(x)v‖_q in x, and of Σ‖J_β(x)v‖_q in v; zero where undefined."""
    with torch.enable_grad():
        x, v = x.detach().requires_grad_(True), v.detach().requires_grad_(True)
        gains = lengths(search.smooth(x, v, beta), q)
        safe = torch.where(gains > 0, gains, torch.ones_like(gains))
        objective = torch.log(safe).sum()
        if not objective.requires_grad:
            return torch.zeros_like(x), torch.zeros_like(v)
        in_x, in_v = torch.autograd.grad(objective, (x, v), allow_unused=True)
    in_x = torch.zeros_like(x) if in_x is None else in_x
    in_v = torch.zeros_like(v) if in_v is None else in_v
    return torch.nan_to_num(in_x, 0.0, 0.0, 0.0).detach(), torch.nan_to_num(in_v, 0.0, 0.0, 0.0).detach()


def planned_steps(seconds_per_step: float, budget: float) -> int:
    """Steps of one anneal: 600, or fewer (in coarse classes, so that runs repeat) on a small budget."""
    for steps in (600, 300, 150, 75, 40):
        if steps * seconds_per_step <= 0.3 * budget:
            return steps
    return max(4, int(math.log2(max(1.0, budget / max(seconds_per_step, 1e-9)))) * 4)
