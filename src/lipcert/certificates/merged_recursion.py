"""The recursion of ``joint_recursion`` on networks too wide for all maps from sources: these are merged on the way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lipcert.certificates.joint_recursion import JointRecursion, together
from lipcert.certificates.norms.merging import Source, merged
from lipcert.certificates.norms.written_map import EnclosedMatrix, passed, spike, total
from lipcert.certificates.product_rule import Step
from lipcert.guarantee import Guarantee
from lipcert.increments import Cell, Linear, Relation
from lipcert.network.graph import AffineNode, Network
from lipcert.network.linear import LinearMap, size
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.rounding import UNDERFLOW, add_up, ldexp_up, mul_up, norm_up
from lipcert.ranges.centred_course import CentredCourse

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem

#: Sources of more columns than this times the rows of a node that all paths pass become one there.
MOST_COLUMNS = 1.5
#: Rows that are bounded together where a node is none of these.
PIECE = 512
#: Share of its norm that the input's map may be off before that becomes a source.
_OFF = 1e-10
#: Powers of two between the input's map and an error beyond which the error's unit is that of both.
_FAR = 100
#: Entries of images that are worked out at a time.
_CHUNK = 1 << 24


def cuts(network: Network) -> set[int]:
    """Positions that every path from the input to the output passes."""
    found, reach = set(), 0
    for k, readers in enumerate(network.consumers):
        if reach <= k:
            found.add(k)
        reach = max(reach, max(readers, default=k))
    return found


class MergedRecursion(JointRecursion):
    """At a node that every path passes all sources but the input become one (``norms/merging``).

    Why that holds: nothing behind such a node knows of them but through it. Its increment is A δx + Σ_s A_s w_s, and
    the sum is B w with ‖w‖ ≤ r‖δx‖, for every increment.
    """

    def __init__(self, problem: Problem, chance: Chance) -> None:
        super().__init__(problem, chance)
        self._cuts = cuts(self.course.network)
        self._spikes: dict[int, Tensor] = {}

    def enter(self, k: int, relation: Relation) -> None:
        """New sources of wide activations are written down by those that read them."""
        super().enter(k, relation)
        if isinstance(relation, Cell):
            self.blocks[k] = self._rounded(k, self.blocks[k], relation.size)
        for read in [p for p in self._spikes if max(self.readers(p), default=k + 1) <= k]:
            del self._spikes[read]

    def _course(self, problem: Problem) -> CentredCourse:
        return CentredCourse(problem.headed, problem.domain)

    def _known(self, k: int, relation: Relation, step: Step) -> Step:
        """What the node's rounding adds is a part of its constant."""
        return super()._known(k, relation, replace(step, constant=step.constant + self.error(k)))

    def error(self, k: int) -> Magnitude:
        """The node's own rounding."""
        assert isinstance(self.course, CentredCourse)
        return Magnitude.of(self.course.errors[k])

    def _rounded(self, k: int, blocks: dict[int, EnclosedMatrix], rows: int) -> dict[int, EnclosedMatrix]:
        """The input's map is off by what the node's rounding adds."""
        error = self.error(k)
        if not error.mantissa:
            return blocks
        first = blocks.get(0) or EnclosedMatrix(torch.zeros(rows, size(self.increments.in_shape)).double(), 0, 0.0)
        if error.exponent - first.exponent > _FAR:  # in units of the input's map it might be beyond all floats
            wrong = EnclosedMatrix(torch.zeros_like(first.matrix), error.exponent, error.mantissa)
            return {**blocks, 0: total([first, wrong], self.p)}
        off = add_up(first.error, float(error.times_power(-first.exponent)))
        return {**blocks, 0: EnclosedMatrix(first.matrix, first.exponent, off)}

    def started(self, k: int, d: Tensor) -> EnclosedMatrix | None:
        """Of wide activations that only linear maps read, these write it down."""
        nodes = self.course.network.nodes
        if d.numel() <= PIECE or not all(isinstance(nodes[r], AffineNode) for r in self.readers(k)):
            return spike(d)
        self._spikes[k] = d
        return None

    def passed_on(self, k: int, node: Linear) -> tuple[dict[int, EnclosedMatrix], Guarantee]:
        """With the sources that have not been written down."""
        mine, guarantee = super().passed_on(k, node)
        for linear, parent in zip(node.maps, node.parents, strict=True):
            if parent in self._spikes:
                own = self._image(linear, self._spikes[parent])
                mine[parent] = own if parent not in mine else total([mine[parent], own], self.p)
        self.blocks[k] = self._rounded(k, mine, node.size)
        return self.blocks[k], guarantee

    def _image(self, linear: LinearMap, d: Tensor) -> EnclosedMatrix:
        """The map after diag(d), some columns at a time."""
        known = self._norm_of(linear, 0)
        here = passed(linear, self.p, known.value if known.guarantee == "rigorous" else math.inf)
        count = max(1, _CHUNK // max(linear.in_size, linear.out_size))
        parts = []
        for places in torch.arange(len(d)).split(count):
            columns = torch.zeros(len(d), len(places), dtype=torch.float64)
            columns[places, torch.arange(len(places))] = d[places]
            parts.append(here.after(EnclosedMatrix(columns, 0, 0.0)))
        return beside(parts)

    def by_parts(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """As of all matrices, with sources merged, and with norms of some rows at a time."""
        mine, guarantee = self.passed_on(k, node)
        last, cut = k == len(self.increments.relations) - 1, k in self._cuts
        if cut and not last:
            self._merge(k, node.size)
            mine = self.blocks[k]
        if k not in self.course.asked:
            return product, guarantee
        self.entries[k] = self.entry_constants(node, mine)
        sources = [(block, self.lengths[source]) for source, block in mine.items()]
        if cut or node.size <= PIECE:
            return together(sources, self.p), guarantee
        if self.course.is_scaling(k):
            return product, guarantee
        value = ZERO
        for start in range(0, node.size, PIECE):
            value = value.hypot(together([(_rows(b, start, start + PIECE), r) for b, r in sources], self.p))
        return min(value, product, key=lambda m: m.log10), guarantee

    def _merge(self, k: int, rows: int) -> None:
        """What the input's map is off, a ball, is one of the sources: else its error would grow with norms of maps."""
        mine = self.blocks[k]
        sources: list[Source] = [(block, self.lengths[s]) for s, block in mine.items() if s != 0]
        wide = sum(block.matrix.shape[1] for block, _ in sources) > MOST_COLUMNS * rows
        first = mine.get(0)
        off = ZERO if first is None else Magnitude.of(first.error).times_power(first.exponent)
        if not sources or not (wide or (first is not None and off > first.cheap_norm(self.p) * Magnitude.of(_OFF))):
            return
        found = merged(sources, off)
        if found is not None:
            kept = {} if first is None else {0: EnclosedMatrix(first.matrix, first.exponent, 0.0)}
            self.blocks[k], self.lengths[k] = {**kept, k: found[0]}, found[1]


def beside(parts: list[EnclosedMatrix]) -> EnclosedMatrix:
    """[A_1 A_2 …] as one block."""
    if len(parts) == 1:
        return parts[0]
    top = max(part.exponent for part in parts)
    shifts = [max(part.exponent - top, -2000) for part in parts]
    matrix = torch.cat([torch.from_numpy(np.ldexp(b.matrix.numpy(), s)) for b, s in zip(parts, shifts, strict=True)], 1)
    lost = mul_up(float(matrix.numel()), UNDERFLOW)
    return EnclosedMatrix(
        matrix, top, add_up(norm_up([ldexp_up(b.error, s) for b, s in zip(parts, shifts, strict=True)]), lost)
    )


def _rows(block: EnclosedMatrix, start: int, stop: int) -> EnclosedMatrix:
    return EnclosedMatrix(block.matrix[start:stop], block.exponent, block.error)
