"""Expressions in one variable as one activation: 36 that people write, each within 1 % of its constant on the line."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.domain import Ball, Box
from lipcert.errors import NotLipschitzError
from lipcert.network.graph import ActivationNode, AffineNode, Network, OpenNode
from lipcert.problem import Problem
from lipcert.ranges.collapse import collapse
from lipcert.ranges.composite import Composite
from lipcert.variation.one_sided import plus_identity
from tests.zoo import Apply

D = torch.float64

#: name: (function, its constant on the line).
CASES = {
    "exp(clamp(x, max=0))": (lambda x: torch.exp(x.clamp(max=0)), 1.0),
    "exp(-relu(x))": (lambda x: torch.exp(-F.relu(x)), 1.0),
    "exp(1.27 atan(x))": (lambda x: torch.exp(2 * 0.636 * torch.atan(x)), 1.861648214717107),
    "exp(tanh(x))": (lambda x: torch.exp(torch.tanh(x)), 1.2535595643294637),
    "tanh(x)^2": (lambda x: torch.tanh(x) ** 2, 0.7698003589167443),
    "sigmoid(x)(1 - sigmoid(x))": (lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)), 0.09622504486467898),
    "clamp(x, -1, 1)^3": (lambda x: x.clamp(-1, 1) ** 3, 3.0),
    "sin(x)^2": (lambda x: torch.sin(x) ** 2, 1.0),
    "exp(-x^2)": (lambda x: torch.exp(-(x**2)), 0.8577638849396366),
    "exp(-|x|)": (lambda x: torch.exp(-x.abs()), 1.0),
    "1/(1 + x^2)": (lambda x: 1 / (1 + x * x), 0.6495190528383289),
    "1/(1 + exp(x))": (lambda x: 1 / (1 + torch.exp(x)), 0.25),
    "log1p(relu(x))": (lambda x: torch.log1p(F.relu(x)), 1.0),
    "log(1 + exp(x))": (lambda x: torch.log(1 + torch.exp(x)), 1.0),
    "log(1 + x^2)": (lambda x: torch.log(1 + x * x), 1.0),
    "sqrt(1 + relu(x))": (lambda x: torch.sqrt(1 + F.relu(x)), 0.5),
    "sqrt(x^2 + 1)": (lambda x: torch.sqrt(x * x + 1), 1.0),
    "x/sqrt(1 + x^2)": (lambda x: x / torch.sqrt(1 + x * x), 1.0),
    "x/(1 + |x|)": (lambda x: x / (1 + x.abs()), 1.0),
    "log cosh by softplus": (lambda x: x + F.softplus(-2 * x) - math.log(2), 1.0),
    "snake": (lambda x: x + torch.sin(x) ** 2, 2.0),
    "x sigmoid(1.7x)": (lambda x: x * torch.sigmoid(1.702 * x), 1.099839320128235),
    "squareplus": (lambda x: 0.5 * (x + torch.sqrt(x * x + 4)), 1.0),
    "huber by where": (lambda x: torch.where(x.abs() < 1, 0.5 * x * x, x.abs() - 0.5), 1.0),
    "smooth_l1_loss": (lambda x: F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none"), 1.0),
    "relu(x)^2 clipped": (lambda x: F.relu(x).clamp(max=1) ** 2, 2.0),
    "atan2(x, 1)": (lambda x: torch.atan2(x, torch.ones_like(x)), 1.0),
    "hypot(x, 1)": (lambda x: torch.hypot(x, torch.ones_like(x)), 1.0),
    "erf(x)": (torch.erf, 1.1283791670954089),
    "logaddexp(x, 0)": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), 1.0),
    "sin and tanh": (lambda x: torch.sin(x) / 2 + torch.tanh(x), 1.5),
    "nan_to_num": (lambda x: torch.nan_to_num(torch.tanh(x)), 1.0),
    "lerp": (lambda x: torch.lerp(x, torch.tanh(x), 0.3), 1.0),
    "addcmul of a constant": (lambda x: torch.addcmul(x, torch.tanh(x), torch.full_like(x, 0.5)), 1.5),
    "hardsigmoid": (lambda x: F.hardsigmoid(x) * 2, 1 / 3),
    "in float": (lambda x: torch.tanh(x.float()).to(x.dtype), 1.0),
}


def network_of(function, n: int = 3) -> Network:
    return capture(Apply(lambda _, x: function(x)).eval(), torch.zeros(1, n, dtype=D))


def bound(function, n: int = 3, domain=None):
    return lipcert.bound(Apply(lambda _, x: function(x)).eval(), torch.zeros(1, n, dtype=D), domain=domain, budget=1)


@pytest.mark.few(5)
@pytest.mark.parametrize("name", CASES)
def test_case(name):
    function, truth = CASES[name]
    value = bound(function).value
    assert truth * (1 - 1e-12) <= value <= truth * 1.01
    t = torch.linspace(-12, 12, 200_001, dtype=D, requires_grad=True)
    (slope,) = torch.autograd.grad(function(t).sum(), t)
    assert float(slope.abs().max()) <= value * (1 + 1e-6)  # one case is in float32


@pytest.mark.few(9)
@pytest.mark.parametrize("name", CASES)
def test_the_collapsed_network_is_the_model(name):
    function, _ = CASES[name]
    network = collapse(network_of(function))
    x = 3 * torch.randn(50, 1, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network.forward(x), function(x), rtol=1e-6 if name == "in float" else 1e-12, atol=1e-13)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["exp(tanh(x))", "tanh(x)^2", "snake", "sigmoid(x)(1 - sigmoid(x))"])
def test_on_a_small_domain(name):
    """The constant there, nearly."""
    function, _ = CASES[name]
    x = torch.tensor([0.9, -0.3, 0.1], dtype=D)
    value = bound(function, domain=Ball(x, 1e-3, math.inf)).value
    t = (x[:, None] + torch.linspace(-1e-3, 1e-3, 101, dtype=D)).requires_grad_()
    (slope,) = torch.autograd.grad(function(t).sum(), t)
    truth = float(slope.abs().max())
    assert truth * (1 - 1e-12) <= value <= truth * 1.001


def kinds(network: Network) -> list[str]:
    return [type(node).__name__.removesuffix("Node") for node in network.nodes]


def composites(network: Network) -> list[Composite]:
    return [n.function for n in network.nodes if isinstance(n, ActivationNode) and isinstance(n.function, Composite)]


def test_affine_steps_at_the_ends_stay_outside():
    """Other linear maps absorb them."""
    network = collapse(network_of(lambda x: 3 * torch.exp(torch.tanh(2 * x + 1)) - 1))
    assert kinds(network)[0] == "Input"
    assert isinstance(network.nodes[-1], AffineNode)
    assert isinstance(network.nodes[1], AffineNode)
    (function,) = composites(network)
    assert len(function.steps) == 2


def test_what_others_read_stays():
    """tanh(x) is read by a linear map as well."""
    w = torch.randn(3, 3, dtype=D, generator=torch.Generator().manual_seed(0))

    def function(x):
        t = torch.tanh(x)
        return torch.exp(t) + t @ w

    assert not composites(collapse(network_of(function)))
    twice = collapse(network_of(lambda x: torch.exp(torch.tanh(x)) + torch.tanh(x) @ w))
    assert len(composites(twice)) <= 1


def test_lines_become_one_activation_of_lines():
    cases = (
        (lambda x: F.relu(x) + F.relu(-x), -1.0, 1.0), (lambda x: F.relu(x.clamp(-1, 1)), 0.0, 1.0),
        (lambda x: x + F.relu(x), 1.0, 2.0), (lambda x: x + F.relu(-2 * x), -1.0, 1.0),
        (lambda x: F.relu(x) - 0.1 * F.relu(-x), 0.1, 1.0), (lambda x: F.relu(x) - F.relu(x - 1), 0.0, 1.0),
    )  # fmt: skip
    for function, least, greatest in cases:
        (node,) = (n for n in collapse(network_of(function)).nodes if isinstance(n, ActivationNode))
        assert not node.function.curved
        assert (node.function.lower, node.function.upper) == (least, greatest)
        x = torch.randn(64, 3, dtype=D, generator=torch.Generator().manual_seed(0)) * 2
        assert torch.equal(collapse(network_of(function)).forward(x[:, None])[:, 0], function(x))
    w = torch.randn(3, dtype=D, generator=torch.Generator().manual_seed(0))
    for function in (lambda x: w * x + F.relu(x), lambda x: F.relu(x)):  # numbers per entry; nothing to gain
        network = network_of(function)
        assert collapse(network) is network


def test_two_variables_stay():
    for function in (lambda x: torch.tanh(x) * torch.tanh(x.flip(1)), lambda x: x[:, :1] * torch.tanh(x)):
        assert any(isinstance(n, OpenNode) and n.combines for n in collapse(network_of(function)).nodes)


def test_open_expressions_have_slopes_on_domains():
    function = lambda x: x * torch.exp(x) + x**3  # noqa: E731
    with pytest.raises(NotLipschitzError):
        bound(function)
    value = bound(function, domain=Box(torch.zeros(3), torch.ones(3))).value
    truth = 2 * math.e + 3
    assert truth * (1 - 1e-12) <= value <= truth * 1.001
    with pytest.raises(NotLipschitzError, match="log"):
        bound(lambda x: x * torch.log(x), domain=Box(-torch.ones(3), torch.ones(3)))


def test_selection_and_file(tmp_path):
    model = Apply(lambda _, x: torch.exp(torch.tanh(x))).eval()
    x = torch.zeros(1, 3, dtype=D)
    select = torch.tensor([[1.0, -1.0, 0.0]], dtype=D)
    found = lipcert.bound(model, x, select=select, domain=Ball(torch.zeros(3), 0.1, 2), budget=1)
    found.save(tmp_path / "c.lipcert")
    again = lipcert.verify(tmp_path / "c.lipcert", model, x)
    assert again.value == found.value


def test_lower_bounds_of_composites():
    model = Apply(lambda _, x: torch.tanh(x) ** 2).eval()
    low = lipcert.lower_bound(model, torch.zeros(1, 3, dtype=D), budget=1)
    assert 0.7 < low.value <= 0.7698003589167443 * (1 + 1e-9)


def test_per_entry_scales_and_residuals():
    torch.manual_seed(0)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.scale = nn.Parameter(torch.randn(6))
            self.b = nn.Linear(6, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b(h + torch.tanh(self.scale * torch.sin(h) + 0.1) ** 2)

    model = Scaled().double().eval()
    problem = Problem(capture(model, torch.zeros(1, 4, dtype=D)))
    (function,) = composites(problem.network)
    assert tuple(function.upper.shape)[-1] == 6
    value = lipcert.bound(model, torch.zeros(1, 4, dtype=D), budget=1).value
    x = 3 * torch.randn(500, 4, dtype=D)
    jacobians = torch.func.vmap(torch.func.jacrev(model))(x)
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= value


# -- recognised by algebra ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_losses_with_other_thresholds():
    zeros = torch.zeros_like
    assert bound(lambda x: F.huber_loss(x, zeros(x), reduction="none", delta=0.3)).value == pytest.approx(0.3)
    assert bound(lambda x: F.smooth_l1_loss(x, zeros(x) + 1, reduction="none", beta=0.3)).value == pytest.approx(1.0)
    for delta in (0.3, 2.0):
        network = network_of(lambda x, d=delta: F.huber_loss(x, zeros(x) + 0.5, reduction="none", delta=d))
        x = 3 * torch.randn(50, 1, 3, dtype=D)
        assert torch.allclose(network.forward(x), F.huber_loss(x, zeros(x) + 0.5, reduction="none", delta=delta))


def test_what_jumps_is_refused():
    for function in (
        lambda x: torch.where(x.abs() < 1, 0.5 * x * x, x.abs() - 0.25),
        lambda x: torch.where(x.abs() < 1, x, x.abs() - 0.5),
        lambda x: torch.where(x.abs() > 1, 0.5 * x * x, x.abs() - 0.5),
        lambda x: torch.atan2(x, -torch.ones_like(x)),
        lambda x: torch.atan2(x, torch.zeros_like(x)),
        lambda x: torch.atan2(torch.ones_like(x), x),
        lambda x: 1 / (x * x - 1),
        lambda x: 1 / (x * x - 2 * x + 1),
        lambda x: torch.log(x * x),
        lambda x: torch.log1p(x * x - 1),
    ):
        with pytest.raises(NotLipschitzError):
            bound(function)


def test_quadratics_that_are_not_monic():
    assert bound(lambda x: 3 / (x * x - 2 * x + 5)).value == pytest.approx(3 * 0.6495190528383289 / 8)
    assert bound(lambda x: -1 / (-1 - x * x)).value == pytest.approx(0.6495190528383289)
    assert bound(lambda x: (4 * x * x + 1) ** -1.0).value == pytest.approx(2 * 0.6495190528383289)
    assert bound(lambda x: torch.atan2(x, torch.full_like(x, 0.25))).value == pytest.approx(4.0)
    assert bound(lambda x: torch.hypot(torch.zeros_like(x) - 3, x)).value == pytest.approx(1.0)
    assert bound(lambda x: torch.hypot(x, torch.zeros_like(x))).value == 1.0
    assert bound(lambda x: torch.hypot(x[:, :1], x[:, 1:])).value == pytest.approx(math.sqrt(2))


def test_kinks_and_slopes_beyond_the_doubles_are_no_crash() -> None:
    x = torch.full((1, 2), 0.3, dtype=D)
    far = Apply(lambda _, v: F.relu(F.relu(v * 1e-200) * 1e-200 - 1.0) + v)
    assert lipcert.bound(far, x, budget=1).value == pytest.approx(1.0)
    small = torch.full((1, 2), 1e-305, dtype=D)
    steep = Apply(lambda _, v: F.relu(F.relu(v * 1e200) * 1e200) - F.relu(-v))
    assert lipcert.bound(steep, small, domain=Ball(small, 1e-310), budget=1).value > 1e308
    twins = Apply(lambda _, v: torch.cat([torch.tanh((v * 1e200) * 1e200), torch.tanh((v * -1e200) * 1e200)], -1))
    assert lipcert.bound(twins, small, domain=Ball(0.0 * small, 1e-310), budget=1).value > 1e308
    assert math.isfinite(lipcert.bound(twins, small, domain=Ball(small, 1e-310), budget=1).value)  # flat there


def test_an_expression_in_one_that_was_collapsed_before() -> None:
    x = torch.tensor([[0.3, -0.2, 0.5]], dtype=D)
    model = Apply(lambda _, v: v + 0.1 * torch.sqrt(1.0 + torch.tanh(v) * 0.5))
    again = collapse(plus_identity(collapse(capture(model, x)), 2.0))
    functions = [node.function for node in again.nodes if isinstance(node, ActivationNode)]
    assert [type(f) for f in functions] == [Composite]
    assert not any(isinstance(getattr(step, "function", None), Composite) for step in functions[0].steps)
    points = torch.linspace(-5, 5, 4001, dtype=D)[:, None].repeat(1, 3)
    values = again.forward(points[:, None].reshape(-1, *again.in_shape)).reshape(-1, 3)
    torch.testing.assert_close(values, model(points) + 2.0 * points)
    slopes = (values[1:] - values[:-1]) / (points[1:] - points[:-1])
    low, high = functions[0].slope_range((1, 3))
    assert bool((low <= slopes.amin() + 1e-9).all())
    assert bool((slopes.amax() - 1e-9 <= high).all())
    one = lipcert.one_sided_lipschitz_bound(model, x, budget=1).value
    assert slopes.max() - 2.0 - 1e-9 <= one <= 1.03
