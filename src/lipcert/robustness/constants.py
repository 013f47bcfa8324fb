"""Searches for the Lipschitz constants that a run works out once for all examples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import lipcert.methods.autolip
import lipcert.methods.liplt  # noqa: F401  (both register their method)
from lipcert.errors import LipcertError
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.base import Run, make
from lipcert.methods.lipsdp import LipSDP
from lipcert.network.graph import Network
from lipcert.network.linear import size
from lipcert.numerics.chance import Chance
from lipcert.numerics.process_state import ordinary
from lipcert.problem import Problem
from lipcert.result import Bound
from lipcert.robustness.pair_constants import BODY, OUTPUTS, PairConstants, body, classes_of, without_shared
from lipcert.robustness.threat import Threat
from lipcert.search.passes import Passes
from lipcert.search.vector_neuron import VectorNeuron

#: Seconds that each may take, and LipSDP for every example: most of its time is a proof that many share.
_SECONDS, _EACH = 60.0, 0.2
#: Steps and columns by which LipSDP's value is guessed, and the share of a sample that it is to decide more;
#: of no radii, the factor by which those that constants prove are to grow.
_STEPS, _COLUMNS, _WORTH, _FACTOR = 60, 4, 0.2, 2.0
#: Entries of a network up to which LipLT bounds the body: paths of many layers are seldom written as matrices.
_SMALL = 4000


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
        examples: (B, *in_shape) float64, some of those that are to be certified.
        labels: of these.
        count: of all examples.
        budget: seconds for each.
    """
    p, seconds = threat.norm, min(_SECONDS, _EACH * count * min(budget, 1.0))
    first, known = _of_body(network, p), []
    if first is not None:
        known.append(PairConstants.of(network, p, first.value, first.guarantee))
    with ordinary(), torch.no_grad():
        scores = network.forward(examples).reshape(len(examples), -1)
    sample = _Sample(scores, tuple(labels), threat.radii)
    second = _of_outputs(network, p, lambda guess: sample.worth(guess, known), seconds)
    if second is not None:
        known.append(PairConstants.of_outputs(network, p, second.value, second.guarantee))
    kept = {name: b"" if found is None else _bytes_of(found) for name, found in ((BODY, first), (OUTPUTS, second))}
    return Shared(kept, tuple(known))


@dataclass(frozen=True, eq=False)
class _Sample:
    """Scores of some examples, (B, m), by which constants are compared."""

    scores: Tensor
    labels: tuple[int, ...]
    radii: tuple[float, ...] | None

    def worth(self, guess: PairConstants, known: Sequence[PairConstants]) -> bool:
        """Whether these constants promise so much more that their proof, which takes seconds, pays."""
        ours = self._radii(guess)
        theirs = [max(radii) for radii in zip(*map(self._radii, known), strict=True)] or [0.0] * len(ours)
        if self.radii is None:
            return sum(ours) > _FACTOR * sum(theirs)
        decided = [sum(r >= radius for r in own for radius in self.radii) for own in (ours, theirs)]
        return decided[0] - decided[1] > _WORTH * len(ours) * len(self.radii)

    def _radii(self, constants: PairConstants) -> list[float]:
        """Up to which each example keeps its class by constants, about."""
        found = []
        for scores, label in zip(self.scores, self.labels, strict=True):
            rest = torch.cat([scores[:label], scores[label + 1 :]])
            found.append(constants.radius(label, scores[label] - rest))
        return found


def _of_body(network: Network, p: float) -> Bound | None:
    """A Lipschitz constant of the body, rigorous if it can be; None where there is none."""
    front = body(network)
    if front is None or front.refusal is not None:
        return None
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


def _of_outputs(network: Network, p: float, worth: Callable[[PairConstants], bool], seconds: float) -> Bound | None:
    """LipSDP's constant of all outputs, where there is time for it and its value is worth it; None elsewhere."""
    if p != 2.0 or network.refusal is not None:
        return None
    run = Run(_generator(), torch.device("cpu"), seconds, checked=True, rigorous=True)
    try:
        with ordinary(), torch.random.fork_rng(devices=[]):
            problem, method = Problem(network, select=without_shared(classes_of(network))), LipSDP()
            if method.obstacle(problem, run) is not None:
                return None
            if not worth(PairConstants.of_outputs(network, p, _guess(problem), "rigorous")):
                return None
            found = method.bound(problem, run, Chance())
    except LipcertError:
        return None
    return found if math.isfinite(found.value) else None


def _guess(problem: Problem) -> float:
    """About LipSDP's value, from below."""
    increments = problem.expanded_increments
    exact = ScaledIncrements(increments, natural_exponents(increments))
    search = VectorNeuron(Passes(exact, torch.float32, torch.device("cpu")), problem.norm, _COLUMNS, _generator())
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
