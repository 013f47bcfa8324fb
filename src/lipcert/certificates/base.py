"""Witness, proof, certificate and the registry of checks. A check proves; one line here makes a Bound of its proof."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lipcert.errors import CertificateError
from lipcert.numerics.chance import Chance
from lipcert.numerics.magnitude import Magnitude
from lipcert.numerics.process_state import ordinary
from lipcert.problem import Domain, Norm, Problem
from lipcert.result import Bound, BreakdownRow, Guarantee


@dataclass(frozen=True, eq=False)
class Witness:
    """What a method found: the kind of certificate, arrays and JSON-able settings. Data, never code; untrusted."""

    kind: str
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Proof:
    """What a check proved of a problem: L ≤ value, how surely, and the rows that explain it."""

    value: Magnitude
    guarantee: Guarantee
    rows: tuple[BreakdownRow, ...] = ()


@dataclass(frozen=True, eq=False)
class Certificate:
    """A witness with the problem it is for and the value that was proved: everything ``lipcert verify`` needs.

    Attributes:
        witness: the arrays the check reads.
        method: who found it.
        fingerprint: SHA-256 of the captured network.
        norm, domain, select: the rest of the problem.
        value, log10, guarantee: the claim.
        version: lipcert's version.
    """

    witness: Witness
    method: str
    fingerprint: str
    norm: Norm
    domain: Domain
    select: Tensor | None
    value: float
    log10: float | None
    guarantee: str
    version: str

    @property
    def kind(self) -> str:
        """The kind of certificate."""
        return self.witness.kind

    def save(self, path: str | Path) -> None:
        """Write the file; see ``certificates.file``."""
        from lipcert.certificates.file import save

        save(self, path)


#: A check raises NotProved where the witness proves nothing, and CertificateError where it is no witness of its kind.
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
        raise CertificateError(f"certificates of kind {witness.kind!r} are unknown to this version of lipcert.")
    return _CHECKS[witness.kind](problem, witness, chance)


#: What a value that depends on random starts is widened by, so that other starts prove it, too.
ROOM = Magnitude.of(1.0 + 2.0**-13)


@ordinary()
def check(
    problem: Problem, witness: Witness, method: str, chance: Chance, started: float | None = None, widen: bool = True
) -> Bound:
    """The Bound that a witness proves (the check's own value, never the method's).

    Args:
        problem: what the bound is about.
        witness: what a method found.
        method: its name, for the report.
        chance: probability of error that may be spent; all that was spent of it, by earlier attempts too, is the
            Bound's ``delta``, unless it is rigorous.
        started: ``time.perf_counter()`` at the start of the search.
        widen: whether a value that depends on random starts is given ``ROOM``; not where it is only compared.

    Raises:
        CertificateError, NotProved: as ``prove``.
    """
    from lipcert.version import __version__

    started = time.perf_counter() if started is None else started
    chance.varies = False
    proof = prove(problem, witness, chance)
    proved = proof.value * ROOM if widen and chance.varies and proof.guarantee != "rigorous" else proof.value
    value, log10 = float(proved), proved.log10
    record = Certificate(
        witness, method, problem.model.fingerprint, problem.norm, problem.domain, problem.select, value, log10,
        proof.guarantee, __version__,
    )  # fmt: skip
    return Bound(
        value, proof.guarantee, method, problem.norm, problem.domain, time.perf_counter() - started, record, proof.rows,
        log10, delta=0.0 if proof.guarantee == "rigorous" else chance.spent, select=problem.select,
        input_shape=problem.model.in_shape[1:],
    )  # fmt: skip
