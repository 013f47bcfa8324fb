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
from lipcert.network.activations.rationals import ends, one_sided, quotient
from lipcert.network.activations.smooth import Smooth
from lipcert.network.nonlinearity import Kink, Nonlinearity, Piece, Slope
from lipcert.numerics.midrad import Near, Range, known

#: √2 and √(2/π), enclosed.
_ROOT_TWO, _GELU_RATE = Near(math.sqrt(2.0), 2.0**-52), Near(0.7978845608028654, 2.0**-52)


def _gate_image(least: float, rate: Range) -> tuple[Slope, Slope]:
    """Of G(kx)/k, where G is at least ``least``."""
    return one_sided(known(least) * rate.reciprocal(), rate.low > 0, rate.high < 0)


class SiLU(Smooth):
    """x·σ(x)."""

    image = (profiles.SILU_LEAST, math.inf)
    piece = Piece(profile=profiles.SILU)

    def value(self, x: Tensor) -> Tensor:
        """x·σ(x)."""
        return F.silu(x)


class Mish(Smooth):
    """x·tanh(softplus(x))."""

    image = (profiles.MISH_LEAST, math.inf)
    piece = Piece(profile=profiles.MISH)

    def value(self, x: Tensor) -> Tensor:
        """x·tanh(softplus(x))."""
        return F.mish(x)


class GELU(Smooth):
    """½ x (1 + erf(x/√2))."""

    image = (profiles.GELU_LEAST, math.inf)
    piece = Piece(profile=profiles.GELU)

    def value(self, x: Tensor) -> Tensor:
        """x·Φ(x)."""
        return F.gelu(x)


class GELUTanh(Smooth):
    """½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))."""

    image = (profiles.GELU_TANH_LEAST, math.inf)
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
        return x * torch.sigmoid(x * (self.rate if isinstance(x, Tensor) else self._rates))

    @property
    def _rates(self) -> Range:
        rate = known(self.rate)
        return rate.widened(torch.where(rate.mid == 0, 0.0, rate.mid.abs() * self.error))

    @property
    def piece(self) -> Piece:
        """SiLU'(βx)."""
        return Piece(profile=profiles.SILU, rate=self._rates)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """SiLU(βx)/β."""
        return _gate_image(profiles.SILU_LEAST, self._rates)


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

    @property
    def image(self) -> tuple[Slope, Slope]:
        """Mish(kx)/k."""
        return _gate_image(profiles.MISH_LEAST, known(self.rate))


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

    @property
    def image(self) -> tuple[Slope, Slope]:
        """GELU(k√2 x)/(k√2)."""
        return _gate_image(profiles.GELU_LEAST, known(self.rate) * known(_ROOT_TWO))


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
        rate, ratio = known(self.linear), self._ratio
        assert isinstance(self.lower, float)
        assert isinstance(self.upper, float)
        return Piece(profile=profiles.gelu_tanh(ratio, (self.lower, self.upper)), rate=rate)

    @property
    def _ratio(self) -> Range:
        rate = known(self.linear)
        return known(self.cubic) * (rate * rate * rate).reciprocal()

    @property
    def image(self) -> tuple[Slope, Slope]:
        """G(kx, c/k³)/k, G(t, r) = ½ t (1 + tanh(t + rt³)): |∂G/∂r| = ½ t⁴ sech²(t + rt³) ≤ 2t⁴ e^(−2|t|) < 0.6."""
        off = (self._ratio - Range.literal(profiles.CUBIC)).mag * 0.6
        return _gate_image(math.nextafter(profiles.CUBIC_LEAST - float(off), -math.inf), known(self.linear))


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

    @property
    def image(self) -> tuple[Slope, Slope]:
        """At gate e the value is e(e − o)/k: least over the gates times 1/k, if 0 is one of them.

        The least over e is concave in o, so over what o may be it is least at an end.
        """
        if not self.low <= 0.0 <= self.high:
            return -math.inf, math.inf
        low, high = Fraction(self.low), Fraction(self.high)
        gates = [(o, min(max(o / 2, low), high)) for o in ends(self.offset)]
        least = min(e * (e - o) for o, e in gates)
        rate = ends(self.rate)
        extreme = quotient((least, least), rate)
        return one_sided(extreme, torch.tensor(rate[0] > 0), torch.tensor(rate[1] < 0))


@dataclass(frozen=True, eq=False, repr=False)
class Hardswish(Nonlinearity):
    """x·relu6(x + 3)/6."""

    image = (-0.375, math.inf)
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
