"""The last step of the cascade: branch and bound on the examples that nothing before has decided."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lipcert.attack.starts import inside
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.walk import Setting, lower_bounds
from lipcert.certificates.counter_example import CounterExample, counter_example
from lipcert.errors import CertificateError, NotProved
from lipcert.numerics.process_state import ordinary
from lipcert.robustness.checks import Facts, Part, write_proof
from lipcert.robustness.forest import Forest, entries_of
from lipcert.robustness.outputs import deep
from lipcert.robustness.pair_constants import others
from lipcert.robustness.provers import Asked, Proof, goal_of, joined_parts, open_classes, proved
from lipcert.search.cost_to_go.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Branching:
    """Trees of splits at single neurons, with the cost-to-go at their leaves; a counter-example ends them, too.

    Claims between radii are left as they are: each radius would be a search of its own.

    Attributes:
        seconds: for one claim, at most.
        linear: whether linear bounds tighten the ranges of every part.
        steps: of the ascent before the first split.
        device: where it runs.
        seed: of its random starts.
    """

    name: ClassVar[str] = "branched_cost_to_go"

    seconds: float = 60.0
    linear: bool = True
    steps: int = 300
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0

    def prove(self, facts: Facts, asked: Sequence[Asked], until: float) -> list[Proof | CounterExample | None]:
        """One claim after another; those that come later have what the earlier leave."""
        found: list[Proof | CounterExample | None] = []
        for number, one in enumerate(asked):
            now = time.perf_counter()
            own = now + min(self.seconds, (until - now) / (len(asked) - number))
            found.append(self._decide(facts, one, own) if now < own and one.between is None else None)
        return found

    @ordinary()
    def _decide(self, facts: Facts, asked: Asked, until: float) -> Proof | CounterExample | None:
        classes = open_classes(facts, asked.claim)
        goal = goal_of(facts, asked.claim, classes)
        domain, rows = facts.domain(asked.claim), facts.rows(asked.claim, classes)
        with torch.no_grad():
            try:
                place = Setting(facts.subject.facts, domain, self.linear, until=until)
            except NotProved:  # at the end of the time
                return None
            left = ~(place.plain(rows) > goal)
        if not bool(left.any()):  # within limits, of which others may not know
            return proved("linear_bounds" if self.linear else "ranges", facts, asked.claim)
        if not deep(facts.subject.network) or not bool(place.boxes[0].finite.all()):
            return None
        known = _still_known(facts, asked, place, classes, left, goal, until)
        rest = [row for row, k in enumerate(classes) if left[row] and k not in known]
        if len(rest) * entries_of(facts.subject.network) > Settings.chunk:
            return None
        classes = [classes[row] for row in rest]
        if not classes:
            return proved(self.name, facts, asked.claim, self._content({}, known, facts))
        settings = Settings(steps=self.steps, goal=goal, device=self.device, seed=self.seed)
        forest = Forest.of(facts.subject, place, domain, rows[rest], asked.starts[classes], settings, goal)
        if forest.grow(until, [asked.begun.get(k) for k in classes]):
            trees = {k: forest.proof(row) for row, k in enumerate(classes)}
            return proved(self.name, facts, asked.claim, self._content(trees, known, facts))
        if forest.counter is not None:
            return _counter(
                facts, asked, forest.counter, [others(asked.claim.label, facts.classes)[k] for k in classes]
            )
        return None

    def _content(
        self,
        trees: Mapping[int, tuple[dict[str, Tensor], Multipliers]],
        known: Mapping[int, Multipliers],
        facts: Facts,
    ) -> bytes:
        """The proof's bytes: of some classes trees and the multipliers of their leaves, of others multipliers alone."""
        shared, parts, simple = facts.subject.facts.arrays, [], dict(known)
        for k, (tree, multipliers) in trees.items():
            if tree:
                parts.append(Part([k], {**multipliers.arrays(), **tree, **shared}))
            else:
                simple[k] = multipliers
        parts += [Part(part.classes, {**part.multipliers, **shared}) for part in joined_parts(simple)]
        return write_proof(parts, self.linear)


@torch.no_grad()
def _still_known(
    facts: Facts, asked: Asked, place: Setting, classes: Sequence[int], left: Tensor, goal: float, until: float
) -> dict[int, Multipliers]:
    """Of the classes that are left those whose multipliers, found on other ranges, prove them on these."""
    found = {}
    for k, row, still in zip(classes, facts.rows(asked.claim, classes).split(1), left.tolist(), strict=True):
        own = asked.known.get(k)
        if still and own is not None and time.perf_counter() < until:
            with suppress(NotProved, CertificateError):
                if float(lower_bounds(place, row, own)[0]) > goal:
                    found[k] = own
    return found


def _counter(facts: Facts, asked: Asked, point: Tensor, classes: Sequence[int]) -> CounterExample | None:
    """Proved, of the class that is highest there."""
    domain = facts.domain(asked.claim)
    point = inside(domain, point)
    scores = facts.network.forward(point.reshape(1, *facts.network.in_shape)).reshape(-1)
    other = max(classes, key=lambda k: float(scores[k]))
    return counter_example(facts.network, domain, point, asked.claim.label, other)
