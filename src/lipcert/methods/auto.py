"""The automatic choice: what is at hand at once, then LipSDP with the time there is, the best Bound returned."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from lipcert.certificates import joint_transform
from lipcert.errors import CaptureError, LipcertError
from lipcert.methods.autolip import AutoLip
from lipcert.methods.base import ALL_NORMS, Found, Method, Run, fork, method, registered
from lipcert.methods.from_below import hopeless, may_be_below
from lipcert.methods.hand_over import closed
from lipcert.methods.hull import Hull
from lipcert.methods.interval_jacobian import IntervalJacobian
from lipcert.methods.joint_cost import alone
from lipcert.methods.liplt import LipLT
from lipcert.methods.lipsdp import LipSDP, dense_seconds_of
from lipcert.methods.mixed_product import MixedProduct
from lipcert.methods.routes import DIRECT, Route, routes
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem
from lipcert.result import Attempt, Bound

#: Share of the budget that a method before LipSDP may use, so that a bound is at hand; seconds that nobody grudges.
EARLY_SHARE, EARLY_SECONDS = 0.05, 0.5

#: Networks with at most this many neurons are handed to branch and bound, for this share of the budget.
TINY, TINY_SHARE = 150, 0.1
#: Up to so many neurons what other pairs of norms imply is looked at.
SMALL = 2_000

#: Bounds above this are of no use, so that others may as well be less.
EXPLODED = 1e12

#: Share of what is left of the budget for functions that end in a mean, before the methods that do not see that.
INNER_SHARE = 0.7
#: The same for LipLT where it works out ranges as it goes.
JOINT_SHARE = 0.7

#: The main methods' share of what is left, where others between the norms asked for were too dear to come first.
LATE_SHARE = 0.7


@method
@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """Tries methods from cheap to tight and returns the best Bound within the budget, checks included.

    First ``early``, in a small share of the budget each, so that a bound is at hand; then ``main`` with what is left;
    then, where the main ones gave nothing better, the early ones again with the seconds that remain. What ends in a
    loss or a maximum is bounded by what that is a mean of (``hull``) before the main ones. Tiny networks go
    to ``last`` for some seconds. A bound by passes that is the one to be returned is made rigorous, and by LipSDP
    tighter, if there is time. Where LipLT works out ranges as it goes the early ones have most of the time, and on wide
    networks it is the only one. On a domain where LipSDP is as quick as the early ones it comes first, and these only
    where they might be below it; where f is affine there, AutoLip is exact and enough; where the main ones prove
    nothing, they are asked for what holds everywhere, and so they are where a sine and a cosine share a multiplier on
    the whole space that they have not on parts of it.

    Between other norms than l2 → l2 ``wide`` come first, or, where they take more than a small share of the budget,
    after the main ones; methods that cannot do the norms themselves bound the constant by others (``methods/routes``).
    At the end, for the price of an early method each and on networks that are not large, all that another pair of norms
    implies: so no pair is worse than what the others say.

    Attributes:
        early, main, last, wide: names of methods.
    """

    name: ClassVar[str] = "auto"
    norms: ClassVar[tuple[Norm, ...]] = ALL_NORMS
    summary: ClassVar[str] = "the best of autolip, liplt, lipsdp and more within budget= seconds; the default"

    early: tuple[str, ...] = ("autolip", "liplt")
    main: tuple[str, ...] = ("lipsdp",)
    last: tuple[str, ...] = ("branch_and_bound",)
    wide: tuple[str, ...] = (MixedProduct.name, IntervalJacobian.name)

    def solve(self, problem: Problem, run: Run) -> Found:
        """The witness of the best bound."""
        best = self.own_bound(problem, run, Chance())
        return Found(best.certificate.witness, state=best.state)  # type: ignore[union-attr]

    def own_bound(self, problem: Problem, run: Run, chance: Chance) -> Bound:
        """The best Bound of the plan; raises the first method's error if none gave one."""
        self.require_norm(problem.norm)
        trials = Trials(problem, replace(run, checked=True), chance)
        trials.guarded(lambda: self._plan(problem, trials))
        return trials.result(self)

    def _plan(self, problem: Problem, trials: Trials) -> None:
        run, plain = trials.run, problem.norm == (2.0, 2.0)
        joint = joint_transform.applies(problem)
        if joint and alone(problem) and LipLT.name in self.early and LipLT().obstacle(problem, run) is None:
            self._attempt((LipLT.name,), trials, run.left)  # nothing else is of use, and even its ranges take long
            if trials.best is not None and trials.best.value < EXPLODED:
                return
            if trials.best is not None:
                self._attempt((AutoLip.name,), trials, run.left)
                return
        if _affine(problem) and self._attempt((AutoLip.name,), trials, run.left) and _exact(trials.best):
            return
        few = max(EARLY_SECONDS, EARLY_SHARE * run.budget)
        early = max(few, JOINT_SHARE * run.left) if joint else few
        soon = LipSDP.name in self.main and _soon(problem, few)
        skipped = [] if plain else [name for name in self.wide if not self._attempt((name,), trials, few, spare=True)]
        if not soon:
            self._attempt(self.early, trials, early, spare=not plain)
        if trials.best is None and not plain:  # something is at hand before LipSDP has what is left
            trials.attempt(AutoLip(), few, route=DIRECT if problem.norm in AutoLip.norms else Route((2.0, 2.0)))
        if problem.inner is not None:
            self._attempt((Hull.name,), trials, INNER_SHARE * run.left)
        before = trials.best
        self._attempt(self.main, trials, run.left * (LATE_SHARE if skipped else 1.0))
        found = trials.best
        for name in skipped:
            self._attempt((name,), trials, run.left, spare=True)
        if soon and (joint or not _settled(problem, found)):
            self._attempt(self.early, trials, early)
            before = before if trials.best is found else trials.best
        if (trials.best is before or problem.has_waves) and problem.domain is not None:
            with suppress(CaptureError):  # it may have no constant everywhere
                trials.problem = problem.on(None)  # what holds everywhere holds there, and may be at hand sooner
                self._attempt(self.main, trials, math.inf)
            trials.problem = problem
        if trials.best is None or (trials.best is before and plain):
            self._attempt(self.early, trials, math.inf)
        elif _neurons(problem) <= TINY:
            self._attempt(self.last, trials, max(EARLY_SECONDS, TINY_SHARE * run.budget))
        self._secure(problem, trials)
        if trials.best is None or _neurons(problem) <= SMALL:
            self._implied(trials, few)

    def _secure(self, problem: Problem, trials: Trials) -> None:
        """A bound by passes is made rigorous, and by LipSDP tighter, where there is time."""
        best, run = trials.best, trials.run
        if best is None or best.guarantee != "probabilistic":
            return
        if best.method == MixedProduct.name and run.left > 2.0 * best.seconds:
            trials.attempt(MixedProduct(), 0.9 * run.left, rigorous=True)
        if problem.norm not in LipSDP.norms or best.via is not None:
            return
        if best.method == LipSDP.name and dense_seconds_of(problem) is not None:
            trials.attempt(LipSDP(route="dense", start=best if best.state else None), run.left)
        if best.method == AutoLip.name and run.left > 2.0 * best.seconds:
            trials.attempt(AutoLip(), 0.9 * run.left, rigorous=True)

    def _attempt(self, names: Sequence[str], trials: Trials, seconds: float, spare: bool = False) -> bool:
        """Try methods by all their routes to the norms, each for so many seconds or what is left; whether any began.

        With ``spare`` one that does not fit is left out even where there is no bound yet.
        """
        kinds, norm, large = registered(), trials.problem.norm, _neurons(trials.problem) > TINY
        able = [
            (kinds[name](), route)
            for name in names
            if name in kinds
            for route in routes(kinds[name], norm, large=large)
        ]
        begun = [trials.attempt(one, seconds, route=route, spare=spare) for one, route in able]
        return any(begun)

    def _implied(self, trials: Trials, seconds: float) -> None:
        """What other pairs of norms imply of this one, where it is at hand and may be better."""
        kinds, norm = registered(), trials.problem.norm
        if trials.best is None or norm == (2.0, 2.0):
            self._attempt(self.wide, trials, seconds)
        for name in self.early:
            for route in routes(kinds[name], norm, others=True) if name in kinds and norm[0] == norm[1] else ():
                if trials.best is None or may_be_below(trials.best.value, trials.problem, route.via):
                    trials.attempt(kinds[name](), seconds, route=route)
        each: Norm = max(norm[0], 2.0), math.inf  # what ends in means is bounded output by output
        if norm[1] != math.inf and trials.problem.inner is None and trials.problem.between(each).inner is not None:
            trials.attempt(Hull(), seconds, route=Route(each))


