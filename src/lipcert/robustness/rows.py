"""One row per example: what was claimed of it, and what proves the claim."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from lipcert.errors import NumericsError, StoreError
from lipcert.guarantee import Guarantee

Status = Literal["certified", "attacked", "open", "wrong"]


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        index: its place among the inputs.
        label, predicted: its class, and the one the network gives it; with ``arithmetic="float32"`` the model as run.
        status: ``wrong``: the two differ. Else, at the radius asked (the largest of several): ``certified``, no
            perturbed input of that radius changes the class; ``attacked``, one was found that does; ``open``, neither.
            Where the largest radius was looked for: ``certified`` if there is any, else as before.
        certified_radius: no input within it, nor in any smaller distance, changes the class; 0 where nothing is proved.
        attacked_radius: the distance of the nearest counter-example found, rounded up; 0 for ``wrong``, inf for none.
            Counter-examples are of the network in real arithmetic.
        margin: a lower bound of f_label − f_k over all other classes k and all inputs within the certified radius.
            Positive where that is; where it is 0, a lower bound of the margin at the example itself in real arithmetic,
            −inf where none is known, and never positive for ``wrong``.
        method: what proved the certified radius; where that is 0: ``attack`` if a counter-example was found, ``clean``
            for ``wrong``, else ``none``.
        guarantee: how sure the certified radius is; None where there is none.
        seconds: spent on the example; of what a batch shares, its part.
    """

    index: int
    label: int
    predicted: int
    status: Status
    certified_radius: float
    attacked_radius: float
    margin: float
    method: str
    guarantee: Guarantee | None
    seconds: float

    def __post_init__(self) -> None:
        for name in _NUMBERS:  # a database gives back 0 for −0, and the hash is over what it gives back
            if isinstance(value := getattr(self, name), float):  # what a file holds may be anything
                object.__setattr__(self, name, value + 0.0)

    def status_at(self, radius: float) -> Status:
        """The same question at another radius."""
        if self.predicted != self.label:
            return "wrong"
        if self.certified_radius >= radius and self.certified_radius > 0.0:
            return "certified"
        return "attacked" if self.attacked_radius <= radius else "open"

    def to_json(self) -> dict[str, Any]:
        """With numbers that JSON can hold."""
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


_NUMBERS = ("certified_radius", "attacked_radius", "margin", "seconds")
ROW_FIELDS = tuple(f.name for f in fields(Row))


@dataclass(frozen=True, eq=False)
class Decision:
    """A row with its evidence.

    Attributes:
        row: the claim.
        proof: what ``checks.recheck`` needs beside the example, as bytes; None where nothing is certified.
        example: the input itself, float64 bytes; None where there is neither a certificate nor a counter-example.
        counter: the counter-example, float64 bytes, or None.
    """

    row: Row
    proof: bytes | None = field(default=None, repr=False)
    example: bytes | None = field(default=None, repr=False)
    counter: bytes | None = field(default=None, repr=False)

    @property
    def sha256(self) -> str:
        """Over all of it."""
        digest = hashlib.sha256(json.dumps(self.row.to_json(), sort_keys=True).encode())
        for part in (self.proof, self.example, self.counter):
            digest.update(b"-" if part is None else b"+" + len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    def joined(self, other: Decision, top: float) -> Decision:
        """Of two of one example the larger certified radius and the nearer counter-example; ``top``: that asked for.

        Raises:
            StoreError: another class is predicted than before.
            NumericsError: the two contradict each other.
        """
        seconds = self.row.seconds + other.row.seconds
        if self.row.predicted != other.row.predicted:
            if self.row.certified_radius > 0.0:
                raise StoreError(
                    f"example {self.row.index} was given class {self.row.predicted} when the file was written, and is "
                    f"given class {other.row.predicted} now: another machine, or another version of torch, computes "
                    "otherwise. Give another file with resume=."
                )
            return replace(other, row=replace(other.row, seconds=seconds))
        sure = max(self, other, key=lambda decision: decision.row.certified_radius)
        near = min(self, other, key=lambda decision: decision.row.attacked_radius)
        certified, attacked = sure.row.certified_radius, near.row.attacked_radius
        if certified > 0.0 and attacked <= certified:
            raise NumericsError(
                f"example {self.row.index} was certified up to {certified:.9g}, and a counter-example was found at "
                f"{attacked:.9g}. Unless somebody changed the file, this is a bug in lipcert: please report it."
            )
        row = replace(sure.row if certified > 0.0 else near.row, attacked_radius=attacked, seconds=seconds)
        row = replace(row, status=row.status_at(top))
        return Decision(row, sure.proof, sure.example if sure.example is not None else near.example, near.counter)
