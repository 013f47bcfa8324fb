"""A trace as pure ops that have rules: writes into arguments taken out, ops without a rule taken apart."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_leaves

from lipcert.ops.complex_numbers import known
from lipcert.ops.registry import find_rule


def op_name(target: Any) -> tuple[str, str]:
    """(name, overload) of an op; one that is not ATen's keeps its namespace, so that no rule of ATen's is its rule."""
    if target is torch.ops.aten._sparse_mm.default:  # the same product; sparse parameters are dense ones here
        return "mm", ""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.removeprefix("aten::"), target._overloadname
    return getattr(target, "__name__", str(target)), ""


def _has_rule(node: FxNode) -> bool:
    """Whether the op is lowered as it is."""
    name, overload = op_name(node.target)
    values = tree_leaves([node.meta.get("val"), *(parent.meta.get("val") for parent in node.all_input_nodes)])
    if any(isinstance(value, Tensor) and value.is_complex() for value in values):
        return known(name)
    return find_rule(name, overload) is not None


def varying(program: ExportedProgram) -> set[FxNode]:
    """The nodes that depend on the program's input."""
    inputs = {s.arg.name for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT}
    found: set[FxNode] = set()
    for node in program.graph.nodes:
        if node.name in inputs or any(parent in found for parent in node.all_input_nodes):
            found.add(node)
    return found


def functional(program: ExportedProgram) -> tuple[ExportedProgram, frozenset[str]]:
    """The program without ops that write into their arguments and without those that have no rule; and their names.

    Rewriting costs more than all else in a capture, so a program of pure ops with rules stays as it is; and what it
    makes of a constant's ops rounds in another way than the model does. Only ops without a rule are taken apart: one
    with a rule would lose its constant.
    """
    names: set[str] = set()
    for turn in range(5):
        unknown = {node.target for node in varying(program) if node.op == "call_function" and not _done(node)}
        chosen = _decompositions(unknown) if unknown else {}
        if not chosen and (turn or not (unknown or _writes(program))):
            break
        names |= {op_name(target)[0] for target in chosen}
        before, alone = len(program.graph.nodes), turn > 0 or (len(chosen) == len(unknown) and not _writes(program))
        program = program.run_decompositions(chosen)
        if alone and len(program.graph.nodes) == before:  # an op of another name; the user's own says more
            break
    return program, frozenset(names)


def _done(node: FxNode) -> bool:
    return node.target is operator.getitem or (isinstance(node.target, torch._ops.OpOverload) and _has_rule(node))


def _writes(program: ExportedProgram) -> bool:
    """Whether an op writes into an argument, or is none of PyTorch's own."""
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    others = [target for target in calls if target is not operator.getitem]
    return any(not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable for target in others)


def _decompositions(unknown: set[Any]) -> dict[Any, Any]:
    """What PyTorch says that these ops are made of, where it says so; one that writes is another once it does not."""
    table = torch.export.default_decompositions()
    pure = [t for t in unknown if isinstance(t, torch._ops.OpOverload) and not t._schema.is_mutable]
    return {target: table[target] for target in pure if target in table}
