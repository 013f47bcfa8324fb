"""Goes through a graph node by node: translates, takes branches, writes functions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from itertools import chain, repeat
from typing import Any

import torch

import lipcert.capture.onnx.translations  # noqa: F401  (registers every translation)
from lipcert.capture.onnx.build import Builder, Value
from lipcert.capture.onnx.file import exists
from lipcert.capture.onnx.functions import Body, specified, written_out
from lipcert.capture.onnx.graph import Graph, reads
from lipcert.capture.onnx.limits import OPERATOR_SETS
from lipcert.capture.onnx.node import OnnxNode, translation_of
from lipcert.errors import LipcertError, UnsupportedOpError

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
#: Functions within functions, and branches within branches.
_DEPTH = 32


class Walk:
    """Translates the graphs of one file.

    Args:
        build: where the calls go.
        functions: the file's own, by domain and name.
    """

    def __init__(self, build: Builder, functions: Mapping[tuple[str, str], Any]) -> None:
        self.build = build
        self.functions = functions
        self._depth = 0

    def values(self, graph: Graph, names: Sequence[str], outer: Mapping[str, Value], version: int) -> list[Value]:
        """The values of a graph by these names.

        Args:
            graph: its nodes are translated as far as ``names`` need them.
            names: of values.
            outer: what exists before; a node that makes one of these is not asked for it.
            version: of the operator set.

        Raises:
            CaptureError: a damaged file, or one that asks for too much memory.
            UnsupportedOpError: an operator or a form of it that is not translated.
        """
        build, scope = self.build, dict[str, Value | None](outer)
        nodes = graph.needed(names, outer)
        wanted = {*names, *(name for _, node in nodes for name in reads(node))}
        for name, tensor in graph.initializers.items():
            if name in wanted:
                scope[name] = build.constant(build.tensors.tensor(tensor, f"ONNX initializer {name[:120]!r}"), name)
        for number, proto in nodes:
            node = OnnxNode(proto, number, version)
            build.at = node
            build.room.node(str(node))
            inputs = [_present(node, name, scope) if name else None for name in node.inputs]
            results = self._results(node, proto, inputs, scope)
            for place, name in enumerate(node.outputs):
                if name and name not in outer:
                    scope[name] = results[place] if place < len(results) else None
        found = [scope.get(name) for name in names]
        missing = next((name for name, value in zip(names, found, strict=True) if value is None), None)
        if missing is not None:
            raise UnsupportedOpError(
                f"the ONNX value {missing[:120]!r} is an output of its node that is not translated."
            )
        return [value for value in found if value is not None]

    def _results(
        self, node: OnnxNode, proto: Any, inputs: Sequence[Value | None], scope: Mapping[str, Value | None]
    ) -> Sequence[Value | None]:
        own = self.functions.get((node.domain, node.op))
        if own is not None:
            return self._written_out(node, written_out(own, proto, node, inputs))
        if node.domain not in _OWN_DOMAINS:
            raise node.unsupported(
                f"it is of the domain {node.domain[:80]!r}, whose operators lipcert does not know. Export the model "
                "with ONNX's own operators."
            )
        if node.op == "If":
            return self._branch(node, inputs, scope)
        translate = translation_of(node.op)
        if node.op in _REASONS:
            raise node.unsupported(_REASONS[node.op])
        if not exists(node.op, node.version):
            raise node.wrong(f"operator set {node.version} has no such operator, or not any more")
        if translate is not None:
            return _applied(self.build, node, translate, inputs)
        body = specified(proto, node, inputs)
        if body is None:
            raise node.unsupported("this operator is not translated. docs/onnx.md lists those that are.")
        return self._written_out(node, body)

    def _written_out(self, node: OnnxNode, body: Body) -> list[Value | None]:
        if body.version not in OPERATOR_SETS:
            raise node.unsupported(f"its function uses operator set {body.version}; convert the file.")
        names = [name for name in body.outputs if name]
        found = iter(self._inner(node, Graph(body.graph, body.scope), names, body.scope, body.version))
        return [next(found) if name else None for name in body.outputs]

    def _inner(
        self, node: OnnxNode, graph: Graph, names: Sequence[str], scope: Mapping[str, Value], version: int
    ) -> list[Value]:
        """The values of a graph inside a node."""
        self._depth += 1
        if self._depth > _DEPTH:
            raise node.wrong(f"its functions or branches lie in each other more than {_DEPTH} deep")
        found = self.values(graph, names, scope, version)
        self._depth -= 1
        self.build.at = node
        return found

    def _branch(self, node: OnnxNode, inputs: Sequence[Value | None], scope: Mapping[str, Value | None]) -> list[Value]:
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
        names = [output.name for output in proto.output][: len(node.outputs)]
        return self._inner(node, Graph(proto, seen), names, seen, node.version)


def _present(node: OnnxNode, name: str, scope: Mapping[str, Value | None]) -> Value:
    value = scope.get(name)
    if value is None:
        raise node.unsupported(f"it reads {name[:120]!r}, an output of its node that is not translated.")
    return value


def _applied(build: Builder, node: OnnxNode, translate: Any, inputs: Sequence[Value | None]) -> Sequence[Value | None]:
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    _require_present(node, translate, inputs)
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


def _require_present(node: OnnxNode, translate: Any, inputs: Sequence[Value | None]) -> None:
    """Inputs that are left out in front of others must be ones that the operator can do without."""
    if all(value is not None for value in inputs):
        return
    taken = list(signature(translate).parameters.values())[2:]  # behind the builder and the node
    for place, (value, one) in enumerate(zip(inputs, chain(taken, repeat(taken[-1])), strict=False)):
        if value is None and one.default is one.empty:
            raise node.wrong(f"its input {place} is left out")
