"""AutoLip (Scaman & Virmaux 2018, Algorithm 1): a product of norms along the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from lipcert.certificates.base import Witness
from lipcert.certificates.layer_product import claim_slots, view
from lipcert.increments import Linear
from lipcert.methods.base import EQUAL_NORMS, Found, Method, Run, method
from lipcert.methods.norm_effort import Effort, Slot, maps_of, plan_norms
from lipcert.network.linear import LinearMap
from lipcert.network.stacked import Stacked
from lipcert.problem import Norm, Problem
from lipcert.search.power import power_method
from lipcert.search.proposed_norms import propose_norm


@method
@dataclass(frozen=True, kw_only=True)
class AutoLip(Method):
    """Product of layer norms along any graph: cheap, always applicable, loose on deep networks.

    L_k = Σ_i ‖∂_i g_k‖ L_i in topological order, L_input = 1.

    Norms that the budget has no time for (a direct call: three times the budget) are bounded by less work: passes
    instead of a factorisation, then row and column sums; see ``norm_effort``.

    Attributes:
        fuse: merge affine neighbours first (never worse); False gives the paper's op-by-op recursion.
    """

    name: ClassVar[str] = "autolip"
    norms: ClassVar[tuple[Norm, ...]] = EQUAL_NORMS
    summary: ClassVar[str] = "product of layer norms along the graph; cheap, any network, loose when deep"

    fallback: ClassVar[str | None] = None

    fuse: bool = True

    def solve(self, problem: Problem, run: Run) -> Found:
        """Propose the norm of every linear map, by as much work as the seconds allow."""
        self.require_norm(problem.norm)
        views = [False, True] if self.fuse and problem.has_twins and problem.merged_increments.cells else [False]
        found = [self._proposed(problem, run, blocks, len(views)) for blocks in views]
        return Found(min(found, key=lambda pair: pair[0])[1])

    def _proposed(self, problem: Problem, run: Run, blocks: bool, views: int) -> tuple[float, Witness]:
        """A value, not proved, and the witness; two activations of one value may be one block."""
        p = problem.norm[0]
        increments = view(problem, self.fuse, blocks)
        slots = claim_slots(increments, p)
        # A direct call has three times the budget: nobody waits there for more than this bound.
        seconds = (1.0 if run.checked else 3.0) * max(run.left, 0.0) / views
        effort = (
            plan_norms(maps_of(increments), seconds, run.rigorous)
            if p == 2
            else Effort(dict.fromkeys(slots, "written"))
        )
        norms: dict[Slot, float] = {}

        def norm(slot: Slot, linear: LinearMap) -> float:
            norms[slot] = propose_norm(linear, p, run.generator, effort.routes[slot], effort.target)
            return norms[slot]

        def propose(position: int, relation: Linear, before: list[float]) -> float:
            run.report(position / len(increments.relations), relation.name)
            total = sum((norm((position, t), m) * before[t] for t, m in enumerate(relation.maps)), 0.0)
            if p == 2 and len(relation.maps) > 1:
                norms[position, -1] = math.nan
                length = math.hypot(*before)
                if math.isfinite(length) and _worth_stacking(relation, length, total):
                    total = min(total, norm((position, -1), Stacked(relation.maps)) * length)
            return total

        value = increments.walk(lambda *_: 1.0, propose, lambda _, cell, before: before * cell.gain(p))[-1]
        values = torch.tensor([norms[slot] for slot in slots], dtype=torch.float64)
        settings = {"fuse": self.fuse, "routes": [effort.routes[slot] for slot in slots], "target": effort.target}
        return value, Witness("layer_product", {"norms": values}, {**settings, **({"blocks": True} if blocks else {})})


def _worth_stacking(relation: Linear, length: float, total: float) -> bool:
    """Whether a few power steps leave hope that ‖[A_1 … A_k]‖ √(Σ L²) is below Σ ‖A_i‖ L_i."""
    stacked = Stacked(relation.maps)
    start = torch.ones(stacked.in_size, dtype=torch.float64)
    try:
        below, _ = power_method(lambda x: stacked.gram(x.reshape(1, *stacked.in_shape)).reshape(-1), start, 6)
    except ValueError:  # it overflows
        return False
    return 0.0 < below * length < total
