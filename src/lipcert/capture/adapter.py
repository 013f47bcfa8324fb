"""A model of several inputs or outputs, or of token ids, as a module of one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lipcert.capture.call import Call, listed, matching
from lipcert.capture.function import INNER, own_path
from lipcert.capture.model import RUNNABLE, Output, as_module, picked
from lipcert.capture.submodules import outputs_of, put_out, require_same, with_submodules
from lipcert.capture.torch_export import quiet
from lipcert.errors import CaptureError, InputError, named
from lipcert.numerics.process_state import ordinary

#: One example, or the arguments of a call.
Example = Tensor | npt.NDArray[Any] | tuple[Any, ...] | Mapping[str, Any] | Call
#: Names of inputs or of submodules.
Wrt = str | Sequence[str] | None


@dataclass(frozen=True)
class _Varied:
    """A part of the input that is bounded in: an argument, or what a submodule puts out.

    ``shape`` is that of one example; None for a tensor without a batch dimension, a number.
    """

    name: str
    shape: tuple[int, ...] | None
    module: bool = False

    @property
    def size(self) -> int:
        return int(np.prod(self.shape or (), dtype=np.int64))

    def of(self, flat: Tensor) -> Tensor:
        """From (B, size) to the shape that the model takes."""
        return flat.reshape(() if self.shape is None else (len(flat), *self.shape))


class Adapted(nn.Module):
    """x ↦ the chosen output of ``model`` where x is, or holds side by side, the chosen inputs; the others are fixed.

    The fixed tensors are buffers, so that they are constants of the network that is captured, as parameters are, and
    covered by its hash. On a batch of B examples they are what they are for one; where the model does not take that,
    those of leading dimension 1 are repeated.
    """

    def __init__(self, model: nn.Module, call: Call, varied: tuple[_Varied, ...], output: Output) -> None:
        super().__init__()
        self.add_module(INNER, model)
        self.varied, self.output = varied, output
        self.names = list(call.leaves(model))
        self.call = call.mapped(lambda name, leaf: None if isinstance(leaf, Tensor) else leaf)
        self.fixed: dict[str, str] = {}
        inputs = {one.name for one in varied if not one.module}
        for name, leaf in call.leaves(model).items():
            if isinstance(leaf, Tensor) and name not in inputs:
                self.fixed[name] = f"fixed_{len(self.fixed)}_{name.replace('.', '_')}"
                self.register_buffer(self.fixed[name], leaf.detach().clone())
        self.training = False  # the model's own parts keep their modes

    def forward(self, x: Tensor) -> Tensor:
        """The output, of (B, *shape) or of (B, n) with the chosen inputs flattened side by side."""
        if len(x) == 1:
            return self._run(x, repeat=False)
        with suppress(Exception):
            result = self._run(x, repeat=False)
            if result.dim() and len(result) == len(x):
                return result
        return self._run(x, repeat=True)

    def _run(self, x: Tensor, repeat: bool) -> Tensor:
        given = {name: self._fixed(buffer, len(x) if repeat else 1) for name, buffer in self.fixed.items()}
        sizes = [one.size for one in self.varied]
        parts = torch.split(x.reshape(len(x), -1), sizes, dim=1) if not self.whole else (x,)
        outputs: dict[str, Tensor] = {}
        for one, part in zip(self.varied, parts, strict=True):
            (outputs if one.module else given)[one.name] = part if self.whole else one.of(part)
        names = iter(self.names)

        def leaf(_: str, value: Any) -> Any:
            return given.get(next(names), value)

        call, model = self.call.mapped(leaf), self._modules[INNER]
        assert model is not None
        with put_out(model, outputs):
            return picked(model(*call.args, **call.kwargs), self.output)

    @property
    def whole(self) -> bool:
        """Whether x is the one input itself, in its own shape."""
        return len(self.varied) == 1 and bool(self.varied[0].shape)

    def _fixed(self, buffer: str, count: int) -> Tensor:
        value: Tensor = getattr(self, buffer).clone()
        return value.expand(count, *value.shape[1:]) if value.dim() and len(value) == 1 and count > 1 else value


def adapted(
    model: nn.Module | ExportedProgram, example: Any, wrt: Wrt = None, output: Output = None
) -> tuple[nn.Module | ExportedProgram, Any]:
    """A model and an example to capture: as they are, or a module of one tensor in and out, and its example.

    Args:
        model: as for ``capture``, or a function.
        example: one tensor, or the arguments of a call: a tuple of positional ones, a dict of keyword ones, or a dict
            that is the one argument.
        wrt: names of the inputs in which the model is bounded: a parameter of ``forward`` (``y``), an entry of an
            argument (``obs.pos``, ``pos``), or, where no input has that name, the path of a submodule
            (``encoder.embed``), whose output then is the input. None: all floating-point tensors but those
            without dimensions.
        output: name or number of the output that is meant, where there are several.

    Raises:
        InputError: no such input or output, none that can be varied, examples in a batch beside fixed tensors, or a
            model that does not run on these arguments.
    """
    if wrt is None and output is None and not isinstance(example, (tuple, Mapping, Call)):
        return model, example
    with named(CaptureError, "reading the inputs of the model"), ExitStack() as stack:
        for one in (ordinary(dtype=None), quiet(), torch.random.fork_rng(devices=[]), torch.no_grad()):
            stack.enter_context(one)
        module = as_module(model)
        call = Call.of(module, example)
        given = call.leaves(module).values()
        if not any(isinstance(leaf, Tensor) for leaf in given):
            raise InputError(
                f"example_input holds no tensor but {listed([type(leaf).__name__ for leaf in given])}; give a tensor "
                "with a leading batch dimension, or the arguments of one call."
            )
        call, wanted = _embedded(module, call, _names(wrt))
        leaves = call.leaves(module)
        parts = [name for name in wanted or () if not matching(name, list(leaves))]
        flat = module
        if parts and isinstance(model, ExportedProgram):
            module = with_submodules(model, flat, parts)
        inputs, parts = _chosen(module, leaves, wanted)
        call, leaves = _in_its_precision(module, call, leaves, inputs)
        values = {name: leaves[name] for name in inputs} | outputs_of(module, call, parts, output)
        varied = tuple(_varied(name, value, name in parts) for name, value in values.items())
        _require_one_example(varied, values, leaves)
        only = call.args[0] if len(call.args) == 1 and not call.kwargs else None
        if output is None and isinstance(only, Tensor) and not parts:
            return model, only
        made = Adapted(module, call, varied, output)
        x = next(iter(values.values())) if made.whole else _side_by_side(varied, values)
        if parts:
            require_same(flat, call, made, output, x, parts)
        return made, x


def _names(wrt: Any) -> list[str] | None:
    names = [wrt] if isinstance(wrt, str) else wrt
    if names is not None and (
        not isinstance(names, Sequence) or not names or not all(isinstance(one, str) for one in names)
    ):
        raise InputError(f"wrt must be the name of an input or of a submodule, or a list of such, not {wrt!r:.60}.")
    return None if names is None else list(names)


def _embedded(module: nn.Module, call: Call, wanted: list[str] | None) -> tuple[Call, list[str] | None]:
    """``wrt="inputs_embeds"`` of a model that was given token ids: its own embedding of them in their place."""
    leaves = call.leaves(module)
    if wanted is None or "inputs_embeds" not in wanted or matching("inputs_embeds", list(leaves)):
        return call, wanted
    embedding = getattr(module, "get_input_embeddings", None)
    part = embedding() if callable(embedding) else None
    paths = [own_path(name) for name, one in module.named_modules() if one is part and part is not None]
    return call, [paths[0] if name == "inputs_embeds" and paths else name for name in wanted]


def _chosen(module: nn.Module, leaves: dict[str, Any], wanted: list[str] | None) -> tuple[list[str], list[str]]:
    """Names of the inputs that vary, and of the submodules whose output does."""
    tensors = [name for name, leaf in leaves.items() if isinstance(leaf, Tensor)]
    if wanted is None:
        inputs = [name for name in tensors if leaves[name].is_floating_point() and leaves[name].dim()]
        if not inputs:
            raise InputError(
                f"no input is a floating-point tensor with a batch dimension {_told(leaves)}. {_way(module)}"
            )
        return inputs, []
    paths = {own_path(name): name for name, _ in module.named_modules(remove_duplicate=False) if own_path(name)}
    inputs, parts = [], []
    for name in wanted:
        found = matching(name, tensors)
        if not found and name not in paths:
            raise InputError(f"wrt={name!r} is no input {_told(leaves)} and no submodule. {_way(module)}")
        for one in found:
            if not leaves[one].is_floating_point():
                raise InputError(
                    f"wrt={name!r}: {one} has dtype {leaves[one].dtype}; a Lipschitz constant needs a real "
                    f"floating-point input. {_way(module)}"
                )
        if not found and module.get_submodule(paths[name])._forward_hooks:
            raise InputError(
                f"wrt={name!r}: forward hooks of this submodule change its output; bound behind a module of its own."
            )
        inputs += found
        parts += [] if found else [paths[name]]
    if len({*inputs, *parts}) < len(inputs) + len(parts):
        raise InputError(f"wrt={wanted!r} names an input twice.")
    return inputs, parts


def _in_its_precision(
    module: nn.Module, call: Call, leaves: dict[str, Any], inputs: list[str]
) -> tuple[Call, dict[str, Any]]:
    """The inputs that vary, of which only the shape matters, in the dtype of the model and on its device."""
    own = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    if own is None or own.dtype not in RUNNABLE:
        return call, leaves
    names = iter(leaves)
    moved = call.mapped(lambda _, leaf: leaf.to(own.device, own.dtype) if next(names) in inputs else leaf)
    return moved, moved.leaves(module)


def _told(leaves: dict[str, Any]) -> str:
    kinds = [f"{name}: {leaf.dtype}" for name, leaf in leaves.items() if isinstance(leaf, Tensor)]
    return f"(there are {listed(kinds).replace('torch.', '')})"


def _way(module: nn.Module) -> str:
    """What to do about inputs that are no real numbers."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    names = [own_path(name) for name, part in module.named_modules() if isinstance(part, kinds) and name]
    return (
        f"Name an input, or a submodule whose output is then the input, as wrt={names[0]!r}."
        if names
        else "Name an input, or the path of a submodule, whose output is then the input."
    )


