"""Maxima over windows: least costs against brute force, linear bounds against points, output bounds against inputs."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.cost_to_go.windows import WindowCell, least
from lipcert.certificates.counter_example import CounterExample
from lipcert.certificates.outputs import Subject
from lipcert.domain import Ball
from lipcert.network.nonlinearity import MaxSelection
from lipcert.numerics.interval import Interval
from lipcert.ranges import build
from lipcert.ranges.linear_bounds import LinearBounds
from lipcert.ranges.maxima import WindowLines
from lipcert.robustness.branching import Branching
from lipcert.robustness.checks import Claim, Facts
from lipcert.robustness.provers import Asked
from lipcert.robustness.threat import Threat
from lipcert.search.cost_to_go.windows import WindowCell as SearchCell


def _numbers(generator: torch.Generator, *shape: int, spread: float = 1.0) -> Tensor:
    size = 10.0 ** (spread * (2.0 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1.0))
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * size


def _cell(seed: int, windows: int, entries: int, spread: float) -> WindowCell:
    """Costs of all signs, some weights 0, flat and repeated entries."""
    g = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g) < 0.8

    cost, anchor = _numbers(g, 2, windows, spread=spread), _numbers(g, 2, windows, spread=spread)
    weight = _numbers(g, 2, windows, spread=spread).abs() * some(2, windows)
    slope, centre = (_numbers(g, 2, windows, entries, spread=spread) for _ in range(2))
    curvature = _numbers(g, 2, windows, entries, spread=spread).abs() * some(2, windows, entries)
    low = _numbers(g, windows, entries, spread=spread)
    high = low + _numbers(g, windows, entries, spread=spread).abs() * some(windows, entries)
    counts = some(windows, entries)
    counts[:, 0] = True
    low, high = (torch.where(counts, end, end[:, :1]) for end in (low, high))
    return WindowCell(cost, weight, anchor, slope, curvature, centre, low, high, counts)


def _at(cell: WindowCell, v: Tensor) -> Tensor:
    m = torch.where(cell.counts, v, -math.inf).amax(-1)
    shares = 0.5 * cell.curvature * (v - cell.centre).square() - cell.slope * v
    own = cell.cost * m - 0.5 * cell.weight * (m - cell.anchor).square()
    return own + torch.where(cell.counts, shares, 0.0).sum(-1)


def _search(cell: WindowCell) -> SearchCell:
    low, high = (end.expand_as(cell.slope) for end in (cell.low, cell.high))
    return SearchCell(
        cell.cost, cell.weight, cell.anchor, cell.slope, cell.curvature, cell.centre, low, high, cell.counts
    )


@pytest.mark.parametrize("entries", [1, 2, 4, 9])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_least_is_below_every_point_and_attained(entries: int, spread: float) -> None:
    cell = _cell(entries, 200, entries, spread)
    bound = least(cell)
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        share = torch.rand(cell.slope.shape, generator=generator, dtype=torch.float64)
        end = torch.randint(0, 4, cell.slope.shape, generator=generator)
        share = torch.where(end == 0, 0.0, torch.where(end == 1, 1.0, share))
        v = cell.low + (cell.high - cell.low) * share
        assert bool((bound <= _at(cell, v.clamp(cell.low, cell.high))).all())
    m, v = _search(cell).least_point()
    assert bool((v >= cell.low).all() and (v <= cell.high).all())
    assert torch.equal(torch.where(cell.counts, v, -math.inf).amax(-1), m)
    attained = _at(cell, v)
    assert bool((bound <= attained).all())
    sizes = 1.0 + attained.abs() + cell.weight * (m - cell.anchor).square()
    sizes = sizes + (cell.curvature * (v - cell.centre).square() + (cell.slope * v).abs()).sum(-1)
    assert float(((attained - bound) / sizes).max()) < 1e-6


def test_gradient_of_the_search_is_that_of_its_least_cost() -> None:
    cell = _search(_cell(0, 50, 4, 0.5))
    leaves = [getattr(cell, name).clone().requires_grad_() for name in ("c", "g", "centre", "middle")]
    moved = SearchCell(leaves[0], cell.weight, leaves[3], leaves[1], cell.curvature, leaves[2], *_ends(cell))
    value = moved.least().sum()
    gradients = torch.autograd.grad(value, leaves)
    generator, step = torch.Generator().manual_seed(2), 1e-7
    ways = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in leaves]
    ends = []
    for sign in (step, -step):
        c, g, centre, middle = (leaf.detach() + sign * way for leaf, way in zip(leaves, ways, strict=True))
        ends.append(SearchCell(c, cell.weight, middle, g, cell.curvature, centre, *_ends(cell)).least().sum())
    expected = sum(float((a * b).sum()) for a, b in zip(gradients, ways, strict=True))
    assert float(ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-3)


def _ends(cell: SearchCell) -> tuple[Tensor, Tensor, Tensor]:
    return cell.low, cell.high, cell.counts


@pytest.mark.parametrize("seed", range(4))
def test_lines_hold_at_every_point_of_the_box(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, 12, (30, 4), generator=generator)
    index[::3, 2:] = index[::3, :1]  # windows with repetitions
    function = MaxSelection("max", index, (12,), (30,))
    low = _numbers(generator, 12, spread=2.0)
    high = low + _numbers(generator, 12, spread=2.0).abs()
    low[0], high[1] = -math.inf, math.inf
    own = Interval(low[index].amax(-1), high[index].amax(-1))
    lines = WindowLines.around(function, Interval(low, high), own)
    for _ in range(300):
        share = torch.rand(12, generator=generator, dtype=torch.float64).round(decimals=1).clamp(0.0, 1.0)
        bottom, top = low.clamp(min=-1e6), high.clamp(max=1e6)
        x = (bottom + (top - bottom) * share).clamp(bottom, top)
        value, entries = x[index].amax(-1), x[index]
        room = 1e-12 * (1.0 + value.abs() + entries.abs().sum(-1))
        assert bool(((lines.lower * entries).sum(-1) + lines.least <= value + room).all())
        assert bool(((lines.upper * entries).sum(-1) + lines.greatest >= value - room).all())


def _pooled(which: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Pools that overlap, are padded, dilated, reach beyond the edge, are global, follow one another."""
    torch.manual_seed(which)
    pools: list[nn.Module] = [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.MaxPool2d(2, stride=2, ceil_mode=True, dilation=2),
        nn.AdaptiveMaxPool2d(1),
        nn.Sequential(nn.MaxPool2d(2, stride=1), nn.MaxPool2d(2)),
        nn.Sequential(nn.MaxPool2d(3, stride=2), nn.Tanh()),
    ]
    first = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), pools[which], nn.Flatten())
    width = first(torch.zeros(1, 1, 5, 5)).shape[1]
    return nn.Sequential(*first, nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval(), (1, 1, 5, 5)


@pytest.mark.slow
@pytest.mark.parametrize("which", range(6))
def test_output_bounds_of_pools(which: int) -> None:
    model, shape = _pooled(which)
    x = torch.rand(shape, dtype=torch.float64)
    ball = lipcert.Ball(x[0], 0.5)
    bounds = lipcert.output_bounds(model, x, ball)
    generator = torch.Generator().manual_seed(0)
    ways = torch.randn(2000, *shape[1:], generator=generator, dtype=torch.float64)
    reach = torch.rand(2000, 1, 1, 1, generator=generator, dtype=torch.float64) ** 0.1
    points = x + 0.5 * reach * ways / ways.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        values = model(points)
    assert bool((values >= torch.as_tensor(bounds.lower) - 1e-12).all())
    assert bool((values <= torch.as_tensor(bounds.upper) + 1e-12).all())


@pytest.mark.slow
@pytest.mark.parametrize("act", [nn.Identity, nn.ReLU])
def test_pools_are_searched_where_no_activation_follows_a_map(act: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), act(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)).double().eval()
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    domain = lipcert.Ball(x, 0.5)
    subject = Subject(capture(model, x))
    by_ranges = subject.setting(subject.facts, domain, True).plain(subject.rows(None))
    found = lipcert.output_bounds(model, x, lipcert.Ball(x[0], 0.5))
    assert found.method == "cost_to_go"
    assert bool((found.lower > by_ranges + 1e-3).any())
    assert bool((found.lower <= model(x)[0]).all())


