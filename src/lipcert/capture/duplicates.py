"""Expressions written twice: the same op of the same arguments is one value."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_flatten

#: Settings that a text of theirs determines.
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


def originals(graph: Graph) -> dict[FxNode, FxNode]:
    """Each call of the graph → the first call that gives the same value.

    Two calls are one if op, settings and the originals of their operands are the same. Only ops of ATen that draw no
    random numbers count, and the choice of one of several results; any other call is its own original, and so is every
    call of a graph with an op that writes into an argument.
    """
    nodes = list(graph.nodes)
    if any(isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable for node in nodes):
        return {node: node for node in nodes}
    first: dict[Any, FxNode] = {}
    found: dict[FxNode, FxNode] = {}
    for node in nodes:
        key = _key(node, found) if node.op == "call_function" else None
        found[node] = node if key is None else first.setdefault(key, node)
    return found


def _key(node: FxNode, found: dict[FxNode, FxNode]) -> Any:
    """What the value of a call depends on; None if that is not known."""
    leaves, structure = tree_flatten((node.args, node.kwargs))
    if not _is_function(node.target) or not all(isinstance(leaf, (FxNode, *_PLAIN)) for leaf in leaves):
        return None
    # As text, because Python takes 1, 1.0 and True for equal, 0.0 and −0.0, too.
    parts = tuple(found[a] if isinstance(a, FxNode) else (type(a), repr(a)) for a in leaves)
    return node.target, str(structure), parts


def _is_function(target: Any) -> bool:
    """Whether what is called gives equal values for equal arguments, as far as is known."""
    if target is operator.getitem:
        return True
    return (
        isinstance(target, torch._ops.OpOverload)
        and target.namespace == "aten"
        and torch.Tag.nondeterministic_seeded not in target.tags
    )
