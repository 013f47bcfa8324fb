"""The three kinds of nonlinear node: slope-restricted activations, gain-bounded blocks, selections."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lipcert.network.linear import Shape, update_hash_with_tensor

if TYPE_CHECKING:
    from lipcert.network.source import Source

Slope = float | Tensor


def _hash_parts(digest: Any, *parts: Any) -> None:
    for part in parts:
        if isinstance(part, Tensor):
            update_hash_with_tensor(digest, part)
        else:
            digest.update(repr(part).encode())


@dataclass(frozen=True)
class Kink:
    """A jump of the derivative by ``jump`` at ``position`` (floats, or tensors that broadcast to the node)."""

    position: Slope
    jump: Slope


@dataclass(frozen=True, eq=False)
class Nonlinearity:
    """An elementwise activation φ whose slopes (φ(a) − φ(b))/(a − b) all lie in [lower, upper].

    Attributes:
        name: the activation's usual name.
        function: ``function(x, *parameters)``, elementwise on (..., *shape).
        lower: least slope α, rounded down; a float, or a tensor that broadcasts to the node's shape.
        upper: greatest slope β, rounded up.
        kinks: where φ is not differentiable; empty for a smooth φ.
        parameters: tensors the function reads (PReLU's slopes).
        attributes: other settings, for the network's hash.
        sources: of the parameters, as far as they are known.
    """

    name: str
    function: Callable[..., Tensor]
    lower: Slope
    upper: Slope
    kinks: tuple[Kink, ...] = ()
    parameters: tuple[Tensor, ...] = ()
    attributes: str = ""
    sources: tuple[Source | None, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x), elementwise."""
        return self.function(x, *self.parameters)

    def smoothed(self, x: Tensor, sharpness: float) -> Tensor:
        """φ with every kink rounded off: relu(x − t) becomes softplus(x − t) of the given sharpness."""
        result = self(x)
        for kink in self.kinks:
            shifted = x - kink.position
            result = result + kink.jump * (softplus(shifted, beta=sharpness, threshold=30.0) - torch.relu(shifted))
        return result

    def slopes(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """(α, β) as float64 tensors of the node's shape."""
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

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Nonlinearity:
        """The same activation with its tensors moved."""

        def move(value: Any) -> Any:
            return value.to(device=device, dtype=dtype) if isinstance(value, Tensor) else value

        return replace(
            self,
            kinks=tuple(Kink(move(k.position), move(k.jump)) for k in self.kinks),
            parameters=tuple(move(p) for p in self.parameters),
        )

    def update_hash(self, digest: Any) -> None:
        """Feed name, settings, slopes and parameters to a hashlib object."""
        _hash_parts(digest, "activation", self.name, self.attributes, self.lower, self.upper, *self.parameters)


@dataclass(frozen=True, eq=False)
class GainFunction:
    """A block of which only ‖f(a) − f(b)‖_p ≤ g_p ‖a − b‖_p is known.

    Attributes:
        name: the operation's usual name.
        function: ``function(x, *parameters)`` on one example.
        gains: p → g_p for p in {1, 2, inf}, rounded up; a norm that is missing has no known gain.
        source: where the gains come from; shown in the breakdown.
        groups: number of equal trailing groups is not assumed; reserved for documentation.
    """

    name: str
    function: Callable[..., Tensor]
    gains: Mapping[float, float]
    source: str
    parameters: tuple[Tensor, ...] = ()
    attributes: str = ""

    @property
    def evaluation_error(self) -> float:
        """What underflow inside ``function`` may add to an entry of its value, beside relative roundings."""
        return 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """f on a batch (B, *in_shape)."""
        return torch.vmap(lambda example: self.function(example, *self.parameters))(x)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> GainFunction:
        """The same block with its tensors moved."""
        return replace(self, parameters=tuple(p.to(device=device, dtype=dtype) for p in self.parameters))

    def update_hash(self, digest: Any) -> None:
        """Feed name, settings, gains and parameters to a hashlib object."""
        gains = sorted(self.gains.items())
        _hash_parts(digest, "gain", self.name, self.attributes, gains, *self.parameters)


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
        count = torch.zeros(math.prod(self.in_shape), dtype=torch.int64)
        ordered = self.index.sort(dim=1).values
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        count += torch.bincount(ordered[fresh], minlength=count.numel())
        return int(count.max()) if count.numel() else 0

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
        """Feed the index table to a hashlib object."""
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
        """Feed the groups to a hashlib object."""
        _hash_parts(digest, "sort", self.in_shape, self.descending, self.index)


Selection = MaxSelection | SortSelection
