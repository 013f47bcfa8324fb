"""How a method bounds a constant between norms that are not its own: by other norms, or of the transposed network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipcert.certificates.bound import restated
from lipcert.methods.base import Method, Run
from lipcert.methods.branch_and_bound import BranchAndBound
from lipcert.methods.liplt import LipLT
from lipcert.methods.lipsdp import LipSDP
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem
from lipcert.result import Bound

INF = math.inf


@dataclass(frozen=True)
class Route:
    """By which norms (None: the problem's own), and whether it is the transposed network between their duals."""

    via: Norm | None = None
    transposed: bool = False

    def problem(self, problem: Problem) -> Problem:
        """What the method is to bound."""
        inner = problem if self.via is None else problem.between(self.via)
        return inner.transposed() if self.transposed else inner

    def bound(self, one: Method, problem: Problem, run: Run, chance: Chance) -> Bound:
        """The method's own Bound, restated for ``problem``."""
        found = one.own_bound(self.problem(problem), run, chance)
        if self.transposed:
            found = restated(found, problem if self.via is None else problem.between(self.via), None)
        return found if self.via is None else restated(found, problem, self.via)

    @property
    def remark(self) -> str:
        """For tables."""
        words = [] if self.via is None else [f"by l{self.via[0]:g} → l{self.via[1]:g}"]
        return ", ".join([*words, *(["transposed"] if self.transposed else [])])


DIRECT = Route()


def routes(one: type[Method], norm: Norm, others: bool = False) -> tuple[Route, ...]:
    """The routes of a method to a pair of norms, those first that lose least; none where another method is better.

    LipSDP bounds p = 1 by the transposed network, whose optimum is the same; 1 → ∞ by 1 → 2 and by 2 → ∞, each at no
    cost. Its relaxation obeys the order between norms, so that no further pair can serve. LipLT and branch and bound
    have equal norms only.

    Args:
        one: the method.
        norm: the pair.
        others: what may be better although the pair is the method's own.
    """
    p, q = norm
    if others:
        return tuple(Route((r, r)) for r in (2.0, INF, 1.0) if (r, r) != norm) if issubclass(one, LipLT) else ()
    if norm in one.norms:
        return (DIRECT,)
    if issubclass(one, LipSDP):
        return (Route((1.0, 2.0), True), Route((2.0, INF))) if q == INF else (Route(None, True),)
    if issubclass(one, LipLT):
        return tuple(Route((r, r)) for r in sorted({p, q, 2.0}))
    if issubclass(one, BranchAndBound):
        return (Route((2.0, 2.0)),)
    return ()
