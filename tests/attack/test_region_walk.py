"""The walk over activation regions against dense grids and known maxima; starts with patterns; interrupts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from lipcert.attack import attack, evaluate, search
from lipcert.attack.pool import Pool
from lipcert.attack.region_walk import PiecewiseLinear, walk
from lipcert.attack.starts import Region
from lipcert.capture.torch_export import capture
from lipcert.domain import Ball, Box, Domain
from lipcert.problem import Problem
from lipcert.result import LowerWitness

D = torch.float64


def problem(model: nn.Module, n: int, norm=(2.0, 2.0), domain: Domain = None) -> Problem:
    return Problem(capture(model.double().eval(), torch.zeros(1, n, dtype=D)), norm, domain)


def region_of(p: Problem) -> Region:
    return Region.of(p.domain, p.network.in_shape, None, torch.zeros((), dtype=D))


def walked(p: Problem, programs: int = 700) -> tuple[float, LowerWitness]:
    """The best proved value of a walk from a few random points, at most so many clock readings long."""
    region, found, calls = region_of(p), [], itertools.count()
    starts = region.sample(4, torch.Generator().manual_seed(0))

    def report(x: Tensor, values: Tensor, v: Tensor) -> None:
        found.append((float(values[0]), LowerWitness(x[0], v[0])))

    assert walk(p, region, starts, lambda: next(calls) > programs, report)
    value, witness = max(found, key=lambda f: f[0])
    proved = evaluate(p, witness)
    assert proved == pytest.approx(value, rel=1e-9)
    return proved, witness


def grid_maximum(model: nn.Module, domain: Domain = None, reach: float = 12.0) -> float:
    """Largest ‖J‖₂ on a fine grid of the plane (within the domain)."""
    points = grid(reach)
    if domain is not None:
        points = torch.stack([x for x in points if domain.contains(x)])
    return float(torch.linalg.matrix_norm(jacobians(model, points), 2).max())


def grid(reach: float) -> Tensor:
    axis = torch.linspace(-reach, reach, 101, dtype=D) + 0.00123
    return torch.cartesian_prod(axis, axis)


def jacobians(model: nn.Module, points: Tensor) -> Tensor:
    points = points.clone().requires_grad_(True)
    images = model(points)
    rows = [torch.autograd.grad(images[:, i].sum(), points, retain_graph=True)[0] for i in range(images.shape[1])]
    return torch.stack(rows, 1)


def mlp(activation: type[nn.Module] | nn.Module, seed: int, *widths: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation if isinstance(activation, nn.Module) else activation()]
    return nn.Sequential(*layers[:-1]).double().eval()


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.2),
    "clamp": nn.Hardtanh(-0.5, 0.7),
    "softshrink": nn.Softshrink(0.3),
    "prelu": nn.PReLU(init=-0.4),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_walk_finds_what_a_fine_grid_finds(name, seed):
    model = mlp(ACTIVATIONS[name], seed, 2, 6, 5, 2)
    value, _ = walked(problem(model, 2))
    assert value >= grid_maximum(model) * (1 - 1e-9)


def test_pools_and_sorts_are_walked_over():
    torch.manual_seed(3)
    head = nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (1, 6)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(3, 2))
    head = head.double().eval()
    value, _ = walked(problem(head, 2))
    assert value >= grid_maximum(head) * (1 - 1e-9)


def test_a_maximum_cut_is_found():
    """x ↦ 1ᵀ relu(Bx), B the incidence matrix of the complete graph on 7 vertices: √12."""
    edges = list(itertools.combinations(range(7), 2))
    B = torch.zeros(7, len(edges), dtype=D)
    for column, (a, b) in enumerate(edges):
        B[a, column], B[b, column] = 1.0, -1.0
    first, last = nn.Linear(len(edges), 7, bias=False).double(), nn.Linear(7, 1, bias=False).double()
    first.weight.data, last.weight.data = B, torch.ones(1, 7, dtype=D)
    value, _ = walked(problem(nn.Sequential(first, nn.ReLU(), last), len(edges)))
    assert math.sqrt(12) * (1 - 1e-9) <= value <= math.sqrt(12)


@pytest.mark.few(1)
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf, "box", "flat"])
def test_the_walk_keeps_to_the_domain(p):
    model = mlp(nn.ReLU, 5, 2, 12, 8, 2)
    center = torch.tensor([0.2, -0.3], dtype=D)
    domain: Domain = Box(center - 0.4, center + torch.tensor([0.4, 0.1 if p == "box" else -0.4], dtype=D))
    if isinstance(p, float):
        domain = Ball(center, 0.4, p)
    asked = problem(model, 2, domain=domain)
    value, witness = walked(asked)
    assert domain.contains(witness.point)
    if p == "flat":
        assert witness.direction.reshape(-1)[1] == 0
    else:
        assert value >= grid_maximum(model, domain, reach=0.8) * (1 - 1e-9)
    assert value <= walked(problem(model, 2))[0] * (1 + 1e-9)


@pytest.mark.few(1)
@pytest.mark.parametrize("norm", [(1.0, 1.0), (math.inf, math.inf), (1.0, 2.0), (2.0, math.inf)])
def test_the_walk_in_other_norms(norm):
    model = mlp(nn.ReLU, 7, 2, 8, 5, 2)
    p, q = norm
    J = jacobians(model, grid(8.0))
    exact = J.norm(p=q, dim=1).amax(1) if p == 1 else J.norm(p={2.0: 2.0}.get(p, 1.0), dim=2).amax(1)
    assert walked(problem(model, 2, norm))[0] >= float(exact.max()) * (1 - 1e-9)


def test_curved_and_large_networks_are_left_to_the_ascent():
    for model, n in ((mlp(nn.ELU, 0, 2, 3, 1), 2), (mlp(nn.Tanh, 0, 2, 3, 1), 2), (mlp(nn.ReLU, 0, 4, 600, 2), 4)):
        assert PiecewiseLinear.of(problem(model, n)) is None
    p = problem(mlp(nn.GELU, 0, 2, 3, 1), 2)
    assert not walk(p, region_of(p), torch.zeros(1, 1, 2, dtype=D), lambda: False, lambda *_: None)


@pytest.mark.slow
def test_the_attack_uses_the_walk(monkeypatch):
    """A fitted network whose ascent stops short: the attack with the walk is at least as good, and proves it."""
    torch.manual_seed(11)
    x = torch.randn(150, 6, dtype=D)
    model = mlp(nn.ReLU, 11, 6, 12, 10, 1)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        (model(x)[:, 0] - torch.sin(3 * x[:, 0]) * x[:, 1]).square().mean().backward()
        optimiser.step()
    p = problem(model.requires_grad_(False), 6)
    monkeypatch.setattr(search, "_PATIENCE_AFTER_WALK", 0)
    lower = attack(p, budget=3.0)
    assert evaluate(p, lower.witness) == lower.value
    monkeypatch.setattr(search, "walk", lambda *_: False)
    assert lower.value >= attack(p, budget=1.0).value * (1 - 1e-6)


# -- starts, interrupts -----------------------------------------------------------------------------------------


class Normed(nn.Module):
    """Conv, instance norm, leaky: steep where the channels are constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.last = nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3), nn.Linear(3 * 36, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.nn.functional.leaky_relu(self.norm(self.conv(x)), 0.2).flatten(1))


