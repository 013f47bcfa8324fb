"""The file of a run: whatever happens to the process, what is finished stays, and nothing is done twice."""

import contextlib
import json
import math
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lipcert
from lipcert.robustness.rows import Decision, Row, Status
from lipcert.robustness.store import Store
from tests.robustness.cases import linear, mlp, points, right_labels

ABOUT = {
    "model": "m", "data": "d", "settings": '{"seed": 0, "threat": {"norm": 2}}', "version": "1", "count": "3",
    "shape": "[3]", "batch": "2",
}  # fmt: skip


def decision(index: int, size: int = 10) -> Decision:
    row = Row(index, 1, 1, "certified", 0.5, float("inf"), 0.25, "pair_constants", "rigorous", 0.125)
    return Decision(row, b"", b"e" * size, None)


def test_what_is_added_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = Store.open(path, ABOUT)
    store.share({"constants": b"abc"})
    for index in (2, 0):
        store.add(decision(index))
    store.close()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    store = Store.open(path, ABOUT)
    assert store.finished() == {0, 2}
    assert store.shared("constants") == b"abc"
    assert [d.row for d in store.decisions()] == [decision(0).row, decision(2).row]
    with pytest.raises(lipcert.StoreError):  # nothing is done twice, and nothing replaced
        store.add(decision(2))
    store.close()


@pytest.mark.parametrize(
    ("name", "text"), [("model", "another model"), ("data", "other data"), ("version", "another version")]
)
def test_a_file_of_another_run_is_refused(tmp_path: Path, name: str, text: str) -> None:
    Store.open(tmp_path / "run", ABOUT).close()
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(lipcert.StoreError, match=text):
        Store.open(tmp_path / "run", {**ABOUT, name: "x"})
    assert (tmp_path / "run").read_bytes() == before


def test_other_settings_are_named(tmp_path: Path) -> None:
    Store.open(tmp_path / "run", ABOUT).close()
    with pytest.raises(lipcert.StoreError, match="seed: 0 there, 1 now"):
        Store.open(tmp_path / "run", {**ABOUT, "settings": '{"seed": 1, "threat": {"norm": 2}}'})


def other_settings(**changed: object) -> dict[str, str]:
    settings = {"seed": 0, "budget": 1.0, "effort": 1.0, "threat": {"norm": 2}, **changed}
    return {**ABOUT, "settings": json.dumps(settings)}


RADII = (0.75,)


def at(index: int, status: Status, certified: float, attacked: float, seconds: float) -> Decision:
    method = "cost_to_go" if certified else "none" if attacked == math.inf else "attack"
    row = Row(index, 1, 1, status, certified, attacked, 0.1, method, "rigorous" if certified else None, seconds)
    counter = None if attacked == math.inf else b"counter"
    return Decision(
        row, b"proof %g" % certified if certified else None, b"x" if certified or counter else None, counter
    )


def test_more_time_takes_up_what_is_open_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = Store.open(path, other_settings(), RADII)
    store.add(at(0, "certified", 0.75, math.inf, 1.0))
    store.add(at(1, "open", 0.25, 1.5, 2.0))
    store.add(at(2, "open", 0.0, math.inf, 3.0))
    store.add(at(3, "attacked", 0.0, 0.7, 4.0))
    store.add(at(4, "attacked", 0.25, 0.7, 5.0))
    store.close()
    store = Store.open(path, other_settings(budget=5.0), RADII)
    assert store.finished() == {0, 3, 4}
    store.add(at(2, "open", 0.5, math.inf, 10.0))
    with pytest.raises(lipcert.StoreError):
        store.add(at(0, "certified", 0.8, math.inf, 1.0))
    store.close()  # killed here, and called again: what was taken up is not taken up twice, and the rest still waits
    store = Store.open(path, other_settings(budget=5.0), RADII)
    assert store.finished() == {0, 2, 3, 4}
    store.add(at(1, "open", 0.0, 1.2, 10.0))
    assert store.finished() == {0, 1, 2, 3, 4}
    assert [(d.row.certified_radius, d.row.attacked_radius, d.row.seconds) for d in store.decisions()] == [
        (0.75, math.inf, 1.0), (0.25, 1.2, 12.0), (0.5, math.inf, 13.0), (0.0, 0.7, 4.0), (0.25, 0.7, 5.0)
    ]  # fmt: skip
    kept = list(store.decisions())[1]
    assert (kept.row.method, kept.proof, kept.counter, kept.row.status) == (
        "cost_to_go",
        b"proof 0.25",
        b"counter",
        "open",
    )
    store.close()
    for settings in (
        other_settings(budget=2.0),
        other_settings(budget=9.0, effort=0.5),
        other_settings(seed=1, budget=9.0),
    ):
        with pytest.raises(lipcert.StoreError, match=r"there, .* now"):
            Store.open(path, settings, RADII)
    with pytest.raises(lipcert.StoreError, match=r"budget: 5.0 there, 9.0 now"):
        Store.open(path, other_settings(budget=9.0))
    store = Store.open(path, other_settings(budget=5.0, effort=2.0), RADII)
    assert store.finished() == {0, 3, 4}
    store.close()


