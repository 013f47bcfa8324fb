"""What a model is called with and what it returns: nested containers, whose tensors have names."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lipcert.capture.function import FunctionModule
from lipcert.errors import InputError


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @staticmethod
    def of(model: nn.Module, example: Any) -> Call:
        """The call that an example stands for, with arrays as tensors.

        A tuple holds the positional arguments; a dict the keyword arguments where ``forward`` takes such, else it is
        the one argument; anything else is the one argument.
        """
        if isinstance(example, Call):
            args, kwargs = example.args, example.kwargs
        elif isinstance(example, Mapping) and _are_keywords(model, example):
            args, kwargs = (), example
        elif isinstance(example, Mapping):
            args, kwargs = (dict(example),), {}
        else:
            args, kwargs = example if type(example) is tuple else (example,), {}
        return Call(tuple(args), dict(kwargs)).mapped(lambda name, leaf: _as_tensor(leaf), _parameters(model))

    def mapped(self, change: Callable[[str, Any], Any], names: Sequence[str] = ()) -> Call:
        """The call with ``change(name, leaf)`` in the place of every leaf; ``names`` are those of the parameters."""
        args = tuple(
            rebuilt(value, names[place] if place < len(names) else str(place), change)
            for place, value in enumerate(self.args)
        )
        return Call(args, {key: rebuilt(value, key, change) for key, value in self.kwargs.items()})

    def leaves(self, model: nn.Module) -> dict[str, Any]:
        """name → what the call holds there, in the order of ``mapped``: ``x``, ``obs.pos``, ``states.0``.

        Raises:
            InputError: two have one name.
        """
        found: list[tuple[str, Any]] = []
        self.mapped(lambda name, leaf: found.append((name, leaf)), _parameters(model))
        if len(dict(found)) < len(found):
            raise InputError(f"two of the arguments are called alike: {', '.join(name for name, _ in found)}.")
        return dict(found)


def rebuilt(value: Any, name: str, change: Callable[[str, Any], Any]) -> Any:
    """Containers as they are with ``change(name, leaf)`` for every leaf; a part is named by the path to it."""

    def inner(key: Any, part: Any) -> Any:
        return rebuilt(part, f"{name}.{key}" if name else str(key), change)

    if isinstance(value, Mapping):
        result: Any = copy.copy(value) if isinstance(value, MutableMapping) else dict(value)
        for key, part in value.items():
            result[key] = inner(key, part)
        return result
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(inner(key, part) for key, part in zip(value._fields, value, strict=True)))
    if type(value) in (tuple, list):
        return type(value)(inner(key, part) for key, part in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        result = copy.copy(value)
        for one in dataclasses.fields(value):
            object.__setattr__(result, one.name, inner(one.name, getattr(value, one.name)))
        return result
    return change(name, value)


def leaves_of(value: Any) -> dict[str, Any]:
    """name → leaf of nested containers; a value that is no container has the name ''."""
    found: dict[str, Any] = {}
    rebuilt(value, "", lambda name, leaf: found.setdefault(name, leaf))
    return found


def matching(wanted: str, names: Sequence[str]) -> list[str]:
    """The names that one name means: itself, all that it contains, or, of a word, the only one that ends with it.

    Raises:
        InputError: several end with it.
    """
    if wanted in names:
        return [wanted]
    inside = [name for name in names if name.startswith(f"{wanted}.")]
    if inside:
        return inside
    ending = [name for name in names if name.endswith(f".{wanted}") and not wanted.isdecimal()]
    if len(ending) > 1:
        raise InputError(f"{wanted!r} may be {' or '.join(ending)}: give the whole name.")
    return ending


def listed(names: list[str]) -> str:
    """The first eight, with commas."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _as_tensor(leaf: Any) -> Any:
    """An array as a tensor of its own memory; NumPy's numbers as Python's."""
    if isinstance(leaf, np.generic):
        return leaf.item()
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc" and leaf.dtype.itemsize <= 16:
        return torch.from_numpy(np.array(leaf, dtype=leaf.dtype.newbyteorder("="), order="C"))
    return leaf


def signature_of(model: nn.Module) -> inspect.Signature | None:
    """The parameters of ``forward``, or of the function that the module stands for; None where Python cannot tell.

    An object's own ``__signature__`` counts before that of its class, as in ``inspect``.
    """
    own = vars(model).get("__signature__")
    if isinstance(own, inspect.Signature):
        return own
    try:
        return inspect.signature(model.function if isinstance(model, FunctionModule) else model.forward)
    except (TypeError, ValueError):
        return None


def _parameters(model: nn.Module) -> list[str]:
    """Names of the positional parameters of ``forward``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = signature_of(model)
    return [] if signature is None else [one.name for one in signature.parameters.values() if one.kind in kinds]


def _are_keywords(model: nn.Module, example: Mapping[Any, Any]) -> bool:
    """Whether ``forward(**example)`` fits its parameters."""
    signature = signature_of(model)
    if signature is None or not all(isinstance(key, str) for key in example):
        return False
    try:
        signature.bind(**example)
    except TypeError:
        return False
    return True
