"""Entries that a mask of −∞ leaves out of a softmax: which they are is a constant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.nodes import OpenNode
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context, is_number, number
from lipcert.ops.enclosure import Ball

#: The op of an open value with −∞ at constant places.
LEFT_OUT = "left out"


def infinite(x: Any) -> Tensor | None:
    """Where a constant or a number is −∞; None if it is nowhere, or NaN or +∞ somewhere."""
    if isinstance(x, Var):
        return None
    value = x.value if isinstance(x, Constant) else torch.as_tensor(x, dtype=torch.float64)
    if not value.is_floating_point():
        return None
    places = value == -math.inf
    return places if bool(places.any()) and bool((places | value.isfinite()).all()) else None


def finite_part(x: Any) -> Constant:
    """A constant with 0 in place of −∞."""
    if not isinstance(x, Constant):
        value = torch.as_tensor(x, dtype=torch.float64)
        return Constant.exactly(torch.where(value.isfinite(), value, 0.0))
    own = x.floating
    radius = None if own.radius is None else torch.where(own.middle.isfinite(), own.radius, 0.0)
    return Constant.within(Ball(torch.where(own.middle.isfinite(), own.middle, 0.0), radius))


def leave_out(ctx: Context, x: Var, places: Tensor) -> Var:
    """``x`` with −∞ at these places (truth values that broadcast to its shape)."""
    whole = places.expand(x.shape).clone()
    inner, before = left_out(ctx, x)
    if before is not None:
        x, whole = inner, whole | before
    error = ctx.not_lipschitz(
        "it puts −∞ at some entries, which is understood only where a softmax over them follows at once."
    )
    settings: tuple[object, ...] = (whole,)
    var = ctx.builder.unresolved((x,), x.shape, LEFT_OUT, error, settings, ctx.where, ctx.op)
    ctx.builder.evaluated(var, (x,), _value, (whole,), LEFT_OUT)
    return var


def _value(inputs: Sequence[Tensor], constants: Sequence[Tensor]) -> Tensor:
    return torch.where(constants[0], -math.inf, inputs[0])


def left_out(ctx: Context, x: Var) -> tuple[Var, Tensor | None]:
    """The value itself and where it is −∞; None if it is finite."""
    node = ctx.builder.node(x)
    if not isinstance(node, OpenNode) or node.op != LEFT_OUT:
        return x, None
    places = node.settings[0]
    assert isinstance(places, Tensor)
    return Var(node.parents[0], x.shape), places


def is_infinite(x: Any) -> bool:
    """Whether this is the number ∞ or −∞."""
    return is_number(x) and math.isinf(number(x))
