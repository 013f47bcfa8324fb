"""Least values, over boxes, of the share of a maximum whose quadratic cost is one of its window in a basis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.cells import FLOOR, SUBNORMAL, on_interval
from lipcert.certificates.cost_to_go.floors import bordered, one_more
from lipcert.numerics.midrad import UNIT, UP

#: Sweeps over the entries of a window before a proof, and steps of Newton's method in each.
SWEEPS, INNER = 12, 3
#: By how much a cost is more convex than it must be.
ROOM = 1.0 + 2.0**-16
#: Ends of ranges are taken for this at most where a least point is looked for, and what a curvature is at least.
FAR, SMALL = 1e30, 1e-30


@dataclass(frozen=True, eq=False)
class BasisCell:
    """F(v) = c m − ½ T (m − z̃)² − g·v + ½ Σ_r D_r (B v − ũ)_r² with m = max_i v_i, window by window; T, D ≥ 0.

    Attributes:
        cost, weight, anchor: c, T and z̃, (P, O).
        slope: g, (P, O, K).
        curvature, centre: D and ũ, of u = B v, (P, O, K).
        low, high: the box of v, (O, K) or (P, O, K).
        counts: (O, K), whether an entry is one of the window's, and no repetition of another.
        matrix, inverse: B, and about its inverse S, (O, K, K).
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
    matrix: Tensor
    inverse: Tensor

    @property
    def middle(self) -> Tensor:
        """ṽ = S ũ, (P, O, K)."""
        return times(self.inverse, self.centre)

    @property
    def hessian(self) -> Tensor:
        """BᵀDB, (P, O, K, K)."""
        return self.matrix.mT @ (self.curvature.unsqueeze(-1) * self.matrix)

    @property
    def firmness(self) -> Tensor:
        """λ_i = 1/Σ_r S_ir²/D_r, (P, O, K): about the greatest λ with BᵀDB ⪰ λ e_i e_iᵀ; 0 for no entry of its own."""
        shares = (self.inverse.square() + SMALL**9) / self.curvature.unsqueeze(-2)  # no square vanishes
        total = torch.where(self.inverse == 0, 0.0, shares).sum(-1)
        return torch.where(self.counts, total.reciprocal().nan_to_num(0.0, 0.0), 0.0)

    def with_number(self, number: Tensor) -> BasisCell:
        """With one more entry in every window that is a number, (O,) or (P, O), and costs nothing: m is no less.

        Its rows and columns of B and S are 0, so that its λ is 0, too: where it is the greatest, m does not move.
        """
        return replace(
            self, slope=one_more(self.slope, 0.0), curvature=one_more(self.curvature, 0.0),
            centre=one_more(self.centre, 0.0), low=one_more(self.low, number), high=one_more(self.high, number),
            counts=one_more(self.counts, 1.0), matrix=bordered(self.matrix), inverse=bordered(self.inverse),
        )  # fmt: skip


def times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """A v for every window: (O, K, K) and (..., O, K)."""
    return (matrices * vectors.unsqueeze(-2)).sum(-1)


def least_points(cell: BasisCell, sweeps: int, inner: int) -> Tensor:
    """About where F is least with entry i the greatest, for every i: v of that, (P, O, K cases, K entries).

    Entry by entry, then by steps of Newton's method in what these leave free. Where neither gains, nothing does: the
    gradients of entries that are tied with the greatest are the multipliers of v_k ≤ v_i.
    """
    return _Descent(cell).run(sweeps, inner)


