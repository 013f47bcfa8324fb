"""The three kinds of nonlinear node: slope-restricted activations, gain-bounded blocks, selections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lipcert.errors import MethodError
from lipcert.network.hashing import update_hash_with_tensor
from lipcert.network.linear import LinearMap, Shape

if TYPE_CHECKING:
    from lipcert.network.activations.profiles import Profile
    from lipcert.network.expansion import Expansion
    from lipcert.network.source import Source
    from lipcert.numerics.interval import Interval
    from lipcert.numerics.midrad import Range

Slope = float | Tensor


def _hash_parts(digest: Any, *parts: Any) -> None:
    for part in parts:
        if isinstance(part, Tensor):
            update_hash_with_tensor(digest, part)
        elif isinstance(part, LinearMap):
            part.update_hash(digest)
        else:
            # A number that stands for all numbers near it is another fact than the number itself.
            digest.update(repr((part, getattr(part, "radius", None))).encode())


@dataclass(frozen=True)
class Kink:
    """A jump of the derivative by ``jump`` at ``position`` (floats, or tensors that broadcast to the node)."""

    position: Slope
    jump: Slope


@dataclass(frozen=True, eq=False)
class Piece:
    """The derivative between two kinks: φ'(x) = factor · profile(rate · (x − shift)) for left < x < right.

    Every number is a float or a tensor, meant exactly, or a ``Near`` or ``Range``, which stand for any number in them.

    Attributes:
        profile: None for the constant 1.
    """

    left: Slope | Range = -math.inf
    right: Slope | Range = math.inf
    factor: Slope | Range = 1.0
    profile: Profile | None = None
    rate: Slope | Range = 1.0
    shift: Slope | Range = 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Fact:
    """What a node computes, as data: a class per kind, whose further fields are its settings.

    Value, hash, repr and matching follow from kind and settings; a name is for reports only.
    """

    #: Fields that are no settings.
    stated: ClassVar[tuple[str, ...]] = ("name",)

    name: str

    def value(self, x: Tensor) -> Tensor:
        """The function: of one example (a block) or elementwise (an activation)."""
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.stated}

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The settings that are tensors."""
        return tuple(value for value in self.settings.values() if isinstance(value, Tensor))

    def __repr__(self) -> str:
        shown = (
            f"{name}=<{tuple(value.shape)}>" if isinstance(value, Tensor) else f"{name}={value!r}"
            for name, value in self.settings.items()
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """The same with the tensors and maps among its settings moved."""
        moved: dict[str, Any] = {}
        for name, value in self.settings.items():
            if isinstance(value, (Tensor, LinearMap)):
                moved[name] = value.to(dtype=dtype, device=device)
        return replace(self, **moved)

    def update_hash(self, digest: Any) -> None:
        """Feed kind and settings to a hashlib object."""
        _hash_parts(digest, type(self).__name__)
        for name, value in self.settings.items():
            _hash_parts(digest, name, value)


@dataclass(frozen=True, eq=False, repr=False)
class Nonlinearity(Fact):
    """An elementwise activation φ.

    Kinks and the pieces of the derivative follow from kind and settings as well, and so do the slopes on any interval
    (``network/slopes.py``). A setting that is a tensor differs from entry to entry.

    Attributes:
        lower: least slope α of (φ(a) − φ(b))/(a − b), rounded down; a float, or a tensor that broadcasts to the node's
            shape.
        upper: greatest slope β, rounded up.
        sources: of the settings that are tensors, as far as they are known.
    """

    stated: ClassVar[tuple[str, ...]] = ("name", "lower", "upper", "sources")

    lower: Slope
    upper: Slope
    sources: tuple[Source | None, ...] = field(default=(), kw_only=True)

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x), elementwise on (..., *shape)."""
        return self.value(x)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The derivative between kinks, from left to right; together they cover the line."""
        raise NotImplementedError

    @property
    def curved(self) -> bool:
        """Whether φ is more than lines between kinks."""
        return any(piece.profile is not None for piece in self.pieces)

    def own_slopes(self, low: Tensor, high: Tensor, fine: bool) -> tuple[Tensor, Tensor] | None:
        """Slopes on intervals where they are not those of ``pieces``; ``fine``: as narrow as is reasonable."""
        return None

    def own_image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor] | None:
        """(least, greatest) value on intervals, if φ knows more than ends and slopes tell."""
        return None

    @property
    def kinks(self) -> tuple[Kink, ...]:
        """Where φ is not differentiable; empty for a smooth φ."""
        return ()

    @property
    def image(self) -> tuple[Slope, Slope]:
        """(least, greatest) value on the whole line, rounded outward; infinite where unbounded or not known."""
        return -math.inf, math.inf

    @property
    def valid(self) -> tuple[float, float]:
        """The interval outside of which φ is not defined; its ends may be poles."""
        return -math.inf, math.inf

    def defined(self, low: Tensor, high: Tensor) -> Tensor:
        """Where φ is defined, and continuous, all over (low, high)."""
        start, end = self.valid
        return (low >= start) & (high <= end)

    def any_slope(self) -> AnySlope:
        """An activation of which only the slopes are known: these."""
        return AnySlope(f"any slope of {self.name}", self.lower, self.upper)

    def smoothed(self, x: Tensor, sharpness: float) -> Tensor:
        """φ with every kink rounded off: relu(x − t) becomes softplus(x − t) of the given sharpness."""
        result = self(x)
        for kink in self.kinks:
            shifted = x - kink.position
            result = result + kink.jump * (softplus(shifted, beta=sharpness, threshold=30.0) - torch.relu(shifted))
        return result

    def slope_range(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """(α, β) on the whole line as float64 tensors of the node's shape; on intervals see ``network/slopes.py``."""
        bounds = (torch.as_tensor(s, dtype=torch.float64, device="cpu") for s in (self.lower, self.upper))
        low, high = (b.expand(shape) for b in bounds)
        return low, high

    @property
    def greatest_slope(self) -> float:
        """The largest |slope|: max(|α|, |β|) over all neurons (0 for an empty tensor)."""
        worst = 0.0
        for slope in (self.lower, self.upper):
            values = torch.as_tensor(slope, dtype=torch.float64)
            worst = max(worst, float(values.abs().max()) if values.numel() else 0.0)
        return worst

    def update_hash(self, digest: Any) -> None:
        """Feed kind, slopes and settings to a hashlib object."""
        _hash_parts(digest, "activation", self.lower, self.upper)
        super().update_hash(digest)


class AnySlope(Nonlinearity):
    """An activation given by its slopes alone: whoever looks at its values gets an error."""

    def value(self, x: Tensor) -> Tensor:
        """Nobody knows.

        Raises:
            MethodError: always.
        """
        raise MethodError(
            "a pair of SeqLip knows the slopes of its activation only; this pair solver asks for its values."
        )


@dataclass(frozen=True, eq=False, repr=False)
class GainFunction(Fact):
    """A block f of which only ‖f(a) − f(b)‖_p ≤ g_p ‖a − b‖_p is known; ``value`` is f on one example.

    Attributes:
        gains: p → g_p for p in {1, 2, inf}, rounded up; a norm that is missing has no known gain.
        source: where the gains come from; shown in the breakdown.
    """

    stated: ClassVar[tuple[str, ...]] = ("name", "gains", "source")

    #: Whether ``expansion`` may give more than the gains.
    smooth: ClassVar[bool] = False

    gains: Mapping[float, float]
    source: str

    def expansion(self, box: Interval, least: Tensor | None = None) -> Expansion | None:
        """What f is near the middle of a box; None where nothing better than the gains is known.

        Args:
            box: of the argument.
            least: what is known of the lengths of the groups of a normalisation; None: nothing.
        """
        return None

    def gains_on(self, box: Interval) -> Mapping[float, float]:
        """Gains between points of a box; any of the whole space will do."""
        return self.gains

    @property
    def image(self) -> tuple[Slope, Slope]:
        """(least, greatest) entry of any value, rounded outward; infinite where unbounded or not known."""
        return -math.inf, math.inf

    @property
    def probabilities(self) -> tuple[Literal["logsumexp", "log_softmax", "softmax"], tuple[int, ...]] | None:
        """Which function of probabilities p over some axes the block is, if it is one, and these axes.

        With p ∝ exp x over the entries that differ in the axes only, some of which may be left out: the gradient of
        the log-sum-exp is p, the log-softmax is x less the log-sum-exp, the softmax is p.
        """
        return None

    @property
    def length(self) -> tuple[int, ...] | None:
        """The axes that the block is the l2 norm over, if it is that."""
        return None

    def runs(self, shape: Shape) -> int:
        """Into how many equal runs entries are divided, each of a value of ``shape`` a function of one of the argument.

        The gain in l2 must hold run by run: see ``BlockCell.runs``.
        """
        return 1

    @property
    def evaluation_error(self) -> float:
        """What underflow inside the block may add to an entry of its value, beside relative roundings."""
        return 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """f on a batch (B, *in_shape)."""
        return torch.vmap(self.value)(x)

    def update_hash(self, digest: Any) -> None:
        """Feed kind, gains and settings to a hashlib object."""
        _hash_parts(digest, "gain", sorted(self.gains.items()))
        super().update_hash(digest)


@dataclass(frozen=True, eq=False)
class MaxSelection:
    """``y_o = max over k of x[index[o, k]]``: max-pool, max over a dimension, the larger of two tensors.

    ``index`` is an (out_size, K) integer tensor of flat input positions; a window that holds fewer than K
    entries repeats one of its own.

    Constants (product rule): |y_o − y'_o| ≤ max_k |δ_index[o,k]|, so an input that lies in m windows counts at most
    m times: l_∞ → l_∞ is 1, l_1 → l_1 is m, l_2 → l_2 is √m, with m the largest number of windows over one input
    (counted, hence right with any stride, padding and dilation).
    """

    name: str
    index: Tensor
    in_shape: Shape
    out_shape: Shape

    def __call__(self, x: Tensor) -> Tensor:
        """The selection on a batch: (B, *in_shape) → (B, *out_shape)."""
        gathered = x.reshape(len(x), -1)[:, self.index.to(x.device)]
        return gathered.amax(-1).reshape(len(x), *self.out_shape)

    @property
    def overlap(self) -> int:
        """m, the largest number of windows that share one input."""
        count = torch.bincount(self.index[self.first].cpu(), minlength=math.prod(self.in_shape))
        return int(count.max()) if count.numel() else 0

    @cached_property
    def first(self) -> Tensor:
        """(out_size, K) truth: no repetition of an earlier entry of the window."""
        ordered, order = self.index.sort(dim=1, stable=True)
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        return torch.zeros_like(fresh).scatter(1, order, fresh)

    def gain(self, p: float) -> float:
        """The constant l_p → l_p for p in {1, 2, inf}, rounded up."""
        if p == math.inf:
            return 1.0 if self.index.numel() else 0.0
        m = float(self.overlap)
        if p == 1:
            return m
        root = math.sqrt(m)
        return root if root * root == m else math.nextafter(root, math.inf)

    def update_hash(self, digest: Any) -> None:
        """Feed the index table, not the name, to a hashlib object."""
        _hash_parts(digest, "max", self.in_shape, self.out_shape, self.index)


@dataclass(frozen=True, eq=False)
class SortSelection:
    """Sort each group of entries: GroupSort, MaxMin, ``torch.sort``.

    ``index`` is a (groups, K) integer tensor of flat input positions, a partition of the input; the k-th smallest
    of a group goes to the group's k-th place (largest first if ``descending``). Sorting permutes increments of
    matched order, so its constant is 1 in every l_p (Anil, Lucas & Grosse 2019).
    """

    name: str
    index: Tensor
    in_shape: Shape
    descending: bool = False

    @property
    def out_shape(self) -> Shape:
        """Same as the input's."""
        return self.in_shape

    def __call__(self, x: Tensor) -> Tensor:
        """The sort on a batch: (B, *in_shape) → (B, *in_shape)."""
        index = self.index.to(x.device)
        flat = x.reshape(len(x), -1)
        ordered = flat[:, index].sort(dim=-1, descending=self.descending).values
        result = flat.clone()
        result[:, index.reshape(-1)] = ordered.reshape(len(x), -1)
        return result.reshape(x.shape)

    def gain(self, p: float) -> float:
        """1 in every norm."""
        return 1.0 if self.index.numel() else 0.0

    def update_hash(self, digest: Any) -> None:
        """Feed the groups, not the name, to a hashlib object."""
        _hash_parts(digest, "sort", self.in_shape, self.descending, self.index)


Selection = MaxSelection | SortSelection