@dataclass(eq=False)
class Trials:
    """Methods run one after the other on one problem, with one budget and one ``chance``."""

    problem: Problem
    run: Run
    chance: Chance
    best: Bound | None = None
    attempts: list[Attempt] = field(default_factory=list)
    failures: list[LipcertError] = field(default_factory=list)
    current: str = ""

    def guarded(self, work: Callable[[], None]) -> None:
        """Run ``work``; Ctrl-C ends it quietly once there is a bound, and is an interrupt like any other before."""
        began = time.perf_counter()
        try:
            work()
        except KeyboardInterrupt:
            if self.best is None:
                raise
            self.attempts.append(Attempt(self.current, None, None, time.perf_counter() - began, "interrupted"))

    def attempt(
        self, one: Method, seconds: float, rigorous: bool = False, route: Route = DIRECT, spare: bool = False
    ) -> bool:
        """Run a method for about so many seconds; one that fails, or has no time, leaves a remark.

        Whether it began: where there is no bound yet it does, unless ``spare``.
        """
        began = time.perf_counter()
        self.current = one.name
        self.run.report(0.0, one.name)
        own = replace(fork(self.run), budget=max(0.0, min(seconds, self.run.left)), generator=self._numbers(one))
        own = replace(own, rigorous=own.rigorous or rigorous, spare=self.best is not None)
        obstacle = route.obstacle(one, self.problem, own) if self.best is not None or spare else None
        if obstacle is not None:
            self.attempts.append(Attempt(one.name, None, None, time.perf_counter() - began, obstacle))
            return False
        try:
            bound = route.bound(one, self.problem, own, self.chance)
        except LipcertError as reason:
            self.failures.append(reason)
            self.attempts.append(Attempt(one.name, None, None, time.perf_counter() - began, str(reason)))
            return True
        remark = route.remark
        if self.run.rigorous and bound.guarantee != "rigorous":
            remark = "not rigorous, so not returned"
        elif self.best is None or _size(bound) <= _size(self.best):
            self.best = bound
        self.attempts.append(Attempt(one.name, bound.value, bound.guarantee, time.perf_counter() - began, remark))
        return True

    def _numbers(self, one: Method) -> torch.Generator:
        """Random numbers of a method, whatever ran before it: what other norms imply is then what they find."""
        seed = self.run.generator.initial_seed() + zlib.crc32(one.name.encode())
        return torch.Generator().manual_seed(seed % 2**63)

    def result(self, asked: Method) -> Bound:
        """The best Bound with the table of what was tried.

        Raises:
            LipcertError: no method gave one.
        """
        if self.best is None:
            raise self.failures[0] if self.failures else asked.impossible(self.problem.norm)
        delta = 0.0 if self.best.guarantee == "rigorous" else self.chance.spent
        seconds = time.perf_counter() - self.run.started
        return replace(self.best, seconds=seconds, tried=tuple(self.attempts), delta=delta)