class _Descent:
    """All entries as the greatest, side by side, that one first: of every entry a tensor (K cases, P, O)."""

    def __init__(self, cell: BasisCell) -> None:
        size = cell.low.shape[-1]
        self.order = [[i, *(j for j in range(size) if j != i)] for i in range(size)]
        self.entries, self.shape = range(size), (size, *cell.cost.shape)
        below = cell.low.clamp(-FAR, FAR)
        above = torch.where(cell.counts, cell.high.clamp(-FAR, FAR), below)
        self.low, self.high = self._each(below), self._each(above)
        self.low[0] = below.amax(-1).expand(self.shape)  # where the greatest entry begins
        self.high[0] = torch.maximum(self.low[0], self.high[0])
        self.matrix = [self._each(cell.hessian, a) for a in self.entries]
        self.matrix[0][0] = self.matrix[0][0] - cell.weight
        middle = self._each(cell.middle)
        v = [torch.minimum(torch.maximum(middle[a], self.low[a]), self.high[a]) for a in self.entries]
        top = torch.minimum(torch.stack(v).amax(0), self.high[0])
        self.v = [top, *(torch.minimum(t, top) for t in v[1:])]
        away = [t - m for t, m in zip(self.v, middle, strict=True)]
        self.gradient = [-g for g in self._each(cell.slope)]
        self.gradient[0] = self.gradient[0] + cell.cost - cell.weight * (middle[0] - cell.anchor)
        self._follow(away)

    def _each(self, t: Tensor, row: int | None = None) -> list[Tensor]:
        """Entries, or a row of matrices, in the order of every case."""

        def place(order: list[int], a: int) -> Tensor:
            return t[..., order[a]] if row is None else t[..., order[row], order[a]]

        return [torch.stack([place(o, a).expand(self.shape[1:]) for o in self.order]) for a in self.entries]

    def run(self, sweeps: int, inner: int) -> Tensor:
        """Back in the order of the entries."""
        for _ in range(sweeps):
            for a in self.entries:
                self._single(a)
            held = [torch.zeros_like(self.v[0], dtype=torch.bool) for _ in self.entries]
            for _ in range(inner):
                held = self._together(held)
        cases = [torch.stack([self.v[o.index(j)][i] for j in self.entries], -1) for i, o in enumerate(self.order)]
        return torch.stack(cases, -2)

    def _follow(self, steps: Sequence[Tensor]) -> None:
        """The gradient after steps of all entries."""
        for a in self.entries:
            for b in self.entries:
                self.gradient[a] = torch.addcmul(self.gradient[a], self.matrix[a][b], steps[b])

    def _single(self, a: int) -> None:
        """Entry a alone."""
        v, slope, bend = self.v[a], self.gradient[a], self.matrix[a][a]
        start = self.low[a] if a else torch.stack([self.low[0], *self.v[1:]]).amax(0)
        end = torch.minimum(self.high[a], self.v[0]) if a else self.high[0]
        inner = v - slope / bend.clamp(min=SMALL)
        if not a:  # which may bend the other way
            falls = slope + bend * (0.5 * start + 0.5 * end - v) < 0
            inner = torch.where(bend > SMALL, inner, torch.where(falls, end, start))
        self.v[a] = torch.maximum(torch.minimum(inner, end), start)
        step = self.v[a] - v
        for b in self.entries:
            self.gradient[b] = torch.addcmul(self.gradient[b], self.matrix[a][b], step)

    def _together(self, held: Sequence[Tensor]) -> list[Tensor]:
        """All entries that are not held at an end of their range, those tied with the greatest together with it."""
        v, gradient, others = self.v, self.gradient, self.entries[1:]
        tied = {a: v[a] >= v[0] for a in others}
        up = sum((torch.where(tied[a], gradient[a], 0.0) for a in others), gradient[0]) < 0
        tied = {a: tied[a] & ~(up & (v[a] >= self.high[a])) for a in others}  # which goes down with it, but not up
        ended = {
            a: held[a]
            | ((gradient[a] > 0) & (v[a] <= self.low[a]))
            | ((gradient[a] < 0) & (v[a] >= self.high[a]))
            | (v[a] >= v[0]) & ~tied[a]
            for a in others
        }
        share = {a: tied[a].to(v[0]) for a in others}
        free = {a: (~(tied[a] | ended[a])).to(v[0]) for a in others}
        along = [sum((share[a] * self.matrix[a][b] for a in others), self.matrix[0][b]) for b in self.entries]
        slope = sum((share[a] * gradient[a] for a in others), gradient[0])
        bend = sum((share[a] * along[a] for a in others), along[0])
        stuck = torch.where(up, (slope >= 0) | (v[0] >= self.high[0]), v[0] <= self.low[0])
        moves = (~stuck).to(v[0])
        system = {
            (a, b): free[a] * free[b] * self.matrix[a][b] + (1.0 - free[a] if a == b else 0.0)
            for a in others for b in others if a <= b
        }  # fmt: skip
        system |= {(0, a): moves * free[a] * along[a] for a in others}
        system[0, 0] = bend
        right = [-slope * moves, *(-free[a] * gradient[a] for a in others)]
        step = _solved(system, right, moves)
        step = [step[0], *(torch.where(tied[a], step[0], step[a]) for a in others)]
        ways = [self._room(v[a], step[a], self.low[a], self.high[a]) for a in self.entries]
        closer = {a: torch.where(tied[a], 0.0, step[a] - step[0]) for a in others}
        meets = {a: torch.where(closer[a] > 0, (v[0] - v[a]) / closer[a].clamp(min=SMALL), math.inf) for a in others}
        rate = torch.stack([*ways, *meets.values()]).amin(0).clamp(0.0, 1.0)
        reached = rate * (1.0 + 1e-6)
        ends = [torch.where(step[a] > 0, self.high[a], self.low[a]) for a in self.entries]
        new = [torch.where(ways[a] <= reached, ends[a], v[a] + rate * step[a]) for a in self.entries]
        for a in others:
            new[a] = torch.where(tied[a] | (meets[a] <= reached), new[0], new[a])
            new[a] = torch.minimum(torch.maximum(torch.minimum(new[a], new[0]), self.low[a]), self.high[a])
        self._follow([n - t for n, t in zip(new, v, strict=True)])
        self.v = new
        return [ways[a] <= reached if not a else ended[a] | (ways[a] <= reached) for a in self.entries]

    @staticmethod
    def _room(v: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The part of a step that stays within a range; ∞ for none."""
        room = torch.where(step > 0, high - v, v - low)
        return torch.where(step == 0, math.inf, room / step.abs().clamp(min=SMALL))


def _solved(system: dict[tuple[int, int], Tensor], right: list[Tensor], moves: Tensor) -> list[Tensor]:
    """A⁻¹ b of symmetric matrices, of which the upper half is given; x_0 = 0 where it does not move, or would climb."""
    last = len(right) - 1
    for p in range(last, 0, -1):  # the greatest entry last, as its pivot alone may not be positive
        pivot = system[p, p].clamp(min=SMALL).reciprocal()
        for a in range(p):
            factor = system[a, p] * pivot
            for b in range(a, p):
                system[a, b] = torch.addcmul(system[a, b], factor, system[b, p], value=-1.0)
            right[a] = torch.addcmul(right[a], factor, right[p], value=-1.0)
    found = [torch.where((system[0, 0] > SMALL) & (moves > 0), right[0] / system[0, 0].clamp(min=SMALL), 0.0)]
    for p in range(1, last + 1):
        rest = right[p]
        for a in range(p):
            rest = torch.addcmul(rest, system[a, p], found[a], value=-1.0)
        found.append(rest / system[p, p].clamp(min=SMALL))
    return found


def least(cell: BasisCell) -> Tensor:
    """A lower bound of F on the box, (P, O), rounding included.

    Let w = v − ṽ, f = B ṽ − ũ and p be any vector. Then ½ Σ D (B w + f)² ≥ ½ wᵀHw − Σ D |f| |B w|, H = BᵀDB. For the
    entry i, d = w − p: with E = 1 − S B, d_i = (S B d)_i + (E d)_i, and by Cauchy and Schwarz |(S B d)_i| ≤
    (dᵀHd / λ_i)^½; so dᵀHd ≥ λ_i d_i² − 2 λ_i |d_i| |E d|_i, and

        ½ wᵀHw ≥ pᵀHw − ½ pᵀHp + ½ λ_i (w_i − p_i)² − λ_i |d_i| |E d|_i.

    Where entry i is the greatest, m = v_i, this is, with h = H p − g, Σ_k h_k v_k and a quadratic in m; each of the
    other entries is in [l_k, min(u_k, m)], so that h_k v_k is at least h_k l_k where h_k ≥ 0, and h_k min(u_k, m) where
    not. What is left is quadratic in m between the u_k. Every p gives a bound; the nearer v = ṽ + p is to the least
    point with entry i the greatest, the better.

    Every number is a sum of some dozens of terms for each pair of entries, so that (256 + 64 K²) units in the last
    place of the sum of their sizes cover its rounding.
    """
    own, number = convex(cell)
    a, b = cell.low.amax(-1).abs(), cell.high.abs().amax(-1)
    sizes = (cell.weight - own.weight) * (a + 2.0 * b + 2.0 * cell.anchor.abs()).square() + own.cost.abs() * (a + b)
    found = _Cases(own).least() + number - (32.0 * UNIT * (sizes + number.abs()) + FLOOR)
    return torch.where(found.isfinite(), found, -math.inf)


def convex(cell: BasisCell) -> tuple[BasisCell, Tensor]:
    """A cost that is convex whichever entry is the greatest, and a number; F is nowhere less than both together.

    What is not convex would be least far from any tangent. So where T exceeds the least λ_i of the entries that can
    move, the rest e of it is replaced by its chord between the ends a and b of m,

        −½ e (m − z̃)² ≥ −½ e (a + b − 2 z̃) m + ½ e (a b − z̃²).
    """
    moving = cell.counts & (cell.high > cell.low)
    most = torch.where(moving, cell.firmness, math.inf).amin(-1) / ROOM
    weight = torch.minimum(cell.weight, most)
    rest = cell.weight - weight
    a = cell.low.amax(-1)
    b = torch.maximum(torch.where(cell.counts, cell.high, a.unsqueeze(-1)).amax(-1), a)
    slope = torch.where(rest > 0, 0.5 * rest * (a + b - 2.0 * cell.anchor), 0.0)
    number = torch.where(rest > 0, 0.5 * rest * (a * b - cell.anchor.square()), 0.0)
    return replace(cell, cost=cell.cost - slope, weight=weight), number


class _Cases:
    """All entries as the greatest, side by side: (P, O, K)."""

    def __init__(self, cell: BasisCell) -> None:
        self.cell = cell
        counts, size = cell.counts, cell.low.shape[-1]
        self.curvature = torch.where(counts, cell.curvature, 0.0)
        self.slope = torch.where(counts, cell.slope, 0.0)
        self.middle = cell.middle
        self.point = least_points(cell, SWEEPS, INNER).nan_to_num(0.0, FAR, -FAR) - self.middle.unsqueeze(-2)  # p
        image = times(cell.matrix.unsqueeze(-3), self.point)
        tilt = times(cell.matrix.mT.unsqueeze(-3), self.curvature.unsqueeze(-2) * image)  # H p
        self.tilt = tilt - self.slope.unsqueeze(-2)
        self.own = self.tilt.diagonal(dim1=-2, dim2=-1)
        self.firmness = cell.firmness * (1.0 - (2.0 * size + 16.0) * UNIT)
        self.constant = -(tilt * (self.middle.unsqueeze(-2) + 0.5 * self.point)).sum(-1)
        self.at = self.middle + self.point.diagonal(dim1=-2, dim2=-1)  # ṽ_i + p_i
        self.lost = self._lost(size)

    def _lost(self, size: int) -> Tensor:
        """Roundings, f and E."""
        c, absolute = self.cell, self.cell.matrix.abs()
        largest = torch.maximum(c.low.abs(), c.high.abs())
        whole = largest.amax(-1)
        middle, point = self.middle.abs(), self.point.abs()
        away = (largest + middle) * UP
        far = away.unsqueeze(-2) + point  # ≥ |d|
        tilt = times(absolute.mT.unsqueeze(-3), self.curvature.unsqueeze(-2) * times(absolute.unsqueeze(-3), point))
        own = c.cost.abs() * whole + c.weight * (whole + c.anchor.abs()).square()
        sizes = own[..., None] + (self.slope.abs() * largest).sum(-1)[..., None]
        sizes = sizes + (tilt * (largest.unsqueeze(-2) + middle.unsqueeze(-2) + point)).sum(-1)
        sizes = sizes + self.firmness * (whole[..., None] + self.at.abs()).square()
        off = times(c.matrix, self.middle) - c.centre
        off = off.abs() + (size + 4.0) * UNIT * (times(absolute, middle) + c.centre.abs())
        moved = (self.curvature * off * times(absolute, away)).sum(-1)[..., None]
        unit = torch.eye(size, dtype=torch.float64)
        error = (unit - c.inverse @ c.matrix).abs() + (size + 4.0) * UNIT * (unit + c.inverse.abs() @ absolute)
        mixed = self.firmness * far.diagonal(dim1=-2, dim2=-1) * (error * far).sum(-1)  # case i has the row i of E
        underflow = (size + 1.0) ** 2 * (FLOOR + 4.0 * SUBNORMAL * (whole + self.curvature.amax(-1)))[..., None]
        return ((256.0 + 64.0 * size * size) * UNIT * sizes + (moved + mixed) * (1.0 + 2.0**-20)) * UP + underflow

    def least(self) -> Tensor:
        c, size = self.cell, self.cell.low.shape[-1]
        start, ends = c.low.amax(-1)[..., None].expand_as(self.at), c.high.expand_as(self.at)
        possible = c.counts & (ends >= start)
        ends = torch.maximum(ends, start)
        falls = (self.tilt < 0) & c.counts.unsqueeze(-2) & ~torch.eye(size, dtype=torch.bool)
        high, low = (t.unsqueeze(-2).expand_as(self.tilt) for t in (c.high, c.low))
        rest = self.tilt * torch.where(falls, high, low)
        rest = torch.where(torch.eye(size, dtype=torch.bool) | ~c.counts.unsqueeze(-2), 0.0, rest)
        cuts = torch.minimum(torch.maximum(high, start.unsqueeze(-1)), ends.unsqueeze(-1)).sort(dim=-1).values
        found, x0 = torch.full_like(self.at, math.inf), start
        for j in range(size + 1):
            x1 = cuts[..., j] if j < size else ends
            tied = falls & (high >= x1.unsqueeze(-1))
            slope = self.own + torch.where(tied, self.tilt, 0.0).sum(-1)
            fixed = self.constant + torch.where(tied, 0.0, rest).sum(-1)
            found = torch.minimum(found, self._between(x0, x1, slope, fixed))
            x0 = x1
        found = torch.where(possible, found - self.lost, math.inf)
        found = torch.where(possible & found.isnan(), -math.inf, found).amin(-1)
        return torch.where(found == math.inf, -math.inf, found)

    def _between(self, x0: Tensor, x1: Tensor, slope: Tensor, fixed: Tensor) -> Tensor:
        c = self.cell
        cost, weight, anchor = (t[..., None] for t in (c.cost, c.weight, c.anchor))
        q0 = (cost + slope) * x0 - 0.5 * weight * (x0 - anchor).square()
        q0 = q0 + 0.5 * self.firmness * (x0 - self.at).square() + fixed
        rise = cost + slope - weight * (x0 - anchor) + self.firmness * (x0 - self.at)
        return on_interval(q0, rise, self.firmness - weight, (x1 - x0) * (1.0 + 2.0 * UNIT))
