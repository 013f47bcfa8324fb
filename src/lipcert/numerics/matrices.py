"""Matrices of known ranges: their products, and norms of matrices without negative entries."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.numerics.midrad import TINY, UNIT, UP, Range

#: Rows that :func:`weighted_gram` takes together.
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


def weighted_gram(matrix: Tensor, weights: Tensor) -> Tensor:
    """X diag(w) Xᵀ, exactly symmetric, (n, n), for X (n, m) and w (m,).

    Rows are multiplied piece by piece over the columns that both pieces have: what is left out are products with 0, so
    that every entry is a rounded sum of at most m products of two roundings each, as of the whole; an entry on a
    diagonal block is the rounded middle of two such sums.
    """
    if len(matrix) <= _SMALL:
        product = (matrix * weights) @ matrix.mT
        return 0.5 * (product + product.mT)
    pieces = matrix.split(_PIECE)
    used = [(piece != 0).any(dim=0) for piece in pieces]
    result = matrix.new_zeros(len(matrix), len(matrix))
    for i, piece in enumerate(pieces):
        here = slice(i * _PIECE, i * _PIECE + len(piece))
        own = used[i].nonzero()[:, 0]
        left = piece[:, own] * weights[own]
        for j in range(i + 1):
            both = used[j][own]
            if not bool(both.any()):
                continue
            whole = bool(both.all())
            part = left if whole else left[:, both]
            block = part @ pieces[j][:, own if whole else own[both]].mT
            there = slice(j * _PIECE, j * _PIECE + len(pieces[j]))
            if i == j:
                block = 0.5 * (block + block.mT)
            result[here, there] = block
            result[there, here] = block.mT
    return result
