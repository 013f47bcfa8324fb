"""Sums and lengths of rows, rounded up, and rows back in the tensor that they were taken from."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.numerics.midrad import TINY, UNIT


def sum_up(x: Tensor) -> Tensor:
    """Σ x of numbers ≥ 0 along rows, rounded up: (groups, n) → (groups, 1)."""
    return x.sum(dim=-1, keepdim=True) * (1.0 + (x.shape[-1] + 4.0) * 2.0 * UNIT)


def length_up(x: Tensor) -> Tensor:
    """‖x‖₂ of rows, rounded up: (groups, n) → (groups, 1)."""
    n = x.shape[-1]
    return torch.sqrt((x * x).sum(dim=-1, keepdim=True) + n * TINY) * (1.0 + (n + 8.0) * UNIT)


def most(x: Tensor) -> Tensor:
    """The greatest entry of rows: (groups, n) → (groups, 1)."""
    return x.amax(dim=-1, keepdim=True)


def placed(rows: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows, (groups, n) or (groups, 1), at their flat ``places`` (groups, n) of a tensor of ``shape``."""
    flat = torch.empty(places.numel(), dtype=rows.dtype)
    flat[places.reshape(-1)] = rows.expand(places.shape).reshape(-1)
    return flat.reshape(shape)
