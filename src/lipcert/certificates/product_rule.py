"""One step of a product recursion: the constant of a sum of linear maps from those of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lipcert.certificates.norms.operator_norm import NormBound
from lipcert.certificates.norms.scaling import absolute_sums, scaled
from lipcert.guarantee import BreakdownRow, Guarantee, weakest
from lipcert.increments import Increments, Linear
from lipcert.network.linear import LinearMap
from lipcert.network.origin import module_paths
from lipcert.network.stacked import Stacked
from lipcert.numerics.magnitude import ONE, ZERO, Magnitude
from lipcert.numerics.rounding import add_up, ldexp_up, mul_up

#: (map, term) → its certified norm; None for a norm that is not wanted. Term −1 is the stacked map of a sum.
Norm = Callable[[LinearMap, int], NormBound | None]


@dataclass(frozen=True)
class Step:
    """What the recursion knows of one node: ‖δz‖ ≤ constant · ‖δx‖, and how the last step came about."""

    constant: Magnitude
    own: Magnitude
    guarantee: Guarantee = "rigorous"
    kind: str = "linear"
    remark: str = ""


def product_rule(relation: Linear, inputs: Sequence[Magnitude], p: float, norm: Norm) -> Step:
    """‖δz‖_p ≤ Σ_i ‖A_i‖ L_i, or what bounds the sum better, L_i the constants of its inputs.

    Why this is an upper bound: the triangle inequality; the stacked map [A_1 … A_k] applied to the stacked increments
    gives ‖[A_1 … A_k]‖_2 √(Σ L_i²); in l_∞ row o of the sum is at most Σ_i L_i Σ_j |A_i[o, j]|. All rounded up.
    """
    total, used = ZERO, []
    for term, (linear, before) in enumerate(zip(relation.maps, inputs, strict=True)):
        bound = norm(linear, term)
        assert bound is not None
        used.append(bound.guarantee)
        total = total + bound.magnitude * before
    remark = "" if len(relation.maps) == 1 else f"sum of {len(relation.maps)}"
    if p == math.inf and len(relation.maps) > 1:
        together = row_sums(relation, inputs)
        if together is not None and together < total:
            total, remark = together, "rows of the sum"
    stacked = norm(Stacked(relation.maps), -1) if p == 2 and len(relation.maps) > 1 else None
    if stacked is not None:
        value = stacked.magnitude * length(inputs)
        if value < total:
            total, used, remark = value, [stacked.guarantee], "stacked map"
    return Step(total, growth(total, inputs), weakest(used), "linear", remark)


def rows(increments: Increments, steps: list[Step]) -> tuple[BreakdownRow, ...]:
    """The rows that explain a recursion's steps."""
    pairs = list(zip(increments.relations, steps, strict=True))[1:]
    return tuple(
        BreakdownRow(
            relation.name, step.kind, float(step.own), float(step.constant), step.guarantee, step.remark,
            module_paths(relation.origin),
        )
        for relation, step in pairs
    )  # fmt: skip


def length(constants: Sequence[Magnitude]) -> Magnitude:
    """√(Σ L²) of some nodes."""
    value = constants[0]
    for other in constants[1:]:
        value = value.hypot(other)
    return value


def row_sums(relation: Linear, inputs: Sequence[Magnitude]) -> Magnitude | None:
    """max over rows of Σ_i L_i Σ_j |A_i[o, j]|, in units of the largest L_i's power of two."""
    sums = torch.zeros(relation.shape, dtype=torch.float64)
    units = [scaled(linear) for linear in relation.maps]
    powers = [before.exponent + unit.exponent for unit, before in zip(units, inputs, strict=True)]
    top = max(powers)
    for unit, before, power in zip(units, inputs, powers, strict=True):
        factor = ldexp_up(before.mantissa, max(power - top, -900))
        sums = (sums + absolute_sums(unit)[0] * mul_up(factor, add_up(1.0, 1e-15))) * add_up(1.0, 1e-15)
    greatest = float(sums.max()) if sums.numel() else math.inf
    return Magnitude.of(greatest).times_power(top) if 1e-200 < greatest < math.inf else None


def growth(total: Magnitude, inputs: Sequence[Magnitude]) -> Magnitude:
    """Growth of a constant over the largest of its inputs', for the report only."""
    largest = max(inputs, default=ONE, key=lambda m: m.log10)
    if not largest.mantissa or not total.mantissa:
        return total
    return Magnitude(total.mantissa / largest.mantissa, total.exponent - largest.exponent) * ONE
