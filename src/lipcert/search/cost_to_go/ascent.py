"""The search: batches of functions, from curvatures per activation to curvatures per neuron, each leaving when proved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.network.graph import Network
from lipcert.network.linear import size
from lipcert.search.cost_to_go.dual import Question
from lipcert.search.cost_to_go.inputs import Domains
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.settings import Settings
from lipcert.search.cost_to_go.start import start_at
from lipcert.search.cost_to_go.variables import Variables

#: (functions, multipliers of these) → proved lower bounds, (P',) float64; −∞ where the proof failed.
Prove = Callable[[Tensor, Multipliers], Tensor]


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found, per function.

    Attributes:
        multipliers: float64 on the CPU, one row each; None where none were found.
        value: what the search takes them to prove.
        proved: what was proved, −∞ where nothing was.
        steps: of the ascent.
    """

    multipliers: list[Multipliers | None]
    value: Tensor
    proved: Tensor
    steps: Tensor


def ascend(
    network: Network, norms: Mapping[int, Sequence[float]], boxes: Sequence[tuple[Tensor, Tensor]], domains: Domains,
    rows: Tensor, example: Tensor, starts: Tensor, settings: Settings, prove: Prove,
) -> Found:  # fmt: skip
    """Multipliers for lower bounds of P linear functions of a network's output on domains, as high as the search gets.

    Args:
        network: float64 on the CPU, without selections.
        norms: position of an affine node → upper bounds of the norms of its maps.
        boxes: per node its range on each domain, (B, *shape) twice.
        domains: B domains.
        rows: the functions, (P, m), float64.
        example: (P,), the domain of each.
        starts: (P, *in_shape), points of the domains, best where the functions are small.
        settings: of the search.
        prove: called with the functions whose value exceeds the goal.
    """
    plan = Plan(network.to(settings.dtype, settings.device), {k: tuple(n) for k, n in norms.items()})
    count = len(rows)
    found = Found(
        [None] * count, torch.full((count,), -torch.inf, dtype=torch.float64),
        torch.full((count,), -torch.inf, dtype=torch.float64), torch.zeros(count, dtype=torch.int64),
    )  # fmt: skip
    entries = sum(size(node.shape) for node in network.nodes)
    wanted = sorted({plan.network.nodes[k].parents[0] for k in plan.functions} | set(plan.cuts) | _centred(plan))
    for index in torch.arange(count).split(max(1, settings.chunk // max(1, entries))):
        at = example[index]
        low, high = ({k: boxes[k][end][at].to(settings.device, settings.dtype) for k in wanted} for end in (0, 1))
        asked = rows[index].to(settings.device, settings.dtype)
        question = Question(plan, asked, low, high, domains.at(at).to(settings.dtype, settings.device))
        points = starts[index].to(settings.device, settings.dtype)
        _climb(question, points, index, settings, prove, found)
    return found


def _centred(plan: Plan) -> set[int]:
    return {plan.network.nodes[k].parents[i] for k, i in plan.anchored}


def first_variables(question: Question, points: Tensor, settings: Settings) -> Variables:
    """The start, at the best of several scales of its curvatures for each function."""
    start = start_at(question, points)
    variables = Variables.of(question, settings, start)
    best, chosen = None, torch.zeros_like(question.rows[:, 0])
    before = {k: t.clone() for k, t in variables.free.items() if k[0] == "scale"}

    def scaled(logs: Tensor) -> None:
        for name, t in before.items():
            variables.free[name] = t + logs.reshape(-1, *[1] * (t.dim() - 1))

    with torch.no_grad():
        for scale in settings.scales:
            logs = torch.full_like(chosen, scale).log()
            scaled(logs)
            value = variables.value(settings.power)
            better = torch.ones_like(value, dtype=torch.bool) if best is None else value > best
            best = value if best is None else torch.where(better, value, best)
            chosen = torch.where(better, logs, chosen)
    scaled(chosen)
    return variables


def _climb(question: Question, points: Tensor, index: Tensor, settings: Settings, prove: Prove, found: Found) -> None:
    variables = first_variables(question, points, settings)
    room = torch.full((len(index),), settings.room, dtype=settings.dtype, device=settings.device)
    rate = settings.rate
    for step in range(settings.steps + 1):
        if step == settings.warm:
            variables.release(question.plan.bent)
        if step and (step % settings.every == 0 or step == settings.steps):
            keep = _settle(variables, index, room, step, settings, prove, found)
            if not len(keep):
                return
            if len(keep) < len(index):
                variables, index, room = variables.at(keep), index[keep.cpu()], room[keep]
        if step < settings.steps:
            variables.ascend(rate)
            rate *= settings.decay


def _settle(
    variables: Variables, index: Tensor, room: Tensor, step: int, settings: Settings, prove: Prove, found: Found
) -> Tensor:
    """Prove what exceeds the goal, and keep everything at the end; the rows that stay."""
    last = step == settings.steps
    with torch.no_grad():
        value = variables.value(settings.power)
    ready = value > settings.goal if settings.goal is not None else torch.full_like(value, last, dtype=torch.bool)
    rows = (ready | last).nonzero().reshape(-1)
    if len(rows):
        multipliers, sure = variables.provable(rows, room[rows])
        at = index[rows.cpu()]
        found.value[at], found.steps[at] = sure, step
        for place, row in enumerate(at.tolist()):
            found.multipliers[row] = multipliers.map(lambda t, place=place: t[place : place + 1].clone())
        tried = (sure > settings.goal if settings.goal is not None else sure > -torch.inf).nonzero().reshape(-1)
        if len(tried):
            found.proved[at[tried]] = prove(at[tried], multipliers.map(lambda t: t[tried]))
            refused = found.proved[at[tried]] == -torch.inf
            room[rows[tried[refused].to(rows.device)]] *= 3.0
    if settings.goal is None:
        return torch.arange(len(index), device=room.device)
    return (found.proved[index] <= settings.goal).nonzero().reshape(-1).to(room.device)
