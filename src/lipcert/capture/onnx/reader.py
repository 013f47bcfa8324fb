"""An ONNX file as a module: its graph, node by node, as calls of the ATen ops that lipcert has rules for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

import lipcert.capture.onnx.translations  # noqa: F401  (registers every translation)
from lipcert.capture.onnx.build import Builder, Value, fitting
from lipcert.capture.onnx.file import Tensors, parsed, torch_type
from lipcert.capture.onnx.limits import Room
from lipcert.capture.onnx.node import OnnxNode, printable, translates, translation_of
from lipcert.capture.onnx.shapes import Reading, readings
from lipcert.errors import CaptureError, InputError, LipcertError, UnsupportedOpError

_aten = torch.ops.aten
#: Operator sets whose meaning is known here.
OPERATOR_SETS = range(8, 29)
_OWN_DOMAINS = ("", "ai.onnx")
#: Operators without a translation, and what there is to say about them.
_REASONS = {
    "QuantizeLinear": "it rounds what passes through it, so the network has no Lipschitz constant; give the float one.",
    "DynamicQuantizeLinear": "it rounds, so the network has no Lipschitz constant; give the float one.",
    "Loop": "loops are not unrolled; export a model whose forward has none.",
    "Scan": "loops are not unrolled; export a model whose forward has none.",
    "Hardmax": "it jumps, so the network has no Lipschitz constant.",
    **dict.fromkeys(
        ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"),
        "it draws random numbers: the model is not one fixed function. Export it in eval mode.",
    ),
}


class Graph:
    """The names of one graph, checked before anything is computed.

    Attributes:
        proto: the GraphProto.
        initializers: its constants by name, not yet read.
    """

    def __init__(self, proto: Any, outer: Iterable[str] = ()) -> None:
        self.proto = proto
        self.initializers: dict[str, Any] = {}
        if proto.sparse_initializer:
            raise CaptureError("the ONNX file holds sparse initializers; store them as dense tensors.")
        for tensor in proto.initializer:
            if not tensor.name or tensor.name in self.initializers:
                raise CaptureError(f"two ONNX initializers are named {tensor.name[:120]!r}: the file is damaged.")
            self.initializers[tensor.name] = tensor
        self.inputs = [i for i in proto.input if i.name not in self.initializers]
        made = {*self.initializers, *(i.name for i in proto.input), *outer}
        if len({i.name for i in proto.input}) != len(proto.input) or "" in made:
            raise CaptureError("two ONNX inputs have one name, or none: the file is damaged.")
        for number, node in enumerate(proto.node):
            place = f"node '{printable(node.name or f'{node.op_type}_{number}')}' ({printable(node.op_type)})"
            for name in node.input:
                if name and name not in made:
                    raise CaptureError(
                        f"ONNX {place} reads {name[:120]!r}, which nothing before it makes: it is missing, or the "
                        "graph has a cycle or is out of order. The file is damaged, or no valid ONNX."
                    )
            for name in node.output:
                if name and name in made:
                    raise CaptureError(f"ONNX {place} makes {name[:120]!r}, which exists: the file is damaged.")
                made.add(name)
            made.discard("")
        for output in proto.output:
            if output.name not in made:
                raise CaptureError(f"nothing makes the ONNX output {output.name[:120]!r}: the file is damaged.")

    def needed(self, names: Iterable[str]) -> list[tuple[int, Any]]:
        """The nodes, with their numbers, that these values depend on, in order."""
        wanted, found = set(names), []
        for number, node in reversed(list(enumerate(self.proto.node))):
            if wanted.intersection(name for name in node.output if name):
                found.append((number, node))
                wanted.update(_reads(node))
        return found[::-1]


def _reads(node: Any) -> set[str]:
    """The values that a node reads, its branches included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (*((attribute.g,) if attribute.type == 5 else ()), *attribute.graphs):
            names.update(o.name for o in graph.output)
            for inner in graph.node:
                names |= _reads(inner)
    return names


