"""certify against closed forms, orders and attacks; what it saves is refused when it is touched."""

import itertools
import math
import sqlite3
import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lipcert
from lipcert.robustness.checks import read_proof, write_proof
from lipcert.robustness.rows import ROW_FIELDS, Decision, Row
from tests.robustness.cases import distances, linear, mlp, points, right_labels

DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


@pytest.mark.few(2)
@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_radii_of_a_linear_classifier_are_its_distances(norm: float) -> None:
    model, x = linear(), points()
    y = right_labels(model, x)
    rows = lipcert.certify(model, x, y, norm=norm)
    assert len(rows) == len(x)
    for row, point, label in zip(rows, x, y.tolist(), strict=True):
        exact = float(distances(point, label, DUAL[float(norm)]).min())
        assert row.status == "certified"
        assert row.guarantee == "rigorous"
        assert 0.98 * exact <= row.certified_radius <= exact * (1 + 1e-12)
        assert row.attacked_radius >= exact * (1 - 1e-12)
        assert row.certified_radius < row.attacked_radius
    assert rows.verify(model) is rows


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_at_a_radius_a_linear_classifier_is_decided(norm: float) -> None:
    model, x = linear(), points(16)
    y = right_labels(model, x)
    exact = torch.stack([distances(p, int(k), DUAL[float(norm)]).min() for p, k in zip(x, y, strict=True)])
    radius = float(exact.median()) * 1.001
    rows = lipcert.certify(model, x, y, norm=norm, radius=radius)
    for row, distance in zip(rows, exact.tolist(), strict=True):
        assert row.status == ("certified" if distance > radius else "attacked")
        assert row.certified_radius <= distance
        assert row.attacked_radius >= distance * (1 - 1e-12)
    assert rows.certified_accuracy() == rows.attacked_accuracy() == float((exact > radius).double().mean())


def test_a_wrong_label_is_wrong_and_counts() -> None:
    model, x = linear(), points(6)
    y = right_labels(model, x)
    y[2] = (y[2] + 1) % 3
    rows = lipcert.certify(model, x, y, radius=1e-6)
    assert [row.status for row in rows] == ["certified"] * 2 + ["wrong"] + ["certified"] * 3
    assert rows[2].predicted != rows[2].label
    assert rows[2].margin < 0
    assert rows[2].certified_radius == rows[2].attacked_radius == 0
    assert rows.clean_accuracy == rows.certified_accuracy() == rows.attacked_accuracy() == pytest.approx(5 / 6)


@pytest.mark.few(1)
@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_no_point_of_a_certified_ball_has_another_class(norm: float, seed: int) -> None:
    model, x = mlp(seed), points(3, seed, (6,))
    y = right_labels(model, x)
    rows = lipcert.certify(model, x, y, norm=norm, clip=(0, 1), effort=0.1)
    exact, generator = mlp(seed).double(), torch.Generator().manual_seed(seed)
    for row, point in zip(rows, x.double(), strict=True):
        assert row.certified_radius < row.attacked_radius
        near = torch.randn(2000, 6, generator=generator, dtype=torch.float64)
        near = near.sign() if norm == math.inf else near
        near = near / near.norm(p=norm, dim=1, keepdim=True) * row.certified_radius
        with torch.no_grad():
            classes = exact((point + near).clamp(0, 1)).argmax(1)
        assert bool((classes == row.label).all())
    rows.verify(model, x, y)


def test_larger_radii_certify_no_more_and_curves_fall() -> None:
    model, x = mlp(1), points(8, 1, (6,))
    radii = (0.05, 0.1, 0.3)
    rows = lipcert.certify(model, x, right_labels(model, x), radii=radii, effort=0.1)
    certified, attacked = ([f(r) for r in radii] for f in (rows.certified_accuracy, rows.attacked_accuracy))
    assert certified == sorted(certified, reverse=True)
    assert attacked == sorted(attacked, reverse=True)
    assert all(c <= a for c, a in zip(certified, attacked, strict=True))
    single = [
        lipcert.certify(model, x, right_labels(model, x), radius=r, effort=0.1).certified_accuracy() for r in radii
    ]
    assert certified == single
    assert rows.certified_accuracy(0.9) == 0.0
    assert rows.certified_accuracy() == certified[-1]


