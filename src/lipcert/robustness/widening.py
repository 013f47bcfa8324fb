"""The largest radius at which every margin of an example is positive: multipliers and radius rise together."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lipcert.domain import Ball, Intersection
from lipcert.errors import NotProved
from lipcert.numerics.process_state import ordinary
from lipcert.robustness.checks import Claim, Facts, Part, write_proof
from lipcert.robustness.forest import entries_of
from lipcert.robustness.outputs import deep, norms_of, precise_enough, together
from lipcert.robustness.provers import Asked, CostToGo, Proof, joined_parts, seconds_of_linear_bounds, stretched
from lipcert.robustness.reach import VALUES, Ranges, Rows
from lipcert.robustness.schedule import BELOW, FARTHEST
from lipcert.search.cost_to_go.ascent import first_variables
from lipcert.search.cost_to_go.leaves import together as all_of
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.settings import Settings, progress
from lipcert.search.cost_to_go.variables import Variables

#: Steps of the ascent between two looks at the radii; looks within which a radius must grow by a share, or the search
#: goes on to a later part, by so much.
EVERY, LOOKS, GAIN, SKIP = 10, 4, 0.01, 0.15
#: Growth since the end of the search was reached for which it goes on once more, from this part on.
WORTH, AGAIN = 1.03, 0.5
#: Part of the time of the search that proofs may take after it, but for the first of each example.
CHECKS = 0.5
#: At which multiple of the radius that is reached the ascent climbs, at first and at the end: by then multipliers for
#: far larger balls than what is reached would be no good, and at first those for what is reached will have to change.
WIDE, OVER = 2.0, 1.05
#: Classes whose radii are within this factor of an example's least are raised; ranges are made anew beyond this one.
BEHIND, STALE = 1.03, 1.2
#: Part of the distance of the nearest counter-example that is tried first, how often a start is made anew where this
#: was too far by a factor, and how many values it may take to see that.
FIRST, STARTS, STRIDES, FAR = 0.25, 3, 2.0, 8
#: Factor between certified radius and counter-example beyond which a quarter of the way is most likely too far.
APART = 100.0
#: Part of the time of an example that linear bounds may take once; else ranges are by intervals.
RANGES = 0.6
#: Ranges within this share of the radius are near enough.
NEAR = 0.01
#: Classes beyond this multiple of an example's radius are not looked at again.
AWAY = 1.6
#: Steps of the power method after which weights are taken to be right.
SETTLED = 15
#: Parts of the search after which more weights become free where these are cheap to prove, and everywhere; the share of
#: the distance of a counter-example beyond which none do.
WARM, LATE, REACHED = 1 / 6, 0.5, 0.95
#: Rooms of weights that are tried, with the part of the radius found that is checked first, and the part that is to be
#: proved by one if others are not to be tried.
AIMS, ENOUGH = ((1e-4, 0.999), (1e-3, 0.985), (1e-2, 0.96)), 0.98


@dataclass(frozen=True, kw_only=True)
class Widening:
    """The cost-to-go at about the largest radius that it proves.

    For given multipliers the bound falls as the radius grows, so every class has a radius of its own, a root in one
    dimension; an example's is the least of them. The ascent is for the classes that are behind, at up to twice that
    radius, and where it has moved far the ranges are made anew. First with weights by norms, which cost little, then
    with diagonal ones. What is found is a radius and multipliers; the check decides.

    Attributes:
        linear: whether linear bounds tighten the ranges, where there is time for them.
        refined: whether larger radii are tried one by one afterwards.
        steps: of the ascent.
        device: where it runs.
        seed: of its random starts.
    """

    linear: bool = True
    refined: bool = False
    steps: int = 300
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0

    @ordinary()
    def widen(self, facts: Facts, asked: Sequence[Asked], until: float) -> list[Proof | None]:
        """For each a proof at the largest radius that was found, between the two it is asked for.

        None where nothing larger was found, or the network is none for this: then other provers may know more.
        """
        found: list[Proof | None] = [None] * len(asked)
        each = entries_of(facts.subject.network) * (facts.classes - 1)
        if not deep(facts.subject.network) or each > Settings.chunk:
            return found
        group = max(1, Settings.chunk // each)
        for start in range(0, len(asked), group):
            some, now = asked[start : start + group], time.perf_counter()
            own = now + (until - now) * len(some) / (len(asked) - start)
            if now >= own:
                break
            try:
                found[start : start + group] = self._group(facts, some, own)
            except Exception as problem:  # there are other ways to a radius
                warnings.warn(
                    f"the search for largest radii broke ({type(problem).__name__}: {str(problem)[:200]}): they are "
                    "looked for one by one. This is a bug in lipcert; please report it.",
                    stacklevel=2,
                )
        return found

    def _group(self, facts: Facts, asked: Sequence[Asked], until: float) -> list[Proof | None]:
        network, norms = facts.subject.network, norms_of(facts.subject)
        settings, moderate = precise_enough(
            Settings(device=self.device, seed=self.seed), norms, [one.claim.x for one in asked]
        )
        if not moderate:
            return [None] * len(asked)
        plan = Plan(network.to(settings.dtype, settings.device), norms, bases=facts.subject.facts.bases)
        seconds = (until - time.perf_counter()) / len(asked)
        examples = [_Example(facts, one, self.linear, plan, settings, until, seconds) for one in asked]
        live = [example for example in examples if example.begin()]
        began = time.perf_counter()
        while live := [example for example in live if example.goes_on()]:
            now = time.perf_counter()
            if now > until:
                break
            for classes in _alike([(example, k) for example in live for k in example.freed()]):
                _climb(classes)
            for example in live:
                example.part = progress(example.part + EVERY / self.steps, (now - began) / max(1e-9, until - began))
        until = max(until, time.perf_counter()) + CHECKS * max(0.0, until - began)
        return [example.proof(until) for example in examples]


class _Example:
    """One example in the search.

    Attributes:
        radius: the least of its classes'.
        best, kept: the largest so far on the same ranges, and its variables.
        sure, final: the largest of those that were looked at again.
        roots: up to about which radius each class is proved.
        floor: up to which constants and ranges prove it.
        variables: of each class.
        part: of the search that is over, 0 to 1.
        passed: the radius when it was at its end for the last time.
        until: when (perf_counter) ranges must be done.
    """

    def __init__(
        self, facts: Facts, asked: Asked, linear: bool, plan: Plan, settings: Settings, until: float, seconds: float
    ) -> None:
        assert asked.between is not None
        self.until = until
        self.facts, self.asked, self.plan, self.settings = facts, asked, plan, settings
        self.least, high = asked.between
        self.cap = min(high / BELOW if high > self.least * BELOW else high, FARTHEST)
        self.rows, self.shape = facts.rows(asked.claim), facts.subject.network.in_shape
        self.roots, self.floor = [0.0] * len(self.rows), [0.0] * len(self.rows)
        self.variables: list[Variables] = []
        self.history, self.part, self.passed = list[float](), 0.0, 0.0
        self.best, self.kept = 0.0, list[Variables]()
        self.sure, self.final = 0.0, list[Variables]()
        self.centre = plan.values_at(self._like(asked.claim.x.reshape(1, *self.shape)))
        self.radius = max(self._first(), self.least)
        domain = facts.searched(self.claim(self.radius))
        self.linear = linear and seconds_of_linear_bounds(facts, domain) < RANGES * seconds

    def _first(self) -> float:
        """The radius that is tried first: between the two that are known, where these are far apart."""
        if self.cap >= FARTHEST:
            return min(2.0 * self.least, FARTHEST) or 1.0
        return math.sqrt(self.least * self.cap) if self.cap > APART * self.least > 0.0 else FIRST * self.cap

    def begin(self) -> bool:
        """Whether there is something to climb from, at a radius that is not too large."""
        everyone = list(range(len(self.rows)))
        for _ in range(STARTS):
            if not self._measure():
                return False
            while min(self.floor) >= self.radius > 0.0 and self.radius < self.cap < FARTHEST:  # ranges are enough
                self.radius = min(WIDE * self.radius, self.cap)
                if not self._measure():
                    return False
            ranges, radius = self.ranges(everyone), self.radius
            starts = self._like(self._domain().project(self.asked.starts.reshape(-1, *self.shape)))
            variables = first_variables(ranges.question(self.plan, ranges.measured), starts, self.settings)
            self.variables = [variables.at(torch.tensor([k])) for k in everyone]
            self.roots = [0.0] * len(self.rows)
            self._look(FAR)
            if self.radius > radius / STRIDES or self.radius == 0.0:
                break
            self.radius = max(STRIDES * self.radius, self.least)
        return self.radius > 0.0

    def goes_on(self) -> bool:
        """Whether the search is to go on; where the radius does not grow any more, with a later part of it."""
        self.radius = min(*self.roots, self.cap)
        if not self.measured / STALE <= self.radius <= self.measured * STALE and not self._look(anew=True):
            return False
        if self.radius > self.best:
            self.best, self.kept = self.radius, list(self.variables)
        self.history.append(self.best)
        if self.radius >= self.cap:
            self.settle()
            return self.radius < self.cap
        if self.part >= 1.0:
            return self.settle() and self._again()
        if len(self.history) <= LOOKS or self.best > self.history[-1 - LOOKS] * (1.0 + GAIN):
            return self.radius > 0.0
        self.part += SKIP
        return self.settle()

    def _again(self) -> bool:
        """Whether the search goes on at an earlier part, as the radius grew well since it was at its end."""
        grew, self.passed = self.radius > WORTH * self.passed, self.radius
        self.part = AGAIN
        return grew

    def settle(self) -> bool:
        """Look again at the best since the last time, on ranges and with weights that are right; whether one may go on.

        On the way weights lag behind, and radii seem larger than they are.
        """
        self.history.clear()
        if self.best > 0.0:
            self.radius, self.variables = self.best, list(self.kept)
        usable = self._look(anew=abs(self.radius - self.measured) > NEAR * self.measured)
        if usable and self.radius > self.sure:
            self.sure, self.final = self.radius, list(self.variables)
        self.best, self.kept = self.radius, list(self.variables)
        return usable and self.radius > 0.0

    def aim(self) -> float:
        """The radius at which it climbs."""
        over = OVER + (WIDE - OVER) * max(0.0, 1.0 - self.part) ** 2
        return max(self.radius, min(over * self.radius, self.cap))

    def behind(self) -> list[int]:
        """The classes to be raised."""
        return [k for k, root in enumerate(self.roots) if root < BEHIND * self.radius]

    def freed(self) -> list[int]:
        """The same, with the weights that are to be free."""
        if self.part >= WARM and self.best < REACHED * self.cap:
            for k in self.behind():
                self.variables[k].release(self.plan.bent, self.settings.large if self.part < LATE else None)
        return self.behind()

    def ranges(self, classes: Sequence[int]) -> Ranges:
        """Of some classes, at the radius that ranges are of."""
        one = torch.zeros(len(classes), dtype=torch.int64)
        domains = together([self.facts.searched(self.claim(self.measured))])
        measured = torch.full((len(classes),), self.measured, dtype=torch.float64)
        low, high = ({k: t[one] for k, t in ends.items()} for ends in self.ends)
        return Ranges(
            self._like(self.rows[list(classes)]), low, high, {k: self.centre[k][one] for k in low},
            domains.at(one).to(self.settings.dtype, self.settings.device), self._like(measured),
            self._like(self.goal[list(classes)]),
        )  # fmt: skip

    def claim(self, radius: float) -> Claim:
        """At another radius."""
        return replace(self.asked.claim, radius=radius)

    def _like(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.settings.device, self.settings.dtype)

    def _domain(self) -> Ball | Intersection:
        return self.facts.searched(self.claim(self.radius))

    def _measure(self) -> bool:
        """Ranges at the radius; whether there was time for them, and they are finite where multipliers need them."""
        facts, claim = self.facts, self.claim(self.radius)
        with torch.no_grad():
            try:
                place = facts.subject.setting(facts.subject.facts, self._domain(), self.linear, self.until)
            except NotProved:  # at the end of the time
                return False
            self.goal = facts.lost(claim)
            sure = (place.plain(self.rows) > self.goal) | (facts.by_constants(claim).sure > 0.0)
        self.measured = self.radius
        self.floor = [max(f, self.radius) if s else f for f, s in zip(self.floor, sure.tolist(), strict=True)]
        boxes = {k: place.boxes[k] for k in self.plan.ranged}
        self.ends = tuple({k: self._like(getattr(b, end))[None] for k, b in boxes.items()} for end in ("low", "high"))
        return bool(place.boxes[0].finite.all())

    def _look(self, values: int = VALUES, anew: bool = False) -> bool:
        """The roots of classes that are not far ahead, on ranges made anew or not; whether ranges are finite."""
        if anew and not self._measure():
            return False
        near = [k for k, root in enumerate(self.roots) if not root > AWAY * self.radius]
        for group in _alike([(self, k) for k in near]):
            _take(group, _rows(group), values, SETTLED)
        self.radius = min(*self.roots, self.cap)
        if anew:
            self.best, self.kept = self.radius, list(self.variables)
            self.history.clear()
        return True

    def proof(self, until: float) -> Proof | None:
        """By the multipliers that are there, at about the largest radius that they prove; after a time, at any."""
        self.until = math.inf  # what was found is proved, whatever the time
        if self.best > self.sure:
            self.settle()
        self.radius, self.variables = self.sure, self.final
        if not self.radius > self.least:
            return None
        best: Proof | None = None
        for room, within in AIMS:
            asked = replace(self.asked, claim=self.claim(self.radius * within))
            proof = stretched(CostToGo.name, self.facts, asked, self._content(room), until)
            if proof is not None and (best is None or proof.radius > best.radius):
                best = proof
            if best is not None and (best.radius > ENOUGH * self.radius or time.perf_counter() > until):
                break  # else the room or the radius was not right
        return best

    def _content(self, room: float) -> bytes:
        """Of a proof, with weights that exceed by so much what was found necessary."""
        like = self._like(torch.tensor([room]))
        open_ = [k for k in range(len(self.rows)) if self.floor[k] < self.radius]
        found = {k: self.variables[k].provable(like)[0] for k in open_}
        shared = self.facts.subject.facts.arrays
        parts = [Part(part.classes, {**part.multipliers, **shared}) for part in joined_parts(found)]
        return write_proof(parts, self.linear)


#: An example and one of its classes.
Class = tuple[_Example, int]


def _alike(classes: Sequence[Class]) -> list[list[Class]]:
    """In groups whose variables can be put together, in one part of the search."""
    groups: dict[Any, list[Class]] = {}
    for example, k in classes:
        own = example.variables[k]
        groups.setdefault((own.diagonal, frozenset(own.first), example.part), []).append((example, k))
    return list(groups.values())


def _rows(classes: Sequence[Class]) -> Rows:
    ranges = Ranges.together([example.ranges([k]) for example, k in classes])
    several = [example.variables[k].at(torch.tensor([0])) for example, k in classes]  # the old ones are kept
    rows = Rows(classes[0][0].plan, ranges, all_of(several))
    rows.move(torch.tensor([example.aim() for example, _ in classes], dtype=torch.float64).to(ranges.goal))
    return rows


def _take(classes: Sequence[Class], rows: Rows, values: int = VALUES, power: int = 2) -> None:
    """What became of classes, and their radii."""
    roots = rows.roots(rows.radius, values, power).tolist()
    for place, ((example, k), root) in enumerate(zip(classes, roots, strict=True)):
        example.variables[k] = rows.variables.at(torch.tensor([place]))
        example.roots[k] = max(root, example.floor[k])


def _climb(classes: Sequence[Class]) -> None:
    """Some steps, each class at the radius its example aims at."""
    rows, part, settings = _rows(classes), classes[0][0].part, classes[0][0].settings
    for _ in range(EVERY):
        rows.variables.ascend(settings.rate_at(part), settings.power_at(part))
    _take(classes, rows)
