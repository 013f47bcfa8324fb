"""The certificate of AutoLip: norms of linear maps and constants of the other nodes, combined along the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.norms.operator_norm import TARGET, NormBound, Route, map_norm
from lipcert.certificates.product_rule import Step, product_rule, rows
from lipcert.errors import CertificateError, UnsupportedNormError
from lipcert.guarantee import weakest
from lipcert.increments import Cell, Increments, Linear
from lipcert.network.linear import LinearMap
from lipcert.numerics.magnitude import ONE, Magnitude

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance, Share
    from lipcert.problem import Problem


def claim_slots(increments: Increments, p: float) -> list[tuple[int, int]]:
    """(node, term) of every norm the recursion may use, in order; term −1 is the stacked map of a sum (p = 2)."""
    slots = []
    for position, relation in increments.linears.items():
        slots += [(position, term) for term in range(len(relation.maps))]
        if p == 2 and len(relation.maps) > 1:
            slots.append((position, -1))
    return slots


@certificate("layer_product")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """L_k = Σ_i ‖A_{k←i}‖ L_i over the DAG, L_input = 1 (AutoLip: Scaman & Virmaux 2018, Algorithm 1).

    ``witness.arrays["norms"]`` holds one claimed norm per slot of ``claim_slots`` (NaN: none, find it here, or for a
    stacked slot: not used); ``witness.settings["fuse"]`` says whether affine neighbours are fused, ``["blocks"]``
    whether two activations of one value are one block (absent: no), ``["routes"]`` by what work each norm is bounded
    (``Route``; absent: ``written`` for all), ``["target"]`` how tight passes are to be.

    Why this is an upper bound: by induction ‖δz_k‖_p ≤ L_k ‖δx‖_p for every increment δx. A sum of images obeys the
    triangle inequality with certified norms; the stacked map [A_1 … A_k] applied to the stacked increments gives
    ‖[A_1 … A_k]‖ √(Σ L_i²); in l_∞ row o of the sum is at most Σ_i L_i Σ_j |A_i[o, j]|. An activation multiplies by its
    greatest |slope|, a gain block by its gain, a selection by its own constant. All sums and products round up.
    """
    p, q = problem.norm
    if p != q:
        raise UnsupportedNormError(f"the layer product needs equal norms on both sides, not l{p:g} → l{q:g}.")
    increments = view(problem, bool(witness.settings.get("fuse", True)), bool(witness.settings.get("blocks", False)))
    steps = recursion(increments, p, witness, chance)
    guarantee = weakest([step.guarantee for step in steps])
    # sums of entries, which bound norms in l2, too, and ranges: in an order that is the machine's
    computed = p != 2 or problem.domain is not None or not _short(float(steps[-1].constant))
    return Proof(steps[-1].constant, guarantee, rows(increments, steps), computed)


def _short(value: float) -> bool:
    """Whether half of a float's digits hold it, as sums that were exact in any order do."""
    return float(torch.tensor(value, dtype=torch.float32)) == value


def view(problem: Problem, fuse: bool, blocks: bool) -> Increments:
    """What the recursion runs on: op by op, fused, or fused with two activations of one value as one block."""
    if not fuse:
        return problem.unfused_increments
    return problem.blocked_increments if blocks else problem.merged_increments


def recursion(increments: Increments, p: float, witness: Witness, chance: Chance) -> list[Step]:
    """L_k of every node with the guarantee of its last step (see ``check``).

    Args:
        increments: of the network, fused or not.
        p: the norm on both sides.
        witness: may claim norms in ``arrays["norms"]``.
        chance: the norms share one draw of it.
    """
    slots = claim_slots(increments, p)
    claims = read_claims(witness, slots)
    norms = _Norms(p, claims, read_routes(witness, slots), read_target(witness), chance.group(2 * len(slots)))

    def linear(position: int, relation: Linear, before: list[Step]) -> Step:
        def norm(map_: LinearMap, term: int) -> NormBound | None:
            if term < 0 and math.isnan(claims[position, term]):
                return None
            return norms.of((position, term), map_)

        return product_rule(relation, [step.constant for step in before], p, norm)

    def cell(_: int, relation: Cell, before: Step) -> Step:
        own = Magnitude.of(relation.gain(p))
        return Step(before.constant * own, own, "rigorous", relation.kind, relation.remark)

    return increments.walk(lambda *_: Step(ONE, ONE, kind="input"), linear, cell)


def read_claims(witness: Witness, slots: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """The claimed norm of every slot, NaN for none."""
    values = witness.arrays.get("norms")
    if values is None:
        return dict.fromkeys(slots, math.nan)
    if values.shape != (len(slots),):
        raise CertificateError(f"the certificate holds {values.numel()} norms, the network needs {len(slots)}.")
    return dict(zip(slots, (float(v) for v in values), strict=True))


def read_routes(witness: Witness, slots: list[tuple[int, int]]) -> dict[tuple[int, int], Route]:
    """The route of every slot."""
    routes = witness.settings.get("routes")
    if routes is None:
        return dict.fromkeys(slots, "written")
    known = get_args(Route)
    if not isinstance(routes, list) or len(routes) != len(slots) or any(route not in known for route in routes):
        raise CertificateError(f"the certificate's routes must be {len(slots)} of {', '.join(known)}.")
    return dict(zip(slots, routes, strict=True))


def read_target(witness: Witness) -> float:
    """The inflation that passes aim at."""
    target = witness.settings.get("target", TARGET)
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0.0 < target <= 10.0:
        raise CertificateError("the certificate's target must be a number between 0 and 10.")
    return float(target)


@dataclass(frozen=True, eq=False)
class _Norms:
    """Norms of maps by what the witness claims of them."""

    p: float
    claims: Mapping[tuple[int, int], float]
    routes: Mapping[tuple[int, int], Route]
    target: float
    share: Share

    def of(self, slot: tuple[int, int], linear: LinearMap) -> NormBound:
        claim = self.claims[slot]
        known = None if math.isnan(claim) else claim
        return map_norm(linear, self.p, known, self.share, self.routes[slot], self.target)
