"""Ops that move, repeat or choose entries and round nothing: errors move with the entries."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcert.execution.float32 import FLUSH, to_float32
from lipcert.execution.outcome import Choice, Linear, Outcome
from lipcert.execution.registry import executed
from lipcert.execution.value import Call, Executed

#: Ops whose every entry is an entry of an operand.
_MOVES = (
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "swapaxes",
    "squeeze", "unsqueeze", "slice", "select", "expand", "clone", "contiguous", "alias", "detach", "cat", "stack",
    "split", "split_with_sizes", "chunk", "unbind", "unsafe_split", "index_select", "narrow", "repeat",
    "repeat_interleave", "tile", "roll", "flip", "tril", "triu", "diagonal", "dropout", "feature_dropout",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "unfold", "lift_fresh_copy", "hstack", "vstack", "concat", "concatenate", "mT", "numpy_T",
    "ravel", "expand_as", "view_as", "reshape_as", "type_as",
    "broadcast_to",
)  # fmt: skip


@executed(*_MOVES, "_to_copy", "to")
def _moved(call: Call) -> Any:
    """Errors move as the entries do."""
    return _as_moves(call)


def _as_moves(call: Call, **others: Any) -> Any:
    """An Outcome with one linear part for each operand; a tuple of them for an op of several results.

    The moves of constants are known: their errors are those of the results' own.
    """
    own = call.run(lambda v: torch.zeros_like(v.error) if v.varies else v.error, **others)
    several = isinstance(own, (list, tuple))

    def outcome(place: int | None) -> Outcome:
        def moves(operand: Executed) -> Linear:
            def apply(t: Tensor) -> Tensor:
                result = call.run(lambda v: t if v is operand else torch.zeros_like(v.error), **_silent(others))
                return result if place is None else result[place]

            return Linear(operand, apply, apply)

        return Outcome(own if place is None else own[place], tuple(moves(v) for v in call.varying))

    return tuple(outcome(place) for place in range(len(own))) if several else outcome(None)


def _silent(others: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(others, 0.0)


@executed("constant_pad_nd", "pad")
def _padded(call: Call) -> Any:
    """The constant is rounded to float32; other modes than ``constant`` move entries."""
    if call.get("mode", "constant") != "constant":
        return _as_moves(call)
    value = torch.tensor(float(call.get("value") or 0.0), dtype=torch.float64)
    return _as_moves(call, value=float((to_float32(value) - value).abs()) * (1.0 + 2.0**-50))


@executed(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "amax", "max", "amin", "min",
)  # fmt: skip
def _greatest(call: Call) -> Any:
    """The greatest (least) entry of each window; which one is known where the others stay below (above)."""
    if call.get("other") is not None:  # max(a, b)
        a, b = (call.refined(n) for n in ("self", "other"))
        return Outcome(torch.maximum(a.error, b.error) + FLUSH)
    (x,) = call.varying
    index, shape = call.windows, call.box.low.shape
    if call.op in ("amax", "max", "amin", "min") and index is None:
        index = _along(x.error.shape, call.get("dim"))
    if index is None or len(index) != call.box.low.numel():
        raise call.unsupported("which entries it compares is not known here")
    low, high = x.low.reshape(-1)[index], x.high.reshape(-1)[index]
    least = call.op in ("amin", "min")
    may = low <= high.amin(-1, keepdim=True) if least else high >= low.amax(-1, keepdim=True)
    return Outcome(torch.full(shape, FLUSH, dtype=torch.float64), (Choice(x, index, may),))


def _along(shape: torch.Size, dim: Any) -> Tensor:
    """Flat places along axes, one row for each place on the others."""
    axes = [dim] if isinstance(dim, int) else list(dim or range(len(shape)))
    axes = [a % len(shape) for a in axes]
    kept = [a for a in range(len(shape)) if a not in axes]
    places = torch.arange(math.prod(shape)).reshape(shape).permute(*kept, *axes)
    return places.reshape(math.prod(shape[a] for a in kept), -1)


@executed("getitem")
def _item(call: Call) -> Outcome:
    raise call.unsupported("it is a choice among results")  # the walk looks the result up itself


__all__: list[str] = []
