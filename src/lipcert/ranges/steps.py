"""The steps of an expression in one variable: intervals of values and of slopes, from those of the arguments."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from lipcert.network.activations.smooth import Cos, Sin
from lipcert.network.activations.steep import Power
from lipcert.network.hashing import update_hash_with_tensor
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.slopes import slopes
from lipcert.numerics.midrad import Range
from lipcert.ranges.functions import quick_image

#: Lower and upper ends, of one shape.
Pair = tuple[Tensor, Tensor]
#: A choice of entries of a setting.
Choice = Callable[[Tensor], Tensor]

GREATEST = float(torch.finfo(torch.float64).max)


# -- intervals ----------------------------------------------------------------------------------------------


def _down(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _up(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))


def _ordered(low: Tensor, high: Tensor) -> Pair:
    """Nothing is known where arithmetic gave no number; ends never lie beyond the doubles on the wrong side."""
    return (
        torch.where(low.isnan(), -math.inf, low).clamp(max=GREATEST),
        torch.where(high.isnan(), math.inf, high).clamp(min=-GREATEST),
    )


def whole(x: Pair) -> Tensor:
    """Where nothing is known: of something that need not be defined, for instance."""
    return (x[0] == -math.inf) & (x[1] == math.inf)


def plus(x: Pair, y: Pair) -> Pair:
    """Sums of two numbers in the intervals; exact where the sum of the ends is a double (Knuth's two-sum tells)."""

    def end(a: Tensor, b: Tensor, outward: Callable[[Tensor], Tensor]) -> Tensor:
        total = a + b
        back = total - a
        exact = (a - (total - back)) + (b - back) == 0
        return torch.where(exact, total, outward(total))

    return _ordered(end(x[0], y[0], _down), end(x[1], y[1], _up))


def negative(x: Pair) -> Pair:
    """−x."""
    return -x[1], -x[0]


def times(x: Pair, y: Pair) -> Pair:
    """Products of two finite numbers in the intervals; unknown where one of them is."""
    lows, highs = [], []
    for a in x:
        for b in y:
            product = a * b
            product = torch.where((a == 0) | (b == 0), 0.0, product)  # an infinite end stands for finite numbers
            exact = (a == 0) | (b == 0) | (a.abs() == 1) | (b.abs() == 1)
            lows.append(torch.where(exact, product, _down(product)))
            highs.append(torch.where(exact, product, _up(product)))
    low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    unknown = whole(x) | whole(y)
    return _ordered(torch.where(unknown, -math.inf, low), torch.where(unknown, math.inf, high))


def reciprocal(x: Pair) -> Pair:
    """1/x; unknown where 0 is not excluded."""
    away = (x[0] > 0) | (x[1] < 0)
    low, high = _down(1.0 / x[1]), _up(1.0 / x[0])
    return _ordered(torch.where(away, low, -math.inf), torch.where(away, high, math.inf))


# -- steps --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Step(ABC):
    """One operation, entry by entry; ``arguments`` are positions of earlier steps, 0 that of the variable."""

    arguments: tuple[int, ...]

    @abstractmethod
    def value(self, inputs: Sequence[Any]) -> Any:
        """Of tensors or of enclosures."""

    @abstractmethod
    def enclosed(self, values: Sequence[Pair], rates: Sequence[Pair]) -> tuple[Pair, Pair]:
        """(values, slopes) on an interval from those of the arguments.

        Slopes are those of all pairs of points of the interval: what is multiplied below are quotients of increments,
        no derivatives, so that kinks need no care.
        """

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The settings that are tensors."""
        return ()

    def map(self, choose: Choice) -> Self:
        """With the tensors among its settings changed."""
        return self

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """With what it evaluates moved."""
        return self

    def update_hash(self, digest: Any) -> None:
        """Feed kind, arguments and settings to a hashlib object."""
        digest.update(repr((type(self).__name__, self.arguments)).encode())
        for tensor in self.tensors:
            update_hash_with_tensor(digest, tensor)


@dataclass(frozen=True, eq=False)
class Apply(Step):
    """φ of its argument."""

    function: Nonlinearity

    def value(self, inputs: Sequence[Any]) -> Any:
        """φ(x)."""
        return self.function.value(inputs[0])

    def enclosed(self, values: Sequence[Pair], rates: Sequence[Pair]) -> tuple[Pair, Pair]:
        """By the facts of φ; its slopes times the argument's, unknown next to a pole."""
        low, high = values[0]
        own = slopes(self.function, low, high, fine=False)
        start, end = self.function.valid
        edge = ((low <= start) & (start > -math.inf)) | ((high >= end) & (end < math.inf))
        edge = edge & (own[0].isinf() | own[1].isinf())
        own = torch.where(edge, -math.inf, own[0]), torch.where(edge, math.inf, own[1])
        return _ordered(*quick_image(self.function, *values[0], *own)), times(own, rates[0])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those of φ."""
        return self.function.parameters

    def map(self, choose: Choice) -> Apply:
        """With φ of some entries."""
        names = ("lower", "upper", *self.function.settings)
        found = {name: getattr(self.function, name) for name in names}
        changed: dict[str, Any] = {n: choose(t) for n, t in found.items() if isinstance(t, Tensor)}
        return replace(self, function=replace(self.function, sources=(), **changed)) if changed else self

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Apply:
        """With φ moved."""
        return replace(self, function=self.function.to(dtype, device))

    def update_hash(self, digest: Any) -> None:
        """With φ's kind and settings."""
        super().update_hash(digest)
        self.function.update_hash(digest)


@dataclass(frozen=True, eq=False)
class Combine(Step):
    """Σ factor·argument + offset; factors and offset are any numbers in these ranges."""

    factors: tuple[Range, ...]
    offset: Range | None = None

    def value(self, inputs: Sequence[Any]) -> Any:
        """The sum."""
        total = None
        for factor, x in zip(self.factors, inputs, strict=True):
            term = x * _like(factor, x)
            total = term if total is None else total + term
        return total if self.offset is None else total + _like(self.offset, inputs[0])

    def enclosed(self, values: Sequence[Pair], rates: Sequence[Pair]) -> tuple[Pair, Pair]:
        """Sums of multiples."""
        results = []
        for terms in (values, rates):
            total: Pair | None = None
            for factor, x in zip(self.factors, terms, strict=True):
                term = times((factor.low, factor.high), x)
                total = term if total is None else plus(total, term)
            assert total is not None
            results.append(total)
        if self.offset is not None:
            results[0] = plus(results[0], _ordered(self.offset.low, self.offset.high))
        return results[0], results[1]

    @property
    def _ranges(self) -> tuple[Range, ...]:
        return (*self.factors, *(() if self.offset is None else (self.offset,)))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Middles and radii."""
        return tuple(t for r in self._ranges for t in (r.mid, r.rad))

    def map(self, choose: Choice) -> Combine:
        """With the factors and offsets of some entries."""
        offset = None if self.offset is None else self.offset.map(choose)
        return replace(self, factors=tuple(f.map(choose) for f in self.factors), offset=offset)


@dataclass(frozen=True, eq=False)
class Product(Step):
    """The product of two: δ(uv) = u δv + v' δu, with u at one point and v' at the other."""

    def value(self, inputs: Sequence[Any]) -> Any:
        """u·v."""
        return inputs[0] * inputs[1]

    def enclosed(self, values: Sequence[Pair], rates: Sequence[Pair]) -> tuple[Pair, Pair]:
        """By the rule above."""
        return times(*values), plus(times(values[0], rates[1]), times(values[1], rates[0]))


@dataclass(frozen=True, eq=False)
class Quotient(Step):
    """The quotient of two: δ(u/v) = (δu − (u'/v') δv)/v."""

    def value(self, inputs: Sequence[Any]) -> Any:
        """u/v."""
        return inputs[0] / inputs[1]

    def enclosed(self, values: Sequence[Pair], rates: Sequence[Pair]) -> tuple[Pair, Pair]:
        """By the rule above; unknown where v may be 0."""
        inverse = reciprocal(values[1])
        own = times(values[0], inverse)
        return own, times(plus(rates[0], negative(times(own, rates[1]))), inverse)


def _like(x: Range, value: Any) -> Any:
    """A number for tensors of the value's kind; for enclosures itself."""
    return x.mid.to(value) if isinstance(value, Tensor) else x


# -- rewriting ----------------------------------------------------------------------------------------------


def squared_wave(function: Nonlinearity, argument: Step | None) -> tuple[Nonlinearity, float] | None:
    """(cos, ∓1/2) if φ of the argument is sin² or cos²: these are 1/2 ∓ cos(2x)/2, on the whole line exact."""
    if not isinstance(function, Power) or (function.exponent, function.factor) != (2.0, 1.0):
        return None
    if not isinstance(argument, Apply) or not isinstance(argument.function, (Sin, Cos)):
        return None
    return Cos("cos", -1.0, 1.0), -0.5 if isinstance(argument.function, Sin) else 0.5
