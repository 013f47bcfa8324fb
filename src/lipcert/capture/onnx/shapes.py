"""How the input of a file is one example: which of its axes is the batch, and what dynamic axes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lipcert.errors import InputError


@dataclass(frozen=True)
class Reading:
    """One way to read the input of a file.

    Attributes:
        example: shape of one example; the module takes (1, *example).
        declared: shape of the input of the file.
        doubtful: why this is not the right one if the output has as many rows as the input; else empty.
    """

    example: tuple[int, ...]
    declared: tuple[int, ...]
    doubtful: str = ""


def readings(declared: Sequence[int | None] | None, shape: Sequence[int] | None) -> list[Reading]:
    """The ways to read an input, the likelier first.

    A leading axis of 1, or one without a fixed length, is the batch of one example. An input of another leading
    length has no batch axis, unless the output has as many rows.

    Args:
        declared: shape of the input in the file, None for dynamic axes; None if the file does not say.
        shape: of one example as the caller gives it; None takes the file's.

    Raises:
        InputError: there is none.
    """
    if declared is not None and any(n is not None and n < 1 for n in declared):
        declared = [None if n is not None and n < 1 else n for n in declared]  # 0 is how some exporters write dynamic
    if shape is not None:
        return _given(declared, tuple(int(n) for n in shape))
    if declared is None:
        raise InputError("the ONNX file does not say the shape of its input; give --input-shape (input_shape=).")
    if not declared:
        raise InputError("the ONNX input is a single number without axes; lipcert needs one of at least one axis.")
    rest = declared[1:] if len(declared) > 1 and declared[0] in (1, None) else declared
    if any(n is None for n in rest):
        text = ", ".join("?" if n is None else str(n) for n in declared)
        raise InputError(
            f"the ONNX input has shape ({text}) with dynamic axes; give --input-shape (input_shape=), the shape of one "
            "example without batch dimension."
        )
    fixed = tuple(int(n) for n in rest if n is not None)
    if rest is not declared:
        return [Reading(fixed, (1, *fixed))]
    doubt = "" if len(fixed) == 1 else (
        f"the ONNX input has the fixed shape {fixed}, and the output as many rows: it is a batch of {fixed[0]}. Export "
        f"it for a batch of 1 or a dynamic batch; if it is one example, say so: --input-shape "
        f"{','.join(map(str, fixed))} (input_shape=)."
    )  # fmt: skip
    return [Reading(fixed, fixed, doubt)]


def _given(declared: Sequence[int | None] | None, shape: tuple[int, ...]) -> list[Reading]:
    if not shape or min(shape) < 1:
        raise InputError(f"input_shape must be positive integers, not {shape}.")
    found = [
        Reading(shape, one) for one in ((1, *shape), shape) if declared is None or _fits(declared, one)
    ]  # fmt: skip
    if not found:
        text = ", ".join("?" if n is None else str(n) for n in declared or ())
        raise InputError(
            f"input_shape {shape} does not fit the ONNX input of shape ({text}), neither behind a batch axis of 1 nor "
            "as it is."
        )
    return found


def _fits(declared: Sequence[int | None], shape: tuple[int, ...]) -> bool:
    pairs = zip(declared, shape, strict=False)
    return len(declared) == len(shape) and all(n is None or n == m for n, m in pairs)
