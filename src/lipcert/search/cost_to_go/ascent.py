"""The search: batches of functions, with costs per activation, then per neuron; each leaves when it is proved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.network.linear import size
from lipcert.search.cost_to_go.dual import Question
from lipcert.search.cost_to_go.inputs import Domains, by_row
from lipcert.search.cost_to_go.leaves import carried
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.relaxed import Relaxed
from lipcert.search.cost_to_go.settings import Settings, progress
from lipcert.search.cost_to_go.start import start_at
from lipcert.search.cost_to_go.variables import Variables

if TYPE_CHECKING:
    from lipcert.certificates.cost_to_go.bases import Basis
    from lipcert.network.graph import Network
    from lipcert.ranges.linear_bounds import LinearBounds

#: (functions, multipliers of these) → proved lower bounds, (P',) float64; −∞ where the proof failed.
Prove = Callable[[Tensor, Multipliers], Tensor]
#: Factor of the room of weights whose proof failed.
WIDER = 3.0
#: Part of the rate of a search that goes on from where another ended.
LATER = 0.5


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found, per function.

    Attributes:
        multipliers: float64 on the CPU, one row each; None where the search did not come to any.
        value: what the search takes them to prove.
        proved: what they were proved to prove, −∞ where nothing was tried or shown.
        steps: after which they were found.
        variables: where the ascent ended, of functions that did not reach a goal.
    """

    multipliers: list[Multipliers | None]
    value: Tensor
    proved: Tensor
    steps: Tensor
    variables: list[Variables | None]

    @classmethod
    def none(cls, count: int) -> Found:
        """Nothing yet."""
        low = torch.full((count,), -torch.inf, dtype=torch.float64)
        return cls([None] * count, low, low.clone(), torch.zeros(count, dtype=torch.int64), [None] * count)

    def improve(self, at: Tensor, multipliers: Multipliers, value: Tensor, proved: Tensor, step: int) -> None:
        """Take over, for some functions, what proves more than what there was; without proofs, what seems to."""
        open_ = self.proved[at] == -torch.inf
        for place, function in enumerate(at.tolist()):
            first = self.multipliers[function] is None
            seems = bool(open_[place]) and (first or bool(value[place] > self.value[function]))
            if seems or bool(proved[place] > self.proved[function]):
                row = slice(place, place + 1)
                self.multipliers[function] = multipliers.map(lambda t, row=row: t[row].clone())  # type: ignore[misc]
                self.value[function], self.proved[function] = value[place], proved[place]
                self.steps[function] = step


