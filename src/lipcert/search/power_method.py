"""The plain power method: an estimate of a norm from below, for comparison and for first guesses."""

from __future__ import annotations

import math

import torch

from lipcert.numerics.lanczos import Gram, apply_gram, random_unit


def power_method(
    gram: Gram,
    n: int,
    steps: int = 100,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> float:
    """Plain power method: an **estimate from below** of sigma_max(W), never a bound.

    ``sqrt(x^T W^T W x)`` at the last unit iterate. Source: Scaman & Virmaux 2018, Algorithm 2.

    Args:
        gram: (n,) -> (n,), ``x -> W^T W x``.
        n: order.
        steps: number of iterations.
        generator: source of the start, on ``device``; ``None`` draws it from the operating system's entropy.
        dtype: of the basis and of the map's argument.
        device: of the same.
    """
    x = random_unit(n, generator, dtype, device)
    value = 0.0
    for _ in range(steps):
        y = apply_gram(gram, x)
        value = float(x @ y)
        length = float(y.norm())
        if length == 0.0:
            return 0.0
        x = y / length
    return math.sqrt(max(0.0, value))
