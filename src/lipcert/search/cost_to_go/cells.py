"""Least values of one-dimensional costs of an activation, with their gradients, in floating point.

    min over v in [l, u] of  cφ(v) − ½T(φ(v) − z̃)² − gv + ½D(v − ṽ)²

Where φ is made of lines, each line's part is a quadratic function with its least value at an end or at its vertex;
where it is curved, by a grid, a finer grid around its best point and a parabola. At the least point v* the gradient in
(c, T, z̃, g, D, ṽ) is that of the cost at v* held fixed (Danskin); where another line's point costs nearly as little,
a mean of both (``nearly_least``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lipcert.network.activations.clamp import Clamp
from lipcert.search.cost_to_go.nearly_least import reach_of, shares

if TYPE_CHECKING:
    from lipcert.network.nonlinearity import Nonlinearity

#: Parts of the first grid, and of the second one around the best point of the first.
COARSE, FINE = 12, 8
#: Ends of ranges are searched up to here.
FAR = 1e6
#: What a curvature is divided by at least.
SMALL = 1e-12


@dataclass(frozen=True, eq=False)
class Cell:
    """The costs of one activation: c, g, ṽ, l, u are (P, *shape); T, z̃, D that, or broadcast to it.

    Attributes:
        function: φ.
        c: linear cost of the value.
        weight, middle: T and z̃, the quadratic cost of the value.
        g: linear cost that is handed on to the argument.
        curvature, centre: D ≥ 0 and ṽ, the quadratic cost that is handed on.
        low, high: range of the argument.
    """

    function: Nonlinearity
    c: Tensor
    weight: Tensor
    middle: Tensor
    g: Tensor
    curvature: Tensor
    centre: Tensor
    low: Tensor
    high: Tensor

    def least(self, step: float = 0.0) -> Tensor:
        """Sum over the entries of the least costs, (P,), differentiable in all but the range.

        Args:
            step: by how much slopes move in a step, relative to their size: the gradient is smoothed as much.
        """
        return cast(Tensor, _Least.apply(step, *vars(self).values()))

    def at(self, v: Tensor, z: Tensor) -> Tensor:
        """The cost of an argument and its value."""
        return (
            self.c * z - 0.5 * self.weight * (z - self.middle).square()
            - self.g * v + 0.5 * self.curvature * (v - self.centre).square()
        )  # fmt: skip

    def least_point(self) -> tuple[Tensor, Tensor]:
        """The argument of least cost, and its value."""
        best = _Best(self)
        for v, z in self.points():
            best.take(v, z)
        return best.v, best.z

    def points(self) -> list[tuple[Tensor, Tensor]]:
        """Arguments and their values, one of which costs least; of a curved function the one that was found."""
        function = self.function
        if isinstance(function, Clamp) and function.low == 0.0 and function.high is None:
            return self._of_relu()
        return [self._curved()] if function.curved else self._of_lines()

    def _of_relu(self) -> list[tuple[Tensor, Tensor]]:
        bend = self.curvature - self.weight
        pull = self.curvature * self.centre - self.weight * self.middle - self.c + self.g
        start = self.low.clamp(min=0)
        vertex = torch.minimum(torch.maximum(pull / bend.clamp(min=SMALL), start), self.high)
        falls = 0.5 * bend * (self.high + start) < pull
        right = torch.where(bend > 0, vertex, torch.where(falls, self.high, start))
        left = self.centre + self.g / self.curvature.clamp(min=SMALL)
        left = torch.minimum(torch.maximum(left, self.low), self.high.clamp(max=0))
        left, right = torch.where(self.low < 0, left, right), torch.where(self.high > 0, right, left)
        return [(left, left.clamp(min=0)), (right, right.clamp(min=0))]

    def _of_lines(self) -> list[tuple[Tensor, Tensor]]:
        start, at_start = self.low, self._value(self.low)
        found = [(start, at_start)]
        for end in (*self._kinks(), self.high):
            at_end = self._value(end)
            wide = end > start
            slope = torch.where(wide, (at_end - at_start) / torch.where(wide, end - start, 1.0), 0.0)
            bend = self.curvature - self.weight * slope.square()
            offset = at_start - slope * start - self.middle
            pull = self.curvature * self.centre + self.weight * slope * offset - self.c * slope + self.g
            vertex = torch.minimum(torch.maximum(pull / bend.clamp(min=SMALL), start), end)
            found += [(end, at_end), (vertex, self._value(vertex))]
            start, at_start = end, at_end
        return found

    def _value(self, v: Tensor) -> Tensor:
        """φ(v)."""
        return torch.as_tensor(self.function(v), dtype=v.dtype).expand(v.shape)

    def _curved(self) -> tuple[Tensor, Tensor]:
        best = _Best(self)
        step = (self.high - self.low) / COARSE
        for k in range(COARSE + 1):
            best.offer(torch.minimum(self.low + k * step, self.high))
        for kink in self._kinks():
            best.offer(kink)
        for parts in (FINE, 2):
            middle, step = best.v, step * (2.0 / parts)
            for k in range(-parts // 2, parts // 2 + 1):
                best.offer(torch.minimum(torch.maximum(middle + k * step, self.low), self.high))
        best.offer(self._vertex(best.v, step))
        return best.v, best.z

    def _vertex(self, middle: Tensor, step: Tensor) -> Tensor:
        """Of the parabola through the costs at and around a point."""
        before, here, after = (self.at(v, self.function(v)) for v in (middle - step, middle, middle + step))
        bend = (before - here) + (after - here)
        move = torch.where(bend > 0, 0.5 * (before - after) / bend.clamp(min=SMALL), 0.0).clamp(-1.0, 1.0)
        return torch.minimum(torch.maximum(middle + move * step, self.low), self.high)

    def _kinks(self) -> list[Tensor]:
        """Within the range, from left to right."""
        positions = [torch.as_tensor(k.position, dtype=self.low.dtype) for k in self.function.kinks]
        clamped = [torch.minimum(torch.maximum(p.to(self.low.device), self.low), self.high) for p in positions]
        return list(torch.stack(clamped).sort(dim=0).values) if clamped else []


class _Best:
    """The best of the points that were offered."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.v = self.z = self.cost = cell.low

    def offer(self, v: Tensor) -> None:
        self.take(v, self.cell._value(v))

    def take(self, v: Tensor, z: Tensor) -> None:
        """With its value."""
        cost = torch.nan_to_num(self.cell.at(v, z), nan=torch.inf)
        if self.cost is self.cell.low:
            self.v, self.z, self.cost = v, z, cost
        else:
            better = cost < self.cost
            self.v, self.z = torch.where(better, v, self.v), torch.where(better, z, self.z)
            self.cost = torch.where(better, cost, self.cost)


