"""Lower bounds of linear functions of outputs on many domains at once: the best of ranges and the cost-to-go."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.walk import Setting, lower_bounds
from lipcert.certificates.outputs import Subject
from lipcert.domain import Ball, Box, Intersection
from lipcert.errors import CertificateError, InputError, NotProved
from lipcert.guarantee import Guarantee, weakest
from lipcert.network.graph import AffineNode, Network
from lipcert.numerics.process_state import ordinary
from lipcert.ranges.build import applied, maximum
from lipcert.search.cost_to_go.ascent import ascend
from lipcert.search.cost_to_go.bases import find_bases
from lipcert.search.cost_to_go.inputs import Domains
from lipcert.search.cost_to_go.settings import Settings
from lipcert.search.cost_to_go.variables import Variables

Bounded = Ball | Box | Intersection

#: Norms and values beyond it, and norms below its reciprocal, are searched in float64.
LARGE = 1e9


@dataclass(frozen=True, eq=False)
class Task:
    """Lower bounds asked for: rows·f on one domain.

    Attributes:
        domain: of the network's in_shape.
        rows: (k, m) float64.
        starts: (k, *in_shape), points of the domain where the rows are small, as far as an attack knows.
        goal: bounds above it are good enough; None: as high as can be.
        known: of each row multipliers that prove it on other ranges, if there are any.
        begun: of each row where another search of it on this domain ended, if there was one.
    """

    domain: Bounded
    rows: Tensor
    starts: Tensor
    goal: float | None = 0.0
    known: Sequence[Multipliers | None] = ()
    begun: Sequence[Variables | None] = ()


@dataclass(eq=False)
class Answer:
    """What was proved of a task: values, and the multipliers for a witness (None: ranges alone).

    ``variables`` tells of each row that is open where the search ended.
    """

    lower: Tensor
    linear: bool
    guarantee: Guarantee = "rigorous"
    multipliers: list[Multipliers | None] = field(default_factory=list)
    variables: dict[int, Variables] = field(default_factory=dict)

    def better(self, other: Answer) -> Answer:
        """Of each function what the higher bound has."""
        higher = (other.lower > self.lower).tolist()
        chosen = [b if wins else a for a, b, wins in zip(self.multipliers, other.multipliers, higher, strict=True)]
        guarantee = weakest([self.guarantee, other.guarantee])
        return Answer(torch.maximum(self.lower, other.lower), self.linear, guarantee, chosen)

    def witness(self, subject: Subject, upper: bool = False) -> Witness:
        """For ``check_outputs``; ``upper``: the second half of the rows is minus the first."""
        settings = {"linear": self.linear, "upper": upper}
        found = [m for m in self.multipliers if m is not None]
        if not found:
            return Witness("ranges", {}, settings)
        filled = [m if m is not None else found[0].map(torch.zeros_like) for m in self.multipliers]
        return Witness("cost_to_go", {**joined(filled).arrays(), **subject.facts.arrays}, settings)


def joined(parts: Sequence[Multipliers]) -> Multipliers:
    """The functions of several multipliers one after another; what one of them leaves out is 0 there."""
    groups = []
    for name in ("slope", "curvature", "anchor", "weight"):
        keys = dict.fromkeys(key for part in parts for key in getattr(part, name))
        group = {}
        for key in keys:
            tensors = [getattr(part, name).get(key) for part in parts]
            full = max((t for t in tensors if t is not None), key=Tensor.numel)
            rows = [full.new_zeros(1, *full.shape[1:]) if t is None else t for t in tensors]
            group[key] = torch.cat([t.expand(len(t), *full.shape[1:]) for t in rows])
        groups.append(group)
    return Multipliers(*groups)


@ordinary()
def prove_below(
    subject: Subject, tasks: Sequence[Task], settings: Settings, linear: bool, until: float = math.inf
) -> list[Answer]:
    """Answers to tasks, all searched in one batch.

    Args:
        subject: the captured network.
        tasks: domains of one kind (balls of one p, within boxes or not; boxes).
        settings: of the search.
        linear: whether ranges are tightened by linear bounds.
        until: perf_counter, at which search and proofs end, one of which may still be under way; a task that linear
            bounds were not done for by then is answered by intervals.
    """
    with torch.no_grad():
        places = [_in_time(subject, task, linear, until) for task in tasks]
        answers = [
            Answer(place.plain(task.rows), place.linear, multipliers=[None] * len(task.rows))
            for place, task in zip(places, tasks, strict=True)
        ]
    for answer, task, place in zip(answers, tasks, places, strict=True):
        _by_known(answer, task, place, until)
    pairs = [
        (i, r)
        for i, (answer, task) in enumerate(zip(answers, tasks, strict=True))
        for r in range(len(task.rows))
        if task.goal is None or not answer.lower[r] > task.goal
    ]
    usable = [i for i, place in enumerate(places) if place.linear == linear and bool(place.boxes[0].finite.all())]
    pairs = [(i, r) for i, r in pairs if i in usable]
    if not pairs:
        return answers
    if deep(subject.network):
        found = _searched(subject, tasks, places, answers, pairs, settings, until)
    else:  # activations of the input alone, whose least values the check works out
        none = Multipliers()
        found = {(i, r): (none, float(_proved(places[i], tasks[i].rows[[r]], none, answers[i]))) for i, r in pairs}
    for (i, r), (own, value) in found.items():
        if own is not None and value > answers[i].lower[r]:
            answers[i].lower[r] = value
            answers[i].multipliers[r] = own
    return answers


def _by_known(answer: Answer, task: Task, place: Setting, until: float) -> None:
    """What multipliers that were found on other ranges prove on these."""
    for r, own in enumerate(task.known):
        if own is None or (task.goal is not None and answer.lower[r] > task.goal) or time.perf_counter() > until:
            continue
        value = float(_proved(place, task.rows[[r]], own, answer))
        if value > answer.lower[r]:
            answer.lower[r], answer.multipliers[r] = value, own


def _in_time(subject: Subject, task: Task, linear: bool, until: float) -> Setting:
    """By linear bounds as far as there is time for them, else by intervals."""
    try:
        return subject.setting(subject.facts, task.domain, linear, until)
    except NotProved:
        return subject.setting(subject.facts, task.domain, False)


def deep(network: Network) -> bool:
    """Whether a cost that goes back from the output meets a maximum, or an activation of a linear map's values."""
    waiting, seen = [len(network.nodes) - 1], set()
    while waiting:
        k = waiting.pop()
        node = network.nodes[k]
        if k in seen:
            continue
        seen.add(k)
        of_affine = bool(node.parents) and isinstance(network.nodes[node.parents[0]], AffineNode)
        if maximum(node) is not None or (applied(node) is not None and of_affine):
            return True
        waiting += node.parents
    return False


