"""``.onnx`` files as models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from lipcert.capture.call import Call
from lipcert.capture.onnx.file import Tensors, parsed
from lipcert.capture.onnx.graph import Graph
from lipcert.capture.onnx.inputs import Shapes, declared
from lipcert.capture.onnx.judge import compared
from lipcert.capture.onnx.reader import read_file
from lipcert.errors import CaptureError, InputError, named
from lipcert.numerics.process_state import ordinary


def load_onnx(
    path: str | Path, input_shape: Shapes = None, output: str | int | None = None,
    wrt: str | Sequence[str] | None = None, fixed: Mapping[str, Any] = MappingProxyType({}),
) -> fx.GraphModule:  # fmt: skip
    """The model of an ``.onnx`` file, as every function of lipcert takes one.

    Its nodes become calls of the ATen ops that torch models are made of, so that the same rules give its bounds. What
    is bounded is the function of one example that the file computes for a batch of one, with the numbers that the file
    holds. It is run beside onnxruntime on random inputs.

    Args:
        path: of a file of operator sets 8 to 28. Tensors may lie in other files of its own folder, and are read from
            nowhere else. What may be asked for is limited: constants that are computed take up to 1 GiB and four times
            the file's own tensors, a value up to 2^28 entries, all together 2^30, and nodes are up to 100 000.
        input_shape: of one example, without batch dimension; needed where the file has dynamic axes. Where several
            inputs vary, a dict of their names.
        output: which one, by name or number, or a value inside the graph; needed where the file has several.
        wrt: names of the inputs that vary, in the order in which they are joined; None: all of floating-point numbers
            that have axes and no value in ``fixed``. The name of a value inside the graph makes that the input, as
            behind the embedding of token ids.
        fixed: name → value of the other inputs: an array in the shape that the file takes, rounded to its type, or a
            number for all entries. They are constants of the model. Initializers are none of the inputs.

    Returns:
        A module in eval mode that takes a (1, *input_shape) tensor; ``module.meta["input_shape"]`` has that shape. If
        several inputs vary it is (n,): their entries, flattened and side by side.

    Raises:
        InputError: the package onnx is missing (``pip install 'lipcert[onnx]'``), no input of floating-point numbers
            varies, an input that does not vary has no value, an input shape or an output's name is needed or does not
            fit.
        CaptureError: the file is damaged or asks for too much, or onnxruntime computes something else.
        UnsupportedOpError: an operator is not translated, or not in this form; by the name of its node.

    Warns:
        UserWarning: it was not compared with onnxruntime, and why.
    """
    place = Path(path)
    for shape in input_shape.values() if isinstance(input_shape, Mapping) else (input_shape,):
        if shape is not None and (isinstance(shape, str) or not all(isinstance(n, int) for n in shape)):
            raise InputError(f"input_shape must be positive integers, not {shape!r}.")
    names = [wrt] if isinstance(wrt, str) else wrt
    with named(CaptureError, f"reading {place}"), ordinary(dtype=None):
        read = read_file(place, input_shape, output, names, fixed)
        remark = compared(read, Tensors(place.parent))
    if remark:
        warnings.warn(f"{place} was not compared with onnxruntime: {remark}.", UserWarning, stacklevel=2)
    return read.module


def called_onnx(
    path: str | Path, example: Any, wrt: str | Sequence[str] | None, output: str | int | None
) -> tuple[fx.GraphModule, Any]:
    """The model of a file and one example of it, given one tensor, or the arguments of a call as ``lipcert.bound``.

    Args:
        path: of the file.
        example: one tensor with a batch dimension; or a tuple of all inputs in the file's order, or a dict of them by
            name. What varies has a batch dimension of 1 in front; what is fixed is as the file takes it.
        wrt, output: as for ``load_onnx``.

    Raises:
        LipcertError: as ``load_onnx``; an example of other inputs.
    """
    if not isinstance(example, (tuple, Mapping, Call)):
        return load_onnx(path, shape_of(example), output, wrt), example
    with named(CaptureError, f"reading {path}"), ordinary(dtype=None):
        inputs = list(map(declared, Graph(parsed(Path(path)).graph).inputs))
    given = _by_name(example, [one.name for one in inputs])
    if wrt is None:
        varied = [one.name for one in inputs if one.name in given and one.dtype.is_floating_point and one.shape != ()]
    else:
        varied = [wrt] if isinstance(wrt, str) else list(wrt)
    missing = next((name for name in varied if name not in given), None)
    if missing is not None:
        raise InputError(f"wrt={missing!r} is none of the inputs given: {', '.join(given)[:300]}.")
    values = {name: _one_example(name, given[name]) for name in varied}
    fixed = {name: value for name, value in given.items() if name not in varied}
    shapes = {name: tuple(value.shape[1:]) for name, value in values.items()}
    module = load_onnx(path, shapes, output, varied, fixed)
    dtype = module.precision.dtype
    assert isinstance(dtype, torch.dtype)
    if len(varied) == 1:
        return module, values[varied[0]].to(dtype)
    return module, torch.cat([values[name].reshape(1, -1).to(dtype) for name in varied], dim=1)


def shape_of(example: Any) -> tuple[int, ...] | None:
    """The shape of one example, given one with a batch dimension; None of what is no example."""
    try:
        return tuple(int(n) for n in example.shape[1:]) or None
    except Exception:  # nested, or no tensor at all: the capture says what is wrong with it
        return None


def _by_name(example: Any, names: Sequence[str]) -> dict[str, Any]:
    """name → value of the inputs of a file."""
    if isinstance(example, Mapping):
        return dict(example)
    args, kwargs = (example.args, example.kwargs) if isinstance(example, Call) else (example, {})
    if len(args) > len(names):
        raise InputError(f"{len(args)} inputs are given, the ONNX file has {', '.join(names[:8]) or 'none'}.")
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _one_example(name: str, value: Any) -> Tensor:
    """What is given for an input that varies, with its batch dimension."""
    tensor = torch.as_tensor(np.asarray(value)) if isinstance(value, (np.ndarray, list)) else value
    if not isinstance(tensor, Tensor) or tensor.dim() < 2 or len(tensor) != 1 or not tensor.numel():
        has = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"type {type(tensor).__name__}"
        raise InputError(
            f"the example of the ONNX input {name[:60]!r} has {has}: what varies is a tensor of one example with a "
            "batch dimension of 1 in front."
        )
    return tensor.detach().cpu()
