"""Build a Network node by node; dead nodes are pruned, open questions become errors only if they are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lipcert.errors import CaptureError
from lipcert.network.graph import Network
from lipcert.network.linear import LinearMap, Shape, add
from lipcert.network.nodes import ActivationNode, AffineNode, GainNode, InputNode, Node, SelectionNode
from lipcert.network.nonlinearity import GainFunction, Nonlinearity, Selection
from lipcert.network.origin import Origin, Origins
from lipcert.network.relations import Relation

#: Where a node comes from: one call, or all the calls that a fused node was made of.
Where = Origin | Origins


@dataclass(frozen=True)
class Var:
    """Handle of a node under construction."""

    position: int
    shape: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class UnresolvedNode(Node):
    """A value no node kind covers *by itself*: an error unless a later rule absorbs it (x·sigmoid(x) → SiLU).

    ``op`` and ``settings`` identify the operation for pattern rules; ``error`` is raised if the value is needed.
    """

    op: str = ""
    settings: tuple[object, ...] = ()
    error: CaptureError

    def value(self, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
        """The error: no network holds such a node."""
        raise self.error

    def relation(self, position: int) -> Relation:
        """The error: no network holds such a node."""
        raise self.error


def _origins(where: Where) -> Origins:
    if isinstance(where, Origin):
        return (where,) if where else ()
    return where


def _place(where: Where) -> str:
    return "; ".join(str(origin) for origin in _origins(where))


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
        return self._append(InputNode(parents=(), shape=shape, name="input"))

    def affine(
        self,
        terms: Sequence[tuple[Var, LinearMap]],
        shape: Shape,
        offset: Tensor | None = None,
        name: str = "affine",
        where: Where = (),
        offset_rounding: float = math.inf,
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
                raise CaptureError(f"{name}: a map gives shape {linear.out_shape}, expected {shape} ({_place(where)})")
        return self._append(
            AffineNode(
                parents=tuple(merged), shape=shape, name=name, origin=_origins(where), maps=tuple(merged.values()),
                offset=offset, offset_rounding=offset_rounding, offset_error=offset_error,
            )
        )  # fmt: skip

    def activation(self, var: Var, function: Nonlinearity, where: Where = ()) -> Var:
        """An elementwise activation of ``var``."""
        origin = _origins(where)
        return self._append(
            ActivationNode(
                parents=(var.position,), shape=var.shape, name=function.name, origin=origin, function=function
            )
        )

    def gain(self, var: Var, function: GainFunction, shape: Shape, where: Where = ()) -> Var:
        """A gain-bounded block applied to ``var``."""
        origin = _origins(where)
        return self._append(
            GainNode(parents=(var.position,), shape=shape, name=function.name, origin=origin, function=function)
        )

    def selection(self, var: Var, function: Selection, where: Where = ()) -> Var:
        """A maximum or sort of ``var``."""
        shape, origin = function.out_shape, _origins(where)
        return self._append(
            SelectionNode(parents=(var.position,), shape=shape, name=function.name, origin=origin, function=function)
        )

    def again(self, node: Node, parents: Sequence[Var]) -> Var:
        """A node of another network with new parents."""
        return self._append(replace(node, parents=tuple(p.position for p in parents)))

    def unresolved(
        self,
        parents: Sequence[Var],
        shape: Shape,
        op: str,
        error: CaptureError,
        settings: tuple[object, ...] = (),
        where: Where = (),
    ) -> Var:
        """A value that only a later pattern rule can make sense of."""
        positions = tuple(p.position for p in parents)
        return self._append(
            UnresolvedNode(
                parents=positions, shape=shape, name=op, origin=_origins(where), op=op, settings=settings, error=error
            )
        )

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
                raise node.error
            nodes.append(replace(node, parents=tuple(new_position[p] for p in node.parents)))
        return Network(tuple(nodes))
