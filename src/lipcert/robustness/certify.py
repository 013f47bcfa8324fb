"""``lipcert.certify``: which examples of a data set keep their class, with a certificate for each."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.export import ExportedProgram

from lipcert.arguments import budget_of, device_of, real, seed_of
from lipcert.capture.load import Model, prepared
from lipcert.capture.model import Output
from lipcert.certificates import kinds  # noqa: F401  (registers every check)
from lipcert.errors import InputError, StoreError
from lipcert.network.graph import Network
from lipcert.network.linear import size
from lipcert.numerics.process_state import ordinary
from lipcert.robustness.branching import Branching
from lipcert.robustness.cascade import Batch, Cascade
from lipcert.robustness.certification import Certification
from lipcert.robustness.checks import Facts
from lipcert.robustness.constants import shared_constants
from lipcert.robustness.engines import Engine, engine_of
from lipcert.robustness.examples import Examples
from lipcert.robustness.executed import Arithmetic, Rounding, arithmetic_of, captured, executed_scores, require_exact
from lipcert.robustness.pair_constants import BODY, OUTPUTS, classes_of
from lipcert.robustness.progress import shown
from lipcert.robustness.provers import CostToGo, Prover
from lipcert.robustness.store import Store
from lipcert.robustness.threat import Threat, scaled
from lipcert.robustness.verification import restored
from lipcert.robustness.widening import Widening
from lipcert.version import __version__

#: What effort and memory are at most.
_GREATEST = 1e6
#: Examples decided together at most, and numbers held per entry of a network's values and class.
_BATCH, _HELD = 64, 16
#: Steps of the search for an effort of 1, and at least; entries of a network up to which linear bounds come first, and
#: larger radii than what one search finds are tried.
_STEPS, _LEAST_STEPS, _SMALL = 300, 25, 4000
#: Budget from which on one search for the largest radii is worth its start on a small network.
_WIDE = 3.0


def certify(
    model: Model,
    inputs: Any,
    labels: Any,
    norm: float = 2,
    radius: float | None = None,
    radii: Sequence[float] | None = None,
    clip: tuple[float, float] | None = None,
    scale: tuple[Any, Any] | None = None,
    budget: float = 60.0,
    engine: str | Engine = "local",
    workers: int = 1,
    resume: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    effort: float = 1.0,
    memory: float = 2.0,
    arithmetic: Arithmetic = "real",
    output: Output = None,
) -> Certification:
    """Certify that examples keep their class under every perturbation up to a radius.

    For each example: its class; a Lipschitz constant for each pair of outputs; an attack; then the quadratic
    cost-to-go, on ranges by intervals, then by linear bounds; at given radii, branch and bound around it, which also
    finds counter-examples. The first that decides ends it, and its certificate is kept. Largest radii come of
    one search, in which multipliers and radius rise together, and on small networks of larger ones that are tried after
    it. What is certified holds for the real-valued network (rounding in the model's own forward pass is outside), or
    with ``arithmetic="float32"`` for the one that torch executes.

    Args:
        model: an ``nn.Module`` in eval mode that gives one score per class (logits), a function of tensors, an
            ExportedProgram, or the path of a ``.pt2`` or ``.onnx`` file. Never changed.
        inputs: (N, *shape) tensor or array.
        labels: (N,) whole numbers, the right classes.
        norm: of the perturbation: 1, 2 or inf.
        radius: one number; or ``radii``: several, ascending; or neither: about the largest radius of each example that
            the search proves; 1e300 where all that ``clip`` leaves is. In the units of ``inputs``.
        clip: (least, greatest): perturbed inputs count only within these limits, as (0, 1) for pixels.
        scale: (mean, std): ``inputs`` are in pixel units and the model is to be given (x − mean)/std, one number each
            or one per channel; radii and clip are those of the pixels. A model that normalises its input itself needs
            none.
        budget: seconds that the search may take per example; most take far less. Where it ends, rows stay open.
        engine: ``local``; ``ray`` (extra ``ray``); or an engine, ``lipcert.RayEngine(address=…)``.
        workers: processes of the local engine; 1: this one.
        resume: file that keeps every finished example at once. A run that was killed goes on from it when called with
            the same arguments; engine, workers, device and memory may be others. At given radii ``budget`` and
            ``effort`` may be larger than they were: then its open examples are taken up again, and nothing else.
        seed: of attack and search. The same seed gives the same rows, on every engine.
        device: where searches run; checks run on the CPU in float64.
        progress: show a progress bar with the remaining time.
        effort: multiplies the steps of the search and the random starts of the attack.
        memory: GiB that one worker may use for what grows with the number of examples.
        arithmetic: ``float32``: a row is certified where the model as torch runs it in float32 on a CPU (what that
            covers: ``execution_error``) gives its class to every float32 tensor within the radius; ``wrong`` is what
            the model run here says; counter-examples are still of the real-valued network.
        output: name or number of the output that holds the scores, where the model returns several.

    Returns:
        A ``Certification``: a row per example; ``print`` it, ``.save`` it with all certificates in one file.

    Raises:
        InputError: unusable arguments or data, named; nothing was computed.
        CaptureError: the model cannot be captured faithfully.
        UnsupportedOpError: with ``arithmetic="float32"``: an op whose execution is not known, by name.
        StoreError: the resume file is of another run, damaged, in use, or cannot be written.
        CertificateError: a constant in the resume file is not proved: it was changed, or is of another version.
        EngineError: workers cannot be had, or one example ends every worker.
    """
    started = time.perf_counter()
    threat = Threat.of(norm, radius, radii, clip, scale)
    data = Examples.of(inputs, labels)
    if threat.clip is not None:
        data.require_within(threat.clip)
    seed, place, runner = seed_of(seed), device_of(device), engine_of(engine, workers)
    seconds, times = budget_of(budget), _positive(effort, "effort")
    kind = arithmetic_of(arithmetic, threat)
    if kind == "float32":
        require_exact(data)
    settings = {
        "threat": threat.to_json(), "seed": seed, "budget": seconds, "effort": times, "arithmetic": kind
    }  # fmt: skip
    built = prepared(model, data.example(), None, output)[0]
    whole = scaled(built, threat.scale, data.shape)
    network, rounding = _captured(whole, data, kind)
    scores = None if rounding is None else executed_scores(whole, data)
    _require_classes(network, data)
    _warn_of_units(network, data)
    size_of_batch = batch_size(network, _positive(memory, "memory"), len(data))
    about = {
        "model": network.fingerprint, "data": data.sha256, "settings": json.dumps(settings, sort_keys=True),
        "version": __version__, "count": str(len(data)), "shape": json.dumps(list(data.shape)),
        "batch": str(size_of_batch),
    }  # fmt: skip
    store = Store.open(resume, about, threat.radii)
    try:
        facts = _facts(network, threat, store, rounding, data, seconds)
        steps = max(_LEAST_STEPS, round(_STEPS * times))
        provers = _provers(network, threat, steps, seconds, place, seed)
        small = _small(network)
        wide = threat.radii is None and (not small or seconds >= _WIDE)
        widening = Widening(steps=steps, refined=small, device=place, seed=seed) if wide else None
        cascade = Cascade(facts, provers, widening, seconds, times, seed, place)
        pending = batches(data, _batch_of(store), store.finished(), scores)
        with shown(progress, len(data), len(store.finished())) as report:
            for decision in runner.run(cascade, pending):
                store.add(decision)
                report(decision.row)
    except BaseException:
        store.close()
        raise
    if resume is not None:
        store.close()  # others may have the file now
        store = Store.read(resume)
    return Certification(store, time.perf_counter() - started)


def _captured(
    model: nn.Module | ExportedProgram, data: Examples, arithmetic: Arithmetic
) -> tuple[Network, Rounding | None]:
    try:
        return captured(model, data.example(), arithmetic)
    except InputError as problem:
        raise InputError(str(problem).replace("example_input", "inputs")) from problem


def batches(
    data: Examples, size_of_batch: int, finished: set[int], scores: npt.NDArray[np.float32] | None = None
) -> Iterator[Batch]:
    """Every batch with something left to decide; the same ones whatever is finished."""
    for start in range(0, len(data), size_of_batch):
        indices = tuple(range(start, min(start + size_of_batch, len(data))))
        wanted = frozenset(indices) - finished
        if wanted:
            labels = tuple(int(data.labels[i]) for i in indices)
            yield Batch(indices, data.batch(indices), labels, wanted, None if scores is None else scores[list(indices)])


def batch_size(network: Network, gigabytes: float, count: int) -> int:
    """How many examples fit in the memory, with every class of each."""
    each = 8.0 * _HELD * sum(size(node.shape) for node in network.nodes) * classes_of(network)
    return int(max(1, min(_BATCH, count, gigabytes * 2**30 / each)))


def _batch_of(store: Store) -> int:
    """As it was when the run began."""
    held = store.about.get("batch", "")
    if not (held.isascii() and held.isdigit() and len(held) < 10 and 0 < int(held) <= _BATCH):
        raise StoreError(f"{store.where} is damaged: it names {held[:20]!r} as the size of its batches.")
    return int(held)


def _provers(
    network: Network, threat: Threat, steps: int, seconds: float, device: torch.device, seed: int
) -> tuple[Prover, ...]:
    """On ranges by intervals, then by linear bounds; at once by these where they cost little or the most is asked.

    The second search goes on from the first, with twice the steps, as fewer classes are left to it. At given
    radii splitting comes last.
    """
    small = _small(network)
    at_once = small or threat.radii is None
    return (
        *(
            CostToGo(linear=linear, steps=times * steps, device=device, seed=seed)
            for linear, times in (((True, 1),) if at_once else ((False, 1), (True, 2)))
        ),
        Branching(seconds=seconds, linear=small, steps=steps, device=device, seed=seed),
    )


def _small(network: Network) -> bool:
    return sum(size(node.shape) for node in network.nodes) <= _SMALL


def _facts(
    network: Network, threat: Threat, store: Store, rounding: Rounding | None, data: Examples, budget: float
) -> Facts:
    """With Lipschitz constants, where there are any; a run that goes on uses those that it began with."""
    kept = {name: store.shared(name) for name in (BODY, OUTPUTS)}
    if kept[BODY] is not None:
        return Facts(network, threat, restored(kept, network, threat.norm), rounding)
    first = range(min(len(data), _batch_of(store)))
    examples = torch.from_numpy(data.batch(first)).reshape(len(first), *network.in_shape)
    labels = [int(data.labels[i]) for i in first]
    found = shared_constants(network, threat, examples, labels, len(data), budget)
    store.share(found.certificates)
    return Facts(network, threat, found.constants, rounding)


def _require_classes(network: Network, data: Examples) -> None:
    shape, count = network.out_shape, classes_of(network)
    if count < 2:
        raise InputError(
            f"the model gives {count} output: a class needs one score each, two at least. For a binary classifier with "
            "one score z, wrap it in a module that returns torch.cat([torch.zeros_like(z), z], 1)."
        )
    if sum(n > 1 for n in shape) > 1:
        raise InputError(
            f"the model's output has shape {shape} for one example; certify needs one score per class, (1, m)."
        )
    data.require_classes(count)


def _warn_of_units(network: Network, data: Examples) -> None:
    """Where another scale of the inputs makes the model right much more often, say so."""
    first = range(min(len(data), 500))
    accuracy = _accuracy(network, data, first, 1.0)
    count = classes_of(network)
    low, high = data.span
    other = 1.0 / 255.0 if data.in_bytes else 255.0 if accuracy < 0.5 and 0.0 <= low < high <= 1.0 else 1.0
    better = accuracy if other == 1.0 else _accuracy(network, data, first, other)
    if (other < 1.0 and better >= accuracy) or better > 2.0 * accuracy:
        what, units = ("inputs / 255", "0 to 1") if other < 1.0 else ("inputs * 255", "0 to 255")
        warnings.warn(
            f"the clean accuracy is {100 * accuracy:.1f} %; with {what} it is {100 * better:.1f} %: the model seems to "
            f"have been trained on pixels from {units}. Give it {what}; radius and clip are in units of the inputs.",
            stacklevel=3,
        )
    elif accuracy <= 1.5 / count and len(first) >= 20:
        warnings.warn(
            f"the clean accuracy is {100 * accuracy:.1f} %, no better than guessing one of {count} classes: are these "
            "the inputs, in the scale, and the labels of this model?",
            stacklevel=3,
        )


@ordinary()
def _accuracy(network: Network, data: Examples, indices: Sequence[int], factor: float) -> float:
    right = 0
    step = max(1, (1 << 24) // max(1, sum(size(node.shape) for node in network.nodes)))
    for start in range(0, len(indices), step):
        part = list(indices[start : start + step])
        x = torch.from_numpy(data.batch(part)).reshape(len(part), *network.in_shape) * factor
        with torch.no_grad():
            predicted = network.forward(x).reshape(len(part), -1).argmax(dim=1)
        right += int((predicted == torch.from_numpy(data.labels[part])).sum())
    return right / len(indices)


def _positive(value: Any, name: str) -> float:
    number = real(value)
    if not 0 < number <= _GREATEST:
        raise InputError(f"{name} must be a positive number up to {_GREATEST:g}, not {value!r:.60}.")
    return number
