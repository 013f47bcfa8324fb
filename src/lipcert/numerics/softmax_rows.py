"""Rows of logits in a box: what softmax makes of them there, and how its Jacobian varies.

The Jacobian of softmax is J(x) = diag(p) − ppᵀ, the covariance of the unit vectors under p. Rows are along the last
axis; an entry whose ends are both −∞ is left out of its row and has probability 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.numerics.midrad import TINY, UNIT, UP

#: Relative error of eˣ of a rounded difference down to where it underflows: |x| ≤ 746, and the library's own.
_EXP = 800.0 * UNIT


def probabilities(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(least, greatest) probability of every entry over the boxes [low, high], rounded outward: (..., n) each.

    p_j = 1/(1 + Σ_{k≠j} exp(x_k − x_j)) grows with x_j and falls with every other entry, so its extremes are at
    corners of the box. The sums without one entry are made of the sums before and after it, without subtraction.
    """
    left_out = (low == -math.inf) & (high == -math.inf)
    top = high.amax(dim=-1, keepdim=True)
    known = top.isfinite()
    top = torch.where(known, top, 0.0)
    bottoms, tops = (torch.exp(torch.where(known, end, 0.0) - top) for end in (low, high))
    n = low.shape[-1]
    slack = 1.0 + 4.0 * (_EXP + (n + 8.0) * UNIT)
    floor = (n + 1.0) * TINY  # what underflow takes from a sum

    def ratio(own: Tensor, others: Tensor) -> Tensor:
        return own / (own + others)

    greatest = ratio(tops + floor, (_without_each(bottoms) - floor).clamp(min=0.0)) * slack
    least = ratio((bottoms - floor).clamp(min=0.0), _without_each(tops) + floor) / slack
    least, greatest = least.clamp(0.0, 1.0), greatest.clamp(0.0, 1.0)
    least, greatest = torch.where(known, least, 0.0), torch.where(known, greatest, 1.0)
    return torch.where(left_out, 0.0, least), torch.where(left_out, 0.0, greatest)


def _without_each(x: Tensor) -> Tensor:
    """Σ_{k≠j} x_k for every j along the last axis."""
    none = torch.zeros_like(x[..., :1])
    before = torch.cat([none, torch.cumsum(x, dim=-1)[..., :-1]], dim=-1)
    after = torch.cat([torch.cumsum(x.flip(-1), dim=-1).flip(-1)[..., 1:], none], dim=-1)
    return before + after


def greatest_norms(least: Tensor, greatest: Tensor) -> Tensor:
    """Upper bounds of ‖diag(p) − ppᵀ‖₂ over probabilities in a box, row by row: (..., n) → (...).

    Why this is an upper bound: let p₁ ≥ p₂ be the two largest and λ = p₁(1 − p₁ + p₂) (Yudin et al. 2025). If p₂ < p₁
    < 1, then p₁ > λ > p₂, and λI − diag(p) + ppᵀ, with one negative eigenvalue before ppᵀ is added, is positive
    semidefinite just where p₁²/(p₁ − λ) ≥ 1 + Σ_{j≥2} p_j²/(λ − p_j). The left side is p₁/(p₁ − p₂); on the right
    p_j/(λ − p_j) ≤ p₂/(λ − p₂) = p₂/((1 − p₁)(p₁ − p₂)) and Σ_{j≥2} p_j = 1 − p₁ give at most as much. If p₁ = p₂ then
    λ = p₁, and diag(p) ≤ p₁I; if p₁ = 1 the matrix is 0.
    With p₂ at most b, p₁ and 1 − p₁ this is a function of p₁ alone, of which ``_curvature`` knows the greatest value.
    """
    if least.shape[-1] < 2:
        return torch.zeros(least.shape[:-1], dtype=torch.float64)
    second = greatest.topk(2, dim=-1).values[..., 1]
    return _curvature(least.amax(dim=-1), greatest.amax(dim=-1), second)


def _curvature(low: Tensor, high: Tensor, second: Tensor) -> Tensor:
    """The greatest p(1 − p + min(b, p, 1 − p)) over low ≤ p ≤ high, rounded up; b = ``second``.

    It is p up to p = b ≤ 1/2, then rises up to (1 + b)/2 or to 1 − b, whichever comes first, and falls from there on.
    """
    b = second.clamp(max=0.5)
    peak = torch.minimum(0.5 + 0.5 * b, 1.0 - b)
    p = torch.minimum(torch.maximum(peak, low), high)
    value = p * (1.0 - p + torch.minimum(torch.minimum(b, p), 1.0 - p))
    # the slope is at most 2, so that an error of p of a few units of roundoff is covered
    return (value + 16.0 * UNIT).clamp(max=0.5)


def swings(low: Tensor, high: Tensor, centre: Tensor) -> Tensor:
    """Upper bounds of max_j (x − c)_j − min_j (x − c)_j over x in the boxes, row by row; c need not lie in them.

    Entries with ends of −∞ are left out of their row.
    """
    left_out = (low == -math.inf) & (high == -math.inf)
    far = torch.maximum(high - centre, centre - low) * UP
    far = torch.where(left_out, 0.0, torch.where(far.isnan(), math.inf, far))
    if low.shape[-1] < 2:
        return torch.zeros(low.shape[:-1], dtype=torch.float64)
    return far.topk(2, dim=-1).values.sum(dim=-1) * UP


def growth(swing: Tensor) -> Tensor:
    """e^w − 1, rounded up: J(x) − J(c) lies between ±(e^w − 1) J(c) where x − c swings by at most w.

    Why: along x(t) = c + th the derivative of aᵀJa, the variance of a under p, is E[(a − E a)²(h − E h)], at most w
    times that variance, as |h_j − E h| ≤ max h − min h = w. So e^−w J(c) ≤ J(x) ≤ e^w J(c) as symmetric matrices
    (Grönwall), and 1 − e^−w ≤ e^w − 1.
    """
    return torch.expm1(swing) * (1.0 + 32.0 * UNIT)
