"""The ops that a model executes, one by one, each beside the node that stands for its value in real arithmetic."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_leaves, tree_map

from lipcert.capture.lowering import Lowered, op_name, place_in_code, varying
from lipcert.errors import UnsupportedOpError
from lipcert.network.builder import Var
from lipcert.network.graph import Network, Node
from lipcert.network.origin import Origin
from lipcert.ops.complex_numbers import Complex
from lipcert.ops.constant import Constant

#: Ops of which IEEE 754 or their nature fixes every bit: whatever computes a constant by them gets the same tensor.
_FIXED = frozenset(
    "add sub mul div neg abs relu clone detach contiguous alias lift_fresh_copy _to_copy to t transpose permute "  # noqa: SIM905
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze expand slice select cat stack split chunk unbind "
    "index_select constant_pad_nd pad repeat flip zeros ones full zeros_like ones_like full_like arange eye getitem "
    "scalar_tensor new_zeros new_ones new_full tril triu diag maximum minimum clamp sign where masked_fill "
    "eq ne lt le gt ge logical_and logical_or logical_not".split()
)


class _Named(NamedTuple):
    """An op of PyTorch."""

    namespace: str
    op: str
    overload: str


@dataclass(frozen=True, eq=False)
class Step:
    """One executed op.

    Attributes:
        op: its ATen name without the underscore of a form that writes in place; ``input`` for the model's input.
        target: the op itself.
        args, kwargs: operands that depend on the input as Steps, others as Constants, settings as they are.
        value: the Var of the real number that the result stands for, or a tuple of such.
        shape, dtype: of the result; None where it is not one tensor.
        where: the call in the user's code.
        computed: ops by which operands were computed from parameters and whose last bits differ between machines.
    """

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    where: Origin
    computed: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """For another process: PyTorch's ops go by name, as they cannot be pickled."""
        target = self.target
        if isinstance(target, torch._ops.OpOverload):
            target = _Named(target.namespace, target._opname, target._overloadname)
        return {**self.__dict__, "target": target}

    def __setstate__(self, state: dict[str, Any]) -> None:
        target = state["target"]
        if isinstance(target, _Named):
            target = getattr(getattr(getattr(torch.ops, target.namespace), target.op), target.overload)
        self.__dict__.update({**state, "target": target})


@dataclass(frozen=True, eq=False)
class Steps:
    """A model as executed.

    Attributes:
        network: what the model is, as ``capture`` gives it.
        nodes: the real values, in order; a step's Var is a position here.
        calls: the steps in the order of their execution.
        output: the last of them, None where the output does not depend on the input.
        dtype: of the model's input.
        decomposed: ops that the model executes as one kernel and that ``calls`` has in parts.
        fused: modules for which PyTorch may run one kernel in place of the ops of their forward.
    """

    network: Network
    nodes: tuple[Node, ...]
    calls: tuple[Step, ...]
    output: Step | None
    dtype: torch.dtype
    decomposed: frozenset[str]
    fused: tuple[str, ...]


#: Modules whose forward has a fast path that torch.export does not trace.
_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def steps_of(found: Lowered, module: nn.Module, dtype: torch.dtype) -> Steps:
    """What ``found`` says of the execution of ``module``.

    Args:
        found: the lowered trace.
        module: what was traced.
        dtype: of its input.
    """
    program = found.program
    odd = next((node for node, value in found.values.items() if isinstance(value, Complex)), None)
    if odd is not None:
        raise UnsupportedOpError(
            f"aten.{op_name(odd.target)[0]} at {place_in_code(odd)} makes complex numbers; how far they are from the "
            "exact ones, as they are executed, is not bounded. Bounds in real arithmetic are."
        )
    depending = varying(program)
    inputs = {s.arg.name for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT}
    known: dict[FxNode, Any] = {}
    computed: dict[FxNode, frozenset[str]] = {}
    calls: list[Step] = []
    output: Step | None = None
    for node in program.graph.nodes:
        if node.op == "output":
            pairs = zip(program.graph_signature.output_specs, tree_leaves(node.args[0]), strict=True)
            leaves = [leaf for spec, leaf in pairs if spec.kind == OutputKind.USER_OUTPUT and leaf is not None]
            last = known.get(leaves[0]) if leaves else None
            output = last if isinstance(last, Step) else None
        elif node not in depending:
            known[node] = found.values.get(node)
            computed[node] = _computed(node, computed)
        else:
            value = found.values.get(node)
            if isinstance(value, Constant):  # ones_like(x)
                known[node] = value
                continue
            known[node] = _step(node, node.name in inputs, value, known, computed)
            calls.append(known[node])
    fused = tuple(path or type(part).__name__ for path, part in module.named_modules() if isinstance(part, _FUSED))
    return Steps(found.network, found.nodes, tuple(calls), output, dtype, found.decomposed, fused)


def _step(
    node: FxNode, is_input: bool, value: Any, known: dict[FxNode, Any], computed: dict[FxNode, frozenset[str]]
) -> Step:
    args, kwargs = tree_map(lambda a: known[a] if isinstance(a, FxNode) else a, (node.args, node.kwargs))
    traced = node.meta.get("val")
    name = "input" if is_input else "getitem" if node.target is operator.getitem else op_name(node.target)[0]
    if name.endswith("_") and not name.startswith("_"):
        name = name.removesuffix("_")
    inexact = frozenset[str]().union(*(computed.get(a, frozenset()) for a in node.all_input_nodes))
    return Step(
        name, node.target, tuple(args), dict(kwargs), value,
        tuple(value.shape) if isinstance(value, Var) else None,
        traced.dtype if isinstance(traced, torch.Tensor) else None, place_in_code(node), tuple(sorted(inexact)),
    )  # fmt: skip


def _computed(node: FxNode, before: dict[FxNode, frozenset[str]]) -> frozenset[str]:
    """The ops not in ``_FIXED`` on the way to a constant."""
    found = frozenset[str]().union(*(before.get(a, frozenset()) for a in node.all_input_nodes))
    if node.op != "call_function":
        return found
    name = "getitem" if node.target is operator.getitem else op_name(node.target)[0]
    return found if name.removesuffix("_") in _FIXED else found | {name}
