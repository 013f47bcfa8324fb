"""Functions on boxes as a linear map, an offset and a rest: what makes them nearly linear on small domains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.network.linear import Identity, LinearMap, OpMap, Shape, Sum
from lipcert.network.moves import DIAGONAL, times
from lipcert.numerics.interval import Interval, middle_of
from lipcert.numerics.matrices import norms_of, product_of_ranges
from lipcert.numerics.midrad import TINY, UNIT, UP, Range


@dataclass(frozen=True, eq=False)
class Expansion:
    """What a function f of arguments z_i in boxes is near the middles of the boxes.

    f(z) = Σ maps[i] z_i + a number of ``offset``, and for any two points of the boxes the increments obey δf = Σ_i
    maps[i] δz_i + Σ_i w_i with ‖w_i‖_p ≤ gains[i][p] ‖scales[i] ⊙ δz_i‖_p.

    The maps are exact: what their rounded constants leave of the derivative is part of the rest.

    Attributes:
        maps: one per argument; None for 0.
        offset: of f's shape, float64, rounded outward.
        scales: ≥ 0, of the arguments' shapes.
        gains: p → g_p for p in {1, 2, inf} for which one is known.
    """

    maps: tuple[LinearMap | None, ...]
    offset: Range
    scales: tuple[Tensor, ...]
    gains: tuple[Mapping[float, float], ...]


# -- maps -----------------------------------------------------------------------------------------------------


def diagonal(factors: Tensor) -> LinearMap:
    """Entry by entry times a stored number."""
    shape = tuple(factors.shape)
    if factors.numel() and bool((factors == 1).all()):
        return Identity(shape)
    return OpMap("slopes", times, shape, shape, (factors.contiguous(),), DIAGONAL, 1.0, stored=True, transposed=_times)


def _times(y: Tensor, factors: Tensor) -> Tensor:
    return y * factors


def rank_one(places: Tensor, shape: Shape, left: Tensor, right: Tensor) -> LinearMap:
    """x ↦ left · Σ right x over each group of entries of a tensor of ``shape``; all (groups, n), ``places`` flat."""
    flat = places.reshape(-1)
    inverse = torch.argsort(flat)
    ordered = bool((flat == torch.arange(len(flat))).all())
    groups, n = places.shape

    def through(x: Tensor, out: Tensor, into: Tensor) -> Tensor:
        entries = x.reshape(-1, groups * n)
        chosen = entries if ordered else entries[:, flat.to(x.device)]
        sums = (chosen.reshape(-1, groups, n) * into).sum(-1, keepdim=True)
        result = (sums * out).reshape(-1, groups * n)
        return result if ordered else result[:, inverse.to(x.device)]

    def function(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return through(x, a, b).reshape(shape)

    def transposed(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return through(y, b, a).reshape(len(y), *shape)

    constants = (left.contiguous(), right.contiguous())
    return OpMap("rank one", function, shape, shape, constants, "rank one", n + 2.0, stored=True, transposed=transposed)


def total(maps: list[LinearMap]) -> LinearMap:
    """Their sum."""
    return maps[0] if len(maps) == 1 else Sum(tuple(maps))


# -- products of matrices -------------------------------------------------------------------------------------


def product_of_matrices(x: Interval, y: Interval) -> Expansion | None:
    """X Y on boxes, (..., n, k) and (..., k, m) with the same batches; None where a box is not finite.

    With the middles C and D of the boxes and their radii R and S, XY − X'Y' = (X − X')Ȳ + X̄(Y − Y') exactly, where X̄
    and Ȳ are the means of the two points, which lie in the boxes. So it is δX D + C δY and rests δX(Ȳ − D), of norm at
    most ‖S‖₂‖δX‖, and (X̄ − C)δY, of at most ‖R‖₂‖δY‖, batch by batch: |Ȳ − D| ≤ S entry by entry, and matrices of
    larger entries have a larger norm. What an ``Around`` reaches bounds ‖Ȳ − D‖₂, too. Entry by entry ‖δX(Ȳ − D)‖∞ is
    at most the greatest column sum of S times ‖δX‖∞, and in l1 at most the greatest row sum. And XY = XD + CY − CD +
    (X − C)(Y − D), of which the last is at most RS.
    """
    if not bool(x.finite.all() & y.finite.all()):
        return None
    (a, reach_x), (b, reach_y) = middle_of(x), middle_of(y)
    k = a.mid.shape[-1]
    gamma = (k + 4.0) * UNIT * UP
    middle = torch.matmul(a.mid, b.mid)
    lost = gamma * torch.matmul(a.mid.abs(), b.mid.abs()) + (k + 1.0) * TINY
    spread = (torch.matmul(a.rad, b.rad) + lost) * (1.0 + 4.0 * gamma) + (k + 1.0) * TINY
    if not bool(middle.isfinite().all() & spread.isfinite().all()):
        return None
    scales, gains = [], []
    for rad, reach, own, axes in ((b.rad, reach_y, a.mid, (-1, -2)), (a.rad, reach_x, b.mid, (-2, -1))):
        two = norms_of(rad).clamp(max=reach)
        row, column = (rad.sum(axis).amax(-1) if rad.numel() else two for axis in axes)
        scales.append(two[..., None, None].expand(own.shape).contiguous())
        widen = 1.0 + (max(rad.shape[-2:]) + 8.0) * 2.0 * UNIT
        gains.append({1.0: _most(row * widen, two), 2.0: 1.0, math.inf: _most(column * widen, two)})
    maps = (_times_matrix(a.mid.shape, b.mid, right=True), _times_matrix(b.mid.shape, a.mid, right=False))
    return Expansion(maps, Range(-middle, spread), tuple(scales), tuple(gains))


def image_of_product(x: Interval, y: Interval) -> Interval:
    """X Y on boxes; nothing where a box is not finite."""
    whole = Interval.whole((*x.low.shape[:-1], y.low.shape[-1]))
    if not bool(x.finite.all() & y.finite.all()):
        return whole
    result = product_of_ranges(Range.between(x.low, x.high), Range.between(y.low, y.high))
    known = result.mid.isfinite() & result.rad.isfinite()
    return Interval(torch.where(known, result.low, whole.low), torch.where(known, result.high, whole.high))


def _most(values: Tensor, over: Tensor) -> float:
    """The greatest quotient, rounded up; 0/0 is 0."""
    if not values.numel():
        return 0.0
    return float(torch.where(over > 0, values / over, 0.0).max()) * (1.0 + 4.0 * UNIT)


def _times_matrix(shape: Any, constant: Tensor, right: bool) -> LinearMap:
    def function(x: Tensor, c: Tensor) -> Tensor:
        return torch.matmul(x, c) if right else torch.matmul(c, x)

    def transposed(y: Tensor, c: Tensor) -> Tensor:
        return torch.matmul(y, c.transpose(-1, -2)) if right else torch.matmul(c.transpose(-1, -2), y)

    own = tuple(shape)
    n, m = constant.shape[-2:]
    out = (*own[:-1], m) if right else (*own[:-2], n, own[-1])
    terms = float(max(n, m, 1))
    key = f"matmul from the {'right' if right else 'left'}"
    return OpMap("matmul", function, own, out, (constant.contiguous(),), key, terms, stored=True, transposed=transposed)
