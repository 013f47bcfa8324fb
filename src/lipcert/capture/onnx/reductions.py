"""Sums, means, maxima and norms over axes, softmax, and contractions."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipcert.capture.onnx.build import Builder, Value
from lipcert.capture.onnx.node import OnnxNode, translates
from lipcert.capture.onnx.structure import axes_of

_aten = torch.ops.aten
#: Most products that an Einsum may make of constants.
_PRODUCTS = 1 << 34


def _axes(build: Builder, node: OnnxNode, x: Value, given: Value | None, since: int) -> list[int]:
    """The axes that are reduced; none where empty axes mean none."""
    found = axes_of(build, node, given, since)
    none = bool(node.integer("noop_with_empty_axes", 0))
    if not found:
        return [] if none else list(range(x.rank))
    return sorted(node.axes(found, x.rank))


def _reduction(name: str, since: int) -> Any:
    """Register ``function(build, x, axes, keep)`` as a reduction whose axes are an input from ``since`` on."""

    def register(function: Any) -> Any:
        def reduced(build: Builder, node: OnnxNode, x: Value, axes: Value | None = None) -> Any:
            chosen, keep = _axes(build, node, x, axes, since), bool(node.integer("keepdims", 1))
            return (
                function(build, x, chosen, keep)
                if chosen
                else function(build, build.reshaped(x, (*x.shape, 1)), [x.rank], False)
            )

        translates(name)(reduced)
        return function

    return register


@_reduction("ReduceSum", 13)
def _sum(build: Builder, x: Value, axes: list[int], keep: bool) -> Any:
    return build(_aten.sum.dim_IntList, x, axes, keep)


@_reduction("ReduceMean", 18)
def _mean(build: Builder, x: Value, axes: list[int], keep: bool) -> Any:
    return build(_aten.mean.dim, x, axes, keep)


@_reduction("ReduceMax", 18)
def _max(build: Builder, x: Value, axes: list[int], keep: bool) -> Any:
    return build(_aten.amax.default, x, axes, keep)


@_reduction("ReduceMin", 18)
def _min(build: Builder, x: Value, axes: list[int], keep: bool) -> Any:
    return build(_aten.amin.default, x, axes, keep)


@_reduction("ReduceL1", 18)
def _l1(build: Builder, x: Value, axes: list[int], keep: bool) -> Any:
    return build(_aten.sum.dim_IntList, build(_aten.abs.default, x), axes, keep)


@_reduction("ReduceL2", 18)
def _l2(build: Builder, x: Value, axes: list[int], keep: bool) -> Any:
    return build(_aten.linalg_vector_norm.default, x, 2, axes, keep)


@_reduction("ReduceSumSquare", 18)
def _sum_square(build: Builder, x: Value, axes: list[int], keep: bool) -> Any:
    return build(_aten.sum.dim_IntList, build(_aten.mul.Tensor, x, x), axes, keep)


@_reduction("ReduceLogSum", 18)
def _log_sum(build: Builder, x: Value, axes: list[int], keep: bool) -> Any:
    return build(_aten.log.default, _sum(build, x, axes, keep))


@_reduction("ReduceLogSumExp", 18)
def _log_sum_exp(build: Builder, x: Value, axes: list[int], keep: bool) -> Any:
    return build(_aten.logsumexp.default, x, axes, keep)


@_reduction("ReduceProd", 18)
def _prod(build: Builder, x: Value, axes: list[int], keep: bool) -> Any:
    for axis in reversed(axes):
        x = build(_aten.prod.dim_int, x, axis, keep)
    return x


def _soft(name: str, target: Any) -> None:
    def soft(build: Builder, node: OnnxNode, x: Value) -> Any:
        """Along an axis; before operator set 13 over all axes from it on."""
        if node.version >= 13:
            return build(target, x, node.axis(node.integer("axis", -1), x.rank))
        axis = node.integer("axis", 1)
        axis = node.axis(axis, x.rank) if axis != x.rank else axis
        if axis == x.rank - 1:
            return build(target, x, axis)
        flat = build.reshaped(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
        return build.reshaped(build(target, flat, 1), x.shape)

    translates(name)(soft)


_soft("Softmax", _aten.softmax.int)
_soft("LogSoftmax", _aten.log_softmax.int)


@translates("Einsum")
def _einsum(build: Builder, node: OnnxNode, *values: Value) -> Any:
    equation = node.text("equation").replace(" ", "")
    sizes: dict[str, int] = {}
    for term, value in zip(equation.split("->")[0].split(","), values, strict=False):
        if "." in term or len(term) != value.rank:
            raise node.unsupported("its equation has an ellipsis, or does not fit its inputs.")
        sizes.update(zip(term, value.shape, strict=True))
    if not any(v.varies for v in values) and math.prod(sizes.values()) > _PRODUCTS:
        raise node.unsupported("a contraction of constants that takes too long; store the result as an initializer.")
    return build(_aten.einsum.default, equation, list(values))


@translates("TopK")
def _top_k(build: Builder, node: OnnxNode, x: Value, count: Value | None = None) -> Any:
    if node.version < 10:
        k = node.integer("k")
    elif count is None:
        raise node.wrong("its number of entries is missing")
    else:
        (k,) = build.integers(build.reshaped(count, (1,)), "k")
    axis, ordered = node.axis(node.integer("axis", -1), x.rank), bool(node.integer("sorted", 1))
    return build(_aten.topk.default, x, k, axis, bool(node.integer("largest", 1)), ordered)


@translates("ArgMax")
def _arg_max(build: Builder, node: OnnxNode, x: Value) -> Any:
    node.ignore("select_last_index")  # of a value that jumps in any case
    return build(_aten.argmax.default, x, node.axis(node.integer("axis", 0), x.rank), bool(node.integer("keepdims", 1)))


@translates("ArgMin")
def _arg_min(build: Builder, node: OnnxNode, x: Value) -> Any:
    node.ignore("select_last_index")
    return build(_aten.argmin.default, x, node.axis(node.integer("axis", 0), x.rank), bool(node.integer("keepdims", 1)))
