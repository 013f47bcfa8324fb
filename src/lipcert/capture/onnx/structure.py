"""Operators that move, repeat or drop entries, and those that compute shapes."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipcert.capture.onnx.build import Builder, Value
from lipcert.capture.onnx.node import OnnxNode, translates
from lipcert.capture.onnx.windows import around
from lipcert.ops.scatters import destinations

_aten = torch.ops.aten


# -- reshaping ------------------------------------------------------------------------------------------------


@translates("Reshape")
def _reshape(build: Builder, node: OnnxNode, x: Value, shape: Value) -> Value:
    sizes = build.integers(shape, "shape")
    if not node.integer("allowzero", 0):
        if any(n == 0 and k >= x.rank for k, n in enumerate(sizes)):
            raise node.wrong("it copies a size that its input does not have")
        sizes = [x.shape[k] if n == 0 else n for k, n in enumerate(sizes)]
    if min(sizes, default=0) < -1 or sizes.count(-1) > 1:
        raise node.wrong(f"its shape is {sizes[:8]}")
    return build.reshaped(x, sizes)


@translates("Flatten")
def _flatten(build: Builder, node: OnnxNode, x: Value) -> Value:
    axis = node.integer("axis", 1)
    if not -x.rank <= axis <= x.rank:
        raise node.wrong(f"its axis is {axis}")
    axis = axis + x.rank if axis < 0 else axis
    return build.reshaped(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@translates("Transpose")
def _transpose(build: Builder, node: OnnxNode, x: Value) -> Any:
    order = node.integers("perm")
    return build(_aten.permute.default, x, list(reversed(range(x.rank))) if order is None else order)


def axes_of(build: Builder, node: OnnxNode, given: Value | None, since: int) -> list[int] | None:
    """Axes as a node has them: an attribute, from operator set ``since`` on an input; None if not given."""
    if node.version < since:
        return node.integers("axes")
    return None if given is None else build.integers(given, "axes")


@translates("Squeeze")
def _squeeze(build: Builder, node: OnnxNode, x: Value, axes: Value | None = None) -> Value:
    found = axes_of(build, node, axes, 13)
    chosen = [k for k, n in enumerate(x.shape) if n == 1] if found is None else node.axes(found, x.rank)
    if any(x.shape[k] != 1 for k in chosen):
        raise node.wrong(f"it takes away axes {chosen[:8]} of a value of shape {x.shape}")
    return build.reshaped(x, [n for k, n in enumerate(x.shape) if k not in chosen])


@translates("Unsqueeze")
def _unsqueeze(build: Builder, node: OnnxNode, x: Value, axes: Value | None = None) -> Value:
    found = axes_of(build, node, axes, 13)
    if found is None:
        raise node.wrong("its axes are missing")
    rank = x.rank + len(found)
    chosen, rest = node.axes(found, rank), iter(x.shape)
    return build.reshaped(x, [1 if k in chosen else next(rest) for k in range(rank)])


@translates("Expand")
def _expand(build: Builder, node: OnnxNode, x: Value, shape: Value) -> Any:
    wanted = build.integers(shape, "shape")
    if min(wanted, default=1) < 0 or len(wanted) > 64:
        raise node.wrong(f"its shape is {wanted[:8]}")
    try:
        return build(_aten.expand.default, x, list(torch.broadcast_shapes(x.shape, wanted)))
    except RuntimeError as problem:
        raise node.wrong(f"shapes {x.shape} and {wanted[:8]} do not fit") from problem


@translates("Tile")
def _tile(build: Builder, node: OnnxNode, x: Value, repeats: Value) -> Any:
    return build(_aten.repeat.default, x, build.integers(repeats, "repeats"))


@translates("Pad")
def _pad(
    build: Builder, node: OnnxNode, x: Value, pads: Value | None = None, fill: Value | None = None,
    axes: Value | None = None,
) -> Any:  # fmt: skip
    mode = node.text("mode", "constant")
    if node.version < 11:
        widths, number = node.integers("pads") or [], node.real("value", 0.0)
    else:
        if pads is None:
            raise node.wrong("its pads are missing")
        widths, number = build.integers(pads, "pads"), 0.0 if fill is None else build.number(fill, "value")
    chosen = list(range(x.rank)) if axes is None else node.axes(build.integers(axes, "axes"), x.rank)
    if len(widths) != 2 * len(chosen):
        raise node.wrong("the length of its pads does not fit")
    begin, end = [0] * x.rank, [0] * x.rank
    for place, axis in enumerate(chosen):
        begin[axis], end[axis] = widths[place], widths[len(chosen) + place]
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in names:
        raise node.wrong(f"its mode is {mode[:40]!r}")
    if not any(begin) and not any(end):
        return x
    if mode == "constant":
        return build(_aten.constant_pad_nd.default, x, around(begin, end), number if x.floating else int(number))
    if min(*begin, *end) < 0:
        raise node.unsupported(f"it cuts off entries in mode {mode}.")
    first = next(k for k in range(x.rank) if begin[k] or end[k])
    if x.rank - first > 3 or first < 1:
        raise node.unsupported(f"padding of other than the last three axes in mode {mode}.")
    if first == 1:  # PyTorch leaves two axes in front as they are
        wide = build.reshaped(x, (1, *x.shape))
        y = build(_aten.pad.default, wide, around(begin[first:], end[first:]), names[mode])
        return build.reshaped(y, y.shape[1:])
    return build(_aten.pad.default, x, around(begin[first:], end[first:]), names[mode])


@translates("DepthToSpace")
def _depth_to_space(build: Builder, node: OnnxNode, x: Value) -> Value:
    block, mode = node.integer("blocksize"), node.text("mode", "DCR")
    if x.rank != 4 or block < 1 or x.shape[1] % (block * block) or mode not in ("DCR", "CRD"):
        raise node.wrong(f"blocks of {block} of a value of shape {x.shape}, mode {mode[:40]!r}")
    n, c, h, w = x.shape
    c //= block * block
    if mode == "CRD":
        found: Value = build(_aten.pixel_shuffle.default, x, block)
        return found
    y = build(_aten.permute.default, build.reshaped(x, (n, block, block, c, h, w)), [0, 3, 4, 1, 5, 2])
    return build.reshaped(y, (n, c, h * block, w * block))


@translates("SpaceToDepth")
def _space_to_depth(build: Builder, node: OnnxNode, x: Value) -> Value:
    block, mode = node.integer("blocksize"), node.text("mode", "DCR")
    if x.rank != 4 or block < 1 or x.shape[2] % block or x.shape[3] % block or mode not in ("DCR", "CRD"):
        raise node.wrong(f"blocks of {block} of a value of shape {x.shape}")
    n, c, h, w = x.shape
    y = build.reshaped(x, (n, c, h // block, block, w // block, block))
    y = build(_aten.permute.default, y, [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4])
    return build.reshaped(y, (n, c * block * block, h // block, w // block))


@translates("Trilu")
def _trilu(build: Builder, node: OnnxNode, x: Value, diagonal: Value | None = None) -> Any:
    (k,) = [0] if diagonal is None else build.integers(build.reshaped(diagonal, (1,)), "diagonal")
    return build(_aten.triu.default if node.integer("upper", 1) else _aten.tril.default, x, k)


# -- joining and cutting ----------------------------------------------------------------------------------------


@translates("Concat")
def _concat(build: Builder, node: OnnxNode, *values: Value) -> Any:
    if not values or any(v.rank != values[0].rank for v in values):
        raise node.wrong("it joins nothing, or values with different numbers of axes")
    return build(_aten.cat.default, list(values), node.axis(node.integer("axis"), values[0].rank))


@translates("Split")
def _split(build: Builder, node: OnnxNode, x: Value, split: Value | None = None) -> Any:
    axis = node.axis(node.integer("axis", 0), x.rank)
    length, count = x.shape[axis], node.integer("num_outputs", len(node.outputs))
    sizes = node.integers("split") if node.version < 13 else None if split is None else build.integers(split, "split")
    if sizes is None:
        if count < 1 or count != len(node.outputs):
            raise node.wrong("the number of its outputs does not fit")
        each = -(-length // count)
        sizes = [max(min(each, length - k * each), 0) for k in range(count)]
    if min(sizes, default=-1) < 0 or sum(sizes) != length or len(sizes) != len(node.outputs):
        raise node.wrong(f"it cuts an axis of length {length} into {sizes[:8]}")
    return build(_aten.split_with_sizes.default, x, sizes, axis)


@translates("Slice")
def _slice(
    build: Builder, node: OnnxNode, x: Value, starts: Value | None = None, ends: Value | None = None,
    axes: Value | None = None, steps: Value | None = None,
) -> Any:  # fmt: skip
    if node.version < 10:
        first, last, chosen, strides = node.integers("starts"), node.integers("ends"), node.integers("axes"), None
    else:
        given = zip((starts, ends, axes, steps), ("starts", "ends", "axes", "steps"), strict=True)
        first, last, chosen, strides = (None if v is None else build.integers(v, what) for v, what in given)
    if first is None or last is None:
        raise node.wrong("its starts or ends are missing")
    chosen = node.axes(list(range(len(first))) if chosen is None else chosen, x.rank)
    strides = [1] * len(first) if strides is None else strides
    if not len(first) == len(last) == len(chosen) == len(strides) or 0 in strides:
        raise node.wrong("its starts, ends, axes and steps do not fit each other")
    for start, end, axis, step in zip(first, last, chosen, strides, strict=True):
        start, end, step = slice(start, end, step).indices(x.shape[axis])
        if (start, end, step) == (0, x.shape[axis], 1):
            continue
        if step > 0:
            x = build(_aten.slice.Tensor, x, axis, start, max(end, start), step)
        else:
            x = build(_aten.index_select.default, x, axis, build.constant(torch.arange(start, min(end, start), step)))
    return x


@translates("Gather")
def _gather(build: Builder, node: OnnxNode, x: Value, places: Value) -> Any:
    axis = node.axis(node.integer("axis", 0), x.rank)
    index = _places(build, node, places, x.shape[axis])
    if places.rank == 0:
        return build(_aten.select.int, x, axis, int(index.reshape(()).item()))
    y = build(_aten.index_select.default, x, axis, build.constant(index.reshape(-1)))
    return build.reshaped(y, (*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def _places(build: Builder, node: OnnxNode, places: Value, length: int) -> torch.Tensor:
    """Positions along an axis, counted from the front."""
    if places.varies:
        raise node.unsupported("the places it takes depend on the input, so it jumps and has no Lipschitz constant.")
    if places.floating or places.tensor.dtype == torch.bool:
        raise node.wrong("its indices are no whole numbers")
    index = places.tensor.long()
    if index.numel() and (int(index.min()) < -length or int(index.max()) >= length):
        raise node.wrong(f"it takes places outside an axis of length {length}")
    return torch.where(index < 0, index + length, index)


@translates("GatherElements")
def _gather_elements(build: Builder, node: OnnxNode, x: Value, places: Value) -> Any:
    axis = node.axis(node.integer("axis", 0), x.rank)
    index = build.constant(_places(build, node, places, x.shape[axis]))
    return build(_aten.gather.default, x, axis, index)


@translates("GatherND")
def _gather_nd(build: Builder, node: OnnxNode, x: Value, places: Value) -> Any:
    if node.integer("batch_dims", 0):
        raise node.unsupported("with batch_dims; use Gather or GatherElements.")
    return build(_aten.index.Tensor, x, _tuples(build, node, x, places))


def _tuples(build: Builder, node: OnnxNode, x: Value, places: Value) -> list[Value]:
    if places.rank < 1 or not 1 <= places.shape[-1] <= x.rank:
        raise node.wrong("its indices do not fit")
    if places.varies:
        raise node.unsupported("the places it takes depend on the input, so it jumps and has no Lipschitz constant.")
    return [
        build.constant(_places(build, node, Value(places.tensor[..., k]), x.shape[k]))
        for k in range(places.shape[-1])
    ]  # fmt: skip


@translates("ScatterND")
def _scatter_nd(build: Builder, node: OnnxNode, x: Value, places: Value, updates: Value) -> Any:
    kind = node.text("reduction", "none")
    if kind not in ("none", "add"):
        raise node.unsupported(f"with reduction {kind[:40]!r}.")
    tuples = _tuples(build, node, x, places)
    if kind == "none":
        flat = torch.zeros((), dtype=torch.int64)
        for size, index in zip(x.shape, tuples, strict=False):
            flat = flat * size + index.tensor
        if flat.unique().numel() != flat.numel():
            raise node.unsupported("it writes one place twice, and which value remains is not defined.")
    return build(_aten.index_put.default, x, tuples, updates, kind == "add")


@translates("ScatterElements")
def _scatter_elements(build: Builder, node: OnnxNode, x: Value, places: Value, updates: Value) -> Any:
    kind = node.text("reduction", "none")
    axis = node.axis(node.integer("axis", 0), x.rank)
    index = build.constant(_places(build, node, places, x.shape[axis]))
    if kind == "none":
        flat = destinations(x.shape, axis, index.tensor)
        if flat.unique().numel() != flat.numel():
            raise node.unsupported("it writes one place twice, and which value remains is not defined.")
        return build(_aten.scatter.src, x, axis, index, updates)
    if kind not in ("add", "max", "min"):
        raise node.unsupported(f"with reduction {kind[:40]!r}.")
    reduction = {"add": "sum", "max": "amax", "min": "amin"}[kind]
    return build(_aten.scatter_reduce.two, x, axis, index, updates, reduction)


@translates("CumSum")
def _cumsum(build: Builder, node: OnnxNode, x: Value, axis: Value) -> Any:
    (chosen,) = build.integers(build.reshaped(axis, (1,)), "axis")
    chosen = node.axis(chosen, x.rank)
    reverse, exclusive = node.integer("reverse", 0), node.integer("exclusive", 0)
    y = build(_aten.flip.default, x, [chosen]) if reverse else x
    y = build(_aten.cumsum.default, y, chosen)
    y = build(_aten.flip.default, y, [chosen]) if reverse else y
    return build(_aten.sub.Tensor, y, x) if exclusive else y
