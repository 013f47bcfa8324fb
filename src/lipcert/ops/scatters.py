"""Entries written or added up at constant places: scatter and its reductions, as graph networks aggregate messages."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.source import Fixed
from lipcert.ops.arithmetic import multiply_by
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.enclosure import exact, over
from lipcert.ops.masking import _overwrite
from lipcert.ops.registry import rule
from lipcert.ops.selections import amax, amin
from lipcert.ops.structure import constant_indices, tensor_key
from lipcert.ops.terms import moved


def _places(ctx: Context, index: Any) -> Tensor:
    (chosen,) = constant_indices(ctx, (index,))
    assert isinstance(chosen, Tensor)
    return chosen


def _counts(shape: Any, dim: int, index: Tensor) -> Tensor:
    """How often each entry is written."""
    return torch.zeros(tuple(shape), dtype=torch.float64).scatter_add(
        dim, index, torch.ones(index.shape, dtype=torch.float64)
    )


def _whole(ctx: Context, source: Any, index: Tensor) -> Any:
    """The source as a value of the index's shape: a number is the same everywhere, a larger tensor is cut."""
    if isinstance(source, (int, float)):
        number = torch.full(index.shape, float(source), dtype=torch.float64)
        return Constant.exactly(number, source=Fixed(number))
    if isinstance(source, Constant) and not source.shape:
        return source.map(lambda v: v.expand(index.shape).clone())
    whole = source if isinstance(source, Var) else ctx.constant(source, "source")
    if tuple(whole.shape) == tuple(index.shape):
        return whole

    def first(v: Tensor) -> Tensor:
        for axis, n in enumerate(index.shape):
            v = v.narrow(axis, 0, n)
        return v

    return moved(ctx, whole, first) if isinstance(whole, Var) else whole.map(first)


@rule("scatter_add", kind="linear")
def scatter_add(ctx: Context, x: Any, dim: int, index: Any, source: Any) -> Var:
    """Addition at constant places: 1 for x, √(most entries that are added up at one place) for the source in l2."""
    index = _places(ctx, index)
    most = float(_counts(x.shape, dim, index).max()) if index.numel() else 0.0

    def write(a: Tensor, b: Tensor) -> Tensor:
        return torch.scatter_add(a, dim, index.to(a.device), b)

    return _overwrite(ctx, x, _whole(ctx, source, index), write, most + 1.0, f"{dim} {tensor_key(index)}")


@rule("scatter.src", "scatter.value", kind="linear")
def scatter(ctx: Context, x: Any, dim: int, index: Any, source: Any) -> Var:
    """Assignment at constant places, none of them twice: 1 for each operand in every norm."""
    index = _places(ctx, index)
    if index.numel() and float(_counts(x.shape, dim, index).max()) > 1:
        raise ctx.unsupported("an entry is written twice; which value stays is not defined.")

    def write(a: Tensor, b: Tensor) -> Tensor:
        return torch.scatter(a, dim, index.to(a.device), b)

    return _overwrite(ctx, x, _whole(ctx, source, index), write, 1.0, f"{dim} {tensor_key(index)}")


@rule("scatter_reduce", kind="linear")
def scatter_reduce(
    ctx: Context, x: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True
) -> Var:
    """Sum, mean, maximum or minimum of what comes to a constant place: maps of one entry each, and a selection."""
    index = _places(ctx, index)
    source = _whole(ctx, source, index)
    counts = _counts(x.shape, dim, index)
    if reduce in ("sum", "mean"):
        kept = x if include_self else _masked(ctx, x, counts == 0)
        total = scatter_add(ctx, kept, dim, Constant.exactly(index), source)
        if reduce == "sum":
            return total
        number = (counts + (1.0 if include_self else 0.0)).clamp(min=1.0)
        share = over(exact(1.0), exact(number))
        return multiply_by(ctx, total, Constant.within(share, Fixed(share.middle)))
    if reduce in ("amax", "amin"):
        candidates = _candidates(ctx, x, dim, index, source, counts, include_self)
        return (amax if reduce == "amax" else amin)(ctx, candidates, (-1,))
    raise ctx.unsupported(f"a scattered reduction by {reduce!r}; sum, mean, amax and amin are covered.")


def _masked(ctx: Context, x: Any, mask: Tensor) -> Any:
    """x where the mask is true, else 0."""
    if isinstance(x, Var):
        return moved(ctx, x, lambda v: torch.where(mask.to(v.device), v, 0.0), key=f"masked {tensor_key(mask)}")
    return ctx.constant(x).map(lambda v: torch.where(mask, v, torch.zeros_like(v)))


def _candidates(ctx: Context, x: Any, dim: int, index: Tensor, source: Any, counts: Tensor, include_self: bool) -> Var:
    """All values that come to each entry, along a last axis; where fewer come, one of them again."""
    entries = math.prod(x.shape)
    own = torch.arange(entries).reshape(tuple(x.shape))
    places = destinations(x.shape, dim, index)
    longest = int(counts.max()) if counts.numel() else 0
    table = torch.full((entries, longest + 1), -1, dtype=torch.int64)
    filled = torch.zeros(entries, dtype=torch.int64)
    for number, place in enumerate(places.reshape(-1).tolist()):
        table[int(place), filled[int(place)]] = entries + number
        filled[int(place)] += 1
    alone = filled == 0
    takes_own = alone | include_self
    table[takes_own, filled[takes_own]] = own.reshape(-1)[takes_own]
    table = torch.where(table < 0, table[:, :1], table)

    def gathered(parts: list[Tensor]) -> Tensor:
        flat = torch.cat([one.reshape(-1) for one in parts])
        return flat[table.to(flat.device)].reshape(*x.shape, longest + 1)

    operands = [one if isinstance(one, Var) else ctx.constant(one) for one in (x, source)]
    return ctx.jointly_linear(gathered, operands, float(longest + 1), tensor_key(table))


def destinations(shape: Any, dim: int, index: Tensor) -> Tensor:
    """The flat place in x to which each entry of the source goes."""
    axes = [torch.arange(n).reshape([-1 if k == axis else 1 for k in range(index.dim())]) for axis, n in
            enumerate(index.shape)]  # fmt: skip
    axes[dim] = index
    flat = torch.zeros(index.shape, dtype=torch.int64)
    for axis, n in enumerate(shape):
        flat = flat * n + axes[axis]
    return flat
