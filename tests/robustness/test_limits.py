"""Within limits: where no input of another class is within them, this is seen at any radius, in every norm."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import lipcert
from lipcert.robustness.threat import Threat

INPUT = torch.tensor([[0.5]])
LIMITS = (0.001, 1.0)


def identity(width: int) -> nn.Module:
    """The scores x and −x of one number: class 0 wherever it is positive."""
    model = nn.Sequential(nn.Linear(1, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]).repeat(width, 1))
        model[2].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, width) / width)
        model[0].bias.zero_()
        model[2].bias.zero_()
    return model


@pytest.mark.parametrize("width", [1, 1024])
@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_all_that_is_within_limits_is_of_one_class(width: int, norm: float, tmp_path: Path) -> None:
    model = identity(width)
    for radius in (0.45, 0.6, 10.0) if width == 1 else (10.0,):
        (row,) = lipcert.certify(model, INPUT, [0], norm=norm, clip=LIMITS, radius=radius, budget=8)
        assert (row.status, row.certified_radius) == ("certified", radius)
    found = lipcert.certify(model, INPUT, [0], norm=norm, clip=LIMITS, budget=8)
    (row,) = found
    assert row.certified_radius == 1e300
    assert found.certified_accuracy(7.0) == 1.0
    found.save(tmp_path / "found.db")
    lipcert.Certification.load(tmp_path / "found.db").verify(model, INPUT, [0])


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_the_farthest_input_within_limits(norm: float) -> None:
    x = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)
    corner = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    limit = Threat(norm, None, (0.0, 1.0)).farthest(x)
    assert limit == pytest.approx(float((corner - x).norm(p=norm)), rel=1e-6)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    assert bool(((corners - x).norm(p=norm, dim=1) <= limit).all())
    assert Threat(norm, None).farthest(x) == math.inf


def test_a_model_that_changes_its_class_within_limits_is_certified_up_to_there() -> None:
    clip = (-1.0, 1.0)
    (row,) = lipcert.certify(identity(1), INPUT, [0], norm=2, clip=clip, budget=8)
    assert 0.49 < row.certified_radius < 0.5 <= row.attacked_radius


def test_the_attack_looks_within_limits_where_a_gradient_points_far_beyond_them() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():  # x ↦ (1 − 10 relu(x − 0.6) − 1e-9 x, 0): flat at 0.5, of class 1 from 0.7 on
        model[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([-0.6, 0.0]))
        model[2].weight.copy_(torch.tensor([[-10.0, -1e-9], [0.0, 0.0]]))
        model[2].bias.copy_(torch.tensor([1.0, 0.0]))
    (row,) = lipcert.certify(model, INPUT, [0], norm=2, clip=(0.0, 1.0), budget=8)
    assert row.attacked_radius == pytest.approx(0.2, rel=0.05)
    assert 0.19 < row.certified_radius < 0.2


def test_a_curve_of_radii_of_which_one_has_no_end() -> None:
    inputs = torch.tensor([[0.5], [-0.25]])
    clip = (-0.3, 1.0)
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():  # x ↦ (max(x, 0), max(−x, 0))
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        model[2].bias.zero_()
    found = lipcert.certify(model, inputs, [0, 1], norm=2, clip=clip, budget=4)
    whole = lipcert.certify(identity(1), INPUT, [0], norm=2, clip=LIMITS, budget=4)
    for result, end in ((found, 0.5), (whole, 0.0)):
        pytest.importorskip("matplotlib")
        low, high = result.plot().axes[0].get_xlim()
        assert low == 0.0
        assert end <= high < 10.0
        assert "certified" in result.table()


def test_limits_that_leave_hardly_more_than_the_example() -> None:
    (row,) = lipcert.certify(identity(1), INPUT, [0], norm=2, clip=(0.5, 0.5 + 1e-9), budget=4)
    assert row.status == "certified"


@pytest.mark.slow
@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", [nn.ReLU, nn.Tanh, nn.GELU])
def test_no_point_of_a_grid_within_limits_has_another_class(kind: type[nn.Module], seed: int, norm: float) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 12), kind(), nn.Linear(12, 12), kind(), nn.Linear(12, 3)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(2.0)
        inputs = torch.rand(3, 2)
        labels = model(inputs).argmax(1)
        step = torch.linspace(0.0, 1.0, 301, dtype=torch.float64)
        points = torch.cartesian_prod(step, step)
        classes = model.double()(points).argmax(1)
    for radius in (None, 0.3, 5.0):
        found = lipcert.certify(model.float(), inputs, labels, norm=norm, clip=(0.0, 1.0), radius=radius, budget=3)
        for row, x, label in zip(found, inputs.double(), labels, strict=True):
            apart = (points - x).norm(p=norm, dim=1)
            assert bool((classes[apart <= row.certified_radius] == label).all())
            assert row.certified_radius < row.attacked_radius
