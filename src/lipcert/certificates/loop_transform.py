"""The certificate of LipLT: norms of the loop-transformed network's maps, summed over the nonlinear nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.layer_product import _row_sums
from lipcert.certificates.map_norm import MOST_ROUNDINGS, TARGET, Stacked, map_norm
from lipcert.certificates.map_path import Pathway, reachable
from lipcert.certificates.map_written import Block, identity, scaled_rows, spike, total, written
from lipcert.certificates.range_guard import Amplification
from lipcert.certificates.segments import cuts
from lipcert.errors import CertificateError, NumericsError, UnsupportedNormError
from lipcert.network.graph import (
    ActivationNode,
    AffineNode,
    GainNode,
    InputNode,
    Network,
    Node,
    SelectionNode,
)
from lipcert.network.linear import size
from lipcert.network.loop_transform import Cell, LoopTransformed, _cell, natural_exponents
from lipcert.network.nonlinearity import GainFunction
from lipcert.numerics.chance import Chance
from lipcert.numerics.lanczos import sigma_max_probabilistic
from lipcert.numerics.magnitude import ONE, ZERO, Magnitude
from lipcert.problem import Problem
from lipcert.result import BreakdownRow, Guarantee, weakest

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
    is linear in (δx, δw_1, …), and the triangle inequality over its sources gives the sum. A gain block starts a source
    of its own and lets nothing pass (c = 0). At every affine node the minimum with the product rule
    Σ_i ‖A_i‖ ℓ_i is taken. Dense: the A_{j←i} are computed with a running bound of their error in the p-norm
    (``map_written``); larger networks: probabilistic Lanczos bounds on the same maps. A network with selections is done
    twice, with selections as blocks and expanded into ReLUs, and the smaller value counts.
    """
    p, q = problem.norm
    if p != q:
        raise UnsupportedNormError(f"LipLT needs equal norms on both sides, not l{p:g} → l{q:g}.")
    window = witness.settings.get("window")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise CertificateError(f"the certificate's window must be a positive integer, not {window!r}.")
    best: Recursion | None = None
    for network in views(problem):
        recursion = (DenseRecursion if is_dense(network) else FreeRecursion)(network, p, chance, window)
        recursion.run()
        if best is None or recursion.final < best.final:
            best = recursion
    assert best is not None
    return Proof(best.final, weakest(best.used), tuple(best.rows))


def views(problem: Problem) -> list[Network]:
    """The networks the recursion runs on: selections as gain blocks and, where there are any, expanded."""
    nodes = problem.network.nodes
    if not any(isinstance(node, SelectionNode) for node in nodes):
        return [problem.network]
    return [Network(tuple(_as_gain(node) for node in nodes)), problem.expanded]


def _as_gain(node: Node) -> Node:
    if not isinstance(node, SelectionNode):
        return node
    gains = {p: node.function.gain(p) for p in (1.0, 2.0, math.inf)}
    function = GainFunction(node.name, lambda x: node.function(x[None])[0], gains, "selection")
    return GainNode(node.parents, node.shape, node.name, node.where, function)


def is_dense(network: Network) -> bool:
    """Whether all maps from sources to nodes can be written down at a moderate price."""
    return operations(network) <= MAX_WORK


def operations(network: Network) -> float:
    """About how many floating-point operations the dense recursion takes; infinite where a node is too wide."""
    work, columns = 0.0, float(size(network.in_shape))
    if size(network.in_shape) > 10 * MAX_SIDE:
        return math.inf
    for node in network.nodes:
        rows = size(node.shape)
        if rows > MAX_SIDE and not isinstance(node, InputNode):
            return math.inf
        if isinstance(node, AffineNode):
            work += sum(2.0 * rows * linear.in_size for linear in node.maps) * columns + 3.0 * rows**2 * columns
        elif not isinstance(node, InputNode):
            columns += rows
    return work


