"""Least values of the costs of maxima with quadratic costs in bases, with their gradients, in floating point."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.windows_in_bases import BasisCell, convex, least_points, times


def least(cell: BasisCell, sweeps: int) -> Tensor:
    """The least costs of the windows, (P, O), once they are convex; differentiable in all but the range.

    At the points found the gradient is that of the costs there, held fixed (Danskin). One sweep is enough for a step of
    the ascent; the costs are then some thousandths above the least.
    """
    cell, number = convex(cell)
    with torch.no_grad():
        points = least_points(cell, sweeps, sweeps)
        costs = torch.stack([at(cell, points[..., i, :], i) for i in range(points.shape[-1])], -1)
        possible = cell.counts & (cell.high >= cell.low.amax(-1)[..., None])
        case = torch.where(possible, costs, torch.inf).argmin(-1)
        v = points.gather(-2, case[..., None, None].expand(*case.shape, 1, points.shape[-1])).squeeze(-2)
    return at(cell, v, case) + number


def at(cell: BasisCell, v: Tensor, case: Tensor | int) -> Tensor:
    """The cost of entries of which one is the greatest, (P, O)."""
    m = v[..., case] if isinstance(case, int) else v.gather(-1, case.unsqueeze(-1)).squeeze(-1)
    moved = times(cell.matrix, v) - cell.centre
    shares = 0.5 * cell.curvature * moved.square() - cell.slope * v
    return cell.cost * m - 0.5 * cell.weight * (m - cell.anchor).square() + (shares * cell.counts).sum(-1)
