"""A model as it is given: a module, an exported program, or the path of one or of an ONNX file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.export import ExportedProgram

from lipcert.capture.adapter import Wrt, adapted
from lipcert.capture.model import Output
from lipcert.capture.model_file import what_a_file_is
from lipcert.capture.onnx.load import called_onnx, load_onnx
from lipcert.capture.program_file import require_data
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
    if _is_onnx(model):
        return load_onnx(model, shape)
    if not require_data(Path(model)):
        raise CaptureError(f"cannot load {model}: {what_a_file_is(Path(model))}")
    try:
        with ordinary(dtype=None), quiet(), redirect_stderr(io.StringIO()):
            return torch.export.load(str(model))
    except Exception as problem:
        raise CaptureError(f"cannot load {model}: {what_a_file_is(Path(model), problem)}") from problem


def prepared(model: Model, example: Any, wrt: Wrt = None, output: Output = None) -> tuple[Any, Any]:
    """A model as a module or program of one tensor, and its example; arguments as for ``lipcert.bound``."""
    if _is_onnx(model):
        return called_onnx(model, example, wrt, output)
    return adapted(load_model(model), example, wrt, output)


def _is_onnx(model: Any) -> TypeGuard[str | Path]:
    return isinstance(model, (str, Path)) and Path(model).suffix.lower() == ".onnx" and Path(model).is_file()
