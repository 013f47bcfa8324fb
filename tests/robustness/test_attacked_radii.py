"""Attacks on what certify claims: forged files, radii known in closed form, ties, odd sizes, states of the process."""

import ctypes
import itertools
import json
import math
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.robustness import provers
from lipcert.robustness.checks import read_proof, write_proof
from lipcert.robustness.provers import CostToGo
from lipcert.robustness.rows import ROW_FIELDS, Decision, Row
from lipcert.robustness.schedule import FARTHEST, Bracket
from tests.robustness.cases import distances, linear, mlp, points, right_labels

DOUBLE = torch.float64
DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}
NORMS = [1, 2, math.inf]


@contextmanager
def forged(path: Path) -> Iterator[sqlite3.Connection]:
    """A file to be changed; every row then gets the hash of what it says."""
    connection = sqlite3.connect(path)
    yield connection
    names = ", ".join(f'"{n}"' for n in (*ROW_FIELDS, "proof", "example", "counter"))
    for values in connection.execute(f"SELECT {names} FROM decisions").fetchall():
        decision = Decision(Row(*values[: len(ROW_FIELDS)]), *values[len(ROW_FIELDS) :])
        connection.execute('UPDATE decisions SET sha256 = ? WHERE "index" = ?', (decision.sha256, values[0]))
    connection.commit()
    connection.close()


def affine(weight: Tensor, bias: Tensor) -> nn.Module:
    """Scores W x + b of flattened inputs, in float64."""
    layer = nn.Linear(weight.shape[1], len(weight)).double()
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    return nn.Sequential(nn.Flatten(), layer).eval()


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_labels_of_a_file_are_those_of_the_data(tmp_path: Path, norm: float) -> None:
    """Examples that the model gets wrong cannot be certified for the class that it gives them instead."""
    model, x, path = linear(), points(5), tmp_path / "run"
    predicted = right_labels(model, x)
    truth = predicted.clone()
    truth[:2] = (truth[:2] + 1) % 3
    honest = lipcert.certify(model, x, truth, norm=norm, radius=1e-3)
    lipcert.certify(model, x, predicted, norm=norm, radius=1e-3).save(path)
    with forged(path) as file:
        file.execute("UPDATE about SET value = ? WHERE name = 'data'", (honest._about["data"],))
    read = lipcert.Certification.load(path)
    assert read.certified_accuracy() > honest.certified_accuracy()
    with pytest.raises(lipcert.CertificateError, match="row 0: its label is"):
        read.verify(model, x, truth)


def test_examples_left_out_of_a_file_are_missed(tmp_path: Path) -> None:
    model, x, path = linear(), points(5), tmp_path / "run"
    labels = right_labels(model, x)
    labels[-1] = (labels[-1] + 1) % 3
    lipcert.certify(model, x, labels, radius=1e-3).save(path)
    with forged(path) as file:
        file.execute("UPDATE about SET value = '4' WHERE name = 'count'")
        file.execute('DELETE FROM decisions WHERE "index" = 4')
    read = lipcert.Certification.load(path)
    assert read.certified_accuracy() == 1.0
    with pytest.raises(lipcert.CertificateError, match="other data"):
        read.verify(model, x, labels)


def test_right_examples_cannot_be_called_wrong(tmp_path: Path) -> None:
    """That would bring the share that the attack leaves below the true one."""
    model, x, path = linear(), points(3), tmp_path / "run"
    labels = right_labels(model, x)
    labels[0] = (labels[0] + 1) % 3
    lipcert.certify(model, x, labels, radius=1e-3).save(path)
    lipcert.Certification.load(path).verify(model, x, labels)
    with forged(path) as file:
        file.execute(
            "UPDATE decisions SET status = 'wrong', predicted = (label + 1) % 3, certified_radius = 0.0, "
            'attacked_radius = 0.0 WHERE "index" = 1'
        )
    with pytest.raises(lipcert.CertificateError, match="row 1: it is called wrong"):
        lipcert.Certification.load(path).verify(model, x, labels)