class Recursion:
    """Constants ℓ of all nodes, in topological order; subclasses say what the sources contribute to an affine node."""

    def __init__(self, network: Network, p: float, chance: Chance, window: int | None) -> None:
        self.network, self.p, self.window = network, p, window
        affine = [node for node in network.nodes if isinstance(node, AffineNode)]
        nonlinear = sum(isinstance(node, (ActivationNode, GainNode)) for node in network.nodes)
        norms = sum(len(node.maps) + 1 for node in affine) + len(affine) * (nonlinear + 1)
        self.share = chance.group(norms)
        self.constants: list[Magnitude] = []
        self.rows: list[BreakdownRow] = []
        self.used: list[Guarantee] = []

    @property
    def final(self) -> Magnitude:
        """ℓ of the output."""
        return self.constants[-1]

    def run(self) -> None:
        """Fill ``constants``."""
        for k, node in enumerate(self.network.nodes):
            guarantee: Guarantee = "rigorous"
            kind, remark = "input", ""
            if isinstance(node, InputNode):
                value = ONE
            elif isinstance(node, AffineNode):
                kind = "linear"
                value, guarantee = self._product(node)
                remark = "product rule"
                through, other = self.through(k, node, value)
                if through < value:
                    value, guarantee, remark = through, other, "loop transformation"
            else:
                own = self._own(node)
                kind = "activation" if isinstance(node, ActivationNode) else "gain"
                value = self.constants[node.parents[0]] * own
            self.constants.append(value)
            self.used.append(guarantee)
            self.enter(k, node)
            if k:
                self.rows.append(BreakdownRow(node.name, kind, math.nan, float(value), guarantee, remark))
        self.rows = [replace(row, constant=_growth(self, k + 1)) for k, row in enumerate(self.rows)]

    def _own(self, node: Node) -> Magnitude:
        if isinstance(node, ActivationNode):
            return Magnitude.of(node.function.greatest_slope)
        assert isinstance(node, GainNode)
        if self.p not in node.function.gains:
            raise UnsupportedNormError(
                f"{node.name} at {node.where} has no known constant in l{self.p:g}; "
                f"known: {', '.join(f'l{g:g}' for g in sorted(node.function.gains))}."
            )
        return Magnitude.of(node.function.gains[self.p])

    def _product(self, node: AffineNode) -> tuple[Magnitude, Guarantee]:
        """The product rule at an affine node: Σ ‖A_i‖ ℓ_i, or ‖[A_1 …]‖ √(Σ ℓ_i²), or row by row in l_∞."""
        inputs = [self.constants[i] for i in node.parents]
        value, used = ZERO, []
        for linear, before in zip(node.maps, inputs, strict=True):
            norm = map_norm(linear, self.p, None, self.share)
            value = value + norm.magnitude * before
            used.append(norm.guarantee)
        guarantee = weakest(used)
        if len(node.maps) > 1 and self.p == math.inf:
            rows = _row_sums(node, inputs)
            if rows is not None and rows < value:
                value = rows
        if len(node.maps) > 1 and self.p == 2:
            norm = map_norm(Stacked(node.maps), self.p, None, self.share)
            length = inputs[0]
            for before in inputs[1:]:
                length = length.hypot(before)
            if norm.magnitude * length < value:
                value, guarantee = norm.magnitude * length, norm.guarantee
        return value, guarantee

    def through(self, k: int, node: AffineNode, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """The sum over the sources at affine node k."""
        raise NotImplementedError

    def enter(self, k: int, node: Node) -> None:
        """Node k has its constant: prepare it as a source."""
        raise NotImplementedError


def _growth(recursion: Recursion, k: int) -> float:
    """ℓ_k over the largest parent's, for the report only."""
    value = recursion.constants[k]
    before = [recursion.constants[i] for i in recursion.network.nodes[k].parents]
    largest = max(before, default=ONE, key=lambda m: m.log10)
    if not largest.mantissa or not value.mantissa:
        return float(value)
    return float(Magnitude(value.mantissa / largest.mantissa, value.exponent - largest.exponent) * ONE)


class DenseRecursion(Recursion):
    """All A_{k←i} as matrices, forward through the graph."""

    def __init__(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self.blocks: dict[int, dict[int, Block]] = {}
        self.lengths: dict[int, Magnitude] = {}

    def through(self, k: int, node: AffineNode, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """Multiply the parents' blocks by the node's maps and add up norms, nearest source first."""
        parts: dict[int, list[Block]] = {}
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

    def enter(self, k: int, node: Node) -> None:
        """Blocks of nonlinear nodes: c times the parent's and diag(d) for the new source."""
        if isinstance(node, InputNode):
            self.blocks[k], self.lengths[k] = {k: identity(size(node.shape))}, ONE
        elif isinstance(node, GainNode):
            self.blocks[k], self.lengths[k] = {k: identity(size(node.shape))}, self.constants[k]
        elif isinstance(node, ActivationNode):
            cell = _cell(k, node)
            c, d = cell.c.reshape(-1), cell.d.reshape(-1)
            inner = self.blocks[cell.parent]
            self.blocks[k] = {s: scaled_rows(c, b, self.p) for s, b in inner.items()} if bool(c.any()) else {}
            if bool(d.any()):
                self.blocks[k][k], self.lengths[k] = spike(d), self.constants[cell.parent]
        for parent in node.parents:
            if max(self.network.consumers[parent]) <= k:
                del self.blocks[parent]


class FreeRecursion(Recursion):
    """A_{k←i} as code, in units of natural size; probabilistic."""

    def __init__(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self.transformed = LoopTransformed(self.network, natural_exponents(self.network))
        self.lost = Amplification(self.transformed).between_nodes()
        self.cells: Mapping[int, Cell] = {
            k: _cell(k, node) for k, node in enumerate(self.network.nodes) if isinstance(node, ActivationNode)
        }
        self.cuts = cuts(self.transformed)
        self.nonlinear = [k for k, n in enumerate(self.network.nodes) if isinstance(n, (ActivationNode, GainNode))]

    def through(self, k: int, node: AffineNode, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """Bound the norm of the map from every source, nearest first; give up once above the product rule."""
        start = self._start(k)
        inside = [i for i in self.nonlinear if start < i < k]
        guarantee: Guarantee = "probabilistic"
        value = ZERO
        for source in [*reversed(inside), start]:
            cell = self.cells.get(source) if source != start else None
            if cell is not None and not bool(cell.d.any()):
                continue
            if not reachable(self.network, self.cells, source, k):
                continue
            length = self.constants[cell.parent if cell is not None else source]
            pathway = Pathway(self.transformed, self.cells, source, k, cell is not None)
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
                gram, pathway.in_size, self.share.draw(), TARGET, 1000, self.share.generator
            )
        except ValueError as error:
            raise NumericsError(f"the norm of a map over several layers cannot be bounded: {error}.") from error
        return Magnitude.of(value), kind

    def _start(self, k: int) -> int:
        """Where the sum starts: the input, or the earliest cut with at most ``window`` nonlinear nodes after it."""
        if self.window is None:
            return 0
        before = [s for s in self.cuts if s < k]
        for s in before:
            if sum(s < i < k for i in self.nonlinear) <= self.window:
                return s
        return before[-1]

    def enter(self, k: int, node: Node) -> None:
        """Nothing is stored: the maps are code."""
