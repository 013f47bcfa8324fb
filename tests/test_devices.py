"""Searches on another device: what they find is checked on the CPU, and as good as what the CPU finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lipcert
from lipcert.domain import Ball

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    ).eval()


@pytest.mark.parametrize("method", ["auto", "autolip", "liplt", "lipsdp"])
@pytest.mark.parametrize("local", [False, True])
def test_bounds_are_those_of_the_cpu(method: str, local: bool, tmp_path: Path) -> None:
    model, x = small_cnn(), torch.zeros(1, 1, 8, 8)
    domain = Ball(x[0], 0.3) if local else None
    here, there = (
        lipcert.bound(model, x, method=method, domain=domain, device=d, budget=20.0, seed=0) for d in ("cpu", "cuda")
    )
    below = lipcert.lower_bound(model, x, domain=domain, device="cuda", seed=0)
    assert below.value <= min(here.value, there.value)
    assert there.value <= 1.02 * here.value
    there.save(tmp_path / "found.lipcert")
    assert lipcert.verify(tmp_path / "found.lipcert", model, x).value == there.value


@pytest.mark.parametrize("norm", [2.0, float("inf")])
@pytest.mark.parametrize("radius", [0.2, None])
def test_margins_are_those_of_the_cpu(norm: float, radius: float | None) -> None:
    model = small_cnn()
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = model(x).argmax(1)
    radius = radius if radius is None or norm == 2 else 0.1 * radius
    here, there = (lipcert.certify(model, x, labels, norm=norm, radius=radius, device=d) for d in ("cpu", "cuda"))
    there.verify(model)
    for a, b in zip(here, there, strict=True):
        assert a.certified_radius <= b.attacked_radius
        assert b.certified_radius <= a.attacked_radius
    if radius is not None:
        assert sum(r.status == "open" for r in there) <= sum(r.status == "open" for r in here) + 1


def test_outputs_are_those_of_the_cpu() -> None:
    model, x = small_cnn(), torch.rand(1, 1, 8, 8)
    domain = Ball(x[0], 0.2)
    here, there = (lipcert.output_bounds(model, x, domain, device=d) for d in ("cpu", "cuda"))
    value = model(x).double()[0]
    assert bool((there.lower <= value).all())
    assert bool((value <= there.upper).all())
    assert bool(((there.upper - there.lower) <= 1.05 * (here.upper - here.lower)).all())


def test_the_power_method_is_that_of_the_cpu() -> None:
    model, x = small_cnn(), torch.zeros(1, 1, 8, 8)
    here, there = (lipcert.estimate(model, x, "power_iteration", device=d) for d in ("cpu", "cuda"))
    assert there.value == pytest.approx(here.value, rel=1e-9)
