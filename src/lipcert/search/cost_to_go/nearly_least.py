"""Points of nearly least cost: where the gradient of a minimum would jump within a step, it is a mean over these.

At the best multipliers many minima have two points that cost alike, and there the sum of minima has kinks. Along the
gradient at the least point alone the ascent zigzags across them, and what it gains in a long run is that its steps get
shorter. The value stays the least cost; only its gradient is smoothed, and the less the shorter the steps are.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: What a difference of costs is measured by at least.
SMALL = 1e-20


def shares(costs: Tensor, away: Tensor, reach: Tensor, dim: int) -> Tensor:
    """What each point counts in the mean, of sum 1: exp(−(cost − least)/(reach · away)), less the farther it is behind.

    Args:
        costs: of points, along ``dim``; infinite for what is none.
        away: how far these are from the one of least cost, in the sum of absolute values.
        reach: by how much a step moves linear costs: by reach · away it may shift costs against each other.
        dim: along which the points are.
    """
    behind = costs - costs.amin(dim, keepdim=True)
    weights = torch.exp(-behind / (reach * away).clamp(min=SMALL))
    return weights / weights.sum(dim, keepdim=True)


def reach_of(slopes: Tensor, step: float) -> Tensor:
    """``step`` times the root mean square of a function's slopes: (P, *shape) → (P, 1, …)."""
    return step * slopes.square().flatten(1).mean(1).sqrt().reshape(-1, *[1] * (slopes.dim() - 1))
