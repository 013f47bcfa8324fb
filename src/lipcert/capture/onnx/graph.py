"""The names of an ONNX graph: what makes and reads them, in which order, and what an output needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from lipcert.capture.onnx.node import printable
from lipcert.errors import CaptureError


class Graph:
    """The names of one graph, checked before anything is computed.

    Attributes:
        proto: the GraphProto.
        initializers: its constants by name, not yet read.
        inputs: those that are no initializers.
        made: names of what its nodes make.
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
        self.made: set[str] = set()
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
                self.made.add(name)
            made.discard("")
        for output in proto.output:
            if output.name not in made:
                raise CaptureError(f"nothing makes the ONNX output {output.name[:120]!r}: the file is damaged.")

    def needed(self, names: Iterable[str], given: Collection[str] = ()) -> list[tuple[int, Any]]:
        """The nodes, with their numbers, that these values depend on where those are ``given``, in order."""
        wanted, found = set(names), []
        for number, node in reversed(list(enumerate(self.proto.node))):
            if wanted.intersection(name for name in node.output if name and name not in given):
                found.append((number, node))
                wanted.update(reads(node))
        return found[::-1]


def reads(node: Any) -> set[str]:
    """The values that a node reads, its branches included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (*((attribute.g,) if attribute.type == 5 else ()), *attribute.graphs):
            names.update(o.name for o in graph.output)
            for inner in graph.node:
                names |= reads(inner)
    return names
