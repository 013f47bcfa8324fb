"""Pictures hold the numbers of what they show, and a missing matplotlib is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import lipcert
from lipcert import plot
from lipcert.report import layers
from tests.zoo import mlp


def test_pictures_show_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed here")
    model, x = mlp([3, 4, 2]), torch.zeros(1, 3)
    compared = lipcert.compare(model, x, methods=["autolip", "lipsdp"], budget=1, lower_budget=0.2)
    drawn = plot.methods(compared, tmp_path / "methods.png")
    values = {line.get_ydata()[0] for line in drawn.axes[0].lines}
    assert {row.value for row in compared.rows} | {compared.lower.value} == values
    assert (tmp_path / "methods.png").stat().st_size > 0

    radii = [0.1, 1.0]
    bounds = lipcert.bound(model, x, method="autolip", domain=[lipcert.Ball(torch.zeros(3), r) for r in radii])
    assert list(plot.radii(radii, bounds).axes[0].lines[0].get_ydata()) == [bound.value for bound in bounds]

    table = layers(model, x, lower=compared.lower, budget=1)
    assert len(plot.spectra(table).axes[0].lines) == 2
    assert sum(bar.get_width() for bar in plot.looseness(table).axes[0].patches) == pytest.approx(100.0)
    with pytest.raises(lipcert.InputError, match="cannot write"):
        plot.spectra(table, tmp_path / "none" / "s.png")
    with pytest.raises(lipcert.InputError, match="radii"):
        plot.radii([0.1], bounds)


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    bound = lipcert.bound(mlp([3, 4, 2]), torch.zeros(1, 3), budget=1)
    with pytest.raises(lipcert.InputError, match=r"lipcert\[report\]"):
        plot.methods(bound)
