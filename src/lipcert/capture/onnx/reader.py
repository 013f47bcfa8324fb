"""An ONNX file as a module: its graph, node by node, as calls of the ATen ops that lipcert has rules for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from lipcert.capture.declared import Declared
from lipcert.capture.onnx.build import Builder, Value, fitting
from lipcert.capture.onnx.file import Tensors, parsed
from lipcert.capture.onnx.graph import Graph, reads
from lipcert.capture.onnx.inputs import Feed, Shapes, declared, feeds
from lipcert.capture.onnx.limits import OPERATOR_SETS, Room
from lipcert.capture.onnx.walk import Walk
from lipcert.errors import CaptureError, InputError, LipcertError, UnsupportedOpError

_aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Read:
    """A file that was read.

    Attributes:
        path: of the file.
        model: its ModelProto.
        graph: its names.
        output: the name of the value that is the output.
        feed: how it is called.
        module: what it became: takes (feed.batch, *feed.example).
        batched: whether the output has as many rows as the input of the file.
    """

    path: Path
    model: Any
    graph: Graph
    output: str
    feed: Feed
    module: fx.GraphModule
    batched: bool

    def again(self, feed: Feed) -> Read:
        """The same called in another way; errors as ``read_file``."""
        return _read(self.path, self.model, self.graph, self.output, feed)


def read_file(
    path: Path, shapes: Shapes = None, output: Any = None, wrt: Sequence[str] | None = None,
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> Read:  # fmt: skip
    """The module of a file.

    Args:
        path: of the file.
        shapes: of one example, without a batch dimension, by name where several inputs vary; None takes the file's.
        output: the name or number of the output; None if the file has one.
        wrt: the inputs that vary, in the order in which they are joined; also values inside the graph.
        fixed: values of the others.

    Raises:
        InputError: the package onnx is missing, an input shape that does not fit, no such input or output, an input
            that neither varies nor has a value.
        CaptureError: a damaged file, or one that asks for too much memory (see ``limits``).
        UnsupportedOpError: an operator that is not translated, by the name of its node.
    """
    model = parsed(path)
    _version(model)
    graph = Graph(model.graph)
    name = _output(graph, output)
    inside = [one for one in wrt or () if one in graph.made]
    used = {name, *(read for _, node in graph.needed([name], inside) for read in reads(node))}
    error: LipcertError | None = None
    for feed in feeds([*map(declared, graph.inputs), *_declared(graph, inside)], used, shapes, wrt, fixed):
        try:
            found = _read(path, model, graph, name, feed)
        except LipcertError as problem:  # the next reading may fit; the first one's error is told
            error = error or problem
            continue
        if feed.doubtful and found.batched:
            error = InputError(feed.doubtful)
            continue
        return found
    assert error is not None
    raise error


def _read(path: Path, model: Any, graph: Graph, name: str, feed: Feed) -> Read:
    build = Builder(Room(), Tensors(path.parent))
    scope = _arguments(build, feed)
    for function in model.functions:
        if getattr(function, "overload", "") or function.domain in ("", "ai.onnx"):
            raise UnsupportedOpError(
                f"{path.name}: its function {function.name[:60]!r} is an overload, or has the place of an operator of "
                "ONNX; lipcert reads functions of domains of their own, one of each name."
            )
    walk = Walk(build, {(f.domain, f.name): f for f in model.functions})
    (found,) = walk.values(graph, [name], scope, _version(model))
    batched = bool(found.rank) and found.shape[0] == feed.rows
    build.at = None
    if not found.floating:
        raise CaptureError(f"the ONNX output {name[:120]!r} holds no floating numbers; a bound needs those.")
    if feed.batch == 1 and (not found.rank or found.shape[0] != 1):
        found = build.reshaped(found, (1, *found.shape))
    build.graph.output(build.reference(found))
    build.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or node.target is fitting)
    module = fx.GraphModule(build.root, build.graph, class_name="OnnxModel")
    varied = {one.name: reading.example for one, reading in feed.parts.items()}
    module.meta.update(input_shape=feed.example, path=str(path), varied=varied, fixed=[one.name for one in feed.fixed])
    return Read(path, model, graph, name, feed, module.eval(), batched)


def _declared(graph: Graph, names: Sequence[str]) -> list[Declared]:
    """Values inside the graph as inputs, of which the file may say the type."""
    told = {one.name: one for one in (*graph.proto.value_info, *graph.proto.output)}
    known = [told[name] for name in names if name in told and told[name].type.HasField("tensor_type")]
    found = {one.name: declared(one) for one in known if one.type.tensor_type.elem_type}
    return [found.get(name) or Declared(name, torch.float32, None) for name in names]


def _arguments(build: Builder, feed: Feed) -> dict[str, Value]:
    """name → value for the inputs of the file: parts of the module's one input, and constants."""
    x = build.input((feed.batch, *feed.example), feed.dtype)
    scope = {}
    for one, start, stop, shape in feed.pieces():
        part = x if len(feed.parts) == 1 else build(_aten.slice.Tensor, x, 1, start, stop)
        scope[one.name] = build.cast(build.reshaped(part, shape), one.dtype)
    for one, tensor in feed.fixed.items():
        scope[one.name] = build.constant(tensor, one.name)
    return scope


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


def _output(graph: Graph, wanted: Any) -> str:
    names = [str(output.name) for output in graph.proto.output]
    if wanted is None and len(names) == 1:
        return names[0]
    if isinstance(wanted, int) and 0 <= wanted < len(names):
        return names[wanted]
    if wanted in names or wanted in graph.made:
        return str(wanted)
    listed = ", ".join(repr(name[:60]) for name in names[:8])
    if wanted is None:
        raise InputError(f"the ONNX file has the outputs {listed}; name one: output=…, on the command line --output.")
    raise InputError(f"the ONNX file has no output {wanted!r}; it has {listed}.")
