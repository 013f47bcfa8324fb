"""LipSDP on any graph: multipliers from the vector-neuron iteration, proved by the quadratic certificate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.dense_form import DenseForm, Weights
from lipcert.certificates.quadratic import NORMS, ScaledMap
from lipcert.certificates.segments import cheapest_segments
from lipcert.certificates.statement import FLOOR
from lipcert.errors import InputError, NotProved, NumericsError
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.autolip import AutoLip
from lipcert.methods.base import Found, Method, Run, method
from lipcert.methods.vector_neuron import VectorNeuron
from lipcert.numerics.lanczos import kuczynski_wozniakowski_epsilon, lambda_max_ritz
from lipcert.problem import Norm, Problem
from lipcert.result import Bound
from lipcert.search.passes import Passes, steps_to_output

#: Geometric lifts tried, finest first.
LIFTS = tuple(10.0 ** (-e / 2) for e in range(14, -1, -1))

#: The same for the matrix-free check, whose own error asks for at least the first.
FREE_LIFTS = (1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3, 1e-2, 1.5e-2, 2e-2, 3e-2, 4e-2, 6e-2, 0.1, 0.2, 0.5, 1.0)

#: Passes made even where the budget is over: after fewer, multipliers are often not feasible at all.
FEWEST = 30

#: Where multipliers need a larger lift than this when the iteration has settled, it goes on with twice the columns,
#: up to MOST_COLUMNS. It has settled when 20 passes gain less than SETTLED.
FINE, MOST_COLUMNS, SETTLED = 2e-3, 128, 3e-4


@method
@dataclass(frozen=True, kw_only=True)
class LipSDP(Method):
    """LipSDP-Neuron on any graph by forward and backward passes (Fazlyab et al. 2019; DESIGN §3 for the iteration).

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
        if problem.norm in AutoLip.norms and not bool(exact.increments.reached[-1].any()):
            return AutoLip().solve(problem, run)  # a constant output: 0, which no positive multiplier proves
        neurons = sum(cell.size for cell in exact.cells)
        if self.precision == "auto":
            dtype = torch.float64 if neurons <= 20_000 else torch.float32
        else:
            dtype = getattr(torch, self.precision)
        search = VectorNeuron(
            Passes(exact, dtype, run.device), problem.norm, self.columns, run.generator, _state(self.start)
        )
        dense = self.route == "dense" or (self.route == "auto" and cheapest_segments(exact) is not None)
        finish = _Dense(exact, self, search, run) if dense else _MatrixFree(exact, self, search, run)
        return finish.found()

    def _increments(self, problem: Problem) -> ScaledIncrements:
        """What the search and the check work on."""
        increments = problem.expanded_increments.layerwise() if self.layerwise else problem.expanded_increments
        return ScaledIncrements(increments, natural_exponents(increments))

    def obstacle(self, problem: Problem, run: Run) -> str | None:
        """Without factorable layers the check is a few hundred passes; is there time for them?"""
        exact = self._increments(problem)
        if self.route != "matrix_free" and cheapest_segments(exact) is not None:
            return None
        ones = {c.node: torch.ones(1 if c.block else c.size, dtype=torch.float64) for c in exact.cells}
        sizes = (math.prod(exact.increments.in_shape), math.prod(exact.increments.out_shape))
        plain = Weights(*(torch.ones(n, dtype=torch.float64) for n in sizes))
        scaled = ScaledMap(exact, ones, plain, 1.0)
        began = time.perf_counter()
        scaled.gram(torch.ones(scaled.size, dtype=torch.float64))
        needed = 600.0 * (time.perf_counter() - began)
        if needed <= run.left:
            return None
        return f"its matrix-free check would take about {needed:.0f} s; raise budget= or ask for method='lipsdp'"


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


@dataclass(frozen=True, eq=False)
class Lift:
    """Feasible multipliers of one form, lifted by p = LIFTS[place], and their ρ in plain floating point."""

    rho: float
    p: float
    place: int
    multipliers: dict[int, Tensor]


