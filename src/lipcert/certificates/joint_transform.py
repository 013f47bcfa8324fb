"""LipLT with ranges and constants worked out together (``ranges/course``), for blocks and products on a bounded domain.

The deviation of each node's derivative from that at a point is bounded on the l2 ball in which its argument stays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates import loop_transform
from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.norms.written_map import EnclosedMatrix
from lipcert.certificates.product_rule import rows
from lipcert.certificates.recursions import SparseRecursion
from lipcert.errors import NotProved
from lipcert.guarantee import Guarantee
from lipcert.increments import Increments, Linear, Relation
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.midrad import UP
from lipcert.numerics.rounding import UNDERFLOW, add_up, div_up, mul_up, norm_up
from lipcert.numerics.rows import length_up
from lipcert.numerics.spectral import sigma_max_upper
from lipcert.ranges.course import Course, reach_of, sides

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem

#: Sources whose cheap bound is more than this part of the largest are bounded sharply, and together.
COUNTS = 2e-4
#: Steps of the power method that finds how to weigh sources against each other.
_STEPS = 12


@certificate("joint_transform")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """ℓ_j ≤ ‖A_{j←0}‖ + Σ_{i<j} ‖A_{j←i}‖ ℓ_i as LipLT has it, each relation from the constants before it.

    The witness carries no numbers. Unless ``settings["alone"]``, what LipLT proves with ranges of their own, by
    ``loop_transform`` with the same settings, counts where it is less.

    Why this is an upper bound: by induction over the nodes. The constants before a node are true of all pairs of points
    of the domain, so the relation that ``Course`` makes of them is, and so is the constant that follows from it and the
    relations before (``loop_transform``).
    """
    if not applies(problem):
        raise NotProved("ranges and constants are worked out together for blocks on bounded domains, between l2 norms.")
    recursion = JointRecursion(problem, chance)
    steps = recursion.run()
    last = steps[-1]
    found = Proof(last.constant, last.guarantee, rows(Increments(tuple(recursion.relations)), steps), computed=True)
    if witness.settings.get("alone", False) is True:
        return found
    apart = loop_transform.check(problem, Witness("loop_transform", {}, witness.settings), chance)
    return apart if apart.value < found.value and apart.guarantee == "rigorous" else found


def applies(problem: Problem) -> bool:
    """Whether there are blocks or products of which a bounded domain leaves little, between l2 norms."""
    if problem.slopes_only or problem.norm != (2.0, 2.0) or not math.isfinite(reach_of(problem.domain)):
        return False
    return problem.nearly_linear or problem.has_parts


def operations(problem: Problem) -> float:
    """About how many floating-point operations the norms of the matrices take."""
    return sum(2.0 * entries**2 * columns for entries, columns in sides(problem.expanded))


class JointRecursion(SparseRecursion):
    """With all maps from sources to nodes as matrices; rigorous."""

    def __init__(self, problem: Problem, chance: Chance) -> None:
        self.course = Course(problem.expanded, problem.domain)
        super().__init__(Increments.of(problem.expanded, self.course.ranges), 2.0, chance, None)
        self.relations: list[Relation] = []
        self.entries: dict[int, Tensor] = {}

    def relation(self, k: int) -> Relation:
        """As the course has it."""
        self.relations.append(self.course.relation(k))
        return self.relations[k]

    def readers(self, position: int) -> tuple[int, ...]:
        """Of the network: relations are not known before their arguments are."""
        return self.course.network.consumers[position]

    def enter(self, k: int, relation: Relation) -> None:
        """The course is told, too."""
        super().enter(k, relation)
        for read in [p for p in self.blocks if max(self.readers(p), default=k + 1) <= k]:
            del self.blocks[read]
        self.course.tell(float(self.constants[k]), self.entries.get(k))

    def through(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """As of passes, with a constant of every entry that a node which is not linear reads."""
        mine, guarantee = self.passed_on(k, node)
        if k not in self.course.asked:
            return product, guarantee
        entries = torch.zeros(node.size, dtype=torch.float64)
        for source, block in mine.items():
            entries = (entries + _rows(block, self.lengths[source])) * UP
        self.entries[k] = torch.where(entries.isnan(), math.inf, entries)
        return _together([(block, self.lengths[source]) for source, block in mine.items()], self.p), guarantee


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
