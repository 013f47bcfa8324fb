"""certify for the network that runs in float32: no more than in real arithmetic, nothing that rounding may break."""

import itertools
import json
import math
import pickle
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import lipcert
from lipcert.capture.torch_export import capture_steps
from lipcert.cli.main import app
from lipcert.execution.walk import margin_errors
from lipcert.robustness.provers import CostToGo
from lipcert.robustness.widening import Widening
from tests.robustness.cases import distances, linear, mlp, points, right_labels


class Planted(nn.Module):
    """``linear`` with 5e6 added to the scores and taken off again: nothing, but in float32 steps of 0.5."""

    def __init__(self, size: float = 5e6) -> None:
        super().__init__()
        self.inner, self.size = linear(), size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.inner(x) + self.size) - self.size


class Hidden(nn.Module):
    """The same by biases of two layers, through a ReLU that never switches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(), nn.Linear(3, 3)
        self.first.bias.data += 5e6
        self.second.weight.data = torch.eye(3)
        self.second.bias.data.fill_(-5e6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def both(model: nn.Module, x: torch.Tensor, **settings: object) -> list[lipcert.Certification]:
    y = right_labels(model, x)
    return [lipcert.certify(model, x, y, arithmetic=a, **settings) for a in ("real", "float32")]  # type: ignore[arg-type]


def certified(rows: lipcert.Certification) -> set[int]:
    return {row.index for row in rows if row.status == "certified"}


@pytest.mark.parametrize("model", [Planted(), Hidden()], ids=["added", "biases"])
def test_planted_biases_that_cancel_are_not_certified(model: nn.Module) -> None:
    """In real arithmetic these are certified; what runs has other classes within the radius."""
    model, x = model.eval(), points(14)
    far = [bool(distances(p, int(k), 2.0).min() > 0.01) for p, k in zip(x, right_labels(linear(), x), strict=True)]
    x = x[torch.tensor(far)]
    y = right_labels(linear(), x)
    real = lipcert.certify(model, x, y, radius=1e-3, effort=0.1)
    executed = lipcert.certify(model, x, y, radius=1e-3, effort=0.1, arithmetic="float32")
    if isinstance(model, Planted):  # the biases of the other are what float32 holds of them, so its function is another
        assert len(certified(real)) == len(x)
    near = torch.stack([distances(p, int(k), 2.0).min() for p, k in zip(x, y, strict=True)]) < 0.1
    assert bool(near.any())
    for row, close in zip(executed, near.tolist(), strict=True):
        assert row.predicted == int(model(x[row.index : row.index + 1]).argmax())
        assert not (close and row.status == "certified")
    executed.verify(model, x, y)


@pytest.mark.parametrize("radius", [None, 1e-3])
def test_margins_that_rounding_takes_at_the_example_are_not_searched(
    radius: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No radius can be proved, whatever the time; others of the run are certified all the same."""
    model, x = Planted(3e7).eval(), points(6)  # steps of 2 or 4
    asked = []
    for kind, name in ((Widening, "widen"), (CostToGo, "prove")):
        monkeypatch.setattr(kind, name, lambda *given: asked.extend(given[2]) or [])
    y = model(x).argmax(1)
    rows = lipcert.certify(model, x, y, radius=radius, effort=0.1, arithmetic="float32", budget=60)
    assert not asked
    assert {row.status for row in rows} <= {"open", "attacked"}
    assert {row.certified_radius for row in rows} == {0.0}
    monkeypatch.undo()
    spread = Planted(5e3).eval()
    assert certified(lipcert.certify(spread, x, right_labels(spread, x), radius=1e-4, effort=0.1, arithmetic="float32"))


@pytest.mark.slow
def test_where_the_margin_is_beyond_the_rounding_it_counts() -> None:
    """A margin of some units survives a planted bias of 5e3, whose steps are 2⁻¹¹."""
    model, x = Planted(5e3).eval(), points(8)
    real, executed = both(model, x)
    for one, other in zip(executed, real, strict=True):
        assert one.certified_radius <= other.certified_radius
    assert any(0.5 * r.certified_radius < e.certified_radius for e, r in zip(executed, real, strict=True))
    executed.verify(model)


