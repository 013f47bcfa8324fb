"""An ONNX file as a module: its graph, node by node, as calls of the ATen ops that lipcert has rules for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from lipcert.capture.onnx.build import Builder, fitting
from lipcert.capture.onnx.file import Tensors, parsed, torch_type
from lipcert.capture.onnx.graph import Graph
from lipcert.capture.onnx.limits import OPERATOR_SETS, Room
from lipcert.capture.onnx.shapes import Reading, readings
from lipcert.capture.onnx.walk import Walk
from lipcert.errors import CaptureError, InputError, LipcertError, UnsupportedOpError


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
    for function in model.functions:
        if getattr(function, "overload", "") or function.domain in ("", "ai.onnx"):
            raise UnsupportedOpError(
                f"{path.name}: its function {function.name[:60]!r} is an overload, or has the place of an operator of "
                "ONNX; lipcert reads functions of domains of their own, one of each name."
            )
    walk = Walk(build, {(f.domain, f.name): f for f in model.functions})
    (found,) = walk.values(graph, [name], scope, version)
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
