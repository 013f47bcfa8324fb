"""From the vector-neuron iteration to a LipSDP witness: passes, lifts of the multipliers, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.forms.lmi import FLOOR
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights
from lipcert.errors import NotProved, NumericsError
from lipcert.increments import ScaledIncrements
from lipcert.methods.base import Found, Run
from lipcert.methods.cost import seconds_of
from lipcert.search.float_form import repaired
from lipcert.search.passes import steps_to_output
from lipcert.search.vector_neuron import VectorNeuron

if TYPE_CHECKING:
    from lipcert.methods.lipsdp import LipSDP

#: Geometric lifts tried, finest first.
LIFTS = tuple(10.0 ** (-e / 2) for e in range(14, -1, -1))

#: Passes made even where the budget is over: after fewer, multipliers are often not feasible at all. The second number
#: holds where the check has to fit in the budget too: there another method's bound is at hand.
FEWEST, CHECKED_FEWEST = 30, 10

#: How much dearer a form is proved than looked at in plain floating point.
PROOF = 3.0


@dataclass(frozen=True, eq=False)
class Lift:
    """Feasible multipliers of one form, lifted by p = LIFTS[place], and their ρ in plain floating point."""

    rho: float
    p: float
    place: int
    multipliers: dict[int, Tensor]


@dataclass(eq=False)
class Finish:
    """Common part of the two routes: run passes, now and then look at the certified gap."""

    exact: ScaledIncrements
    options: LipSDP
    search: VectorNeuron
    run: Run

    def short(self) -> bool:
        """Whether the search has to end: the budget is over, or what is left of it is needed for the check."""
        return self.run.left <= (self.check_seconds() if self.run.checked else 0.0)

    def check_seconds(self) -> float:
        """What is expected to be left to do once the search ends, the check above all."""
        return self.proof_seconds()

    def proof_seconds(self) -> float:
        """What the check alone is expected to take."""
        raise NotImplementedError

    def lifted(self, form: int, p: float) -> dict[int, Tensor]:
        """λ_k (1 + p)^{steps from k to the output}: a margin proportional to p in every direction."""
        steps = steps_to_output(self.exact)
        if len(self.search.multipliers) < len(self.exact.cells):
            raise NumericsError(
                "the search met no output it could measure: the scales of the layers lie too far apart for its floats; "
                "use another method (autolip, liplt)."
            )
        return {k: m[form] * (1.0 + p) ** steps[k] for k, m in self.search.multipliers.items()}

    def weights(self, form: int) -> Weights:
        """The search's weights on input and output."""
        return Weights(self.search.input_weights[form], self.search.output_weights[form])

    def passes(self, count: int) -> bool:
        """Run passes; False once the search has stalled at machine precision or the budget is short."""
        before = self.search.rho
        for _ in range(count):
            self.search.step()
            late = self.search.passes >= (CHECKED_FEWEST if self.run.checked else FEWEST) and self.short()
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
        **more: object,
    ) -> Found:
        """The witness for the multipliers of every form.

        Raises:
            NotProved: its check would overrun a budget that it has to fit in, and another bound is at hand.
        """
        needed = self.proof_seconds()
        if self.run.checked and self.run.spare and needed > self.run.left + 0.1 * self.run.budget:
            raise NotProved(f"the check would take about {needed:.0f} s; raise budget=.")
        arrays = {
            f"multipliers.{cell.node}": torch.stack([m[cell.node] for m in multipliers]).double().cpu().contiguous()
            for cell in self.exact.cells
        }
        arrays["exponents"] = torch.tensor(self.exact.exponents, dtype=torch.int64)
        arrays["input_weights"] = self.search.input_weights
        arrays["output_weights"] = self.search.output_weights
        settings = {
            "rho": rho, "slack": slack, "route": route, "layerwise": self.options.layerwise,
            "dual_value": math.sqrt(float(self.search.rho.max())), "passes": self.search.passes, **more,
        }  # fmt: skip
        return Found(Witness("quadratic", arrays, settings), weaker, self.search.state)


@dataclass(eq=False)
class DenseFinish(Finish):
    """Rigorous: whole layers are factored, between passes in plain floating point, in the check with proofs."""

    def __post_init__(self) -> None:
        self._written = self._looked = 0.0
        self._written = seconds_of(self._write)
        self.depth = max(steps_to_output(self.exact).values(), default=0) + 1
        wanted = self.options.tolerance / self.depth
        place = min(range(len(LIFTS)), key=lambda i: abs(math.log(LIFTS[i] / wanted)))
        self.places = [place] * self.search.problems

    def _write(self) -> None:
        self.form = DenseForm(self.exact)

    def proof_seconds(self) -> float:
        """The matrices written again, and every form proved, which is dearer than looking at it."""
        return self._written + PROOF * self._looked

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
            if done or not going or self.run.left < 3.0 * spent or self.short():
                break
            count = max(10, int(self.search.passes * (1.0 if self.run.repeatable else 0.4)))
            if spent > 2.0 * searched and not self.run.repeatable:
                count = int(count * min(10.0, spent / max(searched, 1e-3)))
        return self.packaged([lift or self.cautious(form, self.places[form]) for form, lift in enumerate(best)])

    def packaged(self, lifts: list[Lift]) -> Found:
        """The witness of a lift per form; weaker are the next coarser lifts."""

        def weaker() -> Found | None:
            places = [min(lift.place + 2, len(LIFTS)) for lift in lifts]
            late = self.run.checked and self.run.left < self.check_seconds()
            if late or max(places) >= len(LIFTS):
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
        began = time.perf_counter()
        try:
            multipliers, rho = repaired(self.form, self.lifted(form, p), p, self.weights(form))
        except NotProved:
            return None
        self._looked = (time.perf_counter() - began) * self.search.problems
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
                if found.rho <= goal or self.short() or self.fine_enough(found, goal):
                    break
                step = step or -1
            elif found is None and best is None:
                step = 1
            else:
                break
            place += step
        return best
