"""What passing from one norm to another costs: ‖z‖_q ≤ n^max(0, 1/q − 1/p) ‖z‖_p for n numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lipcert.numerics.magnitude import ONE, ZERO, Magnitude
from lipcert.numerics.rounding import mul_up, sqrt_up

if TYPE_CHECKING:
    from lipcert.problem import Norm

#: The norms there are, the largest of a vector first.
NORMS = (1.0, 2.0, math.inf)


def equivalence(n: int, p: float, q: float) -> Magnitude:
    """The least c with ‖z‖_q ≤ c ‖z‖_p for all z of n numbers, rounded up.

    c = n^max(0, 1/q − 1/p): ‖z‖_q ≤ ‖z‖_p for p ≤ q; else Hölder's inequality, attained where all |z_i| are equal.
    """
    if n == 0:
        return ZERO
    if p <= q:
        return ONE
    if (p, q) == (math.inf, 1.0):
        return Magnitude.of(mul_up(1.0, float(n)))
    return Magnitude.of(sqrt_up(float(n)))


def cost(norm: Norm, via: Norm, n: int, m: int) -> Magnitude:
    """c with L_norm ≤ c · L_via for every f: R^n → R^m on every domain, rounded up.

    Why: with (p, q) and (p', q'), ‖δy‖_q ≤ c_m ‖δy‖_q' ≤ c_m L_via ‖δx‖_p' ≤ c_m L_via c_n ‖δx‖_p.
    """
    (p, q), (other_p, other_q) = norm, via
    return equivalence(n, p, other_p) * equivalence(m, other_q, q)
