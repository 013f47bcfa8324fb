"""Searches for what proves that examples keep their class; what they return was checked."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.counter_example import CounterExample
from lipcert.domain import Ball, Intersection
from lipcert.errors import CertificateError, NotProved
from lipcert.ranges.build import work_of
from lipcert.robustness.checks import Claim, Facts, Margins, Part, margins, write_proof
from lipcert.robustness.outputs import Answer, Task, prove_below
from lipcert.search.cost_to_go.settings import Settings
from lipcert.search.cost_to_go.variables import Variables

#: Checks that a proof is stretched by, how close the ends of the interval of radii get, how far a root is sought, and
#: how far from it no proof may be for the next radius to be theirs in the middle.
_SECANTS, _CLOSE, _FAR, _JUMP = 6, 1.005, 1.002, 1.1
#: Part of the margin at the example up to which rounding is aimed at in the search.
_SMALL_PART = 0.25
#: Multiple of the radius that constants certify beyond which linear bounds are needed, and how much of what ``work_of``
#: counts is done in a second, about.
_BEYOND, _WORK_PER_SECOND = 20.0, 5e7
#: Room for other machines' arithmetic, in units of the size of the outputs at the example.
_SIZE = 64.0


@dataclass(frozen=True, eq=False)
class Asked:
    """A claim to be proved.

    Attributes:
        claim: it.
        starts: (m − 1, *in_shape) points of its domain where the margins are low, for the other classes in order.
        between: None, or radii: what is proved at another radius between them is welcome, too.
        known: of other classes, multipliers by which a prover that did not prove them all proved some.
        begun: of other classes, where its search ended, for the next one.
    """

    claim: Claim
    starts: Tensor
    between: tuple[float, float] | None = None
    known: dict[int, Multipliers] = field(default_factory=dict)
    begun: dict[int, Variables] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Proof:
    """What a prover found for a claim.

    Attributes:
        method: name of the check.
        content: its bytes.
        radius: of the claim that it proves.
        margins: what the check said.
    """

    method: str
    content: bytes
    radius: float
    margins: Margins

    @property
    def margin(self) -> float:
        """The least of all classes, with room for other machines; positive."""
        return float(self.margins.sure.min())


class Prover(Protocol):
    """One step of the cascade."""

    def prove(self, facts: Facts, asked: Sequence[Asked], until: float) -> Sequence[Proof | CounterExample | None]:
        """Try claims together; None for what was not proved, at no radius. It ends about ``until`` (perf_counter).

        A prover that finds a proved counter-example to a claim gives that.
        """


def proved(method: str, facts: Facts, claim: Claim, content: bytes = b"") -> Proof | None:
    """A proof, if the check says that it is one."""
    found = _checked(method, facts, claim, content)
    return found if found is not None and found.margin > 0.0 else None


def _checked(method: str, facts: Facts, claim: Claim, content: bytes) -> Proof | None:
    """What the check says, whatever the sign."""
    try:
        return Proof(method, content, claim.radius, margins(method, facts, claim, content))
    except (NotProved, CertificateError):
        return None


def stretched(method: str, facts: Facts, asked: Asked, content: bytes, until: float = math.inf) -> Proof | None:
    """A proof at the radius that is asked, or at about the largest between two radii at which the content is one.

    After ``until`` (perf_counter) the first that is found is enough.

    What it proves falls as the radius grows: the root is bracketed, and found by secants, the first of them from the
    margin at the example itself.
    """
    first = _checked(method, facts, asked.claim, content)
    if first is None:
        return None
    best = first if first.margin > 0.0 else None
    if asked.between is None:
        return best
    low, high = asked.between
    low, high = (first.radius, high) if best else (low, min(high, first.radius))
    points = [(0.0, float(facts.at_centre(asked.claim).sure.min()))]
    if math.isfinite(first.margin):
        points.append((first.radius, first.margin))
    for _ in range(_SECANTS):
        root = _root(points)
        near = best is not None and root < low * _FAR  # or what is proved does not fall along a line
        if not low * _CLOSE < high < math.inf or (near and high < low * _JUMP):
            break
        if best is not None and time.perf_counter() > until:
            break
        radius = root * (1.0 - 5e-4)
        if not low * 1.0005 < radius < high * 0.9999:
            radius = math.sqrt(low) * math.sqrt(high) if low > 0.0 else 0.5 * high
        found = _checked(method, facts, Claim(asked.claim.x, asked.claim.label, radius), content)
        if found is None or not found.margin > 0.0:
            high = radius
        else:
            best, low = found, radius
        if found is not None and math.isfinite(found.margin):
            points = [*points[-1:], (radius, found.margin)]
    return best


def _root(points: Sequence[tuple[float, float]]) -> float:
    """Where the line through two points is 0; inf where none falls through them."""
    if len(points) < 2:
        return math.inf
    (a, at_a), (b, at_b) = points
    slope = (at_b - at_a) / (b - a) if b != a else 0.0
    return b - at_b / slope if slope < 0.0 else math.inf


@dataclass(frozen=True, kw_only=True)
class CostToGo:
    """The quadratic cost-to-go, on ranges by intervals and prefixes, or by linear bounds too.

    Attributes:
        linear: whether linear bounds tighten the ranges: slower, and tighter on networks of large norms.
        steps: of the ascent.
        device: where it runs.
        seed: of its random starts.
    """

    name: ClassVar[str] = "cost_to_go"

    linear: bool = False
    steps: int = 300
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0

    def prove(self, facts: Facts, asked: Sequence[Asked], until: float) -> list[Proof | None]:
        """The classes that the constants leave open, by ranges or by multipliers."""
        left = until - time.perf_counter()
        if left < 0.0:
            return [None] * len(asked)
        able = [self.linear or not _needs_linear_bounds(facts, one.claim, left / len(asked)) for one in asked]
        found = iter(self._search(facts, [one for one, can in zip(asked, able, strict=True) if can], until))
        return [next(found) if can else None for can in able]

    def _search(self, facts: Facts, asked: Sequence[Asked], until: float) -> list[Proof | None]:
        """All claims in one search."""
        open_ = [open_classes(facts, one.claim) for one in asked]
        goal = max((goal_of(facts, one.claim, classes) for one, classes in zip(asked, open_, strict=True)), default=0.0)
        tasks = [
            Task(
                facts.searched(one.claim), facts.rows(one.claim, classes), one.starts[classes], goal,
                [one.known.get(k) for k in classes], [one.begun.get(k) for k in classes],
            )
            for one, classes in zip(asked, open_, strict=True)
        ]  # fmt: skip
        search = Settings(steps=self.steps, goal=goal, device=self.device, seed=self.seed)
        answers = prove_below(facts.subject, tasks, search, self.linear, until)
        for one, classes, answer in zip(asked, open_, answers, strict=True):
            one.begun.update({classes[row]: variables for row, variables in answer.variables.items()})
            found = zip(classes, answer.multipliers, answer.lower.tolist(), strict=True)
            one.known.update({k: own for k, own, lower in found if own is not None and lower > goal})
        return [
            self._proof(facts, one, classes, answer) for one, classes, answer in zip(asked, open_, answers, strict=True)
        ]

    def _proof(self, facts: Facts, asked: Asked, classes: Sequence[int], answer: Answer) -> Proof | None:
        """Of one claim, by what was found for the classes that were open."""
        if not bool((answer.lower > (0.0 if asked.between is None else -math.inf)).all()):
            return None
        found = {k: m for k, m in zip(classes, answer.multipliers, strict=True) if m is not None}
        if not found:
            return stretched("linear_bounds" if answer.linear else "ranges", facts, asked, b"")
        parts = [Part(part.classes, {**part.multipliers, **facts.subject.facts.arrays}) for part in joined_parts(found)]
        return stretched(self.name, facts, asked, write_proof(parts, answer.linear))


def _needs_linear_bounds(facts: Facts, claim: Claim, seconds: float) -> bool:
    """Whether a search without them is hopeless, and they can be had in that time."""
    known = facts.by_constants(claim).least
    if known.isneginf().any() or bool((known > -(_BEYOND - 1.0) * facts.at_centre(claim).least).all()):
        return False
    return seconds_of_linear_bounds(facts, facts.searched(claim)) < seconds


def seconds_of_linear_bounds(facts: Facts, domain: Ball | Intersection) -> float:
    """About how long linear bounds of all ranges on a domain take."""
    with torch.no_grad():
        return work_of(facts.subject.setting(facts.subject.facts, domain, False).bounds) / _WORK_PER_SECOND


def open_classes(facts: Facts, claim: Claim) -> list[int]:
    """Places of the classes that the constants leave open; all, where they leave none."""
    left = (~(facts.by_constants(claim).sure > 0.0)).nonzero().reshape(-1).tolist()
    return left or list(range(facts.classes - 1))


def goal_of(facts: Facts, claim: Claim, classes: Sequence[int]) -> float:
    """What margins of the real-valued network are to exceed; 0 where rounding may take a large part of them."""
    if facts.rounding is None:
        return 0.0
    lost = facts.lost(claim)[list(classes)]
    within = lost < _SMALL_PART * facts.at_centre(claim).least[list(classes)]
    return float(lost[within].max()) if bool(within.any()) else 0.0


def joined_parts(found: Mapping[int, Multipliers]) -> list[Part]:
    """Classes whose multipliers are of the same kinds go together."""
    groups: dict[tuple[str, ...], dict[int, dict[str, Tensor]]] = {}
    for k, multipliers in sorted(found.items()):
        arrays = multipliers.arrays()
        kinds = tuple(f"{name}{tuple(t.shape)}" for name, t in sorted(arrays.items()))
        groups.setdefault(kinds, {})[k] = arrays
    return [
        Part(list(group), {name: torch.cat([arrays[name] for arrays in group.values()]) for name in first})
        for group in groups.values()
        for first in [next(iter(group.values()))]
    ]
