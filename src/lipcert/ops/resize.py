"""Up- and down-sampling: nearest as a gather, the interpolating modes as exact matrices along each axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.source import Fixed
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.enclosure import rounded
from lipcert.ops.registry import rule
from lipcert.ops.terms import moved

#: Keys' cubic convolution parameter used by PyTorch.
_CUBIC = Fraction(-3, 4)

Taps = list[tuple[int, Fraction]]


def _sizes(ctx: Context, x: Var, spatial: int, size: Any, scales: Any) -> tuple[list[int], list[float | None]]:
    """Output length and explicit scale factor of each resized axis, as PyTorch determines them."""
    lengths = x.shape[len(x.shape) - spatial :]
    if len(x.shape) != spatial + 2:
        raise ctx.unsupported(f"it needs an input with {spatial + 2} axes.")
    if size is not None:
        # With a size and a scale both, PyTorch's kernels read coordinates by the scale.
        given = [None if s is None else float(s) for s in scales or [None] * spatial]
        return [int(s) for s in size], given
    if scales is None or len(scales) != spatial:
        raise ctx.unsupported("neither an output size nor a scale factor per axis is given.")
    return [math.floor(n * float(s)) for n, s in zip(lengths, scales, strict=True)], [float(s) for s in scales]


def _settings(args: tuple[Any, ...], spatial: int) -> tuple[Any, Any]:
    """(size, scales) of the two calling forms: (size, scale, scale …) and vec's (size, [scales])."""
    size, rest = args[0], args[1:]
    if len(rest) == 1 and (rest[0] is None or isinstance(rest[0], (list, tuple))):
        return size, rest[0]
    scales = list(rest) + [None] * (spatial - len(rest))
    return size, None if all(s is None for s in scales) else scales


def _nearest(name: str, spatial: int) -> None:
    @rule(f"{name}{spatial}d", kind="linear")
    def nearest(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Var:
        """Nearest-neighbour resizing: √(copies of an entry) in l2, 1 in l∞."""
        x = ctx.variable(x)
        size, scales = _settings((*args, *kwargs.values()), spatial)
        sizes, given = _sizes(ctx, x, spatial, size, scales)
        lengths = x.shape[2:]
        operator = getattr(torch.ops.aten, f"{name}{spatial}d").default
        # The op itself says which entry it copies (in float32 coordinates, whatever the dtype).
        numbers = torch.arange(math.prod(lengths), dtype=torch.float64).reshape(1, 1, *lengths)
        table = operator(numbers, sizes, *given).reshape(-1).long()

        def function(v: Tensor) -> Tensor:
            return v.reshape(*v.shape[:2], -1)[:, :, table.to(v.device)].reshape(*v.shape[:2], *sizes)

        return moved(ctx, x, function)


def _coordinate(place: int, n: int, m: int, align: bool, scale: float | None) -> Fraction:
    """Exact source coordinate of output ``place`` (area_pixel_compute_source_index)."""
    if align:
        return place * Fraction(n - 1, m - 1) if m > 1 else Fraction(0)
    step = Fraction(n, m) if scale is None or scale <= 0 else 1 / Fraction(scale)
    return step * (place + Fraction(1, 2)) - Fraction(1, 2)


def _linear_taps(source: Fraction, n: int) -> Taps:
    source = max(source, Fraction(0))
    left = min(math.floor(source), n - 1)
    weight = min(max(source - left, Fraction(0)), Fraction(1))
    return [(left, 1 - weight), (min(left + 1, n - 1), weight)]


def _cubic_taps(source: Fraction, n: int) -> Taps:
    left = math.floor(source)
    t, a = source - left, _CUBIC

    def near(s: Fraction) -> Fraction:
        return ((a + 2) * s - (a + 3)) * s * s + 1

    def far(s: Fraction) -> Fraction:
        return ((a * s - 5 * a) * s + 8 * a) * s - 4 * a

    weights = (far(t + 1), near(t), near(1 - t), far(2 - t))
    return [(min(max(left + k - 1, 0), n - 1), weight) for k, weight in enumerate(weights)]


def axis_matrix(taps: Callable[[Fraction, int], Taps], n: int, m: int, align: bool, scale: float | None) -> Tensor:
    """The (m, n) matrix of one-dimensional interpolation; every entry is the exact one, correctly rounded."""
    matrix = torch.zeros(m, n, dtype=torch.float64)
    for place in range(m):
        exact: dict[int, Fraction] = {}
        for position, weight in taps(_coordinate(place, n, m, align, scale), n):
            exact[position] = exact.get(position, Fraction(0)) + weight
        for position, weight in exact.items():
            matrix[place, position] = float(weight)
    return matrix


def _interpolation(name: str, spatial: int, taps: Callable[[Fraction, int], Taps], summary: str) -> None:
    @rule(name, kind="linear")
    def interpolate(ctx: Context, x: Any, size: Any, align_corners: bool = False, *args: Any, **kwargs: Any) -> Var:
        x = ctx.variable(x)
        size, scales = _settings((size, *args, *kwargs.values()), spatial)
        sizes, given = _sizes(ctx, x, spatial, size, scales)
        matrices = []
        for n, m, scale in zip(x.shape[2:], sizes, given, strict=True):
            # Equal lengths are copied by the linear modes, whatever the scale.
            same = n == m and taps is _linear_taps
            matrix = torch.eye(n, dtype=torch.float64) if same else axis_matrix(taps, n, m, align_corners, scale)
            matrices.append(Constant.within(rounded(matrix), Fixed(matrix)))
        terms = sum(max(_entries(c.value, 0), _entries(c.value, 1)) for c in matrices)

        def function(v: Tensor, *along: Tensor) -> Tensor:
            for axis, matrix in enumerate(along):
                v = torch.movedim(torch.movedim(v, 2 + axis, -1) @ matrix.T, -1, 2 + axis)
            return v

        return ctx.linear(x, function, matrices, terms, key="product along axes")

    interpolate.__doc__ = summary


def _entries(matrix: Tensor, dim: int) -> float:
    return float((matrix != 0).sum(dim).max())


for _spatial in (1, 2, 3):
    _nearest("upsample_nearest", _spatial)
    _nearest("_upsample_nearest_exact", _spatial)
for _name, _spatial in (("upsample_linear1d", 1), ("upsample_bilinear2d", 2), ("upsample_trilinear3d", 3)):
    _interpolation(
        _name, _spatial, _linear_taps, "Linear interpolation: 1 in l∞; in l2 computed from its exact weights."
    )
_interpolation(
    "upsample_bicubic2d",
    2,
    _cubic_taps,
    "Bicubic interpolation: computed from its exact weights, of both signs.",
)
