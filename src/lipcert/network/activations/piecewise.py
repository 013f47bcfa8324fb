"""Piecewise linear activations; the clamps with number ends are in ``clamp.py``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.network.activations.rationals import ends, ends_of, one_sided, quotient
from lipcert.network.nonlinearity import Kink, Nonlinearity, Piece, Slope
from lipcert.numerics.midrad import Range, choose, known


def _within(value: Tensor, spread: Tensor | None) -> Range:
    """The numbers at most ``spread`` away from ``value``; None for none."""
    return known(value) if spread is None else known(value).widened(spread.to(torch.float64))


def _two(at: Slope | Range, left: Slope | Range, right: Slope | Range) -> tuple[Piece, ...]:
    return Piece(right=at, factor=left), Piece(left=at, factor=right)


@dataclass(frozen=True, eq=False, repr=False)
class Abs(Nonlinearity):
    """|x|."""

    image = (0.0, math.inf)

    def value(self, x: Tensor) -> Tensor:
        """|x|."""
        return torch.abs(x)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """0."""
        return (Kink(0.0, 2.0),)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """∓1."""
        return _two(0.0, -1.0, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class HardSigmoid(Nonlinearity):
    """min(max(x/6 + 1/2, 0), 1)."""

    image = (0.0, 1.0)

    def value(self, x: Tensor) -> Tensor:
        """As relu6: torch cannot differentiate its own hardsigmoid twice, which the attack needs."""
        return F.relu6(x + 3.0) / 6.0

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """±3."""
        return Kink(-3.0, 1 / 6), Kink(3.0, -1 / 6)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """0, 1/6, 0."""
        return Piece(right=-3.0, factor=0.0), Piece(-3.0, 3.0, known(6.0).reciprocal()), Piece(left=3.0, factor=0.0)


@dataclass(frozen=True, eq=False, repr=False)
class LeakyReLU(Nonlinearity):
    """Slope 1 right of 0, ``slope`` left of it."""

    slope: float

    def value(self, x: Tensor) -> Tensor:
        """X or slope·x."""
        return F.leaky_relu(x, self.slope)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """0, unless both slopes are 1."""
        return () if self.slope == 1.0 else (Kink(0.0, 1.0 - self.slope),)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The two slopes."""
        return _two(0.0, self.slope, 1.0)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """0 is the least value unless the line on the left rises."""
        return torch.where(known(self.slope).high <= 0, 0.0, -math.inf), math.inf


@dataclass(frozen=True, eq=False, repr=False)
class PReLU(Nonlinearity):
    """LeakyReLU with slopes per neuron, each known to within ``spread`` (None: exactly)."""

    slopes: Tensor
    spread: Tensor | None

    def value(self, x: Tensor) -> Tensor:
        """X or slopes·x; enclosures are multiplied by all that the slopes may be."""
        slopes = self.slopes if isinstance(x, Tensor) else _within(self.slopes, self.spread)
        return torch.where(x > 0, x, x * slopes)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """0."""
        return (Kink(0.0, 1.0 - self.slopes),)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The two slopes."""
        return _two(0.0, _within(self.slopes, self.spread), 1.0)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """0 is the least value unless the line on the left rises."""
        return torch.where(_within(self.slopes, self.spread).high <= 0, 0.0, -math.inf), math.inf


@dataclass(frozen=True, eq=False, repr=False)
class TwoSlopes(Nonlinearity):
    """a·x + b for x < at, c·x + d for x > at; continuous for the numbers that the settings stand for."""

    at: float
    left: tuple[float, float]
    right: tuple[float, float]

    def value(self, x: Tensor) -> Tensor:
        """The one line or the other."""
        (a, b), (c, d) = self.left, self.right
        return torch.where(x > self.at, c * x + d, a * x + b)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """``at``, unless the slopes are the same."""
        a, c = self.left[0], self.right[0]
        return () if a == c else (Kink(self.at, c - a),)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The two slopes."""
        return _two(self.at, self.left[0], self.right[0])

    @property
    def image(self) -> tuple[Slope, Slope]:
        """The value where the lines meet is the least or greatest unless they go on there."""
        (a, b), c = (known(n) for n in self.left), known(self.right[0])
        meet = a * known(self.at) + b
        return one_sided(meet, (a.high <= 0) & (c.low >= 0), (a.low >= 0) & (c.high <= 0))


@dataclass(frozen=True, eq=False, repr=False)
class OddTwoSlopes(Nonlinearity):
    """inner·x for |x| ≤ at, outer·x + jump·sign(x) beyond; continuous for the numbers that the settings stand for."""

    at: float
    inner: float
    outer: float
    jump: float

    def value(self, x: Tensor) -> Tensor:
        """The inner or the outer line."""
        return torch.where(x.abs() > self.at, self.outer * x + self.jump * torch.sign(x), self.inner * x)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """±at."""
        return Kink(-self.at, self.inner - self.outer), Kink(self.at, self.outer - self.inner)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Outer, inner, outer slope."""
        outer, at = self.outer, self.at
        return Piece(right=-at, factor=outer), Piece(-at, at, self.inner), Piece(left=at, factor=outer)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """The inner line's, if the outer ones are level."""
        most = (known(self.inner) * known(self.at)).mag.nan_to_num(math.inf)
        most = torch.where(known(self.outer).is_zero, most, math.inf)
        return -most, most


