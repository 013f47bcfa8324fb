"""Signs of derivatives, inverse constants and one-sided constants, against samples and networks built to have them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.errors import InputError
from tests.zoo import ZOO, Double, Residual, mlp, zoo_case

INF = math.inf


def derivatives(model: nn.Module, points: Tensor) -> Tensor:
    """(B, m, n)."""
    model = Double(model)
    rows = [torch.autograd.functional.jacobian(lambda z: model(z[None]).reshape(-1), x) for x in points]
    return torch.stack([row.reshape(row.shape[0], -1) for row in rows])


def monotone(activation: nn.Module, seed: int) -> nn.Module:
    """Rises in the first input, falls in the second, does not see the third."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 8), activation, nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 2)).double().eval()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight.abs_()
        net[0].weight[:, 1] *= -1.0
        net[0].weight[:, 2] = 0.0
    return net


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.Softplus(), nn.Hardtanh(), nn.LeakyReLU(0.1)], ids=str)
def test_what_is_monotone_by_construction_is_seen_to_be(activation: nn.Module) -> None:
    found = lipcert.derivative_signs(monotone(activation, 0), torch.zeros(1, 3))
    assert found.signs.tolist() == [[1, -1, 0], [1, -1, 0]]
    assert float(found.lower[:, 2].abs().max()) == float(found.upper[:, 2].abs().max()) == 0.0
    assert "2 ≥ 0, 2 ≤ 0, 2 zero, 0 of unknown sign" in str(found)
    row = lipcert.derivative_signs(monotone(activation, 0), torch.zeros(1, 3), select=torch.tensor([[-1.0, 0.0]]))
    assert row.signs.tolist() == [[-1, 1, 0]]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [row[0] for row in ZOO])
def test_derivatives_on_a_ball_lie_between_the_ends(name: str) -> None:
    case = zoo_case(name)
    shape = tuple(case.example.shape[1:])
    generator = torch.Generator().manual_seed(1)
    center = torch.randn(shape, generator=generator, dtype=torch.float64)
    known = 0
    for radius in (1e-3, 0.3):
        found = lipcert.derivative_signs(case.model, case.example, lipcert.Ball(center, radius))
        assert found.lower.shape[1:] == shape
        points = center + radius * (2.0 * torch.rand(40, *shape, generator=generator, dtype=torch.float64) - 1.0)
        slopes = derivatives(case.model, points)
        low, high = (end.reshape(slopes.shape[1:]) for end in (found.lower, found.upper))
        slack = 1e-9 * slopes.abs().amax()
        assert bool(((low <= slopes + slack) & (slopes - slack <= high)).all())
        signs = found.signs.reshape(slopes.shape[1:])
        assert bool(((signs <= 0) | (slopes >= -slack)).all())
        assert bool(((signs >= 0) | (slopes <= slack)).all())
        known += int((signs != 0).sum())
    assert known > 0 or name in ("groups", "gains before selections")


def test_a_kink_counts_from_both_sides() -> None:
    found = lipcert.derivative_signs(nn.ReLU(), torch.zeros(1, 1), lipcert.Ball(torch.zeros(1), 0.0))
    assert (found.lower.item(), found.upper.item()) == (0.0, 1.0)


# -- inverse constants ------------------------------------------------------------------------------------------


def invertible(n: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [Residual(nn.Sequential(nn.Linear(n, 6), nn.ReLU(), nn.Linear(6, n)), 1.0) for _ in range(2)]
    net = nn.Sequential(*blocks, nn.Linear(n, n), nn.LeakyReLU(0.3)).double().eval()
    with torch.no_grad():
        for block in blocks:
            block.inner[0].weight *= 0.4
    return net


def least_quotient(model: nn.Module, n: int, p: float, low: float = -3.0, high: float = 3.0) -> float:
    generator = torch.Generator().manual_seed(0)
    x = low + (high - low) * torch.rand(20_000, n, generator=generator, dtype=torch.float64)
    step = torch.randn(20_000, n, generator=generator, dtype=torch.float64)
    y = (x + step * 10.0 ** torch.linspace(-4, 0, 20_000, dtype=torch.float64)[:, None]).clamp(low, high)
    with torch.no_grad():
        return float(((model(x) - model(y)).norm(p=p, dim=1) / (x - y).norm(p=p, dim=1)).min())


@pytest.mark.few(1)
@pytest.mark.parametrize("p", [2.0, 1.0, INF])
def test_the_inverse_constant_is_below_every_quotient(p: float) -> None:
    model = invertible(4, 0)
    found = lipcert.inverse_lipschitz_bound(model, torch.zeros(1, 4), norm=p, budget=5.0)
    assert 0.0 < found.value <= least_quotient(model, 4, p)
    assert [row.kind for row in found.breakdown][-1] == "activation"
    assert found.branches[0].certificate is not None
    box = lipcert.Box(torch.zeros(4), torch.full((4,), 0.5))
    local = lipcert.inverse_lipschitz_bound(model, torch.zeros(1, 4), norm=p, domain=box, budget=5.0)
    assert found.value * (1 - 1e-3) <= local.value <= least_quotient(model, 4, p, 0.0, 0.5)


def test_of_a_linear_layer_it_is_the_least_singular_value() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 5).double().eval()
    least = float(torch.linalg.svdvals(layer.weight.detach())[-1])
    found = lipcert.inverse_lipschitz_bound(layer, torch.zeros(1, 3))
    assert least * (1 - 1e-9) <= found.value <= least
    assert found.guarantee == "rigorous"


