"""How long groups of entries are at least on a domain: what the gains of normalisations depend on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.network.radial import Radial
from lipcert.network.relations import LocalGains
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import TINY, UNIT, UP, Range
from lipcert.numerics.midrad import lengths as rounded_up

#: Halvings that find the mean which is nearest to a box.
_HALVINGS = 60


def groups_of(function: Radial, shape: torch.Size) -> Tensor:
    """(groups, n) flat places of a block's entries."""
    return function.grouped(torch.arange(shape.numel()).reshape(shape))


def gains_beyond(function: Radial, shape: torch.Size, least: Tensor) -> LocalGains:
    """The gains between points whose groups have at least these lengths; if there are none, which group may be 0."""
    places = groups_of(function, shape)
    gains = function.gains_beyond(least, places.shape[1])
    if gains or not len(places):
        return LocalGains(gains)
    short = (function.divisor(least) < math.inf) & (least <= least.min())
    first = int(short.nonzero()[0])
    ends = [[int(i) for i in torch.unravel_index(places[first, k], shape)] for k in (0, -1)]
    state = "constant" if function.centred else "0"
    return LocalGains(
        {},
        f"Here {int(short.sum())} of {len(places)} groups may be {state}, the first of them entries {ends[0]} to "
        f"{ends[1]} of a value of shape {tuple(shape)}: choose a domain without such a point, or an ε > 0.",
    )


def least_lengths(function: Radial, box: Interval, greatest: Callable[[Tensor], Tensor] | None) -> Tensor:
    """(groups,) lower bounds of ‖x‖₂, or of ‖x − mean‖₂, of every group over the domain, and over what is convex in it.

    Args:
        function: says what the groups are.
        box: of all entries.
        greatest: rows (R, *shape) → upper bounds of Σ rows[r]·x over the domain, tighter than the box's; or None.
    """
    return lengths_around(function, box, greatest)[0]


def lengths_around(function: Radial, box: Interval, greatest: Callable[[Tensor], Tensor] | None) -> Tensor:
    """(2, groups): ``least_lengths``, and the same over all segments from points of the domain to the box's middle.

    The middle need not lie in the convex hull of the domain, as the box may be larger.

    Why these are lower bounds: for any v, ‖x‖‖v‖ ≥ <v, x>. If x is centred first, the same holds of <v, x − mean(x)> =
    <v, x> − mean(v) Σx, of which the last term is bounded with the box. The least value of a linear function holds on
    the convex hull, too; with the middle, it is the less of the two. Any v will do; it points to the point of the box
    that is nearest to 0, and to its middle.

    Args:
        function: says what the groups are.
        box: of all entries.
        greatest: rows (R, *shape) → upper bounds of Σ rows[r]·x over the domain, tighter than the box's; or None.
    """
    places = groups_of(function, box.low.shape)
    low, high = (end.reshape(-1)[places] for end in (box.low, box.high))
    best = torch.zeros(2, len(places), dtype=torch.float64)
    finite = (low.isfinite() & high.isfinite()).all(dim=1, keepdim=True)
    a, b = torch.where(finite, low, 0.0), torch.where(finite, high, 0.0)
    middle = Range.between(a, b).mid
    for v in _directions(function.centred, a, b):
        bottom = _over_box(v, a, b)
        if greatest is not None:
            rows = torch.zeros(len(places), box.low.numel(), dtype=torch.float64)
            rows.scatter_(1, places, -v)
            bottom = torch.maximum(bottom, -greatest(rows.reshape(-1, *box.low.shape)))
        bottom = torch.stack([bottom, torch.minimum(bottom, _over_box(v, middle, middle))])
        if function.centred:
            n = v.shape[1]
            largest = torch.maximum(a.abs(), b.abs()).sum(dim=1) * (1.0 + 4.0 * n * UNIT)
            mean = v.mean(dim=1).abs() + 2.0 * n * UNIT * v.abs().amax(dim=1)
            bottom = bottom - mean * largest * UP - TINY
        found = bottom / rounded_up(v, 2.0) * (1.0 - 8.0 * UNIT)
        best = torch.maximum(best, torch.where(found.isnan(), 0.0, found))
    return torch.where(finite[:, 0], best, 0.0)


def _directions(centred: bool, low: Tensor, high: Tensor) -> list[Tensor]:
    """Towards the points of boxes that are nearest to 0, or to a constant, and towards their middles; any will do."""
    nearest, middle = torch.zeros(len(low), 1, dtype=torch.float64).clamp(low, high), 0.5 * low + 0.5 * high
    if centred:
        least, most = low.amin(dim=1, keepdim=True), high.amax(dim=1, keepdim=True)
        for _ in range(_HALVINGS):
            mean = 0.5 * least + 0.5 * most
            rises = mean.clamp(low, high).mean(dim=1, keepdim=True) > mean
            least, most = torch.where(rises, mean, least), torch.where(rises, most, mean)
        nearest = least.clamp(low, high)
        nearest, middle = (x - x.mean(dim=1, keepdim=True) for x in (nearest, middle))
    sizes = [x.abs().amax(dim=1, keepdim=True) for x in (nearest, middle)]
    return [torch.where(s > 0, x / s, 0.0) for x, s in zip((nearest, middle), sizes, strict=True)]


def _over_box(v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Lower bounds of <v, x> over boxes, row by row."""
    parts = torch.where(v > 0, v * low, v * high)
    parts = torch.where(v == 0, 0.0, parts)
    n = v.shape[1]
    return parts.sum(dim=1) - (n + 4.0) * UNIT * UP * parts.abs().sum(dim=1) - n * TINY
