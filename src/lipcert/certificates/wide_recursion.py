"""Ranges and constants worked out together on networks too wide for matrices: norms of maps, and of a few Jacobians."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lipcert.certificates.joint_recursion import CLOSED_FORM
from lipcert.certificates.merged_recursion import cuts
from lipcert.certificates.norms.operator_norm import TARGET, NormBound, map_norm
from lipcert.certificates.norms.path_map import Pathway, reachable
from lipcert.certificates.norms.scaling import terms
from lipcert.certificates.product_rule import Step
from lipcert.certificates.recursions import FreeRecursion, Recursion
from lipcert.errors import NumericsError
from lipcert.guarantee import Guarantee, weakest
from lipcert.increments import Cell, EntryCell, Increments, Linear, Relation
from lipcert.network.linear import LinearMap
from lipcert.numerics.magnitude import ONE, ZERO, Magnitude
from lipcert.numerics.rounding import UNIT, gamma, mul_up
from lipcert.ranges.centred_course import CentredCourse

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem

#: Norms of Jacobians are not looked at where what is left is more than this part of the product rule's constant.
WORTH = 0.7
#: Those of maps from nodes in between not where what they would make smaller is less than this part of the Jacobian's.
COUNTS = 3e-3
#: Relative inflation aimed at by norms of Jacobians inside the network.
ROUGH = 0.1


class WideRecursion(Recursion):
    """The product rule with relations that follow from its constants, and how far nodes are from linear ones.

    Why the deviations hold: let A_{k←s} be the map from node s to node k where all w of cells are 0, and J_k that from
    the input. If every path passes s, δz_k = A_{k←s} δz_s + d_k: d_k is the sum of the maps of its parents' d, c times
    that of the parent and d δw for a cell, all of a block's increment, and what the node's rounding adds
    (``CentredCourse``); d_s = 0. So along the nodes s_1, s_2, …, s_m = k that every path passes, δz_k = J_k δx +
    Σ_i A_{k←s_i} d_i, and with ‖d_i‖ ≤ b_i‖δx‖ the triangle inequality gives ‖J_k‖ + Σ_i ‖A_{k←s_i}‖ b_i as a constant.
    ‖A_{k←s_i}‖ is at most ‖A_{k←s_j}‖‖A_{s_j←s_i}‖ for i < j < k; where that is not good enough it is looked at itself.
    Norms of these maps are probabilistic; those of others are rigorous. What a pass for J_k loses by rounding at a node
    counts to d there: of parts that cancel it may be all that there is.

    Args:
        problem: on a bounded domain.
        chance: what norms of Jacobians draw from.
        rigorous: no such norms, only the product rule.
    """

    def __init__(self, problem: Problem, chance: Chance, rigorous: bool = False) -> None:
        self.course = CentredCourse(problem.headed, problem.domain)
        super().__init__(Increments.of(self.course.network, self.course.ranges), 2.0, chance, None)
        self.relations: list[Relation] = []
        self.rigorous, self._chance = rigorous, chance
        self._cuts = cuts(self.course.network) & self.course.asked
        self._start_at = 0  # the last node that d is counted from
        self._left: list[tuple[int, Magnitude, Magnitude]] = []  # (s_i, b_i, a bound of ‖A_{s←s_i}‖)
        self._deviations: list[Magnitude] = []  # b_k
        self._norms: dict[int, tuple[LinearMap, NormBound]] = {}
        self._sums: dict[int, tuple[LinearMap, Magnitude]] = {}
        self._guarantee: Guarantee = "rigorous"
        self._closed: set[int] = set()

    def relation(self, k: int) -> Relation:
        """As the course has it."""
        self.relations.append(self.course.relation(k))
        return self.relations[k]

    def through(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """By Jacobians, or by the closed form of attention where that is less."""
        value, guarantee = self._by_jacobians(k, node, product)
        found = self.course.closed(k)
        if found is not None:
            arguments = self.course.network.nodes[k].parents[1:]
            parts = zip(found[0], arguments, strict=True)
            own = sum((Magnitude.of(float(f.max())) * self.constants[p] for f, p in parts), Magnitude.of(found[1]))
            if own < min(value, product, key=lambda m: m.log10):
                self._closed.add(k)
                return own, self._guarantee
        return value, guarantee

    def remark(self, k: int) -> str:
        """Of nodes done by the closed form that."""
        return CLOSED_FORM if k in self._closed else super().remark(k)

    def _by_jacobians(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """‖J_k‖ and what is left where every path passes the node, and that may be less than the product rule's."""
        if self.rigorous or k not in self._cuts:
            return product, "rigorous"
        own = self._deviation(node) + self._error(k)
        if product * Magnitude.of(WORTH) < own:
            return product, self._guarantee
        last = k == len(self.increments.relations) - 1
        try:
            norm = self._norm(0, k, TARGET if last or not self._left else ROUGH)
            step = self._norm(self._start_at, k, ROUGH) if self._left else ONE
        except NumericsError:  # a map that is nothing but rounding
            return product, self._guarantee
        if self._left:
            self._left = self._looked_at(k, [(s, b, a * step) for s, b, a in self._left], norm)
        self._left.append((k, own, ONE))
        self._start_at = k
        return sum((b * a for _, b, a in self._left), norm), self._guarantee

    def _looked_at(
        self, k: int, left: list[tuple[int, Magnitude, Magnitude]], norm: Magnitude
    ) -> list[tuple[int, Magnitude, Magnitude]]:
        """The same with norms of their own for those that count, the largest first."""
        found = {s: a for s, _, a in left}
        sizes = {s: b for s, b, _ in left}
        for s in sorted(found, key=lambda s: (sizes[s] * found[s]).log10, reverse=True):
            if s != self._start_at and norm * Magnitude.of(COUNTS) < sizes[s] * found[s]:
                found[s] = min(found[s], self._norm(s, k, ROUGH), key=lambda m: m.log10)
        return [(s, b, found[s]) for s, b, _ in left]

    def enter(self, k: int, relation: Relation) -> None:
        """Its deviation; the course is told its constant."""
        own = ZERO if k == self._start_at else self._deviation(relation) + self._error(k)
        self._deviations.append(own)
        self.course.tell(float(self.constants[k]))

    def _known(self, k: int, relation: Relation, step: Step) -> Step:
        guarantee = weakest([step.guarantee, self._guarantee])
        return super()._known(k, relation, replace(step, constant=step.constant + self._error(k), guarantee=guarantee))

    def _error(self, k: int) -> Magnitude:
        return Magnitude.of(self.course.errors[k])

    def _deviation(self, relation: Relation) -> Magnitude:
        if isinstance(relation, Linear):
            parts = zip(relation.maps, relation.parents, strict=True)
            return sum((self._passed(m, p, len(relation.maps)) for m, p in parts), ZERO)
        if not isinstance(relation, Cell):
            return ZERO
        if not isinstance(relation, EntryCell) or not relation.size:
            return Magnitude.of(relation.gain(self.p)) * self.constants[relation.parent]
        passed, spread = (Magnitude.of(float(t.abs().max())) for t in (relation.c, relation.d))
        spread = spread + passed * Magnitude.of(4.0 * UNIT)
        return passed * self._deviations[relation.parent] + spread * self.constants[relation.parent]

    def _passed(self, linear: LinearMap, parent: int, count: int) -> Magnitude:
        """The parent's deviation, and what passes for J's norm lose by rounding here, which goes on as that does."""
        if id(linear) not in self._sums:
            rounding = Magnitude.of(mul_up(2.0, gamma(terms(linear) + count + 8.0)))
            sums = map_norm(linear, self.p, None, self.share, route="sums").magnitude
            self._sums[id(linear)] = linear, rounding * sums
        own = self._norm_of(linear, 0).magnitude * self._deviations[parent]
        return own + self._sums[id(linear)][1] * self.constants[parent]

    def _norm_of(self, linear: LinearMap, term: int) -> NormBound:
        """Of blocks side by side, each map once; that of a stacked map is left to sums."""
        if term < 0:
            return map_norm(linear, self.p, None, self.share, route="sums")
        if id(linear) not in self._norms:
            self._norms[id(linear)] = linear, map_norm(linear, self.p, None, self.share, route="blocks")
            self._guarantee = weakest([self._guarantee, self._norms[id(linear)][1].guarantee])
        return self._norms[id(linear)][1]

    def _norm(self, source: int, k: int, target: float) -> Magnitude:
        """‖A_{k←s}‖."""
        increments = Increments(tuple(self.relations))
        if not reachable(increments, source, k):
            return ZERO
        passes = FreeRecursion(increments, self.p, self._chance, None)
        norm, guarantee = passes.norm(Pathway(passes.transformed, source, k, False), target)
        self._guarantee = weakest([self._guarantee, guarantee])
        exponents = passes.transformed.exponents
        return (norm + passes.lost).times_power(exponents[k] - exponents[source])