@pytest.mark.few(1)
@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_radii_of_a_linear_classifier_lose_the_rounding_and_no_more(norm: float) -> None:
    model, x = linear(), points(6)
    real, executed = both(model, x, norm=norm)
    for one, other in zip(executed, real, strict=True):
        assert one.guarantee == "rigorous"
        assert other.certified_radius * 0.99 < one.certified_radius < other.certified_radius * (1 + 1e-12)
    executed.verify(model)


def test_the_constants_decide_a_given_radius_in_both() -> None:
    model, x = linear(), points(4)
    for rows in both(model, x, radius=1e-3):
        assert {(r.method, r.certified_radius) for r in rows} == {("pair_constants", 1e-3)}
        rows.verify(model)


@pytest.mark.slow
@pytest.mark.few(1)
@pytest.mark.parametrize("settings", [{"radius": 0.35}, {"radii": (0.1, 0.3), "clip": (0, 1), "norm": math.inf}])
def test_float32_certifies_no_more_than_real_arithmetic_and_nearly_all(settings: dict[str, object]) -> None:
    model, x = mlp(0), points(12, 0, (6,))
    real, executed = both(model, x, effort=0.1, **settings)
    assert certified(executed) == certified(real)  # no margin here is within 1e-5 of 0
    assert {r.method for r in executed} == {r.method for r in real}
    executed.verify(model, x, right_labels(model, x))


def test_an_mnist_like_mlp() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    x = points(3, 0, (1, 28, 28))
    real, executed = both(model, x, radius=0.01, clip=(0, 1), effort=0.1)
    assert certified(executed)
    assert certified(executed) <= certified(real)
    executed.verify(model)


def test_a_certified_margin_is_the_real_one_less_the_error_on_the_ball() -> None:
    """By hand, for one row: the distance of a linear classifier gives the least margin on a ball."""
    model, x = linear(), points(1)
    y = right_labels(model, x)
    row = lipcert.certify(model, x, y, radius=0.01, arithmetic="float32")[0]
    weights = model.weight.detach().double()
    scores = weights @ x[0].double() + model.bias.detach().double()
    ball = lipcert.Ball(x.double(), 0.01, 2.0)
    lost = margin_errors(capture_steps(model, x), ball, int(y[0]))
    label = int(y[0])
    least = min(
        float(scores[label] - scores[k] - 0.01 * (weights[label] - weights[k]).norm()) for k in range(3) if k != label
    )
    assert float(lost.max()) > 1e-8
    assert row.margin <= least - float(lost[lost > 0].min()) + 1e-12
    assert row.margin == pytest.approx(least, abs=1e-5)


def test_no_float32_point_of_a_certified_ball_has_another_class_when_run() -> None:
    model, x = Planted(5e4).eval(), points(6)
    rows = lipcert.certify(model, x, right_labels(model, x), norm=math.inf, effort=0.1, arithmetic="float32")
    assert any(row.certified_radius > 0 for row in rows)
    for row, point in zip(rows, x, strict=True):
        corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
        for share in (0.5, 0.9, 1.0 - 1e-6):
            near = point + corners * (row.certified_radius * share)
            inside = ((near.double() - point.double()).abs() <= row.certified_radius).all(1)
            assert bool(((model(near).argmax(1) == row.label) | ~inside).all())


# -- what runs says the class --------------------------------------------------------------------------------


