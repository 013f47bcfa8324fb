"""How much a matrix stretches at least: min ‖Wx‖_p / ‖x‖_p from below, rounding included."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.numerics.midrad import TINY, UP
from lipcert.numerics.rounding import down, gamma
from lipcert.numerics.spectral import norm_1_upper, norm_inf_upper, sigma_max_upper


def least_gain_lower(w: Tensor, radius: Tensor, p: float) -> float:
    """g ≥ 0 with ‖Wx‖_p ≥ g ‖x‖_p for all x and all W within ``radius`` of w, entry by entry; p in {1, 2, ∞}.

    For p = 2 the least singular value, but for rounding; for square matrices in l1 and l∞ 1/‖W⁻¹‖_p.

    Args:
        w: (m, n) float64.
        radius: (m, n), ≥ 0.
        p: the norm on both sides.

    Why this is a lower bound: let R be any (n, m) matrix, here the pseudoinverse as computed. With ε ≥ ‖RW − I‖_p < 1,
    (1 − ε)‖x‖ ≤ ‖x‖ − ‖(I − RW)x‖ ≤ ‖RWx‖ ≤ ‖R‖‖Wx‖ (Rump 1999 for inverses). ε covers the rounding of the
    product, γ_m|R||w|, of the difference, and |R| radius.
    """
    m, n = w.shape
    if n == 0:
        return math.inf
    if m < n or not bool(torch.isfinite(w).all()):
        return 0.0
    try:
        inverse = torch.linalg.inv(w) if m == n else torch.linalg.pinv(w)
    except RuntimeError:  # singular
        return 0.0
    if not bool(torch.isfinite(inverse).all()):
        return 0.0
    product = inverse @ w
    size = inverse.abs() @ (w.abs() * gamma(m + 4.0) + radius + TINY)
    left = (product - torch.eye(n, dtype=torch.float64)).abs() * UP + size * (1.0 + 2.0 * gamma(m + 4.0)) * UP + TINY
    if not bool(torch.isfinite(left).all()):
        return 0.0
    share = _norm(left, p)
    whole = _norm(inverse, p)
    if not share < 1.0 or not 0.0 < whole < math.inf:
        return 0.0
    return max(0.0, down(down(1.0 - share) / whole))


def _norm(matrix: Tensor, p: float) -> float:
    return {1.0: norm_1_upper, 2.0: sigma_max_upper, math.inf: norm_inf_upper}[p](matrix)
