"""The automatic choice: cheap bounds first, LipSDP with the time that is left, the best Bound returned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lipcert.certificates.quadratic import NORMS as QUADRATIC_NORMS
from lipcert.errors import LipcertError
from lipcert.methods.base import EQUAL_NORMS, Found, Method, Run, fork, method, registered
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem
from lipcert.result import Attempt, Bound

#: Share of the budget that each method before the last may use.
EARLY_SHARE = 0.05


@method
@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """Tries methods from cheap to tight within the budget and returns the best Bound, with a table of what was tried.

    Attributes:
        plan: names of the methods to try, in order; those that cannot do the norms are skipped.
    """

    name: ClassVar[str] = "auto"
    norms: ClassVar[tuple[Norm, ...]] = (*EQUAL_NORMS, *(n for n in QUADRATIC_NORMS if n not in EQUAL_NORMS))
    summary: ClassVar[str] = "the best of autolip, liplt and lipsdp within budget= seconds; the default"

    plan: tuple[str, ...] = ("autolip", "liplt", "lipsdp")

    def solve(self, problem: Problem, run: Run) -> Found:
        """The witness of the best bound."""
        best = self.bound(problem, run, Chance())
        return Found(best.certificate.witness, state=best.state)  # type: ignore[union-attr]

    def bound(self, problem: Problem, run: Run, chance: Chance) -> Bound:
        """The best Bound of the plan; raises the first method's error if none gave one."""
        self.require_norm(problem.norm)
        kinds = registered()
        chosen = [kinds[name]() for name in self.plan if name in kinds and problem.norm in kinds[name].norms]
        bounds, attempts, failures = attempt(chosen, problem, run, chance, EARLY_SHARE)
        if not bounds:
            raise failures[0] if failures else self.impossible(problem.norm)
        best = min(bounds, key=lambda b: (b.value, -(b.log10 or 0.0) if b.log10 is None else b.log10))
        delta = 0.0 if best.guarantee == "rigorous" else chance.spent
        return replace(best, seconds=time.perf_counter() - run.started, tried=tuple(attempts), delta=delta)


def attempt(
    methods: Sequence[Method], problem: Problem, run: Run, chance: Chance, early_share: float = 1.0
) -> tuple[list[Bound], list[Attempt], list[LipcertError]]:
    """Run methods one after the other; a method that fails or would not fit the budget leaves a remark.

    All but the last are told to use at most ``early_share`` of the budget; all draw from the same ``chance``.
    """
    bounds: list[Bound] = []
    attempts: list[Attempt] = []
    failures: list[LipcertError] = []
    for one in methods:
        began = time.perf_counter()
        run.report(0.0, one.name)
        own = fork(run, 1.0 if one is methods[-1] else early_share)
        obstacle = one.obstacle(problem, own) if bounds else None
        if obstacle is not None:
            attempts.append(Attempt(one.name, None, None, time.perf_counter() - began, obstacle))
            continue
        try:
            bound = one.bound(problem, own, chance)
        except LipcertError as problem_met:
            failures.append(problem_met)
            attempts.append(Attempt(one.name, None, None, time.perf_counter() - began, str(problem_met)))
            continue
        bounds.append(bound)
        attempts.append(Attempt(one.name, bound.value, bound.guarantee, time.perf_counter() - began))
    return bounds, attempts, failures
