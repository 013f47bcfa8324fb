"""Plain ``nn.Sequential`` networks, read module by module: the graph torch.export would find, without its tracing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from lipcert.capture.lowering import apply_rule
from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import Network
from lipcert.network.origin import Origin
from lipcert.network.source import Named
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context

_aten = torch.ops.aten


def _constant(value: Tensor, name: str) -> Constant:
    return Constant.exactly(value.detach().cpu(), source=Named(name))


def _linear(x: Var, layer: nn.Linear, path: str) -> tuple[Any, ...]:
    weight = _constant(layer.weight, f"{path}.weight")
    return (x, weight) if layer.bias is None else (x, weight, _constant(layer.bias, f"{path}.bias"))


def _flatten(x: Var, layer: nn.Flatten, _: str) -> tuple[Any, ...]:
    return (x, layer.start_dim) if layer.end_dim == -1 else (x, layer.start_dim, layer.end_dim)


#: Exact module type → the ATen op that it is, and the op's arguments.
_LAYERS: dict[type[nn.Module], tuple[Any, Callable[[Var, Any, str], tuple[Any, ...]]]] = {
    nn.Linear: (_aten.linear.default, _linear),
    nn.ReLU: (_aten.relu.default, lambda x, *_: (x,)),
    nn.Tanh: (_aten.tanh.default, lambda x, *_: (x,)),
    nn.Sigmoid: (_aten.sigmoid.default, lambda x, *_: (x,)),
    nn.SiLU: (_aten.silu.default, lambda x, *_: (x,)),
    nn.LeakyReLU: (_aten.leaky_relu.default, lambda x, layer, _: (x, layer.negative_slope)),
    nn.Flatten: (_aten.flatten.using_ints, _flatten),
}


def read_sequential(module: nn.Module, example: Tensor) -> Network | None:
    """The Network of a plain ``nn.Sequential`` for an example with batch size 1.

    None for everything that is not exactly a Sequential of the layers of ``_LAYERS``: subclasses, hooks, replaced
    methods, parameters that are not plain tensors, inputs that do not fit.
    """
    if type(module) is not nn.Sequential or not _plain(module) or _watched():
        return None
    layers = list(_layers(module))
    if any(type(layer) not in _LAYERS or not _plain(layer) for _, layer in layers):
        return None
    try:
        module(example.clone())
    except Exception:  # torch.export makes a named error of it
        return None
    builder = NetworkBuilder()
    context = Context(builder)
    context.dtype = example.dtype
    x = builder.input(tuple(example.shape))
    for path, layer in layers:
        target, arguments = _LAYERS[type(layer)]
        context.where = Origin(path, type(layer).__name__)
        x = apply_rule(context, target, arguments(x, layer, path), {})
    return builder.finish(x)


def _layers(module: nn.Sequential, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Path and layer in order of application, through plain Sequentials, without Identities."""
    for name, child in module._modules.items():  # named_children() would leave out the second use of a module
        assert child is not None
        if type(child) is nn.Sequential and _plain(child):
            yield from _layers(child, f"{path}{name}.")
        elif type(child) is not nn.Identity or not _plain(child):
            yield path + name, child


def _watched() -> bool:
    """Whether hooks are set on all modules."""
    return any(table for name, table in vars(torch_module).items() if name.startswith("_global_") and "hooks" in name)


def _plain(module: nn.Module) -> bool:
    """No hooks, no replaced methods, no tensors but parameters, and those plain and floating."""
    own = vars(module)
    if any(table for name, table in own.items() if "hooks" in name) or own["_buffers"]:
        return False
    if any(callable(value) or isinstance(value, Tensor) for value in own.values()):
        return False
    parameters = [value for value in own["_parameters"].values() if value is not None]
    return all(type(p) is nn.Parameter and p.is_floating_point() for p in parameters)
