"""Builds the graph of ATen calls: constants with their numbers, values that depend on the input with their shapes."""

from __future__ import annotations

import keyword
import math
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lipcert.capture.onnx.file import Tensors
from lipcert.capture.onnx.limits import Room
from lipcert.capture.onnx.node import OnnxNode, printable
from lipcert.errors import CaptureError, InputError, LipcertError

_aten = torch.ops.aten
#: Ops that choose, compare and move: what they make of numbers of the file is exact, and may stand for the call.
_EXACT = frozenset((
    _aten.eq.Tensor, _aten.lt.Tensor, _aten.le.Tensor, _aten.gt.Tensor, _aten.ge.Tensor, _aten.isnan.default,
    _aten.where.self, _aten.amax.default, _aten.amin.default, _aten.maximum.default, _aten.minimum.default,
    _aten.expand.default, _aten.reshape.default, _aten.slice.Tensor, _aten.select.int, _aten.cat.default,
))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the graph.

    Attributes:
        tensor: the numbers of a constant; of a value that depends on the input, a meta tensor of its shape and dtype.
        varies: whether it depends on the input.
    """

    tensor: Tensor
    varies: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As of a tensor."""
        return tuple(self.tensor.shape)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return self.tensor.dim()

    @property
    def floating(self) -> bool:
        """Whether it holds floating numbers."""
        return self.tensor.is_floating_point()


