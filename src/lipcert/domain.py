"""Domains: the whole space, balls and boxes."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import InputError

NORMS = (1.0, 2.0, math.inf)


def require_real(what: str, value: Any, shape: str = "one example's shape") -> None:
    """Raise InputError unless ``value`` is a dense real tensor that holds numbers."""
    if not isinstance(value, Tensor) or value.is_complex():
        raise InputError(f"{what} must be a real tensor of {shape}, not {type(value).__name__}.")
    if value.is_nested or value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        kind = "on the meta device" if value.device.type == "meta" else "sparse, nested or quantised"
        raise InputError(f"{what} is {kind}; it must be a plain dense tensor of {shape}.")
    if value.is_floating_point() and value.dtype.itemsize == 1:
        raise InputError(f"{what} has dtype {value.dtype}; convert it with .float() first.")


@dataclass(frozen=True, eq=False)
class Ball:
    """The closed l_p ball of ``radius`` around ``center`` (one example, without batch dimension)."""

    center: Tensor
    radius: float
    p: float = math.inf

    def __post_init__(self) -> None:
        require_real("the centre of a ball", self.center)
        if not isinstance(self.radius, (int, float)) or not 0 <= self.radius <= sys.float_info.max:
            raise InputError(f"a ball needs a finite radius ≥ 0, not {self.radius}.")
        if self.p not in NORMS:
            raise InputError(f"a ball needs p in {{1, 2, inf}}, not {self.p}.")
        if not bool(torch.isfinite(self.center).all()):
            raise InputError("the centre of a ball holds NaN or infinity.")

    def describe(self) -> str:
        """Short text for reports."""
        return f"l{self.p:g} ball of radius {self.radius:g}"

    def project(self, x: Tensor) -> Tensor:
        """Map a batch (B, *shape) into the ball (the nearest point for p = 2 and ∞; a scaling for p = 1)."""
        center = self.center.to(x).reshape(1, *x.shape[1:])
        offset = x - center
        limits = torch.finfo(x.dtype)
        radius = min(self.radius, limits.max)
        if self.p == math.inf:
            return center + offset.clamp(-radius, radius)
        flat = offset.reshape(len(x), -1)
        length = flat.norm(p=self.p, dim=1).clamp(min=limits.tiny)
        shrink = (radius / length).clamp(max=1.0) * (1.0 - 1e-12)
        return center + offset * shrink.reshape(-1, *([1] * (x.dim() - 1)))

    def contains(self, x: Tensor) -> bool:
        """Whether one point lies in the ball, decided in exact arithmetic where floats leave a doubt."""
        x, center = (t.detach().reshape(-1).to("cpu", torch.float64) for t in (x, self.center))
        distance = float((x - center).norm(p=self.p))
        slack = 1e-15 * (4.0 + math.sqrt(x.numel()) + x.numel())  # of a sum in any order, with room
        if math.isfinite(distance) and 1e-100 < distance < 1e100 and slack < 0.5:
            if distance * (1.0 + slack) <= self.radius:
                return True
            if distance * (1.0 - slack) > self.radius:
                return False
        if not bool(torch.isfinite(x).all()):
            return False
        gaps = [abs(Fraction(a) - Fraction(b)) for a, b in zip(x.tolist(), center.tolist(), strict=True) if a != b]
        if self.p == 2:
            return sum(g * g for g in gaps) <= Fraction(self.radius) ** 2
        return (sum(gaps) if self.p == 1 else max(gaps, default=Fraction(0))) <= Fraction(self.radius)

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return self.center.numel()


@dataclass(frozen=True, eq=False)
class Box:
    """All x with ``lower`` ≤ x ≤ ``upper`` entry by entry (one example, without batch dimension)."""

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        require_real("the lower end of a box", self.lower)
        require_real("the upper end of a box", self.upper)
        if self.lower.shape != self.upper.shape or not bool((self.lower <= self.upper).all()):
            raise InputError("a box needs lower and upper of one shape with lower ≤ upper everywhere, and no NaN.")

    def describe(self) -> str:
        """Short text for reports."""
        return "box"

    def project(self, x: Tensor) -> Tensor:
        """Clamp a batch (B, *shape) into the box."""
        shape = (1, *x.shape[1:])
        return torch.minimum(torch.maximum(x, self.lower.to(x).reshape(shape)), self.upper.to(x).reshape(shape))

    def contains(self, x: Tensor) -> bool:
        """Whether one point lies in the box."""
        flat, lower, upper = (t.detach().reshape(-1).to("cpu", torch.float64) for t in (x, self.lower, self.upper))
        return bool(((flat >= lower) & (flat <= upper)).all())

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return self.lower.numel()


Domain = Ball | Box | None
