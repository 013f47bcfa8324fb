"""Inputs and labels: what they must be, in pieces that fit in memory, and the hash that names them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lipcert.domain import require_real
from lipcert.errors import InputError

#: Entries that are looked at together.
_CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class Examples:
    """N inputs with their labels.

    Attributes:
        inputs: (N, *shape) of real numbers, as they were given; they may lie in a file that is mapped into memory.
        labels: (N,) classes.
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, inputs: Any, labels: Any) -> Examples:
        """From tensors, arrays or lists.

        Raises:
            InputError: no numbers, NaN, labels that are no whole numbers, or not as many as inputs.
        """
        held = _inputs(inputs)
        numbers = _labels(labels)
        if len(numbers) != len(held):
            hint = "" if held.ndim > 1 and len(numbers) != 1 else " One example needs a leading axis of 1."
            raise InputError(f"{len(held)} inputs (shape {held.shape}) and {len(numbers)} labels do not match.{hint}")
        found = cls(held, numbers)
        found._require_finite()
        return found

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self.inputs.shape[1:])

    def batch(self, indices: Sequence[int]) -> npt.NDArray[np.float64]:
        """Some of the inputs, exactly, as float64: (B, *shape)."""
        return np.ascontiguousarray(self.inputs[list(indices)], dtype=np.float64)

    def example(self) -> Tensor:
        """A batch of one, floating, as models are captured with."""
        first = torch.from_numpy(np.array(self.inputs[:1], dtype=self.inputs.dtype.newbyteorder("=")))
        return first if first.is_floating_point() else first.float()

    def require_classes(self, count: int) -> None:
        """Raise unless every label is one of ``count`` classes."""
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= count))
        if len(wrong):
            shift = (
                " Labels that begin at 1 need labels - 1." if self.labels.max() == count and self.labels.min() else ""
            )
            raise InputError(
                f"labels[{wrong[0]}] is {self.labels[wrong[0]]}, but the model has {count} outputs, classes 0 to "
                f"{count - 1} ({len(wrong)} of {len(self)} labels are out of range).{shift}"
            )

    def require_within(self, clip: tuple[float, float]) -> None:
        """Raise unless every entry lies in ``clip``."""
        low, high = (np.array([end]) for end in clip)  # as arrays: float32 entries are compared in float64
        for start, part in self._parts():
            outside = (part < low) | (part > high)
            if outside.any():
                place = tuple(int(i) for i in np.argwhere(outside)[0])
                value = float(part[place])
                hint = " The inputs seem to run from 0 to 255: divide them by 255." if self.in_bytes else ""
                raise InputError(
                    f"inputs[{start + place[0]}] holds {value:.9g} at {place[1:]}, outside clip=({clip[0]:g}, "
                    f"{clip[1]:g}): the unperturbed image would not count.{hint} Give clip=None, wider limits, or "
                    "clamped inputs."
                )

    @cached_property
    def span(self) -> tuple[float, float]:
        """The least and the greatest entry."""
        ends = [(float(part.min()), float(part.max())) for _, part in self._parts() if part.size]
        return min((e[0] for e in ends), default=0.0), max((e[1] for e in ends), default=0.0)

    @property
    def in_bytes(self) -> bool:
        """Whether the entries look like pixels from 0 to 255."""
        low, high = self.span
        return low >= 0.0 and 64.0 <= high <= 255.0

    @cached_property
    def sha256(self) -> str:
        """Of the numbers, whatever type holds them, and the labels."""
        digest = hashlib.sha256(repr((self.inputs.shape, len(self.labels))).encode())
        for _, part in self._parts():
            digest.update(np.ascontiguousarray(part, dtype="<f8").tobytes())
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        return digest.hexdigest()

    def _parts(self) -> list[tuple[int, npt.NDArray[Any]]]:
        each = max(1, _CHUNK // max(1, math.prod(self.shape)))
        return [(start, self.inputs[start : start + each]) for start in range(0, len(self.inputs), each)]

    def _require_finite(self) -> None:
        for start, part in self._parts():
            bad = ~np.isfinite(part)
            if bad.any():
                place = tuple(int(i) for i in np.argwhere(bad)[0])
                count = int(bad.reshape(len(part), -1).any(axis=1).sum())
                raise InputError(
                    f"inputs[{start + place[0]}] holds {part[place]} at {place[1:]} (so do {count} of "
                    f"{len(part)} inputs looked at); leave such examples out, with their labels."
                )


def _inputs(inputs: Any) -> npt.NDArray[Any]:
    if isinstance(inputs, Tensor):
        require_real("inputs", inputs, "shape (N, *shape of one example)")
        held = inputs.detach().to("cpu")
        array = (held.float() if held.dtype == torch.bfloat16 else held).numpy()
    else:
        array = _array("inputs", inputs)
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise InputError(f"inputs must hold real numbers, not {array.dtype}; convert them with .float().")
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size and np.abs(array).max() > 2**53:
        raise InputError("inputs hold whole numbers beyond 2^53, which float64 cannot: give floats, rounded by you.")
    if array.ndim < 2:
        raise InputError(
            f"inputs have shape {array.shape}; they need a leading axis for the examples, (N, *shape of one example)."
        )
    if not array.size:
        raise InputError(f"inputs have shape {array.shape}: there is nothing to certify.")
    return array


def _labels(labels: Any) -> npt.NDArray[np.int64]:
    if isinstance(labels, Tensor):
        require_real("labels", labels, "whole numbers, shape (N,)")
        held = labels.detach().to("cpu")
        array: npt.NDArray[Any] = (held.float() if held.dtype == torch.bfloat16 else held).numpy()
    else:
        array = _array("labels", labels)
    if array.ndim == 2 and array.shape[1] > 1:
        raise InputError(
            f"labels have shape {array.shape}; give one class per example, (N,): one-hot rows or scores become classes "
            "by labels.argmax(1)."
        )
    if array.ndim != 1:
        raise InputError(f"labels have shape {array.shape}; give one class per example, (N,).")
    if array.dtype.kind not in "iu":
        how = "convert them with labels.long()" if array.dtype.kind in "fb" else "give the number of each class"
        raise InputError(f"labels must be whole numbers (int64), not {array.dtype}: {how}.")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() > 2**62:
        raise InputError("labels hold whole numbers beyond 2^62: these are no classes.")
    return array.astype(np.int64)


def _array(what: str, value: Any) -> npt.NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    try:
        tensors = isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value)
        array = torch.stack([v.detach().to("cpu") for v in value]).numpy() if tensors else np.asarray(value)
    except Exception as problem:
        raise InputError(f"{what} must be a tensor or an array: {problem}") from problem
    if array.dtype.kind == "O" or not array.ndim:
        raise InputError(f"{what} must be a tensor or an array of numbers, not {type(value).__name__}.")
    return array
