"""Bounds of outputs by trees of splits: below what outputs take, above what is known without, and proved again."""

from pathlib import Path

import pytest
import torch

import lipcert
from tests.robustness.test_branching import FAR, grid, network

POINT = torch.tensor([0.7, -0.6])


def outputs(kind: str, radius: float, norm: float) -> torch.Tensor:
    """On a grid of the ball, (N, 3)."""
    with torch.no_grad():
        return network(kind).double()(grid(POINT.double(), radius, norm))


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["relu", "tanh"])
@pytest.mark.parametrize("norm", [2.0, FAR])
def test_splits_tighten_and_never_pass_what_outputs_take(kind: str, norm: float, tmp_path: Path) -> None:
    model, ball = network(kind), lipcert.Ball(POINT, 1.2, norm)
    plain = lipcert.output_bounds(model, POINT[None], ball, budget=0.2)
    found = lipcert.output_bounds(model, POINT[None], ball, budget=1.5, split=True)
    seen = outputs(kind, 1.2, norm)
    assert bool((found.lower <= seen.amin(0)).all())
    assert bool((seen.amax(0) <= found.upper).all())
    assert float((found.upper - found.lower).sum()) < float((plain.upper - plain.lower).sum())
    found.save(tmp_path / "outputs.lipcert")
    again = lipcert.verify(tmp_path / "outputs.lipcert", model, POINT[None])
    assert torch.equal(again.lower, found.lower)
    assert found.method == "branched_cost_to_go"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_a_threshold_ends_the_search_or_is_never_passed(kind: str) -> None:
    model, ball = network(kind), lipcert.Ball(POINT, 0.9, 2)
    seen = outputs(kind, 0.9, 2.0)
    label = int(model(POINT[None]).argmax())
    others = [k for k in range(3) if k != label]
    least = float((seen[:, [label]] - seen[:, others]).min())
    plain = lipcert.margin(model, POINT[None], label, ball, budget=0.2).value
    reachable, beyond = plain + 0.3 * (least - plain), least + 0.01
    assert lipcert.margin(model, POINT[None], label, ball, budget=300.0, above=reachable).value > reachable
    assert lipcert.margin(model, POINT[None], label, ball, budget=1.0, above=beyond).value <= least


def test_thresholds_of_every_kind() -> None:
    model, ball = network("relu"), lipcert.Ball(POINT, 0.1, 2)
    for wrong in ({"above": float("nan")}, {"below": "1"}, {"split": 1}, {"above": True}):
        with pytest.raises(lipcert.InputError, match=next(iter(wrong))):
            lipcert.output_bounds(model, POINT[None], ball, **wrong)  # type: ignore[arg-type]
    seen = outputs("relu", 0.1, 2.0)
    low, high = float(seen.min()) - 1.0, float(seen.max()) + 1.0
    found = lipcert.output_bounds(model, POINT[None], ball, budget=20.0, above=low, below=high)
    assert bool((found.lower > low).all() and (found.upper < high).all())