def test_constant_inputs_are_among_the_starts():
    model = Normed().double().eval()
    p = Problem(capture(model, torch.zeros(1, 1, 8, 8, dtype=D)))
    lower = attack(p, budget=1.5)
    generator = torch.Generator().manual_seed(1)
    near = 1e-6 * torch.randn(1, 1, 8, 8, generator=generator, dtype=D)
    steep = float(torch.autograd.functional.jacobian(model, near).norm())
    plain = float(torch.autograd.functional.jacobian(model, 1e6 * near).norm())
    assert steep > 20 * plain
    assert lower.value >= 0.9 * steep


def test_patterned_starts_have_patterns():
    for shape in ((1, 1, 8, 8), (1, 3, 16), (1, 5), (1, 2, 4, 6, 6)):
        p = Problem(capture(nn.Flatten(), torch.zeros(*shape, dtype=D)))
        region = region_of(p)
        points = region.patterned(30, torch.Generator().manual_seed(0))
        assert points.shape == (30, *p.network.in_shape)
        assert bool(torch.isfinite(points).all())
        sizes = points.reshape(30, -1).abs().amax(1)
        assert float(sizes.max() / sizes[sizes > 0].min()) > 50
    assert bool((region.steep().reshape(30, -1).std(1) < 1e-3).sum() >= 15)
    box = Box(torch.zeros(3), torch.full((3,), 0.1))
    inside = Region.of(box, (1, 3), None, torch.zeros((), dtype=D))
    for points in (inside.patterned(12, torch.Generator().manual_seed(0)), inside.steep()):
        assert all(box.contains(x) for x in points)


