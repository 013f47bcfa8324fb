"""Where batches are decided: in this process, in worker processes on this machine, or on a Ray cluster.

An engine only decides where a batch runs, never how: the same batches give the same rows everywhere. A worker that dies
is replaced, and what it had not yet reported is decided again.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, ClassVar, Protocol

import torch

from lipcert.arguments import whole
from lipcert.errors import EngineError, InputError, LipcertError
from lipcert.robustness.cascade import Batch, Decider
from lipcert.robustness.rows import Decision

#: How often the same batch may end a worker before it is taken apart, and a single example before the run ends.
TRIES = 3


class Engine(Protocol):
    """Runs batches and hands on decisions in whatever order they come."""

    def run(self, decider: Decider, batches: Iterable[Batch]) -> Iterator[Decision]:
        """Every wanted example of every batch once.

        Raises:
            EngineError: workers cannot be had, or one example ends every worker.
        """


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """This machine: in this process, or in ``workers`` forked ones with one thread each.

    Attributes:
        workers: how many processes; 1: none beside this one.
    """

    name: ClassVar[str] = "local"

    workers: int = 1

    def __post_init__(self) -> None:
        count = whole(self.workers)
        if count is None or count < 1:
            raise InputError(f"workers must be a whole number from 1, not {self.workers!r}.")
        if count > 1 and "fork" not in multiprocessing.get_all_start_methods():
            raise InputError(
                "workers > 1 needs a system that can fork processes; here use engine='ray', or one worker."
            )

    def run(self, decider: Decider, batches: Iterable[Batch]) -> Iterator[Decision]:
        """See ``Engine``."""
        if self.workers == 1:
            for batch in batches:
                yield from decider.decide(batch)
        elif torch.cuda.is_available():
            raise EngineError(
                "workers > 1 fork this process, and PyTorch's gradients cannot be used in a fork where it sees a GPU. "
                "Start Python with CUDA_VISIBLE_DEVICES= (empty), or use one worker, or engine='ray'."
            )
        else:
            yield from _Pool(decider, batches, self.workers).run()


class _Worker:
    """A forked process, the pipe to it, and the batch that it has."""

    def __init__(self, decider: Decider, others: Sequence[_Worker]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        inherited = [self.pipe, *(w.pipe for w in others)]
        self.process = context.Process(target=_serve, args=(decider, theirs, inherited), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child starts none of them
            self.process.start()
        theirs.close()  # now only the child has it: its death ends the pipe
        self.batch: Batch | None = None
        self.left: set[int] = set()

    def give(self, batch: Batch) -> None:
        self.batch, self.left = batch, set(batch.wanted)
        with suppress(OSError):  # it is dead: told when its end is seen
            self.pipe.send(batch)

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


class _Queue:
    """Batches to come, those that were lost first; a batch is made when it is wanted."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._coming = iter(batches)
        self._back: list[Batch] = []

    def give_back(self, batches: Sequence[Batch]) -> None:
        self._back += batches

    def next(self) -> Batch | None:
        return self._back.pop() if self._back else next(self._coming, None)


class _Pool:
    def __init__(self, decider: Decider, batches: Iterable[Batch], count: int) -> None:
        self.decider, self.count, self.queue = decider, count, _Queue(batches)
        self.deaths: dict[frozenset[int], int] = {}
        self.workers: list[_Worker] = []

    def run(self) -> Iterator[Decision]:
        try:
            while self._hand_out():
                for ready in wait([w.pipe for w in self.workers if w.batch]):
                    worker = next(w for w in self.workers if w.pipe is ready)
                    yield from self._listen(worker)
        finally:
            for worker in self.workers:
                worker.stop()

    def _hand_out(self) -> bool:
        """Give every free worker a batch; whether any has one."""
        while (busy := sum(w.batch is not None for w in self.workers)) < self.count:
            batch = self.queue.next()
            if batch is None:
                return busy > 0
            free = next((w for w in self.workers if w.batch is None), None)
            if free is None:
                free = _Worker(self.decider, self.workers)
                self.workers.append(free)
            free.give(batch)
        return True

    def _listen(self, worker: _Worker) -> Iterator[Decision]:
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._bury(worker)
            return
        if kind == "failed":
            raise content
        if kind == "done":
            worker.batch = None
        elif content.row.index in worker.left:
            worker.left.discard(content.row.index)
            yield content

    def _bury(self, worker: _Worker) -> None:
        """A worker died: its batch goes back, without what it reported."""
        batch, left = worker.batch, frozenset(worker.left)
        worker.stop()
        self.workers.remove(worker)
        assert batch is not None
        if left:
            lost = replace(batch, wanted=left)
            self.queue.give_back(again(lost, self.deaths, _reason(worker.process.exitcode)))


