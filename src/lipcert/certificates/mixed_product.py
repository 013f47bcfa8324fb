"""The certificate of the mixed product: constants of every node in three norms, passed on by the best pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.layer_product import claim_slots, read_claims, read_routes, read_target, view
from lipcert.certificates.norms.conversion import NORMS, equivalence
from lipcert.certificates.norms.mixed_norm import mixed_norms
from lipcert.certificates.norms.operator_norm import map_norm
from lipcert.certificates.product_rule import growth, length, row_sums
from lipcert.errors import UnsupportedNormError
from lipcert.guarantee import BreakdownRow, Guarantee, weakest
from lipcert.increments import Cell, EntryCell, Linear
from lipcert.network.linear import LinearMap
from lipcert.network.origin import module_paths
from lipcert.network.stacked import Stacked
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.midrad import lengths

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Norm, Problem


@dataclass(frozen=True)
class Reach:
    """‖δz‖_r ≤ constants[r] · ‖δx‖_p of one node, for r in {1, 2, ∞}, with the weakest guarantee behind each."""

    constants: Mapping[float, Magnitude]
    guarantees: Mapping[float, Guarantee]
    remark: str = ""

    @classmethod
    def of(cls, found: Mapping[float, tuple[Magnitude, Guarantee]], n: int, remark: str = "") -> Reach:
        """What is known in some norms of n numbers, and what that says in the others."""
        constants: dict[float, Magnitude] = {}
        guarantees: dict[float, Guarantee] = {}
        for r in NORMS:
            for other, (constant, guarantee) in found.items():
                value = constant * equivalence(n, other, r)
                if r not in constants or value < constants[r]:
                    constants[r], guarantees[r] = value, guarantee
        return cls(constants, guarantees, remark)


@certificate("mixed_product")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """A constant of every node in each of the norms 1, 2, ∞, from p at the input; the output's in q.

    The witness is that of a layer product in l2 (``layer_product``): claims for the 2 → 2 norms of maps, by which work.

    Why this is an upper bound: by induction ‖δz_k‖_r ≤ L_k^r ‖δx‖_p for r = 1, 2, ∞. At the input and everywhere else a
    constant in one norm gives one in another (``equivalence``). A map takes r to s by ‖A‖_{r→s}, and the least over r
    counts; a sum of maps obeys the triangle inequality, in l2 the stacked map serves as well, and in l∞ rows are added
    up together (``product_rule``). An activation multiplies by its greatest |slope| in every norm, and takes ∞ to 1 and
    2, and 2 to 1, by the norm of its slopes: Hölder. A block multiplies by its gain in the norms in which it has one.
    This is the shortest path over norms; all numbers round up.
    """
    p, q = problem.norm
    increments = view(problem, True, bool(witness.settings.get("blocks", False)))
    slots = claim_slots(increments, 2.0)
    claims, routes = read_claims(witness, slots), read_routes(witness, slots)
    target, share = read_target(witness), chance.group(2 * len(slots))

    def norms(slot: tuple[int, int], linear: LinearMap) -> dict[Norm, tuple[Magnitude, Guarantee]]:
        found: dict[Norm, tuple[Magnitude, Guarantee]] = {}
        if slot[1] >= 0:
            others, kind = mixed_norms(linear)
            found.update({pair: (value, kind) for pair, value in others.items()})
        if slot[1] >= 0 or not math.isnan(claims[slot]):
            claim = None if math.isnan(claims[slot]) else claims[slot]
            bound = map_norm(linear, 2.0, claim, share, routes[slot], target)
            if (2.0, 2.0) not in found or bound.magnitude < found[2.0, 2.0][0]:
                found[2.0, 2.0] = bound.magnitude, bound.guarantee
        return found

    def linear(position: int, relation: Linear, before: list[Reach]) -> Reach:
        tables = [norms((position, term), one) for term, one in enumerate(relation.maps)]
        stacked = None
        if len(relation.maps) > 1 and not math.isnan(claims[position, -1]):
            stacked = norms((position, -1), Stacked(relation.maps))[2.0, 2.0]
        return _sum(relation, before, tables, stacked)

    values = increments.walk(
        lambda _, start: Reach.of({p: (equivalence(start.size, p, p), "rigorous")}, start.size, f"l{p:g}"),
        linear,
        lambda _, cell, before: _cell(cell, before),
    )
    rows = tuple(
        BreakdownRow(
            relation.name, "linear" if isinstance(relation, Linear) else relation.kind,  # type: ignore[attr-defined]
            float(growth(value.constants[q], [values[i].constants[q] for i in relation.parents])),
            float(value.constants[q]), value.guarantees[q], value.remark, module_paths(relation.origin),
        )
        for relation, value in list(zip(increments.relations, values, strict=True))[1:]
    )  # fmt: skip
    return Proof(values[-1].constants[q], values[-1].guarantees[q], rows, computed=True)


def _sum(
    relation: Linear,
    before: Sequence[Reach],
    tables: Sequence[Mapping[Norm, tuple[Magnitude, Guarantee]]],
    stacked: tuple[Magnitude, Guarantee] | None,
) -> Reach:
    """Σ_i min over r of ‖A_i‖_{r→s} L_i^r for s = 1, 2, ∞; in l2 also ‖[A_1 … A_k]‖ √(Σ L_i²)."""
    found: dict[float, tuple[Magnitude, Guarantee]] = {}
    used: dict[float, list[str]] = {s: [] for s in NORMS}
    for s in NORMS:
        total: Magnitude = ZERO
        guarantees: list[Guarantee] = []
        for reach, table in zip(before, tables, strict=True):
            choices = [
                (r, norm * reach.constants[r], weakest([guarantee, reach.guarantees[r]]))
                for (r, to), (norm, guarantee) in table.items()
                if to == s
            ]
            if not choices:
                break
            r, value, guarantee = min(choices, key=_key)
            total, guarantees = total + value, [*guarantees, guarantee]
            used[s].append(f"l{r:g}")
        else:
            found[s] = total, weakest(guarantees)
    together = row_sums(relation, [reach.constants[math.inf] for reach in before]) if len(before) > 1 else None
    if together is not None and together < found[math.inf][0]:
        found[math.inf] = together, weakest([found[math.inf][1], *(reach.guarantees[math.inf] for reach in before)])
        used[math.inf] = ["rows of the sum"]
    if stacked is not None:
        value = stacked[0] * length([reach.constants[2.0] for reach in before])
        if 2.0 not in found or value < found[2.0][0]:
            found[2.0] = value, weakest([stacked[1], *(reach.guarantees[2.0] for reach in before)])
            used[2.0] = ["stacked map"]
    return Reach.of(found, relation.size, "; ".join(f"{', '.join(used[s])} → l{s:g}" for s in found if used[s]))


def _key(choice: tuple[float, Magnitude, Guarantee]) -> tuple[bool, int, float]:
    value = choice[1]
    return value.mantissa > 0, value.exponent, value.mantissa


def _cell(cell: Cell, before: Reach) -> Reach:
    """An activation between all pairs of norms, a block in the norms that it has a gain in."""
    found: dict[float, tuple[Magnitude, Guarantee]] = {}
    for s in NORMS:
        for r in NORMS:
            gain = _gain(cell, r, s)
            if gain is None:
                continue
            value = before.constants[r] * gain
            if s not in found or value < found[s][0]:
                found[s] = value, before.guarantees[r]
    if not found:
        raise UnsupportedNormError(f"{cell.name} at {cell.where} has no known constant in l1, l2 or linf.")
    return Reach.of(found, cell.size, cell.remark)


def _gain(cell: Cell, r: float, s: float) -> Magnitude | None:
    """‖δz‖_s ≤ gain · ‖δv‖_r; None where none is known. For slopes d and s < r: ‖d‖_t, 1/t = 1/s − 1/r."""
    if not isinstance(cell, EntryCell):
        try:
            return Magnitude.of(cell.gain(r)) if r == s else None
        except UnsupportedNormError:
            return None
    if r <= s:
        return Magnitude.of(cell.greatest_slope)
    slopes = torch.maximum(cell.lower.abs(), cell.upper.abs()).reshape(1, -1)
    value = float(lengths(slopes, 1.0 if (r, s) == (math.inf, 1.0) else 2.0)[0])
    return Magnitude.of(value) if math.isfinite(value) else None
