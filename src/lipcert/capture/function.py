"""A function as a module: what it calls becomes its parts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

#: Attribute in which a module of ours holds the user's: no part of the names that are shown.
INNER = "adapted_model"


class FunctionModule(nn.Module):
    """The module that computes ``function``, whose modules are its parts by the names they have there.

    A module that a function or lambda finds in its closure or among its globals, the object of a bound method and what
    a ``functools.partial`` calls are parts, so that a copy of this module computes with copies of them. Whatever else
    the function uses, it uses as it is.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        if isinstance(function, functools.partial):
            inner = function.func if isinstance(function.func, nn.Module) else FunctionModule(function.func)
            self.add_module(INNER, inner)
        elif isinstance(function, MethodType) and isinstance(function.__self__, nn.Module):
            self.add_module(INNER, function.__self__)
        elif isinstance(function, FunctionType):
            for name, found in {**_globals(function), **_closure(function)}.items():
                if not hasattr(self, name):
                    self.add_module(name, found)
        self.training = False  # the parts keep their modes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        function: Any = self.function
        inner: Any = self._modules.get(INNER)
        if isinstance(function, functools.partial):
            return inner(*function.args, *args, **{**function.keywords, **kwargs})
        if isinstance(function, MethodType) and isinstance(function.__self__, nn.Module):
            return function.__func__(inner, *args, **kwargs)
        if isinstance(function, FunctionType) and self._modules:
            function = self._with_parts(function)
        return function(*args, **kwargs)

    def _with_parts(self, function: FunctionType) -> FunctionType:
        """The function, with the parts of this module in the place of its modules."""
        inside, parts = _closure(function), self._modules
        cells = [
            CellType(parts[name]) if name in inside and name in parts else cell
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        ]
        outside = {name: parts[name] for name in _globals(function) if name not in inside and name in parts}
        seen = {**function.__globals__, **outside} if outside else function.__globals__
        made = FunctionType(function.__code__, seen, function.__name__, function.__defaults__, tuple(cells))
        made.__kwdefaults__ = function.__kwdefaults__
        return made


def own_path(path: str) -> str:
    """The path of a submodule in the user's model, where modules of ours are around that."""
    while path == INNER or path.startswith(f"{INNER}."):
        path = path[len(INNER) + 1 :]
    return path


def _closure(function: FunctionType) -> dict[str, nn.Module]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not yet filled
            continue
        if isinstance(value, nn.Module):
            found[name] = value
    return found


def _globals(function: FunctionType) -> dict[str, nn.Module]:
    seen = function.__globals__
    return {name: seen[name] for name in function.__code__.co_names if isinstance(seen.get(name), nn.Module)}
