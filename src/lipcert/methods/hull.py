"""Losses, maxima and single probabilities: as constants l_p → l_∞ of what they are means of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lipcert.certificates.base import Witness
from lipcert.certificates.quadratic import NORMS as QUADRATIC_NORMS
from lipcert.errors import MethodError
from lipcert.methods.base import Found, Method, Run, method
from lipcert.methods.lipsdp import LipSDP
from lipcert.problem import Norm, Problem


@method
@dataclass(frozen=True, kw_only=True)
class Hull(Method):
    """For functions that end in a maximum, a log-sum-exp, one entry of a softmax, or a loss made of these.

    The loss log Σ_k exp(f_k − f_y) of a network f has the largest constant of the differences f_k − f_y: one problem
    per class, solved by ``inner``.

    Attributes:
        inner: the method that bounds them, l_p → l_∞.
    """

    name: ClassVar[str] = "hull"
    norms: ClassVar[tuple[Norm, ...]] = QUADRATIC_NORMS
    summary: ClassVar[str] = "losses, maxima and single probabilities by what they are means of; one output or q = inf"

    inner: Method = LipSDP()  # noqa: RUF009 (frozen)

    def solve(self, problem: Problem, run: Run) -> Found:
        """A witness of the inner method's, for the problem inside."""
        inner = problem.inner
        if inner is None:
            raise MethodError(
                "method 'hull' is for functions that end in a maximum, log-sum-exp, softmax entry or a loss of these, "
                "with one output or q = inf; other methods: lipsdp, liplt, autolip."
            )
        self.inner.require_norm(inner.norm)
        return _wrapped(self.inner.solve(inner, run))

    def obstacle(self, problem: Problem, run: Run) -> str | None:
        """That of the inner method, for the problem inside."""
        return None if problem.inner is None else self.inner.obstacle(problem.inner, run)


def _wrapped(found: Found) -> Found:
    witness = found.witness
    own = Witness("hull", witness.arrays, {"kind": witness.kind, "settings": dict(witness.settings)})

    def weaker() -> Found | None:
        other = found.next()
        return None if other is None else _wrapped(other)

    return Found(own, weaker, found.state)
