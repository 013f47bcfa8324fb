"""Softmax, log-softmax and log-sum-exp near the middle of a box: their Jacobians there, and how far these vary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.expansion import Expansion, diagonal, rank_one, total
from lipcert.network.hashing import index_key
from lipcert.network.images import image
from lipcert.network.linear import LinearMap, OpMap, Shape
from lipcert.numerics.interval import Interval, middle_of
from lipcert.numerics.midrad import TINY, UNIT, UP, Range
from lipcert.numerics.rows import length_up, most, placed, sum_up
from lipcert.numerics.softmax_rows import greatest_norms, growth, probabilities, swings

#: Share of the greatest norm of the Jacobian in a row up to which its distance from that at the middle is of use.
WORTH = 0.75
#: Above √2.
_ROOT_2 = 1.41421356237309515


@dataclass(frozen=True, eq=False)
class _Rows:
    """Logits of a box as rows (groups, n), with what follows for their probabilities.

    Attributes:
        places: flat places of the entries.
        centre: the middle of the box; 0 where an entry is left out.
        far: how far entries may be from it.
        low, high: bounds of the probabilities on the box.
        q: probabilities at the centre, as floats, and how far these may be off: ``off``.
        wide: bounds of |p − q| on the box.
        swing: see ``swings``; of a vector of length ρ no two entries are more than √2 ρ apart.
    """

    places: Tensor
    centre: Tensor
    far: Tensor
    low: Tensor
    high: Tensor
    q: Tensor
    off: Tensor
    wide: Tensor
    swing: Tensor

    @classmethod
    def of(cls, box: Interval, axes: tuple[int, ...], kept: Tensor | None) -> _Rows:
        """Of a finite box; rows along ``axes``."""
        shape = box.low.shape
        index = torch.arange(shape.numel()).reshape(shape)
        ends = tuple(range(-len(axes), 0))
        n = math.prod(shape[a] for a in axes)
        places = index.movedim(axes, ends).reshape(-1, n)
        low, high = (end.reshape(-1)[places] for end in (box.low, box.high))
        whole, reach = middle_of(box)
        centre, far = (end.reshape(-1)[places] for end in (whole.mid, whole.rad))
        if kept is not None:
            out = (kept.expand(shape).reshape(-1)[places]) == 0
            centre, far = torch.where(out, 0.0, centre), torch.where(out, 0.0, far)
            low, high = (torch.where(out, -math.inf, end) for end in (low, high))
            at = torch.where(out, -math.inf, centre)
        else:
            at = centre
        least, greatest = probabilities(low, high)
        bottom, top = probabilities(at, at)
        q = 0.5 * bottom + 0.5 * top
        off = torch.maximum(top - q, q - bottom) * UP
        wide = torch.maximum(greatest - q, q - least) * UP
        swing = swings(low, high, at).clamp(max=_ROOT_2 * reach)
        return cls(places, centre, far, least, greatest, q, off, wide, swing)


def softmax_expansion(box: Interval, axis: int, kept: Tensor | None = None) -> Expansion | None:
    """Of softmax along ``axis``; over the entries where ``kept`` is 1. None where the box is not finite.

    The map is M = diag(q) − qqᵀ, q about the probabilities at the centre c. Why the gains hold: the derivative J(x) =
    diag(p) − ppᵀ is at most (e^w − 1) ‖J(c)‖ from J(c) (``growth``), and that no more than max|δ| + ‖δ‖(‖p‖ + ‖q‖) from
    M, δ = p(c) − q. By the same with δ = p − q on the box it is from M itself; its absolute row sums are at most
    |δ_i|(1 + Σ q) + p_i Σ|δ|. Where this is more than a share of the greatest ‖J‖ itself, a row's map is 0.
    The value is p(c) + M(x − c) + (J(c) − M)(x − c) and a remainder ½ d²/dt² p_j(c + t(x − c)) = ½ p_j((h_j − h̄)² −
    Var h) for h = x − c at some t, see ``_bend``.
    """
    if not bool(box.finite.all()):
        return None
    shape = tuple(box.low.shape)
    r = _Rows.of(box, (axis,), kept)
    n = r.places.shape[-1]
    if not r.places.numel() or n == 0:
        return None
    at = torch.where(r.q + r.off > 0, r.q + r.off, 0.0)
    here = greatest_norms((r.q - r.off).clamp(min=0.0), at)[:, None]
    length, off = length_up(r.q + r.off), length_up(r.off)
    grown = growth(r.swing)[:, None]
    greatest = torch.minimum(greatest_norms(r.low, r.high)[:, None], here * (1.0 + grown) * (1.0 + 4.0 * UNIT))
    by_growth = grown * here + most(r.off) + off * 2.0 * length
    by_box = most(r.wide) + length_up(r.wide) * (length_up(r.high) + length_up(r.q))
    near = torch.minimum(by_growth, by_box) * (1.0 + 16.0 * UNIT)
    rows = most(r.wide * (1.0 + sum_up(r.q)) + r.high * sum_up(r.wide)) * (1.0 + 16.0 * UNIT)
    clamped = torch.minimum(torch.maximum(torch.full_like(r.low, 0.5), r.low), r.high)
    plain_rows = (2.0 * most(clamped * (1.0 - clamped)) + 16.0 * UNIT).clamp(max=0.5)
    bend = _bend(r)
    used = (near <= WORTH * greatest) & most(bend).isfinite()
    two = torch.where(used, near, greatest)
    # a symmetric matrix has the same norm in l1 and in l∞, at least that in l2 and at most √n times it
    wide = torch.minimum(torch.where(used, rows, plain_rows), two * math.sqrt(n) * (1.0 + 4.0 * UNIT))
    q = torch.where(used, r.q, 0.0)
    linear = _covariance(r.places, shape, q)
    start = image(linear, Range.exact(placed(r.centre, r.places, shape)[None])).map(lambda t: t[0])
    value = Range(r.q, (r.off + bend) * (1.0 + 32.0 * UNIT) + TINY)
    value = Range(placed(value.mid, r.places, shape), placed(value.rad, r.places, shape))
    own = Range.between(placed(r.low, r.places, shape), placed(r.high, r.places, shape))
    kept_used = placed(used.expand(r.q.shape).to(torch.float64), r.places, shape) > 0
    offset = value - start
    offset = Range(torch.where(kept_used, offset.mid, own.mid), torch.where(kept_used, offset.rad, own.rad))
    scale = placed(two.expand(r.q.shape), r.places, shape)
    ratio = float(torch.where(two > 0, wide / two, 0.0).max()) * (1.0 + 4.0 * UNIT)
    return Expansion((linear,), offset, (scale,), ({1.0: ratio, 2.0: 1.0, math.inf: ratio},))


def _bend(r: _Rows) -> Tensor:
    """Bounds of |p(x) − p(c) − M(x − c)|, entry by entry.

    Of ½ p_j |(h_j − E h)² − Var h|, as |h_j − E h| ≤ w and Var h ≤ w²/4, or as |E h| ≤ Σ p|h| and Var h ≤ Σ p h²; and
    of (J(c) − M)h, J(c) − M = diag(δ) − p(c)δᵀ − δqᵀ.
    """
    mean, square = sum_up(r.high * r.far), sum_up(r.high * r.far * r.far)
    apart = (r.far + mean) * (r.far + mean) + square
    swing = r.swing[:, None]
    second = 0.5 * r.high * torch.minimum(torch.where(apart.isnan(), math.inf, apart), swing * swing)
    first = r.off * r.far + (r.q + r.off) * sum_up(r.off * r.far) + r.off * sum_up(r.q * r.far)
    return (second + first) * (1.0 + 32.0 * UNIT)


def _covariance(places: Tensor, shape: Shape, q: Tensor) -> LinearMap:
    """diag(q) − qqᵀ, row by row."""
    return total([diagonal(placed(q, places, shape)), rank_one(places, shape, -q, q)])


def softmax_gains(box: Interval, axis: int, kept: Tensor | None = None) -> dict[float, float]:
    """Gains of softmax on a box: the greatest ‖J‖ of a row, in l1 and l∞ the greatest 2p(1 − p)."""
    low, high = _row_ends(box, (axis,), kept)
    if low.shape[-1] < 2 or not low.numel():
        return {1.0: 0.0, 2.0: 0.0, math.inf: 0.0}
    least, greatest = probabilities(low, high)
    half = torch.minimum(torch.maximum(torch.full_like(least, 0.5), least), greatest)
    wide = min(0.5, float((2.0 * half * (1.0 - half)).max()) + 16.0 * UNIT)
    return {1.0: wide, 2.0: min(wide, float(greatest_norms(least, greatest).max())), math.inf: wide}


def _row_ends(box: Interval, axes: tuple[int, ...], kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ends of a box as rows, what is left out at −∞."""
    ends = tuple(range(-len(axes), 0))
    low, high = (
        end if kept is None else torch.where(kept.expand(end.shape) > 0, end, -math.inf) for end in (box.low, box.high)
    )
    low, high = (end.movedim(axes, ends) for end in (low, high))
    return low.flatten(low.dim() - len(axes)), high.flatten(high.dim() - len(axes))


