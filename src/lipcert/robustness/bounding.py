"""Bounds of what a model puts out on one domain: two searches of the cost-to-go, and trees of splits if asked for."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.attack.adversarial import lowest
from lipcert.certificates.outputs import Subject, check_outputs
from lipcert.errors import CertificateError, InputError, NotProved
from lipcert.network.graph import Network
from lipcert.network.linear import size
from lipcert.result import OutputBound
from lipcert.robustness.outputs import Bounded, Task, look_for_bases, prove_below
from lipcert.robustness.raising import raised
from lipcert.search.cost_to_go.settings import Settings

#: Steps of the first search, the most of the second and of the roots of trees; the share of the time that the second
#: may take where trees follow; seconds that the first has however little is asked for.
FIRST, MOST, ROOTS, SHARE, LEAST = 40, 600, 200, 0.3, 10.0


@dataclass(frozen=True)
class Wanted:
    """What bounds are for.

    Attributes:
        above: lower bounds greater than this are good enough; None: as high as the search gets.
        below: upper bounds less than this are; None: as low as it gets.
        split: whether the domain is split to the end of the time, where that is not reached.
        least: whether only the least of the lower bounds counts.
    """

    above: float | None = None
    below: float | None = None
    split: bool = False
    least: bool = False

    def goals(self, count: int, upper: bool) -> Tensor:
        """Of ``count`` functions, and of minus them."""
        none = math.inf if self.above is None and self.below is None else -math.inf  # what is not asked for is good
        above = none if self.above is None else self.above
        below = none if self.below is None else -self.below
        return torch.tensor([above] * count + [below] * count * upper, dtype=torch.float64)


def bound_outputs(
    model: Network, domain: Bounded, select: Tensor | None, upper: bool, budget: float, seed: int,
    device: torch.device, wanted: Wanted | None = None,
) -> OutputBound:  # fmt: skip
    """Certified bounds of select·f on one domain, as tight as the search gets in the time.

    Args:
        model: as captured.
        domain: of its in_shape.
        select: (k, m) or None.
        upper: whether upper bounds are wanted, too.
        budget: seconds of search.
        seed, device: of the search.
        wanted: what ends the search early, and whether the domain is split.
    """
    started = time.perf_counter()
    if not size(model.out_shape):
        raise InputError("the model puts out no numbers: there is nothing to bound.")
    wanted = wanted or Wanted()
    subject = Subject(model)
    select = None if select is None else select.detach().clone()  # the claim stays what it was
    rows = subject.rows(select)
    goals = wanted.goals(len(rows), upper)
    rows = torch.cat([rows, -rows]) if upper else rows
    found = lowest(model, [domain], rows, seed=seed, device=device)
    starts, reached = found.points[0].reshape(len(rows), *model.in_shape), found.values[0]
    task = Task(domain, rows, starts, None)
    short = Settings(steps=FIRST, warm=FIRST // 2, goal=None, seed=seed, device=device)
    long = replace(short, steps=MOST, warm=40)
    trees = wanted.split or bool(goals.isfinite().any())
    look_for_bases(subject)
    began = time.perf_counter()
    best = prove_below(subject, [task], short, linear=True, until=began + max(budget, LEAST))[0]
    now = time.perf_counter()
    end = now + (started + budget - now) * (SHARE if trees else 1.0)
    if end - now > now - began and not bool((best.lower > goals).all()):  # else it would not come as far
        best = best.better(prove_below(subject, [task], long, linear=True, until=end)[0])
    witness = best.witness(subject, upper)
    if trees and best.linear:  # else there was no time for linear bounds of the whole
        with torch.no_grad():
            setting = subject.setting(subject.facts, domain, True)
        if wanted.split:  # what cannot be reached is no end
            goals = torch.where(reached > goals, goals, math.inf)
        own = replace(short, steps=ROOTS, warm=40)
        split = raised(
            subject, setting, domain, rows, starts, best, goals, reached, wanted.least, upper, own, started + budget
        )
        try:
            return check_outputs(subject, domain, select, split, split.kind, started)
        except (NotProved, CertificateError):  # what was known before is proved all the same
            pass
    return check_outputs(subject, domain, select, witness, witness.kind, started)
