"""Bounds of outputs by trees of splits: below what outputs take, above what is known without, and proved again."""

from pathlib import Path

import pytest
import torch

import lipcert
from lipcert.robustness import bounding
from tests.robustness.test_branching import FAR, grid, network

POINT = torch.tensor([0.7, -0.6])


def outputs(kind: str, radius: float, norm: float) -> torch.Tensor:
    """On a grid of the ball, (N, 3)."""
    with torch.no_grad():
        return network(kind).double()(grid(POINT.double(), radius, norm))


def bounded(found: lipcert.OutputBound, low: torch.Tensor, high: torch.Tensor) -> bool:
    return bool((found.lower <= low).all() and (high <= found.upper).all())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["relu", "tanh"])
@pytest.mark.parametrize("norm", [2.0, FAR])
def test_splits_pass_a_threshold_and_never_what_outputs_take(
    kind: str, norm: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOST", "ROOTS"):  # what a longer search would prove is left to splits
        monkeypatch.setattr(bounding, name, bounding.FIRST)
    model, ball = network(kind), lipcert.Ball(POINT, 0.9, norm)
    seen = outputs(kind, 0.9, norm)
    label = int(model(POINT[None]).argmax())
    margins = (seen[:, [label]] - seen[:, [k for k in range(3) if k != label]]).amin(0)
    plain = lipcert.margin(model, POINT[None], label, ball)
    goal = plain.value + 0.2 * (float(margins.min()) - plain.value)
    found = lipcert.margin(model, POINT[None], label, ball, budget=300.0, above=goal)
    assert found.method == "branched_cost_to_go"
    assert found.value > goal
    assert bounded(found, margins, margins)
    found.save(tmp_path / "margin.lipcert")
    assert torch.equal(lipcert.verify(tmp_path / "margin.lipcert", model, POINT[None]).lower, found.lower)
    beyond = lipcert.margin(model, POINT[None], label, ball, budget=300.0, above=float(margins.min()) + 0.01)
    assert bounded(beyond, margins, margins)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_splits_to_the_end_of_the_budget(kind: str) -> None:
    model, ball = network(kind), lipcert.Ball(POINT, 1.2, 2)
    seen = outputs(kind, 1.2, 2.0)
    plain = lipcert.output_bounds(model, POINT[None], ball, budget=0.1)
    found = lipcert.output_bounds(model, POINT[None], ball, budget=20.0, split=True)
    assert bounded(found, seen.amin(0), seen.amax(0))
    assert float((found.upper - found.lower).sum()) <= float((plain.upper - plain.lower).sum())


def test_thresholds_of_every_kind() -> None:
    model, ball = network("relu"), lipcert.Ball(POINT, 0.1, 2)
    for wrong in ({"above": float("nan")}, {"below": "1"}, {"split": 1}, {"above": True}):
        with pytest.raises(lipcert.InputError, match=next(iter(wrong))):
            lipcert.output_bounds(model, POINT[None], ball, **wrong)  # type: ignore[arg-type]
    seen = outputs("relu", 0.1, 2.0)
    low, high = float(seen.min()) - 1.0, float(seen.max()) + 1.0
    found = lipcert.output_bounds(model, POINT[None], ball, budget=20.0, above=low, below=high)
    assert bool((found.lower > low).all() and (found.upper < high).all())