def test_what_limits_leave_out_cannot_attack() -> None:
    model = linear()
    x = torch.tensor([[0.0, 0.0, 0.0]])  # class 0; class 2 is ahead for x below 0 only
    free = lipcert.certify(model, x, [0], norm=math.inf)
    clipped = lipcert.certify(model, x, [0], norm=math.inf, clip=(0, 1))
    assert clipped[0].certified_radius >= free[0].certified_radius
    assert clipped[0].attacked_radius >= free[0].attacked_radius


def test_radii_are_in_the_units_of_the_inputs() -> None:
    mean, std = (0.25, 0.5, 0.125), (0.5, 0.25, 2.0)
    model, pixels = linear(), points(8)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.register_buffer("mean", torch.tensor(mean))
            self.register_buffer("std", torch.tensor(std))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner((x - self.mean) / self.std)

    y = right_labels(Own().eval(), pixels)
    outside = lipcert.certify(model, pixels, y, scale=(mean, std))
    inside = lipcert.certify(Own().eval(), pixels, y)
    rows = torch.tensor([[3.0, 0, 1], [0, 4, -1], [-1, 1, 0.5]], dtype=torch.float64) / torch.tensor(std).double()
    for one, other, point, label in zip(outside, inside, pixels, y.tolist(), strict=True):
        scores = model.double()((point.double() - torch.tensor(mean).double()) / torch.tensor(std).double())
        model.float()
        exact = min(
            float(((scores[label] - scores[k]) / (rows[label] - rows[k]).norm()).detach())
            for k in range(3)
            if k != label
        )
        assert 0.98 * exact <= one.certified_radius <= exact * (1 + 1e-9)
        assert one.certified_radius == pytest.approx(other.certified_radius, rel=0.02)
    assert "the model sees" in str(outside)
    outside.verify(model)
    with pytest.raises(lipcert.CertificateError, match="another model"):
        inside.verify(model)


def test_images_have_a_scale_per_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = points(4, 0, (3, 4, 4))
    scale = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.5))
    normalised = (x - torch.tensor(scale[0])[:, None, None]) / torch.tensor(scale[1])[:, None, None]
    y = right_labels(model, normalised)
    rows = lipcert.certify(model, x, y, radius=0.01, scale=scale)
    assert all(row.predicted == row.label for row in rows)
    rows.verify(model)


def test_exported_programs_and_files_are_models(tmp_path: Path) -> None:
    model, x = mlp(1), points(4, 1, (6,))
    y = right_labels(model, x)
    torch.export.save(torch.export.export(model, (x[:1],)), tmp_path / "m.pt2")
    expected = lipcert.certify(model, x, y, radius=0.05)
    for scale in (None, (0.0, 1.0)):
        rows = lipcert.certify(tmp_path / "m.pt2", x, y, radius=0.05, scale=scale)
        assert [r.status for r in rows] == [r.status for r in expected]
        rows.verify(tmp_path / "m.pt2")


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", ["float64", "float16", "array", "list", "uint8"])
def test_inputs_of_any_type(kind: str) -> None:
    model, x = mlp(2), (points(5, 2, (6,)) * 8).round() / 8
    y = right_labels(model, x)
    given = {
        "float64": x.double(), "float16": x.half(), "array": x.numpy(), "list": x.tolist(),
        "uint8": (x * 8).to(torch.uint8),
    }[kind]  # fmt: skip
    scale = (0.0, 8.0) if kind == "uint8" else None
    size = 8.0 if kind == "uint8" else 1.0
    rows = lipcert.certify(model, given, y.tolist(), radius=0.03 * size, scale=scale)
    expected = lipcert.certify(model, x, y, radius=0.03)
    assert [r.status for r in rows] == [r.status for r in expected]
    rows.verify(model, given, y)


