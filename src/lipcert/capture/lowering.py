"""From a functional ATen graph to a Network: run the op rules node by node."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

import lipcert.ops.families  # noqa: F401  (registers every rule)
from lipcert.capture.duplicates import originals
from lipcert.capture.evaluate import give_values, refused
from lipcert.capture.function import own_path
from lipcert.capture.functional import functional, op_name, varying
from lipcert.capture.model import require_numbers, several_outputs
from lipcert.errors import (
    CaptureError,
    InputError,
    LipcertError,
    NotLipschitzError,
    TrainModeError,
    UnsupportedOpError,
)
from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import Network, Node
from lipcert.network.origin import Origin
from lipcert.network.source import Named
from lipcert.numerics.process_state import ordinary_dtype
from lipcert.ops.complex_numbers import Complex, complex_call
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context, shown
from lipcert.ops.folding import fold
from lipcert.ops.registry import find_rule

#: Ops that are random or couple the batch when their ``train`` argument is true: name → place of that argument.
_TRAINING_ARGUMENT = {
    "dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "feature_alpha_dropout": 2, "batch_norm": 5,
    "rrelu": 3, "native_dropout": 2, "_native_batch_norm_legit": 5, "_native_batch_norm_legit_functional": 5,
    "dropout_": 2, "rrelu_": 3,
}  # fmt: skip


#: Arithmetic of Python numbers that a trace records → the op that does the same to constants.
_SCALAR_OPS: dict[Any, Any] = {
    torch.sym_max: torch.ops.aten.maximum.default, torch.sym_min: torch.ops.aten.minimum.default,
    operator.add: torch.ops.aten.add.Tensor, operator.sub: torch.ops.aten.sub.Tensor,
    operator.mul: torch.ops.aten.mul.Tensor, operator.truediv: torch.ops.aten.div.Tensor,
    operator.neg: torch.ops.aten.neg.default,
}  # fmt: skip


#: Where torch's own code lies, here and where a program was exported; a user's folder may be called ``torch``, too.
#: And ours, which a call passes on its way to the model.
_TORCH = re.compile(
    r"[/\\](site|dist)-packages[/\\]torch[/\\]|"
    + "|".join(rf"^{re.escape(str(folder))}[/\\]" for folder in (Path(torch.__file__).parent, Path(__file__).parent))
)


def place_in_code(node: FxNode) -> Origin:
    """The line of the user's own code and the module of a call, as far as the trace knows them."""
    frames = re.findall(r'File "(.+?)", line (\d+), in (\w+)', node.meta.get("stack_trace") or "")
    own = [f for f in frames if not _TORCH.search(f[0])]
    path, kind = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())[-1]
    kind = (kind if isinstance(kind, str) else kind.__name__).rsplit(".", 1)[-1]
    shown = own or ([] if path else frames)
    line = "{}:{} in {}".format(*shown[-1]) if shown else ""
    path = own_path(path)
    return Origin(path, kind if path else "", line)