@pytest.mark.parametrize("margin", [1e9, 0.0])
def test_margins_of_attacked_rows_are_looked_at(tmp_path: Path, margin: float) -> None:
    """A tie but for 1e-3: the margin at the example is no more than that, and here it is below 0."""
    model = affine(torch.tensor([[1.0], [-1.0]], dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    path, x = tmp_path / "run", torch.tensor([[0.0]])
    rows = lipcert.certify(model, x, [0], radius=0.1)
    assert rows[0].status == "attacked"
    assert -1e-9 < rows[0].margin <= 0.0
    rows.save(path)
    lipcert.Certification.load(path).verify(model, x, [0])
    with forged(path) as file:
        file.execute("UPDATE decisions SET margin = ?", (margin + 1e-6,))
    with pytest.raises(lipcert.CertificateError, match="claims a margin"):
        lipcert.Certification.load(path).verify(model)


class Powers(nn.Module):
    """Two linear maps around squares."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
        self.first.weight.data = torch.eye(2)
        self.last.weight.data = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        self.last.bias.data = torch.tensor([0.0, 0.5])

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.last(z * z)


def test_a_run_that_found_no_constant_is_proved_again(tmp_path: Path) -> None:
    model, path = Powers().eval(), tmp_path / "run"
    rows = lipcert.certify(model, torch.tensor([[0.1, 0.0]]), [1], radius=0.3, effort=0.1)
    assert rows[0].status == "certified"
    assert rows._store.shared("constants") == b""
    rows.save(path)
    lipcert.Certification.load(path).verify(model)
    with forged(path) as file:  # beyond √½ − 0.1 it is false
        file.execute("UPDATE decisions SET certified_radius = 0.61")
    with pytest.raises(lipcert.CertificateError):
        lipcert.Certification.load(path).verify(model)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_no_forged_claim_beyond_the_distance_is_proved(tmp_path: Path, norm: float) -> None:
    """Every method and every proof of the run, for every row, at a radius a little beyond what is true."""
    weight, bias = torch.tensor([[3.0, 0.0], [0.0, 4.0], [-1.0, 1.0]], dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    model[0].weight.data = torch.cat([torch.eye(2), -torch.eye(2)]).double()  # relu(x) − relu(−x) = x
    model[0].bias.data = torch.zeros(4, dtype=DOUBLE)
    model[2].weight.data, model[2].bias.data = torch.cat([weight, -weight], 1), bias
    x = torch.randn(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    y, path = right_labels(model, x), tmp_path / "run"
    scores = x @ weight.T
    exact = [
        min(float((s[k] - s[j]) / (weight[k] - weight[j]).norm(p=DUAL[norm])) for j in range(3) if j != k)
        for s, k in zip(scores, y.tolist(), strict=True)
    ]
    rows = lipcert.certify(model, x, y, norm=norm)
    for row, distance in zip(rows, exact, strict=True):
        assert 0.6 * distance < row.certified_radius <= distance <= row.attacked_radius * (1 + 1e-12)
    rows.save(path)
    content = path.read_bytes()
    with sqlite3.connect(path) as file:
        proofs = file.execute("SELECT method, proof FROM decisions").fetchall()
    file.close()
    methods = {m for m, _ in proofs} | {"ranges", "linear_bounds", "pair_constants"}
    for method, proof in itertools.product(methods, {p for _, p in proofs} | {b""}):
        path.write_bytes(content)
        with forged(path) as file:
            for index, distance in enumerate(exact):
                new = (distance * (1 + 1e-12), 5e-324, method, proof, index)
                file.execute(
                    "UPDATE decisions SET certified_radius = ?, margin = ?, attacked_radius = 9e999, method = ?, "
                    "proof = ?, guarantee = 'numerical' WHERE \"index\" = ?",
                    new,
                )
        read = lipcert.Certification.load(path)
        for index in range(len(x)):
            read._rows = [row for row in lipcert.Certification.load(path) if row.index == index]
            with pytest.raises(lipcert.CertificateError):
                verify_alone(path, model, index)


def verify_alone(path: Path, model: nn.Module, index: int) -> None:
    """One row of a file, as the only one."""
    other = path.with_name("alone")
    other.write_bytes(path.read_bytes())
    with forged(other) as file:
        file.execute('DELETE FROM decisions WHERE "index" != ?', (index,))
        file.execute('UPDATE decisions SET "index" = 0')
        file.execute("UPDATE about SET value = '1' WHERE name = 'count'")
    lipcert.Certification.load(other).verify(model)


@pytest.mark.slow
def test_norms_and_multipliers_that_are_changed_prove_nothing_false(tmp_path: Path) -> None:
    """Norms that are too small, numbers that are no multipliers: at a radius where there is a counter-example."""
    model, x, path = mlp(0), points(6, 0, (6,)), tmp_path / "run"
    rows = lipcert.certify(model, x, right_labels(model, x), effort=0.3)
    rows.save(path)
    content = path.read_bytes()
    chosen = [row for row in rows if row.method == "cost_to_go" and math.isfinite(row.attacked_radius)]
    assert chosen
    generator = torch.Generator().manual_seed(0)
    with sqlite3.connect(path) as file:
        proofs = dict(file.execute('SELECT "index", proof FROM decisions').fetchall())
    file.close()
    for row in chosen[:2]:
        parts, linear_ = read_proof(proofs[row.index])
        for name, factor in itertools.product({k.split(".")[0] for k in parts[0].multipliers}, (0.0, 0.5, 1.5, None)):
            for part in parts:
                for key in [k for k in part.multipliers if k.split(".")[0] == name]:
                    old = part.multipliers[key]
                    noise = torch.randn(old.shape, generator=generator, dtype=old.dtype).abs()
                    part.multipliers[key] = old * (noise if factor is None else factor)
            path.write_bytes(content)
            with forged(path) as file:
                file.execute(
                    'UPDATE decisions SET certified_radius = ?, margin = 5e-324, proof = ? WHERE "index" = ?',
                    (row.attacked_radius, write_proof(parts, linear_), row.index),
                )
            with pytest.raises(lipcert.CertificateError):
                verify_alone(path, model, row.index)
            parts, linear_ = read_proof(proofs[row.index])


@pytest.mark.slow
def test_a_store_edited_by_hand_is_no_certificate(tmp_path: Path) -> None:
    """A run goes on with the rows it finds; what is false in them is refused by verify."""
    model, x, path = linear(), points(4), tmp_path / "run"
    labels = right_labels(model, x)
    lipcert.certify(model, x, labels, resume=path)
    with forged(path) as file:
        file.execute('DELETE FROM decisions WHERE "index" = 3')
        file.execute('UPDATE decisions SET certified_radius = 10.0, attacked_radius = 9e999 WHERE "index" = 1')
    rows = lipcert.certify(model, x, labels, resume=path)
    assert len(rows) == 4
    with pytest.raises(lipcert.CertificateError, match="row 1"):
        rows.verify(model)
    with forged(path) as file:
        file.execute('DELETE FROM decisions WHERE "index" = 3')
        file.execute("UPDATE about SET value = '0' WHERE name = 'batch'")
    with pytest.raises(lipcert.StoreError, match="size of its batches"):
        lipcert.certify(model, x, labels, resume=path)
    with sqlite3.connect(path) as file:
        file.execute("UPDATE about SET value = '4' WHERE name = 'batch'")
        file.execute('UPDATE decisions SET certified_radius = 9.0 WHERE "index" = 1')  # without its hash
    file.close()
    with pytest.raises(lipcert.StoreError, match="row 1 does not match its hash"):
        lipcert.certify(model, x, labels, resume=path)


@pytest.mark.slow
def test_units_of_a_file_are_part_of_what_is_proved(tmp_path: Path) -> None:
    """Another scale, another clip, another norm: refused, or true for what the file then says."""
    model, x, path = linear(), points(4), tmp_path / "run"
    lipcert.certify(model, x, right_labels(model, x), scale=(0.0, 0.5), clip=(0, 1), norm=2, radius=0.01).save(path)
    content = path.read_bytes()
    for change in ({"scale": [[0.0], [5.0]]}, {"scale": None}, {"norm": "inf"}, {"norm": 1.0}, {"radii": [0.02]}):
        path.write_bytes(content)
        with forged(path) as file:
            ((settings,),) = file.execute("SELECT value FROM about WHERE name = 'settings'").fetchall()
            held = json.loads(settings)
            held["threat"] |= change
            file.execute("UPDATE about SET value = ? WHERE name = 'settings'", (json.dumps(held),))
            file.execute("UPDATE decisions SET certified_radius = 10.0 WHERE certified_radius > 0")
        with pytest.raises((lipcert.CertificateError, lipcert.StoreError)):
            lipcert.Certification.load(path).verify(model)


# -- ties and rounding ---------------------------------------------------------------------------------------------


def cancelling(middle: float) -> tuple[nn.Module, Tensor]:
    """Scores (1e16 + middle − 1e16, 0), whose first is 0 in floats: so the class is 0 there by a tie."""
    model = affine(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    return model, torch.tensor([[1e16, middle, -1e16]], dtype=DOUBLE)


def test_a_margin_of_a_wrong_row_is_not_above_the_truth() -> None:
    model, x = cancelling(0.5)
    (row,) = lipcert.certify(model, x, [1], radius=0.1)
    assert row.status == "wrong"
    assert row.margin <= -0.5  # floats say 0


def test_rounding_does_not_make_a_right_class_wrong() -> None:
    """A row that is wrong counts as attacked at distance 0, where in truth nothing is within 0.2."""
    model, x = cancelling(-0.5)
    (row,) = lipcert.certify(model, x, [1], norm=2, radius=0.1)
    assert row.predicted == 1
    assert row.status != "wrong"
    assert row.attacked_radius >= 0.5 / math.sqrt(3) * (1 - 1e-12)
    assert row.certified_radius <= 0.5 / math.sqrt(3)


def test_a_tie_is_not_certified_at_radius_0() -> None:
    model = affine(torch.tensor([[1.0], [-1.0]], dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    rows = lipcert.certify(model, torch.tensor([[0.0], [1.0]]), [0, 0])
    assert (rows[0].certified_radius, rows[0].attacked_radius) == (0.0, 0.0)
    assert rows.certified_accuracy(0.0) == rows.attacked_accuracy(0.0) == 0.5
    assert all(c <= a for _, c, a in zip(*rows.curve(), strict=True))


def test_an_unknown_margin_is_not_said_to_be_0() -> None:
    """Where values overflow nothing is known of the margin, which here is below 0 in truth."""
    first, last = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 2, bias=False).double()
    first.weight.data.fill_(1e200)
    last.weight.data = torch.tensor([[1.0], [2.0]], dtype=DOUBLE)
    second = nn.Linear(1, 1, bias=False).double()
    second.weight.data.fill_(1e200)
    model = nn.Sequential(first, second, nn.ReLU(), last).eval()
    try:
        (row,) = lipcert.certify(model, torch.tensor([[1.0]], dtype=DOUBLE), [0], radius=0.1)
    except lipcert.LipcertError:
        return
    assert row.margin == -math.inf or row.margin <= -1e300
    assert row.certified_radius == 0.0


def test_limits_are_those_of_float64() -> None:
    """0.3 in float32 is above 0.3: such an input is outside, however near."""
    model, x = linear(), torch.tensor([[0.1, 0.3, 0.2]])
    with pytest.raises(lipcert.InputError, match="outside clip"):
        lipcert.certify(model, x, [1], clip=(0.0, 0.3), radius=1e-9)
    labels = right_labels(model, x)
    assert lipcert.certify(model, x, labels, clip=(0.0, float(x[0, 1])), radius=1e-9)[0].status == "certified"


# -- closed forms --------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Two scores that no input changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 2)
        self.last.weight.data.zero_()
        self.last.bias.data = torch.tensor([1.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


class Fixed(nn.Module):
    """The same without a parameter, and without the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)


@pytest.mark.parametrize("norm", [2, *(pytest.param(p, marks=pytest.mark.slow) for p in (1, math.inf))])
def test_a_constant_network_is_certified_far_out_and_breaks_nothing(norm: float) -> None:
    row, other = lipcert.certify(Constant().eval(), points(2, 0, (2,)), [0, 1], norm=norm)
    assert 1e299 < row.certified_radius <= FARTHEST
    assert row.attacked_radius == math.inf
    assert (other.status, other.certified_radius) == ("wrong", 0.0)
    (row,) = lipcert.certify(Fixed().eval(), points(1, 0, (2,)), [0], norm=norm, radius=1.0)
    assert row.attacked_radius == math.inf


def test_a_bracket_goes_as_far_as_floats_and_no_further() -> None:
    for certified, attacked in (
        (1e200, math.inf),
        (1e-200, 1e-150),
        (1e150, 1e250),
        (9.99e299, math.inf),
        (1e308, 1.1e308),
    ):
        bracket = Bracket(None, certified=certified, attacked=attacked)
        while not bracket.done:
            radius = bracket.next()
            assert bracket.certified < radius < min(bracket.attacked, bracket.failed)
            assert math.isfinite(radius)
            bracket.certify(radius)
            bracket.tried(radius)
        assert bracket.rounds <= 61
    bracket = Bracket(None, certified=1e-200, attacked=1e-150, failed=1e-160)
    for _ in range(30):
        if bracket.done:
            break
        radius = bracket.next()
        assert bracket.certified < radius < bracket.failed
        bracket.fail(radius)
        bracket.tried(radius)
    assert bracket.failed <= bracket.certified * 1.02


def decided(needs: list[float], likely: float = math.inf) -> tuple[float, Bracket]:
    """What is certified of radii 1, 2, … in a time of 1, given out as in the cascade, if each needs so much."""
    bracket, now = Bracket(tuple(float(k + 1) for k in range(len(needs))), likely=likely), 0.0
    while True:
        bracket.reconsider(1.0 - now)
        if bracket.done:
            return bracket.certified, bracket
        radius, part = bracket.next(), bracket.share
        share, need = (1.0 - now) * part, needs[int(radius) - 1]
        now += min(share, need)
        if need <= share:
            bracket.certify(radius)
        else:
            bracket.fail(radius, share if part < 1.0 else math.inf)
        bracket.tried(radius)
        if now >= 1.0:
            bracket.stop()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_hopeless_radius_leaves_time_for_smaller_ones(count: int) -> None:
    for limit in range(count + 1):
        certified, bracket = decided([0.01] * limit + [math.inf] * (count - limit))
        assert certified == limit
        assert bracket.rounds <= 2 + 2 * math.log2(count)


def test_what_time_is_left_goes_to_the_least_radius_that_failed() -> None:
    assert decided([0.01] * 7 + [0.5])[0] == 8.0
    assert decided([0.01] * 6 + [0.5, 0.6])[0] == 7.0
    assert decided([0.01] * 7 + [0.9])[0] == 7.0


def test_where_no_radius_is_likely_the_least_has_most_of_the_time() -> None:
    """Nothing is left for larger ones that fail with it, and what is certified goes on from there."""
    assert decided([0.7, math.inf, math.inf, math.inf], likely=0.5)[0] == 1.0
    assert decided([0.7, math.inf, math.inf, math.inf])[0] == 0.0
    assert decided([0.1] * 8, likely=0.5)[0] == 8.0
    assert decided([0.1] * 8, likely=3.5)[1].rounds <= 6
    _, hopeless = decided([math.inf] * 4, likely=0.5)
    assert hopeless.rounds == 1  # there is less time left than it had


def both_certified() -> tuple[nn.Module, torch.Tensor, torch.Tensor, float, float]:
    """A model, an example and its label, and two radii at which a search by itself certifies it."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2)).double().eval()
    x = torch.randn(1, 4, dtype=torch.float64)
    label = model(x).argmax(1)
    (alone,) = lipcert.certify(model, x, label, budget=2.0)
    return model, x, label, 0.85 * alone.certified_radius, 0.95 * alone.certified_radius


@pytest.mark.slow
def test_of_two_radii_the_smaller_is_certified_where_the_larger_takes_all_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search at the larger radius is made to last as long as it may."""
    model, x, label, small, large = both_certified()
    prove, asked_for = CostToGo.prove, []

    def slow(self: CostToGo, facts: Any, asked: Any, until: float) -> Any:
        asked_for.append(asked[0].claim.radius)
        if asked_for[-1] < large:
            return prove(self, facts, asked, until)
        while time.perf_counter() <= until:
            pass
        return [None] * len(asked)

    monkeypatch.setattr(CostToGo, "prove", slow)
    (row,) = lipcert.certify(model, x, label, radii=(small, large), budget=2.0)
    assert asked_for[0] == large
    assert row.certified_radius == small


@pytest.mark.slow
def test_who_failed_in_a_part_of_the_time_has_what_the_others_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of four examples takes all of the first round in vain, and waits until the others need no more."""
    model, x, label, small, large = both_certified()
    prove, companies = CostToGo.prove, []

    def slow(self: CostToGo, facts: Any, asked: Any, until: float) -> Any:
        companies.append(len(asked))
        if len(asked) < 4:
            return prove(self, facts, asked, until)
        found = prove(self, facts, asked[:-1], until)
        while time.perf_counter() <= until:
            pass
        return [*found, None]

    monkeypatch.setattr(CostToGo, "prove", slow)
    monkeypatch.setattr("lipcert.robustness.cascade.LIKELY", 0.0)
    rows = lipcert.certify(model, x.expand(4, 4), label.expand(4), radii=(small, large), budget=2.0)
    assert companies[0] == 4
    assert [row.certified_radius >= small for row in rows] == [True] * 4


@pytest.mark.few(1)
@pytest.mark.parametrize("dear", [False, True])
@pytest.mark.parametrize("far", [False, True])
def test_far_beyond_the_constants_linear_bounds_come_first(
    far: bool, dear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless these take longer than there is."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 3000), nn.ReLU(), nn.Linear(3000, 9), nn.ReLU(), nn.Linear(9, 2)).double().eval()
    x = torch.randn(1, 4, dtype=torch.float64)
    label = model(x).argmax(1)
    (alone,) = lipcert.certify(model, x, label, radius=1e-9)
    prove_below, asked_for = provers.prove_below, []

    def seen(subject: Any, tasks: Any, settings: Any, linear: bool, until: float) -> Any:
        asked_for.extend([linear] * len(tasks))
        return prove_below(subject, tasks, settings, linear, until)

    monkeypatch.setattr(provers, "prove_below", seen)
    if dear:
        monkeypatch.setattr(provers, "work_of", lambda bounds: math.inf)
    if not far:
        monkeypatch.setattr(provers, "_BEYOND", math.inf)
    (row,) = lipcert.certify(model, x, label, radius=1.0, budget=2.0)
    assert row.status != "certified"
    assert asked_for[0] == (far and not dear)
    assert alone.status == "certified"


SIZES = [1e-12, 1e12, 1e-150, 1e150]


@pytest.mark.parametrize("size", [1e12, *(pytest.param(s, marks=pytest.mark.slow) for s in SIZES[:1] + SIZES[2:])])
@pytest.mark.parametrize("norm", [2, *(pytest.param(p, marks=pytest.mark.slow) for p in (1, math.inf))])
def test_weights_of_every_size(size: float, norm: float) -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=DOUBLE) * size
    model = affine(weight, torch.tensor([1.0, 0.0], dtype=DOUBLE))
    (row,) = lipcert.certify(model, torch.zeros(1, 2, dtype=DOUBLE), [0], norm=norm)
    exact = 1.0 / ({1: 3.0, 2: math.sqrt(13.0), math.inf: 5.0}[norm] * size)
    assert 0.99 * exact < row.certified_radius <= exact * (1 + 1e-15)
    assert row.attacked_radius >= exact * (1 - 1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("inside", [False, True])
def test_scales_per_channel_and_normalisation_inside(norm: float, inside: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    mean, std = torch.tensor([0.1, 0.2, 0.3], dtype=DOUBLE), torch.tensor([0.01, 0.5, 7.0], dtype=DOUBLE)
    weight = torch.randn(3, 12, dtype=DOUBLE, generator=generator)
    bias = torch.randn(3, dtype=DOUBLE, generator=generator)
    x = torch.rand(4, 3, 2, 2, dtype=DOUBLE, generator=generator)
    scores = ((x - mean[:, None, None]) / std[:, None, None]).flatten(1) @ weight.T + bias
    own = (weight.reshape(3, 3, 4) / std[:, None]).reshape(3, 12)
    labels = scores.argmax(1)

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = affine(weight, bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.model((x - mean[:, None, None]) / std[:, None, None])

    model = Normalised().eval() if inside else affine(weight, bias)
    rows = lipcert.certify(model, x, labels, norm=norm, scale=None if inside else (mean, std))
    for row, s in zip(rows, scores, strict=True):
        k = row.label
        exact = min(float((s[k] - s[j]) / (own[k] - own[j]).norm(p=DUAL[norm])) for j in range(3) if j != k)
        assert 0.99 * exact < row.certified_radius <= exact * (1 + 1e-12)
        assert row.attacked_radius >= exact * (1 - 1e-12)
    rows.verify(model, x, labels)


def within_limits(weight: Tensor, margin: float, room: Tensor, norm: float) -> float:
    """Where the margin ends that falls by weight·d at most, |d|_p ≤ r and 0 ≤ d ≤ room, or inf."""
    weight = weight.abs()
    if float((weight * room).sum()) < margin:
        return math.inf
    if norm == 1:
        spent = 0.0
        for w, most in sorted(zip(weight.tolist(), room.tolist(), strict=True), reverse=True):
            if w * most >= margin:
                return spent + margin / w
            margin, spent = margin - w * most, spent + most
    low, high = 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        moved = torch.minimum(room, torch.full_like(room, middle) if norm == math.inf else middle * weight)
        low, high = (low, middle) if float((weight * moved).sum()) >= margin else (middle, high)
    moved = torch.minimum(room, torch.full_like(room, high) if norm == math.inf else high * weight)
    return float(moved.norm(p=norm))


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_limits_cut_the_ball_where_they_should(norm: float) -> None:
    """Two classes of a linear function, at points on the limits: distances within the box are known."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(2, 6, dtype=DOUBLE, generator=generator)
    model = affine(weight, torch.tensor([0.3, 0.0], dtype=DOUBLE))
    x = torch.rand(8, 6, dtype=DOUBLE, generator=generator).round(decimals=1)
    x[:4] = x[:4].round()  # corners
    scores = x @ weight.T + torch.tensor([0.3, 0.0], dtype=DOUBLE)
    labels = scores.argmax(1)
    rows = lipcert.certify(model, x, labels, norm=norm, clip=(0, 1))
    for row, s, point in zip(rows, scores, x, strict=True):
        falls = weight[row.label] - weight[1 - row.label]
        room = torch.where(falls > 0, point, 1.0 - point)
        exact = within_limits(falls, float(s[row.label] - s[1 - row.label]), room, norm)
        assert row.certified_radius <= exact * (1 + 1e-9)
        assert row.attacked_radius >= exact * (1 - 1e-9)
        whole = float(s[row.label] - s[1 - row.label]) / float(falls.norm(p=DUAL[norm]))
        assert row.certified_radius >= 0.99 * whole  # the ball alone
    rows.verify(model, x, labels)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.1), nn.ELU(), nn.SiLU()])
