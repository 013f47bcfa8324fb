"""Ops that only move, repeat, add up or drop entries: reshape, slice, cat, sum, mean and so on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lipcert.errors import TrainModeError
from lipcert.network.builder import Var
from lipcert.network.hashing import update_hash_with_tensor
from lipcert.network.linear import Shape
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.keys import axes_key
from lipcert.ops.registry import rule
from lipcert.ops.terms import longest_sum, moved

Function = Callable[..., Tensor]


def tensor_key(*tensors: Tensor) -> str:
    """Short text that identifies integer or boolean tensors in the network's hash."""
    digest = hashlib.sha256()
    for tensor in tensors:
        update_hash_with_tensor(digest, tensor)
    return digest.hexdigest()


def _moves(*names: str, summary: str, function: Function) -> None:
    """Register ops that are linear with non-negative entries as they stand: ``function(x, *args)``."""

    @rule(*names, kind="linear")
    def move(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Var:
        x = ctx.variable(x)
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(a, Var) for a in leaves):
            raise ctx.unsupported("an index or size depends on the input.")
        constants = [a for a in leaves if isinstance(a, Constant)]
        plain, named = tree_map(lambda a: a.value if isinstance(a, Constant) else a, (args, kwargs))
        key = tensor_key(*(c.value for c in constants)) if constants else ""
        if any(c.rounding for c in constants):
            raise ctx.unsupported("an index or size comes from rounded constants; store it in a buffer.")

        def linear(v: Tensor) -> Tensor:
            here, keywords = tree_map(lambda a: a.to(v.device) if isinstance(a, Tensor) else a, (plain, named))
            return function(v, *here, **keywords)

        return moved(ctx, x, linear, key=f"{ctx.call} {key}")

    move.__doc__ = summary


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
_moves(
    "t",
    "mT",
    summary="Matrix transpose: constant 1.",
    function=lambda x: x.transpose(-1, -2) if x.dim() > 1 else x,
)
_moves(
    "numpy_T",
    summary="Reversal of all axes: constant 1.",
    function=lambda x: x.permute(*reversed(range(x.dim()))),
)
_moves("movedim", "moveaxis", summary="Move an axis: constant 1.", function=torch.movedim)
_moves("flip", summary="Flip: constant 1.", function=torch.flip)
_moves("roll", summary="Roll: constant 1.", function=torch.roll)
_moves("rot90", summary="Rotation by right angles: constant 1.", function=torch.rot90)
_moves("pixel_shuffle", summary="Pixel shuffle: constant 1.", function=torch.pixel_shuffle)
_moves("pixel_unshuffle", summary="Pixel unshuffle: constant 1.", function=torch.pixel_unshuffle)
_moves("channel_shuffle", summary="Channel shuffle: constant 1.", function=torch.channel_shuffle)
_moves("select", summary="Select one index: constant 1.", function=torch.select)
_moves("narrow", summary="Narrow: constant 1.", function=torch.narrow)
_moves("diagonal", summary="Diagonal: constant 1.", function=torch.diagonal)
_moves("tril", summary="Lower triangle: constant 1.", function=torch.tril)
_moves("triu", summary="Upper triangle: constant 1.", function=torch.triu)
_moves(
    "expand", summary="Broadcast: √(repeats) in l2.",
    function=lambda x, shape, implicit=False: x.expand(shape).clone(),
)  # fmt: skip
_moves("repeat", summary="Repeat: √(repeats) in l2.", function=lambda x, sizes: x.repeat(sizes))
_moves("tile", summary="Tile: √(repeats) in l2.", function=torch.tile)
_moves(
    "repeat_interleave.self_int", summary="Repeat entries: √(repeats) in l2.",
    function=lambda x, n, dim=None, output_size=None: torch.repeat_interleave(x, n, dim),
)  # fmt: skip
_moves(
    "index_select",
    summary="Index by constants: √(most repeats of an index) in l2.",
    function=torch.index_select,
)


