"""Operators with windows: what strides, padding and dilation of a file mean, and the poolings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lipcert.capture.onnx.build import Builder, Value
from lipcert.capture.onnx.node import OnnxNode, translates

_aten = torch.ops.aten
_MAX = (_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default)
_AVERAGE = (_aten.avg_pool1d.default, _aten.avg_pool2d.default, _aten.avg_pool3d.default)
_ADAPTIVE = (_aten.adaptive_avg_pool1d.default, _aten.adaptive_avg_pool2d.default, _aten.adaptive_avg_pool3d.default)


@dataclass(frozen=True)
class Window:
    """Per spatial axis: length of the kernel, stride, dilation, and padding before and after."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]

    @property
    def symmetric(self) -> bool:
        """Whether as much is padded before as after."""
        return self.begin == self.end

    @classmethod
    def of(cls, node: OnnxNode, sizes: Sequence[int], kernel: Sequence[int] | None = None) -> Window:
        """What a node says of its windows over axes of these sizes.

        Args:
            node: its attributes kernel_shape, strides, dilations, pads and auto_pad are read.
            sizes: of the spatial axes.
            kernel: that of its weight; None where the node alone says it.

        Raises:
            CaptureError: they do not fit each other.
        """
        spatial = len(sizes)
        stated = node.integers("kernel_shape")
        if kernel is None and stated is None:
            raise node.wrong("its kernel_shape is missing")
        if kernel is not None and stated is not None and list(kernel) != stated:
            raise node.wrong(f"its kernel_shape {stated[:4]} is not that of its weight, {list(kernel)[:4]}")
        found = list(kernel if kernel is not None else stated or [])
        strides = node.integers("strides") or [1] * spatial
        dilations = node.integers("dilations") or [1] * spatial
        pads = node.integers("pads") or [0] * (2 * spatial)
        auto = node.text("auto_pad", "NOTSET")
        if not (len(found) == len(strides) == len(dilations) == spatial and len(pads) == 2 * spatial):
            raise node.wrong("the lengths of its kernel_shape, strides, dilations and pads do not fit its input")
        if (
            min((*found, *strides, *dilations), default=1) < 1
            or max((*found, *strides, *dilations), default=1) > 1 << 24
        ):
            raise node.wrong("its kernel_shape, strides and dilations are no numbers from 1")
        if min(pads, default=0) < 0 or max(pads, default=0) > 1 << 24:
            raise node.wrong("its pads are no numbers from 0")
        if auto == "VALID":
            pads = [0] * (2 * spatial)
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            totals = [
                max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
                for n, s, k, d in zip(sizes, strides, found, dilations, strict=True)
            ]
            less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
            pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
        elif auto != "NOTSET":
            raise node.wrong(f"its auto_pad is {auto[:40]!r}")
        return cls(found, strides, dilations, pads[:spatial], pads[spatial:])


def around(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Widths as PyTorch has them, last axis first."""
    return [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]


def padded(build: Builder, x: Value, window: Window) -> tuple[Value, list[int]]:
    """The input, and the padding that is left to the op: all where it is the same at both ends, else none."""
    if window.symmetric:
        return x, window.begin
    wide = build(_aten.constant_pad_nd.default, x, around(window.begin, window.end), 0.0)
    return wide, [0] * len(window.begin)


def _pooled(node: OnnxNode, x: Value) -> int:
    spatial = x.rank - 2
    if not 1 <= spatial <= 3:
        raise node.unsupported(f"pooling of a value of shape {x.shape}; that of 1 to 3 axes is.")
    return spatial


@translates("MaxPool")
def _max_pool(build: Builder, node: OnnxNode, x: Value) -> Any:
    spatial = _pooled(node, x)
    window, ceil = Window.of(node, x.shape[2:]), bool(node.integer("ceil_mode", 0))
    node.ignore("storage_order")  # of the indices
    padding = window.begin
    if not window.symmetric or any(2 * p > k for p, k in zip(padding, window.kernel, strict=True)):
        empty = any(max(pads) >= k for *pads, k in zip(window.begin, window.end, window.kernel, strict=True))
        if ceil or empty or any(d != 1 for d in window.dilations):
            raise node.unsupported(
                "its padding differs between the two ends, and its windows have gaps, or hold padding only, or its "
                "size is rounded up."
            )
        # A window without gaps that reaches over the edge has the entry at the edge, whose copy changes no maximum.
        x = build(_aten.pad.default, x, around(window.begin, window.end), "replicate")
        padding = [0] * spatial
    y = build(_MAX[spatial - 1], x, window.kernel, window.strides, padding, window.dilations, ceil)
    return y, None


@translates("AveragePool")
def _average_pool(build: Builder, node: OnnxNode, x: Value) -> Any:
    spatial = _pooled(node, x)
    window, ceil = Window.of(node, x.shape[2:]), bool(node.integer("ceil_mode", 0))
    counted = bool(node.integer("count_include_pad", 0))
    if any(d != 1 for d in window.dilations):
        raise node.unsupported("an average over windows with gaps.")
    pool = _AVERAGE[spatial - 1]
    if window.symmetric and all(2 * p <= k for p, k in zip(window.begin, window.kernel, strict=True)):
        return build(pool, x, window.kernel, window.strides, window.begin, ceil, counted)
    if ceil:
        raise node.unsupported("its padding differs between the two ends and it rounds its size up.")
    wide = build(_aten.constant_pad_nd.default, x, around(window.begin, window.end), 0.0)
    y = build(pool, wide, window.kernel, window.strides, [0] * spatial, False, True)
    if counted:
        return y
    # The sum over the window by the number of its entries that are no padding.
    counts = torch.ones((), dtype=torch.float64)
    for axis in range(spatial):
        k, s, b, n = window.kernel[axis], window.strides[axis], window.begin[axis], x.shape[2 + axis]
        starts = torch.arange(y.shape[2 + axis], dtype=torch.float64) * s - b
        row = (starts + k).clamp(max=n) - starts.clamp(min=0)
        counts = counts.unsqueeze(-1) * row
    if bool((counts <= 0).any()):
        raise node.wrong("one of its windows holds padding only")
    if not torch.equal(counts.to(y.tensor.dtype).double(), counts):
        raise node.unsupported(f"its windows have more entries than {y.tensor.dtype} counts; export it in float32.")
    total = build(_aten.mul.Tensor, y, build.like(y, float(math.prod(window.kernel))))
    return build(_aten.div.Tensor, total, build.constant(counts.to(y.tensor.dtype), "counts"))


@translates("GlobalAveragePool")
def _global_average(build: Builder, node: OnnxNode, x: Value) -> Any:
    spatial = _pooled(node, x)
    return build(_ADAPTIVE[spatial - 1], x, [1] * spatial)


@translates("GlobalMaxPool")
def _global_max(build: Builder, node: OnnxNode, x: Value) -> Any:
    return build(_aten.amax.default, x, list(range(2, 2 + _pooled(node, x))), True)
