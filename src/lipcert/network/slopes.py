"""The slopes of an activation on intervals: exact least and greatest derivative, rounded outward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.network.nonlinearity import Nonlinearity, Piece
from lipcert.numerics.midrad import TINY, UNIT, UP, Range, known

#: A product this large is beyond the reach of every profile, whatever its rounding.
_HUGE = 1e305
#: The greatest double: a lower bound of all that overflows.
_GREATEST = float(torch.finfo(torch.float64).max)


def slopes(
    function: Nonlinearity, low: Tensor | float, high: Tensor | float, fine: bool = True
) -> tuple[Tensor, Tensor]:
    """(α, β), float64, with α ≤ (φ(a) − φ(b))/(a − b) ≤ β for all a ≠ b in [low, high], entry by entry.

    Ends may be infinite; on the whole line the result is the activation's own [lower, upper]. Where low = high it is
    the derivative there, of both sides at a kink; on a proper interval a kink at an end counts from inside only. So a
    smaller proper interval has fewer slopes (up to the rounding of the derivatives at its ends). Nothing, [−∞, ∞], is
    known where φ is not defined all over the interval.

    Why this is an enclosure: φ is continuous and differentiable but at its kinks, so by the mean value theorem every
    quotient is a mean of derivatives on pieces that (low, high) meets. On a piece φ' is monotone between turning
    points, so its extremes are at the ends of the interval, at those turning points that may lie in it, or limits at
    infinity; each is evaluated with its rounding error. [lower, upper] holds as well, so the intersection does.

    Args:
        function: the activation φ.
        low: lower ends, of a shape that broadcasts with that of the activation's settings.
        high: upper ends, not below ``low``.
        fine: spend time on an activation that finds its slopes by a search.

    Raises:
        ValueError: an end is NaN, or a lower end exceeds its upper one.
    """
    numbers = (low, high, function.lower, function.upper, *function.parameters)
    a, b, alpha, beta, *_ = torch.broadcast_tensors(
        *(torch.as_tensor(n, dtype=torch.float64, device="cpu").detach() for n in numbers)
    )
    least, greatest = _inside(function, a, b, fine)
    whole = (a == -math.inf) & (b == math.inf)
    least = torch.where(whole, alpha, torch.maximum(least, alpha)).clamp(max=_GREATEST)
    greatest = torch.where(whole, beta, torch.minimum(greatest, beta)).clamp(min=-_GREATEST)
    defined = function.defined(a, b)
    return torch.where(defined, least, -math.inf), torch.where(defined, greatest, math.inf)


def _inside(function: Nonlinearity, low: Tensor, high: Tensor, fine: bool) -> tuple[Tensor, Tensor]:
    if not bool((low <= high).all()):
        raise ValueError("an interval of slopes has its lower end above its upper one, or an end that is not a number.")
    own = function.own_slopes(low, high, fine)
    if own is not None:
        return own
    least, greatest = torch.full_like(low, math.inf), torch.full_like(low, -math.inf)
    for piece in function.pieces:
        start, end = known(piece.left).low, known(piece.right).high
        inside = (high > start) & (low < end)
        inside = (inside | ((low == high) & (low >= start) & (high <= end))) & (start < end)
        if bool(inside.any()):
            a, b = _on(piece, torch.maximum(low, start), torch.minimum(high, end))
            least = torch.where(inside, torch.minimum(least, a), least)
            greatest = torch.where(inside, torch.maximum(greatest, b), greatest)
    return least, greatest


def _on(piece: Piece, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest derivative of one piece; anything where low > high."""
    factor = known(piece.factor)
    if piece.profile is None:
        return factor.low.expand(low.shape), factor.high.expand(low.shape)
    ends = [_inner(piece, end) for end in (low, high)]
    least, greatest = piece.profile.between(
        torch.minimum(ends[0][0], ends[1][0]), torch.maximum(ends[0][1], ends[1][1])
    )
    if bool((factor.is_zero | (factor.mid == 1) & (factor.reach == 0)).all()):
        return least * factor.mid, greatest * factor.mid
    products = [g * f for g in (least, greatest) for f in (factor.low, factor.high)]
    lowest, highest = torch.stack(products).amin(0), torch.stack(products).amax(0)
    down, up = torch.full_like(lowest, -math.inf), torch.full_like(highest, math.inf)
    return torch.nextafter(lowest, down), torch.nextafter(highest, up)


def _inner(piece: Piece, x: Tensor) -> tuple[Tensor, Tensor]:
    """rate · (x − shift), rounded outward; exact where the rate is ±1 and there is no shift."""
    rate, shift = known(piece.rate), known(piece.shift)
    unmoved = shift.is_zero
    if bool((unmoved & (rate.mid.abs() == 1) & (rate.reach == 0)).all()):
        return rate.mid * x, rate.mid * x
    d = x - shift.mid
    off = torch.where(unmoved, 0.0, shift.reach + UNIT * d.abs())
    t = rate.mid * d
    error = (rate.mid.abs() * off + rate.reach * (d.abs() + off) + UNIT * t.abs()) * UP + TINY
    low, high = Range(t, error).low, Range(t, error).high
    certain = rate.mid.abs() > 2.0 * rate.reach
    far = certain & (((t.abs() > _HUGE) & (off <= 0.25 * d.abs())) | x.isinf())
    low, high = torch.where(far, t.clamp(-_HUGE, _HUGE), low), torch.where(far, t.clamp(-_HUGE, _HUGE), high)
    low, high = torch.where(low.isnan(), -math.inf, low), torch.where(high.isnan(), math.inf, high)
    return torch.where(rate.is_zero, 0.0, low), torch.where(rate.is_zero, 0.0, high)
