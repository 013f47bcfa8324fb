"""Exponential on the left, a line on the right: ELU, CELU, SELU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.network.activations import profiles
from lipcert.network.activations.rationals import ends_of
from lipcert.network.nonlinearity import Kink, Nonlinearity, Piece, Slope
from lipcert.numerics.midrad import Range, choose, known

#: SELU's scale and α·scale (Klambauer et al. 2017).
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@dataclass(frozen=True, eq=False, repr=False)
class ELU(Nonlinearity):
    """positive·x for x > 0, negative·(exp(rate·x) − 1) for x ≤ 0, rate ≥ 0; ``jump`` of the derivative at 0."""

    positive: float
    negative: float
    rate: float
    jump: float

    def value(self, x: Tensor) -> Tensor:
        """The line or the exponential."""
        left = self.negative * torch.expm1(self.rate * torch.clamp(x, max=0.0))
        return torch.where(x > 0, self.positive * x, left)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """0, if the derivative jumps."""
        return (Kink(0.0, self.jump),) if self.jump else ()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """negative·rate·exp(rate·x), positive."""
        steepest = known(self.negative) * known(self.rate)
        return Piece(right=0.0, factor=steepest, profile=profiles.EXPONENTIAL, rate=self.rate), Piece(
            left=0.0, factor=self.positive
        )

    @property
    def image(self) -> tuple[Slope, Slope]:
        """From −negative, the limit on the left, or the other way round, to 0 and to the end of the line."""
        limit, line = -known(self.negative), known(self.positive)
        limit = choose(known(self.rate).is_zero, known(0.0), limit)
        least, greatest = ends_of(limit, limit)
        least, greatest = torch.clamp(torch.as_tensor(least), max=0.0), torch.clamp(torch.as_tensor(greatest), min=0.0)
        return torch.where(line.low < 0, -math.inf, least), torch.where(line.high > 0, math.inf, greatest)


@dataclass(frozen=True, eq=False, repr=False)
class CELU(Nonlinearity):
    """max(0, x) + min(0, α (exp(x/α) − 1)), α > 0: continuously differentiable."""

    alpha: float

    def value(self, x: Tensor) -> Tensor:
        """The sum."""
        return F.celu(x, self.alpha)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """exp(x/α), 1."""
        rate = known(self.alpha).reciprocal()
        return Piece(right=0.0, profile=profiles.EXPONENTIAL, rate=rate), Piece(left=0.0)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """−α is the limit on the left."""
        return ends_of(-known(self.alpha), known(math.inf))


@dataclass(frozen=True, eq=False, repr=False)
class SELU(Nonlinearity):
    """ELU with the constants of Klambauer et al. 2017: the decimals and their doubles are both enclosed."""

    def value(self, x: Tensor) -> Tensor:
        """SELU."""
        return F.selu(x)

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """0."""
        return (Kink(0.0, SELU_SCALE - SELU_SCALE * SELU_ALPHA),)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """λα·exp(x), λ."""
        scale, alpha = Range.literal(SELU_SCALE), Range.literal(SELU_ALPHA)
        return Piece(right=0.0, factor=scale * alpha, profile=profiles.EXPONENTIAL), Piece(left=0.0, factor=scale)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """−λα is the limit on the left."""
        return ends_of(-(Range.literal(SELU_SCALE) * Range.literal(SELU_ALPHA)), known(math.inf))