def read_module(path: Path, shape: Sequence[int] | None, output: str | None) -> tuple[fx.GraphModule, Any, Reading]:
    """The module of a file, its ModelProto, and how its input was read.

    Args:
        path: of the file.
        shape: of one example, without a batch dimension; None takes that of the file.
        output: the name of the value that is the output; None if the file has one.

    Raises:
        InputError: the package onnx is missing, several inputs, an input shape that does not fit, no such output.
        CaptureError: a damaged file, or one that asks for too much memory (see ``limits``).
        UnsupportedOpError: an operator that is not translated, by the name of its node.
    """
    model = parsed(path)
    version = _version(model)
    graph = Graph(model.graph)
    name = _output(graph, output)
    dtype, ways = _input(graph, shape)
    error: LipcertError | None = None
    for reading in ways:
        try:
            module, batched = _module(path, model, graph, version, name, dtype, reading)
        except LipcertError as problem:  # the next reading may fit; the first one's error is told
            error = error or problem
            continue
        if reading.doubtful and batched:
            error = InputError(reading.doubtful)
            continue
        return module, model, reading
    assert error is not None
    raise error


def _module(
    path: Path, model: Any, graph: Graph, version: int, name: str, dtype: torch.dtype, reading: Reading
) -> tuple[fx.GraphModule, bool]:
    """The module, and whether its output has as many rows as the input of the file."""
    build = Builder(Room(), Tensors(path.parent))
    x = build.input((1, *reading.example), dtype)
    scope = {graph.inputs[0].name: build.reshaped(x, reading.declared)}
    functions = {(f.domain, f.name) for f in model.functions}
    found = _translated(build, graph, [name], scope, version, functions)[name]
    assert found is not None
    batched = bool(found.rank) and found.shape[0] == reading.declared[0]
    build.at = None
    if not found.floating:
        raise CaptureError(f"the ONNX output {name[:120]!r} holds no floating numbers; a bound needs those.")
    if not found.rank or found.shape[0] != 1:
        found = build.reshaped(found, (1, *found.shape))
    build.graph.output(build.reference(found))
    build.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or node.target is fitting)
    module = fx.GraphModule(build.root, build.graph, class_name="OnnxModel")
    module.meta.update(input_shape=reading.example, path=str(path))
    return module.eval(), batched


def _translated(
    build: Builder, graph: Graph, names: Sequence[str], outer: Mapping[str, Value], version: int,
    functions: set[tuple[str, str]],
) -> Mapping[str, Value | None]:  # fmt: skip
    """The values of a graph that ``names`` need."""
    scope: dict[str, Value | None] = dict(outer)
    nodes = graph.needed(names)
    wanted = {*names, *(name for _, node in nodes for name in _reads(node))}
    for name, tensor in graph.initializers.items():
        if name in wanted:
            scope[name] = build.constant(build.tensors.tensor(tensor, f"ONNX initializer {name[:120]!r}"), name)
    for number, proto in nodes:
        node = OnnxNode(proto, number, version)
        build.at = node
        build.room.node(str(node))
        if node.domain not in _OWN_DOMAINS or (node.domain, node.op) in functions:
            advice = " (onnx.inliner.inline_local_functions)" if (node.domain, node.op) in functions else ""
            raise node.unsupported(
                f"it is of the domain {node.domain[:80]!r}, whose operators lipcert does not know. Export the model "
                f"with ONNX's own operators{advice}."
            )
        inputs = [_present(node, name, scope) if name else None for name in node.inputs]
        if node.op == "If":
            results: Sequence[Value | None] = _branch(build, node, inputs, scope, version, functions)
        else:
            results = _applied(build, node, inputs)
        for name, value in zip(node.outputs, results, strict=False):
            if name:
                scope[name] = value
        for name in node.outputs[len(results) :]:
            scope[name] = None
    missing = next((name for name in names if scope.get(name) is None), None)
    if missing is not None:
        raise UnsupportedOpError(f"the ONNX value {missing[:120]!r} is an output of its node that is not translated.")
    return scope


def _present(node: OnnxNode, name: str, scope: Mapping[str, Value | None]) -> Value:
    value = scope.get(name)
    if value is None:
        raise node.unsupported(f"it reads {name[:120]!r}, an output of its node that is not translated.")
    return value


