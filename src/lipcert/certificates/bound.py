"""The one line that makes a Bound of a proof, and the certificate that goes with it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lipcert.certificates.base import prove
from lipcert.certificates.converted import wrapped
from lipcert.certificates.norms.conversion import cost
from lipcert.guarantee import BreakdownRow
from lipcert.network.linear import size
from lipcert.numerics.magnitude import ONE, Magnitude
from lipcert.numerics.process_state import ordinary
from lipcert.result import Bound
from lipcert.version import __version__

if TYPE_CHECKING:
    from lipcert.certificates.base import Witness
    from lipcert.domain import Domain
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Norm, Problem


@dataclass(frozen=True, eq=False)
class Certificate:
    """A witness with the problem it is for and the value that was proved: everything ``lipcert verify`` needs.

    Attributes:
        witness: the arrays the check reads.
        method: who found it.
        fingerprint: SHA-256 of the captured network.
        norm, domain, select, anchor: the rest of the problem.
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
    anchor: Tensor | None = None

    @property
    def kind(self) -> str:
        """The kind of certificate."""
        return self.witness.kind

    def save(self, path: str | Path) -> None:
        """Write the file; see ``certificates.file``."""
        from lipcert.certificates.file import save

        save(self, path)


#: What a value that depends on random starts is widened by, so that other starts prove it, too.
ROOM = Magnitude.of(1.0 + 2.0**-13)
#: What a value that the check computed is widened by, so that other machines prove it, too.
ROUNDING_ROOM = Magnitude.of(1.0 + 2.0**-40)


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
        widen: whether a value that depends on random starts, or on the machine, is given room; not where compared.

    Raises:
        CertificateError, NotProved: as ``prove``.
    """
    started = time.perf_counter() if started is None else started
    chance.varies = False
    proof = prove(problem, witness, chance)
    proved = proof.value
    if widen and chance.varies and proof.guarantee != "rigorous":
        proved = proved * ROOM
    elif widen and proof.computed:
        proved = proved * ROUNDING_ROOM
    value, log10 = float(proved), proved.log10
    record = Certificate(
        witness, method, problem.model.fingerprint, problem.norm, problem.domain, problem.select, value, log10,
        proof.guarantee, __version__, problem.anchor,
    )  # fmt: skip
    return Bound(
        value, proof.guarantee, method, problem.norm, problem.domain, time.perf_counter() - started, record, proof.rows,
        log10, delta=0.0 if proof.guarantee == "rigorous" else chance.spent, select=problem.select,
        anchor=problem.anchor, input_shape=problem.model.in_shape[1:], via=proof.via,
    )  # fmt: skip


def restated(bound: Bound, problem: Problem, via: Norm | None) -> Bound:
    """What a Bound between other norms, or of the transposed problem, says of ``problem``; its check is not run again.

    Args:
        bound: of ``problem.between(via)``, or where ``via`` is None of ``problem.transposed()``.
        problem: what the result is about.
        via: the norms of ``bound``.
    """
    assert bound.certificate is not None
    n, m = size(problem.model.in_shape), size(problem.network.out_shape)
    factor = ONE if via is None else cost(problem.norm, via, n, m)
    rows, value, log10 = bound.breakdown, bound.value, bound.log10
    if factor != ONE and 0.0 < value < math.inf:
        whole = Magnitude.of(value) * factor
        value, log10 = float(whole), whole.log10
    elif factor != ONE and value > 0.0 and log10 is not None:
        log10 = math.nextafter(log10 + factor.log10, math.inf)
    witness = wrapped("transposed" if via is None else "converted", bound.certificate.witness, via)
    record = Certificate(
        witness, bound.method, problem.model.fingerprint, problem.norm, problem.domain, problem.select, value, log10,
        bound.guarantee, __version__, problem.anchor,
    )  # fmt: skip
    if via is not None:
        remark = f"l{problem.norm[0]:g} → l{problem.norm[1]:g} by l{via[0]:g} → l{via[1]:g}"
        rows = (*rows, BreakdownRow("change of norms", "norms", float(factor), value, bound.guarantee, remark))
    return replace(
        bound, value=value, log10=log10, norm=problem.norm, certificate=record, breakdown=rows, select=problem.select,
        via=via, state={},
    )  # fmt: skip
