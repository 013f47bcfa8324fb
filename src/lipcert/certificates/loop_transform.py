"""The certificate of LipLT: norms of the loop-transformed network's maps, summed over the nonlinear nodes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.norms.operator_norm import TARGET, NormBound, map_norm
from lipcert.certificates.norms.pass_underflow import Amplification
from lipcert.certificates.norms.path_map import Pathway, reachable
from lipcert.certificates.norms.scaling import MOST_ROUNDINGS
from lipcert.certificates.norms.written_map import EnclosedMatrix, identity, scaled_rows, spike, total, written
from lipcert.certificates.product_rule import Step, growth, product_rule, rows
from lipcert.errors import CertificateError, NumericsError, UnsupportedNormError
from lipcert.guarantee import Guarantee, weakest
from lipcert.increments import Cell, EntryCell, Increments, Linear, Relation, ScaledIncrements, Start
from lipcert.increments.units import natural_exponents
from lipcert.network.linear import LinearMap, size
from lipcert.numerics.magnitude import ONE, ZERO, Magnitude
from lipcert.numerics.probabilistic import sigma_max_probabilistic

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem


#: A network is worked on with dense matrices up to this side and this many floating-point operations.
MAX_SIDE, MAX_WORK = 4_000, 4e11
#: A source whose cheap bound adds less than this part of the sum so far is not bounded more sharply.
NEGLIGIBLE = 1e-6


@certificate("loop_transform")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """ℓ_j ≤ ‖A_{j←0}‖ + Σ_{i<j} ‖A_{j←i} diag(d_i)‖ ℓ_i (LipLT: Fazlyab et al. 2023), p → p for p in {1, 2, ∞}.

    The witness carries no numbers. ``settings["window"]`` (matrix-free work only) limits how many nonlinear nodes a
    sum reaches back; the sum then starts at a node s that every path passes, with ‖A_{j←s}‖ ℓ_s.

    Why this is an upper bound: with α ≤ slope ≤ β, c = (α + β)/2 and d = (β − α)/2, an increment obeys
    δz = c δv + d δw with |δw| ≤ |δv| entry by entry; so ‖δw_i‖_p ≤ ℓ_i ‖δx‖_p, ℓ_i being a bound for v_i. What is left
    is linear in (δx, δw_1, …), and the triangle inequality over its sources gives the sum. A block starts a source
    of its own and lets nothing pass (c = 0). At every linear node the minimum with the product rule
    Σ_i ‖A_i‖ ℓ_i is taken. Dense: the A_{j←i} are computed with a running bound of their error in the p-norm
    (``written_map``); larger networks: probabilistic Lanczos bounds on the same maps. A network with selections is done
    twice, with selections as blocks and expanded into ReLUs, and the smaller value counts; one with two activations of
    one value is done with these as a block and as cells that share a slope, too.
    """
    p, q = problem.norm
    if p != q:
        raise UnsupportedNormError(f"LipLT needs equal norms on both sides, not l{p:g} → l{q:g}.")
    window = witness.settings.get("window")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise CertificateError(f"the certificate's window must be a positive integer, not {window!r}.")
    best: list[Step] = []
    shown = problem.increments
    for increments in views(problem):
        recursion = (DenseRecursion if is_dense(increments) else FreeRecursion)(increments, p, chance, window)
        steps = recursion.run()
        if not best or steps[-1].constant < best[-1].constant:
            best, shown = steps, increments
    guarantee = weakest([step.guarantee for step in best])
    return Proof(best[-1].constant, guarantee, rows(shown, best), computed=True)


def views(problem: Problem) -> list[Increments]:
    """What the recursion runs on: selections as blocks, twins as blocks, and both expanded, where there are any."""
    blocked = [problem.blocked_increments] if problem.has_twins else []
    expanded = [problem.expanded_increments] if problem.has_selections or problem.has_twins else []
    return [problem.increments, *blocked, *expanded]


def is_dense(increments: Increments) -> bool:
    """Whether all maps from sources to nodes can be written down at a moderate price."""
    return operations(increments) <= MAX_WORK


def operations(increments: Increments) -> float:
    """About how many floating-point operations the dense recursion takes; infinite where a node is too wide."""
    work, columns = 0.0, float(size(increments.in_shape))
    if size(increments.in_shape) > 10 * MAX_SIDE:
        return math.inf
    for relation in increments.relations[1:]:
        side = relation.size
        if side > MAX_SIDE:
            return math.inf
        if isinstance(relation, Linear):
            work += sum(2.0 * side * linear.in_size for linear in relation.maps) * columns + 3.0 * side**2 * columns
        else:
            columns += side
    return work


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
        return self.increments.walk(self._start, self._linear, self._cell)

    def _start(self, k: int, start: Start) -> Step:
        return self._known(k, start, Step(ONE, ONE, kind="input"))

    def _linear(self, k: int, node: Linear, before: list[Step]) -> Step:
        inputs = [step.constant for step in before]
        product = product_rule(node, inputs, self.p, self._norm_of)
        value, guarantee = self.through(k, node, product.constant)
        if value < product.constant:
            return self._known(k, node, Step(value, growth(value, inputs), guarantee, "linear", "loop transformation"))
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
                self.blocks[k][k], self.lengths[k] = spike(d), self.constants[relation.parent]
        elif not isinstance(relation, Linear):
            self.blocks[k], self.lengths[k] = {k: identity(relation.size)}, self.constants[k]
        for parent in relation.parents:
            if max(self.increments.consumers[parent]) <= k:
                del self.blocks[parent]


class FreeRecursion(Recursion):
    """A_{k←i} as code, in units of natural size; probabilistic."""

    def __init__(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self.transformed = ScaledIncrements(self.increments, natural_exponents(self.increments))
        self.lost = Amplification(self.transformed).between_nodes()
        self.cells = {cell.node: cell for cell in self.increments.cells if isinstance(cell, EntryCell)}
        self.nonlinear = [cell.node for cell in self.increments.cells]

    def through(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """Bound the norm of the map from every source, nearest first; give up once above the product rule."""
        start = self._first(k)
        inside = [i for i in self.nonlinear if start < i < k]
        guarantee: Guarantee = "probabilistic"
        value = ZERO
        for source in [*reversed(inside), start]:
            cell = self.cells.get(source) if source != start else None
            if cell is not None and not bool(cell.d.any()):
                continue
            if not reachable(self.increments, source, k):
                continue
            length = self.constants[cell.parent if cell is not None else source]
            pathway = Pathway(self.transformed, source, k, cell is not None)
            norm, kind = self._norm(pathway)
            norm = norm + self.lost
            exponents = self.transformed.exponents
            value = value + norm.times_power(exponents[k] - exponents[source]) * length
            guarantee = weakest([guarantee, kind])
            if product < value:
                return product, guarantee
        return value, guarantee

    def _norm(self, pathway: Pathway) -> tuple[Magnitude, Guarantee]:
        if self.p != 2:
            norm = map_norm(pathway, self.p, None, self.share)
            return norm.magnitude, norm.guarantee
        kind: Guarantee = "probabilistic" if pathway.rounding <= MOST_ROUNDINGS else "numerical"

        def gram(x: Tensor) -> Tensor:
            return pathway.gram(x.reshape(1, *pathway.in_shape)).reshape(-1)

        try:
            value, _ = sigma_max_probabilistic(
                gram, pathway.in_size, self.share.draw(value=True), TARGET, 1000, self.share.generator
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

    def enter(self, k: int, relation: Relation) -> None:
        """Nothing is stored: the maps are code."""