def refuse_training_ops(program: ExportedProgram) -> None:
    """Raise TrainModeError if a layer in the (not yet decomposed) graph is in training mode."""
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        name, _ = op_name(node.target)
        place = _TRAINING_ARGUMENT.get(name)
        if place is None:
            continue
        named = node.kwargs.get("train", node.kwargs.get("training", False))
        training = node.args[place] if len(node.args) > place else named
        state, advice = "is in training mode", "Call model.eval() first."
        if name == "batch_norm" and len(node.args) > 4 and node.args[3] is None:
            state, training = "has no running statistics", True
            advice = "Give this batch norm running statistics, and call model.eval()."
        if training is True:
            raise TrainModeError(
                f"{shown(name)} at {place_in_code(node)} {state}: its output is random or couples the examples of a "
                f"batch. {advice}"
            )


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program op by op beside the Network that it was made into.

    Attributes:
        network: what the output needs.
        nodes: every node that a rule made, also those that a pattern has put another in place of.
        program: the functional one that was lowered.
        values: of every call: a ``Var``, whose position is one in ``nodes``, a ``Constant``, or a tuple of such.
        decomposed: ops of the model that have no rule and were lowered as what PyTorch says they are made of.
    """

    network: Network
    nodes: tuple[Node, ...]
    program: ExportedProgram
    values: Mapping[FxNode, Any]
    decomposed: frozenset[str]


def lower(program: ExportedProgram) -> Network:
    """The Network of an ExportedProgram with one input of batch size 1 and one output tensor."""
    return lowered(program).network


def lowered(program: ExportedProgram) -> Lowered:
    """The same with all that was met on the way."""
    _refuse_fakes(program)
    program, decomposed = functional(program)
    signature = program.graph_signature
    builder = NetworkBuilder()
    context = Context(builder)
    env: dict[FxNode, Any] = {}
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    first = originals(program.graph)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = _placeholder(node, specs[node.name], program, builder)
        elif node.op == "get_attr":
            env[node] = getattr(program.graph_module, str(node.target))
        elif node.op == "call_function":
            env[node] = _call(node, env, context) if first[node] is node else env[first[node]]
        elif node.op == "output":
            network = _finish(node, env, program, context)
            return Lowered(network, tuple(builder.nodes), program, env, decomposed)
    raise CaptureError("the exported graph has no output")


def _refuse_fakes(program: ExportedProgram) -> None:
    """Raise CaptureError if a constant of the trace holds no numbers; a rewriting that evaluates it would crash."""
    for name, value in (*program.state_dict.items(), *program.constants.items()):
        if type(value).__name__ == "FakeTensor":
            raise CaptureError(
                f"the exported graph holds no numbers for {name!r}: forward reaches a tensor past the trace, for "
                "instance by writing to .data. Write nothing in forward."
            )


def _placeholder(node: FxNode, spec: Any, program: ExportedProgram, builder: NetworkBuilder) -> Any:
    if spec.kind == InputKind.USER_INPUT:
        if builder.nodes:
            raise InputError("the model takes several inputs: give all of them, as a tuple, or as a dict by name.")
        return builder.input(tuple(node.meta["val"].shape))
    if spec.kind == InputKind.TOKEN:  # orders the checks inside linalg ops; carries no value
        return None
    value = program.state_dict.get(spec.target)
    if value is None:
        value = program.constants.get(spec.target)
    if not isinstance(value, Tensor):
        raise CaptureError(f"the exported graph needs {spec.target!r}, which the program does not carry")
    require_numbers(spec.target, value)
    value = value.detach().cpu()
    value = value if value.layout == torch.strided else value.to_dense()
    if value.is_complex():
        return Complex.exactly(value, Named(str(spec.target)))
    return Constant.exactly(value if value.is_floating_point() else value.clone(), source=Named(str(spec.target)))


def _call(node: FxNode, env: dict[FxNode, Any], ctx: Context) -> Any:
    args, kwargs = tree_map(lambda a: env[a] if isinstance(a, FxNode) else a, (node.args, node.kwargs))
    if node.target is operator.getitem:
        return args[0][args[1]]
    value = node.meta.get("val")
    ctx.where = place_in_code(node)
    ctx.whole = {env[a].position: d for a in node.all_input_nodes if isinstance(env[a], Var) and (d := _whole(a))}
    if node.target is torch.ops.higher_order.with_effects:
        token, target, *args = args
        return token, apply_rule(ctx, target, tuple(args), kwargs)
    if node.target in _SCALAR_OPS:
        ctx.dtype = torch.float64
        operands = (
            a if isinstance(a, (Var, Constant)) else Constant.exactly(torch.tensor(a, dtype=torch.float64))
            for a in args
        )
        return apply_rule(ctx, _SCALAR_OPS[node.target], tuple(operands), kwargs)
    ctx.dtype = value.dtype if isinstance(value, Tensor) else None
    if any(isinstance(v, Tensor) and v.is_complex() for v in tree_leaves(value)) or any(
        isinstance(a, Complex) for a in tree_leaves((args, kwargs))
    ):
        apply = partial(_apply_real, ctx)
        return complex_call(ctx, node.target, op_name(node.target)[0], args, kwargs, value, apply)
    return apply_rule(ctx, node.target, args, kwargs, _shapes(value))


def _apply_real(ctx: Context, target: Any, *args: Any, **kwargs: Any) -> Any:
    """A real op that a complex one is made of."""
    ctx.dtype, ctx.whole = None, {}
    return apply_rule(ctx, target, args, kwargs)


def _whole(node: FxNode) -> torch.dtype | None:
    """The dtype of a traced value of whole numbers or truth values."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) and not value.is_floating_point() else None


def _shapes(value: Any) -> Any:
    """The shape of a traced tensor, the shapes of a tuple of them; None of anything else."""
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, Tensor) for v in value):
        return tuple(v.shape for v in value)
    return None


