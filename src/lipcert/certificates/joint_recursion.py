"""The recursion that works out ranges and constants together, with all maps from sources to nodes as matrices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.norms.written_map import EnclosedMatrix, identity, scaled_rows
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
#: Remark of nodes that are done by the closed form of attention.
CLOSED_FORM = "closed form of attention"
#: Share of what the parts give below which the closed form is worth the loss of all maps to the node.
FAR_LESS = 0.7
#: Steps of the power method that finds how to weigh sources against each other.
_STEPS = 12


class JointRecursion(SparseRecursion):
    """With all maps from sources to nodes as matrices; rigorous."""

    def __init__(self, problem: Problem, chance: Chance) -> None:
        self.course = self._course(problem)
        super().__init__(Increments.of(self.course.network, self.course.ranges), 2.0, chance, None)
        self.relations: list[Relation] = []
        self.entries: dict[int, Tensor] = {}
        self.closed: set[int] = set()

    def _course(self, problem: Problem) -> Course:
        return Course(problem.headed, problem.domain)

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
        """By the parts, or by the closed form of attention where that is less: where far less, the node is a source."""
        value, guarantee = self.by_parts(k, node, product)
        known = min(value, product, key=lambda m: m.log10)
        own = self._by_closed_form(k, known)
        if own is None:
            return value, guarantee
        self.closed.add(k)
        if own < known * Magnitude.of(FAR_LESS):
            self.blocks[k], self.lengths[k] = {k: identity(node.size)}, own + self.error(k)
        return own, guarantee

    def remark(self, k: int) -> str:
        """Of nodes done by the closed form that."""
        return CLOSED_FORM if k in self.closed else super().remark(k)

    def error(self, k: int) -> Magnitude:
        """What is added to the constant of node k."""
        return ZERO

    def _by_closed_form(self, k: int, value: Magnitude) -> Magnitude | None:
        """‖f ⊙ δQ‖ + ‖g ⊙ δKᵀ‖ + ‖h ⊙ δV‖ of attention, if it is less than ``value``."""
        found = self.course.closed(k)
        if found is None:
            return None
        factors, added = found
        arguments = self.course.network.nodes[k].parents[1:]
        rough = [Magnitude.of(float(f.max())) * self.constants[p] for f, p in zip(factors, arguments, strict=True)]
        total_ = Magnitude.of(added)
        for cheap, factor, p in zip(rough, factors, arguments, strict=True):
            total_ = total_ + self._scaled(p, factor, cheap)
        return total_ if total_ < value else None

    def _scaled(self, p: int, factor: Tensor, cheap: Magnitude) -> Magnitude:
        """A constant of node p times factors of its entries; at most ``cheap``."""
        if p not in self.blocks:
            return cheap
        own = [(scaled_rows(factor.reshape(-1), b, self.p), self.lengths[s]) for s, b in self.blocks[p].items()]
        return min(cheap, together(own, self.p), key=lambda m: m.log10)

    def by_parts(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
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
