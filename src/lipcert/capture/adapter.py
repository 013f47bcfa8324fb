"""A model of several inputs or outputs, or of token ids, as a module of one tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, unflatten
from torch.utils._pytree import tree_leaves

from lipcert.capture.call import Call, leaves_of, matching, signature_of
from lipcert.capture.function import INNER, own_path
from lipcert.capture.model import RUNNABLE, as_module, one_tensor, private
from lipcert.capture.torch_export import quiet
from lipcert.errors import CaptureError, InputError, named
from lipcert.numerics.process_state import ordinary

#: One example, or the arguments of a call.
Example = Tensor | npt.NDArray[Any] | tuple[Any, ...] | Mapping[str, Any] | Call
#: Names of inputs or of submodules; a name or the number of an output.
Wrt = str | Sequence[str] | None
Output = str | int | None


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
        with _put_out(model, outputs):
            return picked(model(*call.args, **call.kwargs), self.output)

    @property
    def whole(self) -> bool:
        """Whether x is the one input itself, in its own shape."""
        return len(self.varied) == 1 and bool(self.varied[0].shape)

    def _fixed(self, buffer: str, count: int) -> Tensor:
        value: Tensor = getattr(self, buffer).clone()
        return value.expand(count, *value.shape[1:]) if value.dim() and len(value) == 1 and count > 1 else value


@contextmanager
def _put_out(model: nn.Module, outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Submodules return what is given in the place of what they compute, once."""

    def returning(name: str) -> Callable[..., Tensor]:
        left = [outputs[name]]

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if not left:
                raise InputError(
                    f"wrt={name!r}: the model calls this submodule twice, so that its output is not one input."
                )
            return left.pop()

        return forward

    parts = {name: model.get_submodule(name) for name in outputs}
    kept = {name: part.__dict__.get("forward") for name, part in parts.items()}
    try:
        for name, part in parts.items():
            part.__dict__["forward"] = returning(name)
        yield
    finally:
        for name, part in parts.items():
            del part.__dict__["forward"]
            if kept[name] is not None:
                part.__dict__["forward"] = kept[name]


def picked(result: Any, output: Output) -> Tensor:
    """The one tensor that a model returns, or that called ``output`` among several.

    Raises:
        InputError: there is none of this name, or it is no tensor.
    """
    if output is None:
        return one_tensor(result)
    leaves = leaves_of(result)
    found = [] if isinstance(result, Tensor) else matching(str(output), list(leaves))
    if not found:
        raise InputError(
            f"output={output!r}: the model returns "
            + (f"no such output but {listed(list(leaves))}." if "" not in leaves else f"one {type(result).__name__}.")
        )
    return one_tensor({name: leaves[name] for name in found})


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
            module = _with_submodules(model, flat, parts)
        inputs, parts = _chosen(module, leaves, wanted)
        call, leaves = _in_its_precision(module, call, leaves, inputs)
        values = {name: leaves[name] for name in inputs} | _outputs_of(module, call, parts, output)
        varied = tuple(_varied(name, value, name in parts) for name, value in values.items())
        _require_one_example(varied, values, leaves)
        only = call.args[0] if len(call.args) == 1 and not call.kwargs else None
        if output is None and isinstance(only, Tensor) and not parts:
            return model, only
        made = Adapted(module, call, varied, output)
        x = next(iter(values.values())) if made.whole else _side_by_side(varied, values)
        if parts:
            _require_same(flat, call, made, x, parts)
        return made, x


def _with_submodules(program: ExportedProgram, flat: nn.Module, wanted: Sequence[str]) -> nn.Module:
    """The module of a program in which its submodules are called again, as they were where it was exported.

    It takes what ``flat``, torch's module of the program, takes.

    Raises:
        InputError: one of those wanted is called twice, and each of its calls became a submodule.
    """
    module = as_module(unflatten(program))
    paths = [name for name, _ in module.named_modules() if "@" in name]  # the second call of a is a@1
    again = {re.sub(r"@\d+", "", path) for path in paths} & set(wanted)
    if again:
        raise InputError(f"wrt={min(again)!r}: the model calls this submodule more than once, so it is not one input.")
    module.__signature__ = signature_of(flat)  # type: ignore[assignment]
    return module


def _require_same(model: nn.Module, call: Call, made: Adapted, x: Tensor, parts: list[str]) -> None:
    """What stands for a model with the outputs of submodules as input returns, on them, what the model returns."""

    def returned(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with private(model) as own:
            copies = _copied(call)
            return picked(own(*copies.args, **copies.kwargs), made.output)

    torch.manual_seed(0)
    with private(made) as own:
        answer = own(x.clone())
    if not _alike(answer, returned(0)) and _alike(returned(0), returned(1)):  # else capture says that it is random
        raise InputError(
            f"wrt={listed(parts)}: the model returns something else when the output of this submodule is put in its "
            "place, so it does not see the submodule by its output alone: give wrt= another one."
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal but for the rounding of kernels that are given other strides."""
    if one.shape != other.shape or not one.is_floating_point():
        return one.shape == other.shape and torch.equal(one, other)
    slack = 64.0 * torch.finfo(one.dtype).eps
    size = float(other.abs().nan_to_num(0.0, 0.0, 0.0).amax()) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=slack, atol=slack * size, equal_nan=True)


def _copied(call: Call) -> Call:
    return call.mapped(lambda _, leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


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


def listed(names: list[str]) -> str:
    """The first eight, with commas."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _outputs_of(module: nn.Module, call: Call, parts: list[str], output: Output) -> dict[str, Tensor]:
    """What submodules put out in this call, each of which must run once; the model must run and have that output."""
    seen = {name: _Seen() for name in parts}
    with ExitStack() as stack:
        own = stack.enter_context(private(module))
        for name in parts:
            part = own.get_submodule(name)
            stack.callback(part.register_forward_pre_hook(seen[name].before, with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(seen[name].after).remove)
        copies = _copied(call)
        try:
            result = own(*copies.args, **copies.kwargs)
        except Exception as failure:
            shapes = [f"{n}: {tuple(v.shape)}" for n, v in call.leaves(module).items() if isinstance(v, Tensor)]
            raise InputError(
                f"the model does not run on the arguments given ({listed(shapes)}): {type(failure).__name__}: "
                f"{str(failure).strip()[:300]}. Fixed inputs are used as they are given, in dtype, shape and device."
            ) from failure
    picked(result, output)
    for name, one in seen.items():
        if len(one.results) != 1:
            raise InputError(
                f"wrt={name!r}: the model calls this submodule {len(one.results)} times, so it is not one input."
            )
        if not isinstance(one.results[0], Tensor) or not one.results[0].is_floating_point():
            raise InputError(f"wrt={name!r}: this submodule does not return one floating-point tensor.")
        if one.changes:
            raise InputError(
                f"wrt={name!r}: this submodule changes its input in place, so that the model may see its output by "
                "another way, too: use the form that does not (inplace=False)."
            )
    return {name: one.results[0] for name, one in seen.items()}


class _Seen:
    """What a submodule returns, call by call, and whether it changes what it is given."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.changes = False
        self._given: list[tuple[Tensor, int]] = []

    def before(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not leaf.is_inference()]
        self._given = [(leaf, leaf._version) for leaf in given]

    def after(self, _: nn.Module, __: Any, result: Any) -> None:
        self.results.append(result.detach().clone() if isinstance(result, Tensor) else result)  # as it is by now
        self.changes = self.changes or any(leaf._version != version for leaf, version in self._given)


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