def test_branch_and_bound_finds_what_breaks_maxima_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.MaxPool1d(3), nn.Flatten(), nn.Linear(2, 2))
    x = torch.zeros(1, 4, dtype=torch.float64)
    label = int(model.double()(x).argmax())
    facts = Facts(capture(model, x), Threat.of(2.0, None, (0.1,), None, None))
    asked = Asked(Claim(x, label, 0.3), x.reshape(1, 1, 4))
    found = Branching(steps=5).prove(facts, [asked], time.perf_counter() + 10.0)[0]
    assert isinstance(found, CounterExample)


@pytest.mark.few(2)
@pytest.mark.parametrize("last", [nn.ReLU, nn.Tanh, nn.Identity, nn.LeakyReLU])
@pytest.mark.parametrize("overlap", [False, True])
def test_entries_that_cannot_be_a_maximum_are_of_no_use(
    last: type[nn.Module], overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear bounds of the outputs are no worse for what is left out of the way there."""
    torch.manual_seed(0)
    pools = [nn.MaxPool2d(3, 1) if overlap else nn.MaxPool2d(2) for _ in range(2)]
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), pools[0], last(), nn.Conv2d(4, 5, 2), pools[1], last(), nn.Flatten(), nn.LazyLinear(3)
    ).double()
    x = torch.randn(1, 1, 12, 12, dtype=torch.float64)
    model(x)
    network = Subject(capture(model.eval(), x)).network
    asked, entries = [], LinearBounds.boxes_of

    def counted(self: LinearBounds, asked_for: Any) -> Any:
        asked[-1] += sum(len(own) for _, own in asked_for)
        return entries(self, asked_for)

    def by_all(network: Any, position: int, windows: Any, box: Interval) -> Tensor:
        return torch.ones(box.low.numel(), dtype=torch.bool)

    monkeypatch.setattr(LinearBounds, "boxes_of", counted)
    for radius in (0.05, 0.3):
        ball, ends = Ball(x[0], radius, 2).fitted(network.in_shape), []
        for contending in (build._contending, by_all):
            asked.append(0)
            with monkeypatch.context() as patch:
                patch.setattr(build, "_contending", contending)
                ends.append(build.boxes_of(network, ball, "undecided")[-1])
        few, everything = ends
        width = everything.high - everything.low
        assert bool((few.high - few.low <= width * (1.0 + 1e-9)).all())
        assert asked[-2] < asked[-1]
        inside = ball.project(ball.center + torch.randn(200, *network.in_shape, dtype=torch.float64))
        values = model(inside.reshape(-1, 1, 12, 12))
        assert bool((few.low <= values).all() and (values <= few.high).all())
