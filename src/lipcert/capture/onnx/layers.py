"""Affine layers and normalisations: Gemm, MatMul, convolutions, batch, layer, group and instance normalisation."""

from __future__ import annotations

from typing import Any

import torch

from lipcert.capture.onnx.build import Builder, Value
from lipcert.capture.onnx.node import OnnxNode, translates
from lipcert.capture.onnx.windows import Window, padded

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
_TRANSPOSED = (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input)
_EPSILON = float(torch.tensor(1e-5, dtype=torch.float32).item())


@translates("Gemm")
def _gemm(build: Builder, node: OnnxNode, a: Value, b: Value, c: Value | None = None) -> Any:
    """α a b + β c; a fully connected layer where it is one."""
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    turn_a, turn_b = bool(node.integer("transA", 0)), bool(node.integer("transB", 0))
    if a.rank != 2 or b.rank != 2:
        raise node.wrong(f"it multiplies values of shape {a.shape} and {b.shape}, not matrices")
    a = build(_aten.t.default, a) if turn_a else a
    columns = b.shape[0] if turn_b else b.shape[1]
    row = c is not None and c.shape in ((columns,), (1, columns))
    if a.varies and not b.varies and alpha == beta == 1.0 and (c is None or (row and not c.varies)):
        weight = b if turn_b else build(_aten.t.default, b)
        return build(_aten.linear.default, a, weight, None if c is None else build.reshaped(c, (columns,)))
    found = build(_aten.matmul.default, a, build(_aten.t.default, b) if turn_b else b)
    found = found if alpha == 1.0 else build(_aten.mul.Tensor, found, build.like(found, alpha))
    if c is None or beta == 0.0:
        return found
    offset = c if beta == 1.0 else build(_aten.mul.Tensor, c, build.like(c, beta))
    total: Value = build(_aten.add.Tensor, found, offset)
    if total.shape != found.shape:
        raise node.wrong(f"its C of shape {c.shape} does not fit a product of shape {found.shape}")
    return total


@translates("MatMul")
def _matmul(build: Builder, node: OnnxNode, a: Value, b: Value) -> Any:
    if a.varies and not b.varies and b.rank == 2:
        return build(_aten.linear.default, a, build(_aten.t.default, b))
    return build(_aten.matmul.default, a, b)


@translates("Conv")
def _conv(build: Builder, node: OnnxNode, x: Value, weight: Value, bias: Value | None = None) -> Any:
    spatial = _spatial(node, x, weight)
    window = Window.of(node, x.shape[2:], weight.shape[2:])
    x, padding = padded(build, x, window)
    return build(
        _CONVOLUTIONS[spatial - 1], x, weight, bias, window.strides, padding, window.dilations, node.integer("group", 1)
    )


@translates("ConvTranspose")
def _conv_transpose(build: Builder, node: OnnxNode, x: Value, weight: Value, bias: Value | None = None) -> Any:
    spatial = _spatial(node, x, weight)
    if node.has("output_shape") or node.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.unsupported("its padding is left to the runtime (output_shape or auto_pad); export it with pads.")
    window = Window.of(node, x.shape[2:], weight.shape[2:])
    extra = node.integers("output_padding") or [0] * spatial
    if len(extra) != spatial:
        raise node.wrong("its output_padding does not fit its weight")
    # Padding cuts off; PyTorch's is the same at both ends, and more is kept, or cut off, at the end.
    more = [a - b + e for a, b, e in zip(window.begin, window.end, extra, strict=True)]
    if any(m >= max(s, d) for m, s, d in zip(more, window.strides, window.dilations, strict=True)):
        raise node.unsupported("its output reaches beyond all its entries; export it with smaller output_padding.")
    y: Value = build(
        _TRANSPOSED[spatial - 1], x, weight, bias, window.strides, window.begin, [max(m, 0) for m in more],
        node.integer("group", 1), window.dilations,
    )  # fmt: skip
    for axis, m in enumerate(more):
        if m < 0:
            y = build(_aten.narrow.default, y, 2 + axis, 0, y.shape[2 + axis] + m)
    return y


def _spatial(node: OnnxNode, x: Value, weight: Value) -> int:
    spatial = weight.rank - 2
    if not 1 <= spatial <= 3 or x.rank != weight.rank:
        raise node.unsupported(
            f"a convolution of shape {x.shape} with a weight of shape {weight.shape}; 1-d to 3-d is."
        )
    return spatial


