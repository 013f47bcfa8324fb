"""Domains: the whole space, balls, boxes, and the part of a ball that lies in a box."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lipcert.digits import at_least, at_most, given
from lipcert.errors import InputError

NORMS = (1.0, 2.0, math.inf)

Numbers = Tensor | npt.NDArray[Any] | Sequence[Any] | float
"""What a centre or an end may be given as; a single number stands for all coordinates."""

#: Whole numbers up to here, and not all beyond, are float64 numbers.
_WHOLE = 2**53
#: Halvings that find how far a point is to be moved towards a ball.
_HALVINGS = 32


def require_real(what: str, value: Any, shape: str = "one example's shape") -> None:
    """Raise InputError unless ``value`` is a dense real tensor that holds numbers."""
    if not isinstance(value, Tensor) or value.is_complex():
        raise InputError(f"{what} must be a real tensor of {shape}, not {type(value).__name__}.")
    if value.is_nested or value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        kind = "on the meta device" if value.device.type == "meta" else "sparse, nested or quantised"
        raise InputError(f"{what} is {kind}; it must be a plain dense tensor of {shape}.")
    if value.is_floating_point() and value.dtype.itemsize == 1:
        raise InputError(f"{what} has dtype {value.dtype}; convert it with .float() first.")


def exactly(what: str, value: Any) -> Tensor:
    """The same numbers as a float64 tensor of its own on the CPU, whatever holds them.

    Raises:
        InputError: not real numbers, truth values, or numbers that float64 cannot hold.
    """
    if isinstance(value, Tensor):
        require_real(what, value)
        with torch.inference_mode(False):
            held = value.detach().to("cpu").clone()
            if held.is_floating_point():
                return held.to(torch.float64)
        array = held.numpy()
    else:
        array = _array(what, value)
    if array.dtype == np.bool_:
        raise InputError(f"{what} holds truth values, not numbers; convert them if 0 and 1 are meant.")
    if array.dtype.kind in "iu" and bool(((array > _WHOLE) | (array < -_WHOLE)).any()):
        raise InputError(f"{what} holds whole numbers beyond 2^53, which float64 cannot: give floats, rounded by you.")
    with torch.inference_mode(False):
        return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def _array(what: str, value: Any) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
        entries = [] if isinstance(value, np.ndarray) else list(np.asarray(value, dtype=object).flat)
    except Exception as problem:
        raise InputError(f"{what} must be numbers, a tensor or an array of one example's shape: {problem}") from problem
    if any(isinstance(e, int) and not isinstance(e, bool) and abs(e) > _WHOLE for e in entries):
        raise InputError(f"{what} holds whole numbers beyond 2^53, which float64 cannot: give floats, rounded by you.")
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        name = f"an array of {array.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise InputError(
            f"{what} must be a real tensor, array or list of one example's shape, or a number, not {name}."
        )
    return array


def _single(value: Any) -> float:
    """A number as a float64; NaN for what is none, or none that float64 holds."""
    try:
        number = exactly("it", value)
    except InputError:
        return math.nan
    return float(number) if number.dim() == 0 else math.nan


def _fit(what: str, value: Tensor, shape: Sequence[int], whose: str) -> Tensor:
    """``value`` in ``shape``: a single number is repeated, a leading 1 may be missing."""
    shape = tuple(shape)
    if value.dim() == 0:
        return value.expand(shape).clone()
    if shape not in (tuple(value.shape), (1, *value.shape)):
        wanted = shape[1:] if shape[:1] == (1,) else shape
        several = value.dim() == len(shape) and tuple(value.shape[1:]) == wanted and shape[:1] == (1,)
        hint = " For many regions give a list of domains." if several else ""
        raise InputError(f"{what} has shape {tuple(value.shape)}, {whose} {wanted} (without batch).{hint}")
    return value.reshape(shape)


def _like(value: Tensor, x: Tensor) -> Tensor:
    """``value`` beside a batch (B, *shape)."""
    return value.to(x) if value.dim() == 0 else value.to(x).reshape(1, *x.shape[1:])


def _flat(x: Any, *others: Tensor) -> tuple[Tensor, ...]:
    """A point and what belongs to its coordinates, as float64 vectors."""
    held = x if isinstance(x, Tensor) and x.is_floating_point() else exactly("the point", x)
    point = held.detach().reshape(-1).to("cpu", torch.float64)
    if any(t.dim() and t.numel() != point.numel() for t in others):
        sizes = next(t.numel() for t in others if t.dim() and t.numel() != point.numel())
        raise InputError(f"the point has {point.numel()} coordinates, the domain has {sizes}.")
    return (point, *(t.reshape(-1).expand(point.numel()) for t in others))


def _count(value: Tensor) -> int:
    if value.dim() == 0:
        raise InputError("a domain that is given by single numbers has no dimension until it is fitted to a model.")
    return value.numel()


@dataclass(frozen=True, eq=False, init=False)
class Ball:
    """The closed l_p ball of ``radius`` around ``center``, one example.

    Attributes:
        center: a tensor, array or list of one example's shape (a batch of one will do), or one number for all
            coordinates. Kept as float64 on the CPU; what float64 cannot hold is refused.
        radius: a finite number ≥ 0.
        p: 1, 2 or inf.

    Raises:
        InputError: any of these is something else.
    """

    center: Tensor
    radius: float
    p: float

    def __init__(self, center: Numbers, radius: float, p: float = math.inf) -> None:
        held, length, order = exactly("the centre of a ball", center), _single(radius), _single(p)
        if not 0 <= length <= sys.float_info.max:
            raise InputError(f"a ball needs a finite radius ≥ 0, a number that float64 holds, not {radius!r:.60}.")
        if order not in NORMS:
            raise InputError(f"a ball needs p in {{1, 2, inf}}, not {p!r:.60}.")
        if not bool(torch.isfinite(held).all()):
            raise InputError("the centre of a ball holds NaN or infinity.")
        for name, value in (("center", held), ("radius", length), ("p", order)):
            object.__setattr__(self, name, value)

    def describe(self) -> str:
        """Short text for reports."""
        return f"l{self.p:g} ball of radius {given(self.radius, 6, at_least)}"

    def fitted(self, shape: Sequence[int]) -> Ball:
        """The same ball with a centre of ``shape``, a network's ``in_shape``; InputError if it has another."""
        return Ball(
            _fit("the centre of the ball", self.center, shape, "one example of the model's input has"),
            self.radius,
            self.p,
        )

    def project(self, x: Tensor) -> Tensor:
        """Map a batch (B, *shape) into the ball (the nearest point for p = 2 and ∞; a scaling for p = 1)."""
        center = _like(self.center, x)
        offset = x - center
        limits = torch.finfo(x.dtype)
        radius = min(self.radius, limits.max)
        if self.p == math.inf:
            return center + offset.clamp(-radius, radius)
        flat = offset.reshape(len(x), -1)
        length = flat.norm(p=self.p, dim=1).clamp(min=limits.tiny)
        shrink = (radius / length).clamp(max=1.0) * (1.0 - 1e-12)
        return center + offset * shrink.reshape(-1, *([1] * (x.dim() - 1)))

    def contains(self, x: Tensor) -> bool:
        """Whether one point lies in the ball, decided in exact arithmetic where floats leave a doubt."""
        x, center = _flat(x, self.center)
        if torch.equal(x, center):
            return True
        distance = float((x - center).norm(p=self.p))
        slack = 1e-15 * (4.0 + math.sqrt(x.numel()) + x.numel())  # of a sum in any order, with room
        if math.isfinite(distance) and 1e-100 < distance < 1e100 and slack < 0.5:
            if distance * (1.0 + slack) <= self.radius:
                return True
            if distance * (1.0 - slack) > self.radius:
                return False
        if not bool(torch.isfinite(x).all()):
            return False
        gaps = [abs(Fraction(a) - Fraction(b)) for a, b in zip(x.tolist(), center.tolist(), strict=True) if a != b]
        if self.p == 2:
            return sum(g * g for g in gaps) <= Fraction(self.radius) ** 2
        return (sum(gaps) if self.p == 1 else max(gaps, default=Fraction(0))) <= Fraction(self.radius)

    def home(self) -> Tensor:
        """A point that lies in the ball."""
        return self.center

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of a box around the ball, float64: centre ∓ radius, rounded outward where inexact."""
        return -_sum_up(-self.center, self.radius), _sum_up(self.center, self.radius)

    def balls(self) -> tuple[Ball, ...]:
        """Balls that the domain is a part of."""
        return (self,)

    def movable(self) -> Tensor:
        """Truth per coordinate: e_i is a direction of the ball's affine hull."""
        return torch.full_like(self.center, self.radius > 0, dtype=torch.bool)

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return _count(self.center)


