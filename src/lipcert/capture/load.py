"""A model as it is given: a module, an exported program, or the path of one or of an ONNX file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from lipcert.capture.model_file import what_a_file_is
from lipcert.capture.onnx.load import load_onnx
from lipcert.capture.torch_export import quiet
from lipcert.errors import CaptureError
from lipcert.numerics.process_state import ordinary

#: A model as the public functions take it.
Model = nn.Module | ExportedProgram | Callable[..., Any] | str | Path


@ordinary(dtype=None)
def load_model(model: Model, shape: Sequence[int] | None = None) -> Any:
    """A model as it is, or loaded from the path of a ``.pt2`` or ``.onnx`` file.

    Args:
        model: a module, a program, a function or a path.
        shape: of one example without batch dimension, for an ONNX file with dynamic axes; None if not known.

    Raises:
        CaptureError: the file cannot be read as an exported program; says what it is and how to convert it.
        InputError, UnsupportedOpError: of an ONNX file, as ``load_onnx``.
    """
    if not isinstance(model, (str, Path)):
        return model
    if Path(model).suffix.lower() == ".onnx" and Path(model).is_file():
        return load_onnx(model, shape)
    try:
        with ordinary(dtype=None), quiet(), redirect_stderr(io.StringIO()):
            return torch.export.load(str(model))
    except Exception as problem:
        raise CaptureError(f"cannot load {model}: {what_a_file_is(Path(model), problem)}") from problem


def shape_of(example: Any) -> tuple[int, ...] | None:
    """The shape of one example, given one with a batch dimension; None of what is no example."""
    try:
        return tuple(int(n) for n in example.shape[1:]) or None
    except Exception:  # nested, or no tensor at all: the capture says what is wrong with it
        return None
