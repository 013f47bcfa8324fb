"""Linear functions on the part of a ball that a box leaves, by one multiplier of the ball for each function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.domain import Ball
from lipcert.numerics.interval import Interval

#: Entries of a chunk of rows: what a cache holds.
CHUNK = 1 << 17
#: Steps towards the best multiplier of an l2 ball; each is right, and few coordinates meet their ends late.
STEPS = 4
#: Of the radius: less is not cut off.
LEAST = 1e-6


class CutBall:
    """Where ``low`` ≤ d ≤ ``high`` and ‖d‖_p ≤ ρ, d being what a point of an l1 or l2 ball is away from its centre.

    Attributes:
        low, high: rounded outward, within ±ρ, (n,).
        cuts: whether the box cuts anything off.
    """

    def __init__(self, ball: Ball, box: Interval) -> None:
        centre = ball.center.detach().to("cpu", torch.float64).reshape(-1)
        self.p, self.radius = float(ball.p), ball.radius
        ends = [box.low.reshape(-1) - centre, box.high.reshape(-1) - centre]
        far = torch.full_like(centre, math.inf)
        outward = torch.nextafter(ends[0], -far), torch.nextafter(ends[1], far)
        self.low, self.high = (end.clamp(-self.radius, self.radius) for end in outward)  # as no |d_i| exceeds ρ
        reach = self.radius * (1.0 - LEAST)
        self.cuts = self.p < math.inf and self.radius > 0 and bool(((self.low > -reach) | (self.high < reach)).any())

    def greatest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Upper bounds of rows·d but for rounding, (R,), and the sums of the sizes of what they are added from.

        For every λ ≥ 0, c·d ≤ λ ρ²/2 + Σ max (c_i d_i − λ d_i²/2) on an l2 ball, and c·d ≤ λ ρ + Σ max (c_i d_i −
        λ |d_i|) on an l1 ball, the maxima being over [low_i, high_i]. The first are attained at c_i/λ or the end next
        to it; where c_i/λ is rounded by εc_i/λ, they are missed by at most ε²c_i²/(2λ), far below a rounding of the
        sizes. What vanishes below the normal numbers is multiplied by no more than ρ, as λ is never halved alone. NaN
        where numbers are too large.
        """
        bound = self._on_l2 if self.p == 2.0 else self._on_l1
        parts = [bound(part) for part in rows.split(max(1, CHUNK // max(1, rows.shape[1])))]
        tops, sizes = zip(*parts, strict=True) if parts else ((rows.new_zeros(0),), (rows.new_zeros(0),))
        return torch.cat(tops), torch.cat(sizes)

    def _on_l2(self, c: Tensor) -> tuple[Tensor, Tensor]:
        squares = c.square()
        pull = squares.sum(dim=1).sqrt() / self.radius
        for _ in range(STEPS):
            free = c / pull[:, None]
            d = free.clamp(self.low, self.high)
            inner = d == free
            left = self.radius * self.radius - torch.where(inner, 0.0, d.square()).sum(dim=1)
            better = (torch.where(inner, squares, 0.0).sum(dim=1) / left).sqrt()  # NaN or 0: all are at their ends
            pull = torch.where((better > 0) & better.isfinite(), better, pull)
        d = (c / pull[:, None]).clamp(self.low, self.high)
        half, spent = 0.5 * (pull[:, None] * d), 0.5 * (pull * self.radius) * self.radius  # ρ² may vanish
        top = (d * (c - half)).sum(dim=1) + spent
        return top, (d.abs() * (c.abs() + half.abs())).sum(dim=1) + spent

    def _on_l1(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The steepest coordinates go to their ends until the radius is spent; λ is how steep the next one is."""
        room = torch.where(c > 0, self.high, -self.low).clamp(min=0.0)
        steep, order = c.abs().sort(dim=1, descending=True)
        spent = room.gather(1, order).cumsum(dim=1)
        last = (spent < self.radius).sum(dim=1, keepdim=True)
        pull = torch.where(last < c.shape[1], steep.gather(1, last.clamp(max=c.shape[1] - 1)), 0.0)
        least = torch.zeros_like(self.low).clamp(self.low, self.high)
        ends = [(c * d - pull * d.abs(), d.abs()) for d in (self.low, self.high, least)]
        parts, far = ends[0][0].maximum(ends[1][0]).maximum(ends[2][0]), ends[0][1].maximum(ends[1][1])
        own = pull[:, 0] * self.radius
        return parts.sum(dim=1) + own, (far * (c.abs() + pull)).sum(dim=1) + own
