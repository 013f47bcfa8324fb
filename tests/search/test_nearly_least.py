"""Smoothed gradients of least costs: means over points of nearly least cost, nearly supergradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from lipcert.capture.torch_export import capture
from lipcert.certificates.cost_to_go.windows_in_bases import BasisCell
from lipcert.problem import Problem
from lipcert.search.cost_to_go.cells import Cell
from lipcert.search.cost_to_go.nearly_least import reach_of, shares
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.windows import Points, WindowCell
from lipcert.search.cost_to_go.windows_in_bases import least as least_in_basis
from tests.search.cost_to_go_cases import F64, generator_of

#: The least costs (P, …) for costs that it is linear in, and a bound of how far points are from one another, (P, …).
Least = Callable[[Sequence[Tensor], float], Tensor]
COUNT, WIDE = 3, 40


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator_of(seed), dtype=F64)


def _elementwise(module: nn.Module) -> tuple[Least, list[Tensor], Tensor, int]:
    function, *_ = Plan(Problem(capture(module, torch.zeros(1, WIDE))).expanded, {}).functions.values()
    low = _draw(1, COUNT, 1, WIDE) - 1.0
    high, middle, centre = (
        low + 3.0 * _draw(2, COUNT, 1, WIDE).abs(),
        _draw(3, COUNT, 1, WIDE),
        _draw(4, COUNT, 1, WIDE),
    )

    def least(costs: Sequence[Tensor], step: float) -> Tensor:
        c, weight, g, curvature = costs
        return Cell(function, c, weight, middle, g, curvature, centre, low, high).least(step)

    costs = [_draw(5, COUNT, 1, WIDE), _draw(6, COUNT, 1, WIDE).exp(), _draw(7, COUNT, 1, WIDE)]
    costs += [_draw(8, COUNT, 1, WIDE).exp()]
    return least, costs, (high - low).flatten(1).sum(1), 1 + 2 * (1 + len(function.kinks))


def _windows(entries: int) -> tuple[Least, list[Tensor], Tensor, int]:
    shape = (COUNT, WIDE, entries)
    low, middle, centre = _draw(1, *shape), _draw(3, COUNT, WIDE), _draw(4, *shape)
    high, counts = low + 2.0 * _draw(2, *shape).abs(), torch.ones(WIDE, entries, dtype=torch.bool)
    counts[::5, 1:] = False
    low, high = (torch.where(counts, t, t[..., :1]) for t in (low, high))

    def least(costs: Sequence[Tensor], step: float) -> Tensor:
        c, weight, g, curvature = costs
        return WindowCell(c, weight, middle, g, curvature, centre, low, high, counts).least(step).sum(1)

    costs = [_draw(5, COUNT, WIDE), _draw(6, COUNT, WIDE).exp(), _draw(7, *shape), _draw(8, *shape).exp()]
    return least, costs, ((high - low) * counts).flatten(1).sum(1), 2 * entries


def _in_bases(entries: int) -> tuple[Least, list[Tensor], Tensor, int]:
    shape = (COUNT, WIDE, entries)
    low, middle, centre = _draw(1, *shape), _draw(3, COUNT, WIDE), _draw(4, *shape)
    high, counts = low + 2.0 * _draw(2, *shape).abs(), torch.ones(WIDE, entries, dtype=torch.bool)
    matrix = torch.linalg.qr(_draw(9, WIDE, entries, entries))[0]
    weight, curvature = torch.full((COUNT, WIDE), 0.1, dtype=F64), 0.2 + _draw(8, *shape).exp()

    def least(costs: Sequence[Tensor], step: float) -> Tensor:
        c, g = costs
        cell = BasisCell(c, weight, middle, g, curvature, centre, low, high, counts, matrix, matrix.mT)
        return least_in_basis(cell, 12, step).sum(1)

    return least, [_draw(5, COUNT, WIDE), _draw(7, *shape)], (high - low).flatten(1).sum(1), entries


CASES: dict[str, Callable[[], tuple[Least, list[Tensor], Tensor, int]]] = {
    "ReLU": lambda: _elementwise(nn.ReLU()),
    "Hardtanh": lambda: _elementwise(nn.Hardtanh(-0.5, 0.8)),
    "LeakyReLU": lambda: _elementwise(nn.LeakyReLU(-0.5)),
    **{f"windows of {n}": (lambda n=n: _windows(n)) for n in (1, 2, 4, 9)},
    "in bases": lambda: _in_bases(4),
}


def _gradients(least: Least, costs: Sequence[Tensor], step: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [c.clone().requires_grad_(True) for c in costs]
    value = least(leaves, step)
    return value.detach(), torch.autograd.grad(value.sum(), leaves)


@pytest.mark.parametrize("name", list(CASES))
def test_values_are_the_same_and_gradients_nearly_supergradients(name: str) -> None:
    """The least of functions that are linear in the costs lies below each, and below a mean of some, but for as much.

    That is Σ w_j (cost_j − least), and with w_j ≤ exp(−(cost_j − least)/τ_j) at most Σ τ_j/e, τ_j ≤ reach · away.
    """
    least, costs, away, points = CASES[name]()
    plain, hard = _gradients(least, costs, 0.0)
    slopes = costs[-2] if len(costs) == 4 else costs[-1]
    differ = False
    for step in (1e-3, 0.1, 1.0):
        value, smooth = _gradients(least, costs, step)
        assert torch.allclose(value, plain, rtol=1e-9, atol=1e-9)
        differ |= any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(hard, smooth, strict=True))
        error = reach_of(slopes, step).reshape(-1) * away * points / math.e
        for seed in range(8):
            moves = [0.5 * 10.0 ** (-(seed % 4)) * _draw(20 + seed, *c.shape) for c in costs]
            if len(costs) == 4:  # quadratic costs stay positive
                moves[1], moves[3] = moves[1].abs(), moves[3].abs()
            moved = least([c + move for c, move in zip(costs, moves, strict=True)], 0.0)
            along = sum((g * move).flatten(1).sum(1) for g, move in zip(smooth, moves, strict=True))
            assert bool((moved <= plain + along + error + 1e-6).all())
    assert differ or points == 2  # windows of one entry have two points, one of which is none, mostly


@pytest.mark.parametrize("name", list(CASES))
def test_short_steps_smooth_nothing(name: str) -> None:
    least, costs, _, _ = CASES[name]()
    hard, smooth = (_gradients(least, costs, step)[1] for step in (0.0, 1e-9))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(hard, smooth, strict=True))


def test_of_two_points_that_cost_alike_each_counts_half() -> None:
    """½v² − gv + (c − …) max(v, 0) with c = 2g < 0: at v = g and at v = −g it is −½g²."""
    (function,) = Plan(Problem(capture(nn.ReLU(), torch.zeros(1, 1))).expanded, {}).functions.values()
    one, zero = torch.ones(1, 1, 1, dtype=F64), torch.zeros(1, 1, 1, dtype=F64)
    g = (-0.5 * one).requires_grad_(True)
    (slope,) = torch.autograd.grad(Cell(function, -one, zero, zero, g, one, zero, -one, one).least(0.1).sum(), g)
    assert float(slope) == pytest.approx(0.0, abs=1e-12)
    (slope,) = torch.autograd.grad(Cell(function, -one, zero, zero, g, one, zero, -one, one).least().sum(), g)
    assert abs(float(slope)) == pytest.approx(0.5)


def test_shares() -> None:
    """Of sum 1, none for what is no point, and the less the more a point costs and the nearer it is."""
    costs = torch.tensor([[1.0, 1.1, 1.2, math.inf, 1.1]], dtype=F64)
    away = torch.tensor([[0.0, 1.0, 1.0, 5.0, 0.1]], dtype=F64)
    found = shares(costs, away, torch.full((1, 1), 0.1, dtype=F64), -1)[0]
    assert float(found.sum()) == pytest.approx(1.0)
    assert found[3] == 0.0
    assert found[0] > found[1] > found[2] > found[4]
    assert float(found[1] / found[0]) == pytest.approx(math.exp(-1.0))


@pytest.mark.parametrize("entries", [1, 2, 4, 9])
def test_means_over_windows_are_those_of_their_points(entries: int) -> None:
    """Entry by entry, of points written out: below the greatest p all at most m, above it one at m."""
    shape = (COUNT, WIDE, entries)
    low = _draw(1, *shape)
    counts = torch.ones(WIDE, entries, dtype=torch.bool)
    cell = WindowCell(
        _draw(5, COUNT, WIDE), _draw(6, COUNT, WIDE).exp(), _draw(3, COUNT, WIDE), _draw(7, *shape),
        _draw(8, *shape).exp(), _draw(4, *shape), low, low + 2.0 * _draw(2, *shape).abs(), counts,
    )  # fmt: skip
    points = Points(cell)
    below = [torch.minimum(points.p, points.m[..., j, None]) for j in range(entries)]
    alone = torch.eye(entries, dtype=torch.bool)
    above = [torch.where(alone[k], points.m[..., entries + k, None], points.p) for k in range(entries)]
    v = torch.stack([*below, *above], -2)  # (P, O, points, K)
    real = points.cost.isfinite()
    costs = torch.where(
        real, torch.stack([cell.at(v[..., j, :].amax(-1), v[..., j, :]) for j in range(2 * entries)], -1), 0.0
    )
    offsets = torch.where(real, costs - points.cost, 0.0)  # the same for every point of a window
    assert torch.allclose(offsets, torch.where(real, offsets.sum(-1, keepdim=True) / real.sum(-1, keepdim=True), 0.0))
    least = v.gather(-2, points.chosen[..., None].expand(COUNT, WIDE, 1, entries))
    w = shares(points.cost, (v - least).abs().sum(-1), reach_of(cell.g, 0.3), -1)
    m = (w * v.amax(-1)).sum(-1)
    mean = (w[..., None] * v).sum(-2)
    around = (w * (v.amax(-1) - m[..., None]).square()).sum(-1)
    across = (w[..., None] * (v - mean[..., None, :]).square()).sum(-2)
    for own, expected in zip(points.mean(0.3), (m, mean, around, across), strict=True):
        assert torch.allclose(own, expected, atol=1e-9)
    assert float(across.max()) > 1e-3
    value, gradients = _gradients(
        lambda costs, step: WindowCell(
            costs[0], costs[1], cell.middle, costs[2], costs[3], cell.centre, cell.low, cell.high, counts
        ).least(step), [cell.c, cell.weight, cell.g, cell.curvature], 0.3,
    )  # fmt: skip
    expected = (m, -0.5 * (around + (m - cell.middle).square()), -mean, 0.5 * (across + (mean - cell.centre).square()))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(gradients, expected, strict=True))
    assert torch.allclose(value, torch.where(real, costs, math.inf).amin(-1))