def _sum_up(a: Tensor, b: float) -> Tensor:
    """a + b rounded up, and not at all where it is exact.

    Why it is an upper bound: the error of a rounded sum is a float64 number that Knuth's six operations find exactly
    unless one of them overflows, and then they give NaN or infinity; only where they show no error above 0 is the
    rounded sum returned as it is, and else the next number, which is not below a + b.
    """
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    return torch.where(error <= 0, total, torch.nextafter(total, torch.full_like(total, math.inf)))


@dataclass(frozen=True, eq=False, init=False)
class Box:
    """All x with ``lower`` ≤ x ≤ ``upper`` entry by entry, one example each.

    Attributes:
        lower, upper: tensors, arrays or lists of one example's shape (a batch of one will do), or one number for all
            coordinates; -inf and inf leave a side open. Kept as float64 on the CPU; what that cannot hold is refused.

    Raises:
        InputError: something else, two shapes, or no point between the ends.
    """

    lower: Tensor
    upper: Tensor

    def __init__(self, lower: Numbers, upper: Numbers) -> None:
        low, high = exactly("the lower end of a box", lower), exactly("the upper end of a box", upper)
        low, high = (a.expand(b.shape).clone() if a.dim() == 0 else a for a, b in ((low, high), (high, low)))
        if low.shape != high.shape:
            raise InputError(
                f"a box needs lower and upper of one shape, not {tuple(low.shape)} and {tuple(high.shape)}."
            )
        if bool((torch.isnan(low) | torch.isnan(high)).any()):
            raise InputError("an end of a box holds NaN; -inf and inf leave a side open.")
        empty = ~((low <= high) & (low < math.inf) & (high > -math.inf))
        if bool(empty.any()):
            place = tuple(torch.nonzero(empty)[0].tolist())
            raise InputError(
                "a box needs lower ≤ upper everywhere, and a finite number between them: "
                f"lower is {float(low[place]):g} and upper {float(high[place]):g}"
                + (f" at {', '.join(map(str, place))}." if place else ".")
            )
        object.__setattr__(self, "lower", low)
        object.__setattr__(self, "upper", high)

    def describe(self) -> str:
        """Short text for reports."""
        ends = [(float(t.min()), float(t.max())) for t in (self.lower, self.upper) if t.numel()]
        if not ends or any(a != b for a, b in ends):
            return "box"
        return f"box [{given(ends[0][0], 6, at_most)}, {given(ends[1][0], 6, at_least)}]"

    def fitted(self, shape: Sequence[int]) -> Box:
        """The same box with ends of ``shape``, a network's ``in_shape``; InputError if they have another."""
        return self._fitted(shape, "one example of the model's input has")

    def _fitted(self, shape: Sequence[int], whose: str) -> Box:
        return Box(*(_fit("the box", end, shape, whose) for end in (self.lower, self.upper)))

    def project(self, x: Tensor) -> Tensor:
        """Clamp a batch (B, *shape) into the box."""
        return torch.minimum(torch.maximum(x, _like(self.lower, x)), _like(self.upper, x))

    def contains(self, x: Tensor) -> bool:
        """Whether one point lies in the box."""
        flat, lower, upper = _flat(x, self.lower, self.upper)
        return bool((torch.isfinite(flat) & (flat >= lower) & (flat <= upper)).all())

    def home(self) -> Tensor:
        """A point that lies in the box: the one next to 0."""
        return torch.zeros_like(self.lower).clamp(self.lower, self.upper)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, float64."""
        return self.lower, self.upper

    def balls(self) -> tuple[Ball, ...]:
        """Balls that the domain is a part of: none is known."""
        return ()

    def movable(self) -> Tensor:
        """Truth per coordinate: e_i is a direction of the box's affine hull."""
        return self.lower < self.upper

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return _count(self.lower)


