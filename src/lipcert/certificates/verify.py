"""Re-check a saved certificate against a captured model. Imports no method."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import lipcert.certificates.kinds  # noqa: F401  (registers every check)
from lipcert.certificates.bound import Certificate, check
from lipcert.certificates.file import read
from lipcert.errors import CertificateError, NotProved
from lipcert.guarantee import STRENGTH
from lipcert.numerics.chance import Chance
from lipcert.numerics.process_state import ordinary
from lipcert.problem import Problem

if TYPE_CHECKING:
    from lipcert.network.graph import Network
    from lipcert.result import Bound

#: How often a value that depends on random starts is computed before a claim counts as not reached; each time with a
#: probability of error of its own, from one budget.
TRIES = 3


@ordinary()
def verify(certificate: Certificate | str | Path, network: Network, generator: torch.Generator | None = None) -> Bound:
    """The Bound that a certificate proves for this network, recomputed.

    Args:
        certificate: a certificate or the path of one.
        network: the captured model.
        generator: random starts of probabilistic checks; None, as a verifier should have it, draws them from the
            operating system's entropy, so that nobody can prepare for it.

    Raises:
        CertificateError: unreadable, damaged, of another model, or the check does not reach the claimed value.
    """
    started = time.perf_counter()
    record = certificate if isinstance(certificate, Certificate) else read(certificate)
    if record.fingerprint != network.fingerprint:
        raise CertificateError(
            f"this certificate is for another model: it names network {record.fingerprint[:12]}…, "
            f"the model given is {network.fingerprint[:12]}…"
        )
    try:
        problem = Problem(network, record.norm, record.domain, record.select, record.anchor)
        chance = Chance(generator=generator)
        bound = check(problem, record.witness, record.method, chance, started, widen=False)
        for _ in range(TRIES - 1):
            if not chance.varies or _covers(record, bound):
                break
            bound = check(problem, record.witness, record.method, chance, started, widen=False)
    except CertificateError:
        raise
    except NotProved as reason:
        raise CertificateError(f"the certificate proves nothing: {reason}") from reason
    except Exception as error:
        raise CertificateError(f"the certificate does not fit its check: {type(error).__name__}: {error}") from error
    if not _covers(record, bound):
        raise CertificateError(
            f"the certificate claims {record.value!r} (log10 {record.log10!r}, {record.guarantee}), the check proves "
            f"only {bound.value!r} (log10 {bound.log10!r}, {bound.guarantee})."
        )
    return replace(bound, value=record.value, log10=record.log10, certificate=record)


def _covers(record: Certificate, bound: Bound) -> bool:
    """Whether what was proved now is at least as strong as the claim."""
    if record.guarantee not in STRENGTH or STRENGTH.index(bound.guarantee) < STRENGTH.index(record.guarantee):
        return False
    if record.log10 is None:  # no claim beyond the range of floats
        return bound.value <= record.value and bound.value < float("inf")
    return bound.value <= record.value and bound.log10 is not None and bound.log10 <= record.log10
