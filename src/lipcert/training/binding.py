"""Networks with other parameters put in: their constants as differentiable functions of these, without a capture.

What is bound is for searches and for training. Its constants are computed in one precision and nothing is known of
their rounding, so no rigorous bound can rest on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.errors import CaptureError, InputError
from lipcert.network.activations.piecewise import PReLU
from lipcert.network.graph import ActivationNode, AffineNode, Network, Node, OpenNode
from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Sum
from lipcert.network.moves import times
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.source import Source, Values
from lipcert.network.stacked import Stacked


def bind(
    network: Network,
    parameters: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Network:
    """The network that the model has with these parameters, each constant a differentiable function of them.

    It equals what a new capture gives, as long as only the numbers of the model have changed. Activations' slopes and
    values follow their parameters; blocks (softmax, normalisations, what stands for rounding) stay as captured.

    Args:
        network: as captured, not fused: fusing forgets where offsets come from.
        parameters: tensors by the names of the model's parameters and buffers; those in ``names(network)`` suffice.
        dtype, device: of the constants of the result.

    Raises:
        InputError: a parameter is missing or has another shape.
        CaptureError: it is not known how a constant comes from the parameters; the message says which.
    """
    values = Values(parameters, dtype, device)
    return Network(tuple(_bound_node(node, values) for node in network.nodes))


def names(network: Network) -> frozenset[str]:
    """The parameters and buffers that the constants of a captured network come from."""
    sources = (source for node in network.nodes for source in _sources(node))
    return frozenset[str]().union(*(source.names for source in sources if source is not None))


def bound_map(linear: LinearMap, values: Values, where: str) -> LinearMap:
    """The same map with its constants worked out from the parameters.

    Args:
        linear: as captured, fused or not.
        values: of the parameters.
        where: what an error names.

    Raises:
        InputError, CaptureError: as ``bind``.
    """
    if isinstance(linear, (OpMap, Dense)):
        if not linear.constants:
            return linear
        pairs = zip(linear.constants, linear.sources or (None,) * len(linear.constants), strict=True)
        constants = tuple(_constant(stored, source, values, where) for stored, source in pairs)
        if isinstance(linear, Dense):
            return replace(linear, constants=(constants[0],), rounding=math.inf, stored=False, majorant=None)
        return replace(linear, constants=constants, rounding=math.inf, stored=False, majorants=())
    if isinstance(linear, Identity):
        if linear.source is None:
            return linear
        scale = _evaluated(linear.source, values, where).reshape(())
        shape = linear.in_shape
        return OpMap("times", times, shape, shape, (scale,), "times", math.inf, sources=(linear.source,))
    if isinstance(linear, (Composition, Sum, Stacked)):
        return type(linear)(tuple(bound_map(part, values, where) for part in linear.maps))
    raise CaptureError(f"{where}: a map of kind {type(linear).__name__} does not know its parameters.")


def bound_function(function: Nonlinearity, values: Values, where: str) -> Nonlinearity:
    """The same activation with its settings worked out from the parameters.

    Raises:
        InputError, CaptureError: as ``bind``.
    """
    if not function.parameters:
        return function
    if not isinstance(function, PReLU) or not function.sources:
        raise _unknown_origin(where, function.parameters[0])
    slopes = _constant(function.slopes, function.sources[0], values, where)
    return replace(function, slopes=slopes, spread=None, lower=slopes.clamp(max=1.0), upper=slopes.clamp(min=1.0))


def place_of(node: Node) -> str:
    """What an error about the constants of a node names."""
    return f"{node.name} at {node.where}" if node.where else node.name


def _bound_node(node: Node, values: Values) -> Node:
    where = place_of(node)
    if isinstance(node, AffineNode):
        maps = tuple(bound_map(linear, values, where) for linear in node.maps)
        offset = None if node.offset is None else _constant(node.offset, node.source, values, where)
        return replace(node, maps=maps, offset=offset, offset_error=None)
    if isinstance(node, ActivationNode):
        return replace(node, function=bound_function(node.function, values, where))
    if isinstance(node, OpenNode) and node.constants:
        raise _unknown_origin(where, node.constants[0])
    return node.to(values.dtype, values.device)


def _sources(node: Node) -> Iterator[Source | None]:
    if isinstance(node, ActivationNode):
        yield from node.function.sources
    if isinstance(node, AffineNode):
        yield node.source
        for leaf in (leaf for linear in node.maps for leaf in linear.leaves()):
            if isinstance(leaf, (OpMap, Dense)):
                yield from leaf.sources
            elif isinstance(leaf, Identity):
                yield leaf.source


def _constant(stored: Tensor, source: Source | None, values: Values, where: str) -> Tensor:
    if source is None:
        raise _unknown_origin(where, stored)
    value = _evaluated(source, values, where)
    if value.shape != stored.shape:
        raise InputError(
            f"{where}: its constant has shape {tuple(value.shape)} with these parameters, {tuple(stored.shape)} when "
            f"the model was captured (parameters {', '.join(sorted(source.names))}). Capture the changed model anew."
        )
    return value


def _evaluated(source: Source, values: Values, where: str) -> Tensor:
    try:
        return source.evaluate(values)
    except KeyError:
        missing = sorted(source.names - set(values.parameters))
        raise InputError(
            f"{where} needs {', '.join(map(repr, missing))}, which is not among the parameters and buffers given."
        ) from None
    except RuntimeError as problem:  # shapes that do not fit each other, a device
        raise InputError(
            f"{where}: its constant cannot be worked out from {', '.join(sorted(source.names))}: {str(problem)[:200]}"
        ) from problem


def _unknown_origin(where: str, constant: Tensor) -> CaptureError:
    return CaptureError(
        f"{where}: it is not known how its constant of shape {tuple(constant.shape)} comes from the model's "
        "parameters, so it cannot follow them. Write that expression as a layer with a weight of its own, or capture "
        "the model anew."
    )
