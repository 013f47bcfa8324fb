"""Witness, certificate and the registry of checks. A check is the only maker of a Bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import CertificateError
from lipcert.numerics.process_state import ordinary
from lipcert.problem import Domain, Norm, Problem
from lipcert.result import Bound


@dataclass(frozen=True, eq=False)
class Witness:
    """What a method found: the kind of certificate, float64 arrays and JSON-able settings. Untrusted.

    ``fallback`` makes a more cautious witness, for when this one proves nothing. ``state`` is where the search ended,
    for a later one to start from. Neither is saved or read by a check.
    """

    kind: str
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    fallback: Callable[[], Witness | None] | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Certificate:
    """A witness with the problem it is for and the value that was proved: everything ``lipcert verify`` needs.

    Attributes:
        witness: the arrays the check reads.
        method: who found it.
        fingerprint: SHA-256 of the captured network.
        norm, domain, select: the rest of the problem.
        value, guarantee: the claim.
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


#: A check returns a Bound without method, seconds or certificate; ``check`` fills these in.
Check = Callable[[Problem, Witness, torch.Generator], Bound]

_CHECKS: dict[str, Check] = {}


def certificate(kind: str) -> Callable[[Check], Check]:
    """Register the check of one kind of certificate; a duplicate raises."""

    def register(function: Check) -> Check:
        if kind in _CHECKS:
            raise ValueError(f"two checks for certificate kind {kind!r}")
        _CHECKS[kind] = function
        return function

    return register


@ordinary()
def check(
    problem: Problem, witness: Witness, method: str, generator: torch.Generator, started: float | None = None
) -> Bound:
    """Check a witness and return the Bound it proves (the check's own value, never the method's).

    Args:
        problem: what the bound is about.
        witness: what a method found.
        method: its name, for the report.
        generator: source of the random starts of probabilistic checks.
        started: ``time.perf_counter()`` at the start of the search.

    Raises:
        CertificateError: the witness proves nothing.
    """
    from lipcert.version import __version__

    if witness.kind not in _CHECKS:
        raise CertificateError(f"certificates of kind {witness.kind!r} are unknown to this version of lipcert.")
    started = time.perf_counter() if started is None else started
    try:
        bound = _CHECKS[witness.kind](problem, witness, generator)
    except CertificateError:
        cautious = None if witness.fallback is None else witness.fallback()
        if cautious is None:
            raise
        return check(problem, cautious, method, generator, started)
    record = Certificate(
        replace(witness, fallback=None), method, problem.model.fingerprint, problem.norm, problem.domain,
        problem.select, bound.value, bound.log10, bound.guarantee, __version__,
    )  # fmt: skip
    shape, seconds = problem.model.in_shape[1:], time.perf_counter() - started
    return replace(bound, method=method, seconds=seconds, certificate=record, input_shape=shape)
