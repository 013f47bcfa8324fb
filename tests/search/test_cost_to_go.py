"""The search of the quadratic cost-to-go: what it finds is what the check proves, and below every value."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lipcert.capture.torch_export import capture
from lipcert.certificates.cost_to_go.facts import Facts
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.walk import Setting, lower_bounds
from lipcert.domain import Ball
from lipcert.errors import NotProved
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from lipcert.search.cost_to_go.ascent import Found, ascend, first_variables
from lipcert.search.cost_to_go.dual import stored
from lipcert.search.cost_to_go.leaves import together as all_of
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.relaxed import Relaxed
from lipcert.search.cost_to_go.settings import Settings
from lipcert.search.cost_to_go.start import start_at
from tests.search.cost_to_go_cases import (
    CENTRE,
    DOMAINS,
    F64,
    MODELS,
    Case,
    as_domains,
    generator_of,
    random_multipliers,
    within_both,
)
from tests.zoo import random_network

KINDS = list(DOMAINS)
#: Every model on two domains or three, every domain with many models.
PAIRS = [
    pytest.param(name, KINDS[(k + j) % len(KINDS)], marks=[pytest.mark.slow] * (j > 0 or k % 3 == 2))
    for k, name in enumerate(MODELS)
    for j in (0, 2)
]


@pytest.mark.few(4)
@pytest.mark.parametrize(("name", "domain"), PAIRS)
def test_the_search_values_multipliers_as_the_check_does(name: str, domain: str) -> None:
    """Both are the same sum; the check rounds down, and loses a little where an activation is curved."""
    case = Case(name, DOMAINS[domain])
    for seed in (0, 1):
        multipliers = random_multipliers(case, seed)
        question = case.question()
        value = question.value(multipliers, stored(question.plan, multipliers.weight))
        proved = case.prove(torch.arange(len(case.rows)), multipliers)
        curved = any(f.curved for f in question.plan.functions.values())
        loss = 0.2 if within_both(case) else 5e-3 if curved else 1e-8
        assert bool((value - proved <= loss * (1.0 + value.abs())).all()), value - proved
        if domain in ("linf", "box"):
            assert bool((proved - value <= 1e-4 * (1.0 + value.abs())).all()), value - proved


@pytest.mark.few(6)
@pytest.mark.parametrize(("name", "domain"), PAIRS)
def test_what_was_searched_is_proved_and_below_every_value(name: str, domain: str) -> None:
    case = Case(name, DOMAINS[domain])
    value, proved = case.search(dtype=F64, room=1e-6, small=4)
    outputs = case.model(case.points(400).reshape(400, 4)).detach()
    least = (outputs.flatten(1) @ case.rows.T).amin(0)
    assert bool((proved <= least + 1e-9).all())
    assert bool((proved.isfinite()).all())
    assert bool((value - proved <= (2e-2 if within_both(case) else 1e-3) * (1.0 + proved.abs())).all())


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "gap"), [("relu", 0.4), ("leaky", 0.4), ("tanh", 0.02), ("gelu", 0.05), ("linear", 1e-6)]
)
def test_small_networks_are_nearly_solved(name: str, gap: float) -> None:
    """The least value over a small ball is found from both sides."""
    case = Case(name, Ball(CENTRE, 0.25, 2))
    _, proved = case.search(steps=250, warm=0, dtype=F64, room=1e-6)
    x = case.points(64).reshape(64, 4).repeat(len(case.rows), 1).requires_grad_(True)
    rows = case.rows.repeat_interleave(64, 0)
    for step in range(200):
        value = (case.model(x) * rows).sum(1)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        moved = x - 0.05 * 0.98**step * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-9)
        x = case.domain.project(moved.reshape(-1, 1, 4)).reshape(-1, 4).detach().requires_grad_(True)
    least = (case.model(x) * rows).sum(1).detach().reshape(-1, 64).amin(1)
    centre = (case.model(torch.tensor([CENTRE], dtype=F64)) * case.rows).sum(1).detach()
    assert bool((proved <= least + 1e-9).all())
    assert bool((least - proved <= gap * (centre - least) + 1e-6).all()), (least - proved, centre - least)


SEEDS = [pytest.param(k, marks=[pytest.mark.slow] * (k >= 6)) for k in range(40)]


@pytest.mark.few(3)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks_are_bounded_and_none_is_refused(seed: int) -> None:
    """Whatever they are made of: what the search finds is proved, and no value within the domain is below."""
    zoo = random_network(seed)
    flat = zoo.example[0].reshape(-1).double()
    radius, p = 0.1 * (1.0 + seed % 3), (2.0, math.inf, 1.0)[seed % 3]
    network = Problem(capture(zoo.model, zoo.example[:1]), domain=Ball(zoo.example[0], radius, p)).expanded
    domain = Ball(flat.reshape(network.in_shape), radius, p)
    setting, plan = Setting(Facts(network, Chance()), domain, False), Plan(network, {})
    norms = {k: tuple(n.value for n in setting.facts.norms(k)) for k in plan.affine}
    outputs = math.prod(network.out_shape)
    rows = torch.randn(3, outputs, generator=generator_of(seed), dtype=F64)
    refused = []

    def prove(index: Tensor, multipliers: Multipliers) -> Tensor:
        try:
            return lower_bounds(setting, rows[index], multipliers)[0]
        except NotProved as error:
            refused.append(error)
            return torch.full((len(index),), -math.inf, dtype=F64)

    boxes = [(b.low[None], b.high[None]) for b in setting.boxes]
    start = domain.center.expand(3, *network.in_shape)
    settings = Settings(goal=None, steps=25, warm=10)
    zero = torch.zeros(3, dtype=torch.int64)
    found = ascend(network, norms, boxes, as_domains(domain), rows, zero, start, settings, prove)
    x = domain.center + radius * torch.randn(200, *network.in_shape, generator=generator_of(1), dtype=F64)
    least = (network.forward(domain.project(x)).reshape(200, -1) @ rows.T).amin(0)
    assert not refused
    assert bool((found.proved <= least + 1e-7 * (1.0 + least.abs())).all())
    assert bool(found.value.isfinite().all())
    if max(float(box.greatest.max()) for box in setting.boxes) < 1e3:  # beyond, float32 and parts of ranges are coarse
        assert bool((found.proved >= found.value - 0.02 * (1.0 + found.value.abs())).all()), (found.proved, found.value)


def test_a_function_goes_on_alone_as_it_would_among_others() -> None:
    """Rows that leave take nothing along: variables, Adam's state and the power method are per function."""
    case = Case("two readers", DOMAINS["linf"])
    settings = Settings(dtype=F64, small=1)
    points = case.domain.home().expand(len(case.rows), *case.network.in_shape)
    together = first_variables(case.question(), points, settings)
    for step in range(6):
        if step == 3:
            together.release(together.question.plan.bent)
        together.ascend(0.03)
    alone = together.at(torch.tensor([2]))
    for _ in range(4):
        together.ascend(0.03)
        alone.ascend(0.03)
    assert torch.allclose(together.value(2)[2], alone.value(2)[0], rtol=1e-9)
    steady, value = together.steadied()
    own, other = alone.steadied()
    assert torch.allclose(value[2], other[0], rtol=1e-9)
    assert all(torch.allclose(t[2], own.free[name][0], rtol=1e-9) for name, t in steady.free.items())


