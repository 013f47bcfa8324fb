"""What bounds that are derived from others have in common: a number, where it holds, how sure it is, how it prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from lipcert.domain import Domain
from lipcert.guarantee import Guarantee
from lipcert.markup import Shown
from lipcert.result import place


@dataclass(frozen=True, eq=False)
class Derived(Shown):
    """A number that is proved of a network between one norm and itself, from Bounds of parts of it.

    It has no certificate file of its own: what it is derived from has (``Bound.save``).

    Attributes:
        value: what is proved; of which side is the subclass's to say.
        guarantee: as of a ``Bound``: the weakest of those behind it.
        norm: p, on both sides.
        domain: where it holds (None: everywhere).
        delta: probability of error; 0 if rigorous.
        seconds: wall time.
    """

    #: What the value is, with its sign of order.
    claim: ClassVar[str]

    value: float
    guarantee: Guarantee
    norm: float
    domain: Domain = None
    delta: float = field(default=0.0, kw_only=True)
    seconds: float = field(default=0.0, kw_only=True)

    @property
    def norms(self) -> str:
        """For print."""
        return f"l{self.norm:g}"

    @property
    def origin(self) -> str:
        """How it was found, for print; nothing if there is one way only."""
        return ""

    def __str__(self) -> str:
        how = ", ".join(word for word in (self.guarantee, self.origin, f"{self.seconds:.2f} s") if word)
        return f"{self.claim} {self.value:.7g}  ({self.norms}, {place(self.domain)}; {how})"
