"""What an ONNX file may be and ask for: one of a few hundred bytes can name tensors of terabytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lipcert.errors import CaptureError

#: Operator sets whose meaning is known here.
OPERATOR_SETS = range(8, 29)
#: Bytes of all constants that are computed while a file is read, beyond four times those of its own tensors.
COMPUTED_BYTES = 1 << 30
#: Entries of the operands and results of all ops on constants.
WORK = 1 << 34
#: Entries of one value that depends on the input, and of all of them together.
ENTRIES, TOTAL_ENTRIES = 1 << 28, 1 << 30
#: Nodes, branches of ``If`` included.
NODES = 100_000
#: Bytes of the file itself; protobuf has the same limit.
FILE_BYTES = (1 << 31) - 1


class Room:
    """Counts what has been asked for, before it is allocated."""

    def __init__(self) -> None:
        self.computed = self.work = self.entries = self.nodes = 0
        self.own = 0

    def constant(self, place: str, shape: Sequence[int], itemsize: int, read: int = 0) -> None:
        """Room for a constant that is about to be computed.

        Args:
            place: where.
            shape, itemsize: of the constant; an item of 0 bytes if nothing is allocated for it.
            read: entries of the operands that it is computed from.

        Raises:
            CaptureError: there is none left.
        """
        self.computed += math.prod(shape) * itemsize
        self.work += read + math.prod(shape)
        if self.computed > COMPUTED_BYTES + 4 * self.own or self.work > WORK + 64 * self.own:
            raise CaptureError(
                f"{place}: a constant of shape {shown(shape)} takes what the file computes from constants over "
                f"{COMPUTED_BYTES >> 20} MiB and four times its own tensors, or its computation over {WORK} entries. "
                "No more is done for a file; store the result as an initializer."
            )

    def value(self, place: str, shape: Sequence[int]) -> None:
        """The same for a value that depends on the input."""
        entries = math.prod(shape)
        self.entries += entries
        if entries > ENTRIES or self.entries > TOTAL_ENTRIES:
            raise CaptureError(
                f"{place}: a value of shape {shown(shape)} is too large: lipcert reads files whose values have up to "
                f"{ENTRIES} entries each and {TOTAL_ENTRIES} together. Give a smaller input shape."
            )

    def node(self, place: str) -> None:
        """The same for one more node."""
        self.nodes += 1
        if self.nodes > NODES:
            raise CaptureError(f"{place}: the graph has more than {NODES} nodes; lipcert reads no larger one.")


def shown(shape: Sequence[int]) -> str:
    """A shape as text of moderate length."""
    return str(tuple(shape)) if len(shape) <= 8 else f"({', '.join(map(str, shape[:8]))}, …)"
