"""Discrete Fourier transforms: ``DFT`` and ``STFT``, by the calls that ``torch.fft`` makes.

A complex number is a pair of real ones along the last axis there; a last axis of length 1 holds real numbers. The
transform of length n multiplies with e^{−2πi jk/n}, its inverse with e^{2πi jk/n}/n. All of them are real linear maps,
whose matrices ``lipcert.ops.fourier`` encloses.
"""

from __future__ import annotations

import torch

from lipcert.capture.onnx.build import Builder, Value
from lipcert.capture.onnx.node import OnnxNode, translates
from lipcert.ops.fourier import LONGEST

_aten = torch.ops.aten
#: PyTorch's numbers for a transform that is divided by 1, and by its length.
_PLAIN, _BY_LENGTH = 0, 2


@translates("DFT")
def _dft(build: Builder, node: OnnxNode, x: Value, length: Value | None = None, axis: Value | None = None) -> Value:
    if node.version < 20:
        if axis is not None:
            raise node.wrong("its axis is an input, which it is from operator set 20 on")
        place = node.integer("axis", 1)
    else:
        place = -2 if axis is None else _one(build, node, axis, "axis")
    _require_pairs(node, x)
    place = node.axis(place, x.rank)
    if place == x.rank - 1:
        raise node.wrong("its axis is the last one, along which real and imaginary parts lie")
    back, half = _flag(node, "inverse"), _flag(node, "onesided")
    given = x.shape[place] if not (back and half) else 2 * (x.shape[place] - 1)
    n = _short(node, given if length is None else _one(build, node, length, "dft_length"))
    if half and back != (x.shape[-1] == 2):
        raise node.wrong(f"a one-sided transform {'back of real' if back else 'of complex'} numbers")
    if half and back:
        if x.shape[place] != n // 2 + 1:
            raise node.unsupported(
                f"{x.shape[place]} frequencies for {n} real numbers, to which {n // 2 + 1} belong: onnxruntime and the "
                "reference evaluator make different numbers of it. Cut or pad the frequencies before."
            )
        real = build(_aten._fft_c2r.default, _complex(build, _wide(build, x)), [place], _BY_LENGTH, n)
        return build.cast(build.reshaped(real, (*real.shape, 1)), x.tensor.dtype)
    return _transformed(build, _fitted(build, x, place, n), place, back, half)


@translates("STFT")
def _stft(
    build: Builder, node: OnnxNode, x: Value, step: Value | None = None, window: Value | None = None,
    length: Value | None = None,
) -> Value:  # fmt: skip
    half = _flag(node, "onesided", 1)
    _require_pairs(node, x)
    if x.rank != 3:
        raise node.wrong(f"its signal has shape {x.shape}, not that of a batch of signals")
    hop = _one(build, node, step, "frame_step")
    if length is not None:
        n = _one(build, node, length, "frame_length")
    else:
        n = x.shape[1] if window is None else window.tensor.numel()
    n = _short(node, n)
    if hop < 1 or n > x.shape[1]:
        raise node.wrong(f"frames of {n} entries, {hop} apart, of a signal of {x.shape[1]}")
    if window is not None and window.shape != (n,):
        raise node.wrong(f"its window has shape {window.shape}, and a frame {n} entries")
    if half and x.shape[-1] == 2:
        raise node.wrong("a one-sided transform of complex numbers")
    frames = build(_aten.unfold.default, x, 1, n, hop)  # (batch, frames, 1 or 2, n)
    if window is not None:
        frames = build(_aten.mul.Tensor, frames, window)
    return _transformed(build, build(_aten.transpose.int, frames, -1, -2), 2, False, half)


def _transformed(build: Builder, x: Value, axis: int, back: bool, half: bool) -> Value:
    """Along an axis of (…, 1) or (…, 2), to (…, 2); one-sided: the first ⌊n/2⌋ + 1 frequencies."""
    scale, dtype = _BY_LENGTH if back else _PLAIN, x.tensor.dtype
    x = _wide(build, x)
    if x.shape[-1] == 2:
        found = build(_aten._fft_c2c.default, _complex(build, x), [axis], scale, not back)
    else:
        found = build(_aten._fft_r2c.default, build(_aten.select.int, x, -1, 0), [axis], scale, half)
        found = build(_aten.conj_physical.default, found) if back else found
    return build.cast(build(_aten.view_as_real.default, found), dtype)


def _wide(build: Builder, x: Value) -> Value:
    """In a precision that PyTorch has transforms in; the map is the same."""
    return x if x.tensor.dtype == torch.float64 else build.cast(x, torch.float32)


def _complex(build: Builder, x: Value) -> Value:
    parts = [build(_aten.select.int, x, -1, place) for place in (0, 1)]
    result: Value = build(_aten.complex.default, *parts)
    return result


def _fitted(build: Builder, x: Value, axis: int, length: int) -> Value:
    """The first entries of an axis, or all of them and zeros behind."""
    missing = length - x.shape[axis]
    if missing < 0:
        cut: Value = build(_aten.slice.Tensor, x, axis, 0, length)
        return cut
    wide: Value = x
    if missing:
        wide = build(_aten.constant_pad_nd.default, x, [0, 0] * (x.rank - 1 - axis) + [0, missing], 0.0)
    return wide


def _require_pairs(node: OnnxNode, x: Value) -> None:
    if x.rank < 2 or x.shape[-1] not in (1, 2) or not x.floating:
        raise node.wrong(
            f"its input of shape {x.shape} and type {x.tensor.dtype} has no last axis of 1 or 2 floating numbers, "
            "their real and imaginary parts"
        )


def _short(node: OnnxNode, n: int) -> int:
    if n < 1:
        raise node.wrong(f"a Fourier transform of {n} entries")
    if n > LONGEST:
        raise node.unsupported(f"a Fourier transform of {n} entries; up to {LONGEST} are covered.")
    return n


def _one(build: Builder, node: OnnxNode, value: Value | None, what: str) -> int:
    if value is None:
        raise node.wrong(f"its {what} is missing")
    found = build.integers(value, what)
    if len(found) != 1:
        raise node.wrong(f"its {what} is {len(found)} numbers, not one")
    return found[0]


def _flag(node: OnnxNode, name: str, default: int = 0) -> bool:
    found = node.integer(name, default)
    if found not in (0, 1):
        raise node.wrong(f"its {name} is {found}, neither 0 nor 1")
    return bool(found)
