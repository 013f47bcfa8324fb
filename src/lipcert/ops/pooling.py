"""Average pooling (linear, non-negative) and max pooling (selections), with the real windows of the op."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.linear import Shape
from lipcert.network.nonlinearity import MaxSelection
from lipcert.ops.context import Context
from lipcert.ops.keys import window_key
from lipcert.ops.registry import rule

_AVERAGE = (
    torch.nn.functional.avg_pool1d,
    torch.nn.functional.avg_pool2d,
    torch.nn.functional.avg_pool3d,
)
_ADAPTIVE_AVERAGE = (
    torch.nn.functional.adaptive_avg_pool1d,
    torch.nn.functional.adaptive_avg_pool2d,
    torch.nn.functional.adaptive_avg_pool3d,
)
_MAX = (torch.nn.functional.max_pool1d, torch.nn.functional.max_pool2d, torch.nn.functional.max_pool3d)
_ADAPTIVE_MAX = (
    torch.nn.functional.adaptive_max_pool1d,
    torch.nn.functional.adaptive_max_pool2d,
    torch.nn.functional.adaptive_max_pool3d,
)


def _tuple(value: Any, spatial: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return tuple(int(v) for v in (values * spatial if len(values) == 1 else values))


def _average(spatial: int) -> None:
    pool = _AVERAGE[spatial - 1]

    @rule(f"avg_pool{spatial}d", kind="linear")
    def average(
        ctx: Context,
        x: Any,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Var:
        """Average pooling: 1 in l∞; in l2 from the real windows (1/√k where windows of k do not overlap)."""
        if divisor_override is not None and divisor_override <= 0:
            raise ctx.unsupported(f"divisor_override is {divisor_override}; it must be positive.")
        args = (kernel, stride or kernel, padding, ceil_mode, count_include_pad)
        extra = () if spatial == 1 else (divisor_override,)
        # An input lies in at most one window per place of the kernel; division adds a rounding.
        terms = math.prod(_tuple(kernel, spatial)) + 2.0
        x, sizes = ctx.variable(x), [_tuple(v, spatial) for v in (kernel, stride or kernel, padding)]
        key = window_key(x.shape, sizes[0], sizes[1], sizes[2], ceil_mode, count_include_pad, divisor_override)
        return ctx.linear(x, lambda v: pool(v, *args, *extra), (), terms, key=key)


def _adaptive_average(spatial: int) -> None:
    pool = _ADAPTIVE_AVERAGE[spatial - 1]

    @rule(f"adaptive_avg_pool{spatial}d", f"_adaptive_avg_pool{spatial}d", kind="linear")
    def average(ctx: Context, x: Any, size: Any) -> Var:
        """Adaptive average pooling: 1 in l∞; in l2 from the real windows, which may overlap."""
        x = ctx.variable(x)
        terms, ratios = 2.0, []
        for n, m in zip(x.shape[-spatial:], _tuple(size, spatial), strict=True):
            ratios.append(n // m if m and n % m == 0 else 0)
            terms *= max(math.ceil(n / m), math.ceil(m / n)) + 1.0  # entries of a window; windows over an entry
        equal = window_key(x.shape, ratios, ratios, [0] * spatial, False, True, None)
        key = equal if all(ratios) else f"average {_tuple(size, spatial)} unequal windows"
        return ctx.linear(x, lambda v: pool(v, size), (), terms + 2.0, key=key)


def window_table(in_shape: Shape, spatial: int, axes: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Shape] | None:
    """Flat positions of the entries of every window, and the pooled shape.

    Args:
        in_shape: shape of the input; its last ``spatial`` axes are pooled.
        spatial: number of pooled axes.
        axes: for each pooled axis and each output along it, the input positions of the window, all valid.

    Returns:
        An (outputs, K) table in which a window with fewer than K entries repeats its first, and the output's
        shape; None if a window is empty.
    """
    if any(not window for axis in axes for window in axis):
        return None
    sizes = in_shape[len(in_shape) - spatial :]
    planes = math.prod(in_shape[: len(in_shape) - spatial])
    plane, flat = math.prod(sizes), torch.zeros(1, 1, dtype=torch.int64)
    for length, axis in zip(sizes, axes, strict=True):
        most = max((len(window) for window in axis), default=0)
        filled = torch.tensor([[*w, *[w[0]] * (most - len(w))] for w in axis], dtype=torch.int64).reshape(-1, most)
        # Combine what the earlier axes give (outputs, entries) with this axis, row-major.
        combined = flat[:, None, :, None] * length + filled[None, :, None, :]
        flat = combined.reshape(flat.shape[0] * filled.shape[0], flat.shape[1] * most)
    table = torch.arange(planes)[:, None, None] * plane + flat[None]
    out_shape = (*in_shape[: len(in_shape) - spatial], *(len(axis) for axis in axes))
    return table.reshape(planes * flat.shape[0], flat.shape[1]), out_shape


def _select(ctx: Context, x: Var, spatial: int, axes: Sequence[Sequence[Sequence[int]]]) -> Var:
    found = window_table(x.shape, spatial, axes)
    if found is None:
        raise ctx.unsupported("a pooling window holds padding only, so its maximum is −∞.")
    table, out_shape = found
    return ctx.selection(x, MaxSelection("max_pool", table, x.shape, out_shape))


def _index_error(ctx: Context) -> Any:
    return ctx.not_lipschitz("the positions of maxima are whole numbers that jump; use the pooled values only.")


def _max(spatial: int) -> None:
    pool = _MAX[spatial - 1]

    def select(
        ctx: Context,
        x: Any,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Var:
        x = ctx.variable(x)
        kernel, padding, dilation = (_tuple(v, spatial) for v in (kernel, padding, dilation))
        stride = _tuple(stride, spatial) if stride not in ((), [], None) else kernel
        probe = pool(torch.zeros(x.shape), kernel, stride, padding, dilation, ceil_mode)
        axes = []
        for axis in range(spatial):
            n, m = x.shape[axis - spatial], probe.shape[axis - spatial]
            starts = [place * stride[axis] - padding[axis] for place in range(m)]
            taps = range(0, kernel[axis] * dilation[axis], dilation[axis])
            axes.append([[s + t for t in taps if 0 <= s + t < n] for s in starts])
        return _select(ctx, x, spatial, axes)

    @rule(f"max_pool{spatial}d", kind="selection")
    def maximum(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Var:
        """Max pooling: √m in l2, 1 in l∞, m in l1, m the most windows over one input (counted)."""
        return select(ctx, x, *args, **kwargs)

    @rule(f"max_pool{spatial}d_with_indices", kind="selection")
    def maximum_and_indices(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> tuple[Var, Var]:
        """Max pooling with indices: √m in l2, 1 in l∞, m in l1; the indices are refused."""
        values = select(ctx, x, *args, **kwargs)
        return values, ctx.unresolved((values,), values.shape, _index_error(ctx))


def _adaptive_max(spatial: int) -> None:
    pool = _ADAPTIVE_MAX[spatial - 1]

    @rule(f"adaptive_max_pool{spatial}d", kind="selection")
    def maximum(ctx: Context, x: Any, size: Any) -> tuple[Var, Var]:
        """Adaptive max pooling: √m in l2, 1 in l∞, m in l1, m the most windows over one input (counted)."""
        x = ctx.variable(x)
        probe = pool(torch.zeros(x.shape), size)
        axes = []
        for axis in range(spatial):
            n, m = x.shape[axis - spatial], probe.shape[axis - spatial]
            axes.append([list(range(place * n // m, -(-(place + 1) * n // m))) for place in range(m)])
        values = _select(ctx, x, spatial, axes)
        return values, ctx.unresolved((values,), values.shape, _index_error(ctx))


for _spatial, _register in itertools.product((1, 2, 3), (_average, _adaptive_average, _max, _adaptive_max)):
    _register(_spatial)
