"""Every pair of norms of {1, 2, ∞} on networks of all kinds: above what is attained, in order, proved by its file."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.attack import attack
from lipcert.attack.norms import best_directions
from lipcert.capture.torch_export import capture
from lipcert.certificates.norms.conversion import NORMS, cost
from lipcert.certificates.verify import verify
from lipcert.domain import Ball, Domain
from lipcert.methods.auto import Auto
from lipcert.methods.base import Run, registered
from lipcert.methods.branch_and_bound import BranchAndBound
from lipcert.methods.routes import routes
from lipcert.network.linear import size
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem
from lipcert.result import Bound
from tests.zoo import ZOO, Case, Double, mlp, random_network, zoo_case

INF = math.inf
PAIRS: tuple[Norm, ...] = tuple(itertools.product(NORMS, NORMS))
#: What the tolerance of iterations may leave between pairs that should agree.
SLACK = 2e-3


def bounds(case: Case, domain: Domain = None, budget: float = 20.0) -> tuple[Problem, dict[Norm, Bound]]:
    """The default's bound in every pair."""
    first = Problem(capture(case.model, case.example), domain=domain)
    found = {}
    for pair in PAIRS:
        run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), budget=budget)
        found[pair] = Auto().bound(first.between(pair), run, Chance())
    return first, found


def in_order(problem: Problem, found: dict[Norm, Bound], name: str) -> None:
    """No pair is worse than what another implies, unless by branch and bound: how far that comes is the clock's."""
    n, m = size(problem.model.in_shape), size(problem.network.out_shape)
    for one, other in itertools.permutations(PAIRS, 2):
        if found[other].method == BranchAndBound.name:
            continue
        implied = float(cost(one, other, n, m)) * found[other].value
        assert found[one].value <= implied * (1.0 + SLACK) + 1e-200, (name, one, other, found[one].value, implied)


def jacobians(case: Case, points: Tensor) -> Tensor:
    model = Double(case.model)
    rows = [torch.autograd.functional.jacobian(lambda z: model(z[None]).reshape(-1), x) for x in points]
    return torch.stack([row.reshape(row.shape[0], -1) for row in rows])


def quotients(case: Case, points: Tensor, p: float, q: float) -> tuple[Tensor, Tensor]:
    """‖f(x) − f(y)‖_q/‖x − y‖_p of all pairs of points, and what rounding may add to them."""
    with torch.no_grad():
        values = Double(case.model)(points).reshape(len(points), -1)
    first, second = torch.triu_indices(len(points), len(points), 1)
    apart = torch.linalg.vector_norm((points[first] - points[second]).reshape(len(first), -1), p, dim=1)
    moved = torch.linalg.vector_norm(values[first] - values[second], q, dim=1)
    return moved / apart, 1e-12 * (1.0 + values.abs().sum(1).max()) / apart


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [row[0] for row in ZOO])
def test_all_nine_on_the_zoo(name: str, tmp_path: Path) -> None:
    problem, found = bounds(zoo_case(name))
    for place, (pair, bound) in enumerate(found.items()):
        assert attack(problem.between(pair), None, 0.05, seed=0).value <= bound.value
        assert bound.norm == pair
        if place % 4 == 0 or bound.via is not None:
            bound.save(tmp_path / "c.lipcert")
            again = verify(tmp_path / "c.lipcert", problem.model)
            assert (again.value, again.via) == (bound.value, bound.via)
    in_order(problem, found, name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(7000, 7300))
