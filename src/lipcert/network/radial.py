"""Blocks x ↦ x / r(‖x‖) over groups of entries, the shape of every normalisation: their gains away from the origin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lipcert.network.expansion import Expansion
from lipcert.network.nonlinearity import GainFunction
from lipcert.network.radial_expansion import radial_expansion
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import UNIT, Range

#: Divisors below say nothing: near underflow roundings are not relative. None is taken for more than the other number,
#: which is less than what overflows when it is squared, for up to 2^60 entries.
_LEAST, _MOST = 2.0**-900, 2.0**480


@dataclass(frozen=True, eq=False, repr=False)
class Radial(GainFunction):
    """x / r(‖x‖₂) over each of some groups of entries, x less its mean in it where ``centred``; r does not fall."""

    centred: ClassVar[bool] = False
    smooth: ClassVar[bool] = True

    def expansion(self, box: Interval, least: Tensor | None = None) -> Expansion | None:
        """Group by group, where r² is k‖x‖² + ε."""
        return radial_expansion(self, box, least)

    def grouped(self, x: Tensor) -> Tensor:
        """One example's entries as (groups, n)."""
        raise NotImplementedError

    def divisor(self, length: Tensor) -> Tensor:
        """r(length) but for a relative error of 16 units of roundoff; lengths are ≥ 0."""
        raise NotImplementedError

    def root_form(self, least: float) -> tuple[Range, Range, float] | None:
        """(k, ε, s) if r² is Σ w_j x_j² + ε where ‖x‖ ≥ least, all w_j in k and √(greatest / least of them) ≤ s."""
        return None

    @property
    def distortion(self) -> float:
        """What unequal weights of the entries of a group cost, rounded up: √(greatest / least)."""
        return 1.0

    def gains_beyond(self, length: Tensor, n: int) -> Mapping[float, float]:
        """Gains between points of a convex set on which group g, of n entries, has at least length[g], rounded up.

        Why these are upper bounds: with u = x/‖x‖ the derivative of a group is (1/r)(P − t uuᵀ) with 0 ≤ t ≤ 1, P the
        identity or, where centred, the projection off the mean (then u is centred, too). So it is at most 1/r in l2,
        and in l1 and l∞ at most max(a, (1 + √n)/2)/r, a = 1 or 2(n − 1)/n, the greater end of what
        ``ops/radial.py`` proves for each t. r is least where ‖x‖ is, and no segment leaves the set. With weights D
        the function is D⁻¹ g(D x), of a gain ‖D⁻¹‖‖D‖ times that of g. A gain on the whole space holds, too.
        """
        least = min(float(self.divisor(length).min()), _MOST) if length.numel() else 0.0
        if not least > _LEAST:
            return self.gains
        wide = max(2.0 * (n - 1) / n if self.centred else 1.0, (1.0 + math.sqrt(n)) / 2.0)
        one = self.distortion / least * (1.0 + 64.0 * UNIT)
        found = {1.0: one * wide * (1.0 + 64.0 * UNIT), 2.0: one, math.inf: one * wide * (1.0 + 64.0 * UNIT)}
        found = {p: min(gain, self.gains.get(p, math.inf)) for p, gain in found.items()}
        return {p: gain for p, gain in found.items() if math.isfinite(gain)}


def along(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Entries as (groups, n), a group being those that differ in ``axes`` only."""
    places = tuple(range(-len(axes), 0))
    moved = x.movedim(axes, places)
    return moved.reshape(-1, math.prod(moved.shape[a] for a in places))
