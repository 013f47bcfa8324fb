"""The last step of the quadratic cost-to-go: its least value over the domain itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.cells import FLOOR, LARGEST, Cell, least
from lipcert.domain import Domain
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import UNIT, UP, Range
from lipcert.ranges.functions import Samples

#: Multiples, of the best pull of the ball alone, that are tried where a box cuts the ball.
PULLS = torch.logspace(-3, 1, 49, base=10.0, dtype=torch.float64)
#: Pulls below it are none.
LEAST = 1e-300


def least_on(domain: Domain, box: Interval, cost: Tensor, weight: Tensor, anchor: Tensor) -> Tensor:
    """A lower bound, (P,), of c·x − ½ Σ T (x − x̃)² over the domain, rounding included.

    Over the box around it entry by entry. On an l2 ball also that of the function plus ½ λ (‖x − x̂‖² − ρ²), which for
    λ ≥ 0 is no greater there; on an l1 ball at its vertices, as the function is concave.

    Args:
        domain: what x lies in.
        box: around it, of the input's shape.
        cost, weight, anchor: c, T ≥ 0 and x̃, (P, *shape).
    """
    zero = torch.zeros_like(cost)
    points = torch.stack([box.low, box.high])
    one = torch.ones_like(box.low)[None]
    at = Samples(points, Range.exact(points), one, one)

    def pulled(pull: Tensor, centre: Tensor) -> Tensor:
        curvature = pull.reshape(-1, *[1] * (cost.dim() - 1)).expand_as(cost)
        return _sum_down(least(at, Cell(cost, weight, anchor, zero, curvature, centre.expand_as(cost))))

    best = pulled(cost.new_zeros(len(cost)), box.low)
    for ball in () if domain is None else domain.balls():
        centre, radius = ball.center.detach().to("cpu", torch.float64).reshape(box.low.shape), ball.radius
        if ball.p == 2.0:
            away = cost + weight * (anchor - centre)
            length = away.flatten(1).norm(dim=1) / max(radius, 1e-300)
            heaviest = weight.flatten(1).amax(dim=1)
            cut = bool(((box.low > centre - radius) | (box.high < centre + radius)).any())
            for share in PULLS if cut else PULLS.new_ones(1):
                pull = (share * (heaviest + length)).clamp(max=LARGEST)
                pull = torch.where(pull < LEAST, 0.0, pull)  # half of a subnormal number is rounded
                spent = 0.5 * pull * radius * radius * (1.0 + 8.0 * UNIT) + FLOOR
                best = torch.maximum(best, _less(pulled(pull, centre), spent))
        elif ball.p == 1.0:
            best = torch.maximum(best, _at_vertices(cost, weight, anchor, centre, radius))
    return best


def _at_vertices(c: Tensor, t: Tensor, anchor: Tensor, centre: Tensor, radius: float) -> Tensor:
    """min over i and ± of c·x̂ − ½ Σ T p² − (ρ |c_i + T_i p_i| + ½ T_i ρ²), p = x̃ − x̂."""
    p, size_p = anchor - centre, anchor.abs() + centre.abs()
    middle = c * centre - 0.5 * t * p.square()
    sizes = c.abs() * centre.abs() + t * size_p.square()
    square = radius * radius
    drop = (radius * (c + t * p).abs() + t * (0.5 * square)).flatten(1)
    drop_size = (radius * (c.abs() + t * size_p) + t * square).flatten(1)
    n = drop.shape[1]
    value = middle.flatten(1).sum(dim=1) - drop.amax(dim=1)
    error = (n + 32.0) * UNIT * UP * (sizes.flatten(1).sum(dim=1) + drop_size.amax(dim=1)) + n * FLOOR
    return _less(value, error)


def _sum_down(parts: Tensor) -> Tensor:
    flat = parts.flatten(1)
    n = flat.shape[1]
    return _less(flat.sum(dim=1), (n + 2.0) * UNIT * UP * flat.abs().sum(dim=1))


def _less(value: Tensor, error: Tensor) -> Tensor:
    """value − error, rounded down; nothing is known where that is no number."""
    result = value - error
    result = torch.nextafter(result, torch.full_like(result, -math.inf))
    return torch.where(result.isnan(), -math.inf, result)
