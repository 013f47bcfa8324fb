"""What the Jacobian of a network lies in, entry by entry: interval arithmetic through its relations.

Ends are kept apart, so that a derivative that cannot be negative is seen to be none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.errors import NumericsError, UnsupportedNormError
from lipcert.increments.adjoint import adjoint
from lipcert.increments.graph import Increments
from lipcert.network.images import image
from lipcert.network.linear import Dense, Identity, LinearMap
from lipcert.network.relations import Cell, EntryCell, Linear, Start
from lipcert.network.touched import touched
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import TINY, UNIT, UP, Range, lengths
from lipcert.numerics.rounding import gamma, mul_up

#: Maps with at most this many entries are written down; of the others midpoint and radius are sent through the code.
MAX_ENTRIES = 4_000_000
#: Both ways are gone where that takes no more operations.
BOTH = 2e10
#: Constants that took more roundings say nothing useful.
MOST_ROUNDINGS = 2.0**40


def operations(increments: Increments) -> float:
    """About how many floating-point operations the enclosure takes."""
    n, m = increments.relations[0].size, increments.relations[-1].size
    each = _each(increments)
    return each * (n + m if each * (n + m) <= BOTH else min(n, m))


def _each(increments: Increments) -> float:
    """For one column."""
    each = 0.0
    for relation in increments.relations[1:]:
        if isinstance(relation, Linear):
            each += sum(10.0 * linear.in_size * linear.out_size for linear in relation.maps)
        each += 20.0 * relation.size
    return each


def jacobian(increments: Increments) -> Interval:
    """(m, n) ends of all J with δy = J δx that the relations allow, rounded outward.

    From the input and from the output, what lies in both; where that takes long, by the way of fewer columns.

    Why this encloses: by induction over the nodes the column of node k that belongs to x_j lies in a box; images of
    boxes under maps, sums and products with slopes are enclosed. A block's mean derivative S between two points takes a
    column u to one of norm at most g_p‖u‖_p for every p in which it has a gain, so of entries no larger. From the
    output the same is done with the relations of Jᵀ (``adjoint``).
    """
    n, m = increments.relations[0].size, increments.relations[-1].size
    both = _each(increments) * (n + m) <= BOTH
    back: Interval | None = None
    if both or m < n:
        try:
            back = _columns(adjoint(increments))
        except UnsupportedNormError:  # a relation without a transposed
            both = True
    if back is not None and not both:
        return back
    found = _columns(increments)
    found = Interval(found.low.T.contiguous(), found.high.T.contiguous())
    return found if back is None else found.meet(back)


def _columns(increments: Increments) -> Interval:
    """(n, m): for every entry of the input the derivatives of the output's."""
    n = increments.relations[0].size

    def start(_: int, relation: Start) -> Interval:
        return Interval.point(torch.eye(n, dtype=torch.float64).reshape(n, *relation.shape))

    def linear(_: int, relation: Linear, before: list[Interval]) -> Interval:
        total = Interval.point(torch.zeros(n, *relation.shape, dtype=torch.float64))
        for one, box in zip(relation.maps, before, strict=True):
            total = _sum(total, _mapped(one, box))
        return total

    with torch.no_grad():
        last = increments.walk(start, linear, lambda _, cell, before: _cell(cell, before))[-1]
    return Interval(last.low.reshape(n, -1), last.high.reshape(n, -1))


