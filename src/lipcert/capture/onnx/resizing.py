"""Resize and Upsample: nearest as the entries that it copies, linear and cubic interpolation as PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch

from lipcert.capture.onnx.build import Builder, Value
from lipcert.capture.onnx.node import OnnxNode, translates

_aten = torch.ops.aten
_LINEAR = (_aten.upsample_linear1d.vec, _aten.upsample_bilinear2d.vec, _aten.upsample_trilinear3d.vec)
_LONGEST = 1 << 16
_HALF = Fraction(1, 2)
#: (place, input length, output length, scale) → coordinate in the input.
_COORDINATES: dict[str, Callable[[int, int, int, Fraction], Fraction]] = {
    "half_pixel": lambda p, n, m, s: (p + _HALF) / s - _HALF,
    "pytorch_half_pixel": lambda p, n, m, s: (p + _HALF) / s - _HALF if m > 1 else Fraction(0),
    "asymmetric": lambda p, n, m, s: p / s,
    "align_corners": lambda p, n, m, s: Fraction(p * (n - 1), m - 1) if m > 1 else Fraction(0),
}
#: How a coordinate becomes a place; a half is rounded down or up.
_NEAREST: dict[str, Callable[[Fraction], int]] = {
    "floor": math.floor, "ceil": math.ceil,
    "round_prefer_floor": lambda x: math.ceil(x - _HALF), "round_prefer_ceil": lambda x: math.floor(x + _HALF),
}  # fmt: skip


@translates("Upsample")
def _upsample(build: Builder, node: OnnxNode, x: Value, scales: Value | None = None) -> Any:
    mode = node.text("mode", "nearest")
    found = node.reals("scales") if node.version < 9 else None if scales is None else _floats(build, node, scales)
    if found is None or mode != "nearest":
        raise node.unsupported(f"in mode {mode[:40]!r}; export with operator set 11 or later.")
    return _resized(build, node, x, found, None, mode, "asymmetric", "floor")


@translates("Resize")
def _resize(
    build: Builder, node: OnnxNode, x: Value, region: Value | None = None, scales: Value | None = None,
    sizes: Value | None = None,
) -> Any:  # fmt: skip
    mode = node.text("mode", "nearest")
    if node.version < 11:
        region, scales, sizes = None, region, None
        coordinates, nearest = "asymmetric", "floor"
        if mode != "nearest":
            raise node.unsupported(f"in mode {mode[:40]!r} of operator set 10; export with operator set 11 or later.")
    else:
        coordinates = node.text("coordinate_transformation_mode", "half_pixel")
        nearest = node.text("nearest_mode", "round_prefer_floor")
        node.ignore("extrapolation_value")  # of a coordinate transformation that is refused
    if node.integer("antialias", 0) or node.integer("exclude_outside", 0):
        raise node.unsupported("with antialias or exclude_outside.")
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.unsupported("it keeps the aspect ratio; export it with its sizes.")
    cubic = node.real("cubic_coeff_a", -0.75)
    if mode == "cubic" and cubic != -0.75:
        raise node.unsupported(f"with the cubic coefficient {cubic}; −0.75 is supported.")
    axes = node.integers("axes")
    chosen = list(range(x.rank)) if axes is None else node.axes(axes, x.rank)
    factors = None if scales is None or not scales.tensor.numel() else _floats(build, node, scales)
    wanted = None if sizes is None or not sizes.tensor.numel() else build.integers(sizes, "sizes")
    if (factors is None) == (wanted is None) or len(factors or wanted or []) != len(chosen):
        raise node.wrong("it needs scales or sizes, one per axis")
    if factors is not None:
        given = dict(zip(chosen, factors, strict=True))
        return _resized(build, node, x, [given.get(k, 1.0) for k in range(x.rank)], None, mode, coordinates, nearest)
    lengths = dict(zip(chosen, wanted or [], strict=True))
    full = [lengths.get(k, n) for k, n in enumerate(x.shape)]
    return _resized(build, node, x, None, full, mode, coordinates, nearest)


def _floats(build: Builder, node: OnnxNode, value: Value) -> list[float]:
    if value.varies:
        raise node.unsupported("its scales depend on the values of the input, not on its shape alone.")
    if not value.floating or value.rank != 1:
        raise node.wrong("its scales are no list of floats")
    return [float(v) for v in value.tensor.double().tolist()]


def _resized(
    build: Builder, node: OnnxNode, x: Value, scales: list[float] | None, sizes: list[int] | None, mode: str,
    coordinates: str, nearest: str,
) -> Any:  # fmt: skip
    if scales is not None:
        if len(scales) != x.rank or not all(0.0 < s < 1e9 for s in scales):
            raise node.wrong(f"its scales are {scales[:8]}")
        lengths = [math.floor(n * s) for n, s in zip(x.shape, scales, strict=True)]
    else:
        lengths = list(sizes or [])
    if min(lengths, default=0) < 1 or min(x.shape, default=0) < 1:
        raise node.wrong(f"it makes a value of shape {lengths[:8]} of one of shape {x.shape}")
    build.room.value(f"ONNX {node}", lengths)
    if max(lengths) > _LONGEST:
        raise node.unsupported(f"along an axis of more than {_LONGEST} entries.")
    if coordinates not in _COORDINATES:
        raise node.unsupported(f"with coordinates {coordinates[:40]!r}.")
    broken = scales is not None and any(m != n * s for m, n, s in zip(lengths, x.shape, scales, strict=True))
    if broken and coordinates == "align_corners":  # the specification and onnxruntime disagree
        raise node.unsupported("with align_corners and scales that give no whole sizes; export it with its sizes.")
    if mode == "nearest" and broken:
        raise node.unsupported("nearest, with scales that give no whole sizes; export it with its sizes.")
    if mode == "nearest":
        return _copied(build, node, x, scales, lengths, coordinates, nearest)
    moved = [k for k in range(x.rank) if lengths[k] != x.shape[k] or (scales is not None and scales[k] != 1.0)]
    if not moved:
        return x
    if min(moved) < 2 or not 3 <= x.rank <= 5 or (mode == "cubic" and x.rank != 4) or mode not in ("linear", "cubic"):
        raise node.unsupported(f"in mode {mode[:40]!r}, of a value of shape {x.shape}, along axes {moved}.")
    aligned = coordinates == "align_corners"
    if coordinates == "asymmetric" or (coordinates == "pytorch_half_pixel" and 1 in [lengths[k] for k in moved]):
        raise node.unsupported(f"interpolation with coordinates {coordinates!r}; half_pixel and align_corners are.")
    target = _aten.upsample_bicubic2d.vec if mode == "cubic" else _LINEAR[x.rank - 3]
    if scales is None or aligned:
        return build(target, x, lengths[2:], aligned, None)
    return build(target, x, None, aligned, scales[2:])


def _copied(
    build: Builder, node: OnnxNode, x: Value, scales: list[float] | None, lengths: list[int], coordinates: str,
    nearest: str,
) -> Any:  # fmt: skip
    if nearest not in _NEAREST:
        raise node.wrong(f"its nearest_mode is {nearest[:40]!r}")
    place_of, rounded = _COORDINATES[coordinates], _NEAREST[nearest]
    for axis, m in enumerate(lengths):
        n = x.shape[axis]
        scale = Fraction(m, n) if scales is None else Fraction(scales[axis])
        index = [min(max(rounded(place_of(p, n, m, scale)), 0), n - 1) for p in range(m)]
        if index != list(range(n)):
            x = build(_aten.index_select.default, x, axis, build.constant(torch.tensor(index, dtype=torch.int64)))
    return x
