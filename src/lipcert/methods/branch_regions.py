"""Which patterns of slopes the points of a domain have: points that show one, and weights that prove there are none.

Untrusted: the branch-tree certificate proves again what is said to be empty. Each fixed neuron's condition is bounded
by an affine function of x (``Regions.forms``); whether some x of the domain satisfies all of them is a least-distance
problem on an l2 ball, else a linear program.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linprog
from torch import Tensor

from lipcert.domain import Ball, Domain, Intersection
from lipcert.methods.branch_ascent import FREE
from lipcert.methods.branch_nodes import Implied, Settled
from lipcert.network.linear import Shape
from lipcert.ranges.regions import Regions
from lipcert.search.least_distance import Array, in_ball

#: Random points that are looked at first.
SAMPLES = 100
#: A bound is below 0 from here on, relative to its terms: so that another machine's rounding finds it there, too.
CLEAR = 1e-9
#: Up to so many neurons those that a region implies are looked for, in so many rounds; fewer with linear programs.
MOST_IMPLIED, MOST_PROGRAMS, ROUNDS = 60, 16, 3


@dataclass(frozen=True, eq=False)
class _Conditions:
    """rows·x + ends ≥ 0, one for each of ``neurons`` (numbers in ``Regions``) fixed to ``fixed_to``."""

    neurons: Array
    fixed_to: Array
    rows: Array
    ends: Array

    def take(self, places: npt.NDArray[np.intp]) -> _Conditions:
        return _Conditions(self.neurons[places], self.fixed_to[places], self.rows[places], self.ends[places])


class Reach:
    """Regions of patterns: rows of −1, 0 and 1 over all neurons of the cells; ``allowed`` are those in ``Regions``."""

    def __init__(self, regions: Regions, domain: Domain, shape: Shape, allowed: Tensor, seed: torch.Generator) -> None:
        assert domain is not None
        self.regions, self.domain, self.shape, self.allowed = regions, domain, shape, allowed
        self.two = regions.side != 0
        self.programs = not any(ball.p == 2 for ball in domain.balls())
        self.low, self.high = (end.reshape(-1).numpy() for end in domain.bounds())
        self.patterns = torch.zeros(0, regions.count, dtype=torch.int8)
        self._known: set[bytes] = set()
        self._visit(self._samples(seed))

    def reached(self, first: int) -> Tensor:
        """Patterns that points of the domain have shown, from the number ``first`` on."""
        rows = torch.full((len(self.patterns) - first, len(self.allowed)), FREE, dtype=torch.int8)
        rows[:, self.allowed] = self.patterns[first:]
        return rows

    def settled(self, pattern: Tensor) -> Settled:
        """Whether the region of a pattern is empty, and what else it fixes."""
        own = pattern[self.allowed].clone()
        steps: list[Implied] = []
        empty = None
        for _ in range(ROUNDS):
            conditions, count = self._conditions(own)
            if not count:
                break
            fixed = conditions.take(np.arange(count))
            empty = self._refuted(own, fixed)
            if empty is not None or count == len(conditions.ends):
                break
            before = len(steps)
            for place in range(count, len(conditions.ends)):
                neuron, end = int(conditions.neurons[place]), int(conditions.fixed_to[place])
                if own[neuron] != FREE or self._shown(own, neuron, end):
                    continue
                trial = own.clone()
                trial[neuron] = end
                proof = self._refuted(trial, conditions.take(np.append(np.arange(count), place)))
                if proof is not None:
                    steps.append(Implied(int(torch.nonzero(self.allowed)[neuron]), end, proof))
                    own[neuron] = 1 - end
            if len(steps) == before:
                break
        whole = pattern.clone()
        whole[self.allowed] = own
        return Settled(whole, steps, empty)

    def _conditions(self, own: Tensor) -> tuple[_Conditions, int]:
        """Those of the fixed neurons, whose number is the second value; then for each free one those of both ends."""
        fixed = torch.nonzero(self.two & (own != FREE)).reshape(-1)
        free = torch.nonzero(self.two & (own == FREE)).reshape(-1)
        if len(free) > (MOST_PROGRAMS if self.programs else MOST_IMPLIED):
            free = free[:0]
        neurons = torch.cat([fixed, free, free])
        ends = torch.cat([own[fixed], torch.zeros_like(own[free]), torch.ones_like(own[free])])
        place = torch.arange(len(neurons))
        fixings = own.repeat(len(neurons), 1)
        fixings[place, neurons] = ends
        weights = torch.zeros(len(neurons), self.regions.count, dtype=torch.float64)
        weights[place, neurons] = 1.0
        forms = self.regions.forms(fixings, weights)
        return _Conditions(*(t.numpy() for t in (neurons, ends, *forms))), len(fixed)

    def _shown(self, own: Tensor, neuron: int, end: int) -> bool:
        """Whether a known point of the region has this slope."""
        fixed = self.two & (own != FREE)
        inside = (self.patterns[:, fixed] == own[fixed]).all(dim=1)
        return bool((inside & (self.patterns[:, neuron] == end)).any())

    def _refuted(self, own: Tensor, conditions: _Conditions) -> Tensor | None:
        """Weights that prove that no point of the domain meets the conditions; else a point that does may be noted."""
        if not (np.isfinite(conditions.rows).all() and np.isfinite(conditions.ends).all()):
            return None
        domain = self.domain
        balls = [ball for ball in domain.balls() if ball.p == 2]
        weights, point = in_ball(balls[0], conditions.rows, conditions.ends) if balls else (None, None)
        if weights is None and (not balls or isinstance(domain, Intersection)):
            other = next((ball for ball in domain.balls() if ball.p == 1), None)
            weights, found = _in_box(self.low, self.high, other, conditions)
            point = found if point is None else point
        if weights is None:
            if point is not None:
                self._visit(torch.from_numpy(point)[None])
            return None
        rows = torch.zeros(1, self.regions.count, dtype=torch.float64)
        rows[0, torch.from_numpy(conditions.neurons)] = torch.from_numpy(weights / weights.max())
        sizes = np.abs(conditions.rows) @ np.maximum(np.abs(self.low), np.abs(self.high)) + np.abs(conditions.ends)
        if not float(self.regions.greatest(own[None], rows)[0]) < -CLEAR * float(weights @ sizes / weights.max()):
            return None
        result = torch.zeros(len(self.allowed), dtype=torch.float64)
        result[self.allowed] = rows[0]
        return result

    def _visit(self, points: Tensor) -> None:
        """Note the patterns of points (B, n), moved into the domain."""
        fresh = []
        for row in self.regions.at(self.domain.project(points.reshape(-1, *self.shape))):
            key = row.numpy().tobytes()
            if key not in self._known:
                self._known.add(key)
                fresh.append(row)
        if fresh:
            self.patterns = torch.cat([self.patterns, torch.stack(fresh)])

    def _samples(self, seed: torch.Generator) -> Tensor:
        """Random points, a home of the domain first."""
        low, high = torch.from_numpy(self.low), torch.from_numpy(self.high)
        noise = torch.randn(SAMPLES, len(low), generator=seed, dtype=torch.float64)
        share = torch.rand(SAMPLES, 1, generator=seed, dtype=torch.float64).sqrt()
        balls = [ball for ball in self.domain.balls() if ball.p == 2]
        if balls:
            points = balls[0].center.reshape(-1) + balls[0].radius * share * noise / noise.norm(dim=1, keepdim=True)
        else:
            points = low + (high - low) * (0.5 + 0.5 * share * noise.clamp(-1.0, 1.0))
        points[0] = self.domain.home().reshape(-1)
        return points


def _in_box(low: Array, high: Array, ball: Ball | None, conditions: _Conditions) -> tuple[Array | None, Array | None]:
    """As ``in_ball``, for a box, or what lies in it and in an l1 ball: the x of the greatest least condition."""
    n, count = len(low), len(conditions.ends)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.linalg.norm(conditions.rows * (high - low), axis=1) + np.abs(conditions.ends)
    if not np.isfinite(scale).all():
        return None, None
    scale = np.where(scale > 0, scale, 1.0)
    rows, ends = conditions.rows / scale[:, None], conditions.ends / scale
    cost = np.zeros(n + 1)
    cost[n] = -1.0
    matrix, right = np.hstack([-rows, np.ones((count, 1))]), ends
    bounds = [*zip(low, high, strict=True), (None, 1.0)]
    if ball is not None:  # u ≥ |x − centre|, Σ u ≤ radius
        centre, eye, none = ball.center.reshape(-1).numpy(), np.eye(n), np.zeros((n, 1))
        matrix = np.block([
            [matrix, np.zeros((count, n))], [eye, none, -eye], [-eye, none, -eye],
            [np.zeros((1, n + 1)), np.ones((1, n))],
        ])  # fmt: skip
        right = np.concatenate([right, centre, -centre, [ball.radius]])
        cost, bounds = np.append(cost, np.zeros(n)), [*bounds, *[(0.0, None)] * n]
    found = linprog(cost, A_ub=matrix, b_ub=right, bounds=bounds, method="highs")
    if found.status != 0 or found.x is None:
        return None, None
    if found.x[n] >= 0.0:
        return None, found.x[:n]
    weights = np.maximum(-found.ineqlin.marginals[:count], 0.0)
    return (weights / scale, None) if weights.any() else (None, None)
