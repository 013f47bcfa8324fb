"""The closed form of an attention head: how far its rows may go between two points of a set, however large that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.numerics.interval import Interval, middle_of
from lipcert.numerics.many_norms import two_norms
from lipcert.numerics.matrices import product_of_ranges
from lipcert.numerics.midrad import TINY, UNIT, Range, require_subnormals
from lipcert.numerics.rows import length_up, most, sum_up
from lipcert.numerics.softmax_rows import greatest_norms, probabilities

#: Covers the roundings of up to some hundreds of operations on numbers that are not negative.
_UP = 1.0 + 2.0**-40
#: Sizes beyond which nothing is worked out, and what is granted to every factor against underflow.
_MOST, _LEAST = 1e50, 1e-200
#: Above √½.
_HALF = 0.70710678118654758

#: Factors of the entries of Q, Kᵀ and V.
Factors = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Logits:
    """What a softmax along the last axis is of: σ Q Kᵀ + b, over some entries.

    Attributes:
        scale: σ, (heads,); within the range of its head it may differ from entry to entry.
        offset: b, (heads, n, m); None for 0.
        kept: which entries the softmax is over, (heads, n, m); None for all.
    """

    scale: Range
    offset: Range | None = None
    kept: Tensor | None = None

    def probabilities(self, head: int, product: Range, unlike: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(least, greatest) of every entry where Q Kᵀ, (n, m), lies in a range.

        Args:
            head: which one.
            product: Q Kᵀ less any number per row, to which each entry's own σ gives the logits.
            unlike: how large that number may be, (n, 1): what differs of σ does not leave it in all entries alike.
        """
        scale = _of(self.scale, head)
        logits = product * scale
        logits = logits if unlike is None else logits.widened((unlike * scale.reach).expand(logits.mid.shape) * _UP)
        logits = logits if self.offset is None else logits + _of(self.offset, head)
        if self.kept is None:
            return probabilities(logits.low, logits.high)
        return probabilities(*(torch.where(self.kept[head], end, -math.inf) for end in (logits.low, logits.high)))


def attention_factors(boxes: tuple[Interval, Interval, Interval], logits: Logits) -> Factors | None:
    """(f, g, h) with ‖δY‖₂ ≤ ‖f ⊙ δQ‖ + ‖g ⊙ δKᵀ‖ + ‖h ⊙ δV‖ for Y = softmax(σ Q Kᵀ + b) V.

    None where a box is not finite. Each index of the batch is a head by itself; a factor is the same for all entries
    of a token.

    Why this is an upper bound: the sets are convex, so the increment between two points is the derivative on the
    segment between them, averaged. In row i, with probabilities p_j, y = Σ p_j v_j and covariances under p, that is

        δy = Σ_j p_j δv_j + σ Cov(v, k) δq + σ Cov(v, q·δk).

    The first is at most √(Σ_j p_j‖δv_j‖²), by convexity. As ‖Cov(a, b)‖ ≤ std(a) std(b), std the greatest standard
    deviation along a direction, the second is at most σ std(v) std(k) ‖δq‖, and the third σ std(v) ‖q‖ √(Σ_j
    p_j‖δk_j‖²), as std(q·δk)² ≤ Σ_j p_j (q·δk_j)². Rows are summed with h_j² = Σ_i p_ij and g_j² = Σ_i (σ std_i(v)
    ‖q_i‖)² p_ij. Or, as the variance of numbers is at most ‖diag(p) − ppᵀ‖ ≤ ½ times their sum of squares, with g = σ
    max std(v) √max ‖diag(p_i) − p_ip_iᵀ‖ ‖Q‖₂. Entries that a mask leaves out have p = 0. A row in which all are left
    out is 0. Where σ_ij = σ + ε_ij with |ε_ij| ≤ ε, as far as the range goes, the second is Cov(v, σ_ij k) δq, in which
    std(σ_ij k) ≤ |σ| std(k) + ε max ‖k_j‖: what all keys share is not lost. In the third the greatest |σ_ij| will do.

    What enters is bounded over the sets: std(v) ≤ std(v̂) + std(v − v̂) for the middles v̂, the first of these by
    √λ_max(Σ_j p_j (v̂_j − c)(v̂_j − c)ᵀ) for any c, and by the greatest ‖v̂_j − c‖; the second by half of what two
    tokens may be farther from each other, and by √min(½, max p) ‖V − V̂‖. So it is at most the radius of a ball around
    all tokens, whatever p is. p is at most what logits allow that go no farther from the middle than σ(‖q − q̂‖ ‖k̂_j −
    c‖ + ‖q‖ ‖k_j − k̂_j‖): what all keys share changes no row, but for ε‖q − q̂‖ ‖c‖ where σ differs.

    Source: after Kim, Papamakarios and Mnih, *The Lipschitz Constant of Self-Attention* (2021), and Castin, Ablin and
    Peyré, *How Smooth Is Attention?* (2024), who bound the covariance by the radius of a ball.

    Args:
        boxes: of Q (…, n, d), Kᵀ (…, d, m) and V (…, m, e), or sets around centres.
        logits: of the softmax.
    """
    if not all(bool(box.finite.all()) for box in boxes):
        return None
    shapes = [tuple(box.low.shape) for box in boxes]
    if any(not math.prod(shape) for shape in shapes):
        return None
    require_subnormals()
    found = []
    for head in range(math.prod(shapes[0][:-2])):
        q, k, v = (_Tokens.of(box, head, flip) for box, flip in zip(boxes, (False, True, False), strict=True))
        if not all(one.usable for one in (q, k, v)):
            return None
        found.append(_head(q, k, v, logits, head))

    def whole(which: int, axis: int) -> Tensor:
        own = torch.stack([factors[which] for factors in found]) * _UP + _LEAST
        return own.reshape(*shapes[which][:-2], own.shape[-1]).unsqueeze(axis).expand(shapes[which]).contiguous()

    result = whole(0, -1), whole(1, -2), whole(2, -1)
    return result if all(bool(own.isfinite().all()) for own in result) else None


