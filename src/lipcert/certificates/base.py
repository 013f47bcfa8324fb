"""Witness, proof and the registry of checks: what a kind of certificate needs, and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lipcert.errors import CertificateError

if TYPE_CHECKING:
    from torch import Tensor

    from lipcert.guarantee import BreakdownRow, Guarantee
    from lipcert.numerics.chance import Chance
    from lipcert.numerics.magnitude import Magnitude
    from lipcert.problem import Norm, Problem


@dataclass(frozen=True, eq=False)
class Witness:
    """What a method found: the kind of certificate, arrays and JSON-able settings. Data, never code; untrusted."""

    kind: str
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Proof:
    """What a check proved of a problem: L ≤ value, how surely, and the rows that explain it.

    ``computed``: the value is no claim that was proved but what the check's own arithmetic gave, and so differs in its
    last digits with the number of threads and the kernels of the linear algebra. ``via``: the norms between which the
    witness proves a constant, where those are others than the problem's.
    """

    value: Magnitude
    guarantee: Guarantee
    rows: tuple[BreakdownRow, ...] = ()
    computed: bool = False
    via: Norm | None = None


if TYPE_CHECKING:
    #: A check raises NotProved where the witness proves nothing, CertificateError where it is none of its kind.
    Check = Callable[[Problem, Witness, Chance], Proof]

_CHECKS: dict[str, Check] = {}


def certificate(kind: str) -> Callable[[Check], Check]:
    """Register the check of one kind of certificate; a duplicate raises."""

    def register(function: Check) -> Check:
        if kind in _CHECKS:
            raise ValueError(f"two checks for certificate kind {kind!r}")
        _CHECKS[kind] = function
        return function

    return register


def prove(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """What a witness proves, by the check of its kind.

    Args:
        problem: what the proof is about.
        witness: what a method found, or a file holds.
        chance: probability of error that may be spent, and the source of random starts.

    Raises:
        CertificateError: not a witness of a kind that this version knows.
        NotProved: the witness proves nothing.
    """
    if witness.kind not in _CHECKS:
        import_module("lipcert.certificates.kinds")  # registers every check, and none of them need know the others
    if witness.kind not in _CHECKS:
        raise CertificateError(f"certificates of kind {witness.kind!r} are unknown to this version of lipcert.")
    return _CHECKS[witness.kind](problem, witness, chance)
