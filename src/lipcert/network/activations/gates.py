"""x times a gate: SiLU, GELU in both forms, Mish, and x·clamp(kx + o)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.network.activations import profiles
from lipcert.network.activations.rationals import ends, quotient
from lipcert.network.activations.smooth import Smooth
from lipcert.network.nonlinearity import Kink, Nonlinearity, Piece, Slope
from lipcert.numerics.midrad import Near, known

#: √2 and √(2/π), enclosed.
_ROOT_TWO, _GELU_RATE = Near(math.sqrt(2.0), 2.0**-52), Near(0.7978845608028654, 2.0**-52)


class SiLU(Smooth):
    """x·σ(x)."""

    piece = Piece(profile=profiles.SILU)

    def value(self, x: Tensor) -> Tensor:
        """x·σ(x)."""
        return F.silu(x)


class Mish(Smooth):
    """x·tanh(softplus(x))."""

    piece = Piece(profile=profiles.MISH)

    def value(self, x: Tensor) -> Tensor:
        """x·tanh(softplus(x))."""
        return F.mish(x)


class GELU(Smooth):
    """½ x (1 + erf(x/√2))."""

    piece = Piece(profile=profiles.GELU)

    def value(self, x: Tensor) -> Tensor:
        """x·Φ(x)."""
        return F.gelu(x)


class GELUTanh(Smooth):
    """½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))."""

    piece = Piece(
        profile=profiles.gelu_tanh(known(Near(profiles.CUBIC, 2.0**-55)), profiles.GELU_TANH_SLOPES), rate=_GELU_RATE
    )

    def value(self, x: Tensor) -> Tensor:
        """The tanh form."""
        return F.gelu(x, approximate="tanh")


@dataclass(frozen=True, eq=False, repr=False)
class Swish(Smooth):
    """x·σ(βx) with β a number, or a number per entry known to within a relative ``error``."""

    rate: Slope
    error: float = 0.0

    def value(self, x: Tensor) -> Tensor:
        """x·σ(βx)."""
        return x * torch.sigmoid(self.rate * x)

    @property
    def piece(self) -> Piece:
        """SiLU'(βx)."""
        rate = known(self.rate)
        unsure = torch.where(rate.mid == 0, 0.0, rate.mid.abs() * self.error)
        return Piece(profile=profiles.SILU, rate=rate.widened(unsure))


@dataclass(frozen=True, eq=False, repr=False)
class ScaledMish(Smooth):
    """x·tanh(softplus(kx)), k ≠ 0."""

    rate: float

    def value(self, x: Tensor) -> Tensor:
        """x·tanh(softplus(kx))."""
        return x * torch.tanh(F.softplus(self.rate * x))

    @property
    def piece(self) -> Piece:
        """Mish'(kx)."""
        return Piece(profile=profiles.MISH, rate=self.rate)


@dataclass(frozen=True, eq=False, repr=False)
class ErfGELU(Smooth):
    """½ x (1 + erf(kx)), k ≠ 0."""

    rate: float

    def value(self, x: Tensor) -> Tensor:
        """½ x (1 + erf(kx))."""
        return 0.5 * x * (1.0 + torch.erf(self.rate * x))

    @property
    def piece(self) -> Piece:
        """GELU'(k√2 x)."""
        return Piece(profile=profiles.GELU, rate=known(self.rate) * known(_ROOT_TWO))


@dataclass(frozen=True, eq=False, repr=False)
class TanhGELU(Smooth):
    """½ x (1 + tanh(kx + cx³)), c/k³ within 1e-3 of the usual 0.044715·π/2."""

    linear: float
    cubic: float

    def value(self, x: Tensor) -> Tensor:
        """½ x (1 + tanh(kx + cx³))."""
        return 0.5 * x * (1.0 + torch.tanh(x * (self.linear + self.cubic * (x * x))))

    @property
    def piece(self) -> Piece:
        """S(kx, c/k³)."""
        rate = known(self.linear)
        ratio = known(self.cubic) * (rate * rate * rate).reciprocal()
        assert isinstance(self.lower, float)
        assert isinstance(self.upper, float)
        return Piece(profile=profiles.gelu_tanh(ratio, (self.lower, self.upper)), rate=rate)


@dataclass(frozen=True, eq=False, repr=False)
class TimesClamp(Nonlinearity):
    """x·clamp(kx + o, low, high), k ≠ 0 and low < high."""

    rate: float
    offset: float
    low: float
    high: float

    def value(self, x: Tensor) -> Tensor:
        """x·clamp(kx + o, low, high)."""
        return x * torch.clamp(self.rate * x + self.offset, self.low, self.high)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """Where the gate reaches its ends."""
        k, o, low, high = self.rate, self.offset, self.low, self.high
        direction = 1.0 if k > 0 else -1.0
        return Kink((low - o) / k, direction * (low - o)), Kink((high - o) / k, direction * (o - high))

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Constants outside, 2kx + o between."""
        rate, (o, o_high) = ends(self.rate), ends(self.offset)
        corners = [(quotient((Fraction(e) - o_high, Fraction(e) - o), rate), e) for e in (self.low, self.high)]
        (start, first), (stop, last) = corners if self.rate > 0 else corners[::-1]
        middle = Piece(
            start,
            stop,
            profile=profiles.LINE,
            rate=known(self.rate) * known(2.0),
            shift=quotient((-o_high / 2, -o / 2), rate),
        )
        return Piece(right=start, factor=first), middle, Piece(left=stop, factor=last)


@dataclass(frozen=True, eq=False, repr=False)
class Hardswish(Nonlinearity):
    """x·relu6(x + 3)/6."""

    jumps: ClassVar[tuple[Kink, ...]] = (Kink(-3.0, -0.5), Kink(3.0, -0.5))

    def value(self, x: Tensor) -> Tensor:
        """x·relu6(x + 3)/6."""
        return F.hardswish(x)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """±3."""
        return self.jumps

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """0, (x + 3/2)/3, 1."""
        third = known(3.0).reciprocal()
        return (
            Piece(right=-3.0, factor=0.0),
            Piece(-3.0, 3.0, profile=profiles.LINE, rate=third, shift=-1.5),
            Piece(left=3.0),
        )
