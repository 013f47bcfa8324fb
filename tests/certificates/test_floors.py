"""A ReLU of a maximum leaves its cost to it: least costs, bounds beside those of two steps, whole networks."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness
from lipcert.certificates.cost_to_go import windows, windows_in_bases
from lipcert.certificates.cost_to_go.floors import floors
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.walk import lower_bounds
from lipcert.certificates.cost_to_go.windows import WindowCell
from lipcert.certificates.cost_to_go.windows_in_bases import BasisCell
from lipcert.certificates.outputs import Subject, prove_outputs
from lipcert.domain import Ball
from lipcert.errors import NotProved
from lipcert.ranges.build import maximum
from lipcert.robustness.outputs import look_for_bases
from lipcert.search.cost_to_go.windows import WindowCell as SearchCell


def _random(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _plain(g: torch.Generator, count: int, entries: int) -> WindowCell:
    """Some curvatures, weights and widths are 0."""

    def some(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g) < 0.85

    low = _random(g, count, entries)
    high = low + 2.0 * _random(g, count, entries).abs() * some(count, entries)
    return WindowCell(
        2.0 * _random(g, 2, count), _random(g, 2, count).abs() * some(2, count), _random(g, 2, count),
        _random(g, 2, count, entries), 2.0 * _random(g, 2, count, entries).abs() * some(2, count, entries),
        _random(g, 2, count, entries), low, high, torch.ones(count, entries, dtype=torch.bool),
    )  # fmt: skip


def _based(cell: WindowCell, g: torch.Generator) -> BasisCell:
    count, entries = cell.low.shape
    matrix = torch.eye(entries, dtype=torch.float64) + 0.4 * _random(g, count, entries, entries)
    return BasisCell(
        cell.cost, cell.weight, cell.anchor, cell.slope, cell.curvature, cell.centre, cell.low, cell.high,
        cell.counts, matrix, torch.linalg.inv(matrix),
    )  # fmt: skip


def _cost(cell: WindowCell | BasisCell, v: Tensor, number: Tensor) -> Tensor:
    m = torch.maximum(v.amax(-1), number)
    u = (cell.matrix * v.unsqueeze(-2)).sum(-1) if isinstance(cell, BasisCell) else v
    shares = 0.5 * cell.curvature * (u - cell.centre).square() - cell.slope * v
    return cell.cost * m - 0.5 * cell.weight * (m - cell.anchor).square() + shares.sum(-1)


def _lowest(cell: WindowCell | BasisCell, number: Tensor) -> Tensor:
    """By points and corners at random, entries at the number, and smaller and smaller steps from the best."""
    g = torch.Generator().manual_seed(9)
    width = cell.high - cell.low
    best, at = torch.full_like(cell.cost, math.inf), cell.low.expand_as(cell.slope).clone()
    for step in range(300):
        share = torch.rand(cell.slope.shape, generator=g, dtype=torch.float64)
        v = cell.low + width * (share.round() if step % 2 else share)
        if step % 3 == 2:
            v = torch.where(share < 0.5, v, number[:, None].expand_as(v))
        if step > 80:
            v = at + width * _random(g, *at.shape) * 0.3 * 0.95 ** (step - 80)
        v = v.clamp(cell.low, cell.high)
        cost = _cost(cell, v, number)
        better = cost < best
        best, at = torch.where(better, cost, best), torch.where(better[..., None], v, at)
    return best


def _search(cell: WindowCell, number: Tensor) -> SearchCell:
    low, high = (end.expand_as(cell.slope) for end in (cell.low, cell.high))
    own = SearchCell(
        cell.cost, cell.weight, cell.anchor, cell.slope, cell.curvature, cell.centre, low, high, cell.counts
    )
    return own.with_number(number.expand_as(cell.cost))


@pytest.mark.parametrize("entries", [1, 2, 4, 9])
def test_least_with_a_number_is_below_every_point(entries: int) -> None:
    g = torch.Generator().manual_seed(entries)
    cell = _plain(g, 150, entries)
    number = cell.low.amin(-1) + 3.0 * (torch.rand(150, generator=g, dtype=torch.float64) - 0.3)
    lowest = _lowest(cell, number)
    bound = windows.least(cell.with_number(number))
    assert bool((bound <= lowest).all())
    m, v = _search(cell, number).least_point()
    attained = _cost(cell, v[..., :-1], number)
    assert torch.equal(m, torch.maximum(v[..., :-1].amax(-1), number))
    assert float(((attained - bound) / (1.0 + attained.abs())).max()) < 1e-6
    based = _based(cell, g)
    assert bool((windows_in_bases.least(based.with_number(number)) <= _lowest(based, number)).all())


def test_least_in_a_basis_is_attained_where_costs_are_convex() -> None:
    g = torch.Generator().manual_seed(3)
    plain = _plain(g, 100, 4)
    cell = _based(replace(plain, weight=0.01 * plain.weight, curvature=plain.curvature + 1.0), g)
    number = cell.low.mean(-1)
    gap = _lowest(cell, number) - windows_in_bases.least(cell.with_number(number))
    assert bool((gap >= 0.0).all())
    assert float(gap.quantile(0.9)) < 0.05


@pytest.mark.parametrize("based", [False, True])
def test_a_number_below_every_entry_changes_nothing(based: bool) -> None:
    g = torch.Generator().manual_seed(5)
    plain = _plain(g, 80, 4)
    number = plain.low.amin(-1) - 1.0
    if based:
        cell = _based(replace(plain, curvature=plain.curvature + 1.0), g)
        one, two = windows_in_bases.least(cell), windows_in_bases.least(cell.with_number(number))
    else:
        one, two = windows.least(plain), windows.least(plain.with_number(number))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_a_number_above_every_entry_is_the_maximum() -> None:
    g = torch.Generator().manual_seed(6)
    cell = _plain(g, 80, 4)
    number = cell.high.amax(-1) + 0.5
    still = cell.cost * number - 0.5 * cell.weight * (number - cell.anchor).square()
    free = replace(cell, cost=torch.zeros_like(still), weight=torch.zeros_like(still))
    expected = still + windows.least(free)
    torch.testing.assert_close(windows.least(cell.with_number(number)), expected, rtol=1e-9, atol=1e-9)


def _model(activation: nn.Module | None = None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), activation or nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    ).double().eval()  # fmt: skip


X = torch.rand(1, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5


class _Clamped(nn.Module):
    def __init__(self, low: float, high: float | None = None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


class _ReadTwice(nn.Module):
    def __init__(self, twice: bool = True) -> None:
        super().__init__()
        self.twice, self.first, self.last = twice, nn.Linear(6, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        m = nn.functional.max_pool1d(self.first(x).unsqueeze(1), 2)
        z = torch.relu(m)
        return self.last((z - m if self.twice else z).flatten(1))


def test_which_activations_are_floors() -> None:
    def levels(model: nn.Module, x: Tensor = X) -> list[float]:
        network = Subject(capture(model, x)).plain
        found = floors(network)
        assert all(maximum(network.nodes[floor.maximum]) is not None for floor in found.values())
        return [floor.level for floor in found.values()]

    assert levels(_model()) == [0.0, 0.0]
    assert levels(_model(_Clamped(0.25))) == [0.25, 0.0]
    assert levels(_model(nn.ReLU6())) == [0.0]
    assert levels(_model(nn.Tanh())) == [0.0]
    assert levels(_model(nn.LeakyReLU())) == [0.0]
    zero = torch.zeros(1, 6, dtype=torch.float64)
    assert levels(_ReadTwice(False).double().eval(), zero) == [0.0]
    assert levels(_ReadTwice(True).double().eval(), zero) == []


def _multipliers(subject: Subject, g: torch.Generator, size: float) -> tuple[Multipliers, Multipliers]:
    """At random near the gradient's, of three outputs, without anything of the floors, and with."""
    network = subject.facts.network
    slope, curvature, anchor = {}, {}, {}
    for k, node in enumerate(network.nodes):
        chosen = maximum(node)
        if chosen is not None:
            shape = (3, *chosen.index.shape)
            slope[k], curvature[k] = size * _random(g, *shape), size * _random(g, *shape).abs()
        elif k in subject.facts.floors:
            slope[k], curvature[k] = size * _random(g, 3, *node.shape), size * _random(g, 3, *node.shape).abs()
            anchor[k, 0] = _random(g, 3, *node.shape)
    own = Multipliers(slope, curvature, anchor)
    without = ({k: t for k, t in group.items() if k not in subject.facts.floors} for group in (slope, curvature))
    return Multipliers(*without), own


