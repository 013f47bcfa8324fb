"""Numbers that carry enclosures of a value and of its one-sided directional derivative through torch code.

The code of an activation or a block is run on an ``Enclosure`` instead of a tensor: every torch function it calls is
replaced by a rule below (``__torch_function__``). A function without a rule is an error, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.network.images import image
from lipcert.network.linear import LinearMap
from lipcert.numerics.midrad import Range, choose, hull

#: What is run in place of a torch function, by the name under which torch hands it on.
RULES: dict[str, Callable[..., Any]] = {}


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what stands for the torch functions of these names."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass(frozen=True, eq=False)
class Truth:
    """A comparison: ``yes`` where it certainly holds, ``no`` where it certainly does not."""

    yes: Tensor
    no: Tensor

    def __and__(self, other: Truth) -> Truth:
        return Truth(self.yes & other.yes, self.no | other.no)

    def __or__(self, other: Truth) -> Truth:
        return Truth(self.yes | other.yes, self.no & other.no)

    def __invert__(self) -> Truth:
        return Truth(self.no, self.yes)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Enclosure.__torch_function__(func, types, args, kwargs)


@dataclass(frozen=True, eq=False)
class Enclosure:
    """``value`` encloses f(x), ``tangent`` every limit of f'(x'; v) as x' → x.

    Why a hull is right where a comparison is undecided: the function then follows one of the two branches at every
    x' near x (both, on either side of a kink at x), and its one-sided derivative there is that of the branch it
    follows in the direction v; the hull holds both, so it holds all their limits.
    """

    value: Range
    tangent: Range

    @property
    def shape(self) -> torch.Size:
        """Shape of the value."""
        return self.value.mid.shape

    @property
    def dtype(self) -> torch.dtype:
        """Always float64."""
        return torch.float64

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    def dim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of entries."""
        return self.value.mid.numel()

    def map(self, move: Callable[[Tensor], Tensor]) -> Enclosure:
        """Entries moved, copied or dropped."""
        return Enclosure(self.value.map(move), self.tangent.map(move))

    def chain(self, value: Range, slope: Range) -> Enclosure:
        """φ(x) for an elementwise φ, from enclosures of φ and of φ' on the value."""
        return Enclosure(value, slope * self.tangent)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = RULES.get(getattr(func, "__name__", ""))
        if rule is None:
            raise NumericsError(
                f"the derivative at the witness cannot be enclosed: no rule for {getattr(func, '__name__', func)}."
            )
        return rule(*args, **(kwargs or {}))

    @property
    def digits(self) -> int:
        """Further digits beyond float64 that are carried."""
        return max(len(self.value.tail), len(self.tangent.tail))

    def to_digits(self, count: int) -> Enclosure:
        """The same with room for ``count`` further digits, or without any."""
        return Enclosure(*(part.to_digits(count) for part in (self.value, self.tangent)))

    def through(self, linear: LinearMap) -> Enclosure:
        """The image of a batch (B, *in_shape) under a linear map."""
        if self.digits:  # of either part apart from the other, which may be of quite another size
            value, tangent = (image(linear, part) for part in (self.value, self.tangent))
        else:
            mids, rads = torch.cat([self.value.mid, self.tangent.mid]), torch.cat([self.value.rad, self.tangent.rad])
            value, tangent = image(linear, Range(mids, rads)).halves()
        return Enclosure(value, tangent)

    def __getitem__(self, key: Any) -> Enclosure:
        return self.map(lambda t: t[key])

    def __getattr__(self, name: str) -> Any:
        rule = RULES.get(name)
        if rule is None or name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: rule(self, *args, **kwargs)

    def __add__(self, other: Any) -> Enclosure:
        return add(self, other)

    __radd__ = __add__

    def __neg__(self) -> Enclosure:
        return Enclosure(-self.value, -self.tangent)

    def __sub__(self, other: Any) -> Enclosure:
        return add(self, -of(other))

    def __rsub__(self, other: Any) -> Enclosure:
        return add(of(other), -self)

    def __mul__(self, other: Any) -> Enclosure:
        return mul(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Enclosure:
        return div(self, other)

    def __rtruediv__(self, other: Any) -> Enclosure:
        return div(other, self)

    def __pow__(self, power: Any) -> Enclosure:
        return RULES["pow"](self, power)

    def __abs__(self) -> Enclosure:
        return abs_(self)

    def __gt__(self, other: Any) -> Truth:
        return greater(self, other)

    def __ge__(self, other: Any) -> Truth:
        return greater(self, other)

    def __lt__(self, other: Any) -> Truth:
        return greater(other, self)

    def __le__(self, other: Any) -> Truth:
        return greater(other, self)


def of(x: Any) -> Enclosure:
    """A number in code as a constant, see ``Range.literal``; a ``Range`` is the constant it encloses."""
    if isinstance(x, Enclosure):
        return x
    value = x if isinstance(x, Range) else Range.literal(x)
    return Enclosure(value, Range.exact(torch.zeros_like(value.mid)))


def exact(x: Tensor) -> Enclosure:
    """Doubles that are meant exactly."""
    return Enclosure(Range.exact(x), Range.exact(torch.zeros_like(x)))


# -- arithmetic and choices ---------------------------------------------------------------------------------


@rule("add", "__add__", "__radd__")
def add(x: Any, y: Any, alpha: float = 1) -> Enclosure:
    """x + alpha·y."""
    x, y = of(x), of(y) if alpha == 1 else mul(y, alpha)
    return Enclosure(x.value + y.value, x.tangent + y.tangent)


@rule("sub", "subtract", "__sub__")
def sub(x: Any, y: Any, alpha: float = 1) -> Enclosure:
    """x − alpha·y."""
    return add(x, y, -alpha)


@rule("mul", "multiply", "__mul__", "__rmul__")
def mul(x: Any, y: Any) -> Enclosure:
    """Product rule."""
    x, y = of(x), of(y)
    return Enclosure(x.value * y.value, x.value * y.tangent + y.value * x.tangent)


@rule("div", "divide", "true_divide", "__truediv__")
def div(x: Any, y: Any, rounding_mode: None = None) -> Enclosure:
    """Quotient rule."""
    x, y = of(x), of(y)
    inverse = y.value.reciprocal()
    quotient = x.value * inverse
    return Enclosure(quotient, (x.tangent - quotient * y.tangent) * inverse)


@rule("square")
def square(x: Enclosure) -> Enclosure:
    """x²."""
    return x.chain(x.value.square(), x.value + x.value)


@rule("gt", "__gt__", "ge", "__ge__", "greater", "greater_equal")
def greater(x: Any, y: Any) -> Truth:
    """x > y; where the two may be equal, undecided: every caller's branches agree there."""
    difference = of(x).value - of(y).value
    return Truth(difference.low > 0, difference.high < 0)


@rule("where")
def where(condition: Any, yes: Any, no: Any) -> Enclosure:
    """A branch, or the hull of both."""
    yes, no = of(yes), of(no)
    if isinstance(condition, Tensor):
        condition = Truth(condition, ~condition)
    values, tangents = hull(yes.value, no.value), hull(yes.tangent, no.tangent)
    for sure, branch in ((condition.yes, yes), (condition.no, no)):
        values, tangents = choose(sure, branch.value, values), choose(sure, branch.tangent, tangents)
    return Enclosure(values, tangents)


@rule("relu")
def relu(x: Enclosure, inplace: bool = False) -> Enclosure:
    """max(x, 0)."""
    return where(greater(x, 0), x, exact(torch.zeros_like(x.value.mid)))


@rule("maximum")
def maximum(x: Any, y: Any) -> Enclosure:
    """The larger."""
    return where(greater(x, y), x, y)


@rule("minimum")
def minimum(x: Any, y: Any) -> Enclosure:
    """The smaller."""
    return where(greater(x, y), y, x)


@rule("clamp", "clip")
def clamp(x: Enclosure, min: Any = None, max: Any = None) -> Enclosure:
    """min(max(x, min), max); infinite ends are open."""
    for end, bound in ((min, maximum), (max, minimum)):
        if end is not None:
            ends = torch.as_tensor(end, dtype=torch.float64)
            finite = torch.isfinite(ends)
            bounded = bound(x, torch.where(finite, ends, 0.0))
            x = where(finite.expand(bounded.shape), bounded, x)
    return x


@rule("abs", "absolute", "__abs__")
def abs_(x: Enclosure) -> Enclosure:
    """|x|."""
    return where(greater(x, 0), x, -x)


@rule("sign")
def sign(x: Enclosure) -> Enclosure:
    """±1; unknown, with its derivative, where the sign is."""
    one = exact(torch.ones_like(x.value.mid))
    return where(greater(x, 0), one, where(greater(0, x), -one, mul(one, math.nan)))


def _moved(name: str) -> Callable[..., Enclosure]:
    def move(x: Enclosure, *args: Any, **kwargs: Any) -> Enclosure:
        return x.map(lambda t: getattr(t, name)(*args, **kwargs))

    return move


@rule("to", "double", "contiguous", "clone", "detach")
def same(x: Enclosure, *_: Any, **__: Any) -> Enclosure:
    """Copies: nothing else has a dtype or a device."""
    return x


@rule("rsub", "__rsub__")
def subtract_from(x: Any, y: Any) -> Enclosure:
    """y − x."""
    return add(y, -of(x))


@rule("__rtruediv__", "__rdiv__")
def divide_into(x: Any, y: Any) -> Enclosure:
    """y / x."""
    return div(y, x)


@rule("reciprocal")
def reciprocal(x: Enclosure) -> Enclosure:
    """1/x."""
    return div(1, x)


@rule("neg", "negative", "__neg__")
def negative(x: Enclosure) -> Enclosure:
    """−x."""
    return -x


@rule("lt", "__lt__", "le", "__le__", "less", "less_equal")
def less(x: Any, y: Any) -> Truth:
    """x < y."""
    return greater(y, x)


@rule("clamp_min")
def clamp_min(x: Enclosure, min: Any) -> Enclosure:
    """max(x, min)."""
    return clamp(x, min, None)


@rule("clamp_max")
def clamp_max(x: Enclosure, max: Any) -> Enclosure:
    """min(x, max)."""
    return clamp(x, None, max)


RULES.update(
    {
        name: _moved(name)
        for name in (
            *("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"),
            *("permute", "transpose", "expand", "expand_as", "movedim", "narrow", "select"),
        )
    }
)
