"""LipLT with ranges and constants worked out together: how far a node goes on a ball follows from its constant.

Boxes alone are of little use behind a few layers: one of half-widths δ around n entries reaches √n times farther than
the ball that it is around, node after node.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.norms.written_map import EnclosedMatrix
from lipcert.certificates.product_rule import Step
from lipcert.certificates.recursions import Recursion, SparseRecursion
from lipcert.domain import Ball, Box
from lipcert.guarantee import Guarantee
from lipcert.increments import Increments, Linear, Relation
from lipcert.network.graph import ActivationNode, GainNode, InputNode, Node, OpenNode, PartNode
from lipcert.network.linear import size
from lipcert.network.relations import Cell, Local, LocalGains, LocalSlopes, Start
from lipcert.network.slopes import slopes
from lipcert.numerics.interval import Around, Interval
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.midrad import TINY, UP
from lipcert.numerics.rounding import UNDERFLOW, add_up, div_up, mul_up, norm_up
from lipcert.numerics.rows import length_up
from lipcert.numerics.spectral import sigma_max_upper
from lipcert.ranges.build import Ranges, applied, boxes_of

if TYPE_CHECKING:
    from lipcert.domain import Domain
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem

#: Sources whose cheap bound is more than this part of the largest are bounded sharply, and together.
COUNTS = 2e-4
#: Steps of the power method that finds how to weigh sources against each other.
_STEPS = 12


def reach_of(domain: Domain) -> float:
    """How far points of the domain are from its ``home`` in l2, rounded up; ∞ where that is not bounded."""
    if domain is None:
        return math.inf
    if isinstance(domain, Ball) and domain.p <= 2:
        return domain.radius
    low, high = domain.bounds()
    home = domain.home()
    far = torch.maximum(high - home, home - low).reshape(1, -1) * UP
    return float(length_up(far)) if bool(far.isfinite().all()) else math.inf


def applies(problem: Problem) -> bool:
    """Whether there are blocks or products of which a bounded domain leaves little, between l2 norms."""
    if problem.slopes_only or problem.norm != (2.0, 2.0) or not math.isfinite(reach_of(problem.domain)):
        return False
    return problem.nearly_linear or any(isinstance(node, PartNode) for node in problem.unfused.nodes)


class Along(Recursion):
    """Constants of all nodes, each node's relation from how far the constants before let its arguments go.

    Why this is an upper bound: let x̂ be a point of the convex domain, none of whose points is farther from it than ρ.
    If ‖z(x) − z(x')‖ ≤ ℓ‖x − x'‖ for the argument z of a node and all points of the domain, z(x) lies within ℓρ of
    z(x̂), and so does each entry with a constant of its own. Between points of that set, which is convex, the node's
    increment obeys the relation that ``Around`` gives; so by induction all relations hold, and the recursion's
    constants with them.

    Attributes:
        centres: boxes in which the nodes' values at x̂ are.
        entries: position → a constant for every entry.
    """

    def __init__(self, problem: Problem, chance: Chance) -> None:
        assert problem.domain is not None
        self.network = problem.expanded
        self.ranges = Ranges.of(self.network, problem.domain, problem.anchor, "none")
        super().__init__(Increments.of(self.network, self.ranges), 2.0, chance, None)
        self.radius, self.home = reach_of(problem.domain), problem.domain.home()
        self.centres: list[Interval] = []
        self.asked = asked(self.network.nodes)
        self.entries: dict[int, Tensor] = {}
        self.relations: list[Relation] = []
        self._parts: dict[tuple[int, ...], tuple[Local, ...]] = {}

    def run(self) -> list[Step]:
        """A step per node."""
        steps: list[Step] = []
        with torch.no_grad():
            for k, node in enumerate(self.network.nodes):
                relation = node.relation(k, self._local(k, node))
                self.relations.append(relation)
                before = [steps[p] for p in relation.parents]
                if isinstance(relation, Linear):
                    steps.append(self._linear(k, relation, before))
                elif isinstance(relation, Cell):
                    steps.append(self._cell(k, relation, before[0]))
                else:
                    assert isinstance(relation, Start)
                    steps.append(self._start(k, relation))
        return steps

    def readers(self, position: int) -> tuple[int, ...]:
        """Of the network: relations are not known before their arguments are."""
        return self.network.consumers[position]

    def _local(self, k: int, node: Node) -> Local | None:
        """What the node's increments obey where its arguments are around their centres."""
        known = self.ranges.local.get(k)
        if isinstance(node, PartNode):
            key = (id(node.function), *node.arguments)
            if key not in self._parts:
                found = node.function.obeyed([self._around(p) for p in node.arguments])
                lost = any(isinstance(part, LocalGains) and not part.gains for part in found)
                self._parts[key] = () if lost else found
            return self._parts[key][node.which] if self._parts[key] else known
        function = applied(node)
        if function is None:
            return known
        box = self._around(node.parents[0]).expanded(node.shape)
        lower, upper = slopes(function, box.low, box.high)
        return LocalSlopes(lower.expand(node.shape), upper.expand(node.shape), box)

    def _around(self, k: int) -> Interval:
        """The values of node k: in their box, and as near to those at x̂ as constants say."""
        centre, box = self.centres[k], self.ranges.boxes[k]
        shape = box.low.shape
        middle = 0.5 * centre.low + 0.5 * centre.high
        off = torch.maximum(centre.high - middle, middle - centre.low) * UP + TINY
        reach = mul_up(float(self.constants[k]), self.radius) if self.radius else 0.0
        if not bool(off.isfinite().all()) or math.isnan(reach):
            return box
        far = torch.full(shape, reach, dtype=torch.float64)
        if k in self.entries:
            own = (self.entries[k] * self.radius * UP + TINY).reshape(shape)
            far = torch.where(own < far, own, far)
        far = (far + off) * UP
        low, high = torch.maximum(box.low, _below(middle - far)), torch.minimum(box.high, _above(middle + far))
        if bool((low > high).any()):
            return box
        return Around(low, high, middle, (reach + float(length_up(off.reshape(1, -1)))) * UP)


class JointRecursion(Along, SparseRecursion):
    """With all maps from sources to nodes as matrices; rigorous. Roundings of the values at x̂ are added."""

    def __init__(self, problem: Problem, chance: Chance) -> None:
        super().__init__(problem, chance)
        self.centres = boxes_of(self.network, Box(self.home, self.home), "none")

    def through(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """As of passes, with a constant of every entry that a node which is not linear reads."""
        mine, guarantee = self.passed_on(k, node)
        if k not in self.asked:
            return product, guarantee
        entries = torch.zeros(node.size, dtype=torch.float64)
        for source, block in mine.items():
            entries = (entries + _rows(block, self.lengths[source])) * UP
        self.entries[k] = torch.where(entries.isnan(), math.inf, entries)
        return _together([(block, self.lengths[source]) for source, block in mine.items()], self.p), guarantee


def asked(nodes: tuple[Node, ...]) -> set[int]:
    """Positions whose constants decide a relation, and the output's."""
    found = {len(nodes) - 1}
    for node in nodes:
        if isinstance(node, PartNode):
            found.update(node.parents)
        elif isinstance(node, (ActivationNode, GainNode, OpenNode)):
            found.update(node.parents[:1])
    return {k for k in found if not isinstance(nodes[k], InputNode)}


def _together(blocks: list[tuple[EnclosedMatrix, Magnitude]], p: float) -> Magnitude:
    """An upper bound of ‖Σ A_s w_s‖ for all ‖w_s‖ ≤ ℓ_s.

    Why: the sum is [f_s A_s] applied to vectors of lengths of at most ℓ_s/f_s. Any f_s will do; those are best that
    make all sources as large in the direction in which the sum is largest. Powers of two make the products exact.
    Sources that hardly count are bounded by sums of their entries and added.
    """
    cheap = [block.cheap_norm(p) * length for block, length in blocks]
    least = max(cheap, default=ZERO, key=lambda m: m.log10) * Magnitude.of(COUNTS)
    value = ZERO
    kept: list[tuple[EnclosedMatrix, Magnitude]] = []
    for (block, length), own in zip(blocks, cheap, strict=True):
        if least < own:
            kept.append((block, length))
        else:
            value = value + own
    if len(kept) < 2:
        return sum((block.norm(p) * length for block, length in kept), value)
    top = max((length.times_power(block.exponent) for block, length in kept), key=lambda m: m.log10).exponent
    lengths = [float(length.times_power(block.exponent - top)) for block, length in kept]
    factors = _factors([block.matrix for block, _ in kept], lengths)
    matrix = torch.cat([f * block.matrix for f, (block, _) in zip(factors, kept, strict=True)], dim=1)
    errors = [mul_up(f, block.error) for f, (block, _) in zip(factors, kept, strict=True)]
    error = add_up(norm_up(errors), mul_up(float(matrix.numel()), UNDERFLOW))
    spread = norm_up([div_up(length, f) for f, length in zip(factors, lengths, strict=True)])
    return value + (Magnitude.of(sigma_max_upper(matrix, error)) * Magnitude.of(spread)).times_power(top)


def _factors(matrices: list[Tensor], lengths: list[float]) -> list[float]:
    """Powers of two near √(ℓ_s/‖A_sᵀ y‖), y the direction in which Σ A_s w_s is largest, by the power method."""
    y = torch.ones(len(matrices[0]), dtype=torch.float64)
    squares = [1.0] * len(matrices)
    sizes = squares
    for _ in range(_STEPS):
        back = [matrix.T @ y for matrix in matrices]
        sizes = [float(part.norm()) for part in back]
        largest = max(size * length for size, length in zip(sizes, lengths, strict=True))
        if not 0.0 < largest < math.inf:
            return [1.0] * len(matrices)
        squares = [
            length / max(size, 1e-6 * largest / length) if length else 1.0
            for size, length in zip(sizes, lengths, strict=True)
        ]
        y = sum(
            (square * (matrix @ part) for square, matrix, part in zip(squares, matrices, back, strict=True)),
            torch.zeros_like(y),
        )
        y = y / y.norm().clamp(min=1e-300)
    return [2.0 ** round(0.5 * math.log2(square)) if 1e-200 < square < 1e200 else 1.0 for square in squares]


def _rows(block: EnclosedMatrix, length: Magnitude) -> Tensor:
    """The norms of the rows times a number, rounded up."""
    return (length_up(block.matrix)[:, 0] + block.error) * UP * float(length.times_power(block.exponent))


def _below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _above(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))


def operations(problem: Problem) -> float:
    """About how many floating-point operations the norms of the matrices take."""
    work, columns = 0.0, float(size(problem.model.in_shape))
    nodes = problem.expanded.nodes
    wanted = asked(nodes)
    for k, node in enumerate(nodes):
        entries = float(size(node.shape))
        work += 2.0 * entries**2 * columns if k in wanted else 0.0
        rest = isinstance(node, PartNode) and node.which in node.function.chain
        columns += entries if rest or isinstance(node, (ActivationNode, GainNode, OpenNode)) else 0.0
    return work


def proved(problem: Problem, chance: Chance) -> tuple[Increments, list[Step]]:
    """The relations and a step for each, where it applies."""
    recursion = JointRecursion(problem, chance)
    steps = recursion.run()
    return Increments(tuple(recursion.relations)), steps