def _blocks(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A function of the module, which closures can name when they go to another process; an op of torch cannot go."""
    result: Tensor = torch.ops.aten.im2col(x, *args, **kwargs)
    return result


def _sum_of_blocks(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """See ``_blocks``."""
    result: Tensor = torch.ops.aten.col2im(x, *args, **kwargs)
    return result


_moves(
    "im2col",
    summary="Sliding blocks (nn.Unfold): √(blocks over one entry) in l2.",
    function=_blocks,
)
_moves(
    "col2im",
    summary="Sum of sliding blocks (nn.Fold), as the linear map it is.",
    function=_sum_of_blocks,
)


@rule("clone", "alias", "contiguous", "detach", "lift_fresh_copy", kind="linear")
def identity(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Var:
    """Identity."""
    return ctx.scaled(ctx.variable(x), 1.0)


@rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", kind="linear")
def dropout(ctx: Context, x: Any, p: float = 0.5, train: bool = False) -> Var:
    """Dropout in eval mode: the identity."""
    if train:
        raise TrainModeError(f"dropout at {ctx.where} is in training mode; call model.eval() first.")
    return ctx.scaled(ctx.variable(x), 1.0)


@rule("slice", kind="linear")
def slice_(ctx: Context, x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Var:
    """Slice along one axis: constant 1."""
    x = ctx.variable(x)
    length = x.shape[dim]
    chosen = slice(start, None if end is None or end >= length else end, step)
    lead = dim % len(x.shape)
    return moved(ctx, x, lambda v: v[(slice(None),) * lead + (chosen,)])


def constant_indices(ctx: Context, indices: Any) -> list[slice | Tensor]:
    """Advanced indices as whole full slices and int64 tensors (masks spelt out)."""
    if any(isinstance(i, Var) for i in indices):
        raise ctx.unsupported("an index depends on the input.")
    chosen: list[slice | Tensor] = []
    for i in indices:
        if i is None:
            chosen.append(slice(None))
            continue
        constant = ctx.constant(i, "index")
        if constant.rounding:
            raise ctx.unsupported("its indices are computed from rounded constants; store them in a buffer.")
        mask = constant.value.dtype in (torch.bool, torch.uint8)
        chosen.extend(constant.value.nonzero(as_tuple=True) if mask else [constant.value.long()])
    return chosen


@rule("index", kind="linear")
def index(ctx: Context, x: Any, indices: Any) -> Var:
    """Advanced indexing by constant tensors: √(most repeats of an entry) in l2."""
    x = ctx.variable(x)
    chosen = constant_indices(ctx, indices)

    def function(v: Tensor) -> Tensor:
        return v[tuple(c.to(v.device) if isinstance(c, Tensor) else c for c in chosen)]

    return moved(ctx, x, function)


@rule("gather", kind="linear")
def gather(ctx: Context, x: Any, dim: int, index: Any, sparse_grad: bool = False) -> Var:
    """Gather by constant indices: √(most repeats of an entry) in l2."""
    x = ctx.variable(x)
    (chosen,) = constant_indices(ctx, (index,))
    assert isinstance(chosen, Tensor)

    def function(v: Tensor) -> Tensor:
        return torch.gather(v, dim, chosen.to(v.device))

    return moved(ctx, x, function)


def _joined(ctx: Context, join: Callable[[list[Tensor]], Tensor], tensors: Any) -> Var:
    for operand in tensors:
        if isinstance(operand, Constant):
            ctx.require_finite(operand)
    return ctx.jointly_linear(join, list(tensors), 0.0)


@rule("cat", "concat", kind="linear")
def cat(ctx: Context, tensors: Any, dim: int = 0) -> Var:
    """Concatenation: √(Σ L²) in l2, max in l∞, sum in l1."""
    return _joined(ctx, lambda parts: torch.cat(parts, dim), tensors)


@rule("stack", kind="linear")
def stack(ctx: Context, tensors: Any, dim: int = 0) -> Var:
    """Stack: √(Σ L²) in l2, max in l∞, sum in l1."""
    return _joined(ctx, lambda parts: torch.stack(parts, dim), tensors)


def _pieces(ctx: Context, x: Any, cut: Callable[[Tensor], Any]) -> tuple[Var, ...]:
    x = ctx.variable(x)
    number = len(cut(torch.zeros(x.shape, dtype=torch.float64)))
    pieces = []
    for place in range(number):
        linear = ctx.map(x.shape, lambda v, place=place: cut(v)[place], (), 0.0)
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


@rule("unfold", kind="linear")
def unfold(ctx: Context, x: Any, dim: int, size: int, step: int) -> Var:
    """Sliding windows: √(windows over one entry) in l2."""
    x = ctx.variable(x)
    # Written as a gather: PyTorch's own transpose of unfold does not run in batches.
    table = torch.arange(math.prod(x.shape)).reshape(x.shape).unfold(dim, size, step).contiguous()
    return moved(ctx, x, lambda v: v.reshape(-1)[table.to(v.device)])


@rule("cumsum", kind="linear")
def cumsum(ctx: Context, x: Any, dim: int, dtype: Any = None) -> Var:
    """Cumulative sum, as the linear map it is."""
    _refuse_integers(ctx, dtype)
    x = ctx.variable(x)
    return moved(ctx, x, lambda v: torch.cumsum(v, dim), key=axes_key("cumulative sum", x.shape, dim))


@dataclass(frozen=True)
class Reduction:
    """The function of a sum or mean over ``axes`` (all of them for None), by which these maps are recognised."""

    mean: bool
    axes: Any
    keepdim: bool

    def __call__(self, v: Tensor) -> Tensor:
        """The sum or mean of one example."""
        return _reduce(torch.mean if self.mean else torch.sum, v, self.axes, self.keepdim)

    def key(self, shape: Shape) -> str:
        """For the network's hash, with values of ``shape``."""
        return axes_key("mean" if self.mean else "sum", shape, self.axes)


@rule("sum", kind="linear")
def sum_(ctx: Context, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Var:
    """Sum over axes: √n in l2, n in l∞, 1 in l1."""
    _refuse_integers(ctx, dtype)
    x, reduction = ctx.variable(x), Reduction(False, dim, keepdim)
    return moved(ctx, x, reduction, key=reduction.key(x.shape))


@rule("mean", kind="linear")
def mean(ctx: Context, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Var:
    """Mean over axes: 1/√n in l2, 1 in l∞, 1/n in l1."""
    _refuse_integers(ctx, dtype)
    x = ctx.variable(x)
    terms = longest_sum(Reduction(False, dim, keepdim), x.shape)
    reduction = Reduction(True, dim, keepdim)
    return ctx.linear(x, reduction, (), terms + 2, key=reduction.key(x.shape))


def _reduce(reduction: Function, v: Tensor, dim: Any, keepdim: bool) -> Tensor:
    if v.dim() == 0:
        return v
    axes = tuple(range(v.dim())) if dim is None or dim == [] else dim
    return reduction(v, axes, keepdim)


def _refuse_integers(ctx: Context, dtype: Any) -> None:
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise ctx.not_lipschitz(f"conversion to {dtype} is discontinuous.")


@rule("_assert_tensor_metadata", kind="linear")
def assert_metadata(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> None:
    """A check of dtype and device that export writes next to a conversion: no value."""


@rule("to", "_to_copy", "type_as", kind="linear")
def to(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Var:
    """Conversion between floating types: the identity (the model's own rounding is outside the claim)."""
    x = ctx.variable(x)
    for value in (*args, *kwargs.values()):
        _refuse_integers(ctx, value.value.dtype if isinstance(value, Constant) else value)
    return ctx.scaled(x, 1.0)
