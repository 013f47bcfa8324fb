"""LipSDP on any graph: multipliers from the vector-neuron iteration, proved by the quadratic certificate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.quadratic import DenseForm, ScaledMap
from lipcert.certificates.segments import cheapest_segments
from lipcert.errors import CertificateError, InputError, NumericsError
from lipcert.methods.base import Method, Run, method
from lipcert.methods.vector_neuron import VectorNeuron
from lipcert.network.loop_transform import LoopTransformed, natural_exponents
from lipcert.numerics.lanczos import kuczynski_wozniakowski_epsilon, lambda_max_ritz
from lipcert.problem import Norm, Problem

#: Geometric lifts tried, finest first.
LIFTS = tuple(10.0 ** (-e / 2) for e in range(14, -1, -1))

#: The same for the matrix-free check, whose own error asks for at least the first.
FREE_LIFTS = (1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3, 1e-2, 1.5e-2, 2e-2, 4e-2, 0.1, 0.2, 0.5, 1.0)


@method
@dataclass(frozen=True, kw_only=True)
class LipSDP(Method):
    """LipSDP-Neuron on any graph by forward and backward passes (Fazlyab et al. 2019; DESIGN §3 for the iteration).

    Attributes:
        tolerance: stop once the bound is within this relative distance of the dual value.
        columns: rank of the relaxation.
        max_passes: most forward and backward passes.
        precision: dtype of the search; ``auto`` is float64 up to 20 000 neurons and float32 beyond.
        route: ``dense`` (rigorous), ``matrix_free`` (probabilistic), or ``auto``: dense wherever layers can be factored.
    """

    name: ClassVar[str] = "lipsdp"
    norms: ClassVar[tuple[Norm, ...]] = ((2.0, 2.0),)
    summary: ClassVar[str] = "one multiplier per neuron, any graph; the tightest polynomial-time bound"
    layerwise: ClassVar[bool] = False

    tolerance: float = 2e-4
    columns: int = 16
    max_passes: int = 20_000
    precision: Literal["auto", "float32", "float64"] = "auto"
    route: Literal["auto", "dense", "matrix_free"] = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1 or self.columns < 1 or self.max_passes < 1:
            raise InputError("LipSDP needs 0 < tolerance < 1, columns ≥ 1 and max_passes ≥ 1.")
        if self.precision not in ("auto", "float32", "float64") or self.route not in ("auto", "dense", "matrix_free"):
            raise InputError("precision is auto, float32 or float64; route is auto, dense or matrix_free.")

    def solve(self, problem: Problem, run: Run) -> Witness:
        """Search multipliers until the gap closes or the budget ends."""
        self.require_norm(problem.norm)
        network = problem.expanded
        exponents = natural_exponents(network)
        exact = LoopTransformed(network, exponents, self.layerwise)
        neurons = sum(cell.size for cell in exact.cells)
        if self.precision == "auto":
            dtype = torch.float64 if neurons <= 20_000 else torch.float32
        else:
            dtype = getattr(torch, self.precision)
        transformed = LoopTransformed(network, exponents, self.layerwise, dtype, run.device)
        search = VectorNeuron(transformed, self.columns, run.generator)
        dense = self.route == "dense" or (self.route == "auto" and cheapest_segments(exact) is not None)
        finish = _Dense(exact, self, search, run) if dense else _MatrixFree(exact, self, search, run)
        return finish.witness()


@method
@dataclass(frozen=True, kw_only=True)
class LipSDPLayer(LipSDP):
    """LipSDP-Layer: one multiplier per layer; looser than ``lipsdp``, same machinery."""

    name: ClassVar[str] = "lipsdp_layer"
    summary: ClassVar[str] = "one multiplier per layer; looser than lipsdp, for comparison"
    layerwise: ClassVar[bool] = True


def steps_to_output(transformed: LoopTransformed) -> dict[int, int]:
    """For each nonlinear node: how many lie on the longest path from it to the output, itself included."""
    depth = [0] * len(transformed.network.nodes)
    for k in range(len(depth) - 1, -1, -1):
        own = 1 if k in transformed.cell_at else 0
        depth[k] = own + max((depth[c] for c in transformed.network.consumers[k]), default=0)
    return {cell.node: depth[cell.node] for cell in transformed.cells}


@dataclass(frozen=True, eq=False)
class Lift:
    """Feasible multipliers, lifted by p = LIFTS[place], and their ρ in plain floating point."""

    rho: float
    p: float
    place: int
    multipliers: dict[int, Tensor]


@dataclass(eq=False)
class _Finish:
    """Common part of the two routes: run passes, now and then look at the certified gap."""

    exact: LoopTransformed
    options: LipSDP
    search: VectorNeuron
    run: Run

    def lifted(self, p: float) -> dict[int, Tensor]:
        """λ_k (1 + p)^{steps from k to the output}: a margin proportional to p in every direction."""
        steps = steps_to_output(self.exact)
        return {k: m * (1.0 + p) ** steps[k] for k, m in self.search.multipliers.items()}

    def passes(self, count: int) -> bool:
        """Run passes; False once the search has stalled at machine precision or the budget is short."""
        before = self.search.rho
        for _ in range(count):
            value = self.search.step()
            if not math.isfinite(value):
                raise NumericsError("the vector-neuron iteration overflowed; try precision='float64'.")
            if self.run.left < 0 or self.search.passes >= self.options.max_passes:
                return False
        if before > 0:
            self.run.report(min(1.0, self.search.passes / 1000), f"{self.search.passes} passes")
        return self.search.rho > before * (1.0 + 1e-13)

    def package(
        self,
        multipliers: Mapping[int, Tensor],
        rho: float,
        slack: float,
        route: str,
        fallback: Callable[[], Witness | None] | None = None,
    ) -> Witness:
        """The witness for these multipliers."""
        arrays = {f"multipliers.{k}": m.double().cpu().contiguous() for k, m in multipliers.items()}
        arrays["exponents"] = torch.tensor(self.exact.exponents, dtype=torch.int64)
        settings = {
            "rho": rho, "slack": slack, "route": route, "layerwise": self.options.layerwise,
            "dual_value": math.sqrt(self.search.rho), "passes": self.search.passes,
        }  # fmt: skip
        return Witness("quadratic", arrays, settings, fallback)


@dataclass(eq=False)
class _Dense(_Finish):
    def __post_init__(self) -> None:
        self.form = DenseForm(self.exact)
        depth = max(steps_to_output(self.exact).values(), default=0) + 1
        wanted = self.options.tolerance / depth
        self.place = min(range(len(LIFTS)), key=lambda i: abs(math.log(LIFTS[i] / wanted)))

    def witness(self) -> Witness:
        """Passes in geometric batches; between them the best lift and its gap."""
        best: Lift | None = None
        count, spent = 30, 0.0
        while True:
            began = time.perf_counter()
            going = self.passes(count)
            searched = time.perf_counter() - began
            began = time.perf_counter()
            goal = self.search.rho * (1.0 + self.options.tolerance) ** 2
            found = self.best_lift(goal)
            if found is not None and (best is None or found.rho < best.rho):
                best = found
            spent = time.perf_counter() - began
            if best is not None and best.rho <= goal:
                break
            if not going or self.run.left < 3.0 * spent:
                break
            count = max(10, int(self.search.passes * 0.4))
            if spent > 2.0 * searched:
                count = int(count * min(10.0, spent / max(searched, 1e-3)))
        if best is None:
            best = self.cautious(self.place)
        if best is None:
            raise CertificateError("LipSDP found no feasible multipliers; raise budget= or max_passes.")
        return self.packaged(best)

    def packaged(self, lift: Lift) -> Witness:
        """The witness of a lift; its fallback is the next coarser lift that is feasible."""

        def fallback() -> Witness | None:
            coarser = self.cautious(lift.place + 2)
            return None if coarser is None else self.packaged(coarser)

        claim = lift.rho * (1.0 + max(1e-9, 1e-3 * lift.p)) + 1e-280
        return self.package(lift.multipliers, claim, 0.1 * lift.p, "dense", fallback)

    def cautious(self, place: int) -> Lift | None:
        """The finest feasible lift from ``place`` on."""
        for coarser in range(place, len(LIFTS)):
            lift = self.lift(coarser)
            if lift is not None:
                return lift
        return None

    def lift(self, place: int) -> Lift | None:
        """The multipliers lifted by LIFTS[place] and their ρ; None if they are not feasible."""
        p = LIFTS[place]
        try:
            multipliers, rho = self.form.repaired(self.lifted(p), p)
        except CertificateError:
            return None
        return Lift(rho, p, place, multipliers)

    def best_lift(self, goal: float) -> Lift | None:
        """The first lift that reaches ``goal``, else the best one near the last; None if none is feasible."""
        best: Lift | None = None
        place, step = self.place, 0
        while 0 <= place < len(LIFTS):
            found = self.lift(place)
            if found is not None and (best is None or found.rho < best.rho):
                best, self.place = found, place
                if found.rho <= goal:
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
    steps: int = 400

    def witness(self) -> Witness:
        """Passes for 60 % of the budget or until they stall; then the least lift whose margin Lanczos can see."""
        while self.search.rho == 0.0 and self.passes(30):
            pass
        last = self.search.rho
        while self.run.left > 0.4 * self.run.budget and self.passes(20):
            if self.search.passes > 60 and self.search.rho < last * (1.0 + 0.1 * self.options.tolerance):
                break
            last = self.search.rho
        if self.search.rho == 0.0:
            raise CertificateError("the network looks constant in float arithmetic; use autolip.")
        size = ScaledMap(self.exact, self._positive(0.1), self._rho(0.1)).size
        margin = 1.05 * kuczynski_wozniakowski_epsilon(size, self.steps, 2.5e-10)
        for place, p in enumerate(FREE_LIFTS):
            scaled = ScaledMap(self.exact, self._positive(p), self._rho(p))
            ritz, _ = lambda_max_ritz(scaled.gram, scaled.size, min(30, scaled.size), self.run.generator)
            self.run.report(0.9, f"lift {p:.1e}")
            if ritz <= 1.0 - margin or place == len(FREE_LIFTS) - 1:
                return self._packaged(place)
        raise AssertionError("unreachable")

    def _packaged(self, place: int) -> Witness:
        def fallback() -> Witness | None:
            return self._packaged(place + 1) if place + 1 < len(FREE_LIFTS) else None

        p = FREE_LIFTS[place]
        return self.package(self._positive(p), self._rho(p), 0.0, "matrix_free", fallback)

    def _rho(self, p: float) -> float:
        steps = max(steps_to_output(self.exact).values(), default=0)
        return self.search.rho * (1.0 + p) ** (steps + 1)

    def _positive(self, p: float) -> dict[int, Tensor]:
        lifted = self.lifted(p)
        return {k: m.clamp(min=max(1e-30 * float(m.max()), 1e-200)) for k, m in lifted.items()}
