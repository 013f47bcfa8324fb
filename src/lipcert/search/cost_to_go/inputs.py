"""Domains in batches, and the least value on them of a linear and concave quadratic cost of the input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Halvings of the interval that a ball's multiplier is searched in.
HALVINGS = 60
#: Open sides of boxes are searched up to here.
FAR = 1e6


@dataclass(frozen=True, eq=False)
class Domains:
    """Balls of one norm within boxes, one per example.

    Attributes:
        center: (B, *shape).
        radius: (B,); infinite for boxes alone.
        p: 1, 2 or inf.
        low, high: ends of the boxes, (B, *shape); infinite where open.
    """

    center: Tensor
    radius: Tensor
    p: float
    low: Tensor
    high: Tensor

    def at(self, rows: Tensor) -> Domains:
        """Those of some examples."""
        return Domains(self.center[rows], self.radius[rows], self.p, self.low[rows], self.high[rows])

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Domains:
        """In another dtype and on another device."""
        return Domains(
            self.center.to(device, dtype), self.radius.to(device, dtype), self.p,
            self.low.to(device, dtype), self.high.to(device, dtype),
        )  # fmt: skip

    @property
    def plain(self) -> bool:
        """Whether there are no boxes."""
        return not bool(self.low.isfinite().any() or self.high.isfinite().any())

    @property
    def alike(self) -> bool:
        """Whether all coordinates are: a quadratic cost of its own for each does not pay."""
        return self.p == 2 and self.plain

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Boxes around the domains."""
        radius = by_row(self.radius, self.center)
        low, high = self.center - radius, self.center + radius
        low = torch.where(low.isnan(), -math.inf, low)
        high = torch.where(high.isnan(), math.inf, high)
        return torch.maximum(self.low, low).clamp(min=-FAR), torch.minimum(self.high, high).clamp(max=FAR)

    @property
    def lengths(self) -> Tensor:
        """How far the points are from the centre at most in l2, (B,)."""
        low, high = self.ends
        corner = torch.maximum(high - self.center, self.center - low).flatten(1).norm(dim=1)
        return corner if self.p == math.inf else torch.minimum(corner, self.radius)

    def least_point(self, c: Tensor, weight: Tensor, middle: Tensor, halvings: int = HALVINGS) -> tuple[Tensor, Tensor]:
        """Where min over x of c·x − ½ΣT(x − x̃)² + ½λ(‖x − x̂‖² − ρ²) is attained, and λ, for the best λ ≥ 0 found.

        For every λ this is a lower bound of the minimum over the ball and box; with λ = 0 wherever the ball is none of
        l2, or the point lies on the sphere anyhow.
        """
        none = torch.zeros_like(self.radius)
        if self.p == math.inf:
            low, high = self.ends
            return _end(c, weight, middle, low, high), none
        a = c + weight * (middle - self.center)
        if self.p == 1:
            return self._vertex(a, weight, c, middle), none
        if self.plain and weight.numel() == len(weight):
            length = a.flatten(1).norm(dim=1).clamp(min=1e-30)
            return self.center - a * by_row(self.radius / length, a), none
        return self._through_ball(c, weight, middle, a, halvings)

    def _vertex(self, a: Tensor, weight: Tensor, c: Tensor, middle: Tensor) -> Tensor:
        """Of an l1 ball, the one of least cost; the box is not used."""
        gain = by_row(self.radius, a) * a.abs() + 0.5 * weight * by_row(self.radius, a).square()
        place = gain.flatten(1).argmax(1, keepdim=True)
        move = torch.zeros_like(a).flatten(1)
        move.scatter_(1, place, -a.flatten(1).gather(1, place).sign() * self.radius[:, None])
        return self.center + move.reshape(a.shape)

    def _through_ball(
        self, c: Tensor, weight: Tensor, middle: Tensor, a: Tensor, halvings: int
    ) -> tuple[Tensor, Tensor]:
        """λ by halving: the distance of the least point from the centre falls as λ grows."""
        low, high = self.ends
        radius = self.radius.clamp(min=1e-30)
        most = weight.flatten(1).amax(1) + a.flatten(1).norm(dim=1) / radius
        least, most = (most * 1e-9).clamp(min=1e-30).log(), most.clamp(min=1e-30).log()

        def point(multiplier: Tensor) -> Tensor:
            rows = by_row(multiplier, c)
            bend = rows - weight
            vertex = (rows * self.center - weight * middle - c) / bend.clamp(min=1e-30)
            vertex = torch.minimum(torch.maximum(vertex, low), high)
            return torch.where(bend > 0, vertex, _end(c, weight, middle, low, high, rows, self.center))

        for _ in range(halvings):
            half = 0.5 * (least + most)
            outside = (point(half.exp()) - self.center).flatten(1).norm(dim=1) > radius
            least, most = torch.where(outside, half, least), torch.where(outside, most, half)
        found = most.exp()
        return point(found), found

    def least(self, c: Tensor, weight: Tensor, middle: Tensor, halvings: int = HALVINGS) -> Tensor:
        """The least cost, or what is found below it: (P,), differentiable in c, T and x̃."""
        with torch.no_grad():
            x, multiplier = self.least_point(c, weight, middle, halvings)
            away = (x - self.center).flatten(1).square().sum(1) - self.radius.square()
            ball = torch.where(multiplier > 0, 0.5 * multiplier * away, 0.0)
        return (c * x - 0.5 * weight * (x - middle).square()).flatten(1).sum(1) + ball


def by_row(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers (P,) in a shape that multiplies (P, …)."""
    return numbers.reshape(-1, *[1] * (like.dim() - 1))


def _end(
    c: Tensor, weight: Tensor, middle: Tensor, low: Tensor, high: Tensor,
    multiplier: Tensor | float = 0.0, center: Tensor | float = 0.0,
) -> Tensor:  # fmt: skip
    """The better end of each coordinate's interval, of a cost without an inner minimum."""
    half = 0.5 * (low + high)
    rises = c - weight * (half - middle) + multiplier * (half - center)
    return torch.where(rises > 0, low, high)