def test_the_same_seed_gives_the_same_rows_in_any_number_of_workers() -> None:
    model, x = mlp(0), points(9, 0, (6,))
    y = right_labels(model, x)
    memory = 2e-6  # batches of a few
    runs = [lipcert.certify(model, x, y, radius=0.35, memory=memory, workers=n, effort=0.1) for n in (1, 1, 3)]
    keys = [[(r.status, r.certified_radius, r.attacked_radius, r.margin, r.method) for r in rows] for rows in runs]
    assert keys[0] == keys[1] == keys[2]
    assert [r.index for r in runs[2]] == list(range(9))


def test_the_caller_is_left_alone() -> None:
    model, x = mlp(5), points(4, 5, (6,))
    y, state = right_labels(model, x), {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(7)
    before = torch.get_rng_state()
    lipcert.certify(model, x, y, radius=0.1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


def test_networks_without_constants_are_certified_too() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * x

    torch.manual_seed(0)
    model, x = Products().eval(), points(6)
    y = right_labels(model, x)
    rows = lipcert.certify(model, x, y, radius=1e-3)
    assert any(r.status == "certified" for r in rows)
    rows.verify(model)


# -- reports ------------------------------------------------------------------------------------------------


def test_the_table_fits_and_says_what_was_asked() -> None:
    model, x = mlp(6), points(8, 6, (6,))
    rows = lipcert.certify(model, x, right_labels(model, x), radii=(0.05, 0.1), clip=(0, 1), effort=0.1)
    text = rows.table(rows=8)
    assert max(map(len, text.splitlines())) <= 100
    assert "within [0, 1]" in text
    assert "l2" in text
    assert "real arithmetic" in text
    assert str(rows) == rows.table()
    free = lipcert.certify(linear(), points(4), right_labels(linear(), points(4)))
    assert "median certified radius" in str(free)
    with pytest.raises(lipcert.InputError, match="at which radius"):
        free.certified_accuracy()


def test_the_picture_shows_both_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, x = linear(), points(8)
    rows = lipcert.certify(model, x, right_labels(model, x))
    figure = rows.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 0
    attacked, certified = (line.get_ydata() for line in figure.axes[0].lines)
    assert all(c <= a for c, a in zip(certified, attacked, strict=True))
    with pytest.raises(lipcert.InputError, match="cannot write"):
        rows.plot(tmp_path / "missing" / "curve.png")


# -- files --------------------------------------------------------------------------------------------------


@cache
def whole_run() -> bytes:
    """A file with rows of every kind: radius 0.35, a wrong label first."""
    model, x = mlp(0), points(12, 0, (6,))
    y = right_labels(model, x)
    y[0] = (y[0] + 1) % 4
    rows = lipcert.certify(model, x, y, radius=0.35, effort=0.1)
    assert {r.status for r in rows} >= {"certified", "attacked", "wrong"}
    assert {r.method for r in rows if r.certified_radius} >= {"linear_bounds", "cost_to_go", "pair_constants"}
    with tempfile.TemporaryDirectory() as folder:
        rows.save(Path(folder) / "run")
        return (Path(folder) / "run").read_bytes()


def saved(tmp_path: Path) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Path]:
    model, x = mlp(0), points(12, 0, (6,))
    y = right_labels(model, x)
    y[0] = (y[0] + 1) % 4
    path = tmp_path / "run.robust"
    path.write_bytes(whole_run())
    return model, x, y, path


def test_a_saved_run_is_read_and_proved_again(tmp_path: Path) -> None:
    model, x, y, path = saved(tmp_path)
    read = lipcert.Certification.load(path)
    assert read.table(rows=12) == read.verify(model, x, y).table(rows=12)
    assert [p.name for p in tmp_path.iterdir()] == ["run.robust"]
    with pytest.raises(lipcert.CertificateError, match="another model"):
        read.verify(mlp(1))
    with pytest.raises(lipcert.CertificateError, match="other data"):
        read.verify(model, x + 0.001, y)


#: What a forger may write, and which row it concerns.
FORGERIES = {
    "a larger radius": "UPDATE decisions SET certified_radius = certified_radius * 1.5 WHERE status = 'certified'",
    "a larger margin": "UPDATE decisions SET margin = margin + 0.1 WHERE certified_radius > 0",
    "a better guarantee": "UPDATE decisions SET method = 'ranges', proof = x'' WHERE method = 'cost_to_go'",
    "certified for attacked": (
        "UPDATE decisions SET status = 'certified', certified_radius = 0.35, attacked_radius = 9e999, counter = NULL "
        "WHERE status = 'attacked'"
    ),
    "another class": (
        "UPDATE decisions SET label = (label + 1) % 4, predicted = (predicted + 1) % 4 WHERE label = predicted"
    ),
    "no example": "UPDATE decisions SET example = NULL WHERE status = 'certified'",
    "an example of zeros": "UPDATE decisions SET example = zeroblob(48), counter = NULL, attacked_radius = 9e999, "
    "status = 'certified', certified_radius = 0.35, margin = 0.05 WHERE status = 'attacked'",
    "no proof": "UPDATE decisions SET proof = NULL WHERE status = 'certified'",
    "an unknown method": "UPDATE decisions SET method = 'trust me' WHERE status = 'certified'",
    "no counter-example": "UPDATE decisions SET counter = NULL WHERE status = 'attacked'",
    "a harmless counter-example": "UPDATE decisions SET counter = example WHERE status = 'attacked'",
    "a nearer counter-example": "UPDATE decisions SET attacked_radius = attacked_radius / 2 WHERE status = 'attacked'",
    "another status": "UPDATE decisions SET status = 'certified' WHERE status = 'attacked'",
    "a larger ball": "UPDATE about SET value = replace(value, '0.35', '0.9') WHERE name = 'settings'",
    "another norm": "UPDATE about SET value = replace(value, '\"norm\": 2.0', '\"norm\": 1.0') WHERE name = 'settings'",
    "no shared constant": "DELETE FROM shared",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_file_is_refused(tmp_path: Path, forgery: str) -> None:
    model, _, _, path = saved(tmp_path)
    with sqlite3.connect(path) as connection:
        changed = connection.execute(FORGERIES[forgery]).rowcount
        resign(connection)
    connection.close()
    if not changed:
        pytest.skip("no such row here")
    with pytest.raises((lipcert.CertificateError, lipcert.StoreError)):
        lipcert.Certification.load(path).verify(model)


@pytest.mark.parametrize(
    "change", ["UPDATE decisions SET certified_radius = 0.1 WHERE status = 'certified'", "DELETE FROM decisions"]
)
def test_a_file_that_changes_after_it_was_read_proves_nothing(tmp_path: Path, change: str) -> None:
    """What is claimed is what was read: weaker rows that come later, or none, say nothing of it."""
    model, _, _, path = saved(tmp_path)
    read = lipcert.Certification.load(path)
    with sqlite3.connect(path) as connection:
        connection.execute(change)
        resign(connection)
    connection.close()
    with pytest.raises(lipcert.CertificateError, match="changed after it was read"):
        read.verify(model)


def resign(connection: sqlite3.Connection) -> None:
    """Give every row the hash of what it now says, as a forger would."""
    names = ", ".join(f'"{n}"' for n in (*ROW_FIELDS, "proof", "example", "counter"))
    for values in connection.execute(f"SELECT {names} FROM decisions").fetchall():
        decision = Decision(Row(*values[: len(ROW_FIELDS)]), *values[len(ROW_FIELDS) :])
        connection.execute('UPDATE decisions SET sha256 = ? WHERE "index" = ?', (decision.sha256, values[0]))


def test_forged_multipliers_prove_nothing(tmp_path: Path) -> None:
    """A proof whose numbers are replaced still goes through the check: it is refused, or what it says is true."""
    model, _, _, path = saved(tmp_path)
    with sqlite3.connect(path) as connection:
        for index, proof in connection.execute(
            "SELECT \"index\", proof FROM decisions WHERE method = 'cost_to_go'"
        ).fetchall():
            parts, linear = read_proof(proof)
            for part in parts:
                for name in part.multipliers:
                    part.multipliers[name] = part.multipliers[name] * 3.0 + 1.0
            connection.execute('UPDATE decisions SET proof = ? WHERE "index" = ?', (write_proof(parts, linear), index))
        resign(connection)
    connection.close()
    with pytest.raises(lipcert.CertificateError, match=r"row \d+: (it claims a margin|nothing is proved)"):
        lipcert.Certification.load(path).verify(model)


def test_every_damaged_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    model, x, y, path = saved(tmp_path)
    whole = path.read_bytes()
    expected = lipcert.Certification.load(path).table(rows=12)
    for place in np.random.default_rng(0).integers(0, len(whole), 8).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            found = lipcert.Certification.load(path).verify(model, x, y).table(rows=12)
        except (lipcert.CertificateError, lipcert.StoreError):
            continue
        assert found == expected, place
    for length in (0, 10, 4000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises((lipcert.CertificateError, lipcert.StoreError)):
            lipcert.Certification.load(path).verify(model)


def test_saving_where_nothing_can_be_written(tmp_path: Path) -> None:
    model, x = linear(), points(2)
    rows = lipcert.certify(model, x, right_labels(model, x), radius=0.01)
    with pytest.raises(lipcert.StoreError, match="cannot write"):
        rows.save(tmp_path / "missing" / "file")
    with pytest.raises(lipcert.StoreError, match="there is no file"):
        lipcert.Certification.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello, this is no database at all, but long enough to look at" * 20)
    with pytest.raises(lipcert.StoreError, match="no file of a"):
        lipcert.Certification.load(tmp_path / "text")


def test_units_that_seem_wrong_are_named() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 6, generator=generator)
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    model[0].bias.data.copy_(torch.tensor([0.0, 0.5, -0.5]))
    y = right_labels(model, x)
    with pytest.warns(UserWarning, match=r"clean accuracy is .*inputs / 255 it is 100\.0 %"):
        lipcert.certify(model, x * 255, y, radius=0.1)
    with pytest.warns(UserWarning, match="no better than guessing"):
        lipcert.certify(model, x - 0.01, (y + 1) % 3, radius=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lipcert.certify(model, x, y, radius=0.1)


def test_accuracies_are_between_each_other_at_every_radius() -> None:
    model, x = linear(), points(10)
    rows = lipcert.certify(model, x, right_labels(model, x))
    radii, certified, attacked = rows.curve()
    assert radii[0] == 0.0
    assert certified[0] == attacked[0] == rows.clean_accuracy == 1.0
    for values in (certified, attacked):
        assert all(one >= other for one, other in itertools.pairwise(values))
    assert all(c <= a for c, a in zip(certified, attacked, strict=True))


@pytest.mark.few(3)
@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("radii", [{"radius": 0.1}, {"radii": (0.1, 0.9)}, {"radius": None}])
def test_a_tie_at_the_example_itself_is_attacked_at_distance_0(p: float, radii: dict) -> None:
    """Nothing is certified there, which is no contradiction to a counter-example at radius 0."""
    model = nn.Linear(2, 3).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        model.bias.zero_()
    inputs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]])
    rows = list(lipcert.certify(model, inputs, torch.zeros(3, dtype=torch.int64), norm=p, progress=False, **radii))
    assert [(rows[i].status, rows[i].certified_radius, rows[i].attacked_radius) for i in (0, 2)] == [
        ("attacked", 0.0, 0.0)
    ] * 2
    assert rows[1].certified_radius >= 0.1
