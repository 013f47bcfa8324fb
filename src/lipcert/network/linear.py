"""The algebra of linear maps: given as code, applied in batches, materialised only when asked.

Shapes are those of *one example as the captured graph sees it*, leading batch dimension of 1 included;
``apply`` and ``transpose`` put a further batch dimension in front.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lipcert.network.hashing import update_hash_with_tensor

if TYPE_CHECKING:
    from lipcert.network.source import Source

Shape = tuple[int, ...]

#: Number of entries of a chunk of columns when a map is materialised.
_CHUNK_ENTRIES = 1 << 24


def size(shape: Shape) -> int:
    """Number of scalars in ``shape``."""
    return math.prod(shape)


class LinearMap(ABC):
    """A real linear map from tensors of ``in_shape`` to tensors of ``out_shape``.

    ``rounding`` is a count k with the meaning: applying the map (or its transpose) in IEEE arithmetic of unit
    roundoff u differs from the exact map W by a matrix of entries at most ``gamma_k |W|``, where |W| is the
    exact map of ``absolute()`` and ``gamma_k = k u / (1 - k u)``. It is ``inf`` when nothing is known.
    """

    in_shape: Shape
    out_shape: Shape
    rounding: float

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Image of a batch: (B, *in_shape) → (B, *out_shape)."""

    def transpose(self, y: Tensor) -> Tensor:
        """Image under the transposed map (vector–Jacobian product): (B, *out_shape) → (B, *in_shape)."""
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.in_shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (gradient,) = torch.autograd.grad(self.apply(x), x, y)
        return gradient

    def gram(self, x: Tensor) -> Tensor:
        """``WᵀW`` on a batch, by one forward and one backward pass: (B, *in_shape) → (B, *in_shape)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            image = self.apply(x)
            (gradient,) = torch.autograd.grad(image, x, image.detach())
        return gradient

    @abstractmethod
    def absolute(self) -> LinearMap:
        """A map with non-negative entries, each at least the absolute value of this map's entry."""

    @abstractmethod
    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearMap:
        """The same map with its constants in another dtype and on another device."""

    @abstractmethod
    def leaves(self) -> Sequence[LinearMap]:
        """The elementary maps this one is made of, in order of application."""

    @abstractmethod
    def update_hash(self, digest: Any) -> None:
        """Feed everything that determines the map to a hashlib object."""

    @property
    def in_size(self) -> int:
        """Number of input scalars."""
        return size(self.in_shape)

    @property
    def out_size(self) -> int:
        """Number of output scalars."""
        return size(self.out_shape)

    @property
    def is_zero(self) -> bool:
        """Whether the map is exactly zero as it is stored: an empty side, or constants that are zero without error.

        A map whose constants were only *computed* as zero is none.
        """
        return self.in_size == 0 or self.out_size == 0

    def matrix(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """The dense (out_size, in_size) matrix, column by column (or row by row when that is shorter)."""
        here = self.to(dtype, device)
        n, m = self.in_size, self.out_size
        result = torch.empty(m, n, dtype=dtype, device=device)
        by_rows = m < n
        short, shape = (m, self.out_shape) if by_rows else (n, self.in_shape)
        chunk = max(1, min(short, _CHUNK_ENTRIES // max(1, max(n, m))))
        for start in range(0, short, chunk):
            stop = min(short, start + chunk)
            units = torch.zeros(stop - start, short, dtype=dtype, device=device)
            units[torch.arange(stop - start), torch.arange(start, stop)] = 1
            units = units.reshape(stop - start, *shape)
            if by_rows:
                result[start:stop] = here.transpose(units).reshape(stop - start, n)
            else:
                with torch.no_grad():
                    result[:, start:stop] = here.apply(units).reshape(stop - start, m).T
        return result


@dataclass(frozen=True, eq=False)
class OpMap(LinearMap):
    """A linear operation given as code: ``function(x, *constants)`` on one example of shape ``in_shape``.

    ``function`` is linear in x and in each constant, closes over nothing that carries a dtype or a device, and
    dominates itself in absolute value: ``function(x, *|constants|)`` has non-negative entries ≥ those of |W|.
    ``attributes`` says what the map is, whatever op it was called as: together with shapes and constants it determines
    the map. ``rounding`` counts the roundings of applying it and those of the constants themselves, relative to
    ``majorants`` (one per constant, None for its own absolute value). ``stored`` says that the constants are the
    model's own, without error: ``rounding`` then counts the terms of the longest sum and nothing else. ``sources`` are
    those of the constants, as far as they are known. ``transposed(y, *constants)``, on a batch, is the transposed map
    in sums no longer than those counted; None: the derivative of ``function``, which costs a pass forward, too.
    ``written(*constants)`` is the map's matrix, every entry of it one of a constant or zero; None: by passes.
    """

    label: str
    function: Callable[..., Tensor]
    in_shape: Shape
    out_shape: Shape
    constants: tuple[Tensor, ...]
    attributes: str
    rounding: float
    stored: bool = False
    majorants: tuple[Tensor | None, ...] = ()
    sources: tuple[Source | None, ...] = ()
    transposed: Callable[..., Tensor] | None = None
    written: Callable[..., Tensor] | None = None

    def matrix(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        if self.written is None:
            return super().matrix(dtype, device)
        with torch.no_grad():
            return self.written(*(c.to(dtype=dtype, device=device) for c in self.constants))

    def transpose(self, y: Tensor) -> Tensor:
        if not y.numel() or not self.in_size:
            return y.new_zeros(len(y), *self.in_shape)
        if self.transposed is None:
            return super().transpose(y)
        with torch.no_grad():
            return self.transposed(y, *self.constants)

    def apply(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):  # numbers of another kind know how they pass through a map
            return x.through(self)
        return torch.vmap(lambda example: self.function(example, *self.constants))(x)

    @property
    def relative(self) -> bool:
        """Whether the errors of the constants are known and relative to their own entries: their signs are certain."""
        return math.isfinite(self.rounding) and all(m is None for m in self.majorants)

    @property
    def is_zero(self) -> bool:
        """Whether a constant is zero without any error: the function is linear in each of them."""
        return super().is_zero or (math.isfinite(self.rounding) and any(not bool(m.any()) for m in self._sizes()))

    def _sizes(self) -> tuple[Tensor, ...]:
        majorants = self.majorants or (None,) * len(self.constants)
        return tuple(c.abs() if m is None else m for c, m in zip(self.constants, majorants, strict=True))

    def absolute(self) -> LinearMap:
        return replace(self, constants=self._sizes(), majorants=(), sources=()) if self.constants else self

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearMap:
        if not self.constants:
            return self
        return replace(
            self,
            constants=tuple(c.to(device=device, dtype=dtype) for c in self.constants),
            majorants=tuple(None if m is None else m.to(device=device, dtype=dtype) for m in self.majorants),
        )

    def leaves(self) -> Sequence[LinearMap]:
        return (self,)

    def update_hash(self, digest: Any) -> None:
        digest.update(repr(("op", self.attributes, self.in_shape, self.out_shape)).encode())
        for constant in self.constants:
            update_hash_with_tensor(digest, constant)


@dataclass(frozen=True, eq=False)
class Dense(LinearMap):
    """A linear map given by its (out_size, in_size) matrix.

    ``rounding`` counts the roundings of applying it and those of its entries, relative to ``majorant`` (None: to
    the absolute values of the matrix). ``stored`` and ``sources``: as for ``OpMap``.
    """

    constants: tuple[Tensor]
    in_shape: Shape
    out_shape: Shape
    rounding: float
    stored: bool = False
    majorant: Tensor | None = None
    sources: tuple[Source | None, ...] = ()

    def apply(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            return x.through(self)
        if len(self.in_shape) == 2 == len(self.out_shape) and self.in_shape[0] == 1 == self.out_shape[0]:
            return torch.nn.functional.linear(x, self.constants[0])
        return (x.reshape(len(x), self.in_size) @ self.constants[0].T).reshape(len(x), *self.out_shape)

    def transpose(self, y: Tensor) -> Tensor:
        return (y.reshape(len(y), self.out_size) @ self.constants[0]).reshape(len(y), *self.in_shape)

    def gram(self, x: Tensor) -> Tensor:
        return self.transpose(self.apply(x))

    def matrix(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        return self.constants[0].to(dtype=dtype, device=device)

    @property
    def relative(self) -> bool:
        """As for ``OpMap``."""
        return math.isfinite(self.rounding) and self.majorant is None

    @property
    def is_zero(self) -> bool:
        """Whether every entry is zero without any error."""
        return super().is_zero or (math.isfinite(self.rounding) and not bool(self._size().any()))

    def _size(self) -> Tensor:
        return self.constants[0].abs() if self.majorant is None else self.majorant

    def absolute(self) -> LinearMap:
        return replace(self, constants=(self._size(),), majorant=None, sources=())

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearMap:
        majorant = None if self.majorant is None else self.majorant.to(device=device, dtype=dtype)
        return replace(self, constants=(self.constants[0].to(device=device, dtype=dtype),), majorant=majorant)

    def leaves(self) -> Sequence[LinearMap]:
        return (self,)

    def update_hash(self, digest: Any) -> None:
        digest.update(repr(("dense", self.in_shape, self.out_shape)).encode())
        update_hash_with_tensor(digest, self.constants[0])


@dataclass(frozen=True, eq=False)
class Identity(LinearMap):
    """The identity, possibly times a number (``scale``, which came from ``source`` if that is known)."""

    in_shape: Shape
    scale: float = 1.0
    source: Source | None = None

    @property
    def out_shape(self) -> Shape:  # type: ignore[override]
        """The input's own shape."""
        return self.in_shape

    @property
    def rounding(self) -> float:  # type: ignore[override]
        """One product, or none at all."""
        return 0.0 if abs(self.scale) == 1.0 else 1.0

    @property
    def is_zero(self) -> bool:
        """Whether the scale is zero."""
        return super().is_zero or self.scale == 0.0

    def apply(self, x: Tensor) -> Tensor:
        return x if self.scale == 1.0 else x * self.scale

    def transpose(self, y: Tensor) -> Tensor:
        return self.apply(y)

    def gram(self, x: Tensor) -> Tensor:
        return self.apply(self.apply(x))  # the square itself may overflow, which Python raises

    def absolute(self) -> LinearMap:
        return Identity(self.in_shape, abs(self.scale))

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearMap:
        return self

    def leaves(self) -> Sequence[LinearMap]:
        return (self,)

    def update_hash(self, digest: Any) -> None:
        digest.update(repr(("identity", self.in_shape, self.scale)).encode())


@dataclass(frozen=True, eq=False)
class Composition(LinearMap):
    """Maps applied one after the other, the first of ``maps`` first."""

    maps: tuple[LinearMap, ...]

    @property
    def in_shape(self) -> Shape:  # type: ignore[override]
        """Shape the first map takes."""
        return self.maps[0].in_shape

    @property
    def out_shape(self) -> Shape:  # type: ignore[override]
        """Shape the last map returns."""
        return self.maps[-1].out_shape

    @property
    def rounding(self) -> float:  # type: ignore[override]
        """Relative errors of a product of non-negative maps add: gamma_j + gamma_k + gamma_j gamma_k ≤ gamma_{j+k}."""
        return sum(m.rounding for m in self.maps)

    @property
    def is_zero(self) -> bool:
        """Whether a factor is zero."""
        return super().is_zero or any(m.is_zero for m in self.maps)

    def apply(self, x: Tensor) -> Tensor:
        for linear in self.maps:
            x = linear.apply(x)
        return x

    def transpose(self, y: Tensor) -> Tensor:
        for linear in reversed(self.maps):
            y = linear.transpose(y)
        return y

    def matrix(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """The dense matrix; a factor at either end that is dense already supplies the rows or columns."""
        first, last = self.maps[0], self.maps[-1]
        if isinstance(last, Dense) and last.out_size <= self.in_size:
            rows, rest = last.matrix(dtype, device), compose(*self.maps[:-1]).to(dtype, device)
            chunk = max(1, _CHUNK_ENTRIES // max(1, self.in_size, last.in_size))
            images = [rest.transpose(r.reshape(-1, *last.in_shape)) for r in rows.split(chunk)]
            return torch.cat([i.reshape(-1, self.in_size) for i in images])
        if isinstance(first, Dense) and first.in_size <= self.out_size:
            columns, rest = first.matrix(dtype, device).T, compose(*self.maps[1:]).to(dtype, device)
            chunk = max(1, _CHUNK_ENTRIES // max(1, self.out_size, first.out_size))
            with torch.no_grad():
                images = [rest.apply(c.reshape(-1, *first.out_shape)) for c in columns.split(chunk)]
            return torch.cat([i.reshape(-1, self.out_size) for i in images]).T.contiguous()
        return super().matrix(dtype, device)

    def absolute(self) -> LinearMap:
        return Composition(tuple(m.absolute() for m in self.maps))

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearMap:
        return Composition(tuple(m.to(dtype, device) for m in self.maps))

    def leaves(self) -> Sequence[LinearMap]:
        return tuple(leaf for m in self.maps for leaf in m.leaves())

    def update_hash(self, digest: Any) -> None:
        digest.update(f"composition {len(self.maps)}".encode())
        for linear in self.maps:
            linear.update_hash(digest)


@dataclass(frozen=True, eq=False)
class Sum(LinearMap):
    """The sum of maps between the same shapes."""

    maps: tuple[LinearMap, ...]

    @property
    def in_shape(self) -> Shape:  # type: ignore[override]
        """Shape every map takes."""
        return self.maps[0].in_shape

    @property
    def out_shape(self) -> Shape:  # type: ignore[override]
        """Shape every map returns."""
        return self.maps[0].out_shape

    @property
    def rounding(self) -> float:  # type: ignore[override]
        """The worst map's count and one more for each addition."""
        return max(m.rounding for m in self.maps) + len(self.maps) - 1

    @property
    def is_zero(self) -> bool:
        """Whether every map is zero."""
        return super().is_zero or all(m.is_zero for m in self.maps)

    def apply(self, x: Tensor) -> Tensor:
        total = self.maps[0].apply(x)
        for linear in self.maps[1:]:
            total = total + linear.apply(x)
        return total

    def transpose(self, y: Tensor) -> Tensor:
        total = self.maps[0].transpose(y)
        for linear in self.maps[1:]:
            total = total + linear.transpose(y)
        return total

    def absolute(self) -> LinearMap:
        return Sum(tuple(m.absolute() for m in self.maps))

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearMap:
        return Sum(tuple(m.to(dtype, device) for m in self.maps))

    def leaves(self) -> Sequence[LinearMap]:
        return tuple(leaf for m in self.maps for leaf in m.leaves())

    def update_hash(self, digest: Any) -> None:
        digest.update(f"sum {len(self.maps)}".encode())
        for linear in self.maps:
            linear.update_hash(digest)


def compose(first: LinearMap, *others: LinearMap) -> LinearMap:
    """``first`` and then ``others``, in order; identities and nested compositions are flattened."""
    parts: list[LinearMap] = []
    for linear in (first, *others):
        pieces = linear.maps if isinstance(linear, Composition) else (linear,)
        parts.extend(p for p in pieces if not (isinstance(p, Identity) and p.scale == 1.0))
    if not parts:
        return Identity(first.in_shape)
    return parts[0] if len(parts) == 1 else Composition(tuple(parts))


def add(first: LinearMap, *others: LinearMap) -> LinearMap:
    """Sum of maps with the same shapes; nested sums are flattened."""
    parts: list[LinearMap] = []
    for linear in (first, *others):
        parts.extend(linear.maps if isinstance(linear, Sum) else (linear,))
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))
