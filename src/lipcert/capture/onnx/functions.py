"""Operators that are made of others: by the specification (Attention), or by the file itself (its functions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lipcert.capture.onnx.build import Value
from lipcert.capture.onnx.file import package
from lipcert.capture.onnx.node import OnnxNode

#: Torch type → number of the ONNX element type.
_NUMBERS = {
    torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int16: 5, torch.int32: 6, torch.int64: 7, torch.bool: 9,
    torch.float16: 10, torch.float64: 11, torch.bfloat16: 16,
}  # fmt: skip


@dataclass(frozen=True)
class Body:
    """The nodes that a node stands for.

    Attributes:
        graph: a GraphProto of them.
        scope: the values that they read, by name.
        outputs: their names, for each output of the node; "" for one that is not asked for.
        version: of their operator set.
    """

    graph: Any
    scope: Mapping[str, Value]
    outputs: list[str]
    version: int


def specified(proto: Any, node: OnnxNode, inputs: Sequence[Value | None]) -> Body | None:
    """What the specification says that a node is made of; None if it does not say."""
    onnx = package()
    schema = onnx.defs.get_schema(node.op, node.version, "")
    plain = [v for v in schema.function_opset_versions if v <= node.version]
    context = [v for v in schema.context_dependent_function_opset_versions if v <= node.version]
    unknown = sorted(set(node.attributes) - set(schema.attributes))
    if unknown:
        raise node.unsupported(f"its attribute {unknown[0][:80]!r} is not known for this operator.")
    full = onnx.NodeProto()
    full.CopyFrom(proto)
    defaults = {a.name: a.default_value for a in schema.attributes.values() if a.default_value.name}
    full.attribute.extend(value for name, value in defaults.items() if name not in node.attributes)
    if plain:
        content = schema.get_function_with_opset_version(max(plain))
    elif context:
        types = [_type(value).SerializeToString() for value in inputs]
        content = schema.get_context_dependent_function_with_opset_version(
            max(context), full.SerializeToString(), types
        )
    else:
        return None
    function = onnx.FunctionProto()
    function.ParseFromString(content)
    return written_out(function, full, node, inputs)


def written_out(function: Any, proto: Any, node: OnnxNode, inputs: Sequence[Value | None]) -> Body:
    """The nodes of a FunctionProto with the attributes and inputs of the node that calls it."""
    if len(inputs) > len(function.input) or len(node.outputs) > len(function.output):
        raise node.wrong("it has more inputs or outputs than its function")
    given = {a.name: a for a in function.attribute_proto} | {a.name: a for a in proto.attribute}
    padded = [*inputs, *[None] * (len(function.input) - len(inputs))]
    pairs = list(zip(function.input, padded, strict=True))
    graph = package().GraphProto()
    graph.node.extend(function.node)
    for number, inner in enumerate(graph.node):
        inner.name = f"{node.name}.{inner.name or f'{inner.op_type}_{number}'}"
    _bind(graph, given, {name for name, value in pairs if value is None})
    outputs = [name if asked else "" for name, asked in zip(function.output, node.outputs, strict=False)]
    for name in filter(None, outputs):  # a function that depends on its call makes no others
        graph.output.add(name=name)
    versions = {o.domain: o.version for o in function.opset_import}
    scope = {name: value for name, value in pairs if value is not None}
    return Body(graph, scope, outputs, int(versions.get("", versions.get("ai.onnx", node.version))))


def _bind(graph: Any, given: Mapping[str, Any], missing: set[str]) -> None:
    """Put the caller's attributes in the place of references to them, and take away inputs that it leaves out."""
    for inner in graph.node:
        inner.input[:] = ["" if name in missing else name for name in inner.input]
        kept = []
        for attribute in inner.attribute:
            if attribute.ref_attr_name:
                found = given.get(attribute.ref_attr_name)
                if found is None:
                    continue
                bound = type(attribute)()
                bound.CopyFrom(found)
                bound.name = attribute.name
                kept.append(bound)
            else:
                if attribute.type == 5:
                    _bind(attribute.g, given, missing)
                kept.append(attribute)
        copies = [type(a).FromString(a.SerializeToString()) for a in kept]
        del inner.attribute[:]
        inner.attribute.extend(copies)


def _type(value: Value | None) -> Any:
    proto = package().TypeProto()
    if value is not None:
        proto.tensor_type.elem_type = _NUMBERS.get(value.tensor.dtype, 0)
        proto.tensor_type.shape.SetInParent()
        for n in value.shape:
            proto.tensor_type.shape.dim.add(dim_value=n)
    return proto
