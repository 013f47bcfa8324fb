"""A model as it is given: a module, an exported program, or the path of one."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from lipcert.capture.model_file import what_a_file_is
from lipcert.capture.torch_export import quiet
from lipcert.errors import CaptureError
from lipcert.numerics.process_state import ordinary

#: A model as the public functions take it.
Model = nn.Module | ExportedProgram | Callable[..., Any] | str | Path


@ordinary(dtype=None)
def load_model(model: Model) -> Any:
    """A model as it is, or loaded from the path of a ``.pt2`` file.

    Raises:
        CaptureError: the file cannot be read as an exported program; says what it is and how to convert it.
    """
    if not isinstance(model, (str, Path)):
        return model
    try:
        with quiet(), redirect_stderr(io.StringIO()):
            return torch.export.load(str(model))
    except Exception as problem:
        raise CaptureError(f"cannot load {model}: {what_a_file_is(Path(model), problem)}") from problem
