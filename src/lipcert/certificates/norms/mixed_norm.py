"""Certified norms ‖·‖_{p→q} of a linear map, or of all matrices near one, for p and q in {1, 2, ∞}.

Six of the nine pairs have closed forms; ∞ → 1, ∞ → 2 and 2 → 1 are NP-hard (Rohn 2000; Steinberg 2005) and exact where
one side is short enough to try all signs, else bounded by the matrix of absolute values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.norms.conversion import NORMS
from lipcert.certificates.norms.scaling import Scaled, absolute_sums, known_rounding, scaled, terms
from lipcert.network.linear import Dense, LinearMap
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.midrad import TINY, UNIT, UP, lengths
from lipcert.numerics.rounding import add_up, gamma, mul_up

if TYPE_CHECKING:
    from lipcert.guarantee import Guarantee
    from lipcert.problem import Norm

#: Maps with at most this many entries are written down; of others only row and column sums of |W| are used.
MAX_ENTRIES = 20_000_000
#: All signs of a side up to this length are tried.
SIGNS = 14

#: 1/p + 1/p* = 1.
DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


@dataclass(frozen=True, eq=False)
class Box:
    """All matrices within ``radius`` ≥ 0 of ``mid``, entry by entry; both (m, n), float64."""

    mid: Tensor
    radius: Tensor

    @property
    def majorant(self) -> Tensor:
        """The greatest |entries|, rounded up."""
        total = self.mid.abs() + self.radius
        return torch.where(self.radius == 0, total, torch.nextafter(total, torch.full_like(total, math.inf)))


def box_norm(box: Box, p: float, q: float) -> float:
    """An upper bound of ‖W‖_{p→q} for all W of a box; not for (2, 2), but where one side is 1.

    Why this is an upper bound: ‖W‖_{p→q} ≤ ‖ |W| ‖_{p→q}, which grows with every entry. p = 1: the extreme points of
    the ball are ± unit vectors, so the greatest column's q-norm; q = ∞: the greatest row's dual norm. ∞ → q: |W| is
    largest at the vector of ones, ‖ |W| 1 ‖_q; 2 → 1 is ∞ → 2 of the transposed. With all signs: ‖·‖_q is convex, so
    the greatest ‖Wx‖_q with ‖x‖_∞ ≤ 1 is at an x of signs; computed images are off by γ_n |mid| 1, and the box adds
    radius · 1. All rounded up.
    """
    u = box.majorant
    if not u.numel():
        return 0.0
    if (p, q) == (2.0, 2.0):
        if 1 not in u.shape:
            raise ValueError("the 2-norm of a box is bounded elsewhere")
        return _length(u.reshape(-1), 2.0)
    if (p, q) == (2.0, 1.0):  # the transposed map's dual norms
        return box_norm(Box(box.mid.T, box.radius.T), math.inf, 2.0)
    if p == 1:
        return float(lengths(u.T, q).max())
    if q == math.inf:
        return float(lengths(u, DUAL[p]).max())
    value = _length(row_sums(u), q)
    m, n = u.shape
    if q == 1 and m < n:  # ∞ → 1 is its own transposed
        box, n = Box(box.mid.T, box.radius.T), m
    few = 1 < n <= SIGNS and len(box.mid) << n <= MAX_ENTRIES
    return min(value, _by_signs(box, q)) if few else value


def row_sums(u: Tensor) -> Tensor:
    """Sums of the rows of a non-negative matrix, rounded up."""
    return u.sum(1) * (1.0 + 2.0 * (u.shape[1] + 2.0) * UNIT) + TINY * (u != 0).any(1)


def _length(values: Tensor, q: float) -> float:
    return float(lengths(values[None], q)[0]) if values.numel() else 0.0


def _by_signs(box: Box, q: float) -> float:
    """max over signs x of ‖Wx‖_q, x and −x being one."""
    n = box.mid.shape[1]
    half = torch.tensor(list(itertools.product((1.0, -1.0), repeat=n - 1)), dtype=torch.float64)
    images = half @ box.mid[:, 1:].T + box.mid[:, 0]
    greatest = float(lengths(images, q).max())
    slack = box.radius + gamma(n + 2.0) * box.mid.abs() * UP + TINY
    return add_up(greatest, _length(row_sums(slack), q))


def mixed_norms(linear: LinearMap) -> tuple[Mapping[Norm, Magnitude], Guarantee]:
    """Upper bounds of ‖W‖_{p→q} for the pairs that need no singular value: all but (2, 2), where they are known.

    A map of many entries is not written down: its pairs (1, 2), (1, ∞) and (2, ∞) are then left out.

    Why these are upper bounds: the matrix as computed is off by at most γ_k |W| and what underflow loses, entry by
    entry (``LinearMap.rounding``, ``scaled``), and ``box_norm``; row and column sums of |W| are rounded up.
    """
    if linear.is_zero:
        return dict.fromkeys(itertools.product(NORMS, NORMS), ZERO), "rigorous"
    unit = scaled(linear)
    guarantee: Guarantee = "rigorous" if known_rounding(unit.map) and known_rounding(linear) else "numerical"
    rows, columns = (sums.reshape(-1) for sums in absolute_sums(unit))
    found: dict[Norm, float] = {
        (math.inf, math.inf): float(rows.max()),
        (1.0, 1.0): float(columns.max()),
        (math.inf, 1.0): _length(rows, 1.0),
        (math.inf, 2.0): _length(rows, 2.0),
        (2.0, 1.0): _length(columns, 2.0),
    }
    if linear.in_size * linear.out_size <= MAX_ENTRIES:
        box = written_box(unit)
        for pair in itertools.product(NORMS, NORMS):
            if pair != (2.0, 2.0) or 1 in box.mid.shape:
                found[pair] = min(found.get(pair, math.inf), box_norm(box, *pair))
    return {
        pair: Magnitude.of(value).times_power(unit.exponent) for pair, value in found.items() if math.isfinite(value)
    }, guarantee


def written_box(unit: Scaled) -> Box:
    """The matrix of a scaled map with the error of every entry."""
    matrix = unit.map.matrix()
    size = matrix.abs() if isinstance(unit.map, Dense) and unit.map.stored else unit.map.absolute().matrix()
    share = mul_up(2.0, gamma(terms(unit.map) + 8.0), UP)
    stored = isinstance(unit.map, Dense) and unit.map.stored
    return Box(matrix, torch.zeros_like(matrix) if stored else size * share + unit.underflow)
