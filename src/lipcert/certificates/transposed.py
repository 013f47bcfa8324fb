"""The certificate of a constant by that of the transposed network between the dual norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lipcert.certificates.base import Proof, Witness, certificate, prove
from lipcert.certificates.converted import inside
from lipcert.errors import CertificateError, NotProved, UnsupportedNormError

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem

#: Kinds that speak of increments alone, and so of those of the transposed network as well.
TRANSPOSABLE = ("quadratic", "loop_transform", "layer_product")


@certificate("transposed")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """L_{p,q} ≤ the bound of the transposed increments from q* to p*; ``settings``: ``kind``, ``settings`` inside.

    Why this is an upper bound: every J with δy = J δx that the increments allow is the transposed of one that the
    transposed increments allow, and ‖J‖_{p→q} = ‖Jᵀ‖_{q*→p*} (``increments/adjoint``). Kinds of witness that look at
    nothing but increments prove that all of those are bounded.
    """
    inner = inside(witness)
    if inner.kind not in TRANSPOSABLE:
        raise CertificateError(f"witnesses of kind {inner.kind!r} are not for transposed networks.")
    try:
        other = problem.transposed()
    except UnsupportedNormError as reason:
        raise NotProved(f"this network cannot be transposed: {reason}") from reason
    return prove(other, inner, chance)
