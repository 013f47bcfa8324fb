"""Whether the first axis of a file's input is a batch: the file read for two examples, beside each read alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx

from lipcert.capture.onnx.reader import Read
from lipcert.errors import CaptureError, LipcertError

#: A batch of two may round otherwise than one example does.
_COUPLED = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.3, torch.bfloat16: 1.0}


def rows_are_examples(read: Read) -> bool:
    """Read the file for two examples and compare its rows with those of each alone.

    Returns:
        Whether there was a comparison: False where the file cannot be read for two (it may be written for one), or
        gives no finite numbers.

    Raises:
        CaptureError: as ``require_rows``.
    """
    feed = read.feed.repeated(2)
    if feed is None:
        return False
    try:
        both = read.again(feed).module
    except LipcertError:
        return False
    dtype = read.module.precision.dtype
    assert isinstance(dtype, torch.dtype)
    x = torch.cat(points(read.feed.example, dtype)[:2])
    try:
        with torch.no_grad():
            together, kind = high_precision(both, copy.deepcopy(both).double(), x)
            double = copy.deepcopy(read.module).double()
            alone = [high_precision(read.module, double, one[None]) for one in x]
    except Exception:  # PyTorch has no such op in this precision on a CPU, or the file holds a shape for one example
        return False
    kind = torch.float64 if all(k is torch.float64 for _, k in alone) and kind is torch.float64 else dtype
    require_rows(together, torch.cat([rows for rows, _ in alone]), kind)
    return bool(together.isfinite().all()) and kind in (torch.float64, torch.float32)


def require_rows(together: Tensor, alone: Tensor, dtype: torch.dtype) -> None:
    """The output for two examples must be two rows, each that of its own example.

    Args:
        together: the output for both.
        alone: the outputs for each, one after the other.
        dtype: in which they were computed, or a lower one.

    Raises:
        CaptureError: the first axis is no batch, or the examples of a batch influence each other.
    """
    if together.shape != alone.shape or not alone.dim() or len(alone) != 2:
        raise CaptureError(
            "the first axis of the input is of any length, and of two examples the file makes no two rows: it is no "
            "batch. Export the file with a first axis of fixed length."
        )
    if not alone.numel() or not bool(together.isfinite().all()):
        return
    if float((together - alone).abs().max()) > _COUPLED[dtype] * max(float(alone.abs().max()), 1e-300):
        raise CaptureError(
            "the output of one example changes with the other examples of its batch; a per-example Lipschitz constant "
            "does not exist. Export the model in eval mode, or for a batch of 1."
        )


def points(example: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Four random examples, each with a batch dimension."""
    generator = torch.Generator().manual_seed(20181207)
    noise = torch.randn(3, *example, generator=generator, dtype=torch.float64)
    flat = torch.rand(1, *example, generator=generator, dtype=torch.float64)
    return [one.to(dtype) for one in (flat, noise[:1], 0.1 * noise[1:2], 3.0 * noise[2:3])]


def high_precision(module: fx.GraphModule, double: fx.GraphModule, point: Tensor) -> tuple[Tensor, torch.dtype]:
    """The module's output in float64, and in what it was computed: not in that if it casts to its own inside."""
    try:
        return double(point.double()), torch.float64
    except Exception:
        return module(point).double(), point.dtype
