"""Engines: the same rows wherever they run, whatever dies on the way."""

import os
import signal
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lipcert
from lipcert.robustness.cascade import Batch
from lipcert.robustness.engines import TRIES, LocalEngine, RayEngine
from lipcert.robustness.rows import Decision, Row
from tests.robustness.cases import mlp, points, right_labels


def batches(count: int, size: int, finished: frozenset[int] = frozenset()) -> list[Batch]:
    found = []
    for start in range(0, count, size):
        indices = tuple(range(start, min(count, start + size)))
        found.append(Batch(indices, np.zeros((len(indices), 1)), (0,) * len(indices), frozenset(indices) - finished))
    return found


def row(index: int) -> Decision:
    return Decision(Row(index, 0, 0, "open", 0.0, float("inf"), 0.0, "none", None, 0.0))


@dataclass(frozen=True)
class Deadly:
    """Decides, but the process dies at some examples, as often as there are lives in a folder of marks."""

    folder: Path
    deaths: dict[int, int]

    def decide(self, batch: Batch) -> Iterator[Decision]:
        for index in batch.indices:
            if index not in batch.wanted:
                continue
            for life in range(self.deaths.get(index, 0)):
                mark = self.folder / f"{index}.{life}"
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            (self.folder / f"log{index}.{os.getpid()}").touch()
            yield row(index)


class Refuses:
    """Raises an error of its own."""

    def decide(self, batch: Batch) -> Iterator[Decision]:
        yield row(batch.indices[0])
        raise lipcert.NumericsError("the sum of all fears")


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    decider = Deadly(tmp_path, {5: 1, 13: 2})
    found = [d.row.index for d in LocalEngine(workers=2).run(decider, batches(20, 4))]
    assert sorted(found) == list(range(20))
    for index in range(20):  # what a dead worker had reported is not decided again
        assert len(list(tmp_path.glob(f"log{index}.*"))) == 1


def test_finished_examples_are_not_decided(tmp_path: Path) -> None:
    found = [d.row.index for d in LocalEngine(workers=2).run(Deadly(tmp_path, {}), batches(9, 4, frozenset({0, 5, 8})))]
    assert sorted(found) == [1, 2, 3, 4, 6, 7]


def test_an_example_that_ends_every_worker_is_named(tmp_path: Path) -> None:
    """The others of its batch are decided before the run gives up."""
    decider = Deadly(tmp_path, {2: 100})
    found = []
    text = f"example 2 ended its worker {TRIES} times .signal SIGKILL"
    with pytest.raises(lipcert.EngineError, match=text):  # noqa: PT012
        for decision in LocalEngine(workers=2).run(decider, batches(8, 4)):
            found.append(decision.row.index)
    assert {0, 1} <= set(found)
    assert 2 not in found


def test_an_error_of_a_worker_is_the_error_of_the_run() -> None:
    with pytest.raises(lipcert.NumericsError, match="the sum of all fears"):
        list(LocalEngine(workers=2).run(Refuses(), batches(8, 4)))


def test_no_fork_where_pytorch_sees_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(lipcert.EngineError, match="CUDA_VISIBLE_DEVICES"):
        list(LocalEngine(workers=2).run(Deadly(tmp_path, {}), batches(3, 1)))
    assert len(list(LocalEngine(workers=1).run(Deadly(tmp_path, {}), batches(3, 1)))) == 3


def test_workers_end_with_the_run(tmp_path: Path) -> None:
    run = LocalEngine(workers=2).run(Deadly(tmp_path, {}), batches(40, 2))
    next(run)
    run.close()
    import multiprocessing

    assert not multiprocessing.active_children()


# -- Ray ----------------------------------------------------------------------------------------------------


class FakeRay(types.ModuleType):
    """The part of Ray's interface that the engine uses, in one process; tasks run when they are asked for an item."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

    def __init__(self, lost: int = -1) -> None:
        super().__init__("ray")
        self.lost, self.started, self.cancelled = lost, 0, 0

    def is_initialized(self) -> bool:
        return bool(self.started)

    def init(self, **options: Any) -> None:
        self.started += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Any:
        assert options["num_returns"] == "streaming"
        return lambda function: types.SimpleNamespace(remote=function)

    def wait(self, tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return [tasks[-1]], tasks[:-1]  # the last first: order must not matter

    def get(self, value: Any) -> Any:
        if value[1].row.index == self.lost:
            raise self.exceptions.RayError("the node is gone")
        return value

    def cancel(self, task: Any, force: bool) -> None:
        self.cancelled += 1


def test_rays_rows_may_come_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    found = [d.row.index for d in RayEngine().run(Deadly(tmp_path, {}), batches(10, 3, frozenset({4})))]
    assert sorted(found) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert found != sorted(found)
    assert fake.started == 1


def test_a_task_that_ray_gives_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(lost=1)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(lipcert.EngineError, match=r"examples 1 to 2 were lost .* .RayError: the node"):
        list(RayEngine().run(Deadly(tmp_path, {}), batches(3, 3)))
    assert fake.cancelled == 1


def test_an_engine_of_ones_own(tmp_path: Path) -> None:
    """Anything with ``run`` will do."""

    class Backwards:
        def run(self, decider: Any, batches: Any) -> Iterator[Decision]:
            for batch in reversed(list(batches)):
                yield from reversed(list(decider.decide(batch)))

    model, x = mlp(1), points(8, 1, (6,))
    y = right_labels(model, x)
    one = lipcert.certify(model, x, y, radius=0.15, effort=0.1, memory=1e-5)
    other = lipcert.certify(model, x, y, radius=0.15, effort=0.1, memory=1e-5, engine=Backwards())
    assert [(r.status, r.margin) for r in one] == [(r.status, r.margin) for r in other]


@pytest.mark.slow
def test_ray_itself_gives_the_same_rows_and_retries(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    model, x = mlp(0), points(12, 0, (6,))
    y = right_labels(model, x)
    try:
        local = lipcert.certify(model, x, y, radius=0.35, effort=0.1, memory=1e-5)
        remote = lipcert.certify(model, x, y, radius=0.35, effort=0.1, memory=1e-5, engine="ray")
        key = [[(r.status, r.certified_radius, r.attacked_radius, r.margin) for r in rows] for rows in (local, remote)]
        assert key[0] == key[1]
        remote.verify(model, x, y)
        found = [d.row.index for d in RayEngine().run(Deadly(tmp_path, {3: 1, 7: 2}), batches(10, 4))]
        assert sorted(found) == list(range(10))
    finally:
        ray.shutdown()
