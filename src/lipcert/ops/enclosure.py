"""Midpoint–radius arithmetic on tensors: what constants that are computed, not stored, are known to be.

A ball (m, r) stands for every real tensor A with |A − m| ≤ r entry by entry. Each function returns a ball that holds
the exact result for all members of its operands; r is rounded outward, is zero only where the result is exact, and
infinite where nothing is known. Relative rounding is not enough: a product that underflows is wrong by any factor, and
so is a difference whose operands cancel.

Source of the error-free transformations: Ogita, Rump & Oishi, *Accurate sum and dot product*, SISC 2005 (TwoSum by
Knuth, TwoProduct by Dekker and Veltkamp).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcert.numerics.rounding import UNDERFLOW, UNIT, gamma

#: Radii are computed with at most 16 roundings per step.
_OUTWARD = 1.0 + 2.0**-48
#: Below this size a result, or a radius, may have lost bits to underflow.
_SMALL = 2.0**-900
#: Where Veltkamp's splitting neither overflows nor loses bits.
_LARGE = 2.0**900
#: Units in the last place within which the elementary functions of the library are trusted.
_ULPS = 8.0


@dataclass(frozen=True, eq=False)
class Ball:
    """All tensors within ``radius`` of ``middle`` entry by entry; None for a radius of zero. Both float64."""

    middle: Tensor
    radius: Tensor | None

    @property
    def reach(self) -> Tensor:
        """An upper bound of |A| over the ball, entry by entry."""
        size = self.middle.abs()
        return size if self.radius is None else (size + self.radius) * _OUTWARD

    @property
    def spread(self) -> Tensor:
        """The radius as a tensor."""
        return torch.zeros_like(self.middle) if self.radius is None else self.radius

    def map(self, function: Callable[[Tensor], Tensor]) -> Ball:
        """``function`` applied to both: for ops that move entries and leave new places zero."""
        return Ball(function(self.middle), None if self.radius is None else function(self.radius))


def exact(value: Tensor | float) -> Ball:
    """The number or tensor itself."""
    return Ball(torch.as_tensor(value, dtype=torch.float64), None)


def unknown(middle: Tensor) -> Ball:
    """``middle`` with an infinite radius."""
    return Ball(middle, torch.full_like(middle, math.inf))


def _ball(middle: Tensor, radius: Tensor, active: Tensor) -> Ball:
    """Round a radius outward; ``active`` says where the exact error may differ from zero."""
    radius = torch.where(active, radius * _OUTWARD + _tiny(radius), 0.0)
    radius = torch.where(radius.isnan() | ~middle.isfinite(), math.inf, radius)
    return Ball(middle, radius if bool(radius.any()) else None)


def _tiny(x: Tensor) -> Tensor:
    """2^-1022 where ``x`` is so small that it may have lost bits to underflow, else 0."""
    return torch.where(x.abs() < _SMALL, torch.full_like(x, UNDERFLOW), torch.zeros_like(x))


def _active(ball: Ball, *others: Ball) -> Tensor:
    result = ball.spread > 0
    for other in others:
        result = result | (other.spread > 0)
    return result


def rounded(middle: Tensor) -> Ball:
    """Numbers that were rounded to nearest once."""
    return _ball(middle, middle.abs() * UNIT, torch.ones_like(middle, dtype=torch.bool))


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    scaled = x * (2.0**27 + 1.0)
    high = scaled - (scaled - x)
    return high, x - high


def _product_error(a: Tensor, b: Tensor, product: Tensor) -> Tensor:
    """|a·b − fl(a·b)|, exactly where no bits can be lost, else an upper bound."""
    (ah, al), (bh, bl) = _split(a), _split(b)
    exactly = (al * bl - (((product - ah * bh) - al * bh) - ah * bl)).abs()
    safe = (a.abs() < _LARGE) & (b.abs() < _LARGE) & (product.abs() > _SMALL)
    safe = safe & (torch.minimum(a.abs(), b.abs()) > _SMALL)
    shifts = (_power_of_two(a) | _power_of_two(b)) & (product.abs() >= 2 * UNDERFLOW) & product.isfinite()
    none = (a == 0) | (b == 0) | (a.abs() == 1) | (b.abs() == 1) | shifts
    return torch.where(none, 0.0, torch.where(safe, exactly, product.abs() * UNIT + UNDERFLOW))


def _power_of_two(x: Tensor) -> Tensor:
    return torch.frexp(x.abs())[0] == 0.5


def times(a: Ball, b: Ball) -> Ball:
    """a·b: |AB − ab| ≤ |a|·r_b + r_a·|b| + r_a·r_b."""
    middle = a.middle * b.middle
    if a.radius is None and b.radius is None:
        error = _product_error(a.middle, b.middle, middle)
        return _ball(middle, error, error > 0)
    # Among rounded numbers it is no use to ask which products happen to be exact.
    radius, active = middle.abs() * UNIT, (a.middle != 0) & (b.middle != 0)
    if b.radius is not None:
        radius, active = radius + a.reach * b.radius, active | ((a.reach > 0) & (b.radius > 0))
    if a.radius is not None:
        radius, active = radius + a.radius * b.middle.abs(), active | ((a.radius > 0) & (b.reach > 0))
    return _ball(middle, radius, active)


def plus(a: Ball, b: Ball) -> Ball:
    """a + b."""
    middle = a.middle + b.middle
    virtual = middle - a.middle
    error = ((a.middle - (middle - virtual)) + (b.middle - virtual)).abs()
    return _ball(middle, error + a.spread + b.spread, (error > 0) | _active(a, b))


def minus(a: Ball, b: Ball) -> Ball:
    """a − b."""
    return plus(a, Ball(-b.middle, b.radius))


def over(a: Ball, b: Ball) -> Ball:
    """a/b: |A/B − a/b| ≤ (r_a + |a/b|·r_b)/(|b| − r_b), infinite where b's ball reaches zero."""
    middle = a.middle / b.middle
    check = middle * b.middle
    lost = _product_error(middle, b.middle, check)
    precise = (check == a.middle) & (lost == 0) & middle.isfinite()
    own = torch.where(precise, 0.0, middle.abs() * UNIT + _tiny(middle))
    least = (b.middle.abs() - b.spread) * (1.0 - 2.0**-50)
    shift = _ball(middle, a.spread + (middle.abs() + own) * b.spread, _active(a, b)).spread
    radius = torch.where(least > 0, own + torch.where(shift > 0, shift / least, 0.0), math.inf)
    return _ball(middle, radius, ~precise | _active(a, b) | (least <= 0))