def test_functions_put_together_again_and_again_take_no_more_room() -> None:
    """As the parts of a tree are, at every split: what names the domain of each was doubled every time."""
    case = Case("two readers", DOMAINS["l2"])
    points = case.domain.home().expand(len(case.rows), *case.network.in_shape)
    question = case.question()
    own = replace(question, relaxed=Relaxed.of((), torch.zeros(len(case.rows), dtype=torch.int64), F64, "cpu"))
    variables = first_variables(own, points, Settings(dtype=F64, small=1))
    for _ in range(3):
        variables = all_of([variables.at(torch.tensor([k])) for k in range(len(case.rows))])
        assert len(variables.question.relaxed.example) == len(case.rows)


def test_of_each_function_the_mean_is_taken_where_it_is_worth_more() -> None:
    """A bad last step costs a function nothing, a bad mean neither, and the ascent itself goes on from where it is."""
    case = Case("two readers", DOMAINS["l2"])
    points = case.domain.home().expand(len(case.rows), *case.network.in_shape)
    variables = first_variables(case.question(), points, Settings(dtype=F64, small=1))
    variables.release(variables.question.plan.bent)
    for _ in range(30):
        variables.ascend(0.04)
    before = variables.steadied()[1]
    assert bool((before >= variables.value(3) - 1e-9 * before.abs()).all())
    name = next(name for name in variables.free if name[0] == "slope")
    variables.free[name][0] = 50.0  # the last step
    variables.mean[name][1] = math.nan
    variables.mean[name][2] = -50.0
    steady, value = variables.steadied()
    assert bool((value >= before - 0.05 * (1.0 + before.abs())).all()), (value, before)
    assert bool((value[0] > variables.value(3)[0] + 1.0).all())
    assert torch.equal(steady.free[name][0], variables.mean[name][0])
    assert torch.equal(steady.free[name][1:3], variables.free[name][1:3])
    assert torch.equal(variables.free[name][0], torch.full_like(variables.free[name][0], 50.0))
    multipliers, sure = steady.provable(torch.full_like(value, 1e-6))
    proved = case.prove(torch.arange(len(case.rows)), multipliers)
    assert bool((proved >= sure - 1e-2 * (1.0 + sure.abs())).all())