def test_a_contradiction_of_two_runs_is_said(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "run", other_settings(), RADII)
    store.add(at(0, "open", 0.5, math.inf, 1.0))
    store.close()
    store = Store.open(tmp_path / "run", other_settings(budget=2.0), RADII)
    with pytest.raises(lipcert.NumericsError, match="bug in lipcert"):
        store.add(at(0, "attacked", 0.0, 0.4, 1.0))
    assert [d.row.certified_radius for d in store.decisions()] == [0.5]
    store.close()


@pytest.mark.parametrize("column", ["certified_radius", "attacked_radius", "margin", "seconds"])
@pytest.mark.parametrize("value", ["abc", b"1.5", "1e400x"])
def test_a_number_that_is_none_is_named(tmp_path: Path, column: str, value: str | bytes) -> None:
    path = tmp_path / "run"
    store = Store.open(path, other_settings(), RADII)
    store.add(at(0, "open", 0.5, math.inf, 1.0))
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE decisions SET {column} = ?", (value,))
    with pytest.raises(lipcert.StoreError, match="damaged"):
        list(Store.read(path).rows())
    with pytest.raises(lipcert.StoreError, match="damaged"):
        Store.open(path, other_settings(budget=2.0), RADII)


@pytest.mark.parametrize("held", ["null", "5", "[1]", "[[1]]", "[" * 100_000, '{"a":' * 100_000])
def test_damaged_settings(tmp_path: Path, held: str) -> None:
    path = tmp_path / "run"
    Store.open(path, other_settings(), RADII).close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE about SET value = ? WHERE name = 'settings'", (held,))
    with pytest.raises(lipcert.StoreError, match="other settings"):
        Store.open(path, other_settings(budget=2.0), RADII)


def test_more_time_is_not_on_record_until_it_was_used(tmp_path: Path) -> None:
    """Nothing was decided with it: one may go back to less."""
    path = tmp_path / "run"
    store = Store.open(path, other_settings(), RADII)
    store.add(at(0, "open", 0.5, math.inf, 1.0))
    store.add(at(1, "open", 0.5, math.inf, 1.0))
    store.close()
    Store.open(path, other_settings(budget=36_000.0), RADII).close()
    store = Store.open(path, other_settings(), RADII)
    assert store.finished() == {0, 1}
    store.close()
    store = Store.open(path, other_settings(budget=5.0), RADII)
    store.add(at(2, "open", 0.5, math.inf, 1.0))  # one that had not been begun
    store.close()
    with pytest.raises(lipcert.StoreError, match=r"budget: 5\.0 there, 1\.0 now"):
        Store.open(path, other_settings(), RADII)
    store = Store.open(path, other_settings(budget=5.0), RADII)
    assert store.finished() == {2}
    store.close()