class Ties(nn.Module):
    """Class 1 by 2⁻³⁰ x in real arithmetic; in float32 what is added is lost, and the first class is named."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :1] + 1.0, (x[:, :1] + 1.0) + 2.0**-30 * x[:, 1:2]], 1)


def test_the_class_is_that_of_the_model_as_run() -> None:
    model, x = Ties().eval(), torch.ones(1, 2)
    for label, real, executed in ((0, "wrong", "open"), (1, "certified", "wrong")):
        rows = [lipcert.certify(model, x, [label], radius=1e-12, arithmetic=a)[0] for a in ("real", "float32")]
        assert [r.status for r in rows] == [real, executed]
        assert rows[1].predicted == 0
        assert rows[1].certified_radius == 0


def test_where_float32_overflows_nothing_is_certified_and_nothing_breaks() -> None:
    class Large(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 1e30) * torch.tensor([1e30, 1.0, 0.5])

    model, x = Large().eval(), torch.tensor([[1e-30, 3e-30, 2e-30], [1.0, 0.5, 0.25]])
    rows = lipcert.certify(model, x, [0, 0], radius=1e-3, arithmetic="float32")
    assert not certified(rows)


# -- files ---------------------------------------------------------------------------------------------------


def saved(path: Path, arithmetic: str) -> tuple[nn.Module, torch.Tensor]:
    model, x = mlp(0), points(6, 0, (6,))
    y = right_labels(model, x)
    lipcert.certify(model, x, y, radius=0.1, effort=0.1, arithmetic=arithmetic).save(path)  # type: ignore[arg-type]
    return model, x


def test_a_saved_run_keeps_its_arithmetic(tmp_path: Path) -> None:
    model, x = saved(tmp_path / "run", "float32")
    read = lipcert.Certification.load(tmp_path / "run")
    assert read.arithmetic == read.to_json()["arithmetic"] == "float32"
    assert "as torch runs it in float32 on a CPU" in read.verify(model, x).table()
    assert "real arithmetic;" not in read.table()
    assert max(map(len, read.table().splitlines())) <= 100


@pytest.mark.parametrize("radius", [0.1, None])
def test_a_real_run_called_float32_is_refused(tmp_path: Path, radius: float | None) -> None:
    model, x = (linear(), points(3)) if radius is None else (mlp(0), points(4, 0, (6,)))
    lipcert.certify(model, x, right_labels(model, x), radius=radius, effort=0.1).save(tmp_path / "run")
    lipcert.Certification.load(tmp_path / "run").verify(model)
    forge(tmp_path / "run", arithmetic="float32")
    read = lipcert.Certification.load(tmp_path / "run")
    with pytest.raises(lipcert.CertificateError, match=r"row 0: it claims a margin"):
        read.verify(model)


def forge(path: Path, **settings: object) -> None:
    with sqlite3.connect(path) as connection:
        (held,) = connection.execute("SELECT value FROM about WHERE name = 'settings'").fetchone()
        changed = json.dumps({**json.loads(held), **settings}, sort_keys=True)
        connection.execute("UPDATE about SET value = ? WHERE name = 'settings'", (changed,))
    connection.close()


@pytest.mark.few(2)
@pytest.mark.parametrize("arithmetic", ["float16", "", None, 1, ["float32"]])
def test_a_file_of_another_arithmetic_is_none(tmp_path: Path, arithmetic: object) -> None:
    saved(tmp_path / "run", "float32")
    forge(tmp_path / "run", arithmetic=arithmetic)
    with pytest.raises(lipcert.StoreError, match="arithmetic must be"):
        lipcert.Certification.load(tmp_path / "run")


def test_a_run_goes_on_in_its_own_arithmetic_only(tmp_path: Path) -> None:
    model, x = linear(), points(3)
    settings = {"radius": 0.01, "resume": tmp_path / "run"}
    y = right_labels(model, x)
    first = lipcert.certify(model, x, y, **settings)  # type: ignore[arg-type]
    with pytest.raises(lipcert.StoreError, match="arithmetic: real there, float32 now"):
        lipcert.certify(model, x, y, arithmetic="float32", **settings)  # type: ignore[arg-type]
    assert len(first) == 3


@pytest.mark.slow
def test_workers_give_the_same_rows() -> None:
    model, x = mlp(0), points(6, 0, (6,))
    y = right_labels(model, x)
    runs = [
        lipcert.certify(model, x, y, radius=0.2, memory=2e-6, workers=n, effort=0.1, arithmetic="float32")
        for n in (1, 2)
    ]
    keys = [[(r.status, r.certified_radius, r.margin, r.method) for r in rows] for rows in runs]
    assert keys[0] == keys[1]


def test_what_a_model_executes_can_be_sent_to_another_process() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    model = nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)).eval()
    x = points(1, 0, (1, 6, 6))
    steps = capture_steps(model, x)
    sent = pickle.loads(cloudpickle.dumps(steps))
    ball = lipcert.Ball(x.double(), 0.1, 2.0)
    assert torch.equal(margin_errors(sent, ball, 1), margin_errors(steps, ball, 1))
    assert [s.target for s in sent.calls] == [s.target for s in steps.calls]


# -- refusals ------------------------------------------------------------------------------------------------


def test_what_float32_is_not_about_is_refused_by_name() -> None:
    model, x = linear(), points(2)
    y = right_labels(model, x)
    with pytest.raises(lipcert.InputError, match="float64 inputs"):
        lipcert.certify(linear().double(), x, y, radius=0.1, arithmetic="float32")
    with pytest.raises(lipcert.InputError, match=r"leave scale= out"):
        lipcert.certify(model, x, y, radius=0.1, scale=(0.5, 0.5), arithmetic="float32")
    with pytest.raises(lipcert.InputError, match="'real' or 'float32', not 'tf32'"):
        lipcert.certify(model, x, y, radius=0.1, arithmetic="tf32")  # type: ignore[arg-type]
    inputs = x.double().clone()
    inputs[1, 2] = 0.1
    with pytest.raises(lipcert.InputError, match=r"inputs\[1\] holds .*0\.1.* no float32 number"):
        lipcert.certify(model, inputs, y, radius=0.1, arithmetic="float32")
    huge = x.double().numpy().copy()
    huge[0, 0] = 1e39
    with pytest.raises(lipcert.InputError, match=r"no float32 number"):
        lipcert.certify(model, huge, y, radius=0.1, arithmetic="float32")


def test_exact_inputs_of_other_types_are_taken() -> None:
    model, x = linear(), (points(4) * 8).round()
    y = right_labels(model, x)
    rows = [
        lipcert.certify(model, given, y, radius=0.01, arithmetic="float32").certified_accuracy()
        for given in (x, x.double(), x.to(torch.uint8).numpy())
    ]
    assert rows[0] == rows[1] == rows[2] > 0


def test_an_op_whose_rounding_is_not_known_is_named() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.last = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))

    x = points(2, 0, (2, 4))
    with pytest.raises(lipcert.LipcertError, match=r"in float32 is not known"):
        lipcert.certify(Attends().eval(), x, [0, 1], radius=0.01, arithmetic="float32")


def test_a_process_in_reduced_precision_is_refused(tmp_path: Path) -> None:
    model, x = saved(tmp_path / "run", "float32")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(lipcert.InputError, match="reduced precision"):
            lipcert.certify(model, x, right_labels(model, x), radius=0.1, arithmetic="float32")
        with pytest.raises(lipcert.InputError, match="reduced precision"):
            lipcert.Certification.load(tmp_path / "run").verify(model)
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_command(tmp_path: Path) -> None:
    model, x = linear(), points(5)
    torch.export.save(torch.export.export(model, (x[:1],)), tmp_path / "m.pt2")
    np.savez(tmp_path / "d.npz", inputs=x.numpy(), labels=right_labels(model, x).numpy())
    common = [str(tmp_path / "m.pt2"), str(tmp_path / "d.npz"), "--radius", "0.001"]
    run = ["certify", *common, "--arithmetic", "float32", "--json", "--save", str(tmp_path / "run")]
    found = CliRunner().invoke(app, run)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["arithmetic"] == "float32"
    checked = CliRunner().invoke(app, ["verify", str(tmp_path / "run"), str(tmp_path / "m.pt2")])
    assert checked.exit_code == 0, checked.output
    assert "in float32 on a CPU" in checked.output
    refused = CliRunner().invoke(app, ["certify", *common, "--arithmetic", "bfloat16"])
    assert refused.exit_code == 2