@pytest.mark.parametrize("name", ["relu", "two readers", "tanh"])
def test_a_search_goes_on_where_another_ended(name: str) -> None:
    """On tighter ranges it starts with what was found on wider ones; of another precision it takes nothing over."""
    wide, tight = (Case(name, DOMAINS["l2"], linear=linear) for linear in (False, True))
    settings = Settings(goal=1e6, steps=60, warm=20, dtype=F64, every=20)
    before = wide.found(settings)
    assert all(variables is not None and len(variables.question.rows) == 1 for variables in before.variables)
    after = tight.found(settings, before.variables)
    assert bool((after.value >= before.value - 1e-3 * (1.0 + before.value.abs())).all())
    least = (tight.model(tight.points(400).reshape(400, 4)).detach().flatten(1) @ tight.rows.T).amin(0)
    assert bool((after.proved <= least + 1e-9).all())
    short = tight.found(replace(settings, steps=2), before.variables)  # one step: nearly all of it was taken over
    assert bool((short.value >= before.value - 0.05 * (1.0 + before.value.abs())).all())
    single = replace(settings, dtype=torch.float32)
    assert torch.equal(tight.found(single).value, tight.found(single, before.variables).value)
    some = [*before.variables[:-1], None]
    assert torch.equal(tight.found(settings).value, tight.found(settings, some).value)


def test_chunks_find_what_one_batch_finds() -> None:
    case = Case("relu", DOMAINS["l2"], count=5)
    whole, _ = case.search(dtype=F64)
    parts, _ = case.search(dtype=F64, chunk=1)
    assert torch.allclose(whole, parts, rtol=1e-6, atol=1e-9)


