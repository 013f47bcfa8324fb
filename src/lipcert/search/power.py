"""The power method: norms approached from below, for judging, for estimates and for directions. No bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.certificates.norms.scaling import scaled
from lipcert.network.linear import LinearMap

#: From directions (B, n) to their gains (B,) and to where the gradient of the gain points, (B, n).
Pull = Callable[[Tensor], tuple[Tensor, Tensor]]


def power_method(
    gram: Callable[[Tensor], Tensor], start: Tensor, steps: int, tolerance: float = 0.0
) -> tuple[float, Tensor]:
    """σ_max(W) from below and a unit vector that attains it, from x ↦ WᵀW x as code.

    √(xᵀWᵀW x) at the last unit iterate x but one. Source: Scaman & Virmaux 2018, Algorithm 2.

    Args:
        gram: (n,) → (n,), scaled so that it neither over- nor underflows.
        start: (n,) first vector.
        steps: most iterations.
        tolerance: relative change of the value at which they end; 0 makes them all.

    Returns:
        The value, 0.0 where an iterate vanishes, and the last iterate.

    Raises:
        ValueError: the map returns NaN or infinity, or a wrong shape.
    """
    length = float(start.norm())
    if length == 0.0:
        return 0.0, start
    x, value = start / length, 0.0
    for _ in range(steps):
        y = gram(x)
        if y.shape != x.shape:
            raise ValueError(f"the Gram map sends shape {tuple(x.shape)} to {tuple(y.shape)}")
        length = float(y.norm())
        if not math.isfinite(length):
            raise ValueError("the Gram map returned NaN or infinity; scale the map to norm about 1")
        if length == 0.0:
            return 0.0, x
        before, value = value, math.sqrt(max(0.0, float(x @ y)))
        x = y / length
        if tolerance and abs(value - before) <= tolerance * value:
            break
    return value, x


def dual_power_method(
    pull: Pull, maximiser: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """‖J‖_{p→q} of a batch of maps from below, and the directions that attain it: the best of all iterates.

    v ← the v of ‖v‖_p = 1 with the largest ⟨g, v⟩, g the gradient of ‖Jv‖_q; in l2 → l2 the usual power method.
    Source: Boyd 1974, *The power method for l^p norms*.

    Args:
        pull: v (B, n) → the gains ‖Jv‖_q/‖v‖_p (B,) and g (B, n).
        maximiser: g (B, n) → the next v.
        start: (B, n) first directions.
        steps: iterations.
    """
    values, best = start.new_zeros(len(start)), start
    v = start
    for step in range(steps + 1):
        gains, pulled = pull(v)
        better = gains > values
        values = torch.where(better, gains, values)
        best = torch.where(better[:, None], v, best)
        if step < steps:
            v = maximiser(pulled)
    return values, best


def norm_from_below(
    linear: LinearMap, steps: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> float:
    """‖W‖₂ after some steps in float64 from a random start: never above it, no bound."""
    here, size = scaled(linear.to(torch.float64, "cpu")), linear.in_size
    if not size:
        return 0.0
    unit = here.map.to(torch.float64, device)
    start = torch.randn(size, generator=generator, dtype=torch.float64).to(device)
    value, _ = power_method(lambda x: unit.gram(x.reshape(1, *unit.in_shape)).reshape(-1), start, steps)
    return math.ldexp(value, here.exponent)
