"""``lipcert.output_bounds`` and ``lipcert.margin``: exact where that is known, never false, tight on small networks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.cost_to_go.facts import Facts
from lipcert.certificates.cost_to_go.walk import Setting
from lipcert.certificates.outputs import Subject
from lipcert.errors import InputError
from lipcert.numerics.chance import Chance
from lipcert.result import OutputBound
from tests.zoo import Residual, mlp, random_network

CENTRE = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


def require_inside(bound: lipcert.OutputBound, y: Tensor, slack: float | Tensor = 0.0) -> None:
    """Outputs (N, k) lie within the bounds."""
    assert bool((y.amin(dim=0) >= bound.lower - slack).all())
    assert bool((y.amax(dim=0) <= bound.upper + slack).all())


def linear_model(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 4).double().eval()


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_linear_models_exactly(p: float) -> None:
    """min of w·x + b over a ball is w·x̂ + b − ρ‖w‖ in the dual norm."""
    model = linear_model()
    bound = lipcert.output_bounds(model, torch.zeros(1, 3).double(), lipcert.Ball(CENTRE, 0.7, p))
    dual = {1: math.inf, 2: 2, math.inf: 1}[p]
    middle = (model.weight @ CENTRE + model.bias).detach()
    reach = 0.7 * model.weight.detach().norm(p=dual, dim=1)
    assert torch.allclose(bound.lower, middle - reach, rtol=1e-9, atol=1e-9)
    assert torch.allclose(bound.upper, middle + reach, rtol=1e-9, atol=1e-9)
    require_inside(bound, torch.stack([middle - reach, middle + reach]))
    assert bound.guarantee == "rigorous"


def test_margins_of_linear_models() -> None:
    model = linear_model(1)
    bound = lipcert.margin(model, torch.zeros(1, 3).double(), 2, lipcert.Ball(CENTRE, 0.2, 2))
    others = [0, 1, 3]
    weight = (model.weight[2] - model.weight[others]).detach()
    value = weight @ CENTRE + (model.bias[2] - model.bias[others]).detach() - 0.2 * weight.norm(dim=1)
    assert torch.allclose(bound.lower, value, rtol=1e-9, atol=1e-9)
    assert bound.value == float(bound.lower.min())
    assert bool(bound.upper.isinf().all())


def test_selected_rows_are_bounded_beside_each_other() -> None:
    model = linear_model(2)
    select = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]])
    box = lipcert.Box(-1.0, 1.0)
    bound = lipcert.output_bounds(model, torch.zeros(1, 3).double(), box, select=select)
    weight = select.double() @ model.weight.detach()
    middle = select.double() @ model.bias.detach()
    assert torch.allclose(bound.upper, middle + weight.abs().sum(dim=1), atol=1e-9)
    assert torch.equal(bound.select, select)


def least_by_patterns(model: nn.Sequential, row: Tensor, low: Tensor, high: Tensor) -> float:
    """min row·f over a box, one hidden layer of ReLUs: a linear program for every pattern of signs."""
    w1, b1, w2, b2 = (t.detach().double() for t in (model[0].weight, model[0].bias, model[2].weight, model[2].bias))
    best = math.inf
    for signs in itertools.product((0.0, 1.0), repeat=len(w1)):
        on = torch.tensor(signs, dtype=torch.float64)
        cost = row @ w2 @ torch.diag(on) @ w1
        side = 1.0 - 2.0 * on  # on: −(w x + b) ≤ 0
        found = linprog(
            cost.numpy(), A_ub=(side[:, None] * w1).numpy(), b_ub=(-side * b1).numpy(),
            bounds=list(zip(low.tolist(), high.tolist(), strict=True)),
        )  # fmt: skip
        if found.success:
            best = min(best, found.fun + float(row @ (w2 @ (on * b1) + b2)))
    return best


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(3))
def test_against_all_patterns(seed: int) -> None:
    model = mlp([3, 6, 2], seed)
    low, high = CENTRE - 0.4, CENTRE + 0.3
    row = torch.tensor([1.0, -1.0], dtype=torch.float64)
    exact = least_by_patterns(model, row, low, high)
    bound = lipcert.output_bounds(model, torch.zeros(1, 3), lipcert.Box(low, high), select=row[None], budget=5)
    assert float(bound.lower) <= exact + 1e-7
    assert float(bound.lower) > exact - 0.1 * (1.0 + abs(exact))


@pytest.mark.few(1)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.LeakyReLU])
def test_against_a_grid_in_two_dimensions(activation: type[nn.Module]) -> None:
    model = mlp([2, 8, 8, 2], activation=activation).double()
    grid = torch.linspace(-0.4, 0.6, 201, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        y = model(x)
    bound = lipcert.output_bounds(model, torch.zeros(1, 2).double(), lipcert.Box(-0.4, 0.6), budget=4)
    require_inside(bound, y)
    width = y.amax(0) - y.amin(0)
    assert bool((bound.upper - bound.lower < 1.6 * width + 0.02).all())


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(8))
def test_random_networks_by_samples(seed: int) -> None:
    case = random_network(100 + seed)
    model, example = case.model.double(), case.example[:1].double()
    ball = lipcert.Ball(torch.full(example.shape[1:], 0.1, dtype=torch.float64), 0.2, p=(2, math.inf)[seed % 2])
    bound = lipcert.output_bounds(model, example, ball, budget=1)
    inside = ball.project(ball.center + 0.4 * torch.randn(200, *example.shape[1:], dtype=torch.float64))
    with torch.no_grad():
        y = torch.cat([model(one[None]) for one in inside]).flatten(1)
    slack = 1e-9 * (1.0 + y.abs().amax())
    require_inside(bound, y, slack)


def test_a_steep_function_on_a_domain() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x) - torch.log(x + 2.0)

    bound = lipcert.output_bounds(Model().eval(), torch.zeros(1, 2), lipcert.Box(-1.0, 1.0), budget=2)
    v = torch.linspace(-1.0, 1.0, 1001, dtype=torch.float64)
    y = torch.exp(v) - torch.log(v + 2.0)
    require_inside(bound, y[:, None])
    assert float(bound.lower.min()) > float(y.min()) - 0.05


@pytest.mark.slow
def test_products_of_variables_are_bounded_by_their_ranges() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.sigmoid(self.a(x)) * self.b(x))

    model = Gate().eval()
    ball = lipcert.Ball(CENTRE.float(), 0.5, 2)
    bound = lipcert.output_bounds(model, torch.zeros(1, 3), ball, budget=2)
    x = ball.project(CENTRE.float() + torch.randn(2000, 3))
    with torch.no_grad():
        y = model(x)
    require_inside(bound, y)


@pytest.mark.slow
def test_residual_and_repeated_readers() -> None:
    torch.manual_seed(0)
    inner = Residual(mlp([5, 4, 5], 1))
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), inner, nn.ReLU(), nn.Linear(5, 2)).float().eval()
    ball = lipcert.Ball(CENTRE.float(), 0.4, 2)
    bound = lipcert.output_bounds(model, torch.zeros(1, 3), ball, budget=3)
    with torch.no_grad():
        y = model(ball.project(CENTRE.float() + torch.randn(4000, 3)))
    require_inside(bound, y)
    assert bool((bound.upper - bound.lower < 2.0 * (y.amax(0) - y.amin(0)) + 0.02).all())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"domain": None}, "bounded part"),
        ({"domain": lipcert.Ball(torch.zeros(4), 1.0)}, "shape"),
        ({"select": torch.zeros(2, 3)}, r"\(k, 4\)"),
        ({"select": torch.full((1, 4), math.nan)}, "NaN"),
        ({"select": torch.zeros(0, 4)}, "no rows"),
        ({"budget": 0}, "budget"),
        ({"budget": -1.0}, "budget"),
        ({"seed": 1.5}, "seed"),
        ({"device": "nowhere"}, "device"),
    ],
)
def test_unusable_arguments(change: dict, says: str) -> None:
    arguments = {"domain": lipcert.Ball(torch.zeros(3), 0.1), **change}
    with pytest.raises(InputError, match=says):
        lipcert.output_bounds(linear_model().float(), torch.zeros(1, 3), **arguments)


@pytest.mark.parametrize("label", [-1, 4, 1.0, True, "2", None, np.True_, torch.tensor([1]), torch.tensor(1.0), 10**30])
def test_labels_that_are_none(label: object) -> None:
    with pytest.raises(InputError, match="label"):
        lipcert.margin(linear_model().float(), torch.zeros(1, 3), label, lipcert.Ball(torch.zeros(3), 0.1))


@pytest.mark.few(3)
@pytest.mark.parametrize("label", [np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor(2).byte()])
def test_whole_numbers_of_every_kind_are_labels(label: object) -> None:
    model, x, ball = linear_model().float(), torch.zeros(1, 3), lipcert.Ball(torch.zeros(3), 0.1)
    assert torch.equal(lipcert.margin(model, x, label, ball).lower, lipcert.margin(model, x, 2, ball).lower)


def test_numbers_of_every_kind() -> None:
    """Radii, seeds and budgets of NumPy and torch, an example and a selection as arrays: the same bounds."""
    model, x, rows = linear_model().float(), torch.zeros(1, 3), [[1.0, -1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0]]
    plain = lipcert.output_bounds(model, x, lipcert.Ball(0.25, 0.5, 2), select=torch.tensor(rows))
    ball = lipcert.Ball(np.float32(0.25), torch.tensor(0.5), np.int64(2))
    for select in (rows, np.array(rows), np.array(rows, dtype=">f4")):
        budget, seed = np.float32(5), torch.tensor(0)
        other = lipcert.output_bounds(model, x.numpy(), ball, select=select, budget=budget, seed=seed)
        assert torch.equal(other.lower, plain.lower)
        assert torch.equal(other.upper, plain.upper)
    with pytest.raises(InputError, match=r"select must be a \(k, 4\) matrix"):
        lipcert.output_bounds(model, x, ball, select=2)


def test_what_is_not_known_is_not_printed_as_infinity() -> None:
    """[−∞, ∞] read "≥ -inf"."""

    def bound(low: list[float], high: list[float]) -> str:
        return str(OutputBound(vector(*low), vector(*high), "rigorous", "ranges", lipcert.Box(0.0, math.inf)))

    text = bound([-math.inf, -math.inf, 1.0, 2.0], [math.inf, 3.0, math.inf, 4.0])
    assert text.startswith("4 outputs: no bound, ≤ 3, ≥ 1, [2, 4]  ")
    whole = lipcert.output_bounds(linear_model(), torch.zeros(1, 3).double(), lipcert.Box(-math.inf, math.inf))
    assert str(whole).startswith("4 outputs: no bound, no bound, no bound, no bound  ")


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_ranges_are_kept_for_the_domain_that_they_are_of() -> None:
    """The same numbers, the same ranges; another radius, centre, kind or a domain that was changed: new ones."""
    subject = Subject(capture(mlp([3, 5, 2]), torch.zeros(1, 3)))
    facts = subject.facts

    def ball(radius: float = 0.5, first: float = 0.0, p: float = 2) -> lipcert.Ball:
        return lipcert.Ball(torch.tensor([[first, 0.0, 0.0]]), radius, p)

    kept = subject.setting(facts, ball(), True)
    assert subject.setting(facts, ball(), True) is kept
    box = lipcert.Box(-torch.ones(1, 3), torch.ones(1, 3))
    others = [ball(0.25), ball(0.5, 1.0), ball(p=math.inf), box, lipcert.Intersection(ball(), box)]
    settings = [subject.setting(facts, domain, True) for domain in others] + [subject.setting(facts, ball(), False)]
    assert len({id(s) for s in [kept, *settings]}) == len(others) + 2
    for domain, setting in zip(others, settings, strict=False):
        assert torch.equal(setting.boxes[-1].high, Setting(facts, domain, True).boxes[-1].high)
    assert subject.setting(Facts(subject.network, Chance()), ball(), True) is not kept
    kept.domain.center[0, 0] = 3.0
    assert subject.setting(facts, ball(), True) is not kept
    assert torch.equal(subject.setting(facts, ball(), True).boxes[0].high, ball().bounds()[1])


def test_a_model_of_one_output_has_no_margin() -> None:
    with pytest.raises(InputError, match="label"):
        lipcert.margin(nn.Linear(3, 1).eval(), torch.zeros(1, 3), 0, lipcert.Ball(torch.zeros(3), 0.1))