def _applied(build: Builder, node: OnnxNode, inputs: Sequence[Value | None]) -> Sequence[Value | None]:
    translate = translation_of(node.op)
    if translate is None:
        raise node.unsupported(
            _REASONS.get(node.op, "this operator is not translated. docs/onnx.md lists those that are.")
        )
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    try:
        result = translate(build, node, *inputs)
    except LipcertError:
        raise
    except TypeError as problem:  # the signature of the translation is that of the operator
        raise node.wrong(f"it has {len(inputs)} inputs, or lacks one ({str(problem)[:120]})") from problem
    except Exception as problem:
        detail = f"{type(problem).__name__}: {str(problem)[:160]}"
        raise node.wrong(f"it does not take these arguments ({detail})") from problem
    node.require_all_read()
    return result if isinstance(result, tuple) else (result,)


def _branch(
    build: Builder, node: OnnxNode, inputs: Sequence[Value | None], scope: Mapping[str, Value | None], version: int,
    functions: set[tuple[str, str]],
) -> list[Value | None]:  # fmt: skip
    """The branch that a constant condition chooses."""
    condition = inputs[0] if len(inputs) == 1 else None
    if condition is None or condition.tensor.numel() != 1 or condition.tensor.dtype != torch.bool:
        raise node.wrong("its condition is no truth value")
    if condition.varies:
        raise node.unsupported("which branch it takes depends on the input; export a model without branches.")
    name = "then_branch" if bool(condition.tensor.item()) else "else_branch"
    proto = node.subgraph(name)
    if proto is None or len(proto.output) < len(node.outputs):
        raise node.wrong(f"its {name} is missing, or has too few outputs")
    seen = {key: value for key, value in scope.items() if value is not None}
    inner = Graph(proto, seen)
    names = [output.name for output in proto.output][: len(node.outputs)]
    found = _translated(build, inner, names, seen, version, functions)
    build.at = node
    return [found[one] for one in names]


@translates("If")
def _if(build: Builder, node: OnnxNode, condition: Value) -> Any:
    raise node.unsupported("a branch outside a graph.")


def _version(model: Any) -> int:
    """The operator set."""
    versions = {o.domain: o.version for o in model.opset_import}
    found = versions.get("", versions.get("ai.onnx"))
    if found is None or found not in OPERATOR_SETS:
        raise CaptureError(
            f"the ONNX file uses operator set {found}; lipcert reads {OPERATOR_SETS[0]} to {OPERATOR_SETS[-1]}. "
            "Convert it with onnx.version_converter.convert_version."
        )
    return int(found)


def _output(graph: Graph, wanted: str | None) -> str:
    names = [output.name for output in graph.proto.output]
    if wanted is None and len(names) == 1:
        return str(names[0])
    if wanted in names:
        return str(wanted)
    listed = ", ".join(repr(name[:60]) for name in names[:8])
    if wanted is None:
        raise InputError(f"the ONNX file has the outputs {listed}; name one: lipcert.load_onnx(path, output=…).")
    raise InputError(f"the ONNX file has no output {wanted!r}; it has {listed}.")


def _input(graph: Graph, shape: Sequence[int] | None) -> tuple[torch.dtype, list[Reading]]:
    if len(graph.inputs) != 1:
        names = ", ".join(repr(i.name[:60]) for i in graph.inputs[:8])
        raise InputError(
            f"the ONNX file has {len(graph.inputs)} inputs ({names}); lipcert takes files of one. Make the others "
            "initializers (onnx.helper), or export a model of one input."
        )
    info = graph.inputs[0]
    if not info.type.HasField("tensor_type"):
        raise InputError(f"the ONNX input {info.name[:60]!r} is a sequence, map or sparse tensor, not a tensor.")
    kind = info.type.tensor_type
    dtype = torch_type(f"the ONNX input {info.name[:60]!r}", kind.elem_type)
    if not dtype.is_floating_point:
        raise InputError(
            f"the ONNX input {info.name[:60]!r} holds {str(dtype).removeprefix('torch.')} numbers; a Lipschitz "
            "constant needs a floating-point input. Export the part of the model behind the conversion."
        )
    declared = None
    if kind.HasField("shape"):
        declared = [int(d.dim_value) if d.HasField("dim_value") else None for d in kind.shape.dim]
    return dtype, readings(declared, shape)
