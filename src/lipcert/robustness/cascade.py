"""The cascade that decides a batch of examples: clean, constants, attack, then provers from cheap to strong."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lipcert.attack.adversarial import attack
from lipcert.certificates.counter_example import CounterExample
from lipcert.errors import LipcertError, NotProved, NumericsError
from lipcert.guarantee import Guarantee
from lipcert.numerics.process_state import ordinary
from lipcert.robustness.checks import Claim, Facts
from lipcert.robustness.outputs import deep, look_for_bases
from lipcert.robustness.pair_constants import others
from lipcert.robustness.provers import Asked, Proof, Prover, proved
from lipcert.robustness.rows import Decision, Row, Status
from lipcert.robustness.schedule import FARTHEST, LIKELY, Bracket
from lipcert.robustness.unperturbed import digits_there, margin_there
from lipcert.robustness.widening import Widening

#: Part of the time within which ranges of all that is within limits are to be there.
_SOON = 0.1
#: Part of the time that is left for radii one by one after a search for the largest, where these are looked at.
_REFINED = 0.25
#: Doublings of the radius that is attacked where none is given.
_OUTWARD = 10


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples that are decided together.

    Attributes:
        indices: places among all inputs.
        inputs: (B, *shape) float64; an array, which goes to other processes by value.
        labels: (B,).
        scores: (B, m), what the executed model gives, where claims are about that; else None.
        wanted: which of them are still to be decided; the others keep them company, so that random numbers and sums
            are those of a run that was not interrupted.
    """

    indices: tuple[int, ...]
    inputs: npt.NDArray[np.float64] = field(repr=False)
    labels: tuple[int, ...]
    wanted: frozenset[int]
    scores: npt.NDArray[np.float32] | None = field(default=None, repr=False)


class Decider(Protocol):
    """What engines run: data that can be sent to another process."""

    def decide(self, batch: Batch) -> Iterator[Decision]:
        """Each wanted example once, in any order, as soon as it is decided."""


@dataclass(eq=False)
class _Case:
    """What is known of one example so far."""

    index: int
    claim: Claim
    predicted: int
    wanted: bool
    bracket: Bracket
    proof: Proof | None = None
    counter: Tensor | None = None
    starts: Tensor | None = None
    seconds: float = 0.0

    def at(self, radius: float) -> Claim:
        return Claim(self.claim.x, self.claim.label, radius)

    def keep(self, found: Proof | None) -> None:
        if found is not None and found.radius > self.bracket.certified:
            self.bracket.certify(found.radius)
            self.proof = found

    def break_at(self, found: CounterExample, radius: float) -> None:
        """A counter-example within a radius."""
        distance = radius if found.distance is None else found.distance
        if distance < self.bracket.attacked:
            self.bracket.attack(distance)
            self.counter = found.point.reshape(-1)
        if self.bracket.attacked <= self.bracket.certified and self.bracket.certified > 0.0:
            raise NumericsError(
                f"example {self.index} is certified up to {self.bracket.certified:.9g}, and a counter-example was "
                f"found at {self.bracket.attacked:.9g}. This is a bug in lipcert: please report it."
            )


