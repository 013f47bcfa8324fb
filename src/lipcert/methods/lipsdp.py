"""LipSDP on any graph: multipliers from the vector-neuron iteration, proved by the quadratic certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lipcert.certificates.forms.elimination import cheapest_segments, operations
from lipcert.certificates.quadratic import NORMS
from lipcert.errors import InputError
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.autolip import AutoLip
from lipcert.methods.base import Found, Method, Run, method
from lipcert.methods.cost import operations_per_second
from lipcert.methods.hand_over import smallest
from lipcert.methods.lipsdp_finish import DenseFinish
from lipcert.methods.lipsdp_free import FreeEffort, FreeFinish
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem
from lipcert.result import Bound
from lipcert.search.passes import Passes
from lipcert.search.reach import reached
from lipcert.search.vector_neuron import VectorNeuron


@method
@dataclass(frozen=True, kw_only=True)
class LipSDP(Method):
    """LipSDP-Neuron on any graph by forward and backward passes (Fazlyab et al. 2019; docs/soundness.md).

    Attributes:
        tolerance: stop once the bound is within this relative distance of the dual value.
        columns: rank of the relaxation; the matrix-free route raises it where it proves too low.
        max_passes: most forward and backward passes.
        precision: dtype of the search; ``auto`` is float64 up to 20 000 neurons and float32 beyond.
        route: ``dense`` (rigorous), ``matrix_free`` (probabilistic), ``auto`` (dense where layers can be factored).
        start: a Bound by this method for a network with the same layers (before the last training step, say), in whose
            final point the search starts. A Bound read from a file has none.
    """

    name: ClassVar[str] = "lipsdp"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    summary: ClassVar[str] = "one multiplier per neuron, any graph; the tightest polynomial-time bound"
    layerwise: ClassVar[bool] = False

    tolerance: float = 2e-4
    columns: int = 16
    max_passes: int = 20_000
    precision: Literal["auto", "float32", "float64"] = "auto"
    route: Literal["auto", "dense", "matrix_free"] = "auto"
    start: Bound | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1 or self.columns < 1 or self.max_passes < 1:
            raise InputError("LipSDP needs 0 < tolerance < 1, columns ≥ 1 and max_passes ≥ 1.")
        if self.precision not in ("auto", "float32", "float64") or self.route not in (
            "auto",
            "dense",
            "matrix_free",
        ):
            raise InputError("precision is auto, float32 or float64; route is auto, dense or matrix_free.")
        if self.start is not None and not _state(self.start) and not _constant(self.start):
            raise InputError("start= must be a Bound that LipSDP computed in this process.")

    def solve(self, problem: Problem, run: Run) -> Found:
        """Search multipliers until the gap closes or the budget ends."""
        self.require_norm(problem.norm)
        exact = self._increments(problem)
        if problem.norm in AutoLip.norms and not bool(reached(exact.increments)[-1].any()):
            return AutoLip().solve(problem, run)  # a constant output: 0, which no positive multiplier proves
        dense = self._dense(exact, run)
        effort = None if dense else FreeEffort.of(exact, problem.norm, run)
        neurons = sum(cell.size for cell in exact.cells)
        if self.precision == "auto":
            dtype = torch.float64 if neurons <= 20_000 else torch.float32
        else:
            dtype = getattr(torch, self.precision)
        passes = Passes(exact, dtype, run.device)
        growth = 1.0 if effort is None else effort.growth
        search = VectorNeuron(passes, problem.norm, self.columns, run.generator, _state(self.start), growth)
        if effort is None:
            return DenseFinish(exact, self, search, run).found()
        return FreeFinish(exact, self, search, run, effort).found()

    def bound(self, problem: Problem, run: Run, chance: Chance) -> Bound:
        """As ``Method.bound``; where the gap stays open, the bound of LipLT or AutoLip if that is smaller."""
        return smallest(self.name, super().bound(problem, run, chance), self.tolerance, problem, run, chance)

    def _dense(self, exact: ScaledIncrements, run: Run) -> bool:
        """Whether layers are factored: as asked, or where they can be and, if the check has to fit, there is time."""
        if self.route != "auto":
            return self.route == "dense"
        needed = dense_seconds(exact)
        hurry = run.checked and not run.rigorous
        return needed is not None and not (hurry and needed > 0.2 * run.left)

    def _increments(self, problem: Problem) -> ScaledIncrements:
        """What the search and the check work on."""
        increments = problem.expanded_increments.layerwise() if self.layerwise else problem.expanded_increments
        return ScaledIncrements(increments, natural_exponents(increments))

    def obstacle(self, problem: Problem, run: Run) -> str | None:
        """Is there time, and memory, for the check and the fewest passes?"""
        exact = self._increments(problem)
        if self.route != "matrix_free":
            needed = dense_seconds(exact)
            only = run.rigorous or self.route == "dense"
            if needed is not None and needed <= (0.6 if only else 0.2) * run.left:
                return None
            if only:
                why = "has layers too wide to factor" if needed is None else f"would take about {needed:.0f} s"
                return f"its rigorous check {why}; raise budget=, or allow probabilistic bounds"
        return FreeEffort.of(exact, problem.norm, run).obstacle


@method
@dataclass(frozen=True, kw_only=True)
class LipSDPLayer(LipSDP):
    """LipSDP-Layer: one multiplier per layer; looser than ``lipsdp``, same machinery."""

    name: ClassVar[str] = "lipsdp_layer"
    summary: ClassVar[str] = "one multiplier per layer; looser than lipsdp, for comparison"
    layerwise: ClassVar[bool] = True


def _state(start: Bound | None) -> Mapping[str, Tensor] | None:
    return start.state or None if isinstance(start, Bound) else None


def _constant(start: Bound) -> bool:
    """Whether this method proved 0 by norms alone, for a constant network: there is no point to go on from."""
    return isinstance(start, Bound) and start.value == 0.0 and start.method in ("lipsdp", "lipsdp_layer")


def dense_seconds(exact: ScaledIncrements) -> float | None:
    """About what writing a network's segments, a look at its form and the proof take; None if a layer is too wide.

    Measured: ``operations`` counts so generously that twice that many pay for all three.
    """
    needed = dense_operations(exact)
    return None if needed is None else 2.0 * needed / operations_per_second()


def dense_operations(exact: ScaledIncrements) -> float | None:
    """About how many operations a look at a network's form takes; None if a layer is too wide."""
    segments = cheapest_segments(exact)
    return None if segments is None else sum(operations(exact, s) for s in segments)


def dense_seconds_of(problem: Problem) -> float | None:
    """``dense_seconds`` of a problem's network."""
    increments = problem.expanded_increments
    return dense_seconds(ScaledIncrements(increments, natural_exponents(increments)))