def _varied(name: str, value: Tensor, module: bool) -> _Varied:
    return _Varied(name, tuple(value.shape[1:]) if value.dim() else None, module)


def _require_one_example(varied: tuple[_Varied, ...], values: dict[str, Tensor], leaves: dict[str, Any]) -> None:
    """The inputs that vary have one batch dimension, of 1 where there are fixed tensors, whose batch is not known."""
    counts = {one.name: len(values[one.name]) for one in varied if one.shape is not None}
    if len(set(counts.values())) > 1 or (len(counts) < len(varied) and set(counts.values()) - {1}):
        told = [f"{name}: {tuple(value.shape)}" for name, value in values.items()]
        raise InputError(f"inputs differ in their leading batch dimension ({listed(told)}): give one example of each.")
    fixed = [name for name, leaf in leaves.items() if isinstance(leaf, Tensor) and leaf.dim() and name not in values]
    for name, count in counts.items():
        if count != 1 and fixed:
            raise InputError(
                f"{name} has shape {tuple(values[name].shape)}, {count} examples, and {listed(fixed)} "
                f"{'is' if len(fixed) == 1 else 'are'} fixed: give one example, all of it with a batch dimension of 1 "
                f"(on the command line --fix {fixed[0]}=VALUE)."
            )


def _side_by_side(varied: tuple[_Varied, ...], values: dict[str, Tensor]) -> Tensor:
    count = max((len(values[one.name]) for one in varied if one.shape is not None), default=1)
    return torch.cat([values[one.name].reshape(count, -1) for one in varied], dim=1)