def ascend(
    network: Network, norms: Mapping[int, Sequence[float]], boxes: Sequence[tuple[Tensor, Tensor]], domains: Domains,
    rows: Tensor, example: Tensor, starts: Tensor, settings: Settings, prove: Prove,
    bounds: Sequence[LinearBounds] = (), until: float = math.inf,
    bases: Mapping[int, Basis] | None = None, begun: Sequence[Variables | None] = (),
) -> Found:  # fmt: skip
    """Multipliers for lower bounds of P linear functions of a network's output on domains, as high as the search gets.

    Args:
        network: float64 on the CPU, without sorts.
        norms: position of an affine node → upper bounds of the norms of its maps.
        boxes: per node its range on each domain, (B, *shape) twice.
        domains: B domains.
        rows: the functions, (P, m), float64.
        example: (P,), the domain of each.
        starts: (P, *in_shape), points of the domains, best where the functions are small.
        settings: of the search.
        prove: called with the functions whose value exceeds the goal.
        bounds: linear bounds on the B domains, where there are any.
        bases: of the maxima that have one.
        until: perf_counter, at which the ascent ends and what it has reached is proved; chunks share the time.
        begun: where another search of the same functions ended, on other ranges; it starts there, by smaller steps.
    """
    relaxed = Relaxed.of(bounds, example, settings.dtype, settings.device)
    known = {k: tuple(n) for k, n in norms.items()}
    plan = Plan(network.to(settings.dtype, settings.device), known, relaxed.parents, bases or {})
    found = Found.none(len(rows))
    entries = sum(size(node.shape) for node in network.nodes)
    chunks = [i for i in torch.arange(len(rows)).split(max(1, settings.chunk // max(1, entries))) if len(i)]
    for number, index in enumerate(chunks):
        now = time.perf_counter()
        if now > until:
            break
        at = example[index]
        low, high = ({k: boxes[k][end][at].to(settings.device, settings.dtype) for k in plan.ranged} for end in (0, 1))
        asked = rows[index].to(settings.device, settings.dtype)
        own = domains.at(at).to(settings.dtype, settings.device)
        question = Question(plan, asked, low, high, own, relaxed.at(index))
        points = starts[index].to(settings.device, settings.dtype)
        share = now + (until - now) / (len(chunks) - number)  # so that none starves behind another
        further = carried([begun[i] for i in index.tolist()], question) if begun else None
        if further is None:
            _climb(first_variables(question, points, settings), index, prove, found, share)
        else:
            _climb(replace(further, settings=_later(settings)), index, prove, found, share)
    return found


def _later(settings: Settings) -> Settings:
    """Of a search that goes on from another."""
    return replace(settings, rate=LATER * settings.rate, warm=0, late=0)


def first_variables(question: Question, points: Tensor, settings: Settings) -> Variables:
    """The start, at the best of several scales of its curvatures for each function."""
    variables = Variables.of(question, settings, start_at(question, points))
    before = {name: t for name, t in variables.free.items() if name[0] == "scale"}
    best = torch.full_like(question.rows[:, 0], -torch.inf)
    chosen = torch.zeros_like(best)

    def at(logs: Tensor) -> Tensor:
        variables.free.update({name: t + by_row(logs, t) for name, t in before.items()})
        return variables.value(settings.power).nan_to_num(-torch.inf)

    with torch.no_grad():
        for scale in settings.scales:
            logs = torch.full_like(best, scale).log()
            value = at(logs)
            chosen = torch.where(value > best, logs, chosen)
            best = torch.maximum(value, best)
        at(chosen)
    return variables


def _climb(variables: Variables, index: Tensor, prove: Prove, found: Found, until: float) -> None:
    settings = variables.settings
    room = torch.full_like(variables.question.rows[:, 0], settings.room)
    began = time.perf_counter()
    for step in range(settings.steps + 1):
        if step == settings.warm:
            variables.release(variables.question.plan.bent, settings.large)
        if step == max(settings.warm, settings.late):
            variables.release(variables.question.plan.bent)
        gone = (time.perf_counter() - began) / max(1e-9, until - began)
        part = progress(step / max(1, settings.steps), gone)
        last = step == settings.steps or gone >= 1.0
        if last or (step and step % settings.every == 0):
            keep = _settle(variables, index, room, step, prove, found, last)
            if last or not len(keep):
                return
            if len(keep) < len(index):
                variables, index, room = variables.at(keep), index[keep.cpu()], room[keep]
        variables.ascend(settings.rate_at(part), settings.power_at(part))


def _settle(
    variables: Variables, index: Tensor, room: Tensor, step: int, prove: Prove, found: Found, last: bool
) -> Tensor:
    """Prove what exceeds the goal, and keep everything at the end; the rows that stay."""
    settings = variables.settings
    goal = settings.goal
    everyone = torch.arange(len(index), device=room.device)
    if goal is None and not last:
        return everyone
    steady, seems = variables.steadied()
    rows = everyone if last else everyone[seems > (-torch.inf if goal is None else goal)]
    if len(rows):
        multipliers, value = steady.at(rows).provable(room[rows])
        at, proved = index[rows.cpu()], torch.full_like(value, -torch.inf)
        tried = (value > (-torch.inf if goal is None else goal)).nonzero().reshape(-1)
        if len(tried):
            proved[tried] = prove(at[tried], multipliers.map(lambda t: t[tried])).double().cpu()
            room[rows[tried[proved[tried] == -torch.inf].to(rows.device)]] *= WIDER
        found.improve(at, multipliers, value, proved, step)
    if last and goal is not None:
        for place, function in enumerate(index.tolist()):
            if not found.proved[function] > goal:
                found.variables[function] = steady.at(torch.tensor([place]))
    if goal is None:
        return everyone
    return everyone[(found.proved[index] <= goal).to(room.device)]
