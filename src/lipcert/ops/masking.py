"""Assignment in forward, at constant places: copy, slice_scatter, select_scatter, index_put."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.source import derived
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.registry import rule
from lipcert.ops.structure import constant_indices, tensor_key
from lipcert.ops.terms import moved


def _overwrite(ctx: Context, x: Any, source: Any, write: Any, terms: float = 1.0, key: str = "") -> Var:
    """``x`` with some entries replaced by ``source``; ``write(x, source)`` is linear in both together.

    ``terms`` is the most entries of ``source`` that are added up at one place; ``key`` tells the places for the hash.
    """

    def join(parts: list[Tensor]) -> Tensor:
        return write(parts[0], parts[1])

    operands = [ctx.constant(o) if not isinstance(o, Var) else o for o in (x, source)]
    for operand in operands:
        if isinstance(operand, Constant):
            ctx.require_finite(operand)
    whole, part = (math.prod(o.shape) for o in operands)
    copies = whole / max(1, part) if part < whole else 0.0  # a source that is broadcast when written
    return ctx.jointly_linear(join, operands, max(copies, terms), key)


@rule("copy", kind="linear")
def copy(ctx: Context, x: Any, source: Any, non_blocking: bool = False) -> Any:
    """The right-hand side of an assignment, broadcast to the place it is assigned to: √(repeats) in l2."""
    shape = tuple(x.shape)
    if isinstance(source, Var):
        return moved(ctx, source, lambda v: v.expand(shape).clone())
    own = ctx.constant(source)
    whole = derived(lambda v: v.double().expand(shape).clone(), own.source)
    return Constant.within(own.floating.map(lambda v: v.expand(shape).clone()), whole)


@rule("slice_scatter", kind="linear")
def slice_scatter(
    ctx: Context, x: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Var:
    """Assignment to a slice: 1 for each operand in every norm."""
    start, end, step = slice(start, end, step).indices(x.shape[dim])  # ends beyond the axis do not run in batches
    end = max(start, end)
    return _overwrite(ctx, x, source, lambda a, b: torch.slice_scatter(a, b, dim, start, end, step))


@rule("select_scatter", kind="linear")
def select_scatter(ctx: Context, x: Any, source: Any, dim: int, index: int) -> Var:
    """Assignment to one index: 1 for each operand in every norm."""
    return _overwrite(ctx, x, source, lambda a, b: torch.select_scatter(a, b, dim, index))


def _put(a: Tensor, places: Sequence[Tensor | None], b: Tensor, accumulate: bool) -> Tensor:
    """A function of the module, which closures can name when they go to another process; an op of torch cannot go."""
    result: Tensor = torch.ops.aten.index_put(a, places, b, accumulate)
    return result


@rule("index_put", kind="linear")
def index_put(ctx: Context, x: Any, indices: Any, source: Any, accumulate: bool = False) -> Var:
    """Assignment (or addition) at constant indices: 1 for each operand in every norm where none repeats."""
    chosen = constant_indices(ctx, indices)
    shape = x.shape
    written = torch.zeros(shape, dtype=torch.float64)
    places = [c if isinstance(c, Tensor) else None for c in chosen]
    written = _put(written, places, torch.ones((), dtype=torch.float64), True)
    most = float(written.max()) if written.numel() else 0.0
    if most > 1 and not accumulate:
        raise ctx.unsupported("an index is written twice; which value stays is not defined.")

    def write(a: Tensor, b: Tensor) -> Tensor:
        here = [None if p is None else p.to(a.device) for p in places]
        return _put(a, here, b, accumulate)

    key = "".join(":" if p is None else tensor_key(p) for p in places)
    return _overwrite(ctx, x, source, write, most + 1.0, key)
