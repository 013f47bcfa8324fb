"""The certificate of AutoLip: norms of linear maps and constants of the other nodes, combined along the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.map_norm import TARGET, NormBound, Route, Stacked, absolute_sums, map_norm, scaled
from lipcert.errors import CertificateError, UnsupportedNormError
from lipcert.network.graph import ActivationNode, AffineNode, GainNode, InputNode, Network, SelectionNode
from lipcert.network.linear import LinearMap
from lipcert.numerics.chance import Chance, Share
from lipcert.numerics.magnitude import ONE, ZERO, Magnitude
from lipcert.numerics.rounding import add_up, ldexp_up, mul_up
from lipcert.problem import Problem
from lipcert.result import BreakdownRow, Guarantee, weakest


def claim_slots(network: Network, p: float) -> list[tuple[int, int]]:
    """(node, term) of every norm the recursion may use, in order; term −1 is the stacked map of a sum (p = 2)."""
    slots = []
    for position, node in enumerate(network.nodes):
        if isinstance(node, AffineNode):
            slots += [(position, term) for term in range(len(node.maps))]
            if p == 2 and len(node.maps) > 1:
                slots.append((position, -1))
    return slots


@certificate("layer_product")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """L_k = Σ_i ‖A_{k←i}‖ L_i over the DAG, L_input = 1 (AutoLip: Scaman & Virmaux 2018, Algorithm 1).

    ``witness.arrays["norms"]`` holds one claimed norm per slot of ``claim_slots`` (NaN: none, find it here, or for a
    stacked slot: not used); ``witness.settings["fuse"]`` says whether affine neighbours are fused, ``["routes"]`` by
    what work each norm is bounded (``Route``; absent: ``written`` for all), ``["target"]`` how tight passes are to be.

    Why this is an upper bound: by induction ‖δz_k‖_p ≤ L_k ‖δx‖_p for every increment δx. A sum of images obeys the
    triangle inequality with certified norms; the stacked map [A_1 … A_k] applied to the stacked increments gives
    ‖[A_1 … A_k]‖ √(Σ L_i²); in l_∞ row o of the sum is at most Σ_i L_i Σ_j |A_i[o, j]|. An activation multiplies by its
    greatest |slope|, a gain block by its gain, a selection by its own constant. All sums and products round up.
    """
    p, q = problem.norm
    if p != q:
        raise UnsupportedNormError(f"the layer product needs equal norms on both sides, not l{p:g} → l{q:g}.")
    network = problem.network if witness.settings.get("fuse", True) else problem.unfused
    constants, used, rows = recursion(network, p, witness, chance)
    return Proof(constants[-1], weakest(used), tuple(rows))


def recursion(
    network: Network, p: float, witness: Witness, chance: Chance
) -> tuple[list[Magnitude], list[Guarantee], list[BreakdownRow]]:
    """L_k of every node with the guarantee of its last step, and the rows that explain them (see ``check``).

    Args:
        network: fused or not.
        p: the norm on both sides.
        witness: may claim norms in ``arrays["norms"]``.
        chance: the norms share one draw of it.
    """
    slots = claim_slots(network, p)
    claims = read_claims(witness, slots)
    norms = _Norms(p, claims, read_routes(witness, slots), _read_target(witness), chance.group(2 * len(slots)))
    constants: list[Magnitude] = []
    rows: list[BreakdownRow] = []
    used: list[Guarantee] = []
    for position, node in enumerate(network.nodes):
        guarantee: Guarantee = "rigorous"
        remark, kind = "", "input"
        own = ONE
        if isinstance(node, InputNode):
            total = ONE
        elif isinstance(node, AffineNode):
            kind = "linear"
            inputs = [constants[i] for i in node.parents]
            total, guarantee, remark = _affine(position, node, inputs, norms)
            own = _ratio(total, inputs)
        else:
            before = constants[node.parents[0]]
            if isinstance(node, ActivationNode):
                kind, own = "activation", Magnitude.of(node.function.greatest_slope)
            elif isinstance(node, SelectionNode):
                kind, own = "selection", Magnitude.of(node.function.gain(p))
            elif isinstance(node, GainNode):
                kind, remark = "gain", node.function.source
                if p not in node.function.gains:
                    raise UnsupportedNormError(
                        f"{node.name} at {node.where} has no known constant in l{p:g}; "
                        f"known: {', '.join(f'l{k:g}' for k in sorted(node.function.gains))}."
                    )
                own = Magnitude.of(node.function.gains[p])
            total = before * own
        constants.append(total)
        used.append(guarantee)
        if position:
            rows.append(BreakdownRow(node.name, kind, float(own), float(total), guarantee, remark))
    return constants, used, rows


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


def _read_target(witness: Witness) -> float:
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


def _affine(
    position: int,
    node: AffineNode,
    inputs: list[Magnitude],
    norms: _Norms,
) -> tuple[Magnitude, Guarantee, str]:
    p = norms.p
    total, used = ZERO, []
    for term, (linear, before) in enumerate(zip(node.maps, inputs, strict=True)):
        norm = norms.of((position, term), linear)
        used.append(norm.guarantee)
        total = total + norm.magnitude * before
    remark = "" if len(node.maps) == 1 else f"sum of {len(node.maps)}"
    if p == math.inf and len(node.maps) > 1:
        stacked = _row_sums(node, inputs)
        if stacked is not None and stacked < total:
            total, remark = stacked, "rows of the sum"
    if p == 2 and not math.isnan(norms.claims.get((position, -1), math.nan)):
        norm = norms.of((position, -1), Stacked(node.maps))
        length = inputs[0]
        for before in inputs[1:]:
            length = length.hypot(before)
        stacked = norm.magnitude * length
        if stacked < total:
            total, used, remark = stacked, [norm.guarantee], "stacked map"
    return total, weakest(used), remark


def _row_sums(node: AffineNode, inputs: list[Magnitude]) -> Magnitude | None:
    """max over rows of Σ_i L_i Σ_j |A_i[o, j]|, in units of the largest L_i's power of two."""
    sums = torch.zeros(node.shape, dtype=torch.float64)
    units = [scaled(linear) for linear in node.maps]
    powers = [before.exponent + unit.exponent for unit, before in zip(units, inputs, strict=True)]
    top = max(powers)
    for unit, before, power in zip(units, inputs, powers, strict=True):
        factor = ldexp_up(before.mantissa, max(power - top, -900))
        sums = (sums + absolute_sums(unit)[0] * mul_up(factor, add_up(1.0, 1e-15))) * add_up(1.0, 1e-15)
    greatest = float(sums.max()) if sums.numel() else math.inf
    return Magnitude.of(greatest).times_power(top) if 1e-200 < greatest < math.inf else None


def _ratio(total: Magnitude, inputs: list[Magnitude]) -> Magnitude:
    """Growth of the constant over the largest input's, for the report only."""
    largest = max(inputs, default=ONE, key=lambda m: m.log10)
    if not largest.mantissa or not total.mantissa:
        return total
    return Magnitude(total.mantissa / largest.mantissa, total.exponent - largest.exponent) * ONE