def root(a: Ball) -> Ball:
    """√a: |√A − √a| ≤ min(r/√a, √r) for A ≥ 0."""
    middle = a.middle.sqrt()
    precise = (middle * middle == a.middle) & (_product_error(middle, middle, a.middle) == 0)
    precise = precise | (a.middle == 0)
    far = a.spread.sqrt() * (1.0 + 2.0**-50)
    near = torch.where(middle > 0, a.spread / middle * (1.0 + 2.0**-50), far)
    own = torch.where(precise, 0.0, middle * UNIT)
    return _ball(middle, own + torch.minimum(near, far), ~precise | _active(a))


def monotone(function: Callable[[Tensor], Tensor], a: Ball, ulps: float = _ULPS) -> Ball:
    """f(a) for a monotone f, from its values at the ball's ends; ``ulps`` is the accuracy of f's own evaluation."""
    middle = function(a.middle)
    size, deviation = middle.abs(), torch.zeros_like(middle)
    if a.radius is not None:
        for sign in (-1.0, 1.0):
            end = a.middle + sign * a.radius
            value = function(torch.nextafter(end, torch.full_like(end, sign * math.inf)))
            size, deviation = torch.maximum(size, value.abs()), torch.maximum(deviation, (value - middle).abs())
    radius = deviation + ulps * UNIT * size
    return _ball(middle, radius, (radius > 0) | bool(ulps))


def gentle(function: Callable[[Tensor], Tensor], a: Ball) -> Ball:
    """f(a) for an f with |f'| ≤ 1 and |f| ≤ 1: the sine and its like."""
    middle = function(a.middle)
    return _ball(middle, a.spread + _ULPS * UNIT, torch.ones_like(middle, dtype=torch.bool))


def contraction(function: Callable[[Tensor], Tensor], a: Ball) -> Ball:
    """f(a) for an f that makes no rounding and has |f(x) − f(y)| ≤ |x − y|: ReLU, clamp between numbers."""
    return Ball(function(a.middle), None if a.radius is None else a.radius.clone())


def chosen(function: Callable[..., Tensor], *balls: Ball) -> Ball:
    """Entrywise maximum, minimum or median of operands that broadcast: the radius is at most their largest."""
    middle = function(*(b.middle for b in balls))
    radius = balls[0].spread
    for ball in balls[1:]:
        radius = torch.maximum(*torch.broadcast_tensors(radius, ball.spread))
    return _ball(middle, radius.expand(middle.shape), radius.expand(middle.shape) > 0)


