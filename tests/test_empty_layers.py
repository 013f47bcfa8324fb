"""Layers without neurons, networks without activations, numbers at the ends of their range: bounds, not crashes."""

import math

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.errors import InputError
from lipcert.methods.base import Run
from lipcert.methods.branch_and_bound import BranchAndBound
from lipcert.methods.lipsdp import LipSDP
from tests.zoo import Apply

X = torch.zeros(1, 3)
METHODS = ("autolip", "liplt", "lipsdp", "lipsdp_layer", "lipsdp_ipm", "seqlip", "branch_and_bound", "auto")
NOTHING_PASSES = nn.Sequential(nn.Linear(3, 0), nn.ReLU(), nn.Linear(0, 2)).eval()
BESIDE_NOTHING = Apply(lambda _, x: torch.cat([torch.relu(x[:, :0]), torch.relu(x)], 1)).eval()
LINEAR = nn.Linear(3, 2).eval()


@pytest.mark.few(16)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("model", "constant"),
    [(NOTHING_PASSES, 0.0), (BESIDE_NOTHING, 1.0), (nn.Identity(), 1.0), (LINEAR, None)],
    ids=["nothing passes", "beside nothing", "identity", "linear"],
)
def test_networks_without_neurons(model: nn.Module, constant: float | None, method: str) -> None:
    truth = constant if constant is not None else float(torch.linalg.matrix_norm(LINEAR.weight.detach().double(), 2))
    bound = lipcert.bound(model, X, method=method, budget=0.3)
    assert truth <= bound.value * (1 + 1e-14)
    assert bound.value <= truth * (1 + 1e-6) + 1e-100
    assert not [attempt.remark for attempt in bound.tried if "bug" in attempt.remark]


def test_eclipse_fast_where_nothing_passes() -> None:
    assert lipcert.bound(NOTHING_PASSES, X, method="eclipse_fast").value <= 1e-100


@pytest.mark.parametrize(
    ("model", "constant"),
    [(NOTHING_PASSES, 0.0), (BESIDE_NOTHING, 1.0), (Apply(lambda _, x: torch.relu(x)[:, :0]).eval(), 0.0)],
)
def test_lower_bounds_without_neurons(model: nn.Module, constant: float) -> None:
    assert lipcert.lower_bound(model, X, budget=0.2).value == pytest.approx(constant, abs=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("radius", [0.0, 1e-320, 1e308])
def test_balls_that_float32_cannot_hold(p: float, radius: float) -> None:
    """The search runs in float32, where such a radius is 0 or infinite; its points stay numbers in the ball."""
    ball = lipcert.Ball(torch.zeros(3), radius, p=p)
    moved = ball.project(torch.tensor([[1e30, -2.0, 0.0], [0.0, 0.0, 0.0]]))
    assert bool(moved.isfinite().all())
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    truth = float(torch.linalg.matrix_norm(model[0].weight.detach().double(), 2))
    value = lipcert.lower_bound(model, X, domain=ball, budget=0.1).value
    assert 0.0 <= value <= truth * (1 + 1e-12)
    assert radius > 0 or value == 0.0


def test_whole_numbers_beyond_doubles() -> None:
    with pytest.raises(InputError, match="finite radius"):
        lipcert.Ball(torch.zeros(3), 10**400)
    assert lipcert.bound(LINEAR, X, budget=10**400, method="autolip").value > 0


class Breaks(LipSDP):
    def solve(self, problem: object, run: Run) -> object:  # type: ignore[override]
        raise IndexError("list index out of range")


def test_a_search_that_breaks_costs_no_bound() -> None:
    """Searches are untrusted: what one of them raises is told in ``tried``, and the bound of another is returned."""
    bound = lipcert.bound(LINEAR, X, method=Breaks())
    assert bound.method in ("autolip", "liplt")
    assert "IndexError: list index out of range" in bound.tried[0].remark
    bound = lipcert.bound(LINEAR, X, method=Breaks(), norm=(math.inf, 1.0))
    assert bound.method == "mixed_product"
    assert "bug in lipcert and not in your model" in bound.tried[0].remark


def test_branch_and_bound_has_nothing_to_branch_on() -> None:
    weights: Tensor = LINEAR.weight.detach().double()
    bound = lipcert.bound(LINEAR, X, method=BranchAndBound())
    assert bound.method == "branch_and_bound"
    assert bound.value == pytest.approx(float(torch.linalg.matrix_norm(weights, 2)), rel=1e-6)
