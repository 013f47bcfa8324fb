"""Ops that move, repeat or choose entries and round nothing: errors move with the entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipcert.execution.float32 import FLUSH, to_float32
from lipcert.execution.registry import executed
from lipcert.execution.value import Call, Executed

_MOVES = (
    "view reshape _unsafe_view flatten unflatten permute transpose t movedim swapaxes squeeze unsqueeze slice select "  # noqa: SIM905
    "expand clone contiguous alias detach cat stack split split_with_sizes chunk unbind unsafe_split index_select "
    "narrow repeat repeat_interleave tile roll flip tril triu diagonal dropout feature_dropout pixel_shuffle pixel_unshuffle "
    "channel_shuffle reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d unfold lift_fresh_copy hstack vstack "
    "concat concatenate mT numpy_T ravel"
).split()


def _error(value: Executed) -> Tensor:
    return value.error


@executed(*_MOVES)
def _moved(call: Call) -> Any:
    return call.run(_error)


@executed("_to_copy", "to")
def _copied(call: Call) -> Tensor:
    return call.operand("self").error


@executed("constant_pad_nd", "pad")
def _padded(call: Call) -> Tensor:
    """The constant is rounded to float32; other modes than ``constant`` move entries."""
    if call.get("mode", "constant") != "constant":
        return call.run(_error)
    value = torch.tensor(float(call.get("value") or 0.0), dtype=torch.float64)
    gap = float((to_float32(value) - value).abs()) * (1.0 + 2.0**-50)
    return call.run(_error, value=gap)


@executed("max_pool1d", "max_pool2d", "max_pool3d", "amax", "amin", "adaptive_max_pool1d", "adaptive_max_pool2d")
def _greatest(call: Call) -> Any:
    """Of the greatest of several entries: |max â − max a| ≤ max |â − a|."""
    if call.op == "amin":
        return torch.ops.aten.amax.default(call.operand("self").error, call.get("dim", []), call.get("keepdim", False))
    return call.run(lambda v: v.error + FLUSH)


@executed("getitem")
def _item(call: Call) -> Tensor:
    raise call.unsupported("it is a choice among results")  # the walk looks the result up itself


__all__: list[str] = []
