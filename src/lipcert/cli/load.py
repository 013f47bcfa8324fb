"""Find the model a command line names, and an example input for it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lipcert.api import load_model
from lipcert.errors import CaptureError, InputError

#: Names that mean a file even if there is none.
_SUFFIXES = (".onnx", ".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".ts", ".jit")


def parse_norm(text: str) -> tuple[float, float]:
    """``2,2`` or ``inf,1`` as (p, q)."""
    try:
        p, q = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--norm must be two of 1, 2, inf with a comma between, not {text!r}.") from None
    return p, q


def parse_shape(text: str) -> tuple[int, ...]:
    """``1,28,28`` as a shape of one example, without batch dimension."""
    try:
        shape = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(f"--input-shape must be positive integers with commas between, not {text!r}.")
    return shape


def load(name: str, input_shape: str | None) -> tuple[nn.Module | ExportedProgram, Tensor]:
    """The model behind ``file.pt2`` or ``package.module:factory``, and one example input of batch size 1.

    Raises:
        InputError: no such module or factory, or no input shape where one is needed.
        CaptureError: the file cannot be read, or the factory fails.
    """
    shape = None if input_shape is None else parse_shape(input_shape)
    if name.endswith(".pt2") and not Path(name).is_file():
        raise InputError(f"there is no file {name}.")
    if Path(name).is_file() or (":" not in name and Path(name).suffix in _SUFFIXES):
        program = load_model(name)
        assert isinstance(program, ExportedProgram)
        return program, _example_of(program, shape)
    if ":" not in name:
        dotted = ":".join(name.rsplit(".", 1)) if "." in name else "package.module:factory"
        raise InputError(f"MODEL must be a .pt2 file or package.module:factory (here perhaps {dotted}), not {name!r}.")
    if shape is None:
        raise InputError("--input-shape is needed (one example without batch, for instance 1,28,28).")
    return _build(name), torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))


def _build(name: str) -> nn.Module:
    module_name, _, factory_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as problem:
        raise InputError(f"cannot import {module_name!r}: {problem} (looked in {here} as well).") from problem
    factory = getattr(module, factory_name, None)
    if factory is None:
        raise InputError(f"{module_name!r} has no attribute {factory_name!r}.")
    if isinstance(factory, nn.Module):
        return factory
    try:
        model = factory()
    except Exception as problem:
        raise CaptureError(f"{name}() failed: {type(problem).__name__}: {problem}") from problem
    if not isinstance(model, nn.Module):
        raise InputError(f"{name}() returned {type(model).__name__}, not a torch.nn.Module.")
    return model


def _example_of(program: ExportedProgram, shape: tuple[int, ...] | None) -> Tensor:
    if shape is not None:
        return torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    arguments: tuple[Any, ...] = tuple(program.example_inputs[0]) if program.example_inputs else ()
    if len(arguments) != 1 or not isinstance(arguments[0], Tensor):
        raise InputError("the .pt2 file carries no single example input; give --input-shape.")
    return arguments[0]