def attention_at(q: Tensor, k: Tensor, v: Tensor, logits: Logits) -> Range:
    """softmax(σ Q Kᵀ + b) V of doubles, as ``attention_factors`` has them."""
    flat = [t.reshape(-1, *t.shape[-2:]) for t in (q, k, v)]
    rows = []
    for head, (own_q, own_k, own_v) in enumerate(zip(*flat, strict=True)):
        ends = logits.probabilities(head, product_of_ranges(Range.exact(own_q), Range.exact(own_k)))
        rows.append(product_of_ranges(Range.between(*ends), Range.exact(own_v)))
    shape = (*q.shape[:-1], v.shape[-1])
    mid, rad = (torch.stack([getattr(row, part) for row in rows]).reshape(shape) for part in ("mid", "rad"))
    return Range(mid, rad)


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Tokens (n, d) of one head in a set: centres, and how far entries, tokens and all together may be from these."""

    centre: Tensor
    entries: Tensor
    far: Tensor
    reach: Tensor

    @classmethod
    def of(cls, box: Interval, head: int, flip: bool) -> _Tokens:
        middle, reach = middle_of(box)
        own = _of(middle.map(lambda t: t.reshape(-1, *t.shape[-2:])), head)
        own = own.map(lambda t: t.T.contiguous()) if flip else own
        far = length_up(own.rad)[:, 0].clamp(max=reach)
        return cls(own.mid, own.rad, far, length_up(far[None])[0, 0].clamp(max=reach))

    @property
    def usable(self) -> bool:
        """Whether all is moderate."""
        return bool((self.centre.abs().max() < _MOST) & (self.reach < _MOST))


def _head(q: _Tokens, k: _Tokens, v: _Tokens, logits: Logits, head: int) -> Factors:
    """The factors of tokens, (n,), (m,) and (m,), of one head."""
    scale = _of(logits.scale, head)
    s, off = scale.mag, scale.reach
    middle = product_of_ranges(Range.exact(q.centre), Range.exact(k.centre.T))
    least, greatest = logits.probabilities(head, middle)
    p = 0.5 * least + 0.5 * greatest
    mean = p @ k.centre
    steps = k.centre - mean[:, None]  # (n, m, d), from a point per row near the mean
    top = (length_up(q.centre)[:, 0] + q.far) * _UP
    moved = q.far[:, None] * length_up(steps)[..., 0] + top[:, None] * k.far
    closer = torch.einsum("id,ijd->ij", q.entries, steps.abs()) + (q.centre.abs() + q.entries) @ k.entries.T
    moved = torch.minimum(moved, closer) * (_UP + 4.0 * UNIT * steps.shape[-1]) + 4.0 * UNIT * middle.mag + TINY
    unlike = q.far[:, None] * length_up(mean)
    least, greatest = logits.probabilities(head, middle.widened(moved), unlike)
    spread_v = _deviation(v, v.centre - (p @ v.centre)[:, None], greatest)
    spread_k = _deviation(k, steps, greatest)
    by_rows = _weighted(s * spread_v * top, greatest)
    at_once = two_norms(q.centre[None])[0] + q.reach  # ‖Q‖₂
    at_once = s * spread_v.max() * greatest_norms(least, greatest).max().sqrt() * at_once * _UP
    keys = by_rows if bool(by_rows.max() < at_once) else torch.full_like(by_rows, float(at_once))
    largest = (length_up(k.centre)[:, 0] + k.far).max()
    return spread_v * (s * spread_k + off * largest), keys, _weighted(torch.ones_like(top), greatest)


def _deviation(tokens: _Tokens, steps: Tensor, greatest: Tensor) -> Tensor:
    """std of every row, (n,): ``steps`` (n, m, d) from a point per row to the centres; probability 0 is left out."""
    there = greatest > 0
    still = two_norms(greatest.sqrt()[..., None] * steps) * (1.0 + 32.0 * UNIT * (steps.shape[1] + 8.0))
    still = torch.minimum(still, most(torch.where(there, length_up(steps)[..., 0], 0.0))[:, 0])
    largest = torch.where(there, tokens.far, 0.0).topk(min(2, len(tokens.far)), dim=1).values
    share = most(greatest)[:, 0].sqrt().clamp(max=_HALF)
    return (still + torch.minimum(0.5 * largest.sum(1), share * tokens.reach)) * _UP


def _weighted(factors: Tensor, greatest: Tensor) -> Tensor:
    """√(Σ_i f_i² p_ij) for every j."""
    return sum_up((factors * factors)[None] * greatest.T)[:, 0].sqrt() * _UP


def _of(x: Range, head: int) -> Range:
    return Range(x.mid[head], x.rad[head])
