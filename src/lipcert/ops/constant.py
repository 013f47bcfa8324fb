"""Values that do not depend on the input: stored ones are exact, computed ones carry an enclosure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.network.linear import Shape
from lipcert.network.source import Source, derived
from lipcert.numerics.rounding import UNIT
from lipcert.ops.enclosure import Ball, rounded, unknown

#: Counts beyond this say nothing useful: such a relative error is none.
_MOST = 2.0**40
#: Relative errors tried for the even part of a radius, and what the uneven rest may cost (see ``Constant.parts``).
_LEVELS = tuple(2.0**-e for e in range(48, 19, -2))
_COST = 1e-3


#: Precisions in which a weight that forward computes differs from the exact one by more than bounds can pay for.
_LOW = (torch.float32, torch.float16, torch.bfloat16)


def _faithful(middle: Tensor, dtype: torch.dtype | None) -> Tensor:
    """What rounding may do to each entry: √ε of the largest entry that shares its index along any one axis.

    A matrix product loses units of its largest terms, so small entries among large ones prove nothing; but a row, a
    column or an entry of a vector that is lost as a whole (by cancellation, by underflow) is not rounding.
    """
    assert dtype is not None
    size = middle.abs()
    level = size
    for axis in range(size.dim()):
        others = [d for d in range(size.dim()) if d != axis]
        along = size.amax(others, keepdim=True) if others else size
        level = along.expand(size.shape) if axis == 0 else torch.minimum(level, along)
    return level * math.sqrt(torch.finfo(dtype).eps)


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

    What forward computes from parameters alone (a normalised or factored weight) has two readings: the real tensor
    that exact arithmetic gives, and the tensor of the model's own precision that the module multiplies with. In
    float64 they are the same but for a few units in the last place, and ``error`` covers both. In a lower precision
    the network is the one that runs: ``value`` is the module's own tensor, and exact, as long as it is the exact one
    but for rounding (``_faithful``). Where it is not, ``error`` covers both again.

    Attributes:
        exact: an enclosure of the first reading; for whole numbers and masks, which jump, the radius is None or
            infinite.
        dtype: the precision the model holds it in; None if that plays no part (a Python number).
        stored: the second reading, None where it is the middle of the enclosure itself.
        source: how it came from named parameters; None where that is not known.
    """

    exact: Ball
    dtype: torch.dtype | None
    stored: Tensor | None = None
    source: Source | None = None

    @staticmethod
    def exactly(value: Tensor, dtype: torch.dtype | None = None, source: Source | None = None) -> Constant:
        """A stored tensor (a parameter, a buffer, a literal): the number it holds is the number meant."""
        held = value.double() if value.is_floating_point() else value
        return Constant(Ball(held, None), dtype or value.dtype, None, source)

    @staticmethod
    def within(ball: Ball, source: Source | None = None) -> Constant:
        """What a rule computes by itself in exact arithmetic; the model never holds it."""
        return Constant(ball, None, None, source)

    @staticmethod
    def counted(value: Tensor, rounding: float) -> Constant:
        """Numbers known to ``rounding`` units of relative error; an infinite count says nothing of them."""
        if rounding == 0.0:
            return Constant(Ball(value, None), None)
        radius = value.abs() * (rounding * UNIT) * (1.0 + 2.0**-50) if rounding <= _MOST else unknown(value).spread
        return Constant(Ball(value, torch.where(value.abs() < 2.0**-900, math.inf, radius)), None)

    @cached_property
    def readings(self) -> Ball:
        """An enclosure of both readings."""
        middle = self.exact.middle
        if self.stored is None or not middle.is_floating_point() or not middle.numel():
            return self.exact
        own = self.stored.double()
        gap = (own - middle).abs() * (1.0 + 2.0**-50)
        size = float(middle.abs().max())
        if not bool(own.isfinite().all()) or (self.dtype == torch.float64 and not bool((gap > 1e-9 * size).any())):
            radius, value = torch.maximum(gap, self.exact.spread), middle
        else:
            radius, value = (gap + self.exact.spread) * (1.0 + 2.0**-50), own
        radius = torch.where(radius.isnan(), math.inf, radius)
        return Ball(value, radius if bool(radius.any()) else None)

    @cached_property
    def ball(self) -> Ball:
        """What the network multiplies with, and how far the readings that count may be from it."""
        both = self.readings
        if self.stored is None or self.dtype not in _LOW or both.radius is None:
            return both
        radius = torch.where(both.radius <= _faithful(self.exact.middle, self.dtype), 0.0, both.radius)
        return Ball(both.middle, radius if bool(radius.any()) else None)

    @property
    def floating(self) -> Ball:
        """The same as floating numbers: for whole numbers and masks in arithmetic."""
        radius, middle = self.ball.radius, self.value.double()
        if not self.value.is_floating_point() and middle.numel() and float(middle.abs().max()) >= 2.0**53:
            return rounded(middle) if radius is None else unknown(middle)
        return Ball(middle, None if radius is None else radius.expand(self.value.shape))

    @property
    def value(self) -> Tensor:
        """The tensor that the network multiplies with."""
        return self.ball.middle

    @property
    def error(self) -> Tensor | None:
        """How far what is meant may be from ``value``, entry by entry; None: not at all."""
        return self.ball.radius

    @property
    def shape(self) -> Shape:
        """Shape of the value."""
        return tuple(self.exact.middle.shape)

    @cached_property
    def own(self) -> Tensor:
        """The tensor that the model's own arithmetic gives."""
        if self.stored is not None:
            return self.stored
        return self.exact.middle if self.dtype is None else self.exact.middle.to(self.dtype)

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
        stored = None if self.stored is None else function(self.stored)
        return Constant(self.exact.map(function), self.dtype, stored, derived(function, self.source))

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
