"""Least values of the costs of maxima with quadratic costs in bases, with their gradients, in floating point."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.windows_in_bases import SMALL, BasisCell, least_points, times

#: By how much a cost is more convex than it must be.
ROOM = 1.0 + 1e-4


def firm(cell: BasisCell) -> BasisCell:
    """The same with D of every window so large that its cost is convex, whichever entry is the greatest.

    What is not convex would be least far from any tangent, so that the check proved little of it.
    """
    share = torch.where(cell.counts, cell.weight[..., None] / cell.firmness.clamp(min=SMALL), 0.0)
    return replace(cell, curvature=cell.curvature * (ROOM * share.amax(-1, keepdim=True)).clamp(min=1.0))


def least(cell: BasisCell, sweeps: int) -> Tensor:
    """The least costs of the windows, (P, O), of convex ones; differentiable in all but the range.

    At the points found the gradient is that of the costs there, held fixed (Danskin). One sweep is enough for a step of
    the ascent; the costs are then some thousandths above the least.
    """
    with torch.no_grad():
        points = least_points(cell, sweeps, sweeps)
        costs = torch.stack([at(cell, points[..., i, :], i) for i in range(points.shape[-1])], -1)
        possible = cell.counts & (cell.high >= cell.low.amax(-1)[..., None])
        case = torch.where(possible, costs, torch.inf).argmin(-1)
        v = points.gather(-2, case[..., None, None].expand(*case.shape, 1, points.shape[-1])).squeeze(-2)
    return at(cell, v, case)


def at(cell: BasisCell, v: Tensor, case: Tensor | int) -> Tensor:
    """The cost of entries of which one is the greatest, (P, O)."""
    m = v[..., case] if isinstance(case, int) else v.gather(-1, case.unsqueeze(-1)).squeeze(-1)
    moved = times(cell.matrix, v) - cell.centre
    shares = 0.5 * cell.curvature * moved.square() - cell.slope * v
    return cell.cost * m - 0.5 * cell.weight * (m - cell.anchor).square() + (shares * cell.counts).sum(-1)
