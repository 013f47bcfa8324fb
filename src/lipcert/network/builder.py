"""Build a Network node by node; dead nodes are pruned, what has no value becomes an error only if it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from lipcert.errors import CaptureError
from lipcert.network.attention_bound import Logits
from lipcert.network.graph import Network
from lipcert.network.joint import Joint
from lipcert.network.linear import LinearMap, Shape, add
from lipcert.network.nodes import (
    ActivationNode,
    AffineNode,
    GainNode,
    HeadNode,
    InputNode,
    Node,
    OpenNode,
    PartNode,
    SelectionNode,
)
from lipcert.network.nodes.open import Evaluation
from lipcert.network.nonlinearity import GainFunction, Nonlinearity, Selection
from lipcert.network.origin import Origin, Origins
from lipcert.network.radial import Radial

if TYPE_CHECKING:
    from lipcert.network.source import Source

#: Where a node comes from: one call, or all the calls that a fused node was made of.
Where = Origin | Origins


@dataclass(frozen=True)
class Var:
    """Handle of a node under construction."""

    position: int
    shape: Shape


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
        offset_error: Tensor | None = None,
        source: Source | None = None,
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
                offset=offset, offset_error=offset_error, source=source,
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

    def part(
        self,
        arguments: Sequence[Var],
        shape: Shape,
        function: Joint,
        which: int,
        error: CaptureError,
        name: str = "",
        where: Where = (),
    ) -> Var:
        """A part of a function of several values; see ``PartNode``."""
        return self._append(
            PartNode(
                parents=tuple(v.position for v in arguments), shape=shape, name=name or function.name,
                origin=_origins(where), function=function, which=which, error=error,
            )
        )  # fmt: skip

    def head(self, output: Var, arguments: Sequence[Var], logits: Logits, name: str = "", where: Where = ()) -> Var:
        """``output``, known to be the attention of Q, Kᵀ and V; see ``HeadNode``."""
        return self._append(
            HeadNode(
                parents=(output.position, *(v.position for v in arguments)), shape=output.shape, name=name,
                origin=_origins(where), logits=logits,
            )
        )  # fmt: skip

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
        name: str = "",
        function: Evaluation | None = None,
        steep: Nonlinearity | None = None,
        combines: str = "",
        block: Radial | None = None,
    ) -> Var:
        """A value without a constant on the whole space, unless a later pattern rule absorbs it.

        ``op`` and ``settings`` are for those rules; ``name`` is shown, ``op`` if empty. See ``OpenNode``.
        """
        return self._append(
            OpenNode(
                parents=tuple(p.position for p in parents), shape=shape, name=name or op, origin=_origins(where),
                op=op, settings=settings, error=error, function=function, steep=steep,
                combines=combines, block=block,
            )
        )  # fmt: skip

    def evaluated(
        self, var: Var, parents: Sequence[Var], function: Evaluation, constants: Sequence[Tensor], key: str
    ) -> None:
        """Give the open node ``var`` its value, as a function of ``parents`` and ``constants``."""
        node = self.node(var)
        assert isinstance(node, OpenNode)
        positions = tuple(p.position for p in parents)
        self.nodes[var.position] = replace(
            node, parents=positions, function=function, constants=tuple(constants), key=key
        )

    def finish(self, output: Var) -> Network:
        """The Network that computes ``output``.

        Raises:
            CaptureError: it needs an open node that has no value; the error is that of the first open node.
        """
        needed = {0, output.position}
        for position in range(output.position, -1, -1):
            if position in needed:
                needed.update(self.nodes[position].parents)
        kept = sorted(needed)
        new_position = {old: new for new, old in enumerate(kept)}
        nodes = tuple(
            replace(self.nodes[old], parents=tuple(new_position[p] for p in self.nodes[old].parents)) for old in kept
        )
        network = Network(nodes)
        if network.refusal is not None and any(isinstance(n, OpenNode) and n.function is None for n in nodes):
            raise network.refusal
        return network
