"""A search whose time is up proves what it has reached, and begins no further proof."""

import itertools
import math
import time

import pytest
import torch
from torch import nn

from lipcert.capture.torch_export import capture
from lipcert.certificates.outputs import Subject
from lipcert.domain import Ball
from lipcert.errors import NotProved
from lipcert.robustness.outputs import Task, margin_rows, prove_below
from lipcert.search.cost_to_go.settings import Settings


@pytest.mark.few(2)
@pytest.mark.parametrize("left", [-1.0, 0.05, math.inf])
def test_the_end_of_the_time_loses_no_bound_that_is_at_hand(left: float) -> None:
    """Bounds hold at any end: never below what ranges alone prove, never above a value, and the more time the more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).double().eval()
    subject = Subject(capture(model, torch.zeros(1, 6, dtype=torch.float64)))
    points = torch.randn(3, 6, dtype=torch.float64)
    tasks = [
        Task(Ball(x, 0.3, 2).fitted(subject.network.in_shape), margin_rows(3, 0), x.expand(2, 1, 6), None)
        for x in points
    ]
    settings = Settings(steps=60, warm=10, goal=None)
    found = prove_below(subject, tasks, settings, True, time.perf_counter() + left)
    whole = prove_below(subject, tasks, settings, True)
    for task, one, best in zip(tasks, found, whole, strict=True):
        assert one.linear or left < math.inf
        plain = subject.setting(subject.facts, task.domain, one.linear).plain(task.rows)
        inside = task.domain.project(task.domain.center + torch.randn(500, 1, 6, dtype=torch.float64))
        with torch.no_grad():
            values = model(inside.reshape(-1, 6)) @ task.rows.T
        assert bool((plain <= one.lower).all() and (one.lower <= values.amin(0)).all())
        assert bool((one.lower <= best.lower + 0.05 * best.lower.abs()).all())
        if left < 0:
            assert not one.linear
            assert torch.equal(one.lower, plain)
        if left == math.inf:
            assert bool((one.lower > plain).all())


@pytest.mark.slow
def test_no_function_waits_for_all_steps_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that do not fit into memory together share the time: by a clock that moves when it is read."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).double().eval()
    subject = Subject(capture(model, torch.zeros(1, 4, dtype=torch.float64)))
    domain = Ball(torch.zeros(4, dtype=torch.float64), 0.5, 2).fitted(subject.network.in_shape)
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    task = Task(domain, margin_rows(4, 0), torch.zeros(3, 1, 4, dtype=torch.float64), None)
    one_by_one = Settings(steps=10**6, goal=None, chunk=1)
    (found,) = prove_below(subject, [task], one_by_one, True, until=next(ticks) + 600.0)
    assert None not in found.multipliers
    assert bool((found.lower > subject.setting(subject.facts, domain, True).plain(task.rows)).all())


def test_linear_bounds_end_with_the_time_and_begin_anew() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    subject = Subject(capture(model, torch.zeros(1, 3, dtype=torch.float64)))
    domain = Ball(torch.zeros(3, dtype=torch.float64), 0.5, 2).fitted(subject.network.in_shape)
    with pytest.raises(NotProved, match="the time ended"):
        subject.setting(subject.facts, domain, True, time.perf_counter())
    subject.setting(subject.facts, domain, False, time.perf_counter())
    late = subject.setting(subject.facts, domain, True, time.perf_counter() + 60.0)
    never = Subject(subject.model).setting(subject.facts, domain, True)
    for one, other in zip(late.boxes, never.boxes, strict=True):
        assert torch.equal(one.low, other.low)
        assert torch.equal(one.high, other.high)
