"""An activation made of several steps: a function of each entry of one value, with slopes by interval arithmetic.

On a part of the line every step gets an interval of values and one of slopes from those of its arguments; the slopes
of the last step are those of the whole. The line is cut into parts, and those that decide are cut again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lipcert.network.nonlinearity import Kink, Nonlinearity, Piece
from lipcert.numerics.midrad import Range
from lipcert.ranges.steps import GREATEST, Apply, Choice, Combine, Pair, Step, whole

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
        if bool(whole((low, high)).all()) and self.greatest_slope < math.inf:
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
        at_once = _through(self.steps, low, high)[1]
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
        return torch.maximum(at_once[0], least), torch.minimum(at_once[1], greatest)


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
    return torch.asinh(x.clamp(-GREATEST, GREATEST).abs()).log1p().copysign(x)


def _unscale(x: Tensor) -> Tensor:
    return torch.sinh(x.abs().expm1()).clamp(max=GREATEST).copysign(x)
