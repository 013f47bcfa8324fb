"""Least values, over boxes, of the share that a maximum of several entries has in the quadratic cost-to-go."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.cells import FLOOR, SUBNORMAL, on_interval
from lipcert.certificates.cost_to_go.floors import one_more
from lipcert.numerics.midrad import UNIT, UP


@dataclass(frozen=True, eq=False)
class WindowCell:
    """F(v) = c m − ½ T (m − z̃)² + Σ_i (½ D_i (v_i − ṽ_i)² − g_i v_i) with m = max_i v_i, window by window; T, D ≥ 0.

    Attributes:
        cost, weight, anchor: c, T and z̃, (P, O).
        slope, curvature, centre: g, D and ṽ, (P, O, K).
        low, high: the box of v, (O, K).
        counts: (O, K), whether an entry is one of the window's, and no repetition of another.
    """

    cost: Tensor
    weight: Tensor
    anchor: Tensor
    slope: Tensor
    curvature: Tensor
    centre: Tensor
    low: Tensor
    high: Tensor
    counts: Tensor

    def with_number(self, number: Tensor) -> WindowCell:
        """With one more entry in every window that is a number, (O,), and costs nothing: m is no less."""
        return replace(
            self, slope=one_more(self.slope, 0.0), curvature=one_more(self.curvature, 0.0),
            centre=one_more(self.centre, 0.0), low=one_more(self.low, number), high=one_more(self.high, number),
            counts=one_more(self.counts, 1.0),
        )  # fmt: skip


def least(cell: WindowCell) -> Tensor:
    """A lower bound of F on the box, (P, O), rounding included.

    With r(m) = c m − ½ T (m − z̃)² and q_i the share of entry i, F is at least r(m) + Σ_i min {q_i(v): v ≤ m}, and at
    least r(m) + q_k(m) + Σ_{i≠k} min q_i where entry k is the greatest. The first is used for m up to the greatest p of
    all p_i, which are about where q_i is least; it is cut at these. On a part [x₀, x₁] the entries with p_i ≥ x₁ are
    bounded by q_i(m) − (x₁ − l_i)·max(0, q_i'(x₁)), as q_i is convex, the others by their least value, from the tangent
    at p_i. The second is used from p on, for every k. Any numbers p_i make these true; what is left in m is quadratic
    on an interval: convex, it lies above its tangent anywhere, else it is least at an end.

    Every number is a sum of some dozens of terms for each entry, so that (256 + 32 K) units in the last place of the
    sum of their sizes cover its rounding.
    """
    return _Windows(cell).least()


class _Windows:
    def __init__(self, cell: WindowCell) -> None:
        self.cell = cell
        counts = cell.counts
        self.slope = torch.where(counts, cell.slope, 0.0)
        self.curvature = torch.where(counts, cell.curvature, 0.0)
        g, d, centre, low, high = self.slope, self.curvature, cell.centre, cell.low, cell.high
        vertex = torch.where(d > 0, centre + g / d, torch.where(g > 0, high, low)).nan_to_num(0.0)
        self.start = low.amax(-1)
        self.best = torch.minimum(torch.maximum(vertex, low), high)
        self.top = torch.where(counts, self.best, -math.inf).amax(-1)
        tangent = self._tangent(self.best)
        rise = torch.maximum(tangent * (self.best - low), -tangent * (high - self.best)).clamp(min=0.0)
        self.free = self._share(self.best) - rise * UP
        self.largest = torch.maximum(low.abs(), high.abs()).amax(-1)
        self.total = self._sizes()

    def _share(self, m: Tensor) -> Tensor:
        return 0.5 * self.curvature * (m - self.cell.centre).square() - self.slope * m

    def _tangent(self, m: Tensor) -> Tensor:
        return self.curvature * (m - self.cell.centre) - self.slope

    def _sizes(self) -> Tensor:
        c, largest = self.cell, self.largest
        own = c.cost.abs() * largest + c.weight * (largest + c.anchor.abs()).square()
        each = self.slope.abs() * largest[..., None]
        each = each + self.curvature * (largest[..., None] + c.centre.abs()).square()
        return own + each.sum(-1)

    def least(self) -> Tensor:
        c, count = self.cell, self.cell.low.shape[-1]
        found = torch.full_like(c.cost, math.inf)
        cuts = torch.maximum(self.best, self.start[..., None].expand_as(self.best[..., :1])).sort(dim=-1).values
        cuts = torch.minimum(cuts, self.top[..., None])
        x0 = self.start.expand_as(self.top)
        for j in range(count):
            x1 = cuts[..., j]
            tied = c.counts & (self.best >= x1[..., None])
            found = torch.minimum(found, self._below(x0, x1, tied, sloped=True))
            x0 = x1
        for k in range(count):
            tied = torch.zeros_like(c.counts)
            tied[..., k] = True
            x1 = c.high[..., k].expand_as(self.top)
            reached = c.counts[..., k] & (x1 >= self.top)
            bound = self._below(self.top, torch.maximum(x1, self.top), tied, sloped=False)
            found = torch.where(reached, torch.minimum(found, bound), found)
        underflow = (count + 1.0) * (FLOOR + 4.0 * SUBNORMAL * self.largest)
        found = found - ((256.0 + 32.0 * count) * UNIT * self.total + underflow)
        return torch.where(found.isnan(), -math.inf, found)

    def _below(self, x0: Tensor, x1: Tensor, tied: Tensor, sloped: bool) -> Tensor:
        """The least value for m in [x0, x1], with these entries at m and the others where they like."""
        c, h = self.cell, (x1 - x0) * (1.0 + 2.0 * UNIT)
        at = x0[..., None].expand_as(self.best)
        shares = torch.where(tied, self._share(at), self.free)
        if sloped:
            end = x1[..., None]
            slack = 8.0 * UNIT * (self.slope.abs() + self.curvature * (end.abs() + c.centre.abs()))
            over = (self._tangent(end) + slack).clamp(min=0.0) * (end - c.low) * (1.0 + 8.0 * UNIT)
            shares = shares - torch.where(tied, over, 0.0)
        q0 = c.cost * x0 - 0.5 * c.weight * (x0 - c.anchor).square() + shares.sum(-1)
        rise = c.cost - c.weight * (x0 - c.anchor) + torch.where(tied, self._tangent(at), 0.0).sum(-1)
        bend = torch.where(tied, self.curvature, 0.0).sum(-1) - c.weight
        return on_interval(q0, rise, bend, h)
