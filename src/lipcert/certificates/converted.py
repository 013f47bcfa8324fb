"""The certificate of a constant between norms by one of another kind between others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lipcert.certificates.base import Proof, Witness, certificate, prove
from lipcert.certificates.norms.conversion import NORMS, cost
from lipcert.errors import CertificateError
from lipcert.guarantee import BreakdownRow
from lipcert.network.linear import size

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Norm, Problem


@certificate("converted")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """L_{p,q} ≤ c · L_{p',q'}; ``settings``: ``via``, the pair (p', q'), ``kind`` and ``settings`` of what is inside.

    Why this is an upper bound: the inside is proved of the same network on the same domain between p' and q', and
    ‖δy‖_q ≤ c_m ‖δy‖_q' ≤ c_m L ‖δx‖_p' ≤ c_m L c_n ‖δx‖_p (``norms/conversion``), c worked out here and rounded up.
    """
    inner, via = inside(witness), _pair(witness.settings.get("via"))
    if inner.kind == "converted":
        raise CertificateError("a conversion of norms holds no conversion.")
    proof = prove(problem.between(via), inner, chance)
    factor = cost(problem.norm, via, size(problem.model.in_shape), size(problem.network.out_shape))
    value = proof.value * factor
    row = BreakdownRow(
        "change of norms", "norms", float(factor), float(value), proof.guarantee,
        f"l{problem.norm[0]:g} → l{problem.norm[1]:g} by l{via[0]:g} → l{via[1]:g}",
    )  # fmt: skip
    return Proof(value, proof.guarantee, (*proof.rows, row), proof.computed, via if via != problem.norm else None)


def wrapped(kind: str, inner: Witness, via: Norm | None = None) -> Witness:
    """A witness around another."""
    settings: dict[str, Any] = {"kind": inner.kind, "settings": dict(inner.settings)}
    if via is not None:
        settings["via"] = [p if p in (1.0, 2.0) else "inf" for p in via]
    return Witness(kind, inner.arrays, settings)


def inside(witness: Witness) -> Witness:
    """The witness that another is around.

    Raises:
        CertificateError: there is none.
    """
    kind, settings = witness.settings.get("kind"), witness.settings.get("settings")
    if not isinstance(kind, str) or not isinstance(settings, dict):
        raise CertificateError("the certificate must name the kind of witness inside and its settings.")
    return Witness(kind, witness.arrays, settings)


def _pair(value: Any) -> Norm:
    known = {1.0: 1.0, 2.0: 2.0, "inf": NORMS[2]}
    if not isinstance(value, list) or len(value) != 2 or any(isinstance(v, bool) or v not in known for v in value):
        raise CertificateError("the certificate's via must be a pair of 1, 2 and inf.")
    return known[value[0]], known[value[1]]
