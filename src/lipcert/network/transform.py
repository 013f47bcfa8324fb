"""Networks from networks: fuse affine neighbours, expand selections, append a linear map."""

from __future__ import annotations

from dataclasses import replace

import torch

from lipcert.network.activations.clamp import RELU
from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import Network
from lipcert.network.images import image_if_known
from lipcert.network.linear import Identity, LinearMap, Shape, add, compose
from lipcert.network.moves import gather, scatter
from lipcert.network.nodes import ActivationNode, AffineNode, SelectionNode
from lipcert.network.nonlinearity import MaxSelection, SortSelection
from lipcert.network.origin import Origins, united


def then(network: Network, linear: LinearMap, name: str = "select") -> Network:
    """``linear ∘ network``."""
    last = len(network.nodes) - 1
    node = AffineNode(parents=(last,), shape=linear.out_shape, name=name, maps=(linear,))
    return Network((*network.nodes, node))


def fuse(network: Network) -> Network:
    """Merge every affine node into its affine consumer when it has only that one; drop identities.

    The function computed is the same; products of norms can only become smaller. Merging can leave an affine
    node with one consumer where it had two (the branches of x ↦ Ax + Bx): repeated until nothing changes.
    """
    while True:
        fused = _fuse_once(network)
        if len(fused.nodes) == len(network.nodes):
            return fused
        network = fused


def _fuse_once(network: Network) -> Network:
    builder = NetworkBuilder()
    new: dict[int, Var] = {}
    pending: dict[int, AffineNode] = {}  # affine nodes that wait to be merged into their only consumer
    last = len(network.nodes) - 1
    for position, node in enumerate(network.nodes):
        if not isinstance(node, AffineNode):
            new[position] = builder.again(node, [new[p] for p in node.parents])
            continue
        node = _absorb(node, pending)
        readers = network.consumers[position]
        if position != last and len(readers) == 1 and isinstance(network.nodes[readers[0]], AffineNode):
            pending[position] = node
        elif node.is_identity and position != last:
            new[position] = new[node.parents[0]]
        else:
            terms = [(new[p], m) for p, m in zip(node.parents, node.maps, strict=True)]
            new[position] = builder.affine(terms, node.shape, node.offset, node.name, node.origin, node.offset_error)
    return builder.finish(new[last])


def _absorb(node: AffineNode, pending: dict[int, AffineNode]) -> AffineNode:
    merged: dict[int, LinearMap] = {}
    names: list[str] = []
    offset, origins = node.known_offset, []

    def include(parent: int, linear: LinearMap) -> None:
        merged[parent] = add(merged[parent], linear) if parent in merged else linear

    for parent, outer in zip(node.parents, node.maps, strict=True):
        inner = pending.pop(parent, None)
        if inner is None:
            include(parent, outer)
            continue
        if inner.name not in names:
            names.append(inner.name)
        origins.append(inner.origin)
        for grandparent, linear in zip(inner.parents, inner.maps, strict=True):
            include(grandparent, compose(linear, outer))
        inner_offset = inner.known_offset
        if inner_offset is not None:
            moved = image_if_known(outer, inner_offset)
            offset = moved if offset is None else offset + moved
    name = "+".join([*names, node.name]) if names else node.name
    return replace(
        node, parents=tuple(merged), name=name, origin=united([*origins, node.origin]), maps=tuple(merged.values()),
        offset=None if offset is None else offset.mid, offset_error=None if offset is None else offset.rad, source=None,
    )  # fmt: skip


