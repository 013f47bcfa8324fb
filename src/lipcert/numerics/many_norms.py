"""Norms of many small matrices at once, a little above what they are."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lipcert.numerics.rounding import UNDERFLOW, UNIT, gamma

#: How often Gram matrices are squared: a bound of n^(1/2^(k + 2)) times the norm.
SQUARINGS = 5


def two_norms(blocks: Tensor) -> Tensor:
    """Upper bounds of the 2-norms of matrices (k, n, m) → (k,), where subnormal numbers are not flushed.

    Why these are bounds: ‖A‖² = ‖AAᵀ‖, and ‖G‖² = ‖G²‖ ≤ ‖fl(G²)‖ + γ‖G‖_F² for symmetric G, as |fl(G²) − G²| ≤
    γ|G||G| entry by entry, of a norm of at most γ‖|G|‖_F². A Frobenius norm ends it: after s squarings it is at most
    n^½ times the greatest eigenvalue, of which the 2^s-th root is taken.
    """
    if not blocks.numel():
        return torch.zeros(len(blocks), dtype=torch.float64)
    short = blocks if blocks.shape[1] <= blocks.shape[2] else blocks.transpose(1, 2)
    exponent = math.frexp(max(float(short.max()), -float(short.min())))[1]
    with np.errstate(under="ignore"):
        x = torch.from_numpy(np.ldexp(short.numpy(), -exponent))
    n, m = x.shape[1:]
    sizes = x.square().sum((1, 2)) * (1.0 + (n * m + 8.0) * 4.0 * UNIT) + 4.0 * n * m * UNDERFLOW
    square = _by_squaring(torch.matmul(x, x.transpose(1, 2)), SQUARINGS)
    square = square + (gamma(m + 2.0) * sizes + 4.0 * n * m * UNDERFLOW) * (1.0 + 8.0 * UNIT)
    best = torch.minimum(square * (1.0 + 8.0 * UNIT), sizes)
    return torch.sqrt(best) * (1.0 + 4.0 * UNIT) * 2.0**exponent + UNDERFLOW


def _by_squaring(gram: Tensor, times: int) -> Tensor:
    """Upper bounds of the norms of matrices (k, n, n), symmetric but for rounding, which is made good."""
    n = gram.shape[-1]
    gram = 0.5 * (gram + gram.transpose(1, 2))
    scale = gram.square().sum((1, 2)).sqrt() * (1.0 + (n * n + 8.0) * 4.0 * UNIT) + n * 1e-150
    if not times:
        return scale
    unit = gram / scale[:, None, None]
    lost = gamma(n + 8.0) * 1.01 + 1e-290  # the division, too: ‖unit‖_F ≤ 1
    above = _by_squaring(torch.matmul(unit, unit), times - 1) + lost
    return torch.minimum(scale, scale * above.sqrt() * (1.0 + 16.0 * UNIT) + 1e-290)