@dataclass(eq=False)
class _Finish:
    """Common part of the two routes: run passes, now and then look at the certified gap."""

    exact: ScaledIncrements
    options: LipSDP
    search: VectorNeuron
    run: Run

    def lifted(self, form: int, p: float) -> dict[int, Tensor]:
        """λ_k (1 + p)^{steps from k to the output}: a margin proportional to p in every direction."""
        steps = steps_to_output(self.exact)
        return {k: m[form] * (1.0 + p) ** steps[k] for k, m in self.search.multipliers.items()}

    def weights(self, form: int) -> Weights:
        """The search's weights on input and output."""
        return Weights(self.search.input_weights[form], self.search.output_weights[form])

    def passes(self, count: int) -> bool:
        """Run passes; False once the search has stalled at machine precision or the budget is short."""
        before = self.search.rho
        for _ in range(count):
            self.search.step()
            late = self.run.left < 0 and self.search.passes >= FEWEST
            if late or self.search.passes >= self.options.max_passes:
                return False
        after = self.search.rho
        if not bool(torch.isfinite(after).all()):
            raise NumericsError("the vector-neuron iteration overflowed; try precision='float64'.")
        self.run.report(min(0.8, self.search.passes / 1000), f"{self.search.passes} passes")
        return bool((after > before * (1.0 + 1e-13)).any())

    def package(
        self,
        multipliers: list[dict[int, Tensor]],
        rho: list[float],
        slack: list[float],
        route: str,
        weaker: Callable[[], Found | None],
    ) -> Found:
        """The witness for the multipliers of every form."""
        arrays = {
            f"multipliers.{cell.node}": torch.stack([m[cell.node] for m in multipliers]).double().cpu().contiguous()
            for cell in self.exact.cells
        }
        arrays["exponents"] = torch.tensor(self.exact.exponents, dtype=torch.int64)
        arrays["input_weights"] = self.search.input_weights
        arrays["output_weights"] = self.search.output_weights
        settings = {
            "rho": rho, "slack": slack, "route": route, "layerwise": self.options.layerwise,
            "dual_value": math.sqrt(float(self.search.rho.max())), "passes": self.search.passes,
        }  # fmt: skip
        return Found(Witness("quadratic", arrays, settings), weaker, self.search.state)


@dataclass(eq=False)
class _Dense(_Finish):
    def __post_init__(self) -> None:
        self.form = DenseForm(self.exact)
        self.depth = max(steps_to_output(self.exact).values(), default=0) + 1
        wanted = self.options.tolerance / self.depth
        place = min(range(len(LIFTS)), key=lambda i: abs(math.log(LIFTS[i] / wanted)))
        self.places = [place] * self.search.problems

    def found(self) -> Found:
        """Passes in geometric batches; between them the best lifts and their gaps."""
        best: list[Lift | None] = [None] * self.search.problems
        count = FEWEST if self.options.start is None else 10
        while True:
            began = time.perf_counter()
            going = self.passes(count)
            searched = time.perf_counter() - began
            began = time.perf_counter()
            goals = (self.search.rho * (1.0 + self.options.tolerance) ** 2).tolist()
            for form, goal in enumerate(goals):
                known = best[form]
                if known is not None and known.rho <= goal:
                    continue
                found = self.best_lift(form, goal)
                if found is not None and (known is None or found.rho < known.rho):
                    best[form] = found
            spent = time.perf_counter() - began
            done = all(lift is not None and lift.rho <= goal for lift, goal in zip(best, goals, strict=True))
            if done or not going or self.run.left < 3.0 * spent:
                break
            count = max(10, int(self.search.passes * 0.4))
            if spent > 2.0 * searched:
                count = int(count * min(10.0, spent / max(searched, 1e-3)))
        return self.packaged([lift or self.cautious(form, self.places[form]) for form, lift in enumerate(best)])

    def packaged(self, lifts: list[Lift]) -> Found:
        """The witness of a lift per form; weaker are the next coarser lifts."""

        def weaker() -> Found | None:
            places = [min(lift.place + 2, len(LIFTS)) for lift in lifts]
            if max(places) >= len(LIFTS):
                return None
            return self.packaged([self.cautious(form, place) for form, place in enumerate(places)])

        claims = [lift.rho * (1.0 + max(1e-9, 1e-3 * lift.p)) + FLOOR for lift in lifts]
        return self.package([lift.multipliers for lift in lifts], claims, [0.0] * len(lifts), "dense", weaker)

    def cautious(self, form: int, place: int) -> Lift:
        """The finest feasible lift from ``place`` on."""
        for coarser in range(place, len(LIFTS)):
            lift = self.lift(form, coarser)
            if lift is not None:
                return lift
        raise NotProved("LipSDP found no feasible multipliers; raise budget= or max_passes, or use autolip.")

    def lift(self, form: int, place: int) -> Lift | None:
        """The multipliers lifted by LIFTS[place] and their ρ; None if they are not feasible."""
        p = LIFTS[place]
        try:
            multipliers, rho = self.form.repaired(self.lifted(form, p), p, self.weights(form))
        except NotProved:
            return None
        return Lift(rho, p, place, multipliers)

    def fine_enough(self, lift: Lift, goal: float) -> bool:
        """Whether all that finer lifts could gain is a small part of what is missing: only passes help."""
        gain = lift.p * (self.depth + 1)
        return gain * goal < 0.5 * (lift.rho - goal)

    def best_lift(self, form: int, goal: float) -> Lift | None:
        """The first lift that reaches ``goal``, else the best one near the last; None if none is feasible."""
        best: Lift | None = None
        place, step = self.places[form], 0
        while 0 <= place < len(LIFTS):
            found = self.lift(form, place)
            if found is not None and (best is None or found.rho < best.rho):
                best, self.places[form] = found, place
                if found.rho <= goal or self.run.left < 0 or self.fine_enough(found, goal):
                    break
                step = step or -1
            elif found is None and best is None:
                step = 1
            else:
                break
            place += step
        return best


