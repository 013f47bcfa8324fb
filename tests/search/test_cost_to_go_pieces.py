"""The pieces of the search of the cost-to-go, against grids, finite differences and dense algebra."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lipcert.capture.torch_export import capture
from lipcert.network.graph import AffineNode
from lipcert.problem import Problem
from lipcert.search.cost_to_go import weights
from lipcert.search.cost_to_go.cells import Cell
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.weights import excess, random_directions, scaled_weights
from tests.search.cost_to_go_cases import (
    CENTRE,
    DOMAINS,
    F64,
    Case,
    as_domains,
    generator_of,
)

ACTIVATIONS = (
    nn.ReLU(), nn.LeakyReLU(0.3), nn.LeakyReLU(-0.5), nn.ReLU6(), nn.Hardtanh(-0.5, 0.8), nn.Softshrink(0.3),
    nn.Hardsigmoid(), nn.PReLU(init=0.4), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.ELU(), nn.SELU(),
    nn.CELU(2.0), nn.Softplus(), nn.Mish(), nn.Softsign(), nn.Hardswish(), nn.Tanhshrink(), nn.LogSigmoid(),
)  # fmt: skip


@pytest.mark.few(4)
@pytest.mark.parametrize("module", ACTIVATIONS, ids=lambda m: type(m).__name__)
def test_least_costs_of_cells_against_a_grid(module: nn.Module) -> None:
    """No point of a fine grid is cheaper than what is said to be the least cost, and one is about as cheap."""
    count, n = 8, 40
    network = Problem(capture(module, torch.zeros(1, n))).expanded
    (function,) = Plan(network, {}).functions.values()
    generator = generator_of(7)

    def draw() -> Tensor:
        return torch.randn(count, 1, n, generator=generator, dtype=F64)

    middle, half = 1.5 * draw(), draw().abs()
    low, high = middle - half, middle + half * (torch.arange(n) % 5 > 0)  # every fifth range ends where it is centred
    low[:, :, ::7] = high[:, :, ::7]
    cell = Cell(function, draw(), draw().exp(), draw(), draw(), draw().exp(), middle + 0.5 * draw(), low, high)
    share = torch.linspace(0, 1, 4001, dtype=F64).reshape(-1, 1, 1, 1)
    grid = low + (high - low) * share
    on_grid = torch.stack([cell.at(v, function(v)) for v in grid]).amin(0).flatten(1).sum(1)
    least = cell.least()
    tolerance = 2e-4 if function.curved else 1e-9
    assert bool((least <= on_grid + tolerance * n).all()), (least - on_grid).max()
    assert bool((least >= on_grid - 1e-3 * n).all())


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Hardtanh(), nn.Tanh()], ids=lambda m: type(m).__name__)
def test_gradients_of_least_costs(module: nn.Module) -> None:
    """Those of finite differences, in every argument and of every shape."""
    network = Problem(capture(module, torch.zeros(1, 5))).expanded
    (function,) = Plan(network, {}).functions.values()
    generator = generator_of(3)
    full = [torch.randn(2, 1, 5, generator=generator, dtype=F64) for _ in range(4)]
    single = [torch.randn(2, 1, 1, generator=generator, dtype=F64).exp() for _ in range(2)]
    low, high = full[3] - 0.7, full[3] + 0.9

    def total(c: Tensor, weight: Tensor, middle: Tensor, g: Tensor, curvature: Tensor, centre: Tensor) -> Tensor:
        return Cell(function, c, weight, middle, g, 3.0 + curvature, centre, low, high).least()

    arguments = (full[0], single[0], full[1], full[2], single[1], full[3])
    for a in arguments:
        a.requires_grad_(True)
    assert torch.autograd.gradcheck(total, arguments, eps=1e-5, atol=5e-3 if module.__class__ is nn.Tanh else 1e-5)


@pytest.mark.parametrize("kind", list(DOMAINS))
def test_least_costs_of_the_input(kind: str) -> None:
    """Never above the cost at a point of the domain; attained at a point of it where that is known in closed form."""
    domain = DOMAINS[kind]
    domains = as_domains(domain.fitted((1, 4))).at(torch.zeros(6, dtype=torch.int64))
    generator = generator_of(4)
    c, middle = (torch.randn(6, 1, 4, generator=generator, dtype=F64) for _ in range(2))
    weight = torch.randn(6, 1, 1 if kind == "l2" else 4, generator=generator, dtype=F64).exp()
    least = domains.least(c, weight, middle)
    x = torch.randn(4000, 1, 4, generator=generator, dtype=F64) * 0.4 + torch.tensor(CENTRE, dtype=F64)
    x = domain.fitted((1, 4)).project(x)
    cost = (c * x[:, None] - 0.5 * weight * (x[:, None] - middle).square()).flatten(2).sum(2)
    assert bool((least <= cost.amin(0) + 1e-9).all())
    if kind != "clipped":
        assert bool((least >= cost.amin(0) - 0.2 * c.norm()).all())
        point, multiplier = domains.least_point(c, weight, middle)
        at_point = (c * point - 0.5 * weight * (point - middle).square()).flatten(1).sum(1)
        assert torch.allclose(least, at_point)
        assert not bool(multiplier.any())
    else:  # without a quadratic cost the ball's multiplier loses nothing
        straight = domains.least(c, torch.zeros_like(weight), middle)
        nearest = (c * x[:, None]).flatten(2).sum(2).amin(0)
        assert bool((straight <= nearest + 1e-9).all())
        assert bool((straight >= nearest - 0.05).all())


@pytest.mark.parametrize("name", ["image", "two readers"])
def test_maps_and_transposes_have_each_other_as_gradients(name: str) -> None:
    case = Case(name, DOMAINS["l2"])
    for maps in case.question().plan.maps.values():
        for both in maps:
            x = torch.randn(2, *both.linear.in_shape, dtype=F64, requires_grad=True)
            y = torch.randn(2, *both.linear.out_shape, dtype=F64, requires_grad=True)
            assert torch.allclose((both.apply(x) * y).sum(), (x * both.transpose(y)).sum())
            assert torch.autograd.gradcheck(both.apply, (x,))
            assert torch.autograd.gradcheck(both.transpose, (y,))
            assert torch.allclose(both.transpose(y[:1]), both.transpose(y)[:1])


def test_diagonal_weights_are_as_small_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """λ of the dense matrix, over several parents at once, and its gradient; nothing is too faint here."""
    monkeypatch.setattr(weights, "FAINT", 1e-9)
    case = Case("two readers", DOMAINS["l2"], count=3)
    plan = case.question().plan
    k = next(k for k in plan.bent if len(plan.linked(k)) > 1)
    node, generator = case.network.nodes[k], generator_of(6)
    total = torch.randn(3, *node.shape, generator=generator, dtype=F64).exp().requires_grad_(True)
    logs = {
        i: torch.randn(3, *plan.parent_shape((k, i)), generator=generator, dtype=F64).requires_grad_(True)
        for i in plan.linked(k)
    }
    matrix = torch.cat([m.matrix() for m in node.maps], dim=1)  # type: ignore[attr-defined]

    def exact(d: Tensor, *t: Tensor) -> Tensor:
        roots = torch.cat([(-0.5 * s).exp().flatten(1) for s in t], dim=1)
        through = matrix * roots[:, None]
        gram = through.mT @ (d.flatten(1)[:, :, None] * through)
        return torch.linalg.eigvalsh(gram)[:, -1]

    directions = random_directions(plan, k, 3, case.rows, generator)
    found = scaled_weights(plan, k, total, logs, directions, 60)
    wanted = exact(total, *logs.values())
    for i, t in found.items():
        assert torch.allclose(t, logs[i].exp() * wanted.reshape(-1, 1, 1), rtol=1e-6)
    mine = torch.autograd.grad(sum(t.log().mean() for t in found.values()), [total, *logs.values()])
    share = sum((logs[i] + wanted.log().reshape(-1, 1, 1)).mean() for i in found)
    theirs = torch.autograd.grad(share, [total, *logs.values()])
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    fresh = random_directions(plan, k, 3, case.rows, generator)
    held = {i: t.detach() for i, t in found.items()}
    assert torch.allclose(excess(plan, k, total.detach(), held, fresh, 40), torch.ones(3, dtype=F64), rtol=1e-6)


def test_few_steps_follow_the_greatest_value_of_a_convolution() -> None:
    """Clustered eigenvalues, weights that drift: λ stays within a per cent, though each step sees only two images."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Conv2d(1, 6, 4, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 4, 2, 1), nn.ReLU(), nn.Flatten())
    network = capture(nn.Sequential(*model, nn.Linear(72, 3)).double().eval(), torch.zeros(1, 1, 12, 12, dtype=F64))
    nodes = [k for k, node in enumerate(network.nodes) if isinstance(node, AffineNode)]
    k, generator = nodes[1], generator_of(8)
    plan = Plan(network, {n: (1.0,) * len(network.nodes[n].parents) for n in nodes})
    shape, before = network.nodes[k].shape, plan.parent_shape((k, 0))
    total = torch.rand(2, *shape, generator=generator, dtype=F64) + 0.5
    log = torch.zeros(2, *before, dtype=F64)
    matrix = network.nodes[k].maps[0].matrix()  # type: ignore[attr-defined]
    directions = random_directions(plan, k, 2, total, generator)
    scaled_weights(plan, k, total, {0: log}, directions, 10)
    for _ in range(30):
        log = log + 0.02 * torch.randn(log.shape, generator=generator, dtype=F64)
        weight = scaled_weights(plan, k, total, {0: log}, directions, 2)[0]
    through = matrix * weight.flatten(1).rsqrt()[:, None]
    greatest = torch.linalg.eigvalsh(through.mT @ (total.flatten(1)[:, :, None] * through))[:, -1]
    assert bool((greatest < 1.01).all()), greatest
    assert bool((greatest >= 1.0 - 1e-9).all()), greatest


