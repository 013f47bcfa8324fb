"""The recursions of LipLT: constants of all nodes from the norms of the maps that the loop transformation leaves."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from lipcert.certificates.norms.operator_norm import TARGET, NormBound, map_norm, writable
from lipcert.certificates.norms.pass_underflow import Amplification
from lipcert.certificates.norms.path_map import Pathway, reachable
from lipcert.certificates.norms.scaling import MOST_ROUNDINGS, terms
from lipcert.certificates.norms.written_map import EnclosedMatrix, identity, passed, scaled_rows, spike, total, written
from lipcert.certificates.product_rule import Step, growth, product_rule
from lipcert.errors import NumericsError
from lipcert.guarantee import Guarantee, weakest
from lipcert.increments import Cell, EntryCell, Increments, Linear, Relation, ScaledIncrements, Start
from lipcert.increments.units import natural_exponents
from lipcert.network.linear import LinearMap
from lipcert.numerics.magnitude import ONE, ZERO, Magnitude
from lipcert.numerics.probabilistic import sigma_max_probabilistic
from lipcert.numerics.rounding import UNIT, gamma, mul_up

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance


#: A source whose cheap bound adds less than this part of the sum so far is not bounded more sharply.
NEGLIGIBLE = 1e-6
#: The same of the sparse recursion, relative to what comes from the input.
COUNTS = 1e-4
#: Its maps are written down for their norm up to this lesser side, unless that is about 1 anyway.
SPARSE_WRITTEN, ALMOST_ONE = 1_500, 1.05


class Recursion(ABC):
    """Constants ℓ of all nodes, in topological order; subclasses say what the sources contribute to a linear node."""

    def __init__(self, increments: Increments, p: float, chance: Chance, window: int | None) -> None:
        self.increments, self.p, self.window = increments, p, window
        linears = increments.linears.values()
        norms = sum(len(node.maps) + 1 for node in linears) + len(linears) * (len(increments.cells) + 1)
        self.share = chance.group(norms)
        self.constants: list[Magnitude] = []

    def run(self) -> list[Step]:
        """A step per node."""
        steps: list[Step] = []
        for k in range(len(self.increments.relations)):
            relation = self.relation(k)
            before = [steps[p] for p in relation.parents]
            if isinstance(relation, Linear):
                steps.append(self._linear(k, relation, before))
            elif isinstance(relation, Cell):
                steps.append(self._cell(k, relation, before[0]))
            else:
                assert isinstance(relation, Start)
                steps.append(self._start(k, relation))
        return steps

    def relation(self, k: int) -> Relation:
        """What node k obeys."""
        return self.increments.relations[k]

    def _start(self, k: int, start: Start) -> Step:
        return self._known(k, start, Step(ONE, ONE, kind="input"))

    def _linear(self, k: int, node: Linear, before: list[Step]) -> Step:
        inputs = [step.constant for step in before]
        product = product_rule(node, inputs, self.p, self._norm_of)
        value, guarantee = self.through(k, node, product.constant)
        if value < product.constant:
            return self._known(k, node, Step(value, growth(value, inputs), guarantee, "linear", self.remark(k)))
        return self._known(k, node, replace(product, remark="product rule"))

    def _cell(self, k: int, cell: Cell, before: Step) -> Step:
        own = Magnitude.of(cell.gain(self.p))
        return self._known(k, cell, Step(before.constant * own, own, "rigorous", cell.kind))

    def _known(self, k: int, relation: Relation, step: Step) -> Step:
        self.constants.append(step.constant)
        self.enter(k, relation)
        return step

    def _norm_of(self, linear: LinearMap, term: int) -> NormBound:
        return map_norm(linear, self.p, None, self.share)

    def remark(self, k: int) -> str:
        """Where ``through`` has its value from."""
        return "loop transformation"

    @abstractmethod
    def through(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """The sum over the sources at linear node k; may stop once it is above ``product``."""

    @abstractmethod
    def enter(self, k: int, relation: Relation) -> None:
        """Node k has its constant: prepare it as a source."""


class DenseRecursion(Recursion):
    """All A_{k←i} as matrices, forward through the graph."""

    def __init__(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self.blocks: dict[int, dict[int, EnclosedMatrix]] = {}
        self.lengths: dict[int, Magnitude] = {}

    def through(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """Multiply the parents' blocks by the node's maps and add up norms, nearest source first."""
        parts: dict[int, list[EnclosedMatrix]] = {}
        guarantee: Guarantee = "rigorous"
        for linear, parent in zip(node.maps, node.parents, strict=True):
            here = written(linear, self.p)
            guarantee = guarantee if here.known else "numerical"
            for source, block in self.blocks[parent].items():
                parts.setdefault(source, []).append(here.after(block))
        mine = {source: total(blocks, self.p) for source, blocks in parts.items()}
        self.blocks[k] = mine
        value = ZERO
        for source in sorted(mine, reverse=True):
            cheap = mine[source].cheap_norm(self.p) * self.lengths[source]
            if cheap < value * Magnitude.of(NEGLIGIBLE):
                value = value + cheap
            else:
                value = value + mine[source].norm(self.p) * self.lengths[source]
            if product < value and source != 0:
                return product, guarantee
        return value, guarantee

    def enter(self, k: int, relation: Relation) -> None:
        """Blocks of cells: c times the parent's and diag(d) for the new source."""
        if isinstance(relation, EntryCell):
            c, d = relation.c.reshape(-1), relation.d.reshape(-1)
            inner = self.blocks[relation.parent]
            self.blocks[k] = {s: scaled_rows(c, b, self.p) for s, b in inner.items()} if bool(c.any()) else {}
            if bool(d.any()):
                self.lengths[k] = self.constants[relation.parent]
                new = self.started(k, d)
                self.blocks[k] |= {} if new is None else {k: new}
        elif not isinstance(relation, Linear):
            self.blocks[k], self.lengths[k] = {k: identity(relation.size)}, self.constants[k]
        for parent in relation.parents:
            if max(self.readers(parent)) <= k:
                del self.blocks[parent]

    def started(self, k: int, d: Tensor) -> EnclosedMatrix | None:
        """The map of a new source, diag(d); None where it is written down by those that read the node."""
        return spike(d)

    def readers(self, position: int) -> tuple[int, ...]:
        """Positions that read a node."""
        return self.increments.consumers[position]