def apply_rule(ctx: Context, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any = None) -> Any:
    """What the rule of an ATen op gives for these arguments; constants fold, what has no constant stays open.

    Args:
        ctx: where nodes go; its ``where`` and ``dtype`` are those of the call.
        target: the op.
        args, kwargs: Vars, Constants and plain values.
        shapes: of the result, a ``torch.Size`` or a tuple of them; None if it is not known.

    Raises:
        TrainModeError: the op draws random numbers.
        UnsupportedOpError: there is no rule for this form of the op.
        NotLipschitzError: it has no constant, and the shape of its value is not known.
    """
    name, overload = op_name(target)
    ctx.op = name
    ctx.signature = repr(tree_map(_describe, (overload, args, kwargs)))
    if "higher_order" in str(getattr(target, "__module__", "")) or isinstance(target, torch._ops.HigherOrderOperator):
        raise ctx.unsupported("control flow or another higher-order operator cannot be captured as one network.")
    if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()) and find_rule(name, overload) is None:
        raise TrainModeError(
            f"{shown(name)} at {ctx.where} draws random numbers: the model is not one fixed function. Call "
            "model.eval(), or draw the numbers once and keep them in a buffer."
        )
    parents = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Var)]
    if not parents:
        return _folded(ctx, target, args, kwargs)
    rule = find_rule(name, overload)
    if rule is None:
        error = ctx.unsupported("no rule covers it.")
        if not isinstance(shapes, torch.Size):
            raise error
        result = ctx.unresolved(parents, tuple(shapes), error, _settings(args, kwargs))
        give_values(ctx, result.position, target, args, kwargs, result)
        return result
    if overload == "out":
        raise ctx.unsupported("it writes into an argument.")
    start = len(ctx.builder.nodes)
    try:
        with ordinary_dtype():
            result = rule(ctx, *args, **kwargs)
    except NotLipschitzError as error:
        if shapes is None:
            raise
        result = refused(ctx, error, parents, shapes)
    except LipcertError:
        raise
    except TypeError as problem:
        raise ctx.unsupported(f"called in a form its rule does not know ({problem}).") from problem
    except Exception as problem:
        raise UnsupportedOpError(
            f"{shown(name)} at {ctx.where}: lipcert's rule for it fails on these arguments ({type(problem).__name__}: "
            f"{str(problem)[:200]}). This is a bug in lipcert and not in your model; please report it."
        ) from problem
    give_values(ctx, start, target, args, kwargs, result)
    return result


def _folded(ctx: Context, target: Any, args: Any, kwargs: Any) -> Any:
    """The value of an op on constants alone."""
    if ctx.op in ("item", "_local_scalar_dense"):
        constant: Constant = args[0]  # as a Python number only if it is exact: a tensor keeps its enclosure
        moved = constant.map(lambda v: v.reshape(()))
        return moved.value.item() if moved.exact.radius is None and moved.stored is None else moved
    try:
        return fold(target, ctx.op, args, kwargs)
    except LipcertError:
        raise
    except Exception as problem:
        raise CaptureError(
            f"{shown(ctx.op)} at {ctx.where}, applied to parameters only, cannot be evaluated "
            f"({type(problem).__name__}: {str(problem)[:200]}). Evaluate it once outside forward and keep the result "
            "in a buffer."
        ) from problem


def _settings(args: Any, kwargs: Any) -> tuple[object, ...]:
    return (*args, *kwargs.items())


def _describe(leaf: Any) -> Any:
    if isinstance(leaf, Var):
        return f"var{leaf.shape}"
    if isinstance(leaf, Constant):
        return f"const{leaf.shape}"
    return leaf if isinstance(leaf, (int, float, str, bool, type(None))) else str(leaf)


def _finish(node: FxNode, env: dict[FxNode, Any], program: ExportedProgram, ctx: Context) -> Network:
    outputs = []
    for spec, leaf in zip(program.graph_signature.output_specs, tree_leaves(node.args[0]), strict=True):
        if spec.kind == OutputKind.USER_OUTPUT:
            outputs.append(env[leaf] if isinstance(leaf, FxNode) else leaf)
        elif spec.kind not in (
            OutputKind.USER_INPUT_MUTATION,
            OutputKind.TOKEN,
        ):  # an input written in place changes no parameter
            raise TrainModeError(
                f"forward changes {spec.target!r}; a certified bound needs a fixed function. Call model.eval()."
            )
    values, outputs = outputs, [output for output in outputs if output is not None]
    if len(outputs) > 1:
        told = tree_unflatten([value is not None or None for value in values], program.call_spec.out_spec)
        raise several_outputs(told, len(outputs))
    output = outputs[0] if outputs else None
    if isinstance(output, Complex):
        raise InputError("the model returns complex numbers; return their real and imaginary parts (view_as_real).")
    if not ctx.builder.nodes:
        raise InputError("the model takes no tensor input.")
    if isinstance(output, Constant):
        output = ctx.builder.affine([], output.shape, output.value.double(), "constant", source=output.source)
    if not isinstance(output, Var):
        raise InputError("the model does not return a tensor.")
    return ctx.builder.finish(output)


__all__ = [
    "Lowered", "UnsupportedOpError", "apply_rule", "lower", "lowered", "op_name", "place_in_code",
    "refuse_training_ops", "varying",
]  # fmt: skip
