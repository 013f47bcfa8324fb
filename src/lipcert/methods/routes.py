"""How a method bounds a constant between norms that are not its own: by other norms, or of the transposed network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipcert.certificates.bound import restated
from lipcert.errors import UnsupportedNormError
from lipcert.methods.base import Method, Run
from lipcert.methods.branch_and_bound import BranchAndBound
from lipcert.methods.hull import Hull
from lipcert.methods.liplt import LipLT
from lipcert.methods.lipsdp import LipSDP
from lipcert.network.linear import size
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem
from lipcert.result import Bound

INF = math.inf
#: Forms that LipSDP is given on a transposed network, which has one for each input.
MOST_INPUTS = 100


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

    def obstacle(self, one: Method, problem: Problem, run: Run) -> str | None:
        """Why the method would not fit the budget; None if it may."""
        if self.transposed and size(problem.model.in_shape) > MOST_INPUTS:
            return f"the transposed network takes a form for each input, which is worth it for up to {MOST_INPUTS}"
        try:
            return one.obstacle(self.problem(problem), run)
        except UnsupportedNormError as reason:  # no transposed
            return str(reason)

    @property
    def remark(self) -> str:
        """For tables."""
        words = [] if self.via is None else [f"by l{self.via[0]:g} → l{self.via[1]:g}"]
        return ", ".join([*words, *(["transposed"] if self.transposed else [])])


DIRECT = Route()


def routes(one: type[Method], norm: Norm, others: bool = False, large: bool = False) -> tuple[Route, ...]:
    """The routes of a method to a pair of norms, those first that lose least; none where another method is better.

    LipSDP and ``hull`` bound p = 1 by p = 2, at no cost, LipSDP also by the transposed network, a form for every input,
    and 1 → ∞ by that of 1 → 2. Its relaxation obeys the order between norms, so that no further pair can serve, but for
    q = ∞, which takes a form for every output, q = 2 may be all that there is time for. LipLT and branch and bound have
    equal norms only.

    Args:
        one: the method.
        norm: the pair.
        others: what may be better although the pair is the method's own.
        large: whether many forms may take more than there is.
    """
    p, q = norm
    if others:
        return tuple(Route((r, r)) for r in (2.0, INF, 1.0) if (r, r) != norm) if issubclass(one, LipLT) else ()
    if issubclass(one, LipSDP) and q == INF and large:
        first = (Route((max(p, 2.0), 2.0)),)
        return first + routes(one, norm)
    if norm in one.norms:
        return (DIRECT,)
    if issubclass(one, Hull):
        return (Route((2.0, q)),)
    if issubclass(one, LipSDP):
        return Route((2.0, q)), Route((1.0, 2.0) if q == INF else None, True)
    if issubclass(one, LipLT):
        return tuple(Route((r, r)) for r in sorted({p, q, 2.0}))
    if issubclass(one, BranchAndBound):
        return (Route((2.0, 2.0)),)
    return ()
