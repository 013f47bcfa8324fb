"""Rescaling leaves functions as they are and lowers certified products; projection meets its target."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import lipcert
from lipcert.training import project_, rebalance_
from tests.training.test_regularizer import IMAGE, Block, small


def mlp() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(5, 12),
            nn.ReLU(),
            nn.Sequential(nn.Linear(12, 8), nn.LeakyReLU(0.2)),
            nn.Dropout(),
            nn.Linear(8, 3),
        ).eval()


def unbalanced(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Linear | nn.BatchNorm2d):
                part.weight.mul_(torch.logspace(-1, 1, len(part.weight)).reshape(-1, *[1] * (part.weight.dim() - 1)))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("image", [False, True])
def test_rebalancing_keeps_the_function_and_lowers_the_product(image: bool) -> None:
    model = unbalanced((small() if image else mlp()).eval())
    example = IMAGE if image else torch.zeros(1, 5)
    x = torch.randn(16, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x)
    change = rebalance_(model, example)
    with torch.no_grad():
        assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert change.after.value < 0.8 * change.before.value
    assert change.after.value == pytest.approx(lipcert.bound(model, example, method="autolip").value, rel=1e-6)
    assert not rebalance_(model, example).after.value > change.after.value
    assert "before" in str(change)


@pytest.mark.slow
def test_dead_neurons_go() -> None:
    model = mlp()
    with torch.no_grad():
        model[4].weight[:, 2] = 0.0  # nobody reads it
        model[0].weight[3], model[0].bias[3] = 0.0, -1.0  # always 0
        model[0].weight[4], model[0].bias[4] = 0.0, 1.0  # always 1
    x = torch.randn(16, 5)
    with torch.no_grad():
        expected = model(x)
    change = rebalance_(model, torch.zeros(1, 5))
    assert change.removed == 2
    with torch.no_grad():
        assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-6)
    assert not bool(model[2][0].weight[2].any())
    assert not bool(model[2][0].weight[:, 3].any())
    assert bool(model[2][0].weight[:, 4].any())


def test_layers_along_other_axes_are_left_alone() -> None:
    """A Linear layer along the last of several axes, flattened, has its channels interleaved."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(lipcert.InputError, match="homogeneous activation between"):
        rebalance_(model, torch.zeros(1, 3, 4))
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    with pytest.raises(lipcert.InputError, match="homogeneous activation between"):
        rebalance_(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)), torch.zeros(1, 3))


def test_shared_weights_are_not_rescaled() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(lipcert.InputError, match="share weights"):
        rebalance_(model, torch.zeros(1, 3))
    with pytest.raises(lipcert.InputError, match="serve nowhere else"):
        project_(model, torch.zeros(1, 3), 1e-3, method="autolip")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "block", "weight norm"])
def test_projection_meets_its_target(kind: str) -> None:
    model, example = (Block().eval(), torch.zeros(1, 2, 6, 6)) if kind == "block" else (small().eval(), IMAGE)
    if kind == "weight norm":
        model[6] = nn.utils.parametrizations.weight_norm(model[6])
    x = torch.randn(4, *example.shape[1:])
    with torch.no_grad():
        expected = model(x)
    value = lipcert.bound(model, example, method="autolip").value
    change = project_(model, example, value / 3, method="autolip")
    assert change.after.value <= value / 3
    assert change.after.value == pytest.approx(value / 3, rel=1e-4)
    with torch.no_grad():
        assert torch.allclose(model(x), change.factor * expected, rtol=1e-4, atol=1e-6)
    again = project_(model, example, value, method="autolip")
    assert again.factor == 1.0


def test_projections_that_cannot_be() -> None:
    with pytest.raises(lipcert.InputError, match="target"):
        project_(small(), IMAGE, 0.0)
    with pytest.raises(lipcert.InputError, match="no linear layer"):
        project_(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.zeros(1, 3), 1e-3, method="autolip")
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)).eval()
    with pytest.raises(lipcert.InputError, match="no linear layer"):
        project_(spectral, torch.zeros(1, 3), 1e-3, method="autolip")