def test_functions_leave_when_they_are_proved() -> None:
    """With a goal the search asks for proofs on the way, each function's only until it has one."""
    case = Case("relu", DOMAINS["l2"], count=6)
    _, high = case.search(steps=100)
    asked: list[int] = []
    inner = case.prove

    def prove(index: Tensor, multipliers: Multipliers) -> Tensor:
        asked.extend(index.tolist())
        assert all(t.dtype == F64 and len(t) == len(index) for t in multipliers.slope.values())
        return inner(index, multipliers)

    case.prove = prove  # type: ignore[method-assign]
    goal = float(high.median()) - 1e-3
    _, proved = case.search(steps=100, every=5, goal=goal)
    reached = (proved > goal).nonzero().reshape(-1).tolist()
    assert len(reached) >= 3
    assert all(asked.count(k) == 1 for k in reached)
    assert not [k for k in asked if k not in reached]


def test_a_refused_proof_is_tried_again_with_more_room() -> None:
    case = Case("relu", DOMAINS["l2"], count=2)
    rooms: list[float] = []
    inner = case.prove

    def prove(index: Tensor, multipliers: Multipliers) -> Tensor:
        rooms.append(
            float(
                multipliers.weight[min(multipliers.weight)].sum()
                / multipliers.curvature[min(multipliers.curvature)].sum()
            )
        )
        return torch.full((len(index),), -math.inf, dtype=F64) if len(rooms) < 3 else inner(index, multipliers)

    case.prove = prove  # type: ignore[method-assign]
    case.search(steps=40, every=10, goal=-100.0)
    assert len(rooms) == 3


def test_empty_batches_and_radius_zero() -> None:
    case = Case("relu", Ball(CENTRE, 0.0, 2))
    _value, proved = case.search(steps=5)
    exact = (case.model(torch.tensor([CENTRE], dtype=F64)) * case.rows).sum(1).detach()
    assert torch.allclose(proved, exact, atol=1e-4)
    assert bool((proved <= exact).all())
    nobody = without_rows(case)
    assert [len(t) for t in nobody.search(steps=5)] == [0, 0]


def without_rows(case: Case) -> Case:
    case.rows, case.example = case.rows[:0], case.example[:0]
    return case


def test_slopes_can_move_where_every_gradient_vanishes() -> None:
    """Their units come from norms then: with all neurons dead at the start g = 0, but its unit is not."""
    case = Case("relu", Ball(CENTRE, 3.0, 2))
    question, plan = case.question(), case.question().plan
    far = plan.network.nodes[plan.affine[0]].maps[0].matrix().T @ torch.full((6, 1), -100.0, dtype=F64)  # type: ignore[attr-defined]
    start = start_at(question, far.reshape(1, 1, 4).expand(len(case.rows), 1, 4))
    nothing = start_at(replace(question, rows=torch.zeros_like(question.rows)), case.points(len(case.rows)))
    for k in plan.functions:
        assert bool((start.slope_unit[k] > 0).all())
        assert not bool(nothing.slope_unit[k].any())


def test_what_is_kept_is_what_was_proved() -> None:
    """A later value that seems higher does not replace multipliers with a proof, a better proof does."""
    found, one = Found.none(2), torch.ones(2, dtype=F64)
    at = torch.tensor([0, 1])

    def of(number: float) -> Multipliers:
        return Multipliers({1: number * torch.ones(2, 1, dtype=F64)})

    low = torch.tensor([-math.inf, -math.inf], dtype=F64)
    found.improve(at, of(1.0), one, low, 1)
    found.improve(at, of(2.0), 0.5 * one, torch.tensor([0.1, -math.inf], dtype=F64), 2)
    found.improve(at, of(3.0), 2.0 * one, low, 3)
    kept = [m.slope[1].item() for m in found.multipliers if m is not None]
    assert kept == [2.0, 3.0]
    assert found.steps.tolist() == [2, 3]
    found.improve(at, of(4.0), 0.1 * one, torch.tensor([0.2, 0.0], dtype=F64), 4)
    assert [m.slope[1].item() for m in found.multipliers if m is not None] == [4.0, 4.0]
    assert found.proved.tolist() == [0.2, 0.0]
