"""The Network: an immutable graph of linear maps, activations, gain blocks and selections."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lipcert.network.linear import LinearMap, Shape, update_hash_with_tensor
from lipcert.network.nonlinearity import GainFunction, Nonlinearity, Selection


@dataclass(frozen=True, eq=False)
class Node:
    """One value of the network. ``parents`` are positions in ``Network.nodes``, all before the node's own.

    ``name`` is short (``conv2d``), ``where`` the place in the user's code, both for reports only.
    """

    parents: tuple[int, ...]
    shape: Shape
    name: str
    where: str = ""


@dataclass(frozen=True, eq=False)
class InputNode(Node):
    """The network's input, always node 0."""


@dataclass(frozen=True, eq=False)
class AffineNode(Node):
    """``Σ_i maps[i](parent_i) + offset``; the parents are distinct.

    ``offset`` stands for a real number within four units of roundoff of it, and within ``offset_error`` more, entry by
    entry: bounds from above do not read it, the proof that a point is off a kink does.
    """

    maps: tuple[LinearMap, ...] = ()
    offset: Tensor | None = None
    offset_error: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ActivationNode(Node):
    """An elementwise activation of its one parent."""

    function: Nonlinearity = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class GainNode(Node):
    """A block of known gain applied to its one parent."""

    function: GainFunction = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class SelectionNode(Node):
    """A maximum or a sort of its one parent's entries."""

    function: Selection = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Network:
    """f: R^n → R^m as an immutable DAG; the last node is the output.

    Shapes carry the captured graph's leading batch dimension of 1; ``forward`` adds a true batch in front.
    """

    nodes: tuple[Node, ...]

    @property
    def in_shape(self) -> Shape:
        """Shape of the input node."""
        return self.nodes[0].shape

    @property
    def out_shape(self) -> Shape:
        """Shape of the output node."""
        return self.nodes[-1].shape

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the positions of the nodes that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for position, node in enumerate(self.nodes):
            for parent in node.parents:
                readers[parent].append(position)
        return tuple(tuple(r) for r in readers)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over kinds, wiring, shapes, functions and parameters, in canonical order."""
        digest = hashlib.sha256()
        for node in self.nodes:
            digest.update(repr((type(node).__name__, node.parents, node.shape)).encode())
            if isinstance(node, AffineNode):
                for linear in node.maps:
                    linear.update_hash(digest)
                if node.offset is not None:
                    update_hash_with_tensor(digest, node.offset)
            elif isinstance(node, (ActivationNode, GainNode, SelectionNode)):
                node.function.update_hash(digest)
        return digest.hexdigest()

    def values(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Run on a batch (B, *in_shape), yielding (position, value); values are dropped after their last use."""
        alive: dict[int, Tensor] = {}
        last_use = [max(c, default=len(self.nodes)) for c in self.consumers]
        for position, node in enumerate(self.nodes):
            inputs = [alive[p] for p in node.parents]
            value = x if isinstance(node, InputNode) else evaluate(node, inputs, x)
            alive[position] = value
            yield position, value
            for parent in node.parents:
                if last_use[parent] == position:
                    alive.pop(parent, None)

    def forward(self, x: Tensor) -> Tensor:
        """f on a batch: (B, *in_shape) → (B, *out_shape), in the dtype of x (constants must match: see ``to``)."""
        *_, (_, value) = self.values(x)
        return value

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Network:
        """The same network with its constants in another dtype and on another device."""

        def move(node: Node) -> Node:
            if isinstance(node, AffineNode):
                offset = None if node.offset is None else node.offset.to(device=device, dtype=dtype)
                return replace(node, maps=tuple(m.to(dtype, device) for m in node.maps), offset=offset)
            if isinstance(node, ActivationNode):
                return replace(node, function=node.function.to(dtype, device))
            if isinstance(node, GainNode):
                return replace(node, function=node.function.to(dtype, device))
            return node

        return Network(tuple(move(node) for node in self.nodes))


def evaluate(node: Node, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
    """Value of one node on a batch, from its parents' values."""
    if isinstance(node, AffineNode):
        total: Tensor | None = None
        for linear, value in zip(node.maps, inputs, strict=True):
            image = linear.apply(value)
            total = image if total is None else total + image
        if total is None:
            total = torch.zeros(len(like), *node.shape, dtype=like.dtype, device=like.device)
        return total if node.offset is None else total + node.offset
    if isinstance(node, (ActivationNode, GainNode, SelectionNode)):
        return node.function(inputs[0])
    raise TypeError(f"node of unknown kind {type(node).__name__}")