def look_for_bases(subject: Subject) -> None:
    """Once for a network: bases in which its maxima over windows cost less."""
    if not subject.based:
        with torch.random.fork_rng(devices=[]):
            subject.adopt(find_bases(subject.plain))


def norms_of(subject: Subject) -> dict[int, tuple[float, ...]]:
    """Position of an affine node → norms of its maps."""
    positions = [k for k, node in enumerate(subject.network.nodes) if isinstance(node, AffineNode)]
    return {k: tuple(norm.value for norm in subject.facts.norms(k)) for k in positions}


def precise_enough(
    settings: Settings, norms: Mapping[int, Sequence[float]], numbers: Sequence[Tensor]
) -> tuple[Settings, bool]:
    """The settings, in float64 unless float32 holds a network's numbers and their products well; whether it does."""
    sizes = [float(t[t.isfinite()].abs().max()) for t in numbers if bool(t.isfinite().any())]
    own = [n for row in norms.values() for n in row]
    moderate = max([*own, *sizes], default=0.0) < LARGE and min((n for n in own if n), default=1.0) > 1.0 / LARGE
    return (settings if moderate else replace(settings, dtype=torch.float64)), moderate


#: (task, row).
Pair = tuple[int, int]


def _searched(
    subject: Subject, tasks: Sequence[Task], places: Sequence[Setting], answers: Sequence[Answer],
    pairs: Sequence[Pair], settings: Settings, until: float,
) -> dict[Pair, tuple[Multipliers | None, float]]:  # fmt: skip
    """Multipliers of pairs and what they were proved to be worth."""
    network = subject.network
    used = sorted({i for i, _ in pairs})
    index = {i: n for n, i in enumerate(used)}
    boxes = [
        (torch.stack([places[i].boxes[k].low for i in used]), torch.stack([places[i].boxes[k].high for i in used]))
        for k in range(len(network.nodes))
    ]

    def prove(which: Tensor, candidates: Multipliers) -> Tensor:
        """By domain: functions on one are proved together."""
        result = torch.full((len(which),), -math.inf, dtype=torch.float64)
        asked = [pairs[w] for w in which.tolist()]
        for number, i in enumerate(sorted({i for i, _ in asked})):
            if number and time.perf_counter() > until:
                break
            here = torch.tensor([n for n, (j, _) in enumerate(asked) if j == i])
            rows = tasks[i].rows[[r for j, r in asked if j == i]]
            result[here] = _proved(places[i], rows, candidates.at(here), answers[i])
        return result

    norms = norms_of(subject)
    ends = [end for i in used for box in places[i].boxes for end in (box.low, box.high)]
    settings, moderate = precise_enough(settings, norms, [*ends, *(tasks[i].rows for i in used)])
    try:
        found = ascend(
            network, norms, boxes, together([tasks[i].domain for i in used]),
            torch.stack([tasks[i].rows[r] for i, r in pairs]), torch.tensor([index[i] for i, _ in pairs]),
            torch.stack([tasks[i].starts[r].reshape(network.in_shape) for i, r in pairs]), settings, prove,
            [places[i].bounds for i in used], until, subject.facts.bases,
            [tasks[i].begun[r] if tasks[i].begun else None for i, r in pairs],
        )  # fmt: skip
    except Exception as problem:  # ranges have proved something all the same
        if not moderate:
            return {}
        warnings.warn(
            f"the search of the cost-to-go broke ({type(problem).__name__}: {str(problem)[:200]}): bounds are those of "
            "ranges, true but loose. This is a bug in lipcert; please report it.",
            stacklevel=2,
        )
        return {}
    for (i, r), ended in zip(pairs, found.variables, strict=True):
        if ended is not None:
            answers[i].variables[r] = ended
    result = dict(zip(pairs, zip(found.multipliers, found.proved.tolist(), strict=True), strict=True))
    for (i, r), (own, value) in result.items():
        if own is not None and value == -math.inf and time.perf_counter() < until:
            result[i, r] = _simpler(places[i], tasks[i].rows[[r]], own, answers[i])
    return result


