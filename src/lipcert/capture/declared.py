"""What a file may be given for one of its inputs, and a value that a user gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert.capture.onnx.limits import ENTRIES, shown
from lipcert.errors import InputError


@dataclass(frozen=True)
class Declared:
    """A value that the file may be given, as the file declares it.

    Attributes:
        name, dtype: of it.
        shape: None for axes of any length; None if the file does not say.
        axes: the names of its axes, "" where it has none.
        kind: of the file, for messages.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...] | None
    axes: tuple[str, ...] = ()
    kind: str = "ONNX"

    def __str__(self) -> str:
        dims = "?" if self.shape is None else "×".join("?" if n is None else str(n) for n in self.shape)
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.name[:60]!r} ({kind}, {dims or 'a number'})"

    def filled(self, value: Any) -> Tensor:
        """What an input is fixed at: a tensor or array of the file's shape, or one number for all its entries.

        Raises:
            InputError: it does not fit, or is no number of the input's type.
        """
        place = f"the value given for the {self.kind} input {self}"
        given = _dense(place, value)
        if given.dim() and self.shape is not None and not _fits(self.shape, given.shape):
            raise InputError(f"{place} has shape {shown(given.shape)}: give it in the shape that the file takes.")
        held = given.to(self.dtype)
        if self.dtype.is_floating_point:
            kept = not bool(given.isnan().any()) and bool((held.isfinite() | ~given.isfinite()).all())
        else:
            kept = bool(given.isfinite().all()) and torch.equal(held.to(given.dtype), given)
        if not kept:
            raise InputError(f"{place} is not a number of that type.")
        return self._everywhere(held, place) if not given.dim() and self.shape != () else held

    def _everywhere(self, number: Tensor, place: str) -> Tensor:
        """One number in every entry; a first axis of any length is a batch of one."""
        shape = [1 if k == 0 and not n else n for k, n in enumerate(self.shape or ())]
        if self.shape is None or not all(shape):
            raise InputError(
                f"{place} is one number, and the file does not say the length of each axis: give the whole array, on "
                "the command line a .npy file, or the number with the shape, as 0:2,1,128."
            )
        sizes = [int(n) for n in shape if n is not None]
        if math.prod(sizes) > ENTRIES:
            raise InputError(f"{place} would have more than {ENTRIES} entries.")
        return number.expand(sizes).clone()


def _fits(declared: Sequence[int | None], shape: Sequence[int]) -> bool:
    pairs = zip(declared, shape, strict=False)
    return len(declared) == len(shape) and all(n in (None, 0, m) for n, m in pairs)


def _dense(place: str, value: Any) -> Tensor:
    """A number, array or tensor of real numbers as a dense tensor."""
    if isinstance(value, Tensor):
        given = value.detach().cpu()
    elif isinstance(value, (bool, int, float, np.ndarray, np.generic, list)):
        try:
            array = np.asarray(value)
        except ValueError as problem:
            raise InputError(f"{place} is no array: {str(problem)[:200]}.") from problem
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise InputError(f"{place} is no array of real numbers.")
        if array.size > ENTRIES:
            raise InputError(f"{place} has more than {ENTRIES} entries.")
        given = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    else:
        raise InputError(f"{place} is a {type(value).__name__}; give a number, an array or a tensor.")
    if given.is_complex() or given.is_quantized or given.layout != torch.strided:
        raise InputError(f"{place} is no dense tensor of real numbers.")
    return given
