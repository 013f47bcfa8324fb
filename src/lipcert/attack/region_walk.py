"""A best-first walk over the activation regions of a small piecewise-linear network, one linear program each."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from lipcert.attack.norms import best_directions
from lipcert.attack.starts import Region
from lipcert.domain import Ball, Intersection
from lipcert.network.graph import ActivationNode, AffineNode, InputNode, Network
from lipcert.network.linear import size
from lipcert.problem import Problem
from lipcert.search.least_distance import in_ball

#: Networks that are walked over: neurons, inputs, and outputs or inputs on the shorter side of a Jacobian.
MAX_NEURONS, MAX_INPUTS, MAX_SIDE = 400, 200, 100
#: A region counts if a ball of this radius fits into it, relative to the search's scale; no larger one is asked for.
_MARGIN, _ENOUGH = 1e-7, 1e-3
#: On the whole space points are looked for within this many scales of the origin.
_FAR = 1e4
#: Half-spaces that cut an l2 ball out of a box, at most, before a region is given up.
_CUTS = 8
#: Weight of the distance from the centre against the margin.
_CENTRED = 1e-6
#: Programs without improvement after which the walk ends: at least so many, and as a multiple of those so far.
_PATIENCE, _PATIENCE_SHARE = 3000, 2.0
#: Entries of the affine forms of one batch of neighbours.
_BATCH = 4_000_000

Report = Callable[[Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, eq=False)
class Pieces:
    """An activation as pieces: kinks (K, n) ascending, slopes and intercepts (K + 1, n)."""

    kinks: Tensor
    slopes: Tensor
    intercepts: Tensor


@dataclass(eq=False)
class PiecewiseLinear:
    """A network of written-out affine maps and activations made of pieces.

    Attributes:
        network: fused, selections expanded into ReLUs.
        matrices: per affine node, its maps as dense matrices.
        pieces: per activation node, its pieces.
        places: per activation node, where its neurons lie in a pattern.
    """

    network: Network
    matrices: dict[int, list[Tensor]]
    pieces: dict[int, Pieces]
    places: dict[int, slice]

    @classmethod
    def of(cls, problem: Problem) -> PiecewiseLinear | None:
        """The network if it is piecewise linear and small, else None."""
        n, m = size(problem.network.in_shape), size(problem.network.out_shape)
        if n > MAX_INPUTS or min(n, m) > MAX_SIDE:
            return None
        if sum(size(node.shape) for node in problem.network.nodes) > 4 * (MAX_NEURONS + n + m):
            return None
        network = problem.expanded
        pieces: dict[int, Pieces] = {}
        places: dict[int, slice] = {}
        total = 0
        for position, node in enumerate(network.nodes):
            if isinstance(node, ActivationNode):
                found = _pieces(node)
                if found is None:
                    return None
                pieces[position] = found
                places[position] = slice(total, total + size(node.shape))
                total += size(node.shape)
            elif not isinstance(node, (AffineNode, InputNode)):
                return None
        if not 0 < total <= MAX_NEURONS:
            return None
        matrices = {
            position: [linear.matrix() for linear in node.maps]
            for position, node in enumerate(network.nodes)
            if isinstance(node, AffineNode)
        }
        return cls(network, matrices, pieces, places)

    @property
    def neurons(self) -> int:
        """Length of a pattern."""
        return max(place.stop for place in self.places.values())

    def pattern(self, x: Tensor) -> Tensor:
        """(B, neurons) numbers of the pieces at points (B, *in_shape)."""
        result = torch.zeros(len(x), self.neurons, dtype=torch.int64)
        values: dict[int, Tensor] = {}
        for position, value in self.network.values(x):
            values[position] = value
            if position in self.places:
                z = values[self.network.nodes[position].parents[0]].reshape(len(x), -1)
                result[:, self.places[position]] = (z[:, None] > self.pieces[position].kinks).sum(1)
        return result

    def forms(self, patterns: Tensor) -> tuple[Tensor, Tensor]:
        """Affine forms in (x, 1) for patterns (B, neurons): of all pre-activations, and of the output."""
        count, n = len(patterns), size(self.network.in_shape)
        known: dict[int, Tensor] = {}
        inner = torch.zeros(count, self.neurons, n + 1, dtype=torch.float64)
        for position, node in enumerate(self.network.nodes):
            if isinstance(node, InputNode):
                form = torch.cat([torch.eye(n, dtype=torch.float64), torch.zeros(n, 1, dtype=torch.float64)], 1)
                known[position] = form.expand(count, n, n + 1)
            elif isinstance(node, AffineNode):
                total = torch.zeros(count, size(node.shape), n + 1, dtype=torch.float64)
                for parent, matrix in zip(node.parents, self.matrices[position], strict=True):
                    total = total + matrix @ known[parent]
                if node.offset is not None:
                    total[:, :, -1] += node.offset.expand(node.shape).reshape(-1)
                known[position] = total
            else:
                place, pieces = self.places[position], self.pieces[position]
                form = known[node.parents[0]]
                inner[:, place] = form
                chosen = patterns[:, place]
                moved = pieces.slopes.gather(0, chosen)[:, :, None] * form
                moved[:, :, -1] += pieces.intercepts.gather(0, chosen)
                known[position] = moved
        return inner, known[len(self.network.nodes) - 1]

    def faces(self, inner: Tensor, pattern: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """A, b of the region {x: Ax ≤ b} of one pattern, from its pre-activations' forms (neurons, n + 1)."""
        rows, ends = [inner.new_zeros(0, inner.shape[1] - 1)], [inner.new_zeros(0)]  # no kink at all: everything
        for position, place in self.places.items():
            kinks, chosen, form = self.pieces[position].kinks, pattern[place], inner[place]
            if not len(kinks):
                continue
            open_end = torch.full((1, kinks.shape[1]), math.inf, dtype=torch.float64)
            upper = torch.cat([kinks, open_end]).gather(0, chosen[None])[0]
            lower = torch.cat([-open_end, kinks]).gather(0, chosen[None])[0]
            for sign, end in ((1.0, upper), (-1.0, -lower)):
                kept = torch.isfinite(end)
                rows.append(sign * form[kept, :-1])
                ends.append(end[kept] - sign * form[kept, -1])
        return torch.cat(rows).numpy(), torch.cat(ends).numpy()


