"""Least values of the costs of maxima over windows, with their gradients, in floating point.

    min over v in [l, u] of  c m − ½T(m − z̃)² + Σ_i (½D_i(v_i − ṽ_i)² − g_i v_i),  m = max_i v_i

With p_i where the share of entry i alone is least: up to the greatest p every entry is at min(p_i, m); beyond it one is
at m, the others at p_i. So the cost is quadratic in m between the p_i. At the least point the gradient in all but the
range is that of the cost there, held fixed (Danskin), or a mean over points that cost nearly as little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.floors import one_more
from lipcert.search.cost_to_go.cells import FAR, SMALL
from lipcert.search.cost_to_go.nearly_least import mean, reach_of, shares


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
            points = self._points()
            least, m, v = self._best(points)
        if step <= 0.0:
            return self.at(m, v)
        with torch.no_grad():
            away = [((q - v).abs() * self.counts).sum(-1) for _, q, _ in points]
            counts = shares([cost for _, _, cost in points], away, reach_of(self.g, step)[..., 0])
            m, v = mean(counts, [p for p, _, _ in points]), mean(counts, [q for _, q, _ in points])
            around = mean(counts, [(p - m).square() for p, _, _ in points])
            across = mean(counts, [(q - v).square() for _, q, _ in points])
        cost = self.at(m, v) - 0.5 * self.weight * around + (0.5 * self.curvature * across * self.counts).sum(-1)
        return least + (cost - cost.detach())

    def where(self, v: Tensor) -> Tensor:
        """The costs of entries within their ranges, (P, O)."""
        return self.at(v.amax(-1), v)

    def at(self, m: Tensor, v: Tensor) -> Tensor:
        """The cost of a maximum and the entries, (P, O)."""
        shares = 0.5 * self.curvature * (v - self.centre).square() - self.g * v
        return self.c * m - 0.5 * self.weight * (m - self.middle).square() + (shares * self.counts).sum(-1)

    def least_point(self) -> tuple[Tensor, Tensor]:
        """The maximum and the entries of least cost, (P, O) and (P, O, K)."""
        return self._best(self._points())[1:]

    @staticmethod
    def _best(points: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Its cost, the maximum and the entries."""
        m, v, least = points[0]
        for p, q, cost in points[1:]:
            better = cost < least
            least, m, v = (
                torch.where(better, cost, least),
                torch.where(better, p, m),
                torch.where(better[..., None], q, v),
            )
        return least, m, v

    def _points(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Maxima (P, O), their entries and costs, infinite where that is no point: one of them costs least."""
        low, high = self.low.clamp(-FAR, FAR), self.high.clamp(-FAR, FAR)
        vertex = self.centre + self.g / self.curvature.clamp(min=SMALL)
        p = torch.minimum(torch.maximum(vertex, low), high)
        p = torch.where(self.counts, p, low)
        start, top = low.amax(-1), torch.where(self.counts, p, -torch.inf).amax(-1)
        found: list[tuple[Tensor, Tensor, Tensor]] = []

        def add(m: Tensor, v: Tensor) -> Tensor:
            cost = torch.nan_to_num(self.at(m, v), nan=torch.inf)
            found.append((m, v, cost))
            return cost

        add(top, torch.minimum(p, top[..., None]))

        def vertex_of(x0: Tensor, x1: Tensor, tied: Tensor) -> Tensor:
            d, g = (torch.where(tied, t, 0.0) for t in (self.curvature, self.g))
            bend = d.sum(-1) - self.weight
            pull = (d * self.centre + g).sum(-1) - self.weight * self.middle - self.c
            inner = torch.minimum(torch.maximum(pull / bend.clamp(min=SMALL), x0), x1)
            falls = 0.5 * bend * (x0 + x1) < pull
            return torch.where(bend > 0, inner, torch.where(falls, x1, x0))

        cuts = torch.maximum(p, start[..., None]).sort(dim=-1).values
        x0 = start
        for j in range(p.shape[-1]):
            x1 = torch.minimum(cuts[..., j], top)
            m = vertex_of(x0, x1, self.counts & (p >= x1[..., None]))
            add(m, torch.minimum(p, m[..., None]))
            x0 = x1
        for k in range(p.shape[-1]):
            tied = torch.zeros_like(self.counts)
            tied[..., k] = True
            m = vertex_of(top, torch.maximum(high[..., k], top), tied)
            v = p.clone()
            v[..., k] = m
            cost = add(m, v)
            cost.masked_fill_(~(self.counts[..., k] & (high[..., k] >= top)), torch.inf)
        return found