@pytest.mark.parametrize("bases", [False, True])
@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_one_step_proves_at_least_what_two_do_and_no_falsehood(bases: bool, size: float) -> None:
    """The least of a sum is no less than the sum of the least: whatever the multipliers of the two steps."""
    model = _model()
    subject = Subject(capture(model, X))
    if bases:
        identity = torch.eye(4, dtype=torch.float64)
        wide = {k: n for k, n in enumerate(subject.plain.nodes) if maximum(n) is not None}
        subject.adopt({k: identity.repeat(n.shape[1], 1, 1) for k, n in wide.items()})
    g = torch.Generator().manual_seed(4)
    domain = Ball(X, 0.3).fitted(subject.network.in_shape)
    setting = subject.setting(subject.facts, domain, True)
    way = torch.nn.functional.normalize(_random(g, 2000, 144), dim=1).reshape(-1, 1, 12, 12)
    with torch.no_grad():
        lowest = model(X + 0.3 * way).amin(0)
    rows = torch.eye(3, dtype=torch.float64)
    higher = 0
    for _ in range(10):
        without, own = _multipliers(subject, g, size)
        one, _ = lower_bounds(setting, rows, without)
        two, _ = lower_bounds(setting, rows, own)
        assert bool((one <= lowest).all())
        assert bool((two <= lowest).all())
        if not bases:  # in a basis least costs are those of tangents, which need not be exact
            assert bool((one >= two - 1e-9 * (1.0 + two.abs())).all())
        higher += int((one > two + 1e-6).sum())
    assert higher > 0


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("activation", [nn.ReLU(), _Clamped(0.2), _Clamped(-0.3)], ids=["relu", "0.2", "-0.3"])
def test_bounds_hold_and_are_read_again(activation: nn.Module, seed: int, tmp_path: Path) -> None:
    model = _model(activation, seed)
    x = X if seed % 2 else X + 1.0
    domain = Ball(x, 0.4) if seed < 4 else Ball(x, 0.1, math.inf)
    found = lipcert.output_bounds(model, x, domain, budget=1.0, split=seed == 2)
    assert not any(name.startswith("slope.4") for name in found.certificate.witness.arrays)
    g = torch.Generator().manual_seed(seed)
    points = domain.project(
        x + 0.4 * torch.nn.functional.normalize(_random(g, 3000, 144), dim=1).reshape(-1, *x.shape[1:])
    )
    points = points.reshape(-1, 1, 12, 12).requires_grad_(True)
    for _ in range(10):  # outward, each output up or down
        values = model(points)
        sign = torch.where(torch.arange(len(points)) % 2 == 0, 1.0, -1.0)
        own = values.gather(1, (torch.arange(len(points)) % 3)[:, None])[:, 0]
        (gradient,) = torch.autograd.grad((sign * own).sum(), points)
        moved = points.detach() + 0.1 * torch.nn.functional.normalize(gradient.flatten(1), dim=1).reshape(points.shape)
        points = domain.project(moved).reshape(-1, 1, 12, 12).requires_grad_(True)
        assert bool(((found.lower <= values) & (values <= found.upper)).all())
    found.save(tmp_path / "bounds.lipcert")
    assert torch.equal(lipcert.verify(tmp_path / "bounds.lipcert", model, x).lower, found.lower)


