"""An activation made of several steps: a function of each entry of one value, with slopes by interval arithmetic.

On a part of the line every step gets an interval of values and one of slopes from those of its arguments; the slopes
of the last step are those of the whole. The line is cut into parts, and those that decide are cut again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from lipcert.network.activations.smooth import Cos, Sin
from lipcert.network.activations.steep import Power
from lipcert.network.hashing import update_hash_with_tensor
from lipcert.network.nonlinearity import Kink, Nonlinearity, Piece
from lipcert.network.slopes import slopes
from lipcert.numerics.midrad import Range
from lipcert.ranges.functions import quick_image

#: Lower and upper ends, of one shape.
Pair = tuple[Tensor, Tensor]
#: A choice of entries of a setting.
Choice = Callable[[Tensor], Tensor]

#: Parts times entries of one evaluation, of all of one search, and the most parts that it starts with.
WORK, TOTAL, FIRST = 1 << 15, 1 << 17, 128
#: A search cuts so many of the parts that are greatest, and of those that are least, into so many, so many times.
CHOSEN, PIECES, ROUNDS = 16, 8, 12
#: Entries of one search.
CHUNK = 1 << 16
#: It ends where what is attained is so near to what is proved, relative to the greatest slope.
NEAR = 5e-4
#: Intervals up to this length are cut evenly, longer ones by the doubly logarithmic scale.
_SHORT = 8.0
_GREATEST = float(torch.finfo(torch.float64).max)


# -- intervals ----------------------------------------------------------------------------------------------


def _down(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _up(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))


def _ordered(low: Tensor, high: Tensor) -> Pair:
    """Nothing is known where arithmetic gave no number; ends never lie beyond the doubles on the wrong side."""
    return (
        torch.where(low.isnan(), -math.inf, low).clamp(max=_GREATEST),
        torch.where(high.isnan(), math.inf, high).clamp(min=-_GREATEST),
    )


def _whole(x: Pair) -> Tensor:
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
    unknown = _whole(x) | _whole(y)
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


# -- the activation -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Composite(Nonlinearity):
    """The last of ``steps``; position k of the arguments of a step is steps[k − 1], 0 the variable."""

    steps: tuple[Step, ...]

    curved = True
    pieces = (Piece(factor=Range(torch.zeros((), dtype=torch.float64), torch.full((), math.inf, dtype=torch.float64))),)

    @classmethod
    def of(cls, name: str, steps: Sequence[Step]) -> Composite:
        """With its slopes on the whole line."""
        function = cls(name, -math.inf, math.inf, tuple(steps))
        shape = torch.broadcast_shapes(*(t.shape for t in function.parameters))
        ends = torch.full(shape, -math.inf, dtype=torch.float64), torch.full(shape, math.inf, dtype=torch.float64)
        low, high = function.own_slopes(*ends, fine=True)
        if shape == ():
            return replace(function, lower=float(low), upper=float(high))
        return replace(function, lower=low, upper=high)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Those of all steps."""
        return tuple(tensor for step in self.steps for tensor in step.tensors)

    def value(self, x: Tensor) -> Tensor:
        """Step by step, of tensors and of enclosures."""
        values: list[Any] = [x]
        for step in self.steps:
            values.append(step.value([values[k] for k in step.arguments]))
        return values[-1]

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Composite:
        """With the steps moved."""
        return replace(self, steps=tuple(step.to(dtype, device) for step in self.steps))

    def update_hash(self, digest: Any) -> None:
        """Feed all steps to a hashlib object."""
        digest.update(repr(("composite", len(self.steps))).encode())
        for step in self.steps:
            step.update_hash(digest)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    @cached_property
    def kinks(self) -> tuple[Kink, ...]:
        """Those of steps that are applied to the variable or a multiple of it, where these stay, about: a proposal."""
        lines: dict[int, tuple[Tensor, Tensor]] = {0: (torch.ones(()).double(), torch.zeros(()).double())}
        found = []
        for place, step in enumerate(self.steps, start=1):
            if len(step.arguments) != 1 or step.arguments[0] not in lines:
                continue
            rate, shift = lines[step.arguments[0]]
            if isinstance(step, Combine):
                offset = torch.zeros(()).double() if step.offset is None else step.offset.mid
                lines[place] = step.factors[0].mid * rate, step.factors[0].mid * shift + offset
            elif isinstance(step, Apply):
                for kink in step.function.kinks:
                    position = (torch.as_tensor(kink.position, dtype=torch.float64) - shift) / rate
                    found.append(Kink(position.nan_to_num(0.0, 0.0, 0.0), 0.0))
        return tuple(found)

    @cached_property
    def image(self) -> tuple[Tensor, Tensor]:
        """The hull of what the parts of the line give."""
        shape = torch.broadcast_shapes(*(t.shape for t in self.parameters))
        ends = torch.full(shape, -math.inf, dtype=torch.float64), torch.full(shape, math.inf, dtype=torch.float64)
        return self.own_image(*ends)

    def own_image(self, low: Tensor, high: Tensor) -> Pair:
        """The hull of what parts of the interval give."""
        cuts = self._grid(low, high, _first(low.numel()))
        (least, greatest), _ = _through(self.steps, cuts[:-1], cuts[1:])
        return least.amin(0), greatest.amax(0)

    def own_slopes(self, low: Tensor, high: Tensor, fine: bool) -> Pair:
        """By one look at the whole interval and, if ``fine``, by a search."""
        if not fine or bool((low == high).all()):
            return _through(self.steps, low, high)[1]
        if bool(_whole((low, high)).all()) and self.greatest_slope < math.inf:
            ends = (torch.as_tensor(end, dtype=torch.float64).expand(low.shape) for end in (self.lower, self.upper))
            return next(ends), next(ends)
        shape = low.shape
        low, high = low.reshape(-1), high.reshape(-1)
        if all(t.numel() == 1 for t in self.parameters):
            alone = self._entries(lambda t: t.reshape(()))
            pairs, place = torch.stack([low, high]).unique(dim=1, return_inverse=True)
            found = [alone._search(*part.unbind(0)) for part in pairs.split(CHUNK, dim=1)]
            least, greatest = (torch.cat(ends)[place] for ends in zip(*found, strict=True))
            return least.reshape(shape), greatest.reshape(shape)
        found = []
        for start in range(0, len(low), CHUNK):
            part = slice(start, start + CHUNK)
            found.append(self._entries(_chosen(shape, part))._search(low[part], high[part]))
        least, greatest = (torch.cat(ends) for ends in zip(*found, strict=True))
        return least.reshape(shape), greatest.reshape(shape)

    def _entries(self, choose: Choice) -> Composite:
        steps = tuple(step.map(choose) for step in self.steps)
        return Composite(self.name, -math.inf, math.inf, steps)

    def _grid(self, low: Tensor, high: Tensor, parts: int) -> Tensor:
        """(points, *shape) from low to high, kinks and 0 among them."""
        extra = [0.0, *(kink.position for kink in self.kinks)]
        points = [torch.as_tensor(t, dtype=torch.float64).expand(low.shape).clamp(low, high) for t in extra]
        return torch.cat([_cut(low, high, parts), torch.stack(points)]).sort(dim=0).values

    def _search(self, low: Tensor, high: Tensor) -> Pair:
        """(least, greatest) slope on intervals (N,): branch and bound over parts, while the work is moderate.

        Why this encloses: a slope of the interval is a mean of slopes of parts that cover it, and all parts that are
        not cut stay in the pool.
        """
        whole = _through(self.steps, low, high)[1]
        cuts = self._grid(low, high, _first(len(low)))
        pool = _Pool.of(self.steps, low, high, cuts)
        least, greatest = pool.ends
        place, function, work, endless = torch.arange(len(low)), self, 0, 0
        for _ in range(ROUNDS):
            kept = pool.open.nonzero().reshape(-1)
            cost = 2 * len(kept) * (PIECES + 1)
            endless = endless + 1 if bool(pool.size[kept].isinf().all()) else 0
            if not len(kept) or endless > 3 or work + cost > TOTAL:
                break
            if len(kept) < len(place):
                place, pool = place[kept], pool.map(lambda t, kept=kept: t[..., kept])  # type: ignore[misc]
                function = function._entries(lambda t, kept=kept: t[kept] if t.dim() else t)  # type: ignore[misc]
            chosen = max(1, min(CHOSEN, len(pool.start) // 2, WORK // cost))
            work += cost * chosen
            pool = pool.refined(function.steps, chosen)
            ends = pool.ends
            least, greatest = least.index_copy(0, place, ends[0]), greatest.index_copy(0, place, ends[1])
        return torch.maximum(whole[0], least), torch.minimum(whole[1], greatest)


@dataclass(frozen=True, eq=False)
class _Pool:
    """Parts (P, N) of N intervals with their slopes; those that were cut, or have no length, count no more.

    ``attained`` are slopes at single points: the least of all is not above its first, the greatest not below its
    second.
    """

    point: Tensor
    start: Tensor
    end: Tensor
    least: Tensor
    greatest: Tensor
    attained: Pair

    @classmethod
    def of(cls, steps: Sequence[Step], low: Tensor, high: Tensor, cuts: Tensor) -> _Pool:
        start, end, point = cuts[:-1], cuts[1:], low == high
        own = _counted(_through(steps, start, end)[1], (start == end) & ~point)
        attained = torch.full_like(low, math.inf), torch.full_like(low, -math.inf)
        return cls(point, start, end, *own, attained)

    @property
    def ends(self) -> Pair:
        """What is proved."""
        return self.least.amin(0), self.greatest.amax(0)

    @property
    def size(self) -> Tensor:
        """The greatest |slope|, as far as is proved."""
        low, high = self.ends
        return torch.maximum(low.abs(), high.abs())

    @property
    def open(self) -> Tensor:
        """Where what is attained is not near to what is proved."""
        (low, high), size = self.ends, self.size
        wide = (high - self.attained[1] > NEAR * size) | (self.attained[0] - low > NEAR * size)
        return ~self.point & (wide | size.isinf())

    def map(self, choose: Choice) -> _Pool:
        """Of some of the intervals."""
        attained = choose(self.attained[0]), choose(self.attained[1])
        start, end, least, greatest = (choose(t) for t in (self.start, self.end, self.least, self.greatest))
        return _Pool(choose(self.point), start, end, least, greatest, attained)

    def refined(self, steps: Sequence[Step], chosen: int) -> _Pool:
        """With the greatest and the least parts cut into pieces."""
        places = torch.cat([self.greatest.topk(chosen, dim=0).indices, (-self.least).topk(chosen, dim=0).indices])
        cuts = _cut(self.start.gather(0, places), self.end.gather(0, places), PIECES)
        a, b, middle = cuts[:-1].flatten(0, 1), cuts[1:].flatten(0, 1), cuts[PIECES // 2]
        low, high = _through(steps, torch.cat([a, middle]), torch.cat([b, middle]))[1]
        own = _counted((low[: len(a)], high[: len(a)]), (a == b) & ~self.point)
        return _Pool(
            self.point,
            torch.cat([self.start, a]),
            torch.cat([self.end, b]),
            torch.cat([self.least.scatter(0, places, math.inf), own[0]]),
            torch.cat([self.greatest.scatter(0, places, -math.inf), own[1]]),
            (
                torch.minimum(self.attained[0], high[len(a) :].amin(0)),
                torch.maximum(self.attained[1], low[len(a) :].amax(0)),
            ),
        )


def _chosen(shape: tuple[int, ...], part: slice) -> Choice:
    """Those entries of a tensor that broadcasts to the shape which the part of the flattened one has."""
    return lambda t: t.expand(shape).reshape(-1)[part] if t.dim() else t


def _through(steps: Sequence[Step], low: Tensor, high: Tensor) -> tuple[Pair, Pair]:
    """(values, slopes) of the last step on [low, high]."""
    one = torch.ones_like(low)
    values, rates = [(low, high)], [(one, one)]
    for step in steps:
        value, rate = step.enclosed([values[k] for k in step.arguments], [rates[k] for k in step.arguments])
        values.append(value)
        rates.append(rate)
    shape = low.shape
    (a, b), (c, d) = values[-1], rates[-1]
    return (a.expand(shape), b.expand(shape)), (c.expand(shape), d.expand(shape))


def _counted(found: Pair, empty: Tensor) -> Pair:
    """Slopes of parts, those of a length of 0 left out."""
    return torch.where(empty, math.inf, found[0]), torch.where(empty, -math.inf, found[1])


def _first(entries: int) -> int:
    """Parts to begin with."""
    return max(2, min(FIRST, WORK // max(1, entries)))


def _cut(low: Tensor, high: Tensor, parts: int) -> Tensor:
    """(parts + 1, *shape): from low to high, evenly or, where long or endless, evenly on the scale of log log."""
    shares = (torch.arange(parts + 1, dtype=torch.float64) / parts).reshape(-1, *([1] * low.dim()))
    short = high - low <= _SHORT
    a, b = torch.where(short, low, 0.0), torch.where(short, high, 0.0)
    even = a * (1.0 - shares) + b * shares
    c, d = (_scale(torch.where(short, 0.0, end)) for end in (low, high))
    far = _unscale(c * (1.0 - shares) + d * shares)
    points = torch.where(short, even, far).clamp(low, high)
    points[0], points[-1] = low, high
    return points.cummax(0).values


def _scale(x: Tensor) -> Tensor:
    return torch.asinh(x.clamp(-_GREATEST, _GREATEST).abs()).log1p().copysign(x)


def _unscale(x: Tensor) -> Tensor:
    return torch.sinh(x.abs().expm1()).clamp(max=_GREATEST).copysign(x)


# -- rewriting ----------------------------------------------------------------------------------------------


def squared_wave(function: Nonlinearity, argument: Step | None) -> tuple[Nonlinearity, float] | None:
    """(cos, ∓1/2) if φ of the argument is sin² or cos²: these are 1/2 ∓ cos(2x)/2, on the whole line exact."""
    if not isinstance(function, Power) or (function.exponent, function.factor) != (2.0, 1.0):
        return None
    if not isinstance(argument, Apply) or not isinstance(argument.function, (Sin, Cos)):
        return None
    return Cos("cos", -1.0, 1.0), -0.5 if isinstance(argument.function, Sin) else 0.5