def test_one_hidden_unit(norm: float, activation: nn.Module, recwarn: pytest.WarningsRecorder) -> None:
    """The class changes where the unit's argument passes the number at which φ is 0.3."""
    generator = torch.Generator().manual_seed(7)
    unit = torch.randn(1, 5, dtype=DOUBLE, generator=generator)
    edge, other = 0.0, 4.0
    for _ in range(80):
        middle = torch.tensor((edge + other) / 2, dtype=DOUBLE)
        edge, other = (edge, float(middle)) if float(activation(middle)) >= 0.3 else (float(middle), other)
    x = torch.randn(5, 5, dtype=DOUBLE, generator=generator)
    for sign in (1.0, -1.0):
        model = nn.Sequential(nn.Linear(5, 1, bias=False), activation, nn.Linear(1, 2)).double().eval()
        model[0].weight.data = unit.clone()
        model[2].weight.data = torch.tensor([[sign], [0.0]], dtype=DOUBLE)
        model[2].bias.data = torch.tensor([-0.3 * sign, 0.0], dtype=DOUBLE)
        rows = lipcert.certify(model, x, right_labels(model, x), norm=norm)
        for row, argument in zip(rows, (x @ unit.T)[:, 0].tolist(), strict=True):
            exact = abs(argument - edge) / float(unit.norm(p=DUAL[norm]))
            assert 0.99 * exact < row.certified_radius <= exact * (1 + 1e-12)
            assert row.attacked_radius >= exact * (1 - 1e-12)
    assert not [str(warning.message) for warning in recwarn]  # a search that breaks warns and goes on


