"""One row of the robustness benchmark: ``lipcert.certify``, its file verified, and what is certified attacked again."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from breaking import break_certified
from robustness_networks import Case, Radius
from slopes import alpha_crown, crown
from torch import Tensor

import lipcert
from lipcert.attack.adversarial import attack
from lipcert.capture.torch_export import capture
from lipcert.certificates.outputs import Subject
from lipcert.domain import Ball
from lipcert.guarantee import weakest
from lipcert.network.graph import Network
from lipcert.robustness.outputs import Task, margin_rows

Row = dict[str, Any]

#: What ``certify`` needs no search for.
_QUICK = {"clean", "attack", "pair_constants"}
#: Images of a row at most on which CROWN and α-CROWN are run.
_COMPARED = 20


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


def run(case: Case, radius: Radius, count: int, effort: float, budget: float) -> Iterator[Row]:
    """The row of a network and a ball; again with other methods beside, and after the attack on what is certified."""
    model, every, answers = case.load()
    x, labels = every[:count], answers[:count]
    count = len(x)
    network = capture(model, x[:1])
    value = radius.value or leaving(network, every[: case.images], answers[: case.images], radius)
    clock = Clock()
    found = lipcert.certify(model, x, labels, norm=radius.p, radius=value, budget=budget)
    seconds = {"certify": clock()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.robust"
        found.save(path)
        clock()
        found = lipcert.Certification.load(path).verify(model)
        seconds["verify"] = clock()
    certified = [row for row in found if row.status == "certified"]
    searched = [row.seconds for row in found if row.method not in _QUICK]
    row = {
        "net": case.name, "title": case.title, "group": case.group, "p": radius.p, "radius": value,
        "label": radius.label, "images": count, "clean": _percent(found.clean_accuracy),
        "attacked": _percent(found.attacked_accuracy(value)), "certified": _percent(found.certified_accuracy(value)),
        "guarantee": weakest([row.guarantee for row in certified if row.guarantee]) if certified else "",
        "open": sum(row.status == "open" for row in found),
        "split": sum(row.method == "branched_cost_to_go" for row in certified),
        "searched": len(searched), "each_seconds": round(mean(searched), 2) if searched else 0.0,
        "budget": budget, "date": date.today().isoformat(),
        **{f"{name}_seconds": round(s, 2) for name, s in seconds.items()},
    }  # fmt: skip
    yield row
    if case.compare or radius.p == math.inf:
        left = [row.index for row in found[:_COMPARED] if row.status in ("certified", "open")]
        chosen = Images(network, x[left], labels[left], radius.p)
        row |= compare(chosen, value, min(count, _COMPARED))
        yield row
    if effort and certified:
        chosen = [row.index for row in certified]
        balls = Images(network, x[chosen], labels[chosen], radius.p).balls(value)
        clock()
        breaking = break_certified(network, balls, labels[chosen], effort=effort)
        again = {"effort": effort, "broken": len(breaking.broken), "least_margin": breaking.least}
        yield row | again | {"breaking_seconds": round(clock(), 2)}


def compare(images: Images, radius: float, count: int) -> Row:
    """Per cent of ``count`` certified by CROWN and by α-CROWN, of those that the attack leaves, and CPU seconds.

    α-CROWN's begin with CROWN's own.
    """
    subject, balls = Subject(images.network), images.balls(radius)
    found = attack(images.network, balls, images.labels) if balls else None
    clock, counts, seconds = Clock(), {"crown": 0, "alpha_crown": 0}, {"crown": 0.0, "alpha_crown": 0.0}
    for i, ball in enumerate(balls):
        assert found is not None
        starts = found.points[found.example == i].reshape(-1, *images.network.in_shape)
        task = Task(ball, margin_rows(10, int(images.labels[i])), starts)
        clock()
        ranged = crown(subject, task)
        seconds["crown"] += (spent := clock())
        margins = alpha_crown(subject, ranged)
        seconds["alpha_crown"] += spent + clock()
        counts["crown"] += bool((ranged.plain > 0.0).all())
        counts["alpha_crown"] += bool((margins > 0.0).all())
    shares = {name: _percent(number / count) for name, number in counts.items()}
    return {"compared": count} | shares | {f"{name}_seconds": round(s, 2) for name, s in seconds.items()}


def largest(case: Case, count: int, budget: float) -> Row:
    """The median of the largest certified radii, and of the nearest counter-examples; wrong images count as 0."""
    model, x, labels = case.load()
    x, labels = x[:count], labels[:count]
    clock = Clock()
    rows = list(lipcert.certify(model, x, labels, norm=2, budget=budget))
    return {
        "net": case.name, "title": case.title, "group": "largest", "p": 2.0, "label": "largest", "images": count,
        "radius": median(row.certified_radius for row in rows), "nearest": median(row.attacked_radius for row in rows),
        "certify_seconds": round(clock(), 2), "budget": budget, "date": date.today().isoformat(),
    }  # fmt: skip


def _percent(share: float) -> float:
    return round(100.0 * share, 2)


def leaving(network: Network, x: Tensor, labels: Tensor, wanted: Radius) -> float:
    """A radius at which the attack leaves this share of the images, to three digits."""
    with torch.no_grad():
        right = (network.forward(x.double()).reshape(len(x), -1).argmax(1) == labels).nonzero().reshape(-1)
    images, wanted_count = Images(network, x[right], labels[right], wanted.p), round(wanted.share * len(x))
    nearest = torch.full((len(images.x),), torch.inf, dtype=torch.float64)
    radius = 1.0
    for _ in range(8):
        found = attack(images.network, images.balls(radius), images.labels)
        for i, counter in enumerate(found.broken):
            if counter is not None:
                nearest[i] = min(float(nearest[i]), counter.distance or radius)
        left = sum(counter is None for counter in found.broken)
        if left == wanted_count:
            break
        ordered = nearest.sort().values
        last = len(ordered) - wanted_count  # so many images are to be broken
        if last <= 0:
            return radius
        if not ordered[last - 1].isfinite():
            radius *= 2.0
            continue
        beyond = min(float(ordered[last]), 1.02 * float(ordered[last - 1]))
        radius = float(f"{0.5 * (float(ordered[last - 1]) + beyond):.3g}")
    return radius
