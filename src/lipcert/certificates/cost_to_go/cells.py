"""Least values, over an interval, of one neuron's share of the quadratic cost-to-go."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.numerics.midrad import UNIT
from lipcert.ranges.functions import Samples

#: Numbers beyond this prove nothing: below it no intermediate result overflows, and what underflow loses is ``FLOOR``.
LARGEST = 1e60
FLOOR = 1e-120
#: What the underflow of slopes may lose for each unit of an interval's length.
SUBNORMAL = 2.0**-1068

#: Slopes that differ by less than this, relative to them, count as one.
NEARLY = 2.0**-40

#: Entries of the intermediate tensors of a chunk of parts.
CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Cell:
    """F(v) = c φ(v) − ½ T (φ(v) − z̃)² − g v + ½ D (v − ṽ)², entry by entry, (P, *shape) each; T, D ≥ 0."""

    cost: Tensor
    weight: Tensor
    anchor: Tensor
    slope: Tensor
    curvature: Tensor
    centre: Tensor


def least(at: Samples, cell: Cell) -> Tensor:
    """A lower bound of F on the interval of the samples, (P, *shape), rounding included.

    On a part [a, a + h] F is bounded below by a quadratic q0 + B x + ½ K x² in x = v − a: by itself where φ is linear
    there (or so nearly that how far it is from its line is paid for); else by − g v + ½ D (v − ṽ)² plus a line below
    R(v) = c φ(v) − ½ T (φ(v) − z̃)². The derivative of R lies in [ρ₋, ρ₊], that is in the product of φ's slopes and of
    c − T (φ − z̃); so R(a + x) ≥ θ (R(a) + ρ₋ x) + (1 − θ) (R(a + h) − ρ₊ (h − x)) for every θ in [0, 1], which is
    chosen for the slope of R's chord.

    A convex q is least at some x₀, and at any other, such as a rounded one, lies above its tangent there; one that
    is not convex is least at an end. Every sum here has fewer than 40 terms and factors, so that 64 units in the last
    place of the sum M of all their absolute values cover its rounding.
    """
    points, values = at.points, at.values
    parts = len(points) - 1
    per = max(1, CHUNK // max(1, cell.cost.numel()))
    best = torch.full_like(cell.cost, math.inf)
    for start in range(0, parts, per):
        stop = min(parts, start + per)
        here = slice(start, stop)
        ends = slice(start + 1, stop + 1)
        bound = _parts(
            cell, points[here], points[ends], (values.mid[here], values.reach[here]),
            (values.mid[ends], values.reach[ends]), at.alpha[here], at.beta[here],
        )  # fmt: skip
        best = torch.minimum(best, bound.amin(dim=0))
    return best


def _parts(
    cell: Cell, a: Tensor, b: Tensor, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor],
    alpha: Tensor, beta: Tensor,
) -> Tensor:  # fmt: skip
    """(parts, P, *shape) lower bounds; a, b and what belongs to φ are (parts, *shape)."""
    a, b, alpha, beta = (t.unsqueeze(1) for t in (a, b, alpha, beta))
    (fa, ea), (fb, eb) = (tuple(t.unsqueeze(1) for t in pair) for pair in (left, right))
    c, weight, anchor = cell.cost, cell.weight, cell.anchor
    g, curvature, centre = cell.slope, cell.curvature, cell.centre
    h = (b - a) * (1.0 + 2.0 * UNIT)
    steep = torch.maximum(alpha.abs(), beta.abs())
    straight = beta - alpha <= NEARLY * steep
    bent = torch.where(straight, (beta - alpha) * h, 0.0)  # how far φ may be from its line
    size = fa.abs() + anchor.abs() + ea
    size_b = fb.abs() + anchor.abs() + eb
    reach = a.abs() + centre.abs() + h

    def curve(f: Tensor) -> Tensor:
        return c * f - 0.5 * weight * (f - anchor).square()

    ra = curve(fa)
    # where φ is straight
    line = alpha * (c - weight * (fa - anchor))
    bend = curvature - weight * alpha.square()
    # where it is curved: the derivative of R
    run = steep * h + ea
    around = weight * run * (1.0 + 4.0 * UNIT)
    middle = c - weight * (fa - anchor)
    corners = torch.stack([s * (middle + d) for s in (alpha, beta) for d in (around, -around)])
    slack = 16.0 * UNIT * steep * (c.abs() + weight * (size + run))
    least_slope, most_slope = corners.amin(dim=0) - slack, corners.amax(dim=0) + slack
    rb = curve(fb)
    chord = (rb - ra) / h
    share = ((chord - least_slope) / (most_slope - least_slope)).nan_to_num(0.0).clamp(0.0, 1.0)
    below = (1.0 - share) * ra + share * (rb - most_slope * h)
    tilt = (1.0 - share) * least_slope + share * most_slope
    q0 = torch.where(straight, ra, below) - g * a + 0.5 * curvature * (a - centre).square()
    rise = torch.where(straight, line, tilt) - g + curvature * (a - centre)
    bend = torch.where(straight, bend, curvature)

    bound = on_interval(q0, rise, bend, h)

    own = c.abs() * (fa.abs() + fb.abs()) + weight * (size.square() + size_b.square())
    own = own + h * steep * (c.abs() + weight * (size + run)) + 0.5 * weight * (steep * h).square()
    total = own + g.abs() * (a.abs() + h) + curvature * reach.square()
    unsure = (ea + eb + bent) * (c.abs() + weight * (size + size_b) + weight * steep * h)
    bound = bound - (64.0 * UNIT * total + unsure * (1.0 + 2.0**-30) + FLOOR + SUBNORMAL * h)
    bound = torch.where(b > a, bound, _at_point(cell, a, fa, ea))
    return torch.where(bound.isnan(), -math.inf, bound)


def on_interval(q0: Tensor, rise: Tensor, bend: Tensor, h: Tensor) -> Tensor:
    """Least value of q0 + rise·x + ½ bend·x² for x in [0, h], but for rounding; −∞ for what is no number.

    A convex one is least at some x₀, and lies, at any other, above its tangent there; one that is not, at an end.
    """
    x = torch.where(bend > 0, (-rise / bend).nan_to_num(0.0), 0.0).clamp(min=0.0)
    x = torch.minimum(x, h)
    tangent = rise + bend * x
    convex = q0 + x * (rise + 0.5 * bend * x) + torch.minimum(-tangent * x, tangent * (h - x))
    concave = torch.minimum(q0, q0 + h * (rise + 0.5 * bend * h))
    bound = torch.where(bend > 0, convex, concave)
    return torch.where(bound.isnan(), -math.inf, bound)


def _at_point(cell: Cell, a: Tensor, f: Tensor, e: Tensor) -> Tensor:
    """F at a, for parts of no width."""
    size = f.abs() + cell.anchor.abs() + e
    value = cell.cost * f - 0.5 * cell.weight * (f - cell.anchor).square() - cell.slope * a
    value = value + 0.5 * cell.curvature * (a - cell.centre).square()
    total = cell.cost.abs() * f.abs() + cell.weight * size.square() + cell.slope.abs() * a.abs()
    total = total + cell.curvature * (a.abs() + cell.centre.abs()).square()
    unsure = e * (cell.cost.abs() + 2.0 * cell.weight * size)
    return value - (64.0 * UNIT * total + unsure * (1.0 + 2.0**-30) + FLOOR)
