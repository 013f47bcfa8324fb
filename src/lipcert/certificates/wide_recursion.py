"""Ranges and constants worked out together on networks too wide for matrices: norms of maps, and of a few Jacobians."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lipcert.certificates.merged_recursion import cuts
from lipcert.certificates.norms.operator_norm import TARGET, NormBound, map_norm
from lipcert.certificates.norms.path_map import Pathway, reachable
from lipcert.certificates.product_rule import Step
from lipcert.certificates.recursions import FreeRecursion, Recursion
from lipcert.guarantee import Guarantee, weakest
from lipcert.increments import Cell, EntryCell, Increments, Linear, Relation
from lipcert.network.linear import LinearMap
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.ranges.centred_course import CentredCourse

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem

#: Norms of Jacobians are not looked at where what is left is more than this part of the product rule's constant.
WORTH = 0.7
#: Relative inflation aimed at by norms of Jacobians inside the network.
ROUGH = 0.1


class WideRecursion(Recursion):
    """The product rule with relations that follow from its constants, and how far nodes are from linear ones.

    Why the deviations hold: let J_k be the map from the input to node k where all w of cells are 0, and A_{k←s} that
    from node s. If every path passes s, δz_k = A_{k←s} δz_s + d_k: d_k is the sum of the maps of its parents' d, c times
    that of the parent and d δw for a cell, all of a block's increment, and what the node's rounding adds
    (``CentredCourse``); d_s = 0. So with ‖δz_s − J_s δx‖ ≤ e_s‖δx‖ and ‖d_k‖ ≤ b_k‖δx‖, by the triangle inequality,
    ‖δz_k − J_k δx‖ ≤ (‖A_{k←s}‖ e_s + b_k)‖δx‖ = e_k‖δx‖, and ‖J_k‖ + e_k is a constant. Norms of J_k and A_{k←s} are
    probabilistic; of all other maps they are rigorous.

    Args:
        problem: on a bounded domain.
        chance: what norms of Jacobians draw from.
        rigorous: no such norms, only the product rule.
    """

    def __init__(self, problem: Problem, chance: Chance, rigorous: bool = False) -> None:
        self.course = CentredCourse(problem.expanded, problem.domain)
        super().__init__(Increments.of(problem.expanded, self.course.ranges), 2.0, chance, None)
        self.relations: list[Relation] = []
        self.rigorous, self._chance = rigorous, chance
        self._cuts = cuts(problem.expanded) & self.course.asked
        self._start_at, self._before = 0, ZERO  # s and e_s
        self._deviations: list[Magnitude] = []  # b_k
        self._norms: dict[int, tuple[LinearMap, NormBound]] = {}
        self._guarantee: Guarantee = "rigorous"

    def relation(self, k: int) -> Relation:
        """As the course has it."""
        self.relations.append(self.course.relation(k))
        return self.relations[k]

    def through(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """‖J_k‖ + e_k where every path passes the node, and that may be less than the product rule's."""
        if self.rigorous or k not in self._cuts:
            return product, "rigorous"
        first, last = self._start_at == 0, k == len(self.increments.relations) - 1
        total = self._deviation(node) + self._error(k)
        if self._before.mantissa:
            total = total + self._norm(self._start_at, k, ROUGH) * self._before
        if product * Magnitude.of(WORTH) < total:
            return product, self._guarantee
        self._start_at, self._before = k, total
        norm = self._norm(0, k, TARGET if last or first else ROUGH)
        return norm + total, self._guarantee

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
            return sum((self._norm_of(m, 0).magnitude * self._deviations[p] for m, p in parts), ZERO)
        if not isinstance(relation, Cell):
            return ZERO
        if not isinstance(relation, EntryCell) or not relation.size:
            return Magnitude.of(relation.gain(self.p)) * self.constants[relation.parent]
        passed, spread = (Magnitude.of(float(t.abs().max())) for t in (relation.c, relation.d))
        return passed * self._deviations[relation.parent] + spread * self.constants[relation.parent]

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