def test_certificates_of_two_steps_are_still_read() -> None:
    model = _model()
    subject = Subject(capture(model, X))
    look_for_bases(subject)
    _, own = _multipliers(subject, torch.Generator().manual_seed(0), 1e-3)
    witness = Witness("cost_to_go", {**own.arrays(), **subject.facts.arrays}, {"linear": False, "upper": False})
    try:
        found = prove_outputs(subject, Ball(X, 0.1), None, witness)
    except NotProved:
        pytest.fail("nothing was proved")
    assert bool((found.lower <= model(X)[0]).all())


def test_a_maximum_that_something_else_reads_keeps_its_own_cost() -> None:
    torch.manual_seed(0)
    model = _ReadTwice().double().eval()
    x = torch.zeros(1, 6, dtype=torch.float64)
    found = lipcert.output_bounds(model, x, lipcert.Box(-1.0, 1.0), budget=1.0)
    values = model(2.0 * torch.rand(5000, 6, dtype=torch.float64) - 1.0).detach()
    assert bool(((found.lower <= values) & (values <= found.upper)).all())


def test_a_maximum_under_a_floor_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else can be: with the domain cut at max(…) = 0 the bounds are closer than before the cuts, and hold.

    Of the time of a search with splits three tenths go to the whole. The clock moves when it is read, so that both
    searches have the same work behind them on every machine.
    """
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 5e-3 * next(ticks))
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(2, 8), nn.Unflatten(1, (1, 8)), nn.MaxPool1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1)
    ).double()
    x = torch.zeros(1, 2, dtype=torch.float64)
    whole = lipcert.output_bounds(model.eval(), x, lipcert.Box(-1.0, 1.0), budget=0.9)
    found = lipcert.output_bounds(model, x, lipcert.Box(-1.0, 1.0), budget=3.0, split=True)
    line = torch.linspace(-1.0, 1.0, 301, dtype=torch.float64)
    values = model(torch.cartesian_prod(line, line)).detach()
    assert bool(((found.lower <= values) & (values <= found.upper)).all())
    assert found.method == "branched_cost_to_go"
    assert float(found.upper - found.lower) < float(whole.upper - whole.lower) - 1e-2


@pytest.mark.parametrize("level", [-1e300, -1e39, 1e39])
def test_levels_beyond_what_the_search_can_hold(level: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 8), nn.Unflatten(1, (2, 4)), nn.MaxPool1d(2), _Clamped(level), nn.Flatten(), nn.Linear(4, 2)
    ).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    found = lipcert.output_bounds(model.eval(), x, lipcert.Box(x - 1.0, x + 1.0), budget=0.5)
    values = model(x + 2.0 * torch.rand(2000, 3, dtype=torch.float64) - 1.0).detach()
    assert bool(((found.lower <= values) & (values <= found.upper)).all())
