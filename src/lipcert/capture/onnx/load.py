"""``.onnx`` files as models."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import fx

from lipcert.capture.onnx.file import Tensors
from lipcert.capture.onnx.judge import compared
from lipcert.capture.onnx.reader import read_module
from lipcert.errors import CaptureError, InputError, named
from lipcert.numerics.process_state import ordinary


def load_onnx(path: str | Path, input_shape: Sequence[int] | None = None, output: str | None = None) -> fx.GraphModule:
    """The model of an ``.onnx`` file, as every function of lipcert takes one.

    Its nodes become calls of the ATen ops that torch models are made of, so that the same rules give its bounds. What
    is bounded is the function of one example that the file computes for a batch of one, with the numbers that the file
    holds. It is run beside onnxruntime on random inputs.

    Args:
        path: of a file of operator sets 8 to 28. Tensors may lie in other files of its own folder, and are read from
            nowhere else. What may be asked for is limited: constants that are computed take up to 1 GiB and four times
            the file's own tensors, a value up to 2^28 entries, all together 2^30, and nodes are up to 100 000.
        input_shape: of one example, without batch dimension; needed where the file has dynamic axes.
        output: which one, by name; needed where the file has several.

    Returns:
        A module in eval mode that takes a (1, *input_shape) tensor; ``module.meta["input_shape"]`` has that shape.

    Raises:
        InputError: the package onnx is missing (``pip install 'lipcert[onnx]'``), the file has several inputs or
            an input of whole numbers, an input shape or an output's name is needed or does not fit.
        CaptureError: the file is damaged or asks for too much, or onnxruntime computes something else.
        UnsupportedOpError: an operator is not translated, or not in this form; by the name of its node.

    Warns:
        UserWarning: it was not compared with onnxruntime, and why.
    """
    place = Path(path)
    if input_shape is not None and not all(isinstance(n, int) for n in input_shape):
        raise InputError(f"input_shape must be positive integers, not {input_shape!r}.")
    with named(CaptureError, f"reading {place}"), ordinary(dtype=None):
        module, model, reading = read_module(place, input_shape, output)
        remark = compared(model, module, reading, output, Tensors(place.parent))
    if remark:
        warnings.warn(f"{place} was not compared with onnxruntime: {remark}.", UserWarning, stacklevel=2)
    return module