@dataclass(frozen=True, eq=False)
class Cascade:
    """The steps, the cheapest first; an example leaves as soon as it is decided.

    Attributes:
        facts: the network, the threat and what is known of both.
        provers: tried one after another on what constants and the attack leave open.
        widening: looks for the largest radii, where none are given.
        budget: seconds that the provers may take per example, on average over a batch, but for the network's norms.
        effort: of the attack.
        seed: of its random starts; an example's row depends on it, on the batch and on nothing else, unless the budget
            ends.
        device: where the attack runs.
    """

    facts: Facts
    provers: tuple[Prover, ...]
    widening: Widening | None = None
    budget: float = 60.0
    effort: float = 1.0
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def decide(self, batch: Batch) -> Iterator[Decision]:
        """See ``Decider``."""
        clock = _Clock()
        with ordinary():
            cases, wrong = self._begin(batch)
            clock.share(cases)
        yield from (self._wrong(case, margin) for case, margin in wrong if case.wanted)
        with ordinary():
            for case in cases:
                self._by_constants(case)
            clock.share(cases)
        left = []
        for case in cases:
            if case.bracket.done:
                yield from self._finished(case)
            else:
                left.append(case)
        if not left:
            return
        with ordinary(), torch.random.fork_rng(devices=[]):
            self._attack(left, batch.indices[0])
        with ordinary():
            for case in left:
                if not case.bracket.done and self._lost_already(case.claim):
                    case.bracket.stop()
        subject = self.facts.subject
        if any(case.wanted and not case.bracket.done for case in left) and deep(subject.network):
            with ordinary(), suppress(LipcertError):  # where ranges are enough nobody asks for them
                look_for_bases(subject)
                _ = subject.facts.claims  # norms, worked out once for all examples, are none's own time
        clock.share(left)
        until = time.perf_counter() + self.budget * sum(case.wanted for case in left)
        with ordinary():
            self._within_limits([case for case in left if case.wanted and not case.bracket.done], until)
        if self.widening is not None:
            with ordinary(), torch.random.fork_rng(devices=[]):
                self._widen([case for case in left if case.wanted and not case.bracket.done], until)
            clock.share(left)
        while True:
            open_ = [case for case in left if case.wanted and (case.bracket.waits or not case.bracket.done)]
            for case in open_:
                case.bracket.reconsider((until - time.perf_counter()) / len(open_))
            going = [case for case in open_ if not case.bracket.done]
            for case in left:
                if not (going and case in open_):
                    yield from self._finished(case)
            if not going:
                return
            left = open_
            with ordinary(), torch.random.fork_rng(devices=[]):
                self._prove(going, until)
            clock.share(going)
            if time.perf_counter() > until:
                for case in left:
                    case.bracket.stop()

    # -- steps -----------------------------------------------------------------------------------------------

    def _begin(self, batch: Batch) -> tuple[list[_Case], list[tuple[_Case, float]]]:
        network = self.facts.network
        x = torch.from_numpy(np.array(batch.inputs)).reshape(len(batch.inputs), *network.in_shape)
        with torch.no_grad():
            real = network.forward(x).reshape(len(x), -1)
        scores = real if batch.scores is None else torch.from_numpy(batch.scores.astype(np.float64))
        cases, wrong = [], []
        for place, (index, label) in enumerate(zip(batch.indices, batch.labels, strict=True)):
            claim = Claim(x[place], label, 0.0)
            predicted = int(scores[place].argmax())
            margin = math.nan if predicted == label else digits_there(self.facts, claim)
            if batch.scores is None and margin > 0.0:  # the rounding of the forward pass called it wrong
                predicted = label
            case = _Case(index, claim, predicted, index in batch.wanted, Bracket(self.facts.threat.radii))
            if predicted == label:
                if int(real[place].argmax()) != label:  # a tie but for rounding: nothing can be proved of it
                    case.bracket.stop()
                cases.append(case)
            else:
                wrong.append((case, min(margin, 0.0)))
        return cases, wrong

    def _by_constants(self, case: _Case) -> None:
        if not self.facts.constants:
            return
        margins = self.facts.at_centre(case.claim).least
        radius = self.facts.radius_by_constants(case.claim.label, margins)
        case.bracket.likely = LIKELY * radius
        if self.facts.rounding is not None and radius > 0.0:  # it grows with the radius, so a smaller one loses less
            largest = case.at(min(radius, case.bracket.top))
            radius = self.facts.radius_by_constants(case.claim.label, margins - self.facts.lost(largest))
        radius = min(radius * (1.0 - 1e-9), case.bracket.top)
        if 0.0 < radius < math.inf:
            case.keep(proved("pair_constants", self.facts, case.at(radius)))

    def _lost_already(self, claim: Claim) -> bool:
        """Whether rounding takes the whole of a margin at the example itself, so that no radius can be proved."""
        least = self.facts.at_centre(claim).least
        if self.facts.rounding is None or bool((least > self.facts.lost(claim)).all()):
            return False
        return bool((least <= self.facts.lost(claim, tight=True)).any())  # which costs much more

    def _attack(self, cases: Sequence[_Case], first: int) -> None:
        """The nearest counter-example of each; where none is found, points of low margins for the provers."""
        if self.facts.threat.radii is not None:
            going = list(cases)
            for number, radius in enumerate(reversed(self.facts.threat.radii)):
                going = [c for c in going if c.bracket.certified < radius]
                radii = [min(radius, c.bracket.attacked) for c in going]
                broken = self._attacked(going, radii, (first, number))
                going = [c for c, b in zip(going, broken, strict=True) if b]
            return
        limit = {c.index: self.facts.threat.farthest(c.claim.x) for c in cases}
        reach = {c.index: min(self._first_radius(c), limit[c.index]) for c in cases}
        for number in range(_OUTWARD):
            going = [c for c in cases if math.isinf(c.bracket.attacked) and reach[c.index] < 2.0 * limit[c.index]]
            broken = self._attacked(going, [reach[c.index] for c in going], (first, number))
            for case, hit in zip(going, broken, strict=True):
                reach[case.index] *= 1.0 if hit else 2.0

    def _first_radius(self, case: _Case) -> float:
        """About where a linear function with the margin and gradient at the example would change its class."""
        network, label = self.facts.network, case.claim.label
        x = case.claim.x[None].clone().requires_grad_(True)
        with torch.enable_grad():
            scores = network.forward(x).reshape(-1)
            rest = scores.clone()
            rest[label] = -math.inf
            margin = scores[label] - rest.max() + (0.0 * x).sum()  # as constant networks do not depend on x
            (gradient,) = torch.autograd.grad(margin, x)
        dual = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[self.facts.threat.norm]
        guess = float(margin.detach()) / max(1e-12, float(gradient.reshape(-1).norm(p=dual)))
        return min(max(case.bracket.certified, 1e-9, guess), 1e12)  # in this order NaN is not chosen

    def _attacked(self, cases: Sequence[_Case], radii: Sequence[float], run: tuple[int, int]) -> list[bool]:
        """Whether a counter-example was found within each radius; it and low points are kept."""
        if not cases:
            return []
        facts = self.facts
        claims = [c.at(r) for c, r in zip(cases, radii, strict=True)]
        open_ = torch.ones(len(cases), facts.classes, dtype=torch.bool)
        for place, claim in enumerate(claims):
            open_[place, others(claim.label, facts.classes)] = ~(facts.by_constants(claim).sure > 0.0)
        seed = int(np.random.default_rng((self.seed, *run)).integers(2**62))
        labels = torch.tensor([c.label for c in claims])
        found = attack(facts.network, [facts.domain(c) for c in claims], labels, open_, self.effort, seed, self.device)
        for place, (case, broken) in enumerate(zip(cases, found.broken, strict=True)):
            self._keep_points(case, found.example == place, found.other, found.points)
            if broken is None:
                continue
            case.break_at(broken, radii[place])
        return [broken is not None for broken in found.broken]

    def _keep_points(self, case: _Case, mine: Tensor, other: Tensor, points: Tensor) -> None:
        x = case.claim.x
        if case.starts is None:
            case.starts = x.expand(self.facts.classes - 1, *x.shape).clone()
        for pair in mine.nonzero().reshape(-1).tolist():
            k = int(other[pair])
            point = points[pair].reshape(x.shape)
            if bool(torch.isfinite(point).all()):
                case.starts[k - (k > case.claim.label)] = point

    def _prove(self, cases: Sequence[_Case], until: float) -> None:
        """Each at the next radius of its bracket, by the first prover that can; of the time, a share for this round."""
        now, share = time.perf_counter(), min(case.bracket.share for case in cases)
        own = now + share * (until - now)
        left = tried = [(case, case.bracket.next()) for case in cases]
        asked = {case.index: self._asked(case, radius) for case, radius in tried}
        for prover in self.provers:
            open_, now_asked = [], [asked[case.index] for case, _ in left]
            for (case, radius), found in zip(left, prover.prove(self.facts, now_asked, own), strict=True):
                if isinstance(found, CounterExample):
                    case.break_at(found, radius)
                    continue
                case.keep(found)
                if case.bracket.certified < radius:
                    open_.append((case, radius))
            left = open_
            if not left:
                break
        for case, radius in left:
            cut = share < 1.0 and time.perf_counter() > own
            case.bracket.fail(radius, (own - now) / len(cases) if cut else math.inf)
        for case, radius in tried:
            case.bracket.tried(radius)

    def _within_limits(self, cases: Sequence[_Case], until: float) -> None:
        """Any radius, where the attack found no other class within limits, if ranges are enough and soon there."""
        facts = self.facts
        if facts.threat.radii is not None or facts.threat.clip is None:
            return
        untouched = [case for case in cases if math.isinf(case.bracket.attacked)]
        for number, case in enumerate(untouched):
            claim, now = case.at(FARTHEST), time.perf_counter()
            own = now + _SOON * (until - now) / (len(untouched) - number)
            with suppress(LipcertError, NotProved), torch.no_grad():  # at the end of its time, or others know more
                place = facts.subject.setting(facts.subject.facts, facts.domain(claim), True, own)
                if bool((place.plain(facts.rows(claim)) > facts.lost(claim)).all()):
                    case.keep(proved("linear_bounds", facts, claim))

    def _widen(self, cases: Sequence[_Case], until: float) -> None:
        """The largest radius of each; where that is not found, or seen to be it, a bracket goes on radius by radius."""
        assert self.widening is not None
        asked = [self._asked(case, case.bracket.next()) for case in cases]
        if self.widening.refined:
            until -= _REFINED * (until - time.perf_counter())
        for case, found in zip(cases, self.widening.widen(self.facts, asked, until), strict=True):
            case.keep(found)
            if found is not None:
                case.bracket.stop() if not self.widening.refined else case.bracket.fail(case.bracket.attacked)

    def _asked(self, case: _Case, radius: float) -> Asked:
        known = case.bracket
        between = None if known.radii is not None else (known.certified, min(known.attacked, known.failed))
        return Asked(case.at(radius), self._starts(case, radius), between)

    def _starts(self, case: _Case, radius: float) -> Tensor:
        """The attack's points, drawn in to the radius."""
        x = case.claim.x
        if case.starts is None:
            return x.expand(self.facts.classes - 1, *x.shape)
        return self.facts.domain(case.at(radius)).project(case.starts.flatten(1).reshape(-1, *x.shape))

    # -- rows ------------------------------------------------------------------------------------------------

    def _wrong(self, case: _Case, margin: float) -> Decision:
        row = Row(case.index, case.claim.label, case.predicted, "wrong", 0.0, 0.0, margin, "clean", None, case.seconds)
        return Decision(row)

    def _finished(self, case: _Case) -> Iterator[Decision]:
        if not case.wanted:
            return
        known, proof = case.bracket, case.proof
        method = proof.method if proof is not None else "none" if case.counter is None else "attack"
        guarantee: Guarantee | None = None if proof is None else proof.margins.guarantee
        margin = margin_there(self.facts, case.claim)[0] if proof is None else proof.margin
        row = Row(
            case.index, case.claim.label, case.predicted, _status(known), known.certified, known.attacked, margin,
            method, guarantee, case.seconds,
        )  # fmt: skip
        evidence = proof is not None or case.counter is not None
        yield Decision(
            row,
            None if proof is None else proof.content,
            case.claim.x.numpy().tobytes() if evidence else None,
            None if case.counter is None else case.counter.numpy().tobytes(),
        )


def _status(known: Bracket) -> Status:
    top = known.top if math.isfinite(known.top) else min(known.certified, 1.0)
    if known.certified >= top and known.certified > 0.0:
        return "certified"
    return "attacked" if known.attacked <= known.top and math.isfinite(known.attacked) else "open"


class _Clock:
    """Shares the time since it was last asked among cases."""

    def __init__(self) -> None:
        self.since = time.perf_counter()

    def share(self, cases: Sequence[_Case]) -> None:
        now = time.perf_counter()
        for case in cases:
            case.seconds += (now - self.since) / len(cases)
        self.since = now