def added(function: Callable[..., Tensor], *balls: Ball, steps: float = 0.0, weights: float = 1.0) -> Ball:
    """``function``, linear in all operands together, whose coefficients are all 0 or ``weights``: sums of entries.

    |error| ≤ f(r) + γ_n f(|m|), n the most terms of one sum (f of ones) and ``steps``; nothing at all where the
    entries are so coarse multiples of a power of two that every partial sum is a float.
    """
    middle = function(*(b.middle for b in balls))
    terms = function(*(torch.ones_like(b.middle) for b in balls)) / weights
    total = function(*(b.middle.abs() for b in balls))
    most = float(terms.max()) if terms.numel() else 0.0
    radius = function(*(b.spread for b in balls)) * (1.0 + 2.0 * gamma(most + steps))
    active = radius > 0
    if steps or (most > 1 and not _coarse(total, *(b.middle for b in balls))):
        rounding = total * (1.0 + 2.0 * gamma(most + steps)) * gamma(most + steps)
        inexact = (total > 0) & ((terms > 1.5) | bool(steps))
        radius, active = radius + torch.where(inexact, rounding, 0.0), active | inexact
    return _ball(middle, radius, active)


def _coarse(total: Tensor, *terms: Tensor) -> bool:
    """Whether all terms are multiples of 2^-51 of (a power of two above) the largest sum of absolute values."""
    greatest = float(total.max()) if total.numel() else 0.0
    if not 0.0 < greatest < 2.0**1000:
        return greatest == 0.0
    exponent = math.frexp(greatest)[1] - 51
    if exponent < -1000:
        return False
    unit = math.ldexp(1.0, exponent)
    return all(bool((torch.round(t / unit) * unit == t).all()) for t in terms)


def product(function: Callable[[Tensor, Tensor], Tensor], a: Ball, b: Ball) -> Ball:
    """``function``, linear in each operand, an entry being a sum of products: matrix products, convolutions.

    |error| ≤ f(|a| + r_a, r_b) + f(r_a, |b|) + γ_n f(|a|, |b|), n the most terms of one sum (f of ones) plus the
    product's own rounding, and what n products can lose by underflow.
    """
    middle = function(a.middle, b.middle)
    terms = function(torch.ones_like(a.middle), torch.ones_like(b.middle))
    most = float(terms.max()) if terms.numel() else 0.0
    total = function(a.middle.abs(), b.middle.abs())
    widen = 1.0 + 2.0 * gamma(most + 4.0)
    radius = gamma(most + 1.0) * total
    if b.radius is not None:
        radius = radius + function(a.reach, b.spread)
    if a.radius is not None:
        radius = radius + function(a.spread, b.middle.abs())
    least = _least(a.middle) * _least(b.middle)
    lost = 0.0 if least > _SMALL and a.radius is None and b.radius is None else (most + 1.0) * UNDERFLOW
    return _ball(middle, radius * widen + lost, (terms > 0) & ((radius > 0) | (lost > 0)))


def _least(x: Tensor) -> float:
    """The least positive |entry|; infinity if there is none."""
    sizes = x.abs()[x != 0]
    return float(sizes.min()) if sizes.numel() else math.inf


def length(a: Ball, dims: tuple[int, ...], keepdim: bool) -> Ball:
    """The Euclidean norm over ``dims``: |‖A‖ − ‖a‖| ≤ ‖r‖; |a| itself where there is one entry."""
    count = math.prod(a.middle.shape[d] for d in dims)
    middle = _length(a.middle, dims, keepdim)
    spread = torch.zeros_like(middle) if a.radius is None else _length(a.radius, dims, keepdim)
    widen = (count + 8.0) * UNIT if count > 1 else 0.0
    return _ball(middle, middle * widen + spread * (1.0 + widen), (spread > 0) | ((middle > 0) & (widen > 0)))


def _length(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """√Σx² within (n + 8) u of the exact one, relatively, whatever the size of x.

    After division by a power of two near the largest entry, squares that underflow add at most n·2^-1022 to a sum ≥ ¼.
    """
    greatest = x.abs().amax(dims, keepdim=True)
    if math.prod(x.shape[d] for d in dims) == 1:
        return greatest if keepdim else greatest.squeeze(dims)
    exponent = torch.where((greatest > 0) & greatest.isfinite(), torch.frexp(greatest)[1], 0)
    result = _ldexp(torch.linalg.vector_norm(_ldexp(x, -exponent), 2, dims, keepdim=True), exponent)
    return result if keepdim else result.squeeze(dims)


def _ldexp(x: Tensor, exponent: Tensor) -> Tensor:
    return torch.from_numpy(np.ldexp(x.numpy(), exponent.numpy()))
