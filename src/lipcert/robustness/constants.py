"""Searches for the Lipschitz constants that a run works out once for all examples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import lipcert.methods.autolip
import lipcert.methods.liplt  # noqa: F401  (both register their method)
from lipcert.certificates.norms.operator_norm import map_norm, remembered
from lipcert.errors import LipcertError
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.base import Run, make
from lipcert.methods.lipsdp import LipSDP, dense_operations
from lipcert.methods.norm_effort import plan_norms
from lipcert.network.graph import AffineNode, Network
from lipcert.network.linear import size
from lipcert.numerics.chance import Chance
from lipcert.numerics.process_state import ordinary
from lipcert.problem import Problem
from lipcert.result import Bound
from lipcert.robustness.pair_constants import BODY, OUTPUTS, PairConstants, body, classes_of, others, without_shared
from lipcert.robustness.threat import Threat
from lipcert.search.passes import Passes
from lipcert.search.vector_neuron import VectorNeuron

#: Seconds that the constant of the body may take.
_SECONDS = 30.0
#: Operations that a look at LipSDP's form may take for every example and second of its budget, of which so many seconds
#: count, and in all: the proof is a few looks. Counted, not timed, so that the same seed gives the same constant.
_EACH, _COUNTED, _MOST = 4e9, 5.0, 1e12
#: Passes of LipSDP's search.
_PASSES = 1000
#: Steps and columns by which LipSDP's value is guessed, and the share of a sample that it is to decide more;
#: of no radii, the factor by which those that constants prove are to grow.
_STEPS, _COLUMNS, _WORTH, _FACTOR = 60, 4, 0.2, 2.0
#: Entries of a network up to which LipLT bounds the body: paths of many layers are seldom written as matrices.
_SMALL = 4000
#: Constants that are worked out when they are asked for.
Guess = Callable[[], PairConstants]


@dataclass(frozen=True, eq=False)
class Shared:
    """What a run keeps: certificates by name, empty where there is no constant, and what they prove."""

    certificates: dict[str, bytes]
    constants: tuple[PairConstants, ...]


def shared_constants(
    network: Network, threat: Threat, examples: Tensor, labels: Sequence[int], count: int, budget: float
) -> Shared:
    """Of the body, and by LipSDP of all outputs where that promises to decide more.

    Args:
        network: whole.
        threat: what constants are for.
        examples: (B, *in_shape) float64, some of those that are to be certified; no more than fit in the memory.
        labels: of these.
        count: of all examples.
        budget: seconds for each.
    """
    p, operations = threat.norm, min(_MOST, _EACH * count * min(budget, _COUNTED))
    first, known = _of_body(network, p), []
    if first is not None:
        known.append(PairConstants.of(network, p, first.value, first.guarantee))
    second = _of_outputs(network, p, lambda guess: _worth(guess, known, network, threat, examples, labels), operations)
    if second is not None:
        known.append(PairConstants.of_outputs(network, p, second.value, second.guarantee))
    kept = {name: b"" if found is None else _bytes_of(found) for name, found in ((BODY, first), (OUTPUTS, second))}
    return Shared(kept, tuple(known))


def _worth(
    guess: Guess, known: Sequence[PairConstants], network: Network, threat: Threat, examples: Tensor,
    labels: Sequence[int],
) -> bool:  # fmt: skip
    """Whether constants promise so much more than those known that their proof, which takes seconds, pays."""
    with torch.no_grad():
        scores = network.forward(examples).reshape(len(examples), -1)

    def radii(constants: PairConstants) -> list[float]:
        rows = zip(scores, labels, strict=True)
        return [constants.radius(label, row[label] - row[others(label, len(row))]) for row, label in rows]

    theirs = [max(several) for several in zip(*map(radii, known), strict=True)] or [0.0] * len(labels)
    if threat.radii is None:
        return sum(radii(guess())) > _FACTOR * sum(theirs)
    count = _WORTH * len(labels) * len(threat.radii)
    open_ = [(k, radius) for k, known_radius in enumerate(theirs) for radius in threat.radii if known_radius < radius]
    if len(open_) <= count:  # not even all that is left
        return False
    ours = radii(guess())
    return sum(ours[k] >= radius for k, radius in open_) > count


def _of_body(network: Network, p: float) -> Bound | None:
    """A Lipschitz constant of the body, rigorous if it can be; None where there is none."""
    front = body(network)
    if front is None or front.refusal is not None:
        return None
    if p == 2.0:
        _find_norms(front)
    name = "liplt" if sum(size(node.shape) for node in network.nodes) <= _SMALL else "autolip"
    for rigorous in (True, False):
        run = Run(_generator(), torch.device("cpu"), _SECONDS, rigorous=rigorous)
        try:
            with ordinary(), torch.random.fork_rng(devices=[]):
                found = make(name).bound(Problem(front, (p, p)), run, Chance())
        except LipcertError:
            continue
        if math.isfinite(found.value):
            return found
    return None


@ordinary()
def _find_norms(network: Network) -> None:
    """Find the norms that take long, as margins will, where AutoLip has the time to write them, too.

    Its own claims, a little larger, are then proved by them.
    """
    nodes = [(k, node) for k, node in enumerate(network.nodes) if isinstance(node, AffineNode)]
    long = {(k, t): linear for k, node in nodes for t, linear in enumerate(node.maps) if remembered(linear)}
    for slot, route in plan_norms(long, 3.0 * _SECONDS, rigorous=True).routes.items():
        if route == "written":
            with suppress(LipcertError):
                map_norm(long[slot], 2.0)


def _of_outputs(network: Network, p: float, worth: Callable[[Guess], bool], operations: float) -> Bound | None:
    """LipSDP's constant of all outputs, where it takes few operations and its value is worth it; None elsewhere."""
    if p != 2.0 or network.refusal is not None:
        return None
    run = Run(_generator(), torch.device("cpu"), math.inf, rigorous=True, repeatable=True)
    try:
        with ordinary(), torch.random.fork_rng(devices=[]):
            problem = Problem(network, select=without_shared(classes_of(network)))
            increments = problem.expanded_increments
            exact = ScaledIncrements(increments, natural_exponents(increments))
            needed = dense_operations(exact)
            if needed is None or needed > operations:
                return None
            if not worth(lambda: PairConstants.of_outputs(network, p, _guess(exact), "rigorous")):
                return None
            found = LipSDP(route="dense", max_passes=_PASSES).own_bound(problem, run, Chance())
    except LipcertError:
        return None
    return found if math.isfinite(found.value) else None


def _guess(exact: ScaledIncrements) -> float:
    """About LipSDP's value, from below."""
    search = VectorNeuron(Passes(exact, torch.float32, torch.device("cpu")), (2.0, 2.0), _COLUMNS, _generator())
    for _ in range(_STEPS):
        search.step()
    return float(search.rho[0].sqrt()) * 2.0 ** min(1000, exact.exponents[-1])


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@ordinary()
def _bytes_of(found: Bound) -> bytes:
    """The file of a certificate."""
    with tempfile.TemporaryDirectory(prefix="lipcert-") as folder:
        path = Path(folder) / "constants.lipcert"
        found.save(path)
        return path.read_bytes()
