"""Ops that only move, repeat, add up or drop entries: reshape, permute, slice, pad, cat, sum, mean …"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.ops.context import Constant, Context
from lipcert.ops.registry import rule

Function = Callable[..., Tensor]


def _moves(*names: str, summary: str, function: Function, repeats: bool = False) -> None:
    """Register ops that are linear with non-negative entries as they stand: ``function(x, *args)``."""

    @rule(*names, kind="linear")
    def move(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Var:
        x = ctx.variable(x)
        plain = [a.value if isinstance(a, Constant) else a for a in args]
        named = {k: v.value if isinstance(v, Constant) else v for k, v in kwargs.items()}
        if any(isinstance(a, Var) for a in (*args, *kwargs.values())):
            raise ctx.unsupported("an index or size depends on the input.")
        terms = math.prod(x.shape) if repeats else 0
        return ctx.linear(x, lambda v: function(v, *plain, **named), (), float(terms))

    move.__doc__ = summary


def _identity(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


_moves(
    "view", "reshape", "_unsafe_view", "_reshape_alias",
    summary="Reshape: constant 1 in every norm.", function=lambda x, shape: x.reshape(shape),
)  # fmt: skip
_moves("flatten", summary="Flatten: constant 1.", function=torch.flatten)
_moves("unflatten", summary="Unflatten: constant 1.", function=torch.unflatten)
_moves("squeeze", "squeeze.dim", "squeeze.dims", summary="Squeeze: constant 1.", function=torch.squeeze)
_moves("unsqueeze", summary="Unsqueeze: constant 1.", function=torch.unsqueeze)
_moves("permute", summary="Permutation of axes: constant 1.", function=torch.permute)
_moves("transpose", "swapaxes", summary="Transposition: constant 1.", function=torch.transpose)
_moves("t", "numpy_T", "mT", summary="Matrix transpose: constant 1.", function=lambda x: x.transpose(-1, -2) if x.dim() > 1 else x)
_moves("movedim", "moveaxis", summary="Move an axis: constant 1.", function=torch.movedim)
_moves("flip", summary="Flip: constant 1.", function=torch.flip)
_moves("roll", summary="Roll: constant 1.", function=torch.roll)
_moves("rot90", summary="Rotation by right angles: constant 1.", function=torch.rot90)
_moves("pixel_shuffle", summary="Pixel shuffle: constant 1.", function=torch.pixel_shuffle)
_moves("pixel_unshuffle", summary="Pixel unshuffle: constant 1.", function=torch.pixel_unshuffle)
_moves("channel_shuffle", summary="Channel shuffle: constant 1.", function=torch.channel_shuffle)
_moves(
    "clone", "alias", "contiguous", "detach", "lift_fresh_copy",
    summary="Identity.", function=_identity,
)  # fmt: skip
_moves("select", summary="Select one index: constant 1.", function=torch.select, repeats=True)
_moves("narrow", summary="Narrow: constant 1.", function=torch.narrow, repeats=True)
_moves("diagonal", summary="Diagonal: constant 1.", function=torch.diagonal, repeats=True)
_moves("tril", summary="Lower triangle: constant 1.", function=torch.tril)
_moves("triu", summary="Upper triangle: constant 1.", function=torch.triu)
_moves(
    "expand", summary="Broadcast: √(repeats) in l2.",
    function=lambda x, shape, implicit=False: x.expand(shape).clone(), repeats=True,
)  # fmt: skip
_moves("repeat", summary="Repeat: √(repeats) in l2.", function=lambda x, sizes: x.repeat(sizes), repeats=True)
_moves("tile", summary="Tile: √(repeats) in l2.", function=torch.tile, repeats=True)
_moves(
    "repeat_interleave.self_int", summary="Repeat entries: √(repeats) in l2.",
    function=lambda x, n, dim=None, output_size=None: torch.repeat_interleave(x, n, dim), repeats=True,
)  # fmt: skip
_moves("index_select", summary="Index by constants: √(most repeats of an index) in l2.", function=torch.index_select, repeats=True)
_moves("cumsum", summary="Cumulative sum, as the linear map it is.", function=lambda x, dim, dtype=None: torch.cumsum(x, dim), repeats=True)


@rule("slice", kind="linear")
def slice_(ctx: Context, x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Var:
    """Slice along one axis: constant 1."""
    x = ctx.variable(x)
    length = x.shape[dim]
    chosen = slice(start, None if end is None or end >= length else end, step)
    lead = dim % len(x.shape)
    return ctx.linear(x, lambda v: v[(slice(None),) * lead + (chosen,)])


@rule("index", kind="linear")
def index(ctx: Context, x: Any, indices: Any) -> Var:
    """Advanced indexing by constant tensors: √(most repeats of an entry) in l2."""
    x = ctx.variable(x)
    if any(isinstance(i, Var) for i in indices):
        raise ctx.unsupported("an index depends on the input.")
    chosen = tuple(slice(None) if i is None else ctx.constant(i).value for i in indices)

    def function(v: Tensor) -> Tensor:
        return v[tuple(c.to(v.device) if isinstance(c, Tensor) else c for c in chosen)]

    key = repr([c if isinstance(c, slice) else c.tolist() for c in chosen])
    linear = ctx.map(x.shape, function, (), float(math.prod(x.shape)), extra=key)
    return ctx.builder.affine([(x, linear)], linear.out_shape, None, ctx.op, ctx.where)


@rule("gather", kind="linear")
def gather(ctx: Context, x: Any, dim: int, index: Any, sparse_grad: bool = False) -> Var:
    """Gather by constant indices: √(most repeats of an entry) in l2."""
    x = ctx.variable(x)
    chosen = ctx.constant(index, "index").value
    linear = ctx.map(
        x.shape,
        lambda v: torch.gather(v, dim, chosen.to(v.device)),
        (),
        float(math.prod(chosen.shape)),
        extra=repr(chosen.tolist()),
    )
    return ctx.builder.affine([(x, linear)], linear.out_shape, None, ctx.op, ctx.where)


@rule("pad", "constant_pad_nd", kind="linear")
def pad(ctx: Context, x: Any, widths: Any, mode: Any = "constant", value: Any = None) -> Var:
    """Padding: constant 1 with a constant value; reflect, replicate and circular as the linear maps they are."""
    x = ctx.variable(x)
    if not isinstance(mode, str):
        mode, value = "constant", mode
    if mode == "constant":
        fill = 0.0 if value is None else float(value)
        function: Function = lambda v: torch.nn.functional.pad(v, widths)  # noqa: E731
        offset = None
        if fill:
            inside = torch.nn.functional.pad(torch.ones(x.shape, dtype=torch.float64), widths)
            offset = (1.0 - inside) * fill
        return ctx.linear(x, function, (), 0.0, offset)
    most = 2 ** len(widths)
    return ctx.linear(x, lambda v: torch.nn.functional.pad(v, widths, mode), (), float(most + sum(map(abs, widths))))


def _pad_mode(name: str, mode: str) -> None:
    @rule(f"{name}1d", f"{name}2d", f"{name}3d", kind="linear")
    def padded(ctx: Context, x: Any, widths: Any) -> Var:
        return pad(ctx, x, widths, mode)

    padded.__doc__ = f"Padding in {mode} mode, as the linear map it is."


_pad_mode("reflection_pad", "reflect")
_pad_mode("replication_pad", "replicate")


@rule("cat", "concat", kind="linear")
def cat(ctx: Context, tensors: Any, dim: int = 0) -> Var:
    """Concatenation: √(Σ L²) in l2, max in l∞, sum in l1."""
    return ctx.jointly_linear(lambda parts: torch.cat(parts, dim), list(tensors))


@rule("stack", kind="linear")
def stack(ctx: Context, tensors: Any, dim: int = 0) -> Var:
    """Stack: √(Σ L²) in l2, max in l∞, sum in l1."""
    return ctx.jointly_linear(lambda parts: torch.stack(parts, dim), list(tensors))


def _pieces(ctx: Context, x: Any, cut: Callable[[Tensor], Any]) -> tuple[Var, ...]:
    x = ctx.variable(x)
    number = len(cut(torch.zeros(x.shape, dtype=torch.float64)))
    pieces = []
    for place in range(number):
        linear = ctx.map(x.shape, lambda v, place=place: cut(v)[place], extra=f" piece {place}")
        pieces.append(ctx.builder.affine([(x, linear)], linear.out_shape, None, ctx.op, ctx.where))
    return tuple(pieces)


@rule("split", "split_with_sizes", "unsafe_split", kind="linear")
def split(ctx: Context, x: Any, sizes: Any, dim: int = 0) -> tuple[Var, ...]:
    """Split into pieces: constant 1."""
    return _pieces(ctx, x, lambda v: torch.split(v, sizes, dim))


@rule("chunk", kind="linear")
def chunk(ctx: Context, x: Any, chunks: int, dim: int = 0) -> tuple[Var, ...]:
    """Chunk: constant 1."""
    return _pieces(ctx, x, lambda v: torch.chunk(v, chunks, dim))


@rule("tensor_split", kind="linear")
def tensor_split(ctx: Context, x: Any, sections: Any, dim: int = 0) -> tuple[Var, ...]:
    """Split into sections: constant 1."""
    return _pieces(ctx, x, lambda v: torch.tensor_split(v, sections, dim))


@rule("unbind", kind="linear")
def unbind(ctx: Context, x: Any, dim: int = 0) -> tuple[Var, ...]:
    """Unbind an axis: constant 1."""
    return _pieces(ctx, x, lambda v: torch.unbind(v, dim))


@rule("sum", kind="linear")
def sum_(ctx: Context, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Var:
    """Sum over axes: √n in l2, n in l∞, 1 in l1."""
    x = ctx.variable(x)
    return ctx.linear(x, lambda v: _reduce(torch.sum, v, dim, keepdim), (), float(math.prod(x.shape)))


@rule("mean", kind="linear")
def mean(ctx: Context, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Var:
    """Mean over axes: 1/√n in l2, 1 in l∞, 1/n in l1."""
    x = ctx.variable(x)
    return ctx.linear(x, lambda v: _reduce(torch.mean, v, dim, keepdim), (), float(math.prod(x.shape) + 2))


def _reduce(reduction: Function, v: Tensor, dim: Any, keepdim: bool) -> Tensor:
    axes = tuple(range(v.dim())) if dim is None or dim == [] else dim
    return reduction(v, axes, keepdim)


@rule("to", "_to_copy", "type_as", "_assert_tensor_metadata", kind="linear")
def to(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Var:
    """Conversion between floating types: the identity (the model's own rounding is outside the claim)."""
    x = ctx.variable(x)
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.dtype) and not value.is_floating_point:
            raise ctx.not_lipschitz(f"conversion to {value} is discontinuous.")
    return ctx.linear(x, _identity)