@dataclass(frozen=True, eq=False)
class Intersection:
    """What lies in a ball and in a box, for instance the images near one whose pixels stay in [0, 1].

    Raises:
        InputError: their shapes differ, or they have no point in common.
    """

    ball: Ball
    box: Box

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Ball) or not isinstance(self.box, Box):
            kinds = f"{type(self.ball).__name__} and {type(self.box).__name__}"
            raise InputError(f"an intersection is of a lipcert.Ball and a lipcert.Box, in this order, not of {kinds}.")
        if self.ball.center.dim():
            box = self.box._fitted(self.ball.center.shape, "the centre of the ball has")
            object.__setattr__(self, "box", box)
        elif self.box.lower.dim():
            object.__setattr__(self, "ball", self.ball.fitted(self.box.lower.shape))
        if not self.ball.contains(self.home()):
            distance = float((self.home() - self.ball.center).reshape(-1).norm(p=self.ball.p))
            raise InputError(
                f"the {self.ball.describe()} and the {self.box.describe()} have no point in common: the box begins "
                f"{distance:g} away from the centre."
            )

    def describe(self) -> str:
        """Short text for reports."""
        return f"{self.ball.describe()} within the {self.box.describe()}"

    def fitted(self, shape: Sequence[int]) -> Intersection:
        """The same domain in ``shape``, a network's ``in_shape``; InputError if it has another."""
        return Intersection(self.ball.fitted(shape), self.box.fitted(shape))

    def project(self, x: Tensor) -> Tensor:
        """Map a batch (B, *shape) into both (the nearest point for p = 2 and ∞).

        The nearest point of an l2 ball within a box is clamp(x + t(c − x)) with the least t in [0, 1] that leads into
        the ball (its multiplier is t/(1 − t)); towards clamp(c) no coordinate's distance from c grows, so this t leads
        into every ball.
        """
        center, ball = _like(self.ball.center, x), self.ball
        if ball.p == math.inf:
            return self.box.project(ball.project(x))
        radius = min(ball.radius, torch.finfo(x.dtype).max) * (1.0 - 1e-12)
        shape = (-1, *([1] * (x.dim() - 1)))

        def moved(t: Tensor) -> Tensor:
            return self.box.project(x + t.reshape(shape) * (center - x))

        def within(t: Tensor) -> Tensor:
            return (moved(t) - center).reshape(len(x), -1).norm(p=ball.p, dim=1) <= radius

        low = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        high = torch.where(within(low), low, torch.ones_like(low))
        if bool(high.any()):
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                found = within(middle)
                low, high = torch.where(found, low, middle), torch.where(found, middle, high)
        return moved(high)

    def contains(self, x: Tensor) -> bool:
        """Whether one point lies in both, decided exactly."""
        return self.box.contains(x) and self.ball.contains(x)

    def home(self) -> Tensor:
        """A point that lies in both: of the box the one next to the centre, in every norm."""
        return self.ball.center.clamp(self.box.lower, self.box.upper)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of a box around the domain, float64: the tighter of the ball's and the box's."""
        lower, upper = self.ball.bounds()
        return torch.maximum(lower, self.box.lower), torch.minimum(upper, self.box.upper)

    def balls(self) -> tuple[Ball, ...]:
        """Balls that the domain is a part of."""
        return (self.ball,)

    def movable(self) -> Tensor:
        """Truth per coordinate, and only where it is sure: e_i is a direction of the domain's affine hull.

        If a point of the box lies in the ball's inside, so does what surrounds it in the box, and both have the box's
        hull. Else, for p = 1 and 2, the domain is one point, the box's only nearest one to the centre. For p = ∞ it is
        a box, with sides of any length where lower − c < r and c − upper < r; a rounded difference below r is below r.
        """
        ball, box = self.ball, self.box
        if ball.p == math.inf:
            near = (box.lower - ball.center < ball.radius) & (ball.center - box.upper < ball.radius)
            return box.movable() & near & (ball.radius > 0)
        smaller = math.nextafter(ball.radius, 0.0)
        inside = ball.radius > 0 and Ball(ball.center, smaller, ball.p).contains(self.home())
        return box.movable() & inside

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return self.ball.dimension


Domain = Ball | Box | Intersection | None