@dataclass(eq=False)
class _MatrixFree(_Finish):
    def __post_init__(self) -> None:
        # Lanczos steps of the check: beyond some size keeping its vectors orthogonal costs more than the passes
        size = sum(cell.size for cell in self.exact.cells)
        self.steps = 400 if size <= 300_000 else 240
        self.margin = 1.05 * kuczynski_wozniakowski_epsilon(size, self.steps, 1e-10 / self.search.problems)

    def found(self) -> Found:
        """Passes, with more columns while few prove too few, for 60 % of the budget; then the least lift that holds."""
        forms = range(self.search.problems)
        while self._settled() and self.search.columns < MOST_COLUMNS:
            if not bool((self.search.rho > 0).all()):
                break
            if all(self._holds(form, FINE + 2.0 * self.margin) for form in forms):
                break
            if self._short():
                break
            self.search.widen(2 * self.search.columns)
        if not bool((self.search.rho > 0).all()):
            raise NotProved("the network looks constant in float arithmetic; use autolip.")
        return self._packaged([self._place(form) for form in forms])

    def _short(self) -> bool:
        return self.run.left <= 0.4 * self.run.budget

    def _settled(self) -> bool:
        """Passes until they gain next to nothing (True), or until time or passes run out (False)."""
        last, start = self.search.rho, self.search.passes
        while not self._short() and self.search.passes < self.options.max_passes:
            self.passes(20)
            value = self.search.rho
            if self.search.passes >= start + 60 and bool((value < last * (1.0 + SETTLED)).all()):
                return True
            last = value
        return False

    def _ritz(self, form: int, p: float) -> float:
        """‖G‖² at this lift as a short Lanczos run sees it; the check needs 1 − margin."""
        scaled = ScaledMap(self.exact, self._positive(form, p), self.weights(form), self._rho(form, p))
        ritz, _ = lambda_max_ritz(scaled.gram, scaled.size, min(30, scaled.size), self.run.generator)
        self.run.report(0.9, f"lift {p:.1e}")
        return ritz

    def _holds(self, form: int, p: float) -> bool:
        return self._ritz(form, p) <= 1.0 - self.margin

    def _place(self, form: int) -> int:
        """The least lift that holds, or about so: a lift p divides ‖G‖² by up to 1 + p."""
        place = min(i for i, p in enumerate(FREE_LIFTS) if p >= min(self.margin, FREE_LIFTS[-1]))
        while place < len(FREE_LIFTS) - 1:
            p = FREE_LIFTS[place]
            ritz = self._ritz(form, p)
            if ritz <= 1.0 - self.margin:
                break
            needed = 0.8 * ((1.0 + p) * ritz / (1.0 - self.margin) - 1.0)
            place = min((i for i, q in enumerate(FREE_LIFTS) if i > place and q >= needed), default=len(FREE_LIFTS) - 1)
        return place

    def _packaged(self, places: list[int]) -> Found:
        def weaker() -> Found | None:
            coarser = [place + 1 for place in places]
            return self._packaged(coarser) if max(coarser) < len(FREE_LIFTS) else None

        lifts = [FREE_LIFTS[place] for place in places]
        return self.package(
            [self._positive(form, p) for form, p in enumerate(lifts)],
            [self._rho(form, p) for form, p in enumerate(lifts)],
            [0.0] * len(lifts), "matrix_free", weaker,
        )  # fmt: skip

    def _rho(self, form: int, p: float) -> float:
        steps = max(steps_to_output(self.exact).values(), default=0)
        return float(self.search.rho[form]) * (1.0 + p) ** (steps + 1)

    def _positive(self, form: int, p: float) -> dict[int, Tensor]:
        lifted = self.lifted(form, p)
        result = {}
        for k, m in lifted.items():
            top = max(float(m.max()), 1e-100)
            result[k] = torch.where(m < 0, torch.full_like(m, 1e3 * top), m.clamp(min=1e-30 * top))
        return result