@pytest.mark.parametrize("apart", [0.0, 0.2])
def test_eigenvalues_that_come_together_share_the_gradient(apart: float) -> None:
    """Of the identity, with D = 1 but at two places: there the gradient of log λ in t, −1 in all, is shared or not."""
    n, two = 80, [7, 41]
    model = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(n))
    network = capture(model, torch.zeros(1, n, dtype=F64))
    plan = Plan(network, {1: (1.0,), 3: (1.0,)})
    total = torch.ones(1, *network.nodes[1].shape, dtype=F64)
    total[..., two[0]], total[..., two[1]] = 2.0 + apart, 2.0
    log = torch.zeros(1, *network.nodes[0].shape, dtype=F64, requires_grad=True)
    directions = random_directions(plan, 1, 1, total, generator_of(3))
    scaled_weights(plan, 1, total, {0: log.detach()}, directions, 60)
    weight = scaled_weights(plan, 1, total, {0: log}, directions, 3)[0]
    assert torch.allclose(weight, torch.full_like(weight, 2.0 + apart))
    (gradient,) = torch.autograd.grad(weight.log().mean(), log)
    of_size = gradient.flatten() - 1.0 / n  # what is left is d log λ/dt
    expected = torch.zeros(n, dtype=F64)
    expected[two] = torch.tensor([-0.5, -0.5] if apart == 0.0 else [-1.0, 0.0], dtype=F64)
    assert torch.allclose(of_size, expected, atol=1e-3), of_size[two]