def test_all_nine_on_generated_networks(seed: int, tmp_path: Path) -> None:
    """Bounds are above the norms of dense Jacobians and above difference quotients, and their files prove them."""
    case = random_network(seed)
    shape = tuple(case.example.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(shape, generator=generator, dtype=torch.float64)
    domain = None if seed % 2 else Ball(center, 0.3)
    problem, found = bounds(case, domain)
    reach = 3.0 if domain is None else 0.3
    points = center + reach * (2.0 * torch.rand(12, *shape, generator=generator, dtype=torch.float64) - 1.0)
    slopes = jacobians(case, points)
    for pair, bound in found.items():
        low = float(best_directions(slopes, *pair)[0].max()) if slopes.numel() else 0.0
        # torch's own derivative of hardsigmoid holds 1/6 in float32
        assert low * (1.0 - 1e-7) <= bound.value, (case.name, pair, low, bound.value, bound.method)
        quotient, noise = quotients(case, points, *pair)
        assert bool((quotient <= bound.value * (1.0 + 1e-9) + noise).all()), (case.name, pair, bound.value)
        bound.save(tmp_path / "c.lipcert")
        again = verify(tmp_path / "c.lipcert", problem.model)
        assert (again.value, again.norm, again.via) == (bound.value, bound.norm, bound.via), (case.name, pair)
    in_order(problem, found, case.name)


def test_of_one_linear_layer_every_norm_is_exact() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double().eval()
    w = layer.weight.detach()[None]
    duals = {1.0: INF, 2.0: 2.0, INF: 1.0}
    for pair, bound in bounds(Case("linear", layer, torch.zeros(1, 4)))[1].items():
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
        truth = float(best_directions(w, *pair, iterations=200)[0])
        if pair[0] == INF:
            truth = float((signs @ w[0].T).norm(p=pair[1], dim=1).max())
        elif pair[1] == 1.0:  # of the transposed, from l∞
            truth = float((signs[:, :3] @ w[0]).norm(p=duals[pair[0]], dim=1).max())
        assert truth * (1 - 1e-14) <= bound.value <= truth * (1 + 1e-9), pair


@pytest.mark.few(1)
@pytest.mark.parametrize("q", [1.0, 2.0, INF])
def test_one_input_makes_p_immaterial_and_one_output_q(q: float) -> None:
    narrow, single = mlp((1, 6, 3), 0), mlp((4, 6, 1), 1)
    first = [lipcert.bound(narrow, torch.zeros(1, 1), norm=(p, q)).value for p in NORMS]
    second = [lipcert.bound(single, torch.zeros(1, 4), norm=(q, p)).value for p in NORMS]
    for values in (first, second):
        assert max(values) <= min(values) * (1 + SLACK)


def test_a_bound_by_other_norms_names_both() -> None:
    model, x = mlp((4, 6, 6, 3), 7, lambda: nn.LeakyReLU(0.1)), torch.zeros(1, 4)
    bound = lipcert.bound(model, x, norm=(1, INF))
    assert bound.via is not None
    assert bound.via in ((1.0, 2.0), (2.0, INF))
    assert f"l1 → linf by l{bound.via[0]:g} → l{bound.via[1]:g}" in str(bound)
    assert bound.breakdown[-1].name == "change of norms"


def test_blocks_without_a_gain_in_l1_are_passed_in_l2() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.normalize(x, dim=1, eps=0.5)

    case = Case(
        "normalize", nn.Sequential(nn.Linear(4, 5), Block(), nn.Linear(5, 3)).double().eval(), torch.zeros(1, 4)
    )
    problem, found = bounds(case)
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slopes = jacobians(case, points)
    for pair, bound in found.items():
        assert float(best_directions(slopes, *pair)[0].max()) <= bound.value
    in_order(problem, found, case.name)
    assert lipcert.bound(case.model, case.example, method="autolip", norm=(1, 1)).value >= found[1.0, 1.0].value


@pytest.mark.few(1)
@pytest.mark.parametrize("radius", [1e-4, 0.1])
def test_on_a_small_ball_every_pair_is_near_the_norm_of_the_jacobian(radius: float) -> None:
    case = zoo_case("tanh 4-6-6-3")
    center = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
    found = bounds(case, Ball(center, radius))[1]
    slopes = jacobians(case, center[None])
    for pair, bound in found.items():
        truth = float(best_directions(slopes, *pair, iterations=100)[0])
        assert truth * (1 - 1e-12) <= bound.value <= truth * (1.01 if radius < 1e-3 else 1.8), pair


def test_anchored_bounds_in_every_pair() -> None:
    case, center = zoo_case("relu 4-6-3"), torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
    model = Double(case.model)
    x = center + 0.4 * (
        2.0 * torch.rand(3000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1.0
    )
    change, step = (model(x) - model(center[None])).detach(), x - center
    for p, q in PAIRS:
        found = lipcert.bound(case.model, case.example, norm=(p, q), domain=Ball(center, 0.4), anchor="center")
        assert float((change.norm(p=q, dim=1) / step.norm(p=p, dim=1)).max()) <= found.value


def test_every_method_reaches_the_pairs_it_says_and_no_route_is_empty() -> None:
    for pair in PAIRS:
        reached = {name for name, kind in registered().items() if name != "auto" and routes(kind, pair)}
        assert {"mixed_product", "interval_jacobian", "lipsdp", "liplt", "branch_and_bound"} <= reached


def test_what_ends_in_a_mean_is_bounded_as_such_from_l1_too(tmp_path: Path) -> None:
    """Of one input all p say the same; [softmax]_i of a large multiple of it is far below the product of gains."""
    model = nn.Sequential(nn.Linear(1, 6), nn.Softmax(1)).double().eval()
    bounds = [lipcert.bound(model, torch.zeros(1, 1).double(), norm=(p, INF), budget=5) for p in (1.0, 2.0)]
    assert bounds[0].value == pytest.approx(bounds[1].value, rel=SLACK)
    several = lipcert.bound(model, torch.zeros(1, 1).double(), norm=(2, 1), budget=5).value
    assert several <= 6 * bounds[1].value * (1 + SLACK)
    bounds[0].save(tmp_path / "c.lipcert")
    assert lipcert.verify(tmp_path / "c.lipcert", model, torch.zeros(1, 1).double()).value == bounds[0].value