def expand(network: Network, maxima: bool = True) -> Network:
    """Replace selections by linear maps and ReLUs: max(a, b) = b + relu(a − b). Exact.

    A pool of a non-decreasing activation becomes the activation of the pool: same function, fewer neurons.

    Args:
        network: the nodes.
        maxima: whether maxima over windows are replaced, too; sorts always are.
    """
    builder = NetworkBuilder()
    new: dict[int, Var] = {}
    for position, node in enumerate(network.nodes):
        parents = [new[p] for p in node.parents]
        if isinstance(node, ActivationNode) and _commutes_with_pool(network, position):
            new[position] = parents[0]
        elif not isinstance(node, SelectionNode):
            new[position] = builder.again(node, parents)
        elif isinstance(node.function, MaxSelection):
            if maxima:
                pooled = _expand_max(builder, parents[0], node.function, node.origin)
            else:
                pooled = builder.selection(parents[0], node.function, node.origin)
            before = network.nodes[node.parents[0]]
            if isinstance(before, ActivationNode) and _commutes_with_pool(network, node.parents[0]):
                pooled = builder.activation(pooled, before.function, before.origin)
            new[position] = pooled
        else:
            new[position] = _expand_sort(builder, parents[0], node.function, node.origin)
    return builder.finish(new[len(network.nodes) - 1])


def _commutes_with_pool(network: Network, position: int) -> bool:
    """Whether max(φ(a), φ(b)) = φ(max(a, b)) lets the pool go first: φ non-decreasing, one for all."""
    node, readers = network.nodes[position], network.consumers[position]
    if not isinstance(node, ActivationNode) or len(readers) != 1:
        return False
    reader, function = network.nodes[readers[0]], node.function
    return (
        isinstance(reader, SelectionNode)
        and isinstance(reader.function, MaxSelection)
        and isinstance(function.lower, float)
        and function.lower >= 0.0
        and not function.parameters
    )


def _expand_max(builder: NetworkBuilder, var: Var, selection: MaxSelection, where: Origins) -> Var:
    """A tournament: each round halves the number of candidates of every window."""
    index, shape = selection.index, selection.out_shape
    outputs = index.shape[0]
    while index.shape[1] > 1:
        half = index.shape[1] // 2
        left, right, rest = index[:, :half], index[:, half : 2 * half], index[:, 2 * half :]
        flat: Shape = (outputs, half)
        difference = builder.affine(
            [(var, add(gather(left, var.shape, flat), gather(right, var.shape, flat, -1.0)))],
            flat,
            name=f"{selection.name} difference",
            where=where,
        )
        excess = builder.activation(difference, RELU, where)
        kept = torch.cat([right, rest], dim=1)
        wide: Shape = (outputs, kept.shape[1])
        places = torch.arange(outputs * kept.shape[1]).reshape(wide)
        var = builder.affine(
            [(var, gather(kept, var.shape, wide)), (excess, scatter(places[:, :half], flat, wide))],
            wide,
            name=selection.name,
            where=where,
        )
        index = places
    return builder.affine([(var, gather(index, var.shape, shape))], shape, name=selection.name, where=where)


def _expand_sort(builder: NetworkBuilder, var: Var, selection: SortSelection, where: Origins) -> Var:
    """Batcher's odd–even merge sort; a comparator is min = a − relu(a − b), max = b + relu(a − b)."""
    groups, width = selection.index.shape
    shape = selection.in_shape
    index = selection.index.flip(1) if selection.descending else selection.index
    for stage in batcher_stages(width):
        low = index[:, [i for i, _ in stage]]
        high = index[:, [j for _, j in stage]]
        flat: Shape = (groups, len(stage))
        difference = builder.affine(
            [(var, add(gather(low, shape, flat), gather(high, shape, flat, -1.0)))],
            flat,
            name=f"{selection.name} difference",
            where=where,
        )
        excess = builder.activation(difference, RELU, where)
        exchange = add(
            compose(scatter(high, flat, shape)),
            compose(Identity(flat, -1.0), scatter(low, flat, shape)),
        )
        var = builder.affine([(var, Identity(shape)), (excess, exchange)], shape, name=selection.name, where=where)
    return var


def batcher_stages(width: int) -> list[list[tuple[int, int]]]:
    """Stages of disjoint comparators (i, j), i < j, that sort ``width`` entries (Batcher 1968)."""
    stages: list[list[tuple[int, int]]] = []
    p = 1
    while p < width:
        k = p
        while k >= 1:
            stage = [
                (j + i, j + i + k)
                for j in range(k % p, width - k, 2 * k)
                for i in range(min(k, width - j - k))
                if (j + i) // (2 * p) == (j + i + k) // (2 * p)
            ]
            if stage:
                stages.append(stage)
            k //= 2
        p *= 2
    return stages