def again(batch: Batch, deaths: dict[frozenset[int], int], reason: str) -> list[Batch]:
    """What is to be tried after a batch ended its worker: the same, or after some tries its halves.

    Raises:
        EngineError: it is one example, and no worker survives it.
    """
    deaths[batch.wanted] = deaths.get(batch.wanted, 0) + 1
    if deaths[batch.wanted] < TRIES:
        return [batch]
    if len(batch.wanted) == 1:
        raise EngineError(
            f"example {min(batch.wanted)} ended its worker {TRIES} times ({reason}). What was finished is kept if the "
            "run has a file (resume=); leave the example out, or give a smaller memory=."
        )
    wanted = sorted(batch.wanted)
    half = len(wanted) // 2
    return [replace(batch, wanted=frozenset(part)) for part in (wanted[half:], wanted[:half])]


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"signal {name}" + (": the system may have run out of memory" if name == "SIGKILL" else "")
    return f"exit code {code}"


def _serve(decider: Decider, pipe: Connection[Any, Any], inherited: Sequence[Connection[Any, Any]]) -> None:
    """What a worker does until its parent is gone."""
    for other in inherited:  # else this process would keep the parent's ends open when the parent is killed
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            batch = pipe.recv()
            try:
                for decision in decider.decide(batch):
                    pipe.send(("decided", decision))
            except OSError:
                raise
            except Exception as problem:
                pipe.send(("failed", _sendable(problem)))
            pipe.send(("done", None))


def _sendable(problem: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(problem))
        return problem
    except Exception:
        return LipcertError(f"{type(problem).__name__}: {problem}")


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """A Ray cluster, or this machine as one: a task per batch, rows as they come (extra ``ray``).

    Attributes:
        address: of a running cluster, as ``ray.init`` takes it; None: the one this process is connected to, or
            ``RAY_ADDRESS``, or a new one on this machine.
    """

    name: ClassVar[str] = "ray"

    address: str | None = None

    def run(self, decider: Decider, batches: Iterable[Batch]) -> Iterator[Decision]:
        """See ``Engine``."""
        ray = _ray()
        if not ray.is_initialized():
            options: dict[str, Any] = {} if self.address is None else {"address": self.address}
            if self.address is None and "RAY_ADDRESS" not in os.environ:
                options["include_dashboard"] = False
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
        # Ray retries a task whose worker died and drops what was handed on before; anything twice is dropped here
        task = ray.remote(num_cpus=1, max_retries=TRIES, num_returns="streaming")(_decided)
        where = ray.put(decider)
        queue = _Queue(batches)
        running: dict[Any, Batch] = {}
        seen: set[int] = set()
        most = max(1, 2 * int(ray.cluster_resources().get("CPU", 1)))
        try:
            while True:
                while len(running) < most and (batch := queue.next()) is not None:
                    running[task.remote(where, batch)] = batch
                if not running:
                    return
                (ready,), _ = ray.wait(list(running), num_returns=1)
                try:
                    kind, content = ray.get(next(ready))
                except StopIteration:
                    del running[ready]
                    continue
                except ray.exceptions.RayError as problem:
                    left = sorted(running[ready].wanted - seen)
                    raise EngineError(
                        f"examples {left[0] if left else '?'} to {left[-1] if left else '?'} were lost with their "
                        f"workers ({type(problem).__name__}: {str(problem)[:300]}). What was finished is kept if the "
                        "run has a file (resume=)."
                    ) from problem
                if kind == "failed":
                    raise content
                if content.row.index not in seen:
                    seen.add(content.row.index)
                    yield content
        finally:
            for reference in running:
                with suppress(Exception):
                    ray.cancel(reference, force=True)


def _decided(decider: Decider, batch: Batch) -> Iterator[tuple[str, Any]]:
    torch.set_num_threads(1)
    try:
        for decision in decider.decide(batch):
            yield "decided", decision
    except Exception as problem:
        yield "failed", _sendable(problem)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("engine='ray' needs Ray: pip install 'lipcert[ray]'; or take engine='local'.") from None
    return ray


def engine_of(engine: Any, workers: int) -> Engine:
    """An engine from its name, or an engine itself.

    Raises:
        InputError: there is none of this name.
    """
    if engine == "local":
        return LocalEngine(workers=workers)
    if engine == "ray":
        _ray()
        return RayEngine()
    if hasattr(engine, "run") and not isinstance(engine, type):
        return engine
    raise InputError(f"engine must be 'local', 'ray' or an engine, as lipcert.RayEngine(), not {engine!r:.60}.")
