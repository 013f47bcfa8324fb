"""What proves that an example keeps its class: one check per method, used by the search and by ``verify`` alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lipcert.domain import Box
from lipcert.errors import CertificateError, NotProved
from lipcert.guarantee import Guarantee
from lipcert.network.graph import Network
from lipcert.numerics.process_state import ordinary
from lipcert.problem import Problem
from lipcert.ranges.build import Ranges
from lipcert.robustness.pair_constants import PairConstants, classes_of, rows_against
from lipcert.robustness.threat import Threat


@dataclass(frozen=True, eq=False)
class Claim:
    """f_label − f_k > 0 for every other class k, and all inputs that the threat allows within ``radius`` of ``x``.

    Attributes:
        x: the example, float64, of the network's ``in_shape``.
        label: its class.
        radius: positive.
    """

    x: Tensor
    label: int
    radius: float


@dataclass(frozen=True)
class Proved:
    """A lower bound of the least margin of a claim, and how sure it is."""

    margin: float
    guarantee: Guarantee


@dataclass(frozen=True, eq=False)
class Facts:
    """What all claims about one network share.

    Attributes:
        network: the model as captured, in the units of the threat.
        threat: what an adversary may do.
        constants: Lipschitz constants of pairs of outputs; None where there are none.
    """

    network: Network
    threat: Threat
    constants: PairConstants | None = None
    _problems: dict[int, Problem] = field(default_factory=dict, repr=False)

    @cached_property
    def classes(self) -> int:
        """How many there are."""
        return classes_of(self.network)

    def problem(self, claim: Claim, radius: float | None = None) -> Problem:
        """The differences f_label − f_k on a claim's domain, or on another radius, down to the point itself."""
        x = claim.x
        domain = Box(x, x) if radius == 0.0 else self.threat.domain(x, claim.radius if radius is None else radius)
        known = self._problems.get(claim.label)
        if known is not None:
            return known.on(domain)
        rows = rows_against(claim.label, self.classes)
        made = Problem(self.network, (self.threat.norm, self.threat.norm), domain, rows)
        self._problems[claim.label] = made
        return made

    @ordinary()
    def at_centre(self, claim: Claim) -> Tensor:
        """(m − 1,), lower bounds of f_label − f_k at the example itself: its values by intervals, rounding included."""
        problem = self.problem(claim, 0.0)
        low = Ranges.of(problem.unfused, problem.domain, None, "none").boxes[-1].low.reshape(-1)
        return low.nan_to_num(-math.inf)


Check = Callable[[Facts, Claim, bytes], Proved]
_CHECKS: dict[str, Check] = {}


def check_of(method: str) -> Callable[[Check], Check]:
    """Register what proves the rows of one method; a duplicate raises."""

    def register(function: Check) -> Check:
        if method in _CHECKS:
            raise ValueError(f"two checks of rows by {method!r}")
        _CHECKS[method] = function
        return function

    return register


@ordinary()
def check(method: str, facts: Facts, claim: Claim, proof: bytes = b"") -> Proved:
    """What a proof says of a claim.

    Raises:
        NotProved: not that the margin is positive.
        CertificateError: no proof of a kind that this version knows, or a damaged one.
    """
    if method not in _CHECKS:
        raise CertificateError(f"rows proved by {method!r} are unknown to this version of lipcert.")
    proved = _CHECKS[method](facts, claim, proof)
    if not proved.margin > 0.0:
        raise NotProved(f"{method} proves no positive margin, but {proved.margin:.6g}.")
    return proved


@check_of("pair_constants")
def _by_pair_constants(facts: Facts, claim: Claim, proof: bytes) -> Proved:
    """m_k(x̂) − L_k·radius > 0 for every other class k.

    Why it proves the claim: f_label − f_k is at least m_k at x̂ and changes by at most L_k ‖x − x̂‖_p on the way to x.
    """
    _require_empty(proof)
    if facts.constants is None:
        raise CertificateError("the file holds no constants of pairs of outputs.")
    if facts.constants.p != facts.threat.norm:
        raise CertificateError("the constants of pairs of outputs are for another norm.")
    return Proved(*facts.constants.margins(claim.label, facts.at_centre(claim), claim.radius))


@check_of("linear_bounds")
def _by_linear_bounds(facts: Facts, claim: Claim, proof: bytes) -> Proved:
    """The least end of every f_label − f_k on the domain, by intervals and linear bounds, made anew.

    Why it proves the claim: the ranges hold for all x of the domain, rounding included (``ranges``).
    """
    _require_empty(proof)
    problem = facts.problem(claim)
    box = Ranges.of(problem.expanded, problem.domain, None, "undecided").boxes[-1]
    least = float(box.low.nan_to_num(-math.inf).min())
    return Proved(least, "rigorous")


def _require_empty(proof: bytes) -> None:
    if proof:
        raise CertificateError("this kind of proof holds no numbers of its own.")


@ordinary()
def breaks(facts: Facts, x: Tensor, point: Tensor, label: int, distance: float) -> bool:
    """Whether a point certainly lies within ``distance`` of x, as the threat allows, and is not of class ``label``.

    Some f_k ≥ f_label there, by intervals, rounding included; membership is decided exactly.
    """
    if not math.isfinite(distance) or distance < 0 or not bool(torch.isfinite(point).all()):
        return False
    if not facts.threat.domain(x, distance).contains(point):
        return False
    problem = facts.problem(Claim(point, label, 0.0), 0.0)
    high = Ranges.of(problem.unfused, problem.domain, None, "none").boxes[-1].high
    return bool((high <= 0.0).any())
