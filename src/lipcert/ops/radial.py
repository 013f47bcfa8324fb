"""Norms over axes as data, and gains of x ↦ x / r(‖x‖), the shape of every normalisation layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.linear import Shape, size
from lipcert.network.nonlinearity import GainFunction
from lipcert.ops.rational import OutOfRange


@dataclass(frozen=True, eq=False, repr=False)
class VectorNorm(GainFunction):
    """The p-norm over ``axes``, p = ``order``."""

    image = (0.0, math.inf)
    order: float
    axes: tuple[int, ...]
    keepdim: bool

    @property
    def length(self) -> tuple[int, ...] | None:
        """The axes, for p = 2."""
        return self.axes if self.order == 2.0 else None

    def runs(self, shape: Shape) -> int:
        """One for each norm, where the axes are the last ones: its entries then lie side by side."""
        last = len(shape) + (0 if self.keepdim else len(self.axes))
        return size(shape) if self.axes == tuple(range(last - len(self.axes), last)) else 1

    def value(self, x: Tensor) -> Tensor:
        """The norm."""
        return torch.linalg.vector_norm(x, self.order, self.axes, self.keepdim)


def radial_gains(n: int, eps: float, kind: str, numerator: float = 1.0) -> dict[float, float]:
    """Constants of x ↦ x / r(‖x‖₂) over n entries, rounded up: 1/ε in l2; (1/ε) max g(t) over t in l1 and l∞.

    Why: with u = x/‖x‖ the Jacobian is (1/r)(I − t uuᵀ), symmetric, 0 ≤ t ≤ 1, and
    ‖I − t uuᵀ‖₂ ≤ 1,  ‖I − t uuᵀ‖∞ ≤ a(1 − t) + t(1 + √n)/2 with a = 1,
    because 1 − s² + s√(n − 1)√(1 − s²) ≤ (1 + √n)/2 for s = |uᵢ|. The kinds differ in how r grows with t:

    * ``clamp``: r = max(k‖x‖, ε); r ≥ ε and t = 1 outside the ball (t = 0 inside): g = (1 + √n)/2.
    * ``sum``: r = k‖x‖ + ε; ε/r = 1 − t: g(t) = (1 − t)(a(1 − t) + bt).
    * ``root``: r = √(w‖x‖² + ε²); ε/r = √(1 − t): g(t) = √(1 − t)(a(1 − t) + bt).

    ``numerator`` is a: with x centred first (layer norm), I is the centring matrix and a = 2(n − 1)/n.
    ``eps`` may err by a relative 5e-13; k, w > 0 do not matter.

    Raises:
        OutOfRange: 1/ε is beyond the range of doubles.
    """
    a, b = numerator, (1.0 + math.sqrt(n)) / 2.0
    if kind == "clamp":
        worst = max(1.0, b)
    else:
        slope, power = b - a, 0.5 if kind == "root" else 1.0
        best = (slope - power * a) / ((1.0 + power) * slope) if slope > 0 else 0.0
        t = min(max(best, 0.0), 1.0)
        worst = (1.0 - t) ** power * (a + slope * t)
    if not eps > 0 or not math.isfinite((1.0 + 1e-12) * max(1.0, worst) / eps):
        raise OutOfRange(f"its constant 1/{eps:g} is above the range of doubles; choose a larger eps.")
    gain, wide = (1.0 + 1e-12) / eps, (1.0 + 1e-12) * worst / eps
    return {1.0: wide, 2.0: gain, math.inf: wide}
