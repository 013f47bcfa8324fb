"""Convolutions, plain and transposed, 1-d to 3-d: the exact operator at the real input size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.ops.context import Constant, Context
from lipcert.ops.keys import convolution_key
from lipcert.ops.registry import rule

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


def _offset(ctx: Context, bias: Any, spatial: int) -> Constant | None:
    if bias is None:
        return None
    return ctx.constant(bias, "bias").map(lambda b: b.reshape(-1, *([1] * spatial)))


def _terms(weight: Constant) -> int:
    """An upper bound on the taps that meet in one output, or in one input under the transpose."""
    kernel = weight.value[0, 0].numel() if weight.value.numel() else 1
    return kernel * max(weight.shape[:2])


@rule("conv1d", "conv2d", "conv3d", kind="linear")
def convolution(
    ctx: Context,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Var:
    """Convolution, real stride, padding, dilation, groups: in l2 σ_max of the operator at the real size."""
    weight = ctx.constant(weight, "weight")
    spatial = weight.value.dim() - 2
    convolve = _CONVOLUTIONS[spatial - 1]

    def function(value: Tensor, kernel: Tensor) -> Tensor:
        return convolve(value, kernel, None, stride, padding, dilation, groups)

    key = convolution_key("convolution", spatial, weight.shape[2:], stride, padding, dilation, groups)
    return ctx.linear(ctx.variable(x), function, (weight,), _terms(weight), _offset(ctx, bias, spatial), key)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", kind="linear")
def transposed_convolution(
    ctx: Context,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Var:
    """Transposed convolution: the transpose of the convolution of the same geometry; same σ_max in l2."""
    weight = ctx.constant(weight, "weight")
    spatial = weight.value.dim() - 2
    convolve = _TRANSPOSED[spatial - 1]

    def function(value: Tensor, kernel: Tensor) -> Tensor:
        return convolve(value, kernel, None, stride, padding, output_padding, groups, dilation)

    kind, shape = "transposed convolution", weight.shape[2:]
    key = convolution_key(kind, spatial, shape, stride, padding, dilation, groups, output_padding)
    return ctx.linear(ctx.variable(x), function, (weight,), _terms(weight), _offset(ctx, bias, spatial), key)


@rule("convolution", kind="linear")
def generic_convolution(
    ctx: Context,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Var:
    """Decomposed form of every convolution: σ_max of the operator at the real size in l2."""
    if transposed:
        return transposed_convolution(ctx, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return convolution(ctx, x, weight, bias, stride, padding, dilation, groups)
