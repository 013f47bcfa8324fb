"""Padding: by a constant, or by reflection, replication and wrap-around as the linear maps they are."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipcert.network.builder import Var
from lipcert.network.source import Fixed
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context, number
from lipcert.ops.registry import rule
from lipcert.ops.terms import moved


@rule("pad", "constant_pad_nd", kind="linear")
def pad(ctx: Context, x: Any, widths: Any, mode: Any = "constant", value: Any = None) -> Var:
    """Padding: constant 1 with a constant; √(copies of an entry) in l2 for reflect, replicate, circular."""
    x = ctx.variable(x)
    if not isinstance(mode, str):
        mode, value = "constant", mode
    if mode != "constant":
        return moved(ctx, x, lambda v: torch.nn.functional.pad(v, widths, mode))
    fill = 0.0 if value is None else number(value)
    offset = None
    if fill:
        if not math.isfinite(fill):
            raise ctx.unsupported(f"it pads with {fill}; pad with a finite value (max-pool pads by itself).")
        padded = torch.nn.functional.pad(torch.zeros(x.shape, dtype=torch.float64), widths, "constant", fill)
        offset = Constant.exactly(padded, source=Fixed(padded))
    return moved(ctx, x, lambda v: torch.nn.functional.pad(v, widths), offset)


def _pad_mode(name: str, mode: str) -> None:
    @rule(f"{name}1d", f"{name}2d", f"{name}3d", kind="linear")
    def padded(ctx: Context, x: Any, widths: Any) -> Var:
        return pad(ctx, x, widths, mode)

    padded.__doc__ = f"Padding in {mode} mode, as the linear map it is."


_pad_mode("reflection_pad", "reflect")
_pad_mode("replication_pad", "replicate")
