"""Two lines around an activation on a box: what linear bounds put in its place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.slopes import slopes
from lipcert.numerics.interval import Interval
from lipcert.ranges.functions import Samples, lines_off


@dataclass(frozen=True, eq=False)
class Lines:
    """lower_slope·z + lower_offset ≤ φ(z) ≤ upper_slope·z + upper_offset on the parent's box, entry by entry."""

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor

    @classmethod
    def around(cls, function: Nonlinearity, box: Interval, own: Interval) -> Lines:
        """For each side the best, at the middle of the box, of a few slopes: chord, middle, ends; else constants.

        Any slope is right: the offset is the outward-rounded extreme of φ(z) − slope·z.
        """
        finite = box.finite
        low, high = torch.where(finite, box.low, 0.0), torch.where(finite, box.high, 0.0)
        middle = 0.5 * low + 0.5 * high
        ends = [function_mid(function, end) for end in (low, high)]
        chord = (ends[1] - ends[0]) / (high - low)
        candidates = [chord]
        for point in (middle, low, high):
            alpha, beta = slopes(function, point, point)
            candidates.append(0.5 * alpha + 0.5 * beta)
        best: list[Tensor] | None = None
        samples = Samples.of(function, low, high)
        for slope in candidates:
            slope = torch.where(slope.isfinite(), slope, 0.0)
            least, greatest = lines_off(samples, slope)
            new = [slope, least, slope, greatest]
            if best is None:
                best = new
                continue
            above = slope * middle + least > best[0] * middle + best[1]
            below = slope * middle + greatest < best[2] * middle + best[3]
            best = [torch.where(w, n, b) for w, n, b in zip((above, above, below, below), new, best, strict=True)]
        assert best is not None
        known = finite & best[1].isfinite() & best[3].isfinite()
        zero = torch.zeros_like(low)
        return cls(
            torch.where(known, best[0], zero), torch.where(known, best[1], own.low),
            torch.where(known, best[2], zero), torch.where(known, best[3], own.high),
        )  # fmt: skip


def function_mid(function: Nonlinearity, x: Tensor) -> Tensor:
    """φ at doubles in plain floating point: for proposals of slopes."""
    result = function.value(x)
    return torch.as_tensor(result, dtype=torch.float64).expand(x.shape)
