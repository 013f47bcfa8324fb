"""How a constant of a network came from named parameters: an expression that other tensors can be put into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


@dataclass(frozen=True, eq=False)
class Values:
    """Tensors in the place of parameters, and what expressions gave for them: shared parts are worked out once.

    Attributes:
        parameters: by name.
        dtype, device: of every floating number.
    """

    parameters: Mapping[str, Tensor]
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"
    _known: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def placed(self, value: Tensor) -> Tensor:
        """In the dtype, if it is floating, and on the device."""
        return value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)


class Source(ABC):
    """An immutable expression in the parameters and buffers of a model. It plays no part in what a network is."""

    def evaluate(self, parameters: Mapping[str, Tensor] | Values) -> Tensor:
        """The tensor for these parameters, floating numbers in float64; gradients pass to the parameters.

        Raises:
            KeyError: a parameter that it needs is not given.
        """
        value = self._value(parameters if isinstance(parameters, Values) else Values(parameters))
        assert isinstance(value, Tensor)
        return value

    @property
    def names(self) -> frozenset[str]:
        """The parameters and buffers that it needs."""
        waiting: list[Any] = [self]
        seen: dict[int, Any] = {}
        while waiting:
            source = waiting.pop()
            if id(source) not in seen:
                seen[id(source)] = source
                if isinstance(source, Derived):
                    leaves = tree_leaves((source.args, source.kwargs))
                    waiting += [leaf for leaf in leaves if isinstance(leaf, Source)]
        return frozenset(source.name for source in seen.values() if isinstance(source, Named))

    @abstractmethod
    def _value(self, values: Values) -> Any:
        """What the expression gives."""


@dataclass(frozen=True, eq=False)
class Named(Source):
    """A parameter or buffer of the model."""

    name: str

    def _value(self, values: Values) -> Any:
        return values.placed(values.parameters[self.name])


@dataclass(frozen=True, eq=False)
class Fixed(Source):
    """A tensor that does not come from parameters."""

    value: Tensor

    def _value(self, values: Values) -> Any:
        return values.placed(self.value)


@dataclass(frozen=True, eq=False)
class Derived(Source):
    """``function(*args, **kwargs)``, with expressions among the arguments; ``place`` of a result of several tensors."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    place: int | None = None

    def _value(self, values: Values) -> Any:
        known = values._known
        if id(self) not in known:
            args, kwargs = tree_map(lambda leaf: _argument(leaf, values), (self.args, self.kwargs))
            result = self.function(*args, **kwargs)
            known[id(self)] = values.placed(result if self.place is None else tree_leaves(result)[self.place])
        return known[id(self)]

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes, to which an op of torch goes by its name."""
        return _again, (Op(self.function), self.args, self.kwargs, self.place)


def _again(op: Op, args: Any, kwargs: Any, place: int | None) -> Derived:
    return Derived(op.function, args, kwargs, place)


@dataclass(frozen=True)
class Op:
    """A function that other processes can be given: an op of torch, such as ``aten::add.Tensor``, goes by its name."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """By name, if it has one."""
        own = self.function
        return (_named, (own.name(),)) if isinstance(own, torch._ops.OpOverload) else (Op, (own,))


def _named(name: str) -> Op:
    namespace, op = name.split("::")
    op, _, overload = op.partition(".")
    return Op(getattr(getattr(getattr(torch.ops, namespace), op), overload or "default"))


def _argument(leaf: Any, values: Values) -> Any:
    if isinstance(leaf, Source):
        return leaf._value(values)
    if isinstance(leaf, torch.dtype) and leaf.is_floating_point:
        return values.dtype
    return torch.device(values.device) if isinstance(leaf, torch.device) else leaf


def derived(function: Callable[..., Tensor], *sources: Source | None) -> Source | None:
    """``function`` of these sources; None if one of them is not known."""
    return None if any(s is None for s in sources) else Derived(function, sources, {})
