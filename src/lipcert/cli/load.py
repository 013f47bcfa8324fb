"""Find the model a command line names, and an example input for it."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lipcert
from lipcert.errors import CaptureError, InputError

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from lipcert.domain import Domain

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


def parse_domain(
    ball: str | None, radius: float | None, p: str | None, box: tuple[str, str] | None,
    shape: Sequence[int] | None = None,
) -> Domain:  # fmt: skip
    """The domain that ``--ball``, ``--radius``, ``--p`` and ``--box`` describe; a ball and a box make an intersection.

    ``shape`` is that of one example: a .vnnlib file has its inputs in a row.

    Raises:
        InputError: options that belong together stand alone, a file that cannot be read, or no such domain.
    """
    if ball is None and (radius is not None or p is not None):
        raise InputError("--radius and --p describe a ball: give its centre with --ball CENTER.npy, or --ball 0.")
    if ball is not None and radius is None:
        raise InputError("--ball needs --radius.")
    try:
        order = math.inf if p is None else float(p)
    except ValueError:
        raise InputError(f"--p must be 1, 2 or inf, not {p!r}.") from None
    round_ = None if ball is None or radius is None else lipcert.Ball(_numbers("--ball", ball), radius, order)
    if box is None:
        return round_
    if any(end.endswith(".vnnlib") for end in box):
        if box[0] != box[1]:
            raise InputError("--box takes the box of a .vnnlib file where both ends name it: --box p.vnnlib p.vnnlib.")
        inside = lipcert.read_vnnlib(box[0], shape)
    else:
        inside = lipcert.Box(_numbers("--box", box[0]), _numbers("--box", box[1]))
    return inside if round_ is None else lipcert.Intersection(round_, inside)


def _numbers(option: str, text: str) -> Any:
    """A number, or the array of a .npy file."""
    try:
        return float(text)
    except ValueError:
        pass
    if not Path(text).is_file():
        raise InputError(f"{option} takes numbers and .npy files; {text!r} is no number, and there is no such file.")
    return read_array(option, text)


def read_array(option: str, path: str) -> npt.NDArray[Any]:
    """The one array of a .npy file; reading never unpickles.

    Raises:
        InputError: it holds something else.
    """
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except Exception as problem:
        raise InputError(f"{option}: cannot read {path} as a .npy file: {problem}") from problem
    if not isinstance(found, np.ndarray):
        raise InputError(f"{option}: {path} holds several arrays; save one with numpy.save.")
    return found


def parse_shapes(text: str) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """``1,28,28``, or of several inputs ``x=3,4;h=5``."""
    if "=" not in text:
        return parse_shape(text)
    parts = [part.rpartition("=") for part in text.split(";") if part.strip()]
    return {name.strip(): parse_shape(shape) for name, _, shape in parts}


def parse_fixed(values: Sequence[str]) -> dict[str, Any]:
    """name → value of ``NAME=VALUE``: a .npy file, a number, or a number with the shape that it fills, ``0:2,1,128``.

    Raises:
        InputError: other text, or a file that cannot be read.
    """
    import numpy as np

    found: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not name or not equals or name in found:
            raise InputError(f"--fix takes NAME=VALUE, once for each input, not {text!r}.")
        number, colon, shape = value.partition(":")
        try:
            filled = float(number)
        except ValueError:
            found[name] = _numbers(f"--fix {name}", value)
        else:
            found[name] = np.broadcast_to(filled, _held(text, parse_shape(shape))) if colon else filled
    return found


def _held(text: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of not too many entries."""
    from lipcert.capture.onnx.limits import ENTRIES

    if len(shape) > 32 or math.prod(shape) > ENTRIES:
        raise InputError(f"--fix {text:.60}: more than {ENTRIES} entries, or more than 32 axes.")
    return shape


