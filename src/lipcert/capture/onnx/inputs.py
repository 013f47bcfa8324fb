"""The inputs of a file: which vary, which are fixed at given values, and how one tensor holds all that vary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lipcert.capture.declared import Declared
from lipcert.capture.onnx.file import torch_type
from lipcert.capture.onnx.shapes import Reading, readings
from lipcert.errors import InputError

#: Shape of one example, or of one example of each input that varies.
Shapes = Sequence[int] | Mapping[str, Sequence[int]] | None


def declared(info: Any) -> Declared:
    """From a ValueInfoProto.

    Raises:
        InputError: it is no tensor.
        CaptureError: of an element type that is not read.
    """
    place = f"the ONNX input {info.name[:60]!r}"
    if not info.type.HasField("tensor_type"):
        raise InputError(f"{place} is a sequence, map or sparse tensor, not a tensor.")
    kind = info.type.tensor_type
    dims = list(kind.shape.dim) if kind.HasField("shape") else None
    shape = None if dims is None else tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in dims)
    axes = tuple(d.dim_param for d in dims or ())
    return Declared(info.name, torch_type(place, kind.elem_type), shape, axes)


@dataclass(frozen=True, eq=False)
class Feed:
    """One way to call a file with one tensor of ``batch`` examples.

    Attributes:
        parts: the inputs that vary, in the order in which they lie side by side, and how each is read.
        fixed: the others, with their values.
        batch: number of examples.
    """

    parts: Mapping[Declared, Reading]
    fixed: Mapping[Declared, Tensor]
    batch: int = 1

    @property
    def example(self) -> tuple[int, ...]:
        """Shape of one example: that of the one input, or the number of entries of all."""
        shapes = [reading.example for reading in self.parts.values()]
        return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)

    @property
    def dtype(self) -> torch.dtype:
        """That of the one tensor: in which all inputs are held exactly."""
        found = torch.bool
        for one in self.parts:
            found = torch.promote_types(found, one.dtype)
        return found

    @property
    def doubtful(self) -> str:
        """As of a reading."""
        return next((reading.doubtful for reading in self.parts.values() if reading.doubtful), "")

    @property
    def rows(self) -> int:
        """The length of the first axis of the input that is doubtful, else of the first."""
        found = next((r for r in self.parts.values() if r.doubtful), next(iter(self.parts.values())))
        return self._declared(found)[0]

    def open(self) -> bool:
        """Whether the first axis of an input that varies is read as the batch, and the file leaves its length open."""
        return any(_batched(reading) and not (one.shape or (None,))[0] for one, reading in self.parts.items())

    def pieces(self) -> Iterator[tuple[Declared, int, int, tuple[int, ...]]]:
        """Input, first and last entry in the flat example, and the shape in which the file takes it."""
        start = 0
        for one, reading in self.parts.items():
            stop = start + math.prod(reading.example)
            yield one, start, stop, self._declared(reading)
            start = stop

    def _declared(self, reading: Reading) -> tuple[int, ...]:
        return (self.batch, *reading.example) if _batched(reading) else reading.declared

    def arguments(self, x: Tensor) -> dict[str, Tensor]:
        """name → tensor for the inputs of the file, given (batch, *example)."""
        flat = x.reshape(self.batch, -1)
        found = {one.name: flat[:, a:b].reshape(shape).to(one.dtype) for one, a, b, shape in self.pieces()}
        return found | {one.name: value for one, value in self.fixed.items()}

    def repeated(self, count: int) -> Feed | None:
        """The same for ``count`` examples, each beside the same fixed values; None if an input has no batch axis."""
        if not all(_batched(reading) for reading in self.parts.values()):
            return None
        names = {one.axes[0] for one in self.parts if one.axes and one.axes[0]}
        fixed = {one: _repeated(one, value, names, count) for one, value in self.fixed.items()}
        return replace(self, fixed=fixed, batch=count)


def _batched(reading: Reading) -> bool:
    return reading.declared == (1, *reading.example)


def _repeated(one: Declared, value: Tensor, names: set[str], count: int) -> Tensor:
    """A fixed value along its batch axis: one of the name that the batch has, else the first of any length."""
    free = [k for k, n in enumerate(one.shape or ()) if not n and value.shape[k] == 1]
    named = [k for k in free if one.axes[k] in names] or [k for k in free if not one.axes[k] or not names]
    return value.repeat_interleave(count, dim=named[0]) if named else value


def feeds(
    inputs: Sequence[Declared], used: set[str], shapes: Shapes, wanted: Sequence[str] | None, given: Mapping[str, Any]
) -> list[Feed]:
    """The ways to call a file, the likelier first.

    Args:
        inputs: of the file.
        used: names of those that the output is made from.
        shapes: of one example, without batch dimension.
        wanted: names of those that vary, in order; None: all of floating numbers that have axes and no value.
        given: values of those that do not.

    Raises:
        InputError: no such input, one of whole numbers that would vary, a value that is missing or does not fit, or
            shapes that are not known.
    """
    names = [one.name for one in inputs]
    listed = ", ".join(str(one) for one in inputs[:8])
    for name in (*given, *(wanted or ()), *(shapes if isinstance(shapes, Mapping) else ())):
        if name not in names:
            raise InputError(f"the ONNX file has no input {name!r:.80}; it has {listed or 'none'}.")
    if wanted is not None and (len(set(wanted)) < len(wanted) or set(wanted) & set(given)):
        raise InputError(f"wrt={list(wanted)!r}: an input is named twice, or has a value and cannot vary.")
    if wanted is None:
        needed = [one for one in inputs if one.name in used] or list(inputs)
        varied = [one for one in needed if one.name not in given and one.dtype.is_floating_point and one.shape != ()]
    else:
        varied = [next(one for one in inputs if one.name == name) for name in wanted]
    if not varied:
        raise _nothing_varies([one for one in inputs if one.name not in given] or list(inputs), bool(given))
    whole = next((one for one in varied if not one.dtype.is_floating_point), None)
    if whole is not None:
        raise _nothing_varies([whole], False)
    fixed = {one: one.filled(given[one.name]) for one in inputs if one.name in given}
    left = [one for one in inputs if one not in varied and one.name not in given and one.name in used]
    if left:
        raise InputError(
            f"the ONNX file also reads {', '.join(map(str, left[:8]))}: what does not vary needs a value. Give an "
            f"example of all inputs by name, {{{left[0].name[:60]!r}: …}}, load_onnx(path, fixed={{…}}), or --fix "
            f"{left[0].name[:60]}=VALUE on the command line."
        )
    ways = [readings(one.shape, _shape_for(one, shapes, len(varied))) for one in varied]
    return [
        Feed({one: found[min(place, len(found) - 1)] for one, found in zip(varied, ways, strict=True)}, fixed)
        for place in range(max(map(len, ways)))
    ]


def _shape_for(one: Declared, shapes: Shapes, count: int) -> Sequence[int] | None:
    if shapes is None or isinstance(shapes, Mapping):
        return None if shapes is None else shapes.get(one.name)
    if count > 1:
        raise InputError(
            f"{count} inputs of the ONNX file vary, {one} is one of them, and one example or input_shape is given: "
            f"give one for each by name, {{{one.name[:60]!r}: …}} (--input-shape '{one.name[:60]}=3,4;…' on the "
            "command line), or name the one that varies, wrt=…, and give values of the others."
        )
    return shapes


def _nothing_varies(inputs: Sequence[Declared], given: bool) -> InputError:
    if not inputs:
        return InputError("the ONNX file has no inputs; it is a constant.")
    if given or inputs[0].dtype.is_floating_point:
        return InputError(
            f"nothing varies: {', '.join(map(str, inputs[:8]))}; a Lipschitz constant needs an input of floating "
            "numbers with at least one axis that is not fixed."
        )
    kind = str(inputs[0].dtype).removeprefix("torch.")
    return InputError(
        f"the ONNX input {inputs[0].name[:60]!r} holds {kind} numbers; a Lipschitz constant needs a floating-point "
        "input. Name a value behind the conversion, or behind the embedding of token ids, which is then the input: "
        "wrt=…, --wrt on the command line."
    )
