"""Least values of the costs of maxima over windows, with their gradients, in floating point.

    min over v in [l, u] of  c m − ½T(m − z̃)² + Σ_i (½D_i(v_i − ṽ_i)² − g_i v_i),  m = max_i v_i

With p_i where the share of entry i alone is least: up to the greatest p every entry is at min(p_i, m); beyond it one is
at m, the others at p_i. So the cost is quadratic in m between the p_i. At the least point the gradient in all but the
range is that of the cost there, held fixed (Danskin), or a mean over points that cost nearly as little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.floors import one_more
from lipcert.search.cost_to_go.cells import FAR, SMALL
from lipcert.search.cost_to_go.nearly_least import reach_of, shares


@dataclass(frozen=True, eq=False)
class WindowCell:
    """The costs of maxima: c, T, z̃ are (P, O); g, D, ṽ, l, u are (P, O, K); ``counts`` (O, K): no repetitions.

    Attributes:
        c: linear cost of the maximum.
        weight, middle: T and z̃, the quadratic cost of the maximum.
        g: linear costs that are handed on to the entries.
        curvature, centre: D ≥ 0 and ṽ, the quadratic costs that are handed on.
        low, high: range of the entries.
        counts: which entries are of the window, and no repetition of another.
    """

    c: Tensor
    weight: Tensor
    middle: Tensor
    g: Tensor
    curvature: Tensor
    centre: Tensor
    low: Tensor
    high: Tensor
    counts: Tensor

    def with_number(self, number: Tensor) -> WindowCell:
        """With one more entry in every window that is a number, (P, O), and costs nothing: m is no less."""
        return replace(
            self, g=one_more(self.g, 0.0), curvature=one_more(self.curvature, 0.0),
            centre=one_more(self.centre, 0.0), low=one_more(self.low, number), high=one_more(self.high, number),
            counts=one_more(self.counts, 1.0),
        )  # fmt: skip

    def least(self, step: float = 0.0) -> Tensor:
        """The least costs, (P, O), differentiable in all but the range.

        Args:
            step: by how much slopes move in a step, relative to their size: the gradient is smoothed as much.
        """
        with torch.no_grad():
            points = Points(self)
            m, v = points.best()
        if step <= 0.0:
            return self.at(m, v)
        with torch.no_grad():
            least = self.at(m, v)
            m, v, around, across = points.mean(step)
        cost = self.at(m, v) - 0.5 * self.weight * around + (0.5 * self.curvature * across * self.counts).sum(-1)
        return least + (cost - cost.detach())

    def least_point(self) -> tuple[Tensor, Tensor]:
        """The maximum and the entries of least cost, (P, O) and (P, O, K)."""
        return Points(self).best()

    def where(self, v: Tensor) -> Tensor:
        """The costs of entries within their ranges, (P, O)."""
        return self.at(v.amax(-1), v)

    def at(self, m: Tensor, v: Tensor) -> Tensor:
        """The cost of a maximum and the entries, (P, O)."""
        shares = 0.5 * self.curvature * (v - self.centre).square() - self.g * v
        return self.c * m - 0.5 * self.weight * (m - self.middle).square() + (shares * self.counts).sum(-1)


class Points:
    """Maxima one of which costs least: the least one of every part in which the cost is quadratic.

    Below the greatest p: in the j-th part the j entries of the greatest p are at m, the others at theirs. Above: one
    entry is at m. Costs are relative to the greatest p, so that sums over entries keep their digits.
    """

    def __init__(self, cell: WindowCell) -> None:
        self.cell = cell
        self.low, self.high = cell.low.clamp(-FAR, FAR), cell.high.clamp(-FAR, FAR)
        vertex = cell.centre + cell.g / cell.curvature.clamp(min=SMALL)
        self.p = torch.where(cell.counts, torch.minimum(torch.maximum(vertex, self.low), self.high), self.low)
        self.start = self.low.amax(-1, keepdim=True)
        self.top = torch.where(cell.counts, self.p, -torch.inf).amax(-1, keepdim=True)
        self.d, self.g = (torch.where(cell.counts, t, 0.0) for t in (cell.curvature, cell.g))
        self.share = 0.5 * self.d * (self.p - cell.centre).square() - self.g * (self.p - self.top)  # but for Σg·top
        below, above = self._below(), self._above()
        self.m, cost, self.moved = (torch.cat(pair, -1) for pair in zip(below, above, strict=True))
        self.cost = torch.nan_to_num(cost, nan=torch.inf, posinf=torch.inf)
        self.chosen = self.cost.argmin(-1, keepdim=True)

    def _below(self) -> tuple[Tensor, Tensor, Tensor]:
        """Maxima, costs and by how much entries leave p together, (P, O, K) each."""
        cell, entries = self.cell, self.p.shape[-1]
        p, order = self.p.sort(dim=-1, descending=True)
        d, g, share = (t.gather(-1, order) for t in (self.d, self.g, self.share))
        centre = cell.centre.gather(-1, order) - self.top
        number = cell.counts.expand(self.p.shape).gather(-1, order).to(p)
        ends = torch.maximum(p, self.start)
        x0 = torch.cat([ends[..., 1:], self.start], -1) - self.top
        x1 = torch.minimum(ends, self.top) - self.top
        firm, pull = d.cumsum(-1), (d * centre + g).cumsum(-1)
        x = self._least_between(x0, x1, firm, pull)
        tied = (0.5 * firm * x - pull) * x + 0.5 * (d * centre.square()).cumsum(-1)
        others = share.sum(-1, keepdim=True) - share.cumsum(-1)
        part = torch.arange(entries, device=p.device) == 0
        cost = torch.where(part | (p > self.start), self._of_maximum(x) + tied + others, torch.inf)
        moved = ((p - self.top) * number).cumsum(-1) - number.cumsum(-1) * x
        return x + self.top, cost, moved.clamp(min=0.0)

    def _above(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same, of every entry as the greatest."""
        cell, centre = self.cell, self.cell.centre - self.top
        x1 = (self.high - self.top).clamp(min=0.0)
        x = self._least_between(torch.zeros_like(x1), x1, self.d, self.d * centre + self.g)
        own = 0.5 * self.d * (x - centre).square() - self.g * x
        cost = self._of_maximum(x) + own + (self.share.sum(-1, keepdim=True) - self.share)
        cost = torch.where(cell.counts & (self.high >= self.top), cost, torch.inf)
        return x + self.top, cost, (x + (self.top - self.p)).clamp(min=0.0)

    def _of_maximum(self, x: Tensor) -> Tensor:
        """Of m = top + x."""
        cell = self.cell
        away = x + (self.top - cell.middle[..., None])
        return cell.c[..., None] * x - 0.5 * cell.weight[..., None] * away.square()

    def _least_between(self, x0: Tensor, x1: Tensor, firm: Tensor, pull: Tensor) -> Tensor:
        """Where ½ firm x² − pull x and the cost of the maximum together are least."""
        cell = self.cell
        weight = cell.weight[..., None]
        bend, pull = firm - weight, pull - cell.c[..., None] + weight * (self.top - cell.middle[..., None])
        inner = torch.minimum(torch.maximum(pull / bend.clamp(min=SMALL), x0), x1)
        falls = 0.5 * bend * (x0 + x1) < pull
        return torch.where(bend > 0, inner, torch.where(falls, x1, x0))

    def best(self) -> tuple[Tensor, Tensor]:
        """The maximum and the entries of least cost, (P, O) and (P, O, K)."""
        m, entries = self.m.gather(-1, self.chosen), self.p.shape[-1]
        alone = torch.arange(entries, device=m.device) == self.chosen - entries
        v = torch.where(self.chosen < entries, torch.minimum(self.p, m), torch.where(alone, m, self.p))
        v = torch.minimum(torch.maximum(v, self.low), self.high)  # which rounding may have left
        return torch.where(self.cell.counts, v, -torch.inf).amax(-1), v

    def mean(self, step: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means over points of nearly least cost, of maxima and entries, and mean squares of distances from these."""
        entries = self.p.shape[-1]
        own = self.moved.gather(-1, self.chosen)
        place = torch.arange(2 * entries, device=own.device)
        down = (place < entries) & (self.chosen < entries)  # both below the greatest p, one within the other
        away = torch.where(down, (self.moved - own).abs(), self.moved + own)
        away = torch.where(place == self.chosen, 0.0, away)
        counts = shares(self.cost, away, reach_of(self.cell.g, step), -1)
        m = (counts * self.m).sum(-1)
        around = (counts * (self.m - m[..., None]).square()).sum(-1)
        up = (self.m[..., entries:] - self.p).clamp(min=0.0)
        moved = counts[..., entries:] * up
        squares = moved * up
        for j in range(entries):
            down_by = (self.p - self.m[..., j, None]).clamp(min=0.0)
            part = counts[..., j, None] * down_by
            moved, squares = moved - part, squares + part * down_by
        return m, self.p + moved, around, (squares - moved.square()).clamp(min=0.0)
