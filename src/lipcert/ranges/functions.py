"""Extremes of an activation less a line on intervals, rounded outward: ranges of values, and offsets of lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.activations.steep import Steep
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.slopes import slopes
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import TINY, UNIT, UP, Range
from lipcert.ranges import enclosure_rules as _rules  # noqa: F401  registers what enclosures can do
from lipcert.ranges.enclosure import Enclosure, exact

#: Parts that the interval of an activation with curved pieces is cut into.
PARTS = 8


def value_at(function: Nonlinearity, x: Tensor) -> Range:
    """An enclosure of φ at doubles."""
    if isinstance(function, Steep):
        return function.enclosed(Range.exact(x))
    result = function.value(exact(x))  # type: ignore[arg-type]
    if not isinstance(result, Enclosure):  # a constant, without a look at x
        return Range.literal(torch.as_tensor(result, dtype=torch.float64).expand(x.shape))
    return result.value.map(lambda t: t.expand(x.shape))


@dataclass(frozen=True, eq=False)
class Samples:
    """Points from one end of intervals to the other, an activation's values there and its slopes between them."""

    points: Tensor
    values: Range
    alpha: Tensor
    beta: Tensor

    @classmethod
    def of(cls, function: Nonlinearity, low: Tensor, high: Tensor, parts: int = PARTS) -> Samples:
        """The ends, kinks and, where φ is curved, so many parts."""
        points = _cuts(function, low, high, parts)
        return cls(points, value_at(function, points), *slopes(function, points[:-1], points[1:], fine=False))