def load(
    name: str, input_shape: str | None, wrt: str | None = None, output: str | None = None, fix: Sequence[str] = ()
) -> tuple[nn.Module | ExportedProgram, Any, dict[str, Any]]:
    """The model behind a file or ``package.module:factory``, one example, and which of its inputs and outputs.

    Raises:
        InputError: no such module or factory, or no input shape where one is needed.
        CaptureError: the file cannot be read, or the factory fails.
    """
    shape = None if input_shape is None else parse_shapes(input_shape)
    names = None if wrt is None else [part.strip() for part in wrt.split(",")]
    _require_place(name)
    if not _is_file(name) and not isinstance(shape, tuple):
        raise InputError("--input-shape is needed (one example without batch, for instance 1,28,28).")
    if is_onnx(name):
        model = find_model(name, shape, output, fix, names)
        return model, _random(model.meta["input_shape"]), {"wrt": None, "output": None}
    if isinstance(shape, dict):
        raise InputError("--input-shape takes one shape, 1,28,28; several by name are for the inputs of an .onnx file.")
    model = find_model(name, fix=fix)
    example = _random(shape) if shape is not None else None
    if _is_file(name) and (fix or (example is not None and _takes_several(model))):
        return *_with_values(model, fix, names, output, example), {"wrt": None, "output": None}
    return model, _example_of(model) if example is None else example, {"wrt": names, "output": output}


def one_shape(example: Any) -> tuple[int, ...]:
    """The shape of one example, given one with a batch dimension; () of the arguments of a call."""
    return tuple(getattr(example, "shape", ())[1:])


def find_model_of_one(name: str, shape: Any, output: str | None, fix: Sequence[str]) -> tuple[Any, str | None]:
    """The model of one tensor behind a name, the others fixed, and the output that is still to be picked."""
    if is_onnx(name):
        return find_model(name, shape, output, fix), None
    model = find_model(name, fix=fix)
    return (_with_values(model, fix, None, output, None)[0], None) if fix else (model, output)


def _with_values(
    model: Any, fix: Sequence[str], wrt: Sequence[str] | None, output: str | None, example: Tensor | None
) -> tuple[Any, Any]:
    from lipcert.capture.program_inputs import with_values

    return with_values(model, parse_fixed(fix), wrt, output, example)


def _takes_several(program: Any) -> bool:
    return len(program.graph_signature.user_inputs) > 1


def find_model(
    name: str, shape: Any = None, output: str | None = None, fix: Sequence[str] = (), wrt: Sequence[str] | None = None
) -> Any:
    """The model behind ``file.pt2``, ``file.onnx`` or ``package.module:factory``; errors as ``load``.

    Args:
        name: of it.
        shape, output, wrt: of an ONNX file.
        fix: of an ONNX file; those of a ``.pt2`` file are not used here.
    """
    _require_place(name)
    if not _is_file(name):
        if fix:
            raise InputError(
                "--fix gives inputs of a .pt2 or .onnx file their values; a factory makes a module that holds them."
            )
        return _build(name)
    from lipcert.capture.load import load_model
    from lipcert.capture.onnx.load import load_onnx

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model = load_onnx(name, shape, output, wrt, parse_fixed(fix)) if is_onnx(name) else load_model(name)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return model


def is_onnx(name: str) -> bool:
    """Whether this names an ONNX file that is there."""
    return Path(name).suffix.lower() == ".onnx" and Path(name).is_file()


def _is_file(name: str) -> bool:
    return Path(name).is_file() or (":" not in name and Path(name).suffix in _SUFFIXES)


def _require_place(name: str) -> None:
    if name.endswith(".pt2") and not Path(name).is_file():
        raise InputError(f"there is no file {name}.")
    if not _is_file(name) and ":" not in name:
        dotted = ":".join(name.rsplit(".", 1)) if "." in name else "package.module:factory"
        raise InputError(
            f"MODEL must be a .pt2 or .onnx file or package.module:factory (here perhaps {dotted}), not {name!r}."
        )


def _build(name: str) -> nn.Module:
    from torch import nn

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


def _random(shape: tuple[int, ...]) -> Tensor:
    """A batch of one, whatever default device or dtype the model's module has set."""
    import torch

    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.rand(1, *shape, generator=generator, dtype=torch.float32, device="cpu")


def _example_of(program: Any) -> Any:
    """The arguments that the program was exported with."""
    from torch import Tensor

    from lipcert.capture.call import Call

    if not program.example_inputs or not any(program.example_inputs):
        raise InputError("the .pt2 file carries no example input; give --input-shape.")
    args, kwargs = program.example_inputs
    return args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else Call(tuple(args), dict(kwargs))
