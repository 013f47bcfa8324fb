"""Sorts and single places of a sort: sort, msort, topk, kthvalue, median."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipcert.network.builder import Var
from lipcert.ops.context import Context
from lipcert.ops.registry import rule
from lipcert.ops.selections import groups_along, pick, positions_refused, sorted_groups


def _sort(ctx: Context, x: Any, dim: int, descending: bool) -> Var:
    x = ctx.variable(x)
    return sorted_groups(ctx, x, groups_along(x.shape, (dim,))[0], descending) if x.shape else x


@rule("sort", kind="selection")
def sort(ctx: Context, x: Any, dim: int = -1, descending: bool = False) -> tuple[Var, Var]:
    """Sort, GroupSort, MaxMin: 1 in every norm (Anil, Lucas & Grosse 2019)."""
    values = _sort(ctx, x, dim, descending)
    return values, positions_refused(ctx, values)


@rule("sort.stable", kind="selection")
def sort_stable(ctx: Context, x: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> tuple[Var, Var]:
    """Stable sort: 1 in every norm (Anil, Lucas & Grosse 2019)."""
    return sort(ctx, x, dim, descending)


@rule("msort", kind="selection")
def msort(ctx: Context, x: Any) -> Var:
    """Sort along the first axis: 1 in every norm."""
    return _sort(ctx, x, 0, False)


def _ranked(ctx: Context, x: Any, dim: int, ranks: slice, keepdim: bool, descending: bool) -> tuple[Var, Var]:
    x = ctx.variable(x)
    if not x.shape:
        return x, positions_refused(ctx, x)
    places = torch.arange(math.prod(x.shape)).reshape(x.shape)
    chosen = places.movedim(dim, 0)[ranks].movedim(0, dim)
    if not keepdim:
        chosen = chosen.squeeze(dim)
    values = pick(ctx, _sort(ctx, x, dim, descending), chosen, tuple(chosen.shape))
    return values, positions_refused(ctx, values)


@rule("topk", kind="selection")
def topk(ctx: Context, x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Var, Var]:
    """The k largest or smallest entries in order: 1 in every norm (part of a sort)."""
    if not sorted:
        raise ctx.unsupported("the order of an unsorted topk is not defined; pass sorted=True.")
    return _ranked(ctx, x, dim, slice(0, k), True, largest)


@rule("kthvalue", kind="selection")
def kthvalue(ctx: Context, x: Any, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Var, Var]:
    """The k-th smallest entry: 1 in every norm (one place of a sort)."""
    return _ranked(ctx, x, dim, slice(k - 1, k), keepdim, False)


@rule("median.dim", kind="selection")
def median(ctx: Context, x: Any, dim: int = -1, keepdim: bool = False) -> tuple[Var, Var]:
    """The lower median: 1 in every norm (one place of a sort)."""
    middle = (ctx.variable(x).shape[dim] - 1) // 2 if ctx.variable(x).shape else 0
    return _ranked(ctx, x, dim, slice(middle, middle + 1), keepdim, False)
