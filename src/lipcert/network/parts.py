"""Networks whose products, quotients and gates are sums of parts, which have relations: see ``network/joint.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipcert.network.activations.steep import power
from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import Network
from lipcert.network.joint import Blend, Joint, Product
from lipcert.network.linear import Identity, Shape, size
from lipcert.network.moves import gather
from lipcert.network.nodes import Node, OpenNode


def split(network: Network) -> Network:
    """The same function with every open node of several values as the sum of the parts of its increment.

    x/y is x·(1/y). The sum's increments are those of the parts, whatever the parts' values are (``PartNode``).
    """
    return _rebuilt(network, every=True)


def joined(network: Network) -> Network:
    """The same with the first part only, which has the value: for what is about values and not about increments."""
    return _rebuilt(network, every=False)


def combined(node: Node) -> OpenNode | None:
    """The node, if it is an open one that combines values entry by entry and is no function of one of them."""
    return node if isinstance(node, OpenNode) and node.steep is None and node.combines else None


def _rebuilt(network: Network, every: bool) -> Network:
    if not any(combined(node) for node in network.nodes):
        return network
    builder = NetworkBuilder()
    new: list[Var] = []
    for node in network.nodes:
        parents = [new[p] for p in node.parents]
        open_ = combined(node)
        new.append(builder.again(node, parents) if open_ is None else _made(builder, open_, parents, every))
    return builder.finish(new[-1])


def _made(builder: NetworkBuilder, node: OpenNode, parents: Sequence[Var], every: bool) -> Var:
    if node.combines == "blend":
        z, h, n = parents
        d = builder.affine(
            [(h, Identity(h.shape)), (n, Identity(n.shape, -1.0))], n.shape, None, node.name, node.origin
        )
        return parts(builder, node, [z, d, n, h], Blend(), every)
    x, y = parents
    if node.combines == "div":
        y = _reciprocal(builder, node, y)
    return parts(builder, node, [_wide(builder, v, node) for v in (x, y)], Product(), every)


def parts(builder: NetworkBuilder, node: OpenNode, arguments: Sequence[Var], function: Joint, every: bool) -> Var:
    """``node``, which is ``function`` of the arguments, as the sum of its parts, or as the first one."""
    count = len(function.reads) if every else 1
    found = [builder.part(arguments, node.shape, function, k, node.error, node.name, node.origin) for k in range(count)]
    if count == 1:
        return found[0]
    return builder.affine([(w, Identity(node.shape)) for w in found], node.shape, None, node.name, node.origin)


def _reciprocal(builder: NetworkBuilder, node: OpenNode, y: Var) -> Var:
    function = power(-1.0, name="reciprocal")

    def value(inputs: Sequence[Tensor], constants: Sequence[Tensor]) -> Tensor:
        return function.value(inputs[0])

    var = builder.unresolved((y,), y.shape, function.name, node.error, (), node.origin, steep=function)
    builder.evaluated(var, (y,), value, (), function.name)
    return var


def _wide(builder: NetworkBuilder, var: Var, node: OpenNode) -> Var:
    """``var`` broadcast to the node's shape."""
    if var.shape == node.shape:
        return var
    shape: Shape = node.shape
    places = torch.arange(size(var.shape)).reshape(var.shape).expand(shape)
    return builder.affine([(var, gather(places, var.shape, shape))], shape, None, "broadcast", node.origin)