# -- inputs and the process ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_inputs_of_any_precision_repeated_and_alone(dtype: torch.dtype, arithmetic: str) -> None:
    model = linear()
    x = (points(3) * 4).to(dtype)
    x = torch.cat([x, x[:1]])
    x = x.float().double() if dtype == torch.float64 else x
    labels = right_labels(model, x.float())
    rows = lipcert.certify(model, x, labels, arithmetic=arithmetic)  # type: ignore[arg-type]
    assert rows[0].certified_radius == rows[3].certified_radius
    for row, point in zip(rows, x.double(), strict=True):
        exact = float(distances(point, row.label, 2.0).min())
        assert row.certified_radius <= exact
        assert row.attacked_radius >= exact * (1 - 1e-12)
    alone = lipcert.certify(model, x[:1], labels[:1], arithmetic=arithmetic)  # type: ignore[arg-type]
    assert alone[0].certified_radius == pytest.approx(rows[0].certified_radius, rel=0.01)


STATES = ["double", "half", "inference", "no grad", "deterministic", "flush", "autocast", "device"]


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_states_of_the_process_change_no_radius(state: str, tmp_path: Path) -> None:
    model, x = mlp(0), points(3, 0, (6,))
    labels = right_labels(model, x)
    expected = lipcert.certify(model, x, labels, radius=0.1, effort=0.1)
    modes: dict[str, Any] = {
        "inference": torch.inference_mode(), "no grad": torch.no_grad(), "device": torch.device("meta"),
        "autocast": torch.autocast("cpu", torch.bfloat16),
    }  # fmt: skip
    try:
        if state in ("double", "half"):
            torch.set_default_dtype(torch.float64 if state == "double" else torch.float16)
        torch.use_deterministic_algorithms(state == "deterministic")
        torch.set_flush_denormal(state == "flush")
        with modes.get(state, torch.enable_grad()):
            found = lipcert.certify(model, x, labels, radius=0.1, effort=0.1)
            found.save(tmp_path / "run")
            lipcert.Certification.load(tmp_path / "run").verify(model, x, labels)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        torch.set_flush_denormal(False)
    for one, other in zip(found, expected, strict=True):
        assert (one.status, one.certified_radius, one.predicted) == (
            other.status,
            other.certified_radius,
            other.predicted,
        )
    expected.verify(model)