@pytest.mark.parametrize("model", [mlp((3, 5, 4), 0), nn.Linear(4, 3), nn.Softmax(dim=1), nn.MaxPool1d(1)])
def test_where_points_may_meet_it_is_zero_and_not_an_error(model: nn.Module) -> None:
    example = torch.zeros(1, 4) if isinstance(model, nn.Linear) else torch.zeros(1, 3)
    model = model if not isinstance(model, nn.MaxPool1d) else nn.Sequential(nn.Unflatten(1, (1, 3)), nn.MaxPool1d(2))
    assert lipcert.inverse_lipschitz_bound(model.eval(), example).value == 0.0


def test_a_branch_that_is_too_steep_leaves_nothing() -> None:
    block = Residual(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))).double().eval()
    with torch.no_grad():
        block.inner[0].weight *= 100.0
    assert lipcert.inverse_lipschitz_bound(block, torch.zeros(1, 2), budget=2.0).value == 0.0


# -- one-sided constants ----------------------------------------------------------------------------------------


class Field(nn.Module):
    """g(x) − rate · x."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.g, self.rate = mlp((4, 8, 4), 3, nn.Tanh), rate

    def forward(self, x: Tensor) -> Tensor:
        return self.g(x) - self.rate * x


def log_norms(jacobian: Tensor, p: float) -> Tensor:
    if p == 2:
        return torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2)[:, -1]
    rows = jacobian if p == INF else jacobian.mT
    diagonal = rows.diagonal(dim1=1, dim2=2)
    return (rows.abs().sum(2) - diagonal.abs() + diagonal).amax(1)


@pytest.mark.few(1)
@pytest.mark.parametrize("p", [2.0, 1.0, INF])
@pytest.mark.parametrize("radius", [None, 0.1])
def test_one_sided_constants_are_above_those_of_sampled_jacobians(p: float, radius: float | None) -> None:
    model = Field(2.0).eval()
    domain = None if radius is None else lipcert.Ball(torch.zeros(4), radius)
    found = lipcert.one_sided_lipschitz_bound(model, torch.zeros(1, 4), norm=p, domain=domain, budget=6.0)
    reach = 2.0 if radius is None else radius
    generator = torch.Generator().manual_seed(0)
    points = reach * (2.0 * torch.rand(400, 4, generator=generator, dtype=torch.float64) - 1.0)
    low = float(log_norms(derivatives(model, points), p).max())
    assert low <= found.value
    assert found.value <= low + (0.6 if radius is None else 0.15)
    assert found.value <= lipcert.bound(model, torch.zeros(1, 4), norm=(p, p), domain=domain, budget=5.0).value * 1.001


@pytest.mark.few(2)
@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_of_a_linear_field_it_is_the_logarithmic_norm(p: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double().eval()
    truth = float(log_norms(layer.weight.detach()[None], p))
    found = lipcert.one_sided_lipschitz_bound(layer, torch.zeros(1, 4), norm=p)
    assert truth - 1e-14 <= found.value <= truth + 1e-9


@pytest.mark.parametrize("call", [lipcert.inverse_lipschitz_bound, lipcert.one_sided_lipschitz_bound])
def test_unusable_norms(call) -> None:  # type: ignore[no-untyped-def]
    for norm in (3, "2", (2, 2), True, None):
        with pytest.raises(InputError, match="norm must be 1, 2 or inf"):
            call(nn.Linear(2, 2).eval(), torch.zeros(1, 2), norm=norm)


def test_a_field_has_as_many_outputs_as_inputs() -> None:
    with pytest.raises(InputError, match="as many outputs as inputs"):
        lipcert.one_sided_lipschitz_bound(nn.Linear(3, 2).eval(), torch.zeros(1, 3))