@dataclass(frozen=True, eq=False, repr=False)
class Softshrink(Nonlinearity):
    """x − λ, 0, x + λ with λ = ``threshold`` ≥ 0."""

    threshold: float

    def value(self, x: Tensor) -> Tensor:
        """The shrunk value."""
        return F.softshrink(x, self.threshold)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """±λ."""
        t = self.threshold
        return (Kink(-t, -1.0), Kink(t, 1.0)) if t else ()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """1, 0, 1."""
        t = self.threshold
        return Piece(right=-t), Piece(-t, t, 0.0), Piece(left=t)


@dataclass(frozen=True, eq=False, repr=False)
class ClampBetween(Nonlinearity):
    """min(max(x, low), high) with tensor ends, each known to within its spread (None: exactly); infinite is open."""

    low: Tensor
    high: Tensor
    low_spread: Tensor | None = None
    high_spread: Tensor | None = None

    def value(self, x: Tensor) -> Tensor:
        """The clamp."""
        if isinstance(x, Tensor):
            return torch.minimum(torch.maximum(x, self.low), self.high)
        for end, spread, bounded in ((self.low, self.low_spread, "maximum"), (self.high, self.high_spread, "minimum")):
            finite = torch.isfinite(end)
            inside = getattr(x, bounded)(_within(torch.where(finite, end, 0.0), spread))
            x = torch.where(finite.expand(inside.shape), inside, x)
        return x

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """The finite ends of clamps that are no constants."""
        moving = self.low < self.high

        def kink(position: Tensor, jump: float) -> Kink:
            finite = torch.isfinite(position)
            zero = torch.zeros((), dtype=position.dtype)
            return Kink(torch.where(finite, position, zero), torch.where(finite & moving, jump, zero))

        return kink(self.low, 1.0), kink(self.high, -1.0)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """0, 1, 0."""
        low, high = _within(self.low, self.low_spread), _within(self.high, self.high_spread)
        return Piece(right=low, factor=0.0), Piece(low, high), Piece(left=high, factor=0.0)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """The ends; the upper one where they cross."""
        low, high = _within(self.low, self.low_spread), _within(self.high, self.high_spread)
        (least, _), (crossed, greatest) = ends_of(low, low), ends_of(high, high)
        return torch.minimum(torch.as_tensor(least), torch.as_tensor(crossed)), greatest


@dataclass(frozen=True, eq=False, repr=False)
class ExtremeLine(Nonlinearity):
    """The larger or smaller of first·x + first_offset and second·x + second_offset.

    Offsets are numbers, or tensors known to within their spread (infinite where nothing is known).
    """

    largest: bool
    first: float
    second: float
    first_offset: Slope
    second_offset: Slope
    spread: Tensor | None = None

    def value(self, x: Tensor) -> Tensor:
        """The larger or smaller line."""
        choose = torch.maximum if self.largest else torch.minimum
        first, second = self.first_offset, self.second_offset
        if not isinstance(x, Tensor) and self.spread is not None:
            second = known(second).widened(self.spread)
        return choose(self.first * x + first, self.second * x + second)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """Where the lines meet."""
        p, r = self.first, self.second
        jump = abs(p - r) if self.largest else -abs(p - r)
        return (Kink((self.second_offset - self.first_offset) / (p - r), jump),) if p != r else ()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The two slopes."""
        p, r = known(self.first), known(self.second)
        q, t = self.first_offset, self.second_offset
        if isinstance(q, float) and isinstance(t, float):
            (p0, p1), (r0, r1), (q0, q1), (t0, t1) = (ends(n) for n in (self.first, self.second, q, t))
            at = quotient((t0 - q1, t1 - q0), (p0 - r1, p1 - r0))
        else:
            apart = known(t) - known(q)
            apart = apart if self.spread is None else apart.widened(self.spread)
            at = apart * (p - r).reciprocal()
            at = Range(at.mid.nan_to_num(0.0), torch.where(at.mid.isfinite(), at.rad, math.inf))
        # The larger of two lines has the smaller slope on the left.
        left, right = (
            (self.first, self.second) if (self.first < self.second) == self.largest else (self.second, self.first)
        )
        return _two(at, left, right)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """Where the lines meet they are at t + w(q − t), w = r/(r − p) in [0, 1] if the slopes p, r differ in sign.

        Such a mean of offsets that are off by the spread at most is off by no more.
        """
        p, r, q, t = (known(n) for n in (self.first, self.second, self.first_offset, self.second_offset))
        weight = r * (r - p).reciprocal()
        meet = choose(r.is_zero, t, choose(p.is_zero, q, t + weight * (q - t)))
        meet = meet if self.spread is None else meet.widened(self.spread.to(torch.float64))
        turns = ((p.high <= 0) & (r.low >= 0)) | ((p.low >= 0) & (r.high <= 0))
        turns = turns & ~(p.is_zero & r.is_zero)
        return one_sided(meet, turns & self.largest, turns & (not self.largest))
