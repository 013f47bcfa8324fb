"""Why torch.export could not trace a model: run it once, watch what it does, and name the line."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lipcert.capture.model import one_tensor, require_numbers
from lipcert.errors import CaptureError, InputError, LipcertError, TrainModeError

#: Where code lies that is not the user's: the packages themselves, not folders that are called as they are.
_HERE = (
    f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", "<frozen", "<__array_function__",
)  # fmt: skip


class _Watch(TorchDispatchMode):
    """Follows which tensors depend on the input; notes random draws and tensors turned into Python numbers."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.moved = {_key(example): example}  # kept alive, so that no address is used twice
        self.random: list[str] = []
        self.read_from_input: list[str] = []
        self.read_from_parameters: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        moved = any(_key(t) in self.moved for t in tensors)
        name = function._schema.name.split("::")[-1]
        if torch.Tag.nondeterministic_seeded in function.tags and "attention" not in name:
            self.random.append(f"aten.{name} at {_place()}")
        result = function(*args, **kwargs)
        if torch.Tag.data_dependent_output in function.tags or function is torch.ops.aten._local_scalar_dense.default:
            (self.read_from_input if moved else self.read_from_parameters).append(_place())
        if moved:
            changed = tensors[:1] if function._schema.is_mutable else []  # an op that writes writes its first tensor
            for t in (*changed, *tree_leaves(result)):
                if isinstance(t, Tensor):
                    self.moved[_key(t)] = t
        return result


def _key(tensor: Tensor) -> int:
    """Views share what they show: a tensor is known by its storage."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _place() -> str:
    """``file:line in function`` of the innermost frame outside torch and lipcert."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_HERE):
            return f"{frame.filename}:{frame.lineno} in {frame.name}"
    return "an unknown line"


def export_error(problem: Exception, module: nn.Module, example: Tensor) -> LipcertError:
    """The error to raise for a model that torch.export could not trace.

    Args:
        problem: what torch.export raised.
        module, example: the model and a batch of one.
    """
    text = str(problem).strip() or type(problem).__name__
    first = text.splitlines()[0][:300]
    for part in module.modules():
        for name, value in vars(part).items():  # a buffer of this kind was refused at once
            if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_quantized or value.is_nested):
                try:
                    require_numbers(name, value)
                except LipcertError as error:
                    return error
    example = example.clone()
    watch = _Watch(example)
    try:
        with watch, torch.enable_grad():  # forward may use autograd, which is no reason to say that it does not run
            output = module(example)
        one_tensor(output)
    except LipcertError as error:
        return error
    except Exception as failure:  # whatever it is, the model does not run on this example
        return _one_value(failure) or does_not_run(failure, example)
    if watch.random:
        return TrainModeError(
            f"the model draws random numbers ({watch.random[0]}), so it is not one fixed function. Call model.eval(), "
            "return the mean instead of a sample, or draw the numbers once and keep them in a buffer."
        )
    if "fake tensor" in text:
        return CaptureError(
            "torch.export could not trace the model: forward reads a tensor behind its back, most often a parameter "
            "through .data. Use the parameter itself, or .detach()."
        )
    reason = f"torch.export could not trace the model: {type(problem).__name__}: {first}."
    if watch.read_from_input:
        return CaptureError(
            "the model cannot be captured: control flow that depends on the data (a Python number or a branch made "
            f"from it at {watch.read_from_input[0]}) is not one fixed network; capture each branch by itself, or write "
            "it with tensor operations (torch.where, torch.clamp)."
        )
    if watch.read_from_parameters:
        return CaptureError(
            f"the model cannot be captured: the line {watch.read_from_parameters[0]} turns a value that depends on "
            "parameters only into a Python number or a branch, which torch.export does not see. Compute it once "
            "outside forward and keep it as a float attribute, or write it with tensor operations "
            "(torch.maximum, torch.clamp)."
        )
    return CaptureError(f"{reason} The model itself runs; forward must be made of traceable tensor operations.")


def _one_value(failure: Exception) -> LipcertError | None:
    """The error for a normalisation over one value, which PyTorch refuses with words about training in any mode."""
    text = str(failure)
    if "when training" not in text:
        return None
    for frame, _ in traceback.walk_tb(failure.__traceback__):
        name = frame.f_code.co_name
        if name in ("group_norm", "instance_norm") and frame.f_locals.get("running_mean") is None:
            return InputError(
                f"the model does not run on one example: {name} normalises groups of one value, which PyTorch refuses "
                f"({text}). It would give its bias whatever the input: remove the layer, or give it larger groups."
            )
    return TrainModeError(
        f"a layer of the model normalises by the statistics of the batch ({text}), so that examples of a batch depend "
        "on each other. Call model.eval(), and give batch norm running statistics."
    )


def does_not_run(failure: Exception, example: Tensor) -> InputError:
    """The error for a model that raises on one example of the shape given."""
    advice = "Give an example of the shape the model takes, with a leading batch dimension"
    if isinstance(failure, TypeError) and "argument" in str(failure):
        advice += "; for a model of several inputs give a tuple of its arguments, or a dict of those by name"
    return InputError(
        f"the model does not run on example_input[:1] (shape {tuple(example.shape)}, {example.dtype}; one example is "
        f"read as {tuple(example.shape[1:])}): {type(failure).__name__}: {str(failure).strip()[:300]}. {advice}."
    )
