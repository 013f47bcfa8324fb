"""Distances to centres as layers and as losses: their constants between all norms, on the whole space and on balls."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import Call, numbers

import lipcert

INF = math.inf
CENTRES = numbers(5, 4)


def bound(function, *tensors, shape=(4,), **options):
    return lipcert.bound(Call(function, *tensors).eval(), torch.zeros(1, *shape).double(), budget=1, **options)


@pytest.mark.parametrize(("norm", "truth"), [((2, 2), math.sqrt(5)), ((2, INF), 1.0), ((2, 1), 5.0), ((1, INF), 1.0)])
def test_distances_to_centres(norm, truth):
    """Far away all gradients are one unit vector: m of them are √m long, one by one 1."""
    value = bound(torch.cdist, CENTRES, norm=norm).value
    assert truth * (1 - 1e-14) <= value <= truth * (1 + 2e-4)


def test_the_difference_of_two_distances_is_not_that_of_all():
    """Between two centres it changes by 2 per unit; one multiplier for all five norms would say √10."""
    value = bound(torch.cdist, CENTRES, select=torch.tensor([[1.0, -1.0, 0.0, 0.0, 0.0]])).value
    assert 2.0 <= value <= 2.001


def test_radial_basis_functions():
    """exp(−γd²) has slopes ±√(2γ/e) in d."""
    value = bound(lambda x, c: torch.exp(-0.5 * torch.cdist(x, c) ** 2), CENTRES, norm=(2, INF)).value
    assert value == pytest.approx(math.exp(-0.5), rel=2e-4)


def test_order_zero_is_no_norm():
    with pytest.raises(lipcert.NotLipschitzError, match="order 0"):
        bound(lambda x, c: torch.cdist(x, c, p=0.0), CENTRES)


LOSSES = {
    "mse_loss": lambda x, y: F.mse_loss(x, y, reduction="none").mean(1),
    "mse_loss of tanh": lambda x, y: F.mse_loss(y, torch.tanh(x), reduction="none"),
    "cosine, alike": lambda x, y: F.cosine_embedding_loss(x, y, torch.ones_like(x[:, 0]), reduction="none"),
    "cosine, unlike": lambda x, y: F.cosine_embedding_loss(y, x, -torch.ones_like(x[:, 0]), -0.5, reduction="none"),
    "cosine, neither": lambda x, y: F.cosine_embedding_loss(y, x, torch.zeros(1), reduction="none"),
    "cosine of two values": lambda x, y: F.cosine_embedding_loss(
        x, (2 * x + y).tanh(), torch.ones_like(x[:, 0]), reduction="none"
    ),
    "distances of values": lambda x, y: torch.cdist(x.view(2, 2), (x.view(2, 2) + y.view(2, 2)).sin())[None],
}


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, pair) for name, pair in zip(LOSSES, itertools.cycle([(2, 2), (1, 1), (INF, INF)]), strict=False)],
)
def test_losses_on_a_ball(name, norm):
    """Above every gradient of a dense sample; on a small ball close to that of its centre where f is smooth there."""
    target, centre = numbers(1, 4), 3.0 + numbers(4)
    ball = lipcert.Ball(centre[None], 0.05)
    own = lambda x: LOSSES[name](x, target)  # noqa: E731
    found = bound(LOSSES[name], target, norm=norm, domain=ball)
    noise = F.normalize(numbers(50, 4), dim=1) * torch.linspace(0, 0.05, 50)[:, None]
    steepest = max(
        float(torch.linalg.matrix_norm(torch.autograd.functional.jacobian(own, x[None]).reshape(-1, 4), norm[0]))
        for x in centre + noise
    )
    assert steepest <= found.value * (1 + 1e-12)
    assert found.value <= 1.7 * steepest + 1e-12


def test_squares_have_no_constant_on_the_whole_space():
    with pytest.raises(lipcert.NotLipschitzError, match="grows without limit"):
        bound(LOSSES["mse_loss"], numbers(1, 4))
