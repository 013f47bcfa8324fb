"""One node of an ONNX graph as its translation sees it: attributes by name, and errors that name the node."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lipcert.errors import CaptureError, UnsupportedOpError

#: Number of an attribute's type in a file → the field that holds it.
_FIELDS = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings"}


class OnnxNode:
    """A node with the version of its operator set.

    Attributes:
        op: the operator.
        name: of the node, or the operator and its number.
        version: of the operator set.
        inputs, outputs: names of values, "" for one that is left out.
    """

    def __init__(self, proto: Any, number: int, version: int) -> None:
        self.op: str = proto.op_type
        self.name: str = printable(proto.name or f"{proto.op_type}_{number}")
        self.version = version
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self.domain: str = proto.domain
        self._attributes = {a.name: a for a in proto.attribute}
        self._read: set[str] = set()
        if len(self._attributes) != len(proto.attribute):
            raise self.wrong("an attribute occurs twice")

    def __str__(self) -> str:
        return f"node '{self.name}' ({printable(self.op)})"

    # -- errors -------------------------------------------------------------------------------------------------

    def unsupported(self, reason: str) -> UnsupportedOpError:
        """The node is right, but nothing here translates it."""
        return UnsupportedOpError(f"ONNX {self}: {reason}")

    def wrong(self, reason: str) -> CaptureError:
        """The node contradicts the ONNX specification."""
        return CaptureError(f"ONNX {self}: {reason}: the file is damaged, or no valid ONNX.")

    # -- attributes ---------------------------------------------------------------------------------------------

    def _get(self, name: str, kind: int) -> Any:
        self._read.add(name)
        found = self._attributes.get(name)
        if found is None:
            return None
        if found.ref_attr_name:
            raise self.unsupported(f"its attribute {name!r} refers to one of a function; inline the functions.")
        if found.type != kind:
            raise self.wrong(f"its attribute {name!r} is of another type")
        value = getattr(found, _FIELDS[kind])
        if kind == 1 and not math.isfinite(value):
            raise self.wrong(f"its attribute {name!r} is {value}")
        return value

    @property
    def attributes(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._attributes)

    def has(self, name: str) -> bool:
        """Whether an attribute is given."""
        return name in self._attributes

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number.

        Raises:
            CaptureError: it is missing and has no default.
        """
        return int(self._or(self._get(name, 2), name, default))

    def real(self, name: str, default: float | None = None) -> float:
        """A float32 number, exactly; the default as the float32 number that the specification has."""
        return float(self._or(self._get(name, 1), name, default))

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        found = self._get(name, 3)
        return str(self._or(None if found is None else found.decode("utf-8", "replace"), name, default))

    def integers(self, name: str) -> list[int] | None:
        """Whole numbers; None if not given."""
        found = self._get(name, 7)
        return None if found is None else [int(v) for v in found]

    def reals(self, name: str) -> list[float] | None:
        """Floats; None if not given."""
        found = self._get(name, 6)
        return None if found is None else [float(v) for v in found]

    def texts(self, name: str) -> list[str] | None:
        """Strings; None if not given."""
        found = self._get(name, 8)
        return None if found is None else [v.decode("utf-8", "replace") for v in found]

    def tensor(self, name: str) -> Any:
        """A TensorProto; None if not given."""
        return self._get(name, 4)

    def subgraph(self, name: str) -> Any:
        """A GraphProto; None if not given."""
        return self._get(name, 5)

    def _or(self, found: Any, name: str, default: Any) -> Any:
        if found is None and default is None:
            raise self.wrong(f"its attribute {name!r} is missing")
        return default if found is None else found

    def ignore(self, *names: str) -> None:
        """These attributes change nothing that is computed here."""
        self._read.update(names)

    def require_all_read(self) -> None:
        """Raise UnsupportedOpError if an attribute was not looked at: it might change what the node computes."""
        left = sorted(set(self._attributes) - self._read)
        if left:
            raise self.unsupported(
                f"its attribute {left[0][:80]!r} is not known for this operator in operator set {self.version}."
            )

    def axis(self, value: int, rank: int) -> int:
        """An axis counted from the front.

        Raises:
            CaptureError: there is no such axis.
        """
        if not -rank <= value < rank:
            raise self.wrong(f"axis {value} of a value with {rank} axes")
        return value % rank

    def axes(self, values: Sequence[int], rank: int) -> list[int]:
        """Axes counted from the front, each once."""
        found = [self.axis(int(v), rank) for v in values]
        if len(set(found)) != len(found):
            raise self.wrong(f"its axes {list(values)[:8]} name one twice")
        return found


def printable(name: str | bytes) -> str:
    """A name out of a file for a message: of moderate length, without control characters.

    Protobuf gives a name that is no text as bytes.
    """
    text = name if isinstance(name, str) else name.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text[:200])


#: (builder, node, inputs) → the output, or outputs with None for those that are not translated.
Translation = Callable[..., Any]

_TABLE: dict[str, Translation] = {}


def translates(*names: str) -> Callable[[Translation], Translation]:
    """Register ``function(build, node, *inputs)`` as the translation of ONNX operators; a duplicate raises."""

    def register(function: Translation) -> Translation:
        for name in names:
            if name in _TABLE:
                raise ValueError(f"two translations of ONNX {name!r}")
            _TABLE[name] = function
        return function

    return register


def translation_of(op: str) -> Translation | None:
    """The translation of an operator, if there is one."""
    return _TABLE.get(op)


def translated_ops() -> tuple[str, ...]:
    """The ONNX operators with a translation."""
    return tuple(sorted(_TABLE))
