"""Parts of domains in the ascent: variables of several put together, and where to split them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from lipcert.search.cost_to_go.cells import Cell
from lipcert.search.cost_to_go.dual import Question
from lipcert.search.cost_to_go.inputs import Domains
from lipcert.search.cost_to_go.start import Start
from lipcert.search.cost_to_go.variables import Variables

Key = TypeVar("Key")


def together(several: Sequence[Variables]) -> Variables:
    """The functions of several, one after another; all of one network, with the same nodes released."""
    first = several[0]
    if len(several) == 1:
        return first

    def of(group: Callable[[Variables], Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
        groups = [group(v) for v in several]
        return {k: torch.cat([g[k] for g in groups]) for k in groups[0]}

    questions = [v.question for v in several]
    domains = [q.domains for q in questions]
    center, radius, low, high = (
        torch.cat([getattr(d, name) for d in domains]) for name in ("center", "radius", "low", "high")
    )
    question = Question(
        first.question.plan, torch.cat([q.rows for q in questions]), of(lambda v: v.question.low),
        of(lambda v: v.question.high), Domains(center, radius, domains[0].p, low, high),
        replace(first.question.relaxed, example=torch.cat([q.relaxed.example for q in questions])),
    )  # fmt: skip
    start = Start(*(of(lambda v, name=name: getattr(v.start, name)) for name in vars(first.start)))  # type: ignore[misc]
    names = {name: max(v.age.get(name, 0) for v in several) for name in first.age}
    return Variables(
        question, first.settings, start, of(lambda v: v.free), first.diagonal, of(lambda v: v.directions),
        of(lambda v: v.first), of(lambda v: v.second), names, of(lambda v: v.mean),
    )  # fmt: skip


def carried(several: Sequence[Variables | None], question: Question) -> Variables | None:
    """Variables of the same functions from another search, put to this question; None where they do not fit it."""
    known = [variables for variables in several if variables is not None]
    if not known or len(known) < len(several):
        return None
    first, plan, rows = known[0], question.plan, question.rows
    own = first.question
    alike = (own.rows.dtype, own.rows.device, own.plan.relaxed) == (rows.dtype, rows.device, plan.relaxed)
    same = all((v.diagonal, {*v.free}, {*v.first}) == (first.diagonal, {*first.free}, {*first.first}) for v in known)
    return replace(together(known), question=question) if alike and same else None


def within(variables: Variables, low: Mapping[int, Tensor], high: Mapping[int, Tensor]) -> Variables:
    """The same on other ranges; what is asked of the input, too, where they are tighter there.

    Args:
        variables: of P functions.
        low, high: of the nodes whose ranges are asked for, (P, *shape).
    """
    question = replace(variables.question, low=low, high=high)
    return replace(variables, question=question)


@dataclass(frozen=True, eq=False)
class Look:
    """At the ascent's points of least cost.

    Attributes:
        x: (P, *in_shape), of the input.
        position, entry, threshold: (P, n), where to split, the best first: a node, an entry of its value, a number.
        score: (P, n).
    """

    x: Tensor
    position: Tensor
    entry: Tensor
    threshold: Tensor
    score: Tensor


def look(variables: Variables, count: int) -> Look:
    """Which entries to split: those whose costs are far above their least at the values that x itself gives.

    The bound is a sum of least costs, each taken at a point of its own; were these the values at one x, it would be f
    there. So the differences add up to how far the bound is from f(x), but for what the quadratic costs lose.
    """
    plan = variables.question.plan
    scores, positions, thresholds = [], [], []
    with torch.no_grad():
        cells, windows, x = variables.question.cells(variables.multipliers(), variables.weigh(0))
        values = plan.values_at(x)
        for k, cell in cells.items():
            parent = plan.network.nodes[k].parents[0]
            v = values[parent].reshape(cell.low.shape)
            v = torch.minimum(torch.maximum(v, cell.low), cell.high)
            z = torch.as_tensor(cell.function(v), dtype=v.dtype).expand(v.shape)
            best, value = cell.least_point()
            threshold = _threshold(cell, 0.5 * (v + best))
            score = cell.at(v, z) - cell.at(best, value)
            inside = (cell.low < threshold) & (threshold < cell.high)
            score = torch.where(inside & score.isfinite(), score, -math.inf)
            scores.append(score.flatten(1))
            thresholds.append(threshold.flatten(1))
            positions.append(torch.full_like(scores[-1], parent, dtype=torch.int64))
        for k, window in windows.items():
            v = values[plan.network.nodes[k].parents[0]].flatten(1)[:, plan.maxima[k].index.to(x.device)]
            v = torch.cat([v, window.low[..., -1:]], -1)
            score = window.cost(torch.minimum(torch.maximum(v, window.low), window.high)) - window.least
            level, question = plan.levels[k], variables.question
            inside = (question.low[k] < level) & (level < question.high[k])
            scores.append(torch.where(inside.flatten(1) & score.isfinite(), score, -math.inf))
            thresholds.append(torch.full_like(score, level))
            positions.append(torch.full_like(score, k, dtype=torch.int64))
        if not scores:  # maxima alone, no entry of which decides: nowhere
            nowhere = x.new_zeros(len(x), 1)
            return Look(x, nowhere.long(), nowhere.long(), nowhere, torch.full_like(nowhere, -math.inf))
    entries = [torch.arange(s.shape[1], device=s.device).expand(len(s), -1) for s in scores]
    score, index = torch.cat(scores, 1).topk(min(count, sum(s.shape[1] for s in scores)), dim=1)
    place, entry, threshold = (torch.cat(t, 1).gather(1, index) for t in (positions, entries, thresholds))
    return Look(x, place, entry, threshold, score)


def _threshold(cell: Cell, near: Tensor) -> Tensor:
    """The kink within the range that is nearest to a point; the point where there is none."""
    found, distance = near, torch.full_like(near, math.inf)
    for kink in cell.function.kinks:
        at = torch.as_tensor(kink.position, dtype=near.dtype).to(near.device).expand(near.shape)
        away = torch.where((cell.low < at) & (at < cell.high), (at - near).abs(), math.inf)
        found, distance = torch.where(away < distance, at, found), torch.minimum(away, distance)
    return found