def test_where_nothing_is_curved_weights_are_small_and_have_no_gradient() -> None:
    """D = 0 everywhere, as behind a layer of zeros: nothing there to climb, and no division by what is not there."""
    n = 80
    network = capture(nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 1)).double(), torch.zeros(1, n, dtype=F64))
    plan = Plan(network, {1: (1.0,), 3: (1.0,)})
    total = torch.zeros(2, *network.nodes[1].shape, dtype=F64, requires_grad=True)
    log = torch.zeros(2, *network.nodes[0].shape, dtype=F64)
    directions = random_directions(plan, 1, 2, log, generator_of(3))
    weight = scaled_weights(plan, 1, total, {0: log}, directions, 3)[0]
    assert bool((weight <= 1e-29).all())
    (gradient,) = torch.autograd.grad(weight.log().sum(), total)
    assert not bool(gradient.any())


@pytest.mark.parametrize("sides", [(100, 75), (75, 100)], ids=["outputs shorter", "inputs shorter"])
@pytest.mark.parametrize("size", [1.0, 1e-8])
def test_directions_stay_orthonormal(sides: tuple[int, int], size: float) -> None:
    """Fewer entries of D than directions, in float32: rounding must not add up over the steps, nor λ fall behind."""
    torch.manual_seed(5)
    n, m = sides
    model = nn.Sequential(nn.Linear(n, m), nn.ReLU(), nn.Linear(m, 1)).double().eval()
    network = capture(model, torch.zeros(1, n, dtype=F64)).to(torch.float32, "cpu")
    plan, generator = Plan(network, {1: (1.0,), 3: (1.0,)}), generator_of(9)
    total = torch.rand(8, *network.nodes[1].shape, generator=generator)
    total[..., 3:] = 0.0
    matrix = network.nodes[1].maps[0].matrix()  # type: ignore[attr-defined]
    logs = {0: torch.zeros(8, *network.nodes[0].shape)}
    directions = random_directions(plan, 1, 8, total, generator)
    for _ in range(40):
        total = total * (1.0 + 0.02 * torch.randn(total.shape, generator=generator)).abs()
        found = scaled_weights(plan, 1, size * total, logs, directions, 3)[0].flatten(1)[:, 0].double()
        rows = (size * total.flatten(1).double()).sqrt()[:, :, None] * matrix
        assert torch.allclose(found, torch.linalg.matrix_norm(rows, 2).square(), rtol=1e-4)
        squares = directions[1] @ directions[1].mT
        assert torch.allclose(squares, torch.eye(squares.shape[1]).expand_as(squares), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_directions_survive_a_bad_step(value: float) -> None:
    """Curvatures that are 0 or not finite for a moment: the next good ones are followed again."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(100, 90), nn.ReLU(), nn.Linear(90, 1)).double().eval()
    network = capture(model, torch.zeros(1, 100, dtype=F64)).to(torch.float32, "cpu")
    plan, generator = Plan(network, {1: (1.0,), 3: (1.0,)}), generator_of(9)
    good = torch.rand(3, *network.nodes[1].shape, generator=generator)
    bad = good.clone()
    bad[1] = value
    logs = {0: torch.zeros(3, *network.nodes[0].shape)}
    directions = random_directions(plan, 1, 3, good, generator)
    for total, steps in ((good, 10), (bad, 3), (good, 30)):
        found = scaled_weights(plan, 1, total, logs, directions, steps)[0].flatten(1)[:, 0].double()
    rows = good.flatten(1).double().sqrt()[:, :, None] * network.nodes[1].maps[0].matrix()  # type: ignore[attr-defined]
    assert torch.allclose(found, torch.linalg.matrix_norm(rows, 2).square(), rtol=1e-3)


def test_eigenvalues_that_float32_does_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAPACK's float32 gave up on such squares of rows, of which most are zero."""
    eigh = torch.linalg.eigh
    asked: list[torch.dtype] = []

    def unfinished(matrix: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(matrix.dtype)
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(matrix)

    rows = torch.randn(2, 8, 20, generator=generator_of(9))
    rows[:, 2:] = 0.0
    monkeypatch.setattr(torch.linalg, "eigh", unfinished)
    basis = weights._turned(rows / rows.norm(dim=2, keepdim=True).clamp(min=1e-30))
    assert asked == [torch.float32, torch.float64]
    assert basis.dtype == torch.float32
    kept = basis.norm(dim=2) > 0.5
    assert kept.sum(1).tolist() == [2, 2]
    assert torch.allclose(basis @ basis.mT, torch.diag_embed(kept.float()), atol=1e-5)
    assert torch.allclose(rows @ basis.mT @ basis, rows, atol=1e-4)