def log_softmax_expansion(box: Interval, axis: int) -> Expansion | None:
    """Of log-softmax along ``axis``; None where the box is not finite.

    The Jacobian is I − 1pᵀ, the map I − 1qᵀ with q as for softmax. What is left, 1(q − p)ᵀ, has norm √n‖q − p‖ in l2,
    Σ|q − p| in l∞ and n max|q − p| in l1. Where that is more than a share of what the Jacobian may be, a row's map is
    0: ‖I − 1pᵀ‖ is √n‖p‖ in l2, as 1pᵀ is a projection, at most 2(1 − p_i) in l∞ and 1 + (n − 2)p_j in l1.
    The remainder of the value is that of log-sum-exp.
    """
    if not bool(box.finite.all()) or box.low.shape[axis] < 2:
        return None
    shape = tuple(box.low.shape)
    r = _Rows.of(box, (axis,), None)
    if not r.places.numel():
        return None
    n, up = r.places.shape[-1], 1.0 + 16.0 * UNIT
    root = math.sqrt(n) * up
    near, plain = root * length_up(r.wide), root * length_up(r.high).clamp(max=1.0)
    level, bend = _log_sum(r), _log_bend(r)
    used = (near <= WORTH * plain) & bend.isfinite()
    two = torch.where(used, near, plain)
    top = torch.where(used, sum_up(r.wide), (2.0 * (1.0 - r.low.amin(-1, keepdim=True))).clamp(max=2.0) * up)
    one = torch.where(used, n * most(r.wide) * up, (1.0 + (n - 2.0) * most(r.high)) * up)
    q = torch.where(used, r.q, 0.0)
    ones = torch.ones_like(q)
    unit = torch.where(used, ones, 0.0)
    linear = total([diagonal(placed(unit, r.places, shape)), rank_one(r.places, shape, -ones, q)])
    start = image(linear, Range.exact(placed(r.centre, r.places, shape)[None])).map(lambda t: t[0])
    value = (Range.exact(r.centre) - level).widened((bend + TINY).expand(r.q.shape))
    offset = value.map(lambda t: placed(t, r.places, shape)) - start
    whole = placed(used.to(torch.float64), r.places, shape) > 0
    offset = Range(torch.where(whole, offset.mid, 0.0), torch.where(whole, offset.rad, math.inf))
    gains = {1.0: _ratio(one, two), 2.0: 1.0, math.inf: _ratio(top, two)}
    return Expansion((linear,), offset, (placed(two, r.places, shape),), (gains,))


