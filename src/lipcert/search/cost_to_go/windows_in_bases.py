"""Least values of the costs of maxima with quadratic costs in bases, with their gradients, in floating point."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.windows_in_bases import BasisCell, convex, least_points, times
from lipcert.search.cost_to_go.nearly_least import reach_of, shares


def least(cell: BasisCell, sweeps: int, step: float = 0.0) -> Tensor:
    """The least costs of the windows, (P, O), once they are convex; differentiable in all but the range.

    At the points found the gradient is that of the costs there, held fixed (Danskin). One sweep is enough for a step of
    the ascent; the costs are then some thousandths above the least.

    Args:
        cell: the costs.
        sweeps: over the entries.
        step: by how much slopes move in a step, relative to their size: the gradient is smoothed as much.
    """
    cell, number = convex(cell)
    with torch.no_grad():
        points = least_points(cell, sweeps, sweeps)
        costs = torch.stack([at(cell, points[..., i, :], i) for i in range(points.shape[-1])], -1)
        possible = cell.counts & (cell.high >= cell.low.amax(-1)[..., None])
        costs = torch.where(possible, costs, torch.inf)
        least, case = costs.min(-1)
        v = points.gather(-2, case[..., None, None].expand(*case.shape, 1, points.shape[-1]))
    if step <= 0.0:
        return at(cell, v.squeeze(-2), case) + number
    with torch.no_grad():
        away = ((points - v).abs() * cell.counts[..., None, :]).sum(-1)
        counts = shares(costs, away, reach_of(cell.slope, step), -1)
    cost = (counts * torch.stack([at(cell, points[..., i, :], i) for i in range(points.shape[-1])], -1)).sum(-1)
    return least + (cost - cost.detach()) + number


def at(cell: BasisCell, v: Tensor, case: Tensor | int) -> Tensor:
    """The cost of entries of which one is the greatest, (P, O)."""
    m = v[..., case] if isinstance(case, int) else v.gather(-1, case.unsqueeze(-1)).squeeze(-1)
    moved = times(cell.matrix, v) - cell.centre
    shares = 0.5 * cell.curvature * moved.square() - cell.slope * v
    return cell.cost * m - 0.5 * cell.weight * (m - cell.anchor).square() + (shares * cell.counts).sum(-1)