class Builder:
    """A graph that grows by ATen calls.

    A call on constants is evaluated, because shapes are computed so. Its result stands as a constant where it is made
    of whole numbers alone, or chosen among numbers of the file; what else floating numbers give is left as a call, so
    that what rounding does to it is enclosed where all constants are (``lipcert.ops.folding``).
    """

    def __init__(self, room: Room, tensors: Tensors) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.room = room
        self.tensors = tensors
        self.at: OnnxNode | None = None
        self._nodes: dict[Value, fx.Node] = {}
        self._start: fx.Node | None = None
        self._names: dict[Value, str] = {}
        self._taken: Counter[str] = Counter()

    # -- leaves -------------------------------------------------------------------------------------------------

    def input(self, shape: Sequence[int], dtype: torch.dtype) -> Value:
        """The input of the model; the module runs on this shape alone.

        A capture runs a module in the precision of its first tensor; that is an empty one, of the input's.
        """
        self.room.value("the input", shape)
        value = Value(torch.empty(tuple(shape), dtype=dtype, device="meta"), True)
        x = self.graph.placeholder("x")
        self.root.register_buffer("precision", torch.empty(0, dtype=dtype))
        precision = self.graph.get_attr("precision")
        self._start = self._nodes[value] = self.graph.call_function(fitting, (x, tuple(shape), precision))
        return value

    def constant(self, tensor: Tensor, name: str = "constant") -> Value:
        """A constant; its name is that of a buffer if it is needed."""
        value = Value(tensor)
        self._names[value] = name
        return value

    def reference(self, value: Value) -> fx.Node:
        """The node of the graph that gives a value."""
        if value not in self._nodes:
            name = self._buffer_name(printable(self._names[value])[:80])
            self.root.register_buffer(name, value.tensor)
            with self.graph.inserting_before(self._start):
                self._nodes[value] = self.graph.get_attr(name)
        return self._nodes[value]

    def _buffer_name(self, name: str) -> str:
        """A name for a buffer that is free, and no attribute of a module or word of Python."""
        stem = "".join(c if c.isalnum() and c.isascii() else "_" for c in name)
        if not stem.isidentifier() or keyword.iskeyword(stem) or stem in _attributes():
            stem = f"c_{stem}"
        self._taken[stem] += 1
        name = stem if self._taken[stem] == 1 else f"{stem}_{self._taken[stem]}"
        return self._buffer_name(f"{name}_") if hasattr(self.root, name) else name

    # -- calls --------------------------------------------------------------------------------------------------

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """The value of an ATen op, or a tuple of values; arguments are Values, lists of such, and settings.

        Raises:
            CaptureError: it does not take these arguments, or its result is too large.
        """
        leaves, spec = tree_flatten((args, kwargs))
        values = [leaf for leaf in leaves if isinstance(leaf, Value)]
        varies = any(v.varies for v in values)
        place = f"ONNX {self.at}" if self.at else "the graph"

        def run(device: str | None) -> Any:
            given = [
                (leaf.tensor if device is None else leaf.tensor.to(device)) if isinstance(leaf, Value) else leaf
                for leaf in leaves
            ]
            plain, named = tree_unflatten(given, spec)
            with torch.no_grad():
                return target(*plain, **named)

        try:
            result = run("meta")
            for one in tree_leaves(result):
                if varies:
                    self.room.value(place, one.shape)
                else:
                    self._require_room(place, target, values, one)
            if not varies:
                result = run(None)
        except LipcertError:
            raise
        except NotImplementedError as problem:
            raise CaptureError(f"{place}: its shape cannot be told ({_first_line(problem)}).") from problem
        except Exception as problem:
            raise CaptureError(
                f"{place} does not take these arguments ({_first_line(problem)}): the file is damaged, no valid ONNX, "
                "or the input shape does not fit it."
            ) from problem
        own = [v for v in values if v.floating or v.tensor.is_complex()]  # what rounding may touch
        exact = not own or (all(v in self._names for v in own) and (target in _EXACT or _adds_nothing(target, own)))
        if not varies and exact:
            return tree_map(lambda t: self.constant(t), result)
        plain, named = tree_unflatten([self.reference(v) if isinstance(v, Value) else v for v in leaves], spec)
        node = self.graph.call_function(target, plain, named)
        self._mark(node)
        if isinstance(result, Tensor):
            return self._kept(result, varies, node)
        found = []
        for number, one in enumerate(result):
            part = self.graph.call_function(operator.getitem, (node, number))
            self._mark(part)
            found.append(self._kept(one, varies, part))
        return tuple(found)

    def _require_room(self, place: str, target: Any, values: Sequence[Value], result: Tensor) -> None:
        """Room for a constant; a view of its operand takes none."""
        read = sum(v.tensor.numel() for v in values)
        schema = getattr(target, "_schema", None)
        view = schema is not None and any(r.alias_info is not None for r in schema.returns)
        view = view and result.numel() <= read and all(v.tensor.is_contiguous() for v in values)
        self.room.own = self.tensors.bytes
        self.room.constant(place, result.shape, 0 if view else result.element_size(), 0 if view else read)

    def _kept(self, tensor: Tensor, varies: bool, node: fx.Node) -> Value:
        value = Value(tensor, varies)
        self._nodes[value] = node
        return value

    def _mark(self, node: fx.Node) -> None:
        """Let the node carry its place in the user's file, as a traced module's calls carry their module."""
        if self.at is not None:
            node.meta["nn_module_stack"] = {"onnx": (self.at.name, f"onnx.{printable(self.at.op)}")}

    # -- what translations ask ----------------------------------------------------------------------------------

    def integers(self, value: Value, what: str) -> list[int]:
        """The whole numbers of a constant.

        Raises:
            UnsupportedOpError: it depends on the input.
            CaptureError: it holds other numbers, or is not a list.
        """
        assert self.at is not None
        if value.varies:
            raise self.at.unsupported(f"its {what} depends on the values of the input, not on its shape alone.")
        if value.floating or value.tensor.dtype == torch.bool or value.rank > 1 or value.tensor.numel() > 1 << 20:
            raise self.at.wrong(f"its {what} is no list of whole numbers")
        return [int(v) for v in value.tensor.reshape(-1).tolist()]

    def number(self, value: Value, what: str) -> float:
        """The one number of a constant, exactly; not NaN."""
        assert self.at is not None
        if value.varies:
            raise self.at.unsupported(f"its {what} depends on the input; a constant is needed.")
        if value.tensor.numel() != 1:
            raise self.at.wrong(f"its {what} has shape {value.shape}, not one number")
        found = float(value.tensor.double().reshape(()).item())
        if math.isnan(found):
            raise self.at.wrong(f"its {what} is no number")
        return found

    # -- calls that many translations make ------------------------------------------------------------------------

    def reshaped(self, x: Value, shape: Sequence[int]) -> Value:
        """The same entries in another shape."""
        result: Value = x if tuple(shape) == x.shape else self(_aten.reshape.default, x, list(shape))
        return result

    def cast(self, x: Value, dtype: torch.dtype) -> Value:
        """The same numbers in another dtype."""
        result: Value = x if x.tensor.dtype == dtype else self(_aten._to_copy.default, x, dtype=dtype)
        return result

    def like(self, x: Value, number: float) -> Value:
        """A constant with one entry: exactly this number, which in float64 and without dimensions widens nothing."""
        own = torch.tensor(number, dtype=x.tensor.dtype)
        if float(own) == number:
            return self.constant(own)
        if not x.rank:
            assert self.at is not None
            raise self.at.unsupported(f"a setting of it is no {x.tensor.dtype}; export it in float32.")
        return self.constant(torch.tensor(number, dtype=torch.float64))


def fitting(x: Tensor, shape: Sequence[int], precision: Tensor) -> Tensor:
    """The input of a module made of a file.

    Raises:
        InputError: its shape is not that for which the file was read.
    """
    if tuple(x.shape) != tuple(shape):
        raise InputError(
            f"the ONNX file was read for an input of shape {shape}, not {tuple(x.shape)}; for another one, read it "
            "again with input_shape=."
        )
    return x


@cache
def _attributes() -> frozenset[str]:
    """The names that a module made of a graph has for itself."""
    return frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def _adds_nothing(target: Any, values: Sequence[Value]) -> bool:
    """Whether a sum of two constants needs no rounding, as one of each two entries is 0 or infinite: a mask."""
    if target is not _aten.add.Tensor or len(values) != 2:
        return False
    plain = [(v.tensor == 0) | v.tensor.isinf() for v in values]
    return bool((plain[0] | plain[1]).all())


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:200]}" if lines else type(problem).__name__