def test_another_class_than_before(tmp_path: Path) -> None:
    """As where another machine's float32 calls a tie otherwise."""
    store = Store.open(tmp_path / "run", other_settings(), RADII)
    store.add(at(0, "open", 0.0, math.inf, 1.0))
    store.add(at(1, "open", 0.5, math.inf, 1.0))
    store.close()
    store = Store.open(tmp_path / "run", other_settings(budget=2.0), RADII)
    wrong = [Decision(Row(k, 1, 0, "wrong", 0.0, 0.0, -1e-9, "clean", None, 1.0)) for k in range(2)]
    store.add(wrong[0])
    with pytest.raises(lipcert.StoreError, match="another machine"):
        store.add(wrong[1])
    assert [(d.row.status, d.row.predicted, d.row.seconds) for d in store.decisions()] == [
        ("wrong", 0, 2.0),
        ("open", 1, 1.0),
    ]
    store.add(at(1, "certified", 0.75, math.inf, 1.0))  # what failed changed nothing
    store.close()


def test_an_object_saves_its_own_rows_or_none(tmp_path: Path) -> None:
    model, x = mlp(), points(4, size=(6,))
    y, path = right_labels(model, x), tmp_path / "run.sqlite"
    first = lipcert.certify(model, x, y, radii=(0.05, 0.3), resume=path, budget=1e-6)
    first.save(tmp_path / "first")
    second = lipcert.certify(model, x, y, radii=(0.05, 0.3), resume=path, budget=10.0)
    if list(first) != list(second):
        with pytest.raises(lipcert.StoreError, match="changed after it was read"):
            first.save(tmp_path / "again")
    second.save(tmp_path / "second")
    assert list(lipcert.Certification.load(tmp_path / "second")) == list(second)


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_a_tie_with_another_label_is_kept_and_read(tmp_path: Path, arithmetic: Any) -> None:
    """Its margin is 0, or −0: a hash over −0 did not fit what a database gives back."""
    model = nn.Linear(2, 2).eval()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    x, y = torch.tensor([[0.875, 0.125], [0.5, 0.5], [0.25, 0.75]]), torch.tensor([0, 1, 1])
    for _ in range(2):
        found = lipcert.certify(model, x, y, radius=0.1, resume=tmp_path / "run", arithmetic=arithmetic)
    assert found[1].status == "wrong"
    assert math.copysign(1.0, found[1].margin) == 1.0
    found.verify(model, x, y)


@pytest.mark.parametrize("held", ["", "x", "{}", '["a"]', "[1.5]", "[true]", "[1]", "[-1]", "[" * 100_000])
def test_a_damaged_list_of_what_is_taken_up(tmp_path: Path, held: str) -> None:
    path = tmp_path / "run"
    store = Store.open(path, other_settings(), RADII)
    store.add(at(0, "open", 0.5, math.inf, 1.0))
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO about VALUES ('again', ?)", (held,))
    with pytest.raises(lipcert.StoreError, match="damaged"):
        Store.open(path, other_settings(budget=2.0), RADII)


def test_open_examples_get_more_time(tmp_path: Path) -> None:
    """Of a run whose time was too short; decided rows stay to the letter, and the whole is verified."""
    model, x = mlp(), points(12, size=(6,))
    y, path = right_labels(model, x), tmp_path / "run.sqlite"
    short = lipcert.certify(model, x, y, radii=(0.05, 0.3), resume=path, budget=1e-6)
    some = {row.index for row in short if any(row.status_at(r) == "open" for r in (0.05, 0.3))}
    assert some
    longer = lipcert.certify(model, x, y, radii=(0.05, 0.3), resume=path, budget=30.0)
    fresh = lipcert.certify(model, x, y, radii=(0.05, 0.3), budget=30.0)
    longer.verify(model, x, y)
    for before, after, anew in zip(short, longer, fresh, strict=True):
        if before.index not in some:
            assert after == before
        assert after.certified_radius >= before.certified_radius
        assert (after.status, after.certified_radius) == (anew.status, anew.certified_radius)
    with pytest.raises(lipcert.StoreError, match="budget"):
        lipcert.certify(model, x, y, radii=(0.05, 0.3), resume=path, budget=1.0)
    wide = tmp_path / "wide.sqlite"
    lipcert.certify(model, x[:1], y[:1], resume=wide, budget=0.1)
    with pytest.raises(lipcert.StoreError, match="budget"):  # a largest radius is never open
        lipcert.certify(model, x[:1], y[:1], resume=wide, budget=5.0)


