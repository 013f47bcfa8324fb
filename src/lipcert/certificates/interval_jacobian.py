"""The certificate of the interval Jacobian: none but its kind, since the check works out the enclosure itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.norms.conversion import NORMS, equivalence
from lipcert.certificates.norms.mixed_norm import Box, box_norm
from lipcert.errors import NotProved
from lipcert.guarantee import BreakdownRow
from lipcert.increments.jacobian import jacobian, operations
from lipcert.numerics.interval import Interval
from lipcert.numerics.magnitude import Magnitude
from lipcert.numerics.rounding import add_up
from lipcert.numerics.spectral import sigma_max_upper

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Norm, Problem

#: More floating-point operations are not spent.
MOST_WORK = 1e12


@certificate("interval_jacobian")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """sup ‖J‖_{p→q} over all matrices of the box that Jacobians lie in (RecurJac's aim: Zhang, Zhang & Hsieh 2019).

    Why this is an upper bound: δy = J δx for some J of the box (``increments/jacobian``), and ``least`` bounds the
    norm of all of them.
    """
    if operations(problem.reduced_increments) > MOST_WORK:
        raise NotProved("the network is too large for an interval Jacobian.")
    value = least(jacobian(problem.reduced_increments), problem.norm)
    if not math.isfinite(value):
        raise NotProved("the interval Jacobian is not bounded in floats.")
    magnitude = Magnitude.of(value)
    row = BreakdownRow("interval Jacobian", "derivatives", value, value, "rigorous")
    return Proof(magnitude, "rigorous", (row,), computed=True)


def least(box: Interval, norm: Norm) -> float:
    """An upper bound of ‖J‖_{p→q} for all J between two ends, (m, n), rounded up.

    Why: by the greatest |entries|; or by the middle and, with the triangle inequality, the radius; and what another
    pair of norms says of this one (``equivalence``).
    """
    m, n = box.low.shape
    if not m or not n:
        return 0.0
    if not bool(box.finite.all()):
        return math.inf
    mid = 0.5 * box.low + 0.5 * box.high
    radius = torch.maximum(box.high - mid, mid - box.low)
    radius = torch.where(radius > 0, torch.nextafter(radius, torch.full_like(radius, math.inf)), 0.0)
    flat = torch.zeros_like(mid)

    def own(p: float, q: float) -> float:
        if p == q == 2.0 and min(m, n) > 1:
            return min(sigma_max_upper(box.greatest), sigma_max_upper(mid, sigma_max_upper(radius)))
        apart = add_up(box_norm(Box(mid, flat), p, q), box_norm(Box(radius, flat), p, q))
        return min(box_norm(Box(mid, radius), p, q), apart)

    p, q = norm
    values = []
    for other_p in NORMS:
        for other_q in NORMS:
            factor = equivalence(n, p, other_p) * equivalence(m, other_q, q)
            value = own(other_p, other_q)
            if math.isfinite(value):
                values.append(float(Magnitude.of(value) * factor))
    return min(values, default=math.inf)
