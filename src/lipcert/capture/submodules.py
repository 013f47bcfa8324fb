"""Submodules of a model whose output is the input that it is bounded in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, unflatten
from torch.utils._pytree import tree_leaves

from lipcert.capture.call import Call, listed, signature_of
from lipcert.capture.model import Output, as_module, picked, private
from lipcert.errors import InputError


@contextmanager
def put_out(model: nn.Module, outputs: Mapping[str, Tensor]) -> Iterator[None]:
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


def outputs_of(module: nn.Module, call: Call, parts: list[str], output: Output) -> dict[str, Tensor]:
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


def with_submodules(program: ExportedProgram, flat: nn.Module, wanted: Sequence[str]) -> nn.Module:
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


def require_same(model: nn.Module, call: Call, made: nn.Module, output: Output, x: Tensor, parts: list[str]) -> None:
    """What stands for a model with the outputs of submodules as input returns, on them, what the model returns."""

    def returned(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with private(model) as own:
            copies = _copied(call)
            return picked(own(*copies.args, **copies.kwargs), output)

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