def test_runs_of_certify_are_told_apart(tmp_path: Path) -> None:
    model, x = linear(), points(4)
    y = right_labels(model, x)
    path = tmp_path / "run.sqlite"
    first = lipcert.certify(model, x, y, radius=0.1, resume=path)
    again = lipcert.certify(model, x, y, radius=0.1, resume=path, workers=2, memory=1.0)
    assert again.table().rsplit("\n", 1)[0] == first.table().rsplit("\n", 1)[0]
    other = linear()
    other.bias.data[0] += 1e-3
    for arguments, options, text in (
        ((other, x, y), {}, "another model"), ((model, x + 1e-3, y), {}, "other data"),
        ((model, x.flip(0), y.flip(0)), {}, "other data"), ((model, x, y), {"radius": 0.2}, "radii"),
        ((model, x, y), {"seed": 1}, "seed: 0 there, 1 now"), ((model, x, y), {"clip": (0, 1)}, "clip"),
        ((model, x, y), {"norm": 1}, "norm"), ((model, x, y), {"scale": (0.0, 2.0)}, "another model"),
    ):  # fmt: skip
        with pytest.raises(lipcert.StoreError, match=text):
            lipcert.certify(*arguments, **{"radius": 0.1, "resume": path, **options})
    assert (
        lipcert.Certification.load(path).table()
        == lipcert.certify(model, x, y, radius=0.1, resume=path).table().rsplit("\n", 1)[0]
    )


def test_only_one_run_writes(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "run", ABOUT)
    with pytest.raises(lipcert.StoreError, match="another run has it open"):
        Store.open(tmp_path / "run", ABOUT)
    store.add(decision(0))
    store.close()
    Store.open(tmp_path / "run", ABOUT).close()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a database", b"SQLite format 3\x00" + b"\x07" * 5000])
def test_a_file_of_something_else_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run"
    path.write_bytes(content)
    if not content:  # an empty file is an empty database: a run may begin there
        Store.open(path, ABOUT).close()
        return
    with pytest.raises(lipcert.StoreError, match=r"damaged|no file of a"):
        Store.open(path, ABOUT)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(lipcert.StoreError, match="no file of a certification run"):
        Store.open(path, ABOUT)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    connection.close()


def test_a_trigger_in_a_file_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = Store.open(path, ABOUT)
    store.add(decision(0))
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TRIGGER t AFTER INSERT ON decisions BEGIN DELETE FROM decisions; END")
    connection.close()
    with pytest.raises(lipcert.StoreError, match="no file of a certification run"):
        Store.open(path, ABOUT)
    with pytest.raises(lipcert.StoreError, match="no file of a certification run"):
        Store.read(path)


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = Store.open(path, ABOUT)
    store.add(decision(0))
    store.close()
    for change in (
        "margin = margin * 2",
        "label = 'one'",
        "certified_radius = -1.0",
        "status = 'sure'",
        "proof = x'00'",
    ):
        with sqlite3.connect(path) as connection:
            connection.execute(f"UPDATE decisions SET {change}")
        connection.close()
        store = Store.read(path)
        with pytest.raises(lipcert.StoreError, match="row 0 does not match its hash"):
            list(store.decisions())
        store.close()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(lipcert.StoreError, match="its folder must exist"):
        Store.open(tmp_path / "missing" / "run", ABOUT)
    with pytest.raises(lipcert.StoreError, match="is a folder"):
        Store.open(tmp_path, ABOUT)
    model, x = linear(), points(2)
    with pytest.raises(lipcert.StoreError, match="its folder must exist"):
        lipcert.certify(model, x, right_labels(model, x), radius=0.1, resume=tmp_path / "missing" / "run")


def test_a_full_disk_is_named_and_what_was_finished_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = Store.open(path, ABOUT)
    store._execute("PRAGMA max_page_count = 40")  # SQLite's own way to be out of space
    done = 0
    with pytest.raises(lipcert.StoreError, match="make space"):  # noqa: PT012
        for index in range(100):
            store.add(decision(index, 10_000))
            done += 1
    assert 0 < done < 100
    store.close()
    store = Store.open(path, ABOUT)
    assert store.finished() == set(range(done))
    store.add(decision(done, 10_000))
    store.close()