@translates("BatchNormalization")
def _batch_norm(build: Builder, node: OnnxNode, x: Value, scale: Value, shift: Value, mean: Value, var: Value) -> Any:
    if node.integer("training_mode", 0) or len([o for o in node.outputs if o]) > 1:
        raise node.unsupported("it is in training mode; export the model in eval mode.")
    if node.integer("spatial", 1) != 1:
        raise node.unsupported("it normalises each place by itself (spatial = 0); export with operator set 9 or later.")
    node.ignore("momentum")
    epsilon = node.real("epsilon", _EPSILON)
    return build(_aten.batch_norm.default, x, scale, shift, mean, var, False, 0.0, epsilon, False)


@translates("InstanceNormalization")
def _instance_norm(build: Builder, node: OnnxNode, x: Value, scale: Value, shift: Value) -> Any:
    epsilon = node.real("epsilon", _EPSILON)
    return build(_aten.instance_norm.default, x, scale, shift, None, None, True, 0.0, epsilon, False)


@translates("LayerNormalization")
def _layer_norm(build: Builder, node: OnnxNode, x: Value, scale: Value, shift: Value | None = None) -> Any:
    node.ignore("stash_type")  # the precision in which it computes
    axis = node.axis(node.integer("axis", -1), x.rank)
    shape, epsilon = x.shape[axis:], node.real("epsilon", _EPSILON)
    if scale.shape == shape and (shift is None or shift.shape == shape):
        y = build(_aten.layer_norm.default, x, list(shape), scale, shift, epsilon, False)
    else:
        y = build(_aten.mul.Tensor, build(_aten.layer_norm.default, x, list(shape), None, None, epsilon, False), scale)
        y = y if shift is None else build(_aten.add.Tensor, y, shift)
    if y.shape != x.shape:
        raise node.wrong("its scale does not fit")
    return y, None, None


@translates("RMSNormalization")
def _rms_norm(build: Builder, node: OnnxNode, x: Value, scale: Value) -> Any:
    node.ignore("stash_type")
    shape = x.shape[node.axis(node.integer("axis", -1), x.rank) :]
    epsilon = node.real("epsilon", _EPSILON)
    if scale.shape == shape:
        return build(_aten.rms_norm.default, x, list(shape), scale, epsilon)
    return build(_aten.mul.Tensor, build(_aten.rms_norm.default, x, list(shape), None, epsilon), scale)


@translates("GroupNormalization")
def _group_norm(build: Builder, node: OnnxNode, x: Value, scale: Value, shift: Value) -> Any:
    """Scale and shift are of a group before operator set 21, of a channel from then on."""
    node.ignore("stash_type")
    groups, epsilon = node.integer("num_groups"), node.real("epsilon", _EPSILON)
    if x.rank < 2 or groups < 1 or x.shape[1] % groups:
        raise node.wrong(f"{groups} groups of a value of shape {x.shape}")
    if node.version < 21:
        copies = x.shape[1] // groups
        for part in (scale, shift):
            if part.shape != (groups,):
                raise node.wrong("its scale and bias have not one entry per group")
        scale, shift = (_repeated(build, part, copies) for part in (scale, shift))
    return build(_aten.group_norm.default, x, groups, scale, shift, epsilon, False)


def _repeated(build: Builder, x: Value, copies: int) -> Value:
    wide = build(_aten.expand.default, build(_aten.unsqueeze.default, x, 1), [x.shape[0], copies])
    return build.reshaped(wide, (x.shape[0] * copies,))


@translates("LpNormalization")
def _lp_norm(build: Builder, node: OnnxNode, x: Value) -> Any:
    axis, p = node.axis(node.integer("axis", -1), x.rank), node.integer("p", 2)
    if p not in (1, 2):
        raise node.wrong(f"its p is {p}")
    return build(_aten.div.Tensor, x, build(_aten.linalg_vector_norm.default, x, float(p), [axis], True))


@translates("LRN")
def _local_response(build: Builder, node: OnnxNode, x: Value) -> Any:
    """x / (bias + alpha/size · Σ of squares over neighbouring channels)^beta."""
    size, alpha = node.integer("size"), node.real("alpha", float(torch.tensor(1e-4, dtype=torch.float32).item()))
    beta, bias = node.real("beta", 0.75), node.real("bias", 1.0)
    if x.rank != 4 or size < 1:
        raise node.unsupported(f"of size {size} on a value of shape {x.shape}; images are supported.")
    squares = build(_aten.unsqueeze.default, build(_aten.mul.Tensor, x, x), 1)
    wide = build(_aten.constant_pad_nd.default, squares, [0, 0, 0, 0, (size - 1) // 2, size // 2], 0.0)
    mean = build(_aten.squeeze.dim, build(_aten.avg_pool3d.default, wide, [size, 1, 1], [1, 1, 1]), 1)
    base = build(_aten.add.Tensor, build(_aten.mul.Tensor, mean, build.like(x, alpha)), build.like(x, bias))
    return build(_aten.div.Tensor, x, build(_aten.pow.Tensor_Scalar, base, beta))
