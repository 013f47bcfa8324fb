"""One row of the robustness benchmark: attack, search with proof, certificates verified, and attacked again."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from breaking import break_certified
from robustness_networks import Case, Radius
from slopes import alpha_crown, crown
from torch import Tensor, nn

import lipcert
from lipcert.attack.adversarial import Attack, attack
from lipcert.capture.torch_export import capture
from lipcert.certificates.file import parsed
from lipcert.certificates.outputs import FORMAT, OutputCertificate, Subject, verify_outputs
from lipcert.domain import Ball
from lipcert.errors import CertificateError
from lipcert.guarantee import weakest
from lipcert.network.graph import Network
from lipcert.robustness.outputs import Answer, Task, margin_rows, prove_below
from lipcert.search.cost_to_go.settings import Settings

Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A search for what the stages before left open.

    Attributes:
        settings: of the search.
        linear: whether linear bounds tighten the ranges.
    """

    settings: Settings
    linear: bool


#: The same for every network, but that large norms make the first stage useless.
CHEAP = Stage(Settings(), linear=False)
THOROUGH = Stage(Settings(steps=600, warm=40, decay=0.995), linear=True)


#: Relative, what a certificate claims less than was proved.
ROOM = 1e-6


class Clock:
    """CPU seconds since it was last asked."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def __call__(self) -> float:
        before, self.last = self.last, time.process_time()
        return self.last - before


@dataclass(eq=False)
class Images:
    """Those that the network classifies correctly, with balls around them."""

    network: Network
    x: Tensor
    labels: Tensor
    p: float

    def balls(self, radius: float) -> list[Ball]:
        """One per image, fitted."""
        return [Ball(x, radius, self.p).fitted(self.network.in_shape) for x in self.x.double()]


@dataclass(eq=False)
class Proofs:
    """What is proved of the images that the attack leaves.

    Attributes:
        answers: place of an image → what was proved of it.
    """

    answers: dict[int, Answer] = field(default_factory=dict)

    @property
    def certified(self) -> list[int]:
        """Places whose every margin is positive."""
        return [i for i, answer in self.answers.items() if bool((answer.lower > 0.0).all())]

    @property
    def by_ranges(self) -> int:
        """How many images were proved without a search."""
        return sum(all(m is None for m in self.answers[i].multipliers) for i in self.certified)


def run(case: Case, radius: Radius, count: int, effort: float) -> Iterator[Row]:
    """The row of a network and a ball, and again after the attack on what is certified, if there is effort for one."""
    clock = Clock()
    model, x, labels = case.load()
    x, labels = x[:count], labels[:count]
    count = len(x)
    clock()
    network = capture(model, x[:1])
    subject = Subject(network)
    _ = subject.facts.reaches
    seconds = {"setup": clock()}
    with torch.no_grad():
        right = (model(x).argmax(1) == labels).nonzero().reshape(-1)
    images = Images(network, x[right], labels[right], radius.p)
    value = radius.value or leaving(images, round(radius.share * count))
    clock()
    balls = images.balls(value)
    found = attack(network, balls, images.labels)
    seconds["attack"] = clock()
    left = [i for i, broken in enumerate(found.broken) if broken is None]
    tasks = {i: _task(network, balls[i], int(images.labels[i]), found, i) for i in left}
    others = compare(subject, tasks) if case.compare or radius.p == math.inf else {}
    clock()
    proofs = prove(subject, tasks, (THOROUGH,) if case.plain else (CHEAP, THOROUGH))
    seconds["search"] = clock()
    verified, guarantee = verify(model, x[:1], subject, tasks, proofs)
    seconds["verify"] = clock()
    row = {
        "net": case.name, "title": case.title, "group": case.group, "p": radius.p, "radius": value,
        "label": radius.label, "images": count, "clean": _percent(len(right), count),
        "attacked": _percent(len(left), count), "certified": _percent(len(verified), count),
        "guarantee": guarantee, "open": len(left) - len(verified), "refused": len(proofs.certified) - len(verified),
        "ranges": proofs.by_ranges, "date": date.today().isoformat(),
        **{f"{name}_seconds": round(s, 2) for name, s in seconds.items()},
    }  # fmt: skip
    row |= {name: value if name.endswith("seconds") else _percent(value, count) for name, value in others.items()}
    yield row
    if effort and verified:
        breaking = break_certified(network, [balls[i] for i in verified], images.labels[verified], effort=effort)
        again = {"effort": effort, "broken": len(breaking.broken), "least_margin": breaking.least}
        yield row | again | {"breaking_seconds": round(clock(), 2)}


def compare(subject: Subject, tasks: dict[int, Task]) -> dict[str, Any]:
    """Images certified by CROWN and by α-CROWN, of those that the attack leaves, and CPU seconds of each.

    α-CROWN's begin with CROWN's own.
    """
    clock, counts, seconds = Clock(), {"crown": 0, "alpha_crown": 0}, {"crown": 0.0, "alpha_crown": 0.0}
    for task in tasks.values():
        ranged = crown(subject, task)
        seconds["crown"] += (spent := clock())
        margins = alpha_crown(subject, ranged)
        seconds["alpha_crown"] += spent + clock()
        counts["crown"] += bool((ranged.plain > 0.0).all())
        counts["alpha_crown"] += bool((margins > 0.0).all())
    return counts | {f"{name}_seconds": round(s, 2) for name, s in seconds.items()}


def largest(case: Case, count: int) -> Row:
    """The median of the largest certified radii, and of the nearest counter-examples; wrong images count as 0."""
    model, x, labels = case.load()
    x, labels = x[:count], labels[:count]
    clock = Clock()
    rows = list(lipcert.certify(model, x, labels, norm=2))
    return {
        "net": case.name, "title": case.title, "group": "largest", "p": 2.0, "label": "largest", "images": count,
        "radius": median(row.certified_radius for row in rows), "nearest": median(row.attacked_radius for row in rows),
        "search_seconds": round(clock(), 2), "date": date.today().isoformat(),
    }  # fmt: skip


def _percent(part: int, count: int) -> float:
    return round(100.0 * part / count, 2)


def _task(network: Network, ball: Ball, label: int, found: Attack, place: int) -> Task:
    """Margins to every other class, started at the attack's points; its pairs are in the order of the classes."""
    mine = (found.example == place).nonzero().reshape(-1)
    rows = margin_rows(10, label)
    return Task(ball, rows, found.points[mine].reshape(-1, *network.in_shape))