def walk(problem: Problem, region: Region, starts: Tensor, expired: Callable[[], bool], report: Report) -> bool:
    """Walk from the regions of ``starts`` to neighbours across one neuron, the steepest that is known first.

    In a region the pre-activations are affine forms of x, so the Jacobian of every neighbour (one neuron on the
    other side of a kink) is known before it is known whether the neighbour exists: a linear program (HiGHS) then
    looks for the centre of a ball in it. What is found is only proposed: ``report`` is called with a point, the norm
    of the Jacobian and a direction, and the trusted end evaluates them.

    Args:
        problem: network, norms, domain.
        region: domain and scale of x, in float64.
        starts: (B, *in_shape) float64 points inside the domain.
        expired: whether time is up.
        report: called with (points (1, *in_shape), values (1,), directions) for each steepest region so far.

    Returns:
        Whether the walk applies to the network.
    """
    linear = PiecewiseLinear.of(problem)
    if linear is None:
        return False
    queue: list[tuple[float, int, bytes]] = []
    patterns: dict[bytes, Tensor] = {}
    best = 0.0
    programs = last = 0

    def propose(candidates: Tensor) -> None:
        fresh = []
        for pattern in candidates:
            key = pattern.to(torch.int8).numpy().tobytes()
            if key not in patterns:
                patterns[key] = pattern
                fresh.append((key, pattern))
        if not fresh:
            return
        block = max(1, _BATCH // (linear.neurons * (size(linear.network.in_shape) + 1)))
        for start in range(0, len(fresh), block):
            part = fresh[start : start + block]
            _, output = linear.forms(torch.stack([p for _, p in part]))
            values, _ = _gains(problem, region, output[:, :, :-1])
            for (key, _), value in zip(part, values.tolist(), strict=True):
                heapq.heappush(queue, (-value, len(patterns), key))

    propose(linear.pattern(starts))
    while queue and not expired() and programs - last <= max(_PATIENCE, _PATIENCE_SHARE * last):
        negative, _, key = heapq.heappop(queue)
        if negative == 0.0:
            break
        pattern = patterns[key]
        inner, output = linear.forms(pattern[None])
        point = _centre(problem, region, *linear.faces(inner[0], pattern))
        programs += 1
        if point is None:
            continue
        if -negative > best * (1 + 1e-9):
            best, last = -negative, programs
            values, directions = _gains(problem, region, output[:, :, :-1])
            shape = (1, *linear.network.in_shape)
            report(point.reshape(shape), values, directions.reshape(shape))
        propose(_neighbours(linear, pattern))
    return True


def _gains(problem: Problem, region: Region, jacobians: Tensor) -> tuple[Tensor, Tensor]:
    from lipcert.certificates.lower_witness import movable

    mask = movable(region.domain, (jacobians.shape[-1],))
    return best_directions(jacobians * mask, *problem.norm)


def _neighbours(linear: PiecewiseLinear, pattern: Tensor) -> Tensor:
    """Patterns that differ by one piece in one neuron."""
    kinds = torch.cat([torch.full((p.kinks.shape[1],), len(p.kinks)) for p in linear.pieces.values()])
    flips = []
    for step in (-1, 1):
        moved = pattern + step
        places = torch.nonzero((moved >= 0) & (moved <= kinds))[:, 0]
        candidates = pattern.expand(len(places), -1).clone()
        candidates[torch.arange(len(places)), places] += step
        flips.append(candidates)
    return torch.cat(flips)


def _centre(problem: Problem, region: Region, rows: np.ndarray, ends: np.ndarray) -> Tensor | None:
    """A point of {Ax ≤ b} and the domain around which a ball of some margin fits; None if there is none."""
    scale, origin = region.scale.reshape(-1).numpy(), region.origin.reshape(-1).numpy()
    n, domain = len(scale), region.domain
    if isinstance(domain, Ball) and domain.p == 2:
        _, inside = in_ball(domain, -rows, ends)
        return None if inside is None else region.project(torch.from_numpy(inside)[None])[0]
    rows, ends = rows * scale, ends - rows @ origin  # x = origin + scale ξ
    lengths = np.linalg.norm(rows, axis=1)
    if (ends[lengths == 0] <= 0).any():
        return None
    rows, ends = rows[lengths > 0] / lengths[lengths > 0, None], ends[lengths > 0] / lengths[lengths > 0]
    least, most = np.full(n, -_FAR), np.full(n, _FAR)
    ball = domain.ball if isinstance(domain, Intersection) else domain if isinstance(domain, Ball) else None
    if isinstance(domain, Ball):  # by its radius, which its ends may have rounded away
        least, most = -domain.radius / scale, domain.radius / scale
    elif domain is not None:
        lower, upper = ((end.reshape(-1).numpy() - origin) / scale for end in domain.bounds())
        least, most = np.clip(lower, -_FAR, 0.0), np.clip(upper, 0.0, _FAR)
    matrix, right = np.hstack([rows, np.ones((len(rows), 1))]), ends
    bounds = [*zip(least, most, strict=True), (0.0, _ENOUGH)]
    cost = np.zeros(n + 1)
    cost[n] = -1.0
    widest = float((most - least)[most > least].min(initial=2.0)) / 2
    radius, ratio, offset = widest * (1.0 - 1e-9), np.ones(n), np.zeros(n)
    if ball is not None and ball.p != math.inf:  # with u ≥ |x − c|/unit = |ratio ξ + offset|: Σ u ≤ radius, or (l2)
        # Σ u small, which leads to a point of the region near the centre
        unit = scale.max()
        ratio, offset = scale / unit, (origin - ball.center.reshape(-1).numpy()) / unit
        radius = ball.radius / unit * (1.0 - 1e-9)
        eye, empty, stretched = np.eye(n), np.zeros((n, 1)), np.diag(ratio)
        matrix = np.block([[matrix, np.zeros((len(matrix), n))], [stretched, empty, -eye], [-stretched, empty, -eye]])
        matrix = np.vstack([matrix, np.hstack([np.zeros(n + 1), np.ones(n)])])
        reached = radius if ball.p == 1 else radius * math.sqrt(n)
        right = np.hstack([right, -offset, offset, [reached]])
        cost, bounds = np.hstack([cost, np.full(n, _CENTRED)]), [*bounds, *[(0.0, None)] * n]
    for _ in range(_CUTS):
        found = linprog(cost, A_ub=matrix, b_ub=right, bounds=bounds, method="highs")
        if found.status != 0 or found.x[n] < _MARGIN * min(1.0, widest):
            return None
        point = found.x[:n]
        away = ratio * point + offset
        length = float(np.linalg.norm(away))
        if ball is None or ball.p != 2 or length <= radius:
            return region.project(torch.from_numpy(origin + scale * point)[None])[0]
        cut = np.zeros(matrix.shape[1])
        cut[:n] = away / length * ratio
        right = np.hstack([right, [0.98 * radius - float(away @ offset) / length]])
        matrix = np.vstack([matrix, cut])
    return None


def _pieces(node: ActivationNode) -> Pieces | None:
    """The pieces of an activation, read off its values; None if it bends between its kinks."""
    function, n = node.function, size(node.shape)
    positions = [
        torch.as_tensor(k.position, dtype=torch.float64).expand(node.shape).reshape(-1) for k in function.kinks
    ]
    kinks = torch.stack(positions).sort(0).values if positions else torch.zeros(0, n, dtype=torch.float64)
    first = kinks[:1] if len(kinks) else torch.zeros(1, n, dtype=torch.float64)
    last = kinks[-1:] if len(kinks) else first
    reach = 1.0 + torch.maximum(first.abs(), last.abs())
    grid = torch.cat([first - 4 * reach, kinks, last + 4 * reach])
    low, high = grid[:-1], grid[1:]
    samples = [function((low + (high - low) * part).reshape(len(low), *node.shape)) for part in (0.2, 0.4, 0.7)]
    a, b, c = (s.reshape(low.shape).double() for s in samples)
    width = high - low
    slope = torch.where(width > 0, (c - a) / (0.5 * width), torch.zeros_like(width))
    middle = torch.where(width > 0, (b - a) / (0.2 * width), slope)
    if not bool(((slope - middle).abs() <= 1e-9 * (1.0 + slope.abs())).all()):
        return None
    return Pieces(kinks, slope, a - slope * (low + 0.2 * width))