def log_sum_exp_expansion(box: Interval, axes: tuple[int, ...], out_shape: Shape) -> Expansion | None:
    """Of log-sum-exp over ``axes``; None where the box is not finite.

    The derivative is p, the map q as for softmax. What is left, q − p, has norm ‖q − p‖ in l2, Σ|q − p| in l∞ and
    max|q − p| in l1; where that is more than a share of ‖p‖, a row's map is 0. The value is lse(c) + q(x − c) + (p(c) −
    q)(x − c) and a remainder ½ Var h, see ``_bend``.
    """
    if not bool(box.finite.all()):
        return None
    shape = tuple(box.low.shape)
    r = _Rows.of(box, axes, None)
    if not r.places.numel():
        return None
    near, plain, bend = length_up(r.wide), length_up(r.high).clamp(max=1.0), _log_bend(r)
    used = (near <= WORTH * plain) & bend.isfinite()
    two = torch.where(used, near, plain)
    top, one = torch.where(used, sum_up(r.wide), 1.0), torch.where(used, most(r.wide), most(r.high))
    linear = _weighted_sum(r.places, shape, out_shape, torch.where(used, r.q, 0.0))
    start = image(linear, Range.exact(placed(r.centre, r.places, shape)[None])).map(lambda t: t[0])
    offset = _log_sum(r).widened(bend + TINY).map(lambda t: t.reshape(out_shape)) - start
    whole = used.reshape(out_shape)
    offset = Range(torch.where(whole, offset.mid, 0.0), torch.where(whole, offset.rad, math.inf))
    gains = {1.0: _ratio(one, two), 2.0: 1.0, math.inf: _ratio(top, two)}
    return Expansion((linear,), offset, (placed(two, r.places, shape),), (gains,))


def _ratio(values: Tensor, over: Tensor) -> float:
    return float(torch.where(over > 0, values / over, 0.0).max()) * (1.0 + 4.0 * UNIT)


def _log_sum(r: _Rows) -> Range:
    """log Σ exp of the centre, row by row."""
    top = Range.exact(most(r.centre))
    return (Range.exact(r.centre) - top).exp().sum((1,), True).log() + top


def _log_bend(r: _Rows) -> Tensor:
    """½ Var h and the error of q, as in ``_bend``."""
    swing = r.swing[:, None]
    square = sum_up(r.high * r.far * r.far)
    second = 0.5 * torch.minimum(torch.where(square.isnan(), math.inf, square), 0.25 * swing * swing)
    return (second + sum_up(r.off * r.far)) * (1.0 + 32.0 * UNIT)


def _weighted_sum(places: Tensor, shape: Shape, out_shape: Shape, weights: Tensor) -> LinearMap:
    """x ↦ Σ weights x over each group."""
    groups, n = places.shape
    inverse = torch.argsort(places.reshape(-1))

    def function(x: Tensor, c: Tensor) -> Tensor:
        return (x.reshape(-1)[places.to(x.device)] * c).sum(-1).reshape(out_shape)

    def transposed(y: Tensor, c: Tensor) -> Tensor:
        spread = y.reshape(len(y), groups, 1) * c
        return spread.reshape(len(y), -1)[:, inverse.to(y.device)].reshape(len(y), *shape)

    key = f"weighted sums of {index_key(places + 1)}"
    constants = (weights.contiguous(),)
    return OpMap("logsumexp", function, shape, out_shape, constants, key, n + 1.0, stored=True, transposed=transposed)
