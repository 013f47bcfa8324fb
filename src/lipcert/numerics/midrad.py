"""Midpoint–radius arithmetic on float64 tensors: every result encloses the exact one, roundings included.

Assumptions: IEEE binary64 in round-to-nearest with subnormals (``require_subnormals``), sums of n terms in any order
within γ_{n} Σ|terms|, and exp, log, tanh, … of the array library within ``ULPS`` units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.errors import NumericsError

#: Unit roundoff of float64.
UNIT = 2.0**-53
#: Covers the roundings made in computing a radius by up to 32 operations on non-negative numbers.
UP = 1.0 + 2.0**-47
#: Granted to every product against underflow: far above the least normal double.
TINY = 2.0**-1010
#: Units of error, in u = 2^-53 of the result, granted to a transcendental function of the array library.
ULPS = 8.0

Number = float | int | Tensor


class Near(float):
    """A double in code that stands for a real number within ``radius`` of it."""

    radius: float

    def __new__(cls, value: float, radius: float) -> Near:
        """``value`` and how far off it may be."""
        number = super().__new__(cls, value)
        number.radius = radius
        return number

    def __neg__(self) -> Near:
        return Near(-float(self), self.radius)

    def __reduce__(self) -> tuple[type[Near], tuple[float, float]]:
        return Near, (float(self), self.radius)


@dataclass(frozen=True, eq=False)
class Range:
    """Real numbers known to lie in [mid − rad, mid + rad] + Σ tail, entry by entry.

    ``tail`` holds further digits (doubles, ever smaller) where more than float64 is asked for: sums, choices and moves
    keep them, ``numerics/slices.py`` maps them; every other operation counts them to the radius. A radius of ``inf``
    means that nothing is known but that the number is finite; a NaN midpoint that it may not exist.
    """

    mid: Tensor
    rad: Tensor
    tail: tuple[Tensor, ...] = ()

    @property
    def reach(self) -> Tensor:
        """The radius around ``mid`` alone, tail included."""
        if not self.tail:
            return self.rad
        total = self.rad
        for part in self.tail:
            total = total + part.abs()
        return total * UP

    @property
    def plain(self) -> Range:
        """The same without further digits."""
        return Range(self.mid, self.reach) if self.tail else self

    def to_digits(self, count: int) -> Range:
        """The same with ``count`` further digits; those dropped count to the radius."""
        if count == 0:
            return self.plain
        return Range(self.mid, self.rad, tuple(_padded(self, count))) if len(self.tail) < count else self

    @classmethod
    def exact(cls, x: Tensor) -> Range:
        """The doubles ``x`` themselves."""
        x = x.to(torch.float64)
        return cls(x, torch.zeros_like(x))

    @classmethod
    def literal(cls, x: Number) -> Range:
        """A constant in code: short binary fractions are meant exactly, others stand for a real within 4u of them."""
        value = torch.as_tensor(x, dtype=torch.float64)
        scaled = value * 2.0**20
        short = (scaled == scaled.round()) & (scaled.abs() < 2.0**52)
        rad = torch.where(short, 0.0, 4.0 * UNIT * value.abs() + TINY)
        return cls(value, rad + x.radius if isinstance(x, Near) else rad)

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> Range:
        """[low, high]; exact where the two agree."""
        same = low == high
        mid = torch.where(same, low, 0.5 * low + 0.5 * high)
        rad = torch.maximum(high - mid, mid - low) * UP + TINY
        return cls(mid, torch.where(same, 0.0, rad))

    @property
    def low(self) -> Tensor:
        """The lower ends, rounded down."""
        reach = self.reach
        return torch.where(reach == 0, self.mid, _below(self.mid - reach))

    @property
    def high(self) -> Tensor:
        """The upper ends, rounded up."""
        reach = self.reach
        return torch.where(reach == 0, self.mid, _above(self.mid + reach))

    @property
    def mag(self) -> Tensor:
        """The largest absolute value, rounded up."""
        reach = self.reach
        return torch.where(reach == 0, self.mid.abs(), _above(self.mid.abs() + reach))

    def map(self, move: Callable[[Tensor], Tensor]) -> Range:
        """Entries moved, copied or dropped by ``move``."""
        return Range(move(self.mid), move(self.rad), tuple(move(t) for t in self.tail))

    def halves(self) -> tuple[Range, Range]:
        """The first and the second half of the entries along the leading axis."""
        return self.map(lambda t: t.chunk(2)[0]), self.map(lambda t: t.chunk(2)[1])

    def widened(self, amount: Tensor) -> Range:
        """The radius increased by ``amount`` ≥ 0."""
        return Range(self.mid, torch.where(amount > 0, (self.rad + amount) * UP, self.rad), self.tail)

    def __neg__(self) -> Range:
        return Range(-self.mid, self.rad, tuple(-t for t in self.tail))

    def __add__(self, other: Range) -> Range:
        if self.tail or other.tail:
            rad = (self.rad + other.rad) * UP
            return renormalised(
                [self.mid, other.mid, *self.tail, *other.tail], rad, max(len(self.tail), len(other.tail))
            )
        mid = self.mid + other.mid
        exact = (self.mid == 0) | (other.mid == 0)
        own = torch.where(exact, 0.0, UNIT * mid.abs())
        return Range(mid, (self.rad + other.rad + own) * UP)

    def __sub__(self, other: Range) -> Range:
        return self + (-other)

    def __mul__(self, other: Range) -> Range:
        if self.tail or other.tail:
            return self.plain * other.plain
        mid = self.mid * other.mid
        spread = self.mid.abs() * other.rad + self.rad * other.mid.abs() + self.rad * other.rad
        rad = (spread + UNIT * mid.abs()) * UP + TINY
        # zero times any finite number is zero, also where the other is known only to be finite
        zero = (self.is_zero & ~other.mid.isnan()) | (other.is_zero & ~self.mid.isnan())
        unit = _is_unit(self) | _is_unit(other)
        rad = torch.where(unit, torch.maximum(self.rad * other.mag, other.rad * self.mag), rad)
        return Range(torch.where(zero, 0.0, mid), torch.where(zero, 0.0, rad))

    def reciprocal(self) -> Range:
        """1/x; unknown where 0 is not excluded."""
        if self.tail:
            return self.plain.reciprocal()
        away = _below(self.mid.abs() - self.rad)
        mid = 1.0 / self.mid
        rad = (self.rad / away * mid.abs() * (1.0 + 4.0 * UNIT) + 2.0 * UNIT * mid.abs()) * UP + TINY
        return Range(torch.where(away > 0, mid, math.nan), torch.where(away > 0, rad, math.inf))

    @property
    def is_zero(self) -> Tensor:
        """Where the number is exactly 0."""
        return (self.mid == 0) & (self.reach == 0)

    def sum(self, axes: tuple[int, ...], keepdim: bool) -> Range:
        """Sums over axes: γ_n Σ|mid| of rounding for n terms in any order."""
        if self.tail:
            return self.plain.sum(axes, keepdim)
        n = math.prod(self.mid.shape[a] for a in axes)
        gamma = n * UNIT * (1.0 + 2.0 * n * UNIT)
        mid = self.mid.sum(axes, keepdim)
        rad = (self.rad.sum(axes, keepdim) + gamma * self.mid.abs().sum(axes, keepdim)) * (UP + 2 * gamma)
        return Range(mid, rad)

    def abs(self) -> Range:
        """Absolute values."""
        low, high = self.low, self.high
        return Range.between(torch.clamp(torch.maximum(low, -high), min=0.0), self.mag)

    def square(self) -> Range:
        """Squares: never negative."""
        a = self.abs()
        return Range.between(torch.clamp(_below(a.low * a.low) - TINY, min=0.0), _above(a.high * a.high) + TINY)

    def increasing(self, function: Callable[[Tensor], Tensor], ulps: float = ULPS) -> Range:
        """A non-decreasing function of the array library, from its values at the two ends."""
        low, high = function(self.low), function(self.high)
        low, high = low - ulps * UNIT * low.abs() - TINY, high + ulps * UNIT * high.abs() + TINY
        return Range.between(torch.minimum(low, high), high)

    def exp(self) -> Range:
        """eˣ > 0."""
        return self.increasing(torch.exp)

    def log(self) -> Range:
        """log x; unknown unless x is certainly positive."""
        result = self.increasing(torch.log)
        known = self.low > 0
        return Range(torch.where(known, result.mid, math.nan), torch.where(known, result.rad, math.inf))

    def sqrt(self) -> Range:
        """√max(x, 0)."""
        clipped = Range.between(self.low.clamp(min=0.0), self.high.clamp(min=0.0))
        root = clipped.increasing(torch.sqrt, 2.0)
        return Range.between(root.low.clamp(min=0.0), root.high)


def known(x: Number | Range) -> Range:
    """What a setting stands for: floats and tensors themselves, a ``Near`` all numbers within its radius."""
    if isinstance(x, Range):
        return x
    value = Range.exact(torch.as_tensor(x, dtype=torch.float64, device="cpu"))
    return value.widened(torch.as_tensor(x.radius, dtype=torch.float64)) if isinstance(x, Near) else value


def hull(first: Range, second: Range) -> Range:
    """The smallest enclosure of both."""
    low, high = torch.minimum(first.low, second.low), torch.maximum(first.high, second.high)
    return Range.between(low, high)


def choose(condition: Tensor, yes: Range, no: Range) -> Range:
    """``yes`` where a (certain) condition holds, else ``no``."""
    digits = max(len(yes.tail), len(no.tail))
    tails = zip(*(_padded(x, digits) for x in (yes, no)), strict=True)
    return Range(
        torch.where(condition, yes.mid, no.mid),
        torch.where(condition, yes.rad, no.rad),
        tuple(torch.where(condition, a, b) for a, b in tails),
    )


def _padded(x: Range, digits: int) -> list[Tensor]:
    return [*x.tail, *[torch.zeros_like(x.mid)] * (digits - len(x.tail))]


def renormalised(parts: list[Tensor], rad: Tensor, digits: int) -> Range:
    """Σ parts ± rad as a midpoint and ``digits`` further ones, what is left over counted to the radius.

    Why this is exact: the error of a sum of two doubles is a double (Knuth's TwoSum, no underflow in sums), so a sweep
    from the last to the first part changes none of the total.
    """
    parts = list(torch.broadcast_tensors(*parts))
    for _ in range(digits + 2):
        for i in range(len(parts) - 2, -1, -1):
            parts[i], parts[i + 1] = _two_sum(parts[i], parts[i + 1])
    left = rad
    for part in parts[digits + 1 :]:
        left = left + part.abs()
    tail = parts[1 : digits + 1]
    tail += [torch.zeros_like(parts[0])] * (digits - len(tail))
    return Range(parts[0], torch.where(left > 0, left * UP, left).expand(parts[0].shape), tuple(tail))


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def lengths(rows: Tensor, p: float) -> Tensor:
    """‖row‖_p of every row of a matrix, rounded up: relative to its greatest entry, so that no square vanishes."""
    n = rows.shape[1]
    if not n:
        return rows.new_zeros(len(rows))
    greatest = rows.abs().amax(dim=1)
    unit = torch.where(greatest[:, None] == 0, 0.0, rows / greatest[:, None])
    result = _above(unit.norm(p=p, dim=1) * greatest * (1.0 + (n + 8.0) * 2.0 * UNIT))
    return torch.where(greatest == 0, 0.0, torch.where(result.isnan(), math.inf, result))


def require_subnormals() -> None:
    """Refuse to compute where subnormal numbers are flushed to zero, in this thread or in those of the library.

    Raises:
        NumericsError: they are.
    """
    least = torch.full((1 << 16,), 2.0**-1060, dtype=torch.float64)
    if not bool((least * 0.5 * 2.0**1000 > 0).all()):
        raise NumericsError("subnormal numbers are flushed to zero here; call torch.set_flush_denormal(False).")


def _is_unit(x: Range) -> Tensor:
    return (x.mid.abs() == 1) & (x.reach == 0)


def _below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _above(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))
