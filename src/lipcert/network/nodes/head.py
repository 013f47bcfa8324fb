"""The output of an attention head, of which more is known than its parts say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipcert.network.attention_bound import Factors, Logits, attention_at, attention_factors
from lipcert.network.linear import Identity
from lipcert.network.nodes.base import Node
from lipcert.network.relations import Linear, Local, Relation
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import Range


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadNode(Node):
    """Y, the first parent, which is softmax(σ Q Kᵀ + b) V of the other three: Q, Kᵀ and V.

    Its increments are those of the first parent, and obey what ``factors`` says of the others besides.
    """

    logits: Logits

    def value(self, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
        """That of the first parent."""
        return inputs[0]

    def relation(self, position: int, local: Local | None = None) -> Relation:
        """That of the first parent."""
        return Linear(self.parents[:1], self.shape, self.name, self.origin, (Identity(self.shape),))

    def factors(self, boxes: Sequence[Interval]) -> Factors | None:
        """The closed form on boxes of Q, Kᵀ and V."""
        q, k, v = boxes
        return attention_factors((q, k, v), self.logits)

    def at(self, points: Sequence[Interval]) -> Range:
        """The attention of Q, Kᵀ and V at points."""
        q, k, v = (point.low for point in points)
        return attention_at(q, k, v, self.logits)

    def update_hash(self, digest: Any) -> None:
        """Kind, wiring and which entries are left out; the rest is told by the parents."""
        super().update_hash(digest)
        digest.update(repr(self.logits.kept is None).encode())
