"""Networks whose products, quotients and gates are sums of parts, which have relations: see ``network/joint.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipcert.errors import CaptureError, NotLipschitzError
from lipcert.network.activations.steep import power
from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.expanded import MatrixProduct, SmoothBlock
from lipcert.network.graph import Network
from lipcert.network.heads import head_of
from lipcert.network.joint import Blend, Joint, Product
from lipcert.network.linear import Identity, Shape, size
from lipcert.network.moves import gather
from lipcert.network.nodes import GainNode, Node, OpenNode
from lipcert.network.nonlinearity import GainFunction


def split(network: Network, smooth: bool = False, heads: bool = False) -> Network:
    """The same function with every open node of several values as the sum of the parts of its increment.

    x/y is x·(1/y). The sum's increments are those of the parts, whatever the parts' values are (``PartNode``).

    Args:
        network: what is to be split.
        smooth: split blocks of one value, too, that are nearly linear on small domains.
        heads: say of attention that it is that (``HeadNode``); of a fused network.
    """
    return _rebuilt(network, every=True, smooth=smooth, heads=heads)


def joined(network: Network) -> Network:
    """The same with the first part only, which has the value: for what is about values and not about increments."""
    return _rebuilt(network, every=False, smooth=False)


def combined(node: Node) -> OpenNode | None:
    """The node, if it is an open one that combines values entry by entry and is no function of one of them."""
    return node if isinstance(node, OpenNode) and node.steep is None and node.combines not in ("", "matmul") else None


def block_of(node: Node) -> GainFunction | None:
    """The block of one value that the node is, if it may be nearly linear on small domains."""
    own = node.function if isinstance(node, GainNode) else None
    block: GainFunction | None = node.block if isinstance(node, OpenNode) else own
    return block if block is not None and block.smooth else None


def _matrices(node: Node) -> OpenNode | None:
    return node if isinstance(node, OpenNode) and node.combines == "matmul" else None


def _rebuilt(network: Network, every: bool, smooth: bool, heads: bool = False) -> Network:
    def kept(node: Node) -> bool:
        return combined(node) is None and _matrices(node) is None and not (smooth and block_of(node))

    if all(kept(node) for node in network.nodes):
        return network
    builder = NetworkBuilder()
    new: list[Var] = []
    for k, node in enumerate(network.nodes):
        parents = [new[p] for p in node.parents]
        open_, matrices, block = combined(node), _matrices(node), block_of(node) if smooth else None
        if open_ is not None:
            new.append(_made(builder, open_, parents, every))
        elif matrices is not None:
            new.append(parts(builder, matrices, parents, MatrixProduct(), every))
            head = head_of(network, k) if heads else None
            if head is not None:
                arguments = [new[p] for p in head.parents]
                new[k] = builder.head(new[k], arguments, head.logits, node.name, node.origin)
        elif block is not None:
            new.append(parts(builder, node, parents, SmoothBlock(block), every))
        else:
            new.append(builder.again(node, parents))
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


def parts(builder: NetworkBuilder, node: Node, arguments: Sequence[Var], function: Joint, every: bool) -> Var:
    """``node``, which is ``function`` of the arguments, as the sum of its parts, or as the first one."""
    error = node.error if isinstance(node, OpenNode) else unknown(node)
    aside = set(function.chain.values())
    found: list[Var] = []
    for k, place in enumerate(function.reads if every else function.reads[:1]):
        shape = arguments[place].shape if k in aside else node.shape
        read = [*arguments, found[function.chain[k]]] if k in function.chain else arguments
        found.append(builder.part(read, shape, function, k, error, node.name, node.origin))
    summed = [w for k, w in enumerate(found) if k not in aside]
    if len(summed) == 1:
        return summed[0]
    return builder.affine([(w, Identity(node.shape)) for w in summed], node.shape, None, node.name, node.origin)


def unknown(node: Node) -> CaptureError:
    """What is said where a block turns out to have no gain."""
    where = f" (in {node.where})" if node.where else ""
    return NotLipschitzError(f"{node.name}{where} has no Lipschitz constant on this domain.")


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
