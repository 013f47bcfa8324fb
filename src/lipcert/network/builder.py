"""Build a Network node by node; dead nodes are pruned, open questions become errors only if they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lipcert.errors import CaptureError
from lipcert.network.graph import (
    ActivationNode,
    AffineNode,
    GainNode,
    InputNode,
    Network,
    Node,
    SelectionNode,
)
from lipcert.network.linear import LinearMap, Shape, add
from lipcert.network.nonlinearity import GainFunction, Nonlinearity, Selection


@dataclass(frozen=True)
class Var:
    """Handle of a node under construction."""

    position: int
    shape: Shape


@dataclass(frozen=True, eq=False)
class UnresolvedNode(Node):
    """A value no node kind covers *by itself*: an error unless a later rule absorbs it (x·sigmoid(x) → SiLU).

    ``op`` and ``settings`` identify the operation for pattern rules; ``error`` is raised if the value is needed.
    """

    op: str = ""
    settings: tuple[object, ...] = ()
    error: CaptureError | None = None


class NetworkBuilder:
    """Append-only list of nodes in topological order."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def _append(self, node: Node) -> Var:
        self.nodes.append(node)
        return Var(len(self.nodes) - 1, node.shape)

    def node(self, var: Var) -> Node:
        """The node behind a handle."""
        return self.nodes[var.position]

    def input(self, shape: Shape) -> Var:
        """The input node; call once, first."""
        return self._append(InputNode((), shape, "input"))

    def affine(
        self,
        terms: Sequence[tuple[Var, LinearMap]],
        shape: Shape,
        offset: Tensor | None = None,
        name: str = "affine",
        where: str = "",
        offset_error: Tensor | None = None,
    ) -> Var:
        """``Σ map(var) + offset``; terms on the same variable are merged."""
        merged: dict[int, LinearMap] = {}
        for var, linear in terms:
            if var.position in merged:
                merged[var.position] = add(merged[var.position], linear)
            else:
                merged[var.position] = linear
        for linear in merged.values():
            if linear.out_shape != shape:
                raise CaptureError(f"{name}: a map gives shape {linear.out_shape}, expected {shape} ({where})")
        return self._append(AffineNode(tuple(merged), shape, name, where, tuple(merged.values()), offset, offset_error))

    def activation(self, var: Var, function: Nonlinearity, where: str = "") -> Var:
        """An elementwise activation of ``var``."""
        return self._append(ActivationNode((var.position,), var.shape, function.name, where, function))

    def gain(self, var: Var, function: GainFunction, shape: Shape, where: str = "") -> Var:
        """A gain-bounded block applied to ``var``."""
        return self._append(GainNode((var.position,), shape, function.name, where, function))

    def selection(self, var: Var, function: Selection, where: str = "") -> Var:
        """A maximum or sort of ``var``."""
        return self._append(SelectionNode((var.position,), function.out_shape, function.name, where, function))

    def unresolved(
        self,
        parents: Sequence[Var],
        shape: Shape,
        op: str,
        error: CaptureError,
        settings: tuple[object, ...] = (),
        where: str = "",
    ) -> Var:
        """A value that only a later pattern rule can make sense of."""
        positions = tuple(p.position for p in parents)
        return self._append(UnresolvedNode(positions, shape, op, where, op, settings, error))

    def finish(self, output: Var) -> Network:
        """The Network that computes ``output``; raises the error of the first unresolved node it needs."""
        needed = {0, output.position}
        for position in range(output.position, -1, -1):
            if position in needed:
                needed.update(self.nodes[position].parents)
        kept = sorted(needed)
        new_position = {old: new for new, old in enumerate(kept)}
        nodes = []
        for old in kept:
            node = self.nodes[old]
            if isinstance(node, UnresolvedNode):
                assert node.error is not None
                raise node.error
            nodes.append(replace(node, parents=tuple(new_position[p] for p in node.parents)))
        return Network(tuple(nodes))
