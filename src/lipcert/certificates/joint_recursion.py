"""The recursion that works out ranges and constants together, with all maps from sources to nodes as matrices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.norms.written_map import EnclosedMatrix
from lipcert.certificates.recursions import SparseRecursion
from lipcert.guarantee import Guarantee
from lipcert.increments import Increments, Linear, Relation
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.midrad import UP
from lipcert.numerics.rounding import UNDERFLOW, add_up, div_up, mul_up, norm_up
from lipcert.numerics.rows import length_up
from lipcert.numerics.spectral import sigma_max_upper
from lipcert.ranges.course import Course

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem

#: Sources whose cheap bound is more than this part of the largest are bounded sharply, and together.
COUNTS = 2e-4
#: Steps of the power method that finds how to weigh sources against each other.
_STEPS = 12


class JointRecursion(SparseRecursion):
    """With all maps from sources to nodes as matrices; rigorous."""

    def __init__(self, problem: Problem, chance: Chance) -> None:
        self.course = self._course(problem)
        super().__init__(Increments.of(problem.expanded, self.course.ranges), 2.0, chance, None)
        self.relations: list[Relation] = []
        self.entries: dict[int, Tensor] = {}

    def _course(self, problem: Problem) -> Course:
        return Course(problem.expanded, problem.domain)

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
        self.entries[k] = self.entry_constants(node, mine)
        return together([(block, self.lengths[source]) for source, block in mine.items()], self.p), guarantee

    def entry_constants(self, node: Linear, mine: dict[int, EnclosedMatrix]) -> Tensor:
        """A constant of every entry of a node."""
        entries = torch.zeros(node.size, dtype=torch.float64)
        for source, block in mine.items():
            entries = (entries + row_lengths(block, self.lengths[source])) * UP
        return torch.where(entries.isnan(), math.inf, entries)


def together(blocks: list[tuple[EnclosedMatrix, Magnitude]], p: float) -> Magnitude:
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


def row_lengths(block: EnclosedMatrix, length: Magnitude) -> Tensor:
    """The norms of the rows times a number, rounded up."""
    return (length_up(block.matrix)[:, 0] + block.error) * UP * float(length.times_power(block.exponent))