def test_an_interrupt_returns_the_best_so_far(monkeypatch):
    p = problem(mlp(nn.ReLU, 0, 4, 10, 3), 4)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "anneal", interrupted)
    lower = attack(p, budget=60.0)
    assert lower.value > 0
    assert lower.seconds < 30
    assert evaluate(p, lower.witness) == lower.value


def test_a_region_takes_the_size_of_a_point():
    like = torch.zeros((), dtype=D)
    free = Region.of(None, (1, 4), None, like)
    point = torch.tensor([[0.1, -0.1, 0.1, -0.1]], dtype=D)
    assert torch.allclose(free.scaled_to(point).scale, torch.full((1, 1, 4), 0.1, dtype=D))
    assert torch.allclose(free.scaled_to(10 * point, 0.3).scale, torch.full((1, 1, 4), 0.3, dtype=D))
    assert free.scaled_to(0 * point) is free
    ball = Region.of(Ball(torch.ones(4, dtype=D), 0.5, math.inf), (1, 4), None, like)
    assert torch.equal(ball.scaled_to(1e3 * point).scale, ball.scale)
    assert torch.allclose(ball.scaled_to(1.0 + point).scale, 0.2 * ball.scale)


def test_rounds_are_at_the_size_of_the_best_point_and_follow_several_starts(monkeypatch):
    """First all start from what was looked at, at its size; when that no longer helps, rounds are at the unit scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)).double().eval()
    with torch.no_grad():
        model[0].weight *= 1e3  # steep at small inputs alone, but not at 0
        model[0].bias += 4.0
    p = problem(model.requires_grad_(False), 6)
    rounds: list[tuple[float, float, int]] = []
    pools: list[Pool] = []

    def pool_of(begin: float) -> Pool:
        pools.append(Pool(begin))
        return pools[-1]

    def recorded(net, region, x, v, steps, *_):
        if steps > 1:
            best = float(pools[0].entries[0][1].square().mean().sqrt())
            rounds.append((float(region.scale.max()), best, len(x)))
        return x, v

    monkeypatch.setattr(search, "anneal", recorded)
    monkeypatch.setattr(search, "climb", lambda *_: 0.0)
    monkeypatch.setattr(search, "_SCREENED", 0.0)
    monkeypatch.setattr(search, "_BATCH_WORK", 1)
    monkeypatch.setattr(search, "Pool", pool_of)
    lower = attack(p, budget=5.0)
    assert evaluate(p, lower.witness) == lower.value
    assert {count for _, _, count in rounds} == {search._TRACKS}
    assert rounds[0][0] == pytest.approx(rounds[0][1], rel=1e-5)
    assert rounds[1][0] == pytest.approx(search._REFINED * rounds[1][1], rel=1e-5)
    assert any(scale == 1.0 for scale, _, _ in rounds)