def _cell(cell: Cell, box: Interval) -> Interval:
    if isinstance(cell, EntryCell):
        products = [_product(s, e) for s in (cell.lower, cell.upper) for e in (box.low, box.high)]
        low = torch.stack([p[0] for p in products]).amin(0)
        high = torch.stack([p[1] for p in products]).amax(0)
        return Interval(_sane(low, -math.inf), _sane(high, math.inf))
    columns = box.greatest.reshape(len(box.low), -1)
    reach = torch.full((len(columns),), math.inf, dtype=torch.float64)
    for p in (1.0, 2.0, math.inf):
        gain = getattr(cell, "gains", {}).get(p)
        if gain is not None:
            reach = torch.minimum(reach, _up(lengths(columns, p) * gain))
    ends = reach.reshape(-1, *([1] * len(cell.shape))).expand(len(columns), *cell.shape)
    return Interval(-ends, ends)


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a·b of doubles, rounded down and up; its sign is kept."""
    p = a * b
    exact = (a.abs() == 1.0) | (a == 0.0) | (b == 0.0)
    low, high = _down(p), _up(p)
    same = (a > 0) == (b > 0)
    low, high = torch.where(same, low.clamp(min=0.0), low), torch.where(same, high, high.clamp(max=0.0))
    p = torch.where((a == 0.0) | (b == 0.0), 0.0, p)
    return torch.where(exact, p, low), torch.where(exact, p, high)


def _mapped(linear: LinearMap, box: Interval) -> Interval:
    """The box of W u for the u of each of a batch of boxes."""
    if linear.is_zero:
        return Interval.point(torch.zeros(len(box.low), *linear.out_shape, dtype=torch.float64))
    if isinstance(linear, Identity) and abs(linear.scale) == 1.0:
        return box if linear.scale > 0 else Interval(-box.high, -box.low)
    if not bool(box.finite.all()):
        return Interval.whole((len(box.low), *linear.out_shape))
    if linear.in_size * linear.out_size > MAX_ENTRIES:
        value = image(linear, Range.between(box.low, box.high))
        return Interval(_sane(value.low, -math.inf), _sane(value.high, math.inf))
    if not linear.rounding < MOST_ROUNDINGS:
        raise NumericsError("the constants of a linear map are folded by operations without an error bound.")
    w, radius = _written(linear)
    low, high = (end.reshape(len(box.low), -1) for end in (box.low, box.high))
    shape = (len(box.low), *linear.out_shape)
    upper = -_lowest(-w, radius, low, high)
    return Interval(_lowest(w, radius, low, high).reshape(shape), upper.reshape(shape))


def _written(linear: LinearMap) -> tuple[Tensor, Tensor]:
    """The matrix as computed and how far each of its entries may be off; 0 for a stored one, and where none reaches."""
    w = linear.matrix()
    if isinstance(linear, Dense) and linear.stored:
        return w, torch.zeros_like(w)
    share = mul_up(2.0, gamma(linear.rounding + 8.0), UP)
    numbers, factor = 0.0, 1.0
    for leaf in linear.leaves():
        numbers += float(leaf.in_size + leaf.out_size)
        constants = [float(c.abs().max()) for c in getattr(leaf, "constants", ()) if c.numel()]
        factor = mul_up(factor, max(1.0, abs(getattr(leaf, "scale", 1.0))), *(max(1.0, c) for c in constants))
    floor = mul_up(TINY, factor, numbers, numbers)
    units = torch.eye(linear.in_size, dtype=torch.float64).reshape(-1, *linear.in_shape)
    reached = touched(linear, units != 0).reshape(linear.in_size, -1).T
    return w, torch.where(reached, linear.absolute().matrix() * share + floor, 0.0)


def _lowest(w: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Lower ends of W u, (B, m), for W within ``radius`` of w and low ≤ u ≤ high, (B, n).

    An entry of W that is certainly positive gives w·u at least (w − r)u⁺ and (w + r)u⁻ of the lower end, one that is
    certainly negative likewise of the upper end, any other at least −(|w| + r)|u|. The terms that help and those that
    cost are added up apart, each in sums of n terms off by γ_n; where none can cost, the result is not negative.
    """
    least, most = _down(w.abs() - radius), _up(w.abs() + radius)
    exact = radius == 0
    least, most = torch.where(exact, w.abs(), least), torch.where(exact, w.abs(), most)
    sure = (least > 0) | ((w != 0) & exact)
    plus, minus = sure & (w > 0), sure & (w < 0)
    loose = torch.where(sure | (most == 0), 0.0, most)
    zero = torch.zeros((), dtype=torch.float64)
    mag = torch.maximum(low.abs(), high.abs())
    helps = (
        low.clamp(min=0.0) @ torch.where(plus, least, zero).T
        + (-high).clamp(min=0.0) @ torch.where(minus, least, zero).T
    )
    parts = (
        ((-low).clamp(min=0.0), torch.where(plus, most, zero)),
        (high.clamp(min=0.0), torch.where(minus, most, zero)),
        (mag, loose),
    )
    costs = torch.zeros_like(helps)
    any_cost = torch.zeros_like(helps, dtype=torch.bool)
    for values, matrix in parts:
        if not bool(matrix.any()) or not bool(values.any()):
            continue
        costs = costs + values @ matrix.T
        any_cost |= ((values != 0).double() @ (matrix != 0).double().T) > 0
    n = w.shape[1]
    share = 2.0 * (2.0 * n + 8.0) * UNIT
    floor = 4.0 * (n + 1.0) * TINY
    helps = (helps * (1.0 - share) - floor).clamp(min=0.0)
    result = _down(helps - torch.where(any_cost, costs * (1.0 + share) + floor, 0.0))
    result = torch.where(any_cost, result, result.clamp(min=0.0))
    return _sane(result, -math.inf)


def _sum(a: Interval, b: Interval) -> Interval:
    """Ends added and rounded outward, exact where one is zero; what cannot be negative stays so."""
    low, high = a.low + b.low, a.high + b.high
    low = torch.where((a.low == 0) | (b.low == 0), low, _down(low))
    high = torch.where((a.high == 0) | (b.high == 0), high, _up(high))
    low = torch.where((a.low >= 0) & (b.low >= 0), low.clamp(min=0.0), low)
    high = torch.where((a.high <= 0) & (b.high <= 0), high.clamp(max=0.0), high)
    return Interval(_sane(low, -math.inf), _sane(high, math.inf))


def _sane(end: Tensor, otherwise: float) -> Tensor:
    return torch.where(end.isnan(), otherwise, end)


def _down(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _up(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))