class SparseRecursion(DenseRecursion):
    """The same with maps as code, for networks too wide for all matrices: most norms are bounded by sums.

    Only at the output, and of the map from the input to what a nonlinear node reads, are norms proved sharply; other
    maps come from cells, whose d is small where this is of use.
    """

    def __init__(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self._norms: dict[int, tuple[LinearMap, NormBound]] = {}  # with the map, whose id is its own while it is kept

    def _norm_of(self, linear: LinearMap, term: int) -> NormBound:
        """Written where that is moderate: errors grow with the norms of the maps they pass."""
        if id(linear) not in self._norms:
            self._norms[id(linear)] = linear, self._worked_out(linear)
        return self._norms[id(linear)][1]

    def _worked_out(self, linear: LinearMap) -> NormBound:
        bound = map_norm(linear, self.p, None, self.share, route="sums")
        moderate = min(linear.in_size, linear.out_size) <= SPARSE_WRITTEN and writable(linear)
        if self.p != 2 or bound.magnitude < Magnitude.of(ALMOST_ONE):
            return bound
        return map_norm(linear, self.p, None, self.share, route="written" if moderate else "blocks")

    def passed_on(self, k: int, node: Linear) -> tuple[dict[int, EnclosedMatrix], Guarantee]:
        """The parents' blocks through the node's maps."""
        parts: dict[int, list[EnclosedMatrix]] = {}
        guarantee: Guarantee = "rigorous"
        for linear, parent in zip(node.maps, node.parents, strict=True):
            known = self._norm_of(linear, 0)
            here = passed(linear, self.p, known.value if known.guarantee == "rigorous" else math.inf)
            guarantee = guarantee if here.known else "numerical"
            for source, block in self.blocks[parent].items():
                parts.setdefault(source, []).append(here.after(block))
        self.blocks[k] = {source: total(blocks, self.p) for source, blocks in parts.items()}
        return self.blocks[k], guarantee

    def through(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """Norms only where they are asked for."""
        mine, guarantee = self.passed_on(k, node)
        last = k == len(self.increments.relations) - 1
        if not last and not any(self.increments.cell_at.get(reader) for reader in self.increments.consumers[k]):
            return product, guarantee
        sharp = mine[0].norm(self.p) * self.lengths[0] if 0 in mine else ZERO
        value = sharp
        for source, block in mine.items():
            if source == 0:
                continue
            cheap = block.cheap_norm(self.p) * self.lengths[source]
            counts = last and sharp * Magnitude.of(COUNTS) < cheap
            value = value + (block.norm(self.p) * self.lengths[source] if counts else cheap)
        return value, guarantee


class FreeRecursion(Recursion):
    """A_{k←i} as code, in units of natural size; probabilistic.

    What passes lose by rounding at the maps is added. Let V_k bound Σ_s ‖A_{k←s}‖ ℓ_s over the sources s of length ℓ_s:
    at a linear node Σ ‖A_i‖ V_i, at an entrywise cell c V + d ℓ. A pass forms each sum with a relative error of γ of
    its absolute terms, so for all sources together it is off by R_k = Σ ‖A_i‖ R_i + γ ‖|A_i|‖ V_i; the way back of a
    Gram map by as much, and ‖GᵀG + E‖ ≥ (‖G‖ − 2δ)² where both are off by δ.
    """

    def __init__(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self._norms: dict[int, tuple[LinearMap, NormBound, Magnitude]] = {}
        self._sizes: list[Magnitude] = []  # V
        self._errors: list[Magnitude] = []  # R
        self.transformed = ScaledIncrements(self.increments, natural_exponents(self.increments))
        self.lost = Amplification(self.transformed).between_nodes()
        self.cells = {cell.node: cell for cell in self.increments.cells if isinstance(cell, EntryCell)}
        self.nonlinear = [cell.node for cell in self.increments.cells]

    def through(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """Bound the norm of the map from every source, nearest first; give up once above the product rule."""
        start = self._first(k)
        inside = [i for i in self.nonlinear if start < i < k]
        guarantee: Guarantee = "probabilistic"
        value = Magnitude.of(4.0) * self._at_linear(node)[1] if self.p == 2 else ZERO
        for source in [*reversed(inside), start]:
            cell = self.cells.get(source) if source != start else None
            if cell is not None and not bool(cell.d.any()):
                continue
            if not reachable(self.increments, source, k):
                continue
            length = self.constants[cell.parent if cell is not None else source]
            pathway = Pathway(self.transformed, source, k, cell is not None)
            try:
                norm, kind = self.norm(pathway)
            except NumericsError:  # a map that is nothing but rounding
                return product, guarantee
            norm = norm + self.lost
            exponents = self.transformed.exponents
            value = value + norm.times_power(exponents[k] - exponents[source]) * length
            guarantee = weakest([guarantee, kind])
            if product < value:
                return product, guarantee
        return value, guarantee

    def norm(self, pathway: Pathway, target: float = TARGET) -> tuple[Magnitude, Guarantee]:
        """That of a map from one node to another; passes aim at a relative inflation of ``target``."""
        if self.p != 2:
            norm = map_norm(pathway, self.p, None, self.share)
            return norm.magnitude, norm.guarantee
        kind: Guarantee = "probabilistic" if pathway.rounding <= MOST_ROUNDINGS else "numerical"

        def gram(x: Tensor) -> Tensor:
            return pathway.gram(x.reshape(1, *pathway.in_shape)).reshape(-1)

        try:
            value, _ = sigma_max_probabilistic(
                gram, pathway.in_size, self.share.draw(value=True), target, 1000, self.share.generator
            )
        except ValueError as error:
            raise NumericsError(f"the norm of a map over several layers cannot be bounded: {error}.") from error
        return Magnitude.of(value), kind

    def _first(self, k: int) -> int:
        """Where the sum starts: the input, or the earliest cut with at most ``window`` nonlinear nodes after it."""
        if self.window is None:
            return 0
        before = [s for s in self.increments.cuts if s < k]
        for s in before:
            if sum(s < i < k for i in self.nonlinear) <= self.window:
                return s
        return before[-1]

    def _norm_of(self, linear: LinearMap, term: int) -> NormBound:
        """Kept, with what rounding may change of the map's images, per unit of what it is applied to."""
        if term < 0:
            return super()._norm_of(linear, term)
        if id(linear) not in self._norms:
            bound = super()._norm_of(linear, term)
            sums = map_norm(linear, self.p, None, self.share, route="sums").magnitude
            most = max(len(node.maps) for node in self.increments.linears.values())
            lost = sums * Magnitude.of(mul_up(2.0, gamma(terms(linear) + most + 8.0)))
            self._norms[id(linear)] = linear, bound, lost
        return self._norms[id(linear)][1]

    def _at_linear(self, node: Linear) -> tuple[Magnitude, Magnitude]:
        """V and R of a linear node."""
        size, error = ZERO, ZERO
        for linear, parent in zip(node.maps, node.parents, strict=True):
            norm = self._norm_of(linear, 0).magnitude
            size = size + norm * self._sizes[parent]
            error = error + norm * self._errors[parent] + self._norms[id(linear)][2] * self._sizes[parent]
        return size, error

    def enter(self, k: int, relation: Relation) -> None:
        """Its V and R; the maps are code."""
        size, error = self.constants[k], ZERO
        if isinstance(relation, Linear):
            size, error = self._at_linear(relation)
        elif isinstance(relation, EntryCell) and relation.size:
            passed, spread = (Magnitude.of(float(t.abs().max())) for t in (relation.c, relation.d))
            size = passed * self._sizes[relation.parent] + spread * self.constants[relation.parent]
            error = passed * self._errors[relation.parent] + size * Magnitude.of(4.0 * UNIT)
        self._sizes.append(size)
        self._errors.append(error)
