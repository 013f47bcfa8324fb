"""How sure a number is, and the rows that explain it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Guarantee = Literal["rigorous", "probabilistic", "numerical"]

#: From the weakest to the strongest.
STRENGTH: tuple[Guarantee, ...] = ("numerical", "probabilistic", "rigorous")


def weakest(guarantees: list[Guarantee]) -> Guarantee:
    """The weakest of several guarantees; ``rigorous`` for none."""
    return min(guarantees, key=STRENGTH.index, default="rigorous")


@dataclass(frozen=True)
class BreakdownRow:
    """One step of a bound.

    Attributes:
        name: the operations of the node (``conv2d+flatten``).
        kind: ``linear``, ``activation``, ``gain``, ``selection``, or what a method's own rows are about.
        constant: what was used for the node itself.
        cumulative: the constant accumulated up to it.
        guarantee: how sure the two are.
        remark: where they come from.
        module: paths of the modules the node comes from (``features.0 + features.1``), empty if unknown.
    """

    name: str
    kind: str
    constant: float
    cumulative: float
    guarantee: Guarantee
    remark: str = ""
    module: str = ""

    @property
    def label(self) -> str:
        """Module path and operations, for tables."""
        return f"{self.module}: {self.name}" if self.module else self.name