LIMITED = """
import resource, sys
from tests.robustness.test_store import ABOUT, decision
from lipcert.robustness.store import Store
import lipcert
store = Store.open(sys.argv[1], ABOUT)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for index in range(100):
        store.add(decision(index, 10_000))
        print(index, flush=True)
except lipcert.StoreError as problem:
    print("named:", problem, flush=True)
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The kernel refuses the write, as on a full disk or over a quota."""
    path = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True)
    *indices, last = done.stdout.split("\n")[:-1]
    assert last.startswith("named:")
    assert "cannot be written" in last
    store = Store.open(path, ABOUT)
    assert store.finished() == {int(i) for i in indices}
    assert len(list(store.decisions())) == len(indices) > 0
    store.close()


def run_in_child(path: Path, workers: int, said: Connection) -> None:
    """A run that tells of every row once it is written, and takes its time."""
    add = Store.add

    def slowly(self: Store, decision: Decision) -> None:
        add(self, decision)
        said.send(decision.row.index)
        time.sleep(0.01)

    Store.add = slowly  # type: ignore[method-assign]
    torch.set_num_threads(1)
    certified(path, workers)
    said.send("end")


def certified(path: Path | None, workers: int = 1) -> lipcert.Certification:
    model, x = mlp(1), points(30, 1, (6,))
    y = right_labels(model, x)
    return lipcert.certify(model, x, y, radius=0.15, effort=0.1, memory=1e-5, resume=path, workers=workers)


@pytest.mark.few(1)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_killed_goes_on(tmp_path: Path, workers: int) -> None:
    """SIGKILL after a random number of rows, again and again: the rows of an uninterrupted run, each decided once."""
    path, chance, context = tmp_path / "run.sqlite", random.Random(workers), multiprocessing.get_context("fork")
    told: list[int | str] = []
    kills = 0
    while "end" not in told:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=run_in_child, args=(path, workers, theirs))
        child.start()
        theirs.close()
        wanted = chance.randint(1, 8)
        with contextlib.suppress(EOFError):
            for _ in range(wanted):
                told.append(ours.recv())
                if told[-1] == "end":
                    break
            time.sleep(chance.random() * 0.02)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
            while True:  # what it had said before; ends once its workers are gone, too
                told.append(ours.recv())
        child.join()
        assert {i for i in told if i != "end"} <= read_finished(path)
    assert kills > 3
    rows = [i for i in told if i != "end"]
    assert len(rows) == len(set(rows))  # nothing is done twice
    resumed, whole = certified(path), certified(None)
    key = [[(r.index, r.status, r.certified_radius, r.attacked_radius, r.margin, r.method) for r in rows]
           for rows in (whole, resumed)]  # fmt: skip
    assert key[0] == key[1]


def read_finished(path: Path) -> set[int]:
    """What is in the file after a kill."""
    if not path.exists():
        return set()
    for _ in range(50):  # a worker that outlives its parent for a moment holds no lock, but may hold the file
        try:
            with sqlite3.connect(path) as connection:
                found = {i for (i,) in connection.execute('SELECT "index" FROM decisions')}
            connection.close()
            return found
        except sqlite3.OperationalError as problem:
            if "no such table" in str(problem):
                return set()
            time.sleep(0.1)
    raise AssertionError("the file of a killed run stays locked")


def test_an_interrupted_run_is_no_certification_yet(tmp_path: Path) -> None:
    model, x = linear(), points(3)
    y = right_labels(model, x)
    path = tmp_path / "run"
    lipcert.certify(model, x, y, radius=0.1, resume=path)
    with sqlite3.connect(path) as connection:
        connection.execute('DELETE FROM decisions WHERE "index" = 1')
    connection.close()
    with pytest.raises(lipcert.StoreError, match=r"2 of 3 examples.*resume="):
        lipcert.Certification.load(path)
    assert len(lipcert.certify(model, x, y, radius=0.1, resume=path)) == 3


def test_an_error_leaves_the_file_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = linear(), points(3)
    y = right_labels(model, x)
    from lipcert.robustness.cascade import Cascade

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Cascade, "decide", broken)
        with pytest.raises(KeyboardInterrupt):
            lipcert.certify(model, x, y, radius=0.1, resume=tmp_path / "run")
    assert len(lipcert.certify(model, x, y, radius=0.1, resume=tmp_path / "run")) == 3
    assert torch.equal(x, points(3))