def prove(subject: Subject, tasks: dict[int, Task], stages: Sequence[Stage]) -> Proofs:
    """Stage by stage; an image that is proved leaves."""
    proofs = Proofs()
    for stage in stages:
        done = set(proofs.certified)
        rest = {i: task for i, task in tasks.items() if i not in done}
        if rest:
            answers = prove_below(subject, list(rest.values()), stage.settings, stage.linear)
            proofs.answers.update(zip(rest, answers, strict=True))
    return proofs


def verify(
    model: nn.Module, example: Tensor, subject: Subject, tasks: dict[int, Task], proofs: Proofs
) -> tuple[list[int], str]:
    """Images whose certificate, saved, read and checked against the model captured anew, proves the class; how surely.

    The check works out norms, ranges and bounds by itself; the norms are shared between images.
    """
    fresh = Subject(capture(model, example))
    verified, guarantees = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.lipcert"
        for i in proofs.certified:
            record(proofs.answers[i], tasks[i], subject).save(path)
            try:
                bound = verify_outputs(parsed(path, {FORMAT: OutputCertificate.of_parts}), fresh)
            except CertificateError:
                continue
            if bound.value > 0.0:
                verified.append(i)
                guarantees.append(bound.guarantee)
    return verified, weakest(guarantees) if guarantees else ""


def record(answer: Answer, task: Task, subject: Subject) -> OutputCertificate:
    """What the search takes to be proved, and a little less of it, for a check that rounds in another way."""
    witness, lower = answer.witness(subject), answer.lower * (1.0 - ROOM)
    return OutputCertificate(
        witness, witness.kind, subject.model.fingerprint, task.domain, task.rows, lower,
        torch.full_like(lower, torch.inf), answer.guarantee, lipcert.__version__,
    )  # fmt: skip


def leaving(images: Images, wanted: int) -> float:
    """A radius at which the attack leaves ``wanted`` images, to three digits."""
    nearest = torch.full((len(images.x),), torch.inf, dtype=torch.float64)
    radius = 1.0
    for _ in range(8):
        found = attack(images.network, images.balls(radius), images.labels)
        for i, counter in enumerate(found.broken):
            if counter is not None:
                nearest[i] = min(float(nearest[i]), counter.distance or radius)
        left = sum(counter is None for counter in found.broken)
        if left == wanted:
            break
        ordered = nearest.sort().values
        last = len(ordered) - wanted  # so many images are to be broken
        if last <= 0:
            return radius
        if not ordered[last - 1].isfinite():
            radius *= 2.0
            continue
        beyond = min(float(ordered[last]), 1.02 * float(ordered[last - 1]))
        radius = float(f"{0.5 * (float(ordered[last - 1]) + beyond):.3g}")
    return radius