@pytest.mark.parametrize("direction", [0x400, pytest.param(0x800, marks=pytest.mark.slow)])
def test_another_rounding_is_refused(direction: int) -> None:
    library = ctypes.CDLL(None)
    rows = lipcert.certify(linear(), points(1), right_labels(linear(), points(1)), radius=1e-3)
    assert library.fesetround(direction) == 0
    try:
        with pytest.raises(lipcert.LipcertError, match="round to nearest"):
            lipcert.certify(linear(), points(1), [0], radius=1e-3)
        with pytest.raises(lipcert.LipcertError, match="round to nearest"):
            rows.verify(linear())
    finally:
        library.fesetround(0)


@pytest.mark.slow
def test_workers_and_a_killed_run_give_the_same_radii(tmp_path: Path) -> None:
    model, x = mlp(0), points(6, 0, (6,))
    labels = right_labels(model, x)
    expected = lipcert.certify(model, x, labels, radii=(0.05, 0.2), effort=0.1)
    runs: list[dict[str, Any]] = [{"workers": 2}, {"resume": tmp_path / "run"}]
    for settings in runs:
        found = lipcert.certify(model, x, labels, radii=(0.05, 0.2), effort=0.1, **settings)
        assert [(r.status, r.certified_radius, r.attacked_radius) for r in found] == [
            (r.status, r.certified_radius, r.attacked_radius) for r in expected
        ]
        found.verify(model, x, labels)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_every_attacked_radius_holds_its_counter_example(norm: float) -> None:
    """In exact arithmetic: the stored point's distance, its limits, and that the class has changed there."""
    model, x = linear(), points(6)
    labels = right_labels(model, x)
    rows = lipcert.certify(model, x, labels, norm=norm, clip=(0, 2))
    weights = [[Fraction(v) for v in row] for row in model.weight.tolist()]  # type: ignore[operator]
    for decision in rows._store.decisions():
        row = decision.row
        assert decision.counter is not None
        point = [Fraction(v) for v in struct.unpack("<3d", decision.counter)]
        gaps = [abs(a - Fraction(b)) for a, b in zip(point, x[row.index].tolist(), strict=True)]
        length = {1: sum(gaps), math.inf: max(gaps)}.get(norm)
        radius = Fraction(row.attacked_radius)
        assert sum(g * g for g in gaps) <= radius**2 if length is None else length <= radius
        assert all(0 <= v <= 2 for v in point)
        offsets = [Fraction(v) for v in model.bias.tolist()]  # type: ignore[operator]
        scores = [
            sum(w * v for w, v in zip(own, point, strict=True)) + b for own, b in zip(weights, offsets, strict=True)
        ]
        assert max(s for k, s in enumerate(scores) if k != row.label) >= scores[row.label]
