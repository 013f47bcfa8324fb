"""Least values of the costs of maxima over windows, with their gradients, in floating point.

    min over v in [l, u] of  c m − ½T(m − z̃)² + Σ_i (½D_i(v_i − ṽ_i)² − g_i v_i),  m = max_i v_i

With p_i where the share of entry i alone is least: up to the greatest p every entry is at min(p_i, m); beyond it one is
at m, the others at p_i. So the cost is quadratic in m between the p_i. At the least point the gradient in all but the
range is that of the cost there, held fixed (Danskin).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.floors import one_more
from lipcert.search.cost_to_go.cells import FAR, SMALL


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

    def least(self) -> Tensor:
        """The least costs, (P, O), differentiable in all but the range."""
        with torch.no_grad():
            m, v = self._least_point()
        return self.at(m, v)

    def where(self, v: Tensor) -> Tensor:
        """The costs of entries within their ranges, (P, O)."""
        return self.at(v.amax(-1), v)

    def at(self, m: Tensor, v: Tensor) -> Tensor:
        """The cost of a maximum and the entries, (P, O)."""
        shares = 0.5 * self.curvature * (v - self.centre).square() - self.g * v
        return self.c * m - 0.5 * self.weight * (m - self.middle).square() + (shares * self.counts).sum(-1)

    def _least_point(self) -> tuple[Tensor, Tensor]:
        low, high = self.low.clamp(-FAR, FAR), self.high.clamp(-FAR, FAR)
        vertex = self.centre + self.g / self.curvature.clamp(min=SMALL)
        p = torch.minimum(torch.maximum(vertex, low), high)
        p = torch.where(self.counts, p, low)
        start, top = low.amax(-1), torch.where(self.counts, p, -torch.inf).amax(-1)
        best_m, best_v = top, torch.minimum(p, top[..., None])
        best = self.at(best_m, best_v)

        def offer(m: Tensor, v: Tensor, where: Tensor | None = None) -> None:
            nonlocal best, best_m, best_v
            cost = torch.nan_to_num(self.at(m, v), nan=torch.inf)
            better = cost < best if where is None else where & (cost < best)
            best, best_m = torch.where(better, cost, best), torch.where(better, m, best_m)
            best_v = torch.where(better[..., None], v, best_v)

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
            offer(m, torch.minimum(p, m[..., None]))
            x0 = x1
        for k in range(p.shape[-1]):
            tied = torch.zeros_like(self.counts)
            tied[..., k] = True
            m = vertex_of(top, torch.maximum(high[..., k], top), tied)
            v = p.clone()
            v[..., k] = m
            offer(m, v, self.counts[..., k] & (high[..., k] >= top))
        return best_m, best_v
