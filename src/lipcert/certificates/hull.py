"""The certificate of a function that ends in a mean: one of the l_p → l_∞ constant of what the mean is of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lipcert.certificates.base import Proof, Witness, certificate, prove
from lipcert.errors import CertificateError
from lipcert.guarantee import BreakdownRow

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem


@certificate("hull")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """L_{p,q}(f) ≤ L_{p,∞}(g), or L_{p,2}(g) for distances, for f of one output or q = ∞.

    ``witness.arrays`` are those of a certificate for ``problem.inner``, ``settings["kind"]`` and ``["settings"]`` its
    kind and settings.

    Why this is an upper bound: for every pair of points of the domain |δf_i| ≤ max over k of |δg_k|, or ‖δg‖₂
    (``ranges/hull.py``), and in one dimension all norms are the same.
    """
    inner = problem.inner
    kind, settings = witness.settings.get("kind"), witness.settings.get("settings")
    if inner is None:
        raise CertificateError("the certificate is for a function that ends in a mean, which this one does not.")
    if not isinstance(kind, str) or not isinstance(settings, dict):
        raise CertificateError("the certificate must name the kind and the settings of the one that it holds.")
    proof = prove(inner, Witness(kind, witness.arrays, settings), chance)
    value = float(proof.value)
    count = inner.model.nodes[-1].shape[-1]
    remark = f"each output a mean of {count} or fewer, counted one by one"
    return replace(proof, rows=(*proof.rows, BreakdownRow("mean", "gain", 1.0, value, proof.guarantee, remark)))
