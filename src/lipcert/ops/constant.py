"""Values that do not depend on the input: stored ones are exact, computed ones carry an enclosure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.network.linear import Shape
from lipcert.numerics.rounding import UNIT
from lipcert.ops.enclosure import Ball

#: Counts beyond this say nothing useful: such a relative error is none.
_MOST = 2.0**40
#: Relative errors tried for the even part of a radius, and what the uneven rest may cost (see ``Constant.parts``).
_LEVELS = tuple(2.0**-e for e in range(48, 19, -2))
_COST = 1e-3


@dataclass(frozen=True, eq=False)
class Parts:
    """How a constant enters a linear map: c with |C − c| ≤ γ_count·majorant + rest, entry by entry.

    ``majorant`` ≥ |c|, None where it is |c| itself; ``rest`` is None where it is zero.
    """

    count: float
    majorant: Tensor | None
    rest: Tensor | None


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not depend on the input; floating values are held in float64 on the CPU.

    What the network means by it is the real tensor that exact arithmetic gives from the stored parameters. The model
    multiplies by what its own precision makes of it. The two differ by rounding alone, and a bound holds for both:
    ``error`` covers the whole way from ``value`` to either.

    Attributes:
        value: the middle of the enclosure.
        radius: |exact − value| ≤ radius, a tensor of the same shape, infinite where nothing is known; None: exact.
            For whole numbers and masks, which jump, it is None or infinite.
        dtype: the precision the model holds it in; None if that plays no part (a Python number).
        stored: the value that the model's own arithmetic gives, None where it is ``value`` itself.
    """

    value: Tensor
    radius: Tensor | None
    dtype: torch.dtype | None
    stored: Tensor | None = None

    @staticmethod
    def exactly(value: Tensor, dtype: torch.dtype | None = None) -> Constant:
        """A stored tensor (a parameter, a buffer, a literal): the number it holds is the number meant."""
        floating = value.is_floating_point()
        return Constant(value.double() if floating else value, None, dtype or value.dtype)

    @staticmethod
    def within(ball: Ball) -> Constant:
        """What a rule computes by itself in exact arithmetic; the model never holds it."""
        return Constant(ball.middle, ball.radius, None)

    @property
    def shape(self) -> Shape:
        """Shape of the value."""
        return tuple(self.value.shape)

    @cached_property
    def own(self) -> Tensor:
        """The tensor that the model's own arithmetic gives."""
        if self.stored is not None:
            return self.stored
        return self.value if self.dtype is None else self.value.to(self.dtype)

    @cached_property
    def error(self) -> Tensor | None:
        """How far the exact value and the model's own may be from ``value``, rounded up; None: not at all."""
        if self.stored is None or not self.value.is_floating_point():
            return self.radius
        gap = (self.stored.double() - self.value).abs() * (1.0 + 2.0**-50)
        gap = gap if self.radius is None else torch.maximum(gap, self.radius)
        gap = torch.where(gap.isnan(), math.inf, gap)
        return gap if bool(gap.any()) else None

    @property
    def ball(self) -> Ball:
        """The enclosure, of the exact value and of the model's own."""
        radius = self.error
        if radius is not None and radius.shape != self.value.shape:
            radius = radius.expand(self.value.shape)
        return Ball(self.value.double(), radius)

    @cached_property
    def rounding(self) -> float:
        """Units of *relative* rounding error per entry: 0 if exact, ``inf`` where no useful relative error is known."""
        error = self.error
        if error is None:
            return 0.0
        wrong = error > 0
        ratio = float((error[wrong] / self.value.double().expand(error.shape)[wrong].abs()).max())
        count = ratio / UNIT * (1.0 + 2.0**-40) + 1.0
        return math.ceil(count) if count <= _MOST else math.inf

    def map(self, function: Callable[[Tensor], Tensor]) -> Constant:
        """``function`` that only moves or repeats entries, or drops some."""
        moved = [None if t is None else function(t) for t in (self.radius, self.stored)]
        return Constant(function(self.value), moved[0], self.dtype, moved[1])

    @cached_property
    def parts(self) -> Parts:
        """The error as a relative count, a majorant and a rest (see ``Parts``).

        A relative error ε means count ε/u with |c| as majorant. Entries of larger relative error (cancelled, or
        underflowed) get the majorant r/ε where that costs little, |c| being so much larger elsewhere; what remains
        is the rest, which is bounded by itself.
        """
        error = self.error
        if error is None:
            return Parts(0.0, None, None)
        if bool(error.isinf().any()):
            return Parts(math.inf, None, None)
        size = self.value.double().abs()
        needed = torch.where(error > 0, error / size, 0.0)
        greatest = float(needed.max())
        if greatest <= _LEVELS[0]:
            return Parts(math.ceil(greatest / UNIT) + 1.0, None, None)
        total = float(size.sum())
        best = (math.inf, 0.0)
        for level in _LEVELS if size.numel() > 1 and total > 0 else ():
            excess = float((error / level - size).clamp(min=0.0).sum()) / total
            best = min(best, (excess + 32.0 * level, level))
            if level >= greatest:
                break
        if best[0] <= _COST:
            level = min(best[1], greatest)
            majorant = torch.maximum(size, error / level * (1.0 + 2.0**-50))
            return Parts(math.ceil(level / UNIT) + 1.0, majorant if greatest > level else None, None)
        relative = needed <= _LEVELS[-1]
        level = float(needed[relative].max()) if bool(relative.any()) else 0.0
        return Parts(math.ceil(level / UNIT) + 1.0, None, torch.where(relative, 0.0, error))