def _simpler(place: Setting, rows: Tensor, found: Multipliers, answer: Answer) -> tuple[Multipliers | None, float]:
    """Of multipliers that prove nothing what is left without weights of their own, then without quadratic costs."""
    for fewer in (Multipliers(found.slope, found.curvature, found.anchor), Multipliers(found.slope)):
        value = float(_proved(place, rows, fewer, answer))
        if value > -math.inf:
            return fewer, value
    return None, -math.inf


def _proved(place: Setting, rows: Tensor, candidates: Multipliers, answer: Answer) -> Tensor:
    """Lower bounds; one by one where a proof of all together fails."""
    try:
        with torch.no_grad():
            value, sure = lower_bounds(place, rows, candidates)
    except (NotProved, CertificateError):  # numbers too large for a certificate are none
        if len(rows) == 1:
            return torch.full((1,), -math.inf, dtype=torch.float64)
        single = [slice(r, r + 1) for r in range(len(rows))]
        return torch.cat([_proved(place, rows[r], candidates.at(r), answer) for r in single])
    answer.guarantee = weakest([answer.guarantee, sure])
    return value


def together(domains: Sequence[Bounded]) -> Domains:
    """Domains of one kind as a batch."""
    centres, radii, lows, highs = [], [], [], []
    p = math.inf
    for domain in domains:
        box = domain.box if isinstance(domain, Intersection) else domain if isinstance(domain, Box) else None
        ball = domain.balls()[0] if domain.balls() else None
        low, high = domain.bounds()
        if ball is not None:
            p = float(ball.p)
        centre = (0.5 * low + 0.5 * high) if ball is None else ball.center.to("cpu", torch.float64)
        centres.append(centre)
        radii.append(math.inf if ball is None else ball.radius)
        lows.append(torch.full_like(centre, -math.inf) if box is None else box.lower.to("cpu", torch.float64))
        highs.append(torch.full_like(centre, math.inf) if box is None else box.upper.to("cpu", torch.float64))
    return Domains(
        torch.stack(centres), torch.tensor(radii, dtype=torch.float64), p, torch.stack(lows), torch.stack(highs)
    )


def margin_rows(m: int, label: int) -> Tensor:
    """e_label − e_k for every other class k, (m − 1, m) float64.

    Raises:
        InputError: no such class, or no other one.
    """
    if m < 2 or not 0 <= label < m:
        raise InputError(f"label {label} is no class of a model with {m} outputs, or none that another could overtake.")
    rows = -torch.eye(m, dtype=torch.float64)
    rows[:, label] += 1.0
    return torch.cat([rows[:label], rows[label + 1 :]])