def extremes(function: Nonlinearity, slope: Tensor | float, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(least, greatest) of φ(x) − slope·x for x in [low, high], finite, rounded outward, entry by entry.

    Why this encloses: let s be the slope and φ's own slopes on [a, b] lie in [α, β]. Then ψ(x) = φ(x) − s x is at most
    ψ(a) + (β − s)(x − a) and at most ψ(b) + (s − α)(b − x); where the two lines rise towards each other they meet at
    (β'ψ(b) + α'ψ(a) + α'β'(b − a))/(α' + β') with α' = s − α and β' = β − s, else the greater end is the greatest. From
    below likewise. [low, high] is cut at kinks, and where pieces are curved into ``PARTS``: the parts' slopes differ
    little, so that little is lost.
    """
    return lines_off(Samples.of(function, low, high), slope)


def lines_off(at: Samples, slope: Tensor | float) -> tuple[Tensor, Tensor]:
    """``extremes`` from samples."""
    points, values, alpha, beta = at.points, at.values, at.alpha, at.beta
    s = torch.as_tensor(slope, dtype=torch.float64)
    line = Range.exact(s.expand(points.shape[1:])) * Range.exact(points)
    level = values - line
    rise, fall = _up(beta - s), _up(s - alpha)
    width = torch.where(points[1:] > points[:-1], _up(points[1:] - points[:-1]), 0.0)
    top = _peak(level.high[:-1], level.high[1:], rise, fall, width)
    bottom = -_peak(-level.low[:-1], -level.low[1:], fall, rise, width)
    least, greatest = bottom.amin(0), top.amax(0)
    return torch.where(least.isnan(), -math.inf, least), torch.where(greatest.isnan(), math.inf, greatest)


def image_of(function: Nonlinearity, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(least, greatest) of φ on [low, high], whose ends may be infinite, rounded outward."""
    finite = low.isfinite() & high.isfinite()
    least, greatest = extremes(function, 0.0, torch.where(finite, low, 0.0), torch.where(finite, high, 0.0))
    own = function.own_image(low, high)
    if own is not None:
        least = torch.where(finite, torch.maximum(least, own[0]), own[0])
        greatest = torch.where(finite, torch.minimum(greatest, own[1]), own[1])
    bottom, top = quick_image(function, low, high, *slopes(function, low, high, fine=False))
    known = finite if own is None else torch.ones_like(finite)
    return (
        torch.where(known, torch.maximum(least, bottom), bottom),
        torch.where(known, torch.minimum(greatest, top), top),
    )


def quick_image(
    function: Nonlinearity, low: Tensor, high: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """The same from the values at the ends and from slopes of φ on all of [low, high]: see ``extremes``."""
    at = value_at(function, torch.stack([torch.where(t.isfinite(), t, 0.0) for t in (low, high)]))
    at_low, at_high = at.map(lambda t: t[0]), at.map(lambda t: t[1])
    finite = low.isfinite() & high.isfinite()
    rise, fall, width = _up(beta), _up(-alpha), torch.where(high > low, _up(high - low), 0.0)
    greatest = _peak(at_low.high, at_high.high, rise, fall, width)
    least = -_peak(-at_low.low, -at_high.low, fall, rise, width)
    least, greatest = torch.where(least.isnan(), -math.inf, least), torch.where(greatest.isnan(), math.inf, greatest)
    bottom, top = torch.full_like(low, -math.inf), torch.full_like(high, math.inf)
    bottom = torch.where((alpha >= 0) & low.isfinite(), at_low.low, bottom)
    top = torch.where((alpha >= 0) & high.isfinite(), at_high.high, top)
    bottom = torch.where((beta <= 0) & high.isfinite(), torch.maximum(bottom, at_high.low), bottom)
    top = torch.where((beta <= 0) & low.isfinite(), torch.minimum(top, at_low.high), top)
    bottom, top = (torch.where(t.isnan(), e, t) for t, e in ((bottom, -math.inf), (top, math.inf)))
    least, greatest = torch.where(finite, least, bottom), torch.where(finite, greatest, top)
    floor, ceiling = (torch.as_tensor(end, dtype=torch.float64) for end in function.image)
    return torch.maximum(least, floor), torch.minimum(greatest, ceiling)


def chords(function: Nonlinearity, box: Interval, anchor: Interval) -> tuple[Tensor, Tensor]:
    """(α, β) with α ≤ (φ(z) − φ(ẑ))/(z − ẑ) ≤ β for all z ≠ ẑ, z in the box and ẑ in the anchor's.

    Why this encloses: for z beyond a, a beyond ẑ, the chord to z is the mean of the chord C to a and of a slope s of φ
    on [a, z], with weights (a − ẑ)/(z − ẑ) and the rest. On [a, b] the weight of C lies between (a − ẑ)/(b − ẑ) and 1,
    and the mean is monotone in it; so the extremes are C and wC + (1 − w)s at the least w. The box is cut at ẑ, at
    kinks and, where curved, into parts; for the parts next to ẑ these are slopes of φ from ẑ on. Slopes of φ on all of
    the box, ẑ included, hold too.
    """
    low, high = torch.minimum(box.low, anchor.low), torch.maximum(box.high, anchor.high)
    alpha, beta = slopes(function, low, high)
    usable = low.isfinite() & high.isfinite()
    a_low, a_high = (torch.where(usable, t, 0.0) for t in (anchor.low, anchor.high))
    sides = []
    for sign in (1.0, -1.0):
        near = a_high if sign > 0 else a_low
        far = torch.where(usable, high if sign > 0 else low, near)
        points = _cuts(function, torch.minimum(near, far), torch.maximum(near, far))
        points = points if sign > 0 else points.flip(0)
        inner, outer = points[:-1], points[1:]
        from_anchor = slopes(function, torch.minimum(a_low, outer), torch.maximum(a_high, outer), fine=False)
        own = slopes(function, torch.minimum(inner, outer), torch.maximum(inner, outer), fine=False)
        first = _chord(function, inner, near, a_low, a_high)
        weight = (inner - near).abs() / torch.maximum((outer - a_low).abs(), (outer - a_high).abs())
        weight = (weight * (1.0 - 4.0 * UNIT)).nan_to_num(0.0).clamp(0.0, 1.0)
        touching = inner == near
        side = []
        for place, (combine, direction) in enumerate(((torch.minimum, -math.inf), (torch.maximum, math.inf))):
            mean = combine(first[place], _mean(weight, first[place], own[place], direction))
            side.append(torch.where(touching, from_anchor[place], mean))
        real = inner != outer
        sides.append((torch.where(real, side[0], math.inf).amin(0), torch.where(real, side[1], -math.inf).amax(0)))
    least = torch.minimum(sides[0][0], sides[1][0])
    greatest = torch.maximum(sides[0][1], sides[1][1])
    usable = usable & (least <= greatest)  # not where the box is one point
    return (
        torch.where(usable, torch.maximum(least, alpha), alpha),
        torch.where(usable, torch.minimum(greatest, beta), beta),
    )


def _chord(function: Nonlinearity, x: Tensor, near: Tensor, a_low: Tensor, a_high: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes of all chords from an anchor ẑ in [a_low, a_high] to x beyond its end ``near``.

    Such a chord is the mean of the one from ``near`` and of a slope between ẑ and ``near``.
    """
    run = Range.exact(x) - Range.exact(near)
    chord = (value_at(function, x) - value_at(function, near.expand(x.shape))) * run.reciprocal()
    inside = slopes(function, a_low, a_high)
    exact = a_low == a_high
    low = torch.where(exact, chord.low, torch.minimum(chord.low, inside[0]))
    high = torch.where(exact, chord.high, torch.maximum(chord.high, inside[1]))
    return torch.where(low.isnan(), -math.inf, low), torch.where(high.isnan(), math.inf, high)


def _mean(weight: Tensor, first: Tensor, second: Tensor, direction: float) -> Tensor:
    """weight·first + (1 − weight)·second, rounded outward."""
    parts = weight * first, (1.0 - weight) * second
    mean = parts[0] + parts[1]
    error = 8.0 * UNIT * (parts[0].abs() + parts[1].abs()) + TINY
    mean = mean + math.copysign(1.0, direction) * error
    return torch.where(mean.isnan(), direction, mean)


def _cuts(function: Nonlinearity, low: Tensor, high: Tensor, parts: int = PARTS) -> Tensor:
    """(points, *shape), from low to high."""
    points = [low]
    for kink in function.kinks:
        points.append(torch.as_tensor(kink.position, dtype=torch.float64).expand(low.shape).clamp(low, high))
    if function.curved:
        for part in range(1, parts):
            share = part / parts
            point = low * (1.0 - share) + high * share
            points.append(torch.where(point.isnan(), low, point).clamp(low, high))
    points.append(high)
    return torch.stack(points).sort(dim=0).values


def _peak(left: Tensor, right: Tensor, rise: Tensor, fall: Tensor, width: Tensor) -> Tensor:
    """Greatest value of a function with these ends that rises and falls no faster; arguments and result rounded up."""
    up, down = (torch.where(t.isnan(), math.inf, t).clamp(min=0.0) for t in (rise, fall))
    ends = torch.maximum(left, right)
    share_up, share_down = up / (up + down), down / (up + down)
    drop = share_up * (ends - right) + share_down * (ends - left)
    climb = (up * share_down + TINY) * width
    meet = ends + (climb - drop + 16.0 * UNIT * (climb + drop)).clamp(min=0.0) * UP
    steep = ends + (torch.minimum(up, down) + TINY) * width * UP
    meet, steep = (torch.where(t.isnan(), math.inf, t + 4.0 * UNIT * t.abs() + TINY) for t in (meet, steep))
    return torch.where((up > 0) & (down > 0) & (width > 0), torch.minimum(meet, steep), ends)


def _up(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))
