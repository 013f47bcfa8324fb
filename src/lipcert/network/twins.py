"""What two activations of one value have in common, as data for their increments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mirrored:
    """z₂ = sign·z₁ + slope·v₁ + const for the value v₁ that z₁ is an activation of, entry by entry.

    Attributes:
        first, second: positions of z₁ and z₂, in order.
        sign: ±1.
        slope: a double, within half a unit in its last place of the number meant.
    """

    first: int
    second: int
    sign: float
    slope: float


@dataclass(frozen=True)
class Circle:
    """(z₁, z₂) is (sin v, cos v) or (cos v, sin v): |δz₁|² + |δz₂|² ≤ |δv|², entry by entry.

    Why: a chord of the circle is no longer than its arc.
    """

    first: int
    second: int


Twins = Mirrored | Circle
