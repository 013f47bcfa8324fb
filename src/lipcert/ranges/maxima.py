"""Linear bounds of maxima over windows, from boxes of their entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.nonlinearity import MaxSelection
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import TINY, UNIT, UP


@dataclass(frozen=True, eq=False)
class WindowLines:
    """Σ_k lower[o, k]·v[o, k] + least[o] ≤ max_k v[o, k] ≤ Σ_k upper[o, k]·v[o, k] + greatest[o] on a box.

    Attributes:
        index: (O, K) positions of the windows' entries among the parent's.
        overlap: windows that an entry is counted in, at most.
        lower, upper: (O, K), in [0, 1].
        least, greatest: of the node's shape.
    """

    index: Tensor
    overlap: int
    lower: Tensor
    upper: Tensor
    least: Tensor
    greatest: Tensor

    @classmethod
    def around(cls, function: MaxSelection, box: Interval, own: Interval) -> WindowLines:
        """The greatest entry from below; from above, of a few combinations the least at the middle of the box.

        Why the upper ones hold: for s in [0, 1]^K, max v − s·v = max_i ((1 − s_i) v_i − Σ_{j≠i} s_j v_j) is at most
        max_i ((1 − s_i) u_i + s_i l_i) − Σ_j s_j l_j on the box [l, u]. Tried are: 0; the entry with the greatest
        middle; and with L the greatest of all l the chords of max(v_i − L, 0), as max v ≤ L + Σ_i max(v_i − L, 0).
        """
        index, counts = function.index, function.first
        low, high = (end.reshape(-1)[index] for end in (box.low, box.high))
        known = (low.isfinite() & high.isfinite()).all(-1)
        low, high = (torch.where(known[:, None], end, 0.0) for end in (low, high))
        middle = 0.5 * low + 0.5 * high
        largest = torch.zeros_like(low).scatter(1, torch.where(counts, middle, -torch.inf).argmax(1, keepdim=True), 1.0)
        chords = ((high - low.amax(-1, keepdim=True)) / (high - low)).nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 1.0)
        slopes = torch.zeros_like(low)
        best = offset = _offset(low, high, slopes, counts)
        for tried in (largest, torch.where(counts, chords, 0.0)):
            new = _offset(low, high, tried, counts)
            at = (tried * middle).sum(-1) + new
            better = at < best
            slopes, offset = torch.where(better[:, None], tried, slopes), torch.where(better, new, offset)
            best = torch.where(better, at, best)
        shape, overlap = function.out_shape, int(torch.bincount(index.reshape(-1)).max()) if index.numel() else 0
        least = torch.where(known.reshape(shape), 0.0, own.low)
        greatest = torch.where(known.reshape(shape), offset.reshape(shape), own.high)
        lower, upper = (torch.where(known[:, None], s, 0.0) for s in (largest, slopes))
        return cls(index, overlap, lower, upper, least, greatest)

    def back(self, positive: Tensor, negative: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """What coefficients ≥ 0 and ≤ 0 of the maxima, (R, O), make of the entries', and their sizes, (R, count)."""
        total = positive.new_zeros(len(positive), count)
        sizes = torch.zeros_like(total)
        for k in range(self.index.shape[1]):
            part = positive * self.upper[:, k] + negative * self.lower[:, k]
            total.index_add_(1, self.index[:, k], part)
            sizes.index_add_(1, self.index[:, k], part.abs())
        return total, sizes


def _offset(low: Tensor, high: Tensor, slopes: Tensor, counts: Tensor) -> Tensor:
    """Least o with max v ≤ s·v + o on the box, rounded up."""
    own = torch.where(counts, (1.0 - slopes) * high + slopes * low, -torch.inf).amax(-1)
    paid = (slopes * low).sum(-1)
    size = torch.maximum(low.abs(), high.abs())
    slack = (2.0 * low.shape[-1] + 16.0) * UNIT * (2.0 * size.amax(-1) + (slopes * size).sum(-1)) * UP
    return own - paid + slack + TINY * (low.shape[-1] + 4.0)
