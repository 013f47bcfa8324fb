"""Matrices of known ranges: their products, and norms of matrices without negative entries."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.numerics.midrad import TINY, UNIT, UP, Range

#: Rows of a piece.
_PIECE = 64
#: Rows up to which it takes all together.
_SMALL = 256
#: Steps of the power method that finds weights for a bound of the norm of a non-negative matrix.
_STEPS = 6


def product_of_ranges(x: Range, y: Range) -> Range:
    """X Y: |XY − CD| ≤ |C|S + R|D| + RS for middles C, D and radii R, S, and γ|C||D| for rounding."""
    a, b = x.plain, y.plain
    k = a.mid.shape[-1]
    gamma = (k + 4.0) * UNIT * UP
    first, second = a.mid.abs(), b.mid.abs()
    spread = torch.matmul(first + a.rad, b.rad) + torch.matmul(a.rad, second) + gamma * torch.matmul(first, second)
    return Range(torch.matmul(a.mid, b.mid), spread * (1.0 + 4.0 * gamma) + 4.0 * (k + 1.0) * TINY)


def norms_of(matrices: Tensor) -> Tensor:
    """Upper bounds of the 2-norms of non-negative matrices (..., n, m) → (...).

    Why: ‖R‖₂² is the greatest eigenvalue of RᵀR, for a non-negative matrix at most max_i (RᵀRx)_i/x_i for any x > 0
    (Collatz–Wielandt). x comes from a few steps of the power method.
    """
    n, m = matrices.shape[-2:]
    if not matrices.numel():
        return torch.zeros(matrices.shape[:-2], dtype=torch.float64)
    unit = matrices.amax((-2, -1), keepdim=True)
    scaled = torch.where(unit > 0, matrices / unit, 0.0)
    x = torch.ones(*matrices.shape[:-2], m, 1, dtype=torch.float64)
    for _ in range(_STEPS):
        x = torch.matmul(scaled.transpose(-1, -2), torch.matmul(scaled, x))
        x = x / x.amax(-2, keepdim=True).clamp(min=1e-300) + 1e-9
    image = torch.matmul(scaled.transpose(-1, -2), torch.matmul(scaled, x))
    square = (image / x).amax((-2, -1)) * (1.0 + 4.0 * (n + m + 8.0) * UNIT) + (n + m) * TINY
    return torch.sqrt(square) * unit[..., 0, 0] * (1.0 + 16.0 * UNIT)


@dataclass(frozen=True, eq=False)
class Pieces:
    """A matrix X, (n, m), by pieces of its rows, of each the columns in which it is not 0; not to be changed any more.

    Attributes:
        rows: the pieces with these columns alone.
        used: (m,) bool per piece, which they are.
    """

    rows: tuple[Tensor, ...]
    used: tuple[Tensor, ...]

    @classmethod
    def of(cls, matrix: Tensor) -> Pieces:
        """All rows together where they are few."""
        pieces = matrix.split(_PIECE if len(matrix) > _SMALL else max(1, len(matrix)))
        used = tuple((piece != 0).any(dim=0) for piece in pieces)
        return cls(tuple(piece[:, own] for piece, own in zip(pieces, used, strict=True)), used)

    def weighted_gram(self, weights: Tensor) -> Tensor:
        """X diag(w) Xᵀ, exactly symmetric, (n, n), for w (m,).

        Pieces are multiplied over the columns that both have: what is left out are products with 0, so that every entry
        is a rounded sum of at most m products of two roundings each, as of the whole; an entry on a diagonal block is
        the rounded middle of two such sums.
        """
        ends = [0, *itertools.accumulate(len(piece) for piece in self.rows)]
        result = weights.new_zeros(ends[-1], ends[-1])
        for i, (piece, own) in enumerate(zip(self.rows, self.used, strict=True)):
            left, here = piece * weights[own], slice(ends[i], ends[i + 1])
            for j in range(i + 1):
                both = self.used[j] & own
                if not bool(both.any()):
                    continue
                mine, other = _among(left, both[own]), _among(self.rows[j], both[self.used[j]])
                block = mine @ other.mT
                if i == j:
                    block = 0.5 * (block + block.mT)
                there = slice(ends[j], ends[j + 1])
                result[here, there] = block
                result[there, here] = block.mT
        return result


def _among(rows: Tensor, chosen: Tensor) -> Tensor:
    """Some columns; the rows themselves where these are all."""
    return rows if bool(chosen.all()) else rows[:, chosen]
