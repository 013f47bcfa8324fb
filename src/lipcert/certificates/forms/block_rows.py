"""Matrices in column blocks, each dense, diagonal or absent: what a segment's relation looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

#: A block: (rows, columns) dense, or a vector that stands for a square diagonal matrix.
Block = Tensor


def times(a: Block, b: Block) -> Block:
    """The product of two blocks; diagonal times diagonal stays diagonal."""
    if a.dim() == 1:
        return a * b if b.dim() == 1 else a[:, None] * b
    return a * b if b.dim() == 1 else a @ b


def transposed(a: Block) -> Block:
    """The transpose of a block."""
    return a if a.dim() == 1 else a.T


def dense(a: Block) -> Tensor:
    """The block as a matrix."""
    return torch.diag(a) if a.dim() == 1 else a


def plus(a: Block | None, b: Block) -> Block:
    """The sum of two blocks."""
    if a is None:
        return b
    if a.dim() == b.dim():
        return a + b
    matrix, vector = (a, b) if a.dim() == 2 else (b, a)
    result = matrix.clone()
    result.diagonal().add_(vector)
    return result


@dataclass(frozen=True, eq=False)
class Tracked:
    """A computed block row with a bound of its error.

    The exact matrix differs from ``parts`` by at most γ_rounding times ``absolute`` plus ``floor``, entry by entry:
    ``absolute`` dominates the absolute value of every intermediate sum but for its own rounding and ``floor``, which is
    what underflow may have taken. Keys are the numbers of column blocks; absent means zero, exactly.
    """

    parts: Mapping[int, Block]
    absolute: Mapping[int, Block]
    rows: int
    rounding: float
    floor: float


def congruence(left: Mapping[int, Block], form: Block, places: list[slice], side: int) -> Tensor:
    """VᵀFV for a block row V and a symmetric F, as a dense (side, side) matrix."""
    result = torch.zeros(side, side, dtype=torch.float64)
    numbers = sorted(left)
    for j in numbers:
        image = times(form, left[j])
        for i in numbers:
            if i > j:
                break
            block = times(transposed(left[i]), image)
            if i == j:
                block = dense(block)
                result[places[i], places[i]] = (block + block.T) / 2
            else:
                result[places[i], places[j]] = dense(block)
                result[places[j], places[i]] = dense(block).T
    return result
