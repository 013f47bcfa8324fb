"""Operators that make constants and compute shapes."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipcert.capture.onnx.build import Builder, Value
from lipcert.capture.onnx.node import OnnxNode, translates

_aten = torch.ops.aten


@translates("Constant")
def _constant(build: Builder, node: OnnxNode) -> Value:
    name = node.outputs[0] if node.outputs else "constant"
    proto = node.tensor("value")
    if proto is not None:
        return build.constant(build.tensors.tensor(proto, f"ONNX {node}"), name)
    for found, dtype in (
        (node.reals("value_floats"), torch.float32), (node.integers("value_ints"), torch.int64),
    ):  # fmt: skip
        if found is not None:
            return build.constant(torch.tensor(found, dtype=dtype), name)
    if node.has("value_float"):
        return build.constant(torch.tensor(node.real("value_float"), dtype=torch.float32), name)
    if node.has("value_int"):
        return build.constant(torch.tensor(node.integer("value_int"), dtype=torch.int64), name)
    raise node.unsupported("it holds strings, or a sparse tensor; a dense tensor of numbers is needed.")


@translates("ConstantOfShape")
def _constant_of_shape(build: Builder, node: OnnxNode, shape: Value) -> Value:
    proto = node.tensor("value")
    fill = torch.zeros(1) if proto is None else build.tensors.tensor(proto, f"ONNX {node}")
    sizes = build.integers(shape, "shape")
    if fill.numel() != 1 or min(sizes, default=0) < 0:
        raise node.wrong("its value is not one number, or its shape has a negative entry")
    build.room.constant(f"ONNX {node}", sizes, fill.element_size())
    return build.constant(fill.reshape(()).expand(sizes).contiguous(), node.outputs[0])


@translates("Shape")
def _shape(build: Builder, node: OnnxNode, x: Value) -> Value:
    start, end = node.integer("start", 0), node.integer("end", x.rank)
    return build.constant(torch.tensor(x.shape, dtype=torch.int64)[start:end])


@translates("Size")
def _size(build: Builder, node: OnnxNode, x: Value) -> Value:
    return build.constant(torch.tensor(math.prod(x.shape), dtype=torch.int64))


@translates("Range")
def _range(build: Builder, node: OnnxNode, start: Value, limit: Value, delta: Value) -> Value:
    node.ignore("stash_type")
    if start.floating:
        raise node.unsupported("a range of floating numbers; store it as an initializer.")
    (first,), (last,), (step,) = (build.integers(build.reshaped(v, (1,)), "range") for v in (start, limit, delta))
    if not step:
        raise node.wrong("its step is 0")
    found = range(first, last, step)
    if len(found) > 1 << 31:
        raise node.wrong("it has more than 2^31 entries")
    build.room.constant(f"ONNX {node}", [len(found)], 8)
    return build.constant(torch.arange(first, last, step).to(start.tensor.dtype) if found else torch.zeros(0).long())


@translates("DequantizeLinear")
def _dequantize(build: Builder, node: OnnxNode, x: Value, scale: Value, zero: Value | None = None) -> Any:
    """(x − zero) · scale of a stored weight; what is quantised at run time jumps."""
    if x.varies:
        raise node.unsupported(
            "the network rounds to whole numbers, so it has no Lipschitz constant; give the float one."
        )
    if node.integer("block_size", 0) or not scale.floating:
        raise node.unsupported("its scales are of blocks, or no floats.")
    node.ignore("output_dtype")
    axis = node.integer("axis", 1)
    whole = build.cast(x, torch.int64)
    if scale.rank == 1 and scale.shape != (1,):
        wide = [1] * x.rank
        wide[node.axis(axis, x.rank)] = scale.shape[0]
        scale = build.reshaped(scale, wide)
        zero = None if zero is None else build.reshaped(zero, wide)
    whole = whole if zero is None else build(_aten.sub.Tensor, whole, build.cast(zero, torch.int64))
    if scale.tensor.dtype not in (torch.float32, torch.float64) or bool((whole.tensor.abs() > 2**24).any()):
        raise node.unsupported("its whole numbers are rounded before they are scaled; export it with float32 scales.")
    return build(_aten.mul.Tensor, build.cast(whole, scale.tensor.dtype), scale)


@translates("NonZero")
def _non_zero(build: Builder, node: OnnxNode, x: Value) -> Value:
    if x.varies:
        raise node.unsupported("which entries are not 0 depends on the input, so it jumps.")
    build.room.constant(f"ONNX {node}", [x.rank, x.tensor.numel()], 8)
    return build.constant(x.tensor.nonzero().T.contiguous())
