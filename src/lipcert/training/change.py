"""What was gained by changing a model's parameters: certified before and after."""

from __future__ import annotations

from dataclasses import dataclass

from lipcert.markup import Shown
from lipcert.result import Bound


@dataclass(frozen=True)
class Change(Shown):
    """Parameters were changed in place.

    Attributes:
        before, after: Bounds of the model's constant, by the same method.
        factor: what outputs were multiplied by.
        removed: neurons or channels that did nothing and whose weights are 0 now.
    """

    before: Bound
    after: Bound
    factor: float = 1.0
    removed: int = 0

    def __str__(self) -> str:
        lines = [f"before: {self.before}", f"after:  {self.after}"]
        if self.factor != 1.0:
            lines.append(f"outputs are {self.factor:.6g} times what they were")
        if self.removed:
            lines.append(f"{self.removed} dead neurons are zero now")
        return "\n".join(lines)