class _Least(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: float, *fields: Any) -> Tensor:
        *others, low, high = fields
        cell = Cell(*others, low.clamp(-FAR, FAR), high.clamp(-FAR, FAR))  # type: ignore[call-arg]
        points, best = cell.points(), _Best(cell)
        for v, z in points:
            best.take(v, z)
        v, z, across, around = best.v, best.z, None, None
        if step > 0.0 and len(points) > 1:
            v, z, across, around = _mean(cell, points, best.v, step)
        ctx.save_for_backward(v, z, across, around, cell.weight, cell.middle, cell.curvature, cell.centre)
        return cell.at(best.v, best.z).flatten(1).sum(1)  # NaN where it is that

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        v, z, across, around, weight, middle, curvature, centre = ctx.saved_tensors
        row = gradient.reshape(-1, *[1] * (v.dim() - 1))
        away, moved = z - middle, v - centre
        squares = (
            (moved.square(), away.square()) if across is None else (moved.square() + across, away.square() + around)
        )

        def asked(place: int, value: Tensor, like: Tensor) -> Tensor | None:
            return value.sum_to_size(like.shape) if ctx.needs_input_grad[place] else None

        return (
            None,
            None,
            asked(2, row * z, v),
            asked(3, row * squares[1].mul(-0.5), weight),
            asked(4, row * away * weight, middle),
            asked(5, -row * v, v),
            asked(6, row * squares[0].mul(0.5), curvature),
            asked(7, -row * moved * curvature, centre),
            None,
            None,
        )


def _mean(cell: Cell, points: list[tuple[Tensor, Tensor]], best: Tensor, step: float) -> tuple[Tensor, ...]:
    """Means of arguments and values over points of nearly least cost, and mean squares of the distances from these."""
    v, z = torch.stack([v for v, _ in points]), torch.stack([z for _, z in points])
    costs = torch.nan_to_num(cell.at(v, z), nan=torch.inf)
    counts = shares(costs, (v - best).abs(), reach_of(cell.g, step), 0)
    arguments, values = (counts * v).sum(0), (counts * z).sum(0)
    return arguments, values, (counts * (v - arguments).square()).sum(0), (counts * (z - values).square()).sum(0)
