"""Convolutions, plain and transposed, 1-d to 3-d: the exact operator at the real input size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.linear import Shape
from lipcert.ops.context import Constant, Context
from lipcert.ops.convolution_matrix import Axis, Geometry
from lipcert.ops.keys import convolution_key, each
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


def _derivative(y: Tensor, x: Tensor, kernel: Tensor, settings: tuple[Any, ...]) -> Tensor:
    """A function of the module, which closures can name when they go to another process; an op of torch cannot go."""
    result: Tensor = torch.ops.aten.convolution_backward(y, x, kernel, None, *settings, [True, False, False])[0]
    return result


def _back(
    shape: Shape,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    extra: Sequence[int] | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The transposed map of a convolution of one example of ``shape``; ``extra``: of a transposed convolution.

    PyTorch's own derivative with respect to the input, of which it reads no more than the shape.
    """
    spatial = len(stride)
    turned, more = extra is not None, list(extra or [0] * spatial)

    def transposed(y: Tensor, kernel: Tensor) -> Tensor:
        planes = y.reshape(-1, *y.shape[-1 - spatial :])  # examples with or without a batch dimension
        some = planes.new_empty(1).expand(len(planes), *shape[-1 - spatial :])
        settings = (list(stride), list(padding), list(dilation), turned, more, groups)
        return _derivative(planes, some, kernel, settings).reshape(len(y), *shape)

    return transposed


def _back_with_padding(
    shape: Shape, kernel: Shape, stride: Any, padding: Any, dilation: Any, groups: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The same with padding by name: ``same`` pads by half of what is missing, an odd entry at the end."""
    spatial = len(kernel)
    stride, dilation = each(stride, spatial), each(dilation, spatial)
    if not isinstance(padding, str):
        return _back(shape, stride, each(padding, spatial), dilation, groups)
    whole = _missing(kernel, padding, dilation)
    odd = [n % 2 for n in whole]
    sides = shape[len(shape) - spatial :]
    padded = (*shape[: len(shape) - spatial], *(n + o for n, o in zip(sides, odd, strict=True)))
    inner = _back(padded, stride, [n // 2 for n in whole], dilation, groups)

    def transposed(y: Tensor, weight: Tensor) -> Tensor:
        result = inner(y, weight)
        for axis, n in enumerate(sides):
            result = result.narrow(axis - spatial, 0, n)
        return result

    return transposed


def _missing(kernel: Shape, padding: str, dilation: Sequence[int]) -> list[int]:
    """Entries that padding by name adds along each axis, at both ends together."""
    return [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]


def _written(
    shape: Shape, kernel: Shape, stride: Any, padding: Any, dilation: Any, groups: int, extra: Any = None
) -> Callable[[Tensor], Tensor] | None:
    """The map's matrix from its kernel; ``extra``: output padding, of a transposed convolution."""
    spatial = len(kernel)
    if math.prod(shape[: -spatial - 1]) != 1:  # a batch within one example
        return None
    stride, dilation = each(stride, spatial), each(dilation, spatial)
    named = isinstance(padding, str)
    both = _missing(kernel, padding, dilation) if named else [2 * p for p in each(padding, spatial)]
    sides, axes = shape[len(shape) - spatial :], []
    for n, k, s, d, pad, more in zip(sides, kernel, stride, dilation, both, each(extra or 0, spatial), strict=True):
        reach = d * (k - 1) - pad
        inside, outside = (n, (n - reach - 1) // s + 1) if extra is None else ((n - 1) * s + reach + more + 1, n)
        axes.append(Axis(inside, outside, s, pad // 2, d))
    return Geometry(tuple(axes), groups, extra is not None).matrix


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

    x, kernel = ctx.variable(x), weight.shape[2:]
    key = convolution_key("convolution", spatial, kernel, stride, padding, dilation, groups)
    back = _back_with_padding(x.shape, kernel, stride, padding, dilation, groups)
    written = _written(x.shape, kernel, stride, padding, dilation, groups)
    return ctx.linear(x, function, (weight,), _terms(weight), _offset(ctx, bias, spatial), key, back, written)


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

    x, kind = ctx.variable(x), "transposed convolution"
    key = convolution_key(kind, spatial, weight.shape[2:], stride, padding, dilation, groups, output_padding)
    steps, edges, gaps, extra = (each(v, spatial) for v in (stride, padding, dilation, output_padding))
    back = _back(x.shape, steps, edges, gaps, groups, extra)
    written = _written(x.shape, weight.shape[2:], stride, padding, dilation, groups, output_padding)
    return ctx.linear(x, function, (weight,), _terms(weight), _offset(ctx, bias, spatial), key, back, written)


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
