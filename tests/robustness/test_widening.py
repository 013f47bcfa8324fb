"""The largest radii: proved again, less than a counter-example's distance, and as large as those found one by one."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import lipcert
import lipcert.robustness.certify as module
import lipcert.robustness.provers as provers
from lipcert.capture.torch_export import capture
from lipcert.certificates.outputs import Subject
from lipcert.domain import Ball
from lipcert.robustness.outputs import norms_of
from lipcert.robustness.reach import Ranges
from lipcert.robustness.widening import Widening
from lipcert.search.cost_to_go.inputs import Domains
from lipcert.search.cost_to_go.plan import Plan
from tests.robustness.cases import mlp, points, right_labels


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4)
    ).eval()


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, object]]] = {
    "l2": (mlp, (6,), {}),
    "convolutions": (convolutions, (1, 8, 8), {}),
    "l∞ within limits": (mlp, (6,), {"norm": float("inf"), "clip": (0.0, 1.0)}),
    "l1": (mlp, (6,), {"norm": 1}),
    "as it runs": (mlp, (6,), {"arithmetic": "float32"}),
}


#: Share of the way to a counter-example that is proved; of convolutions, whose relaxation is looser, less.
NEAR = {**dict.fromkeys(CASES, 0.7), "convolutions": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_radii_are_proved_and_near_those_of_counter_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_small", lambda network: False)
    build, shape, settings = CASES[name]
    model, x = build(), points(2, size=shape)
    y = right_labels(model, x)
    found = lipcert.certify(model, x, y, **settings).verify(model, x, y)  # type: ignore[arg-type]
    assert any(row.method == "cost_to_go" for row in found)
    for row in found:
        assert NEAR[name] * row.attacked_radius < row.certified_radius < row.attacked_radius


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_gets_as_far_as_a_bracket_of_radii(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape, settings = CASES[name]
    model, x = build(), points(4, size=shape)
    y = right_labels(model, x)
    monkeypatch.setattr(module, "_small", lambda network: False)
    found = lipcert.certify(model, x, y, **settings)  # type: ignore[arg-type]
    monkeypatch.setattr(Widening, "widen", lambda self, facts, asked, until: [None] * len(asked))
    one_by_one = lipcert.certify(model, x, y, **settings)  # type: ignore[arg-type]
    for row, other in zip(found, one_by_one, strict=True):
        assert row.certified_radius >= 0.96 * other.certified_radius


def test_intervals_where_linear_bounds_would_take_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger radii than constants prove, all the same, by a check that makes no linear bounds either."""
    monkeypatch.setattr(module, "_small", lambda network: False)
    monkeypatch.setattr(provers, "_WORK_PER_SECOND", 1e-9)
    asked, wanted = [], Subject.setting
    monkeypatch.setattr(Subject, "setting", lambda own, facts, *at: asked.append(at[1]) or wanted(own, facts, *at))
    model, x = convolutions(), points(1, size=(1, 8, 8))
    found = lipcert.certify(model, x, right_labels(model, x), budget=1, effort=0.1)
    assert not any(asked)
    assert {row.method for row in found} == {"cost_to_go"}
    monkeypatch.undo()
    assert found.verify(model, x).certified_accuracy(found[0].certified_radius) > 0.0


def test_ranges_at_another_radius_grow_from_the_centre() -> None:
    model, x = mlp(), points(1, size=(6,))[0]
    subject = Subject(capture(model, x[None]))
    plan = Plan(subject.network, norms_of(subject))
    place = subject.setting(subject.facts, Ball(x, 0.5, 2).fitted(subject.network.in_shape), True)
    low, high = ({k: getattr(place.boxes[k], end)[None] for k in plan.ranged} for end in ("low", "high"))
    one = x.double().reshape(1, *subject.network.in_shape)
    open_ = torch.full_like(one, torch.inf)
    radius = torch.tensor([0.5], dtype=torch.float64)
    ranges = Ranges(
        torch.eye(4, dtype=torch.float64)[:1], low, high, plan.values_at(one),
        Domains(one, radius, 2.0, -open_, open_), radius, torch.zeros(1, dtype=torch.float64),
    )  # fmt: skip
    for share in (0.0, 0.5, 1.0):
        asked = ranges.question(plan, share * radius)
        for k in plan.ranged:
            centre = ranges.centre[k]
            assert torch.allclose(asked.low[k], centre + share * (low[k] - centre), atol=1e-12)
            assert torch.allclose(asked.high[k], centre + share * (high[k] - centre), atol=1e-12)


def test_a_class_that_never_changes_has_a_radius_without_end(recwarn: pytest.WarningsRecorder) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():  # the second scores are x ↦ −Σ relu(…) ≤ 0, the first 1 + Σ relu(…)
        model[4].weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        model[4].bias.copy_(torch.tensor([1.0, 0.0]))
    (row,) = lipcert.certify(model, torch.rand(1, 2), [0], norm=2, budget=3)
    assert row.status == "certified"
    assert row.certified_radius > 1.0
    assert not [str(warning.message) for warning in recwarn]