def _affine(problem: Problem) -> bool:
    """Whether no slope is free on the domain, so that f is one linear map and an offset."""
    return problem.domain is not None and not problem.merged_increments.cells


def _exact(bound: Bound | None) -> bool:
    """Whether AutoLip's norms are those of written matrices, which are proved to the last digits."""
    if bound is None or bound.guarantee != "rigorous" or bound.certificate is None:
        return False
    return all(route == "written" for route in bound.certificate.witness.settings.get("routes", ["unknown"]))


def _soon(problem: Problem, seconds: float) -> bool:
    """Whether LipSDP on the domain takes no longer than other methods may before it, which it then makes useless."""
    if problem.domain is None or problem.norm != (2.0, 2.0) or not problem.expanded_increments.cells:
        return False
    needed = dense_seconds_of(problem)
    return needed is not None and needed <= seconds


def _settled(problem: Problem, bound: Bound | None) -> bool:
    """Whether LipSDP has closed its gap and neither LipLT nor AutoLip can be below what it proved."""
    if bound is None or bound.method != LipSDP.name or not closed(bound, LipSDP().tolerance, problem):
        return False
    views = [problem.increments, *([problem.blocked_increments] if problem.has_twins else [])]
    return all(hopeless(bound.value, view) for view in views)


def _size(bound: Bound) -> tuple[float, float]:
    """For comparison: the value, and its logarithm where that over- or underflows."""
    return bound.value, -math.inf if bound.log10 is None else bound.log10


def _neurons(problem: Problem) -> int:
    return sum(cell.size for cell in problem.expanded_increments.cells)
