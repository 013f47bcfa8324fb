"""Maxima and minima: over axes, of two tensors, against a constant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.network.activations.clamp import RELU
from lipcert.network.builder import Var
from lipcert.network.graph import AffineNode, Node, SelectionNode
from lipcert.network.hashing import fingerprint
from lipcert.network.linear import Identity, OpMap, Shape
from lipcert.network.moves import gather
from lipcert.network.nonlinearity import MaxSelection, SortSelection
from lipcert.network.source import derived
from lipcert.ops.arithmetic import broadcast, exact_double
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.enclosure import Ball
from lipcert.ops.recognise.registry import recognise
from lipcert.ops.registry import rule

#: Ops whose settings in the hash determine them completely.
_MOVES = frozenset(("view", "reshape", "split", "split_with_sizes", "chunk", "slice", "select", "unbind", "unflatten"))


def groups_along(shape: Shape, dims: Any) -> tuple[Tensor, Shape]:
    """(groups, K) table of the flat positions that differ along ``dims`` only, and their shape."""
    axes = sorted({d % len(shape) for d in dims}) if dims else list(range(len(shape)))
    kept = [d for d in range(len(shape)) if d not in axes]
    places = torch.arange(math.prod(shape)).reshape(shape).permute(*kept, *axes)
    out_shape = tuple(shape[d] for d in kept)
    return places.reshape(math.prod(out_shape), -1), out_shape


def _axes(dim: Any) -> tuple[int, ...]:
    if dim is None:
        return ()
    return tuple(dim) if isinstance(dim, (list, tuple)) else (int(dim),)


def positions_refused(ctx: Context, values: Var) -> Var:
    """The second output of a maximum or sort: an error if it is used."""
    error = ctx.not_lipschitz("the positions it returns are whole numbers that jump; use its values only.")
    return ctx.unresolved((values,), values.shape, error)


def pick(ctx: Context, x: Var, index: Tensor, shape: Shape) -> Var:
    """Entries of ``x`` at flat positions ``index`` (distinct or not), as a tensor of ``shape``."""
    linear = gather(index, x.shape, shape)
    return ctx.builder.affine([(x, linear)], shape, None, ctx.op, ctx.where)


def _first_alike(ctx: Context, x: Var) -> Var:
    """The earliest value computed as ``x`` is, by moving entries only (a second ``chunk`` or ``view``)."""
    node = ctx.builder.node(x)
    if not isinstance(node, AffineNode) or not _moves_only(node):
        return x
    key = fingerprint(node.maps[0])
    for place, other in enumerate(ctx.builder.nodes[: x.position]):
        alike = isinstance(other, AffineNode) and other.parents == node.parents and other.shape == node.shape
        if alike and _moves_only(other) and fingerprint(other.maps[0]) == key:  # type: ignore[attr-defined]
            return Var(place, other.shape)
    return x


def _moves_only(node: Node) -> bool:
    if not isinstance(node, AffineNode) or node.offset is not None or len(node.maps) != 1:
        return False
    linear = node.maps[0]
    return isinstance(linear, OpMap) and linear.label in _MOVES and not linear.constants


def sorted_groups(ctx: Context, x: Var, table: Tensor, descending: bool = False, name: str = "sort") -> Var:
    """``x`` with every group of ``table`` sorted; an equal earlier sort of the variable is used again."""
    for place, node in enumerate(ctx.builder.nodes):
        if isinstance(node, SelectionNode) and node.parents == (x.position,):
            known = node.function
            same = isinstance(known, SortSelection) and known.descending == descending
            if same and known.index.shape == table.shape and torch.equal(known.index, table):
                return Var(place, node.shape)
    return ctx.selection(x, SortSelection(name, table, x.shape, descending))


def _extreme(ctx: Context, x: Any, dim: Any, keepdim: bool, largest: bool) -> Var:
    """Maximum or minimum over axes; pairs go through one sort, so that MaxMin (both) keeps the constant 1."""
    x = _first_alike(ctx, ctx.variable(x))
    if not x.shape:
        return x
    table, shape = groups_along(x.shape, _axes(dim))
    if keepdim:
        axes = {d % len(x.shape) for d in _axes(dim)} or set(range(len(x.shape)))
        shape = tuple(1 if d in axes else s for d, s in enumerate(x.shape))
    if table.shape[1] == 1:
        return pick(ctx, x, table[:, 0], shape)
    if table.shape[1] == 2:
        return pick(ctx, sorted_groups(ctx, x, table), table[:, int(largest)], shape)
    if largest:
        return ctx.selection(x, MaxSelection("max", table, x.shape, shape))
    opposite = ctx.selection(ctx.scaled(x, -1.0), MaxSelection("min", table, x.shape, shape))
    return ctx.scaled(opposite, -1.0)


@rule("max.dim", kind="selection")
def max_dim(ctx: Context, x: Any, dim: int, keepdim: bool = False) -> tuple[Var, Var]:
    """Maximum over an axis: 1 in l1, l2 and l∞ (every input lies in one group)."""
    values = _extreme(ctx, x, dim, keepdim, True)
    return values, positions_refused(ctx, values)


@rule("min.dim", kind="selection")
def min_dim(ctx: Context, x: Any, dim: int, keepdim: bool = False) -> tuple[Var, Var]:
    """Minimum over an axis, −max(−x): 1 in l1, l2 and l∞."""
    values = _extreme(ctx, x, dim, keepdim, False)
    return values, positions_refused(ctx, values)


@rule("amax", kind="selection")
def amax(ctx: Context, x: Any, dim: Any = (), keepdim: bool = False) -> Var:
    """Maximum over axes: 1 in l1, l2 and l∞."""
    return _extreme(ctx, x, dim, keepdim, True)


@rule("amin", kind="selection")
def amin(ctx: Context, x: Any, dim: Any = (), keepdim: bool = False) -> Var:
    """Minimum over axes: 1 in l1, l2 and l∞."""
    return _extreme(ctx, x, dim, keepdim, False)


@rule("aminmax", kind="selection")
def aminmax(ctx: Context, x: Any, dim: Any = None, keepdim: bool = False) -> tuple[Var, Var]:
    """Minimum and maximum over an axis: 1 each in l1, l2 and l∞."""
    return _extreme(ctx, x, dim, keepdim, False), _extreme(ctx, x, dim, keepdim, True)


@rule("max.default", kind="selection")
def max_all(ctx: Context, x: Any) -> Var:
    """Maximum of all entries: 1 in l1, l2 and l∞."""
    return _extreme(ctx, x, None, False, True)


@rule("min.default", kind="selection")
def min_all(ctx: Context, x: Any) -> Var:
    """Minimum of all entries: 1 in l1, l2 and l∞."""
    return _extreme(ctx, x, None, False, False)


# -- two operands -------------------------------------------------------------------------------------------


def _against_constant(ctx: Context, x: Var, constant: Any, largest: bool) -> Var:
    """max(x, c) = c + relu(x − c), min(x, c) = c − relu(c − x); max(x, −∞) = x."""
    given = exact_double(ctx, constant)
    value = Constant.within(given.floating, given.source)
    shape = tuple(torch.broadcast_shapes(x.shape, value.shape))
    sign = 1.0 if largest else -1.0
    exact = value.error is None or not bool(value.error.any())
    if shape == x.shape and exact and bool((value.value == -sign * math.inf).all()):
        return x
    linear = broadcast(ctx, x, shape, sign)
    opposite = derived(lambda c: -sign * c, value.source)
    shifted = ctx.affine([(x, linear)], shape, Constant.within(Ball(-sign * value.value, value.error), opposite))
    excess = ctx.activation(shifted, RELU)
    return ctx.affine([(excess, Identity(shape, sign))], shape, value)


def _of_two(ctx: Context, a: Any, b: Any, largest: bool) -> Var:
    if not isinstance(a, Var) or not isinstance(b, Var):
        return _against_constant(ctx, a, b, largest) if isinstance(a, Var) else _against_constant(ctx, b, a, largest)
    a, b = _first_alike(ctx, a), _first_alike(ctx, b)
    if a.position == b.position:
        return a
    simple = recognise(ctx, "maximum" if largest else "minimum", a, b)
    if simple is not None:
        return simple
    if b.position < a.position:
        a, b = b, a
    shape = tuple(torch.broadcast_shapes(a.shape, b.shape))
    pair = _stacked(ctx, a, b, shape)
    size = math.prod(shape)
    table = torch.stack([torch.arange(size), torch.arange(size) + size], dim=1)
    ordered = sorted_groups(ctx, pair, table, name="sort pair")
    return pick(ctx, ordered, table[:, int(largest)], shape)


@dataclass(frozen=True)
class _Half:
    """x ↦ (x, 0) or (0, x), broadcast to (2, *shape)."""

    half: int
    shape: Shape

    def __call__(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(self.shape)
        return torch.stack([zeros, x + zeros] if self.half else [x + zeros, zeros])


def _stacked(ctx: Context, a: Var, b: Var, shape: Shape) -> Var:
    """The pair (a, b) as one variable of shape (2, *shape); an earlier stack of the two is used again."""
    for place, node in enumerate(ctx.builder.nodes):
        if isinstance(node, AffineNode) and node.parents == (a.position, b.position):
            functions = [linear.function for linear in node.maps if isinstance(linear, OpMap)]
            if functions == [_Half(0, shape), _Half(1, shape)]:
                return Var(place, node.shape)
    wide = (2, *shape)
    terms = []
    for half, x in enumerate((a, b)):
        repeats = math.prod(shape) / max(1, math.prod(x.shape))
        terms.append((x, ctx.map(x.shape, _Half(half, shape), (), repeats)))
    return ctx.builder.affine(terms, wide, None, "pair", ctx.where)


@rule("maximum", "max.other", "fmax", kind="selection")
def maximum(ctx: Context, a: Any, b: Any) -> Var:
    """Larger of two: max(L₁, L₂) in l∞, √(L₁² + L₂²) in l2, L₁ + L₂ in l1; with a constant: 1."""
    return _of_two(ctx, a, b, True)


@rule("minimum", "min.other", "fmin", kind="selection")
def minimum(ctx: Context, a: Any, b: Any) -> Var:
    """Smaller of two: max(L₁, L₂) in l∞, √(L₁² + L₂²) in l2, L₁ + L₂ in l1; with a constant: 1."""
    return _of_two(ctx, a, b, False)
