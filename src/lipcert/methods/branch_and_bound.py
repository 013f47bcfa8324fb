"""The vertex maximum of the whole network by best-first branch and bound over the slopes of its neurons."""

from __future__ import annotations

import heapq
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.branch_tree import LEAF, Slopes, branchable
from lipcert.certificates.forms.elimination import cheapest_segments
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights
from lipcert.errors import InputError, MethodError, NotProved, NumericsError
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.base import Found, Method, Run, fork, method
from lipcert.methods.branch_ascent import FREE, Ascent, Climber, Vectors
from lipcert.methods.branch_form import BatchForm
from lipcert.methods.branch_regions import Reach, Settled
from lipcert.methods.lipsdp import LipSDP
from lipcert.network.linear import size
from lipcert.problem import Norm, Problem
from lipcert.search.passes import steps_to_output

#: Geometric lifts tried for every node, finest first.
LIFTS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

#: Most nodes that are split in one round.
BATCH = 32


@method
@dataclass(frozen=True, kw_only=True)
class BranchAndBound(Method):
    """The vertex maximum: the largest norm over all patterns σ_j ∈ {α_j, β_j} of the network's slopes.

    It is the Lipschitz constant when every pattern is reachable and lies above it always (the branch-tree certificate
    says why). A node of the tree fixes some neurons to one of their two slopes; its upper value comes from LipSDP on
    what is left, its vertex value from rounding LipSDP's vectors to a pattern. On a bounded domain patterns that none
    of its points has are proved empty and left out, and vertex values are those of patterns that points have: it ends
    at the domain's own constant where every activation is two linear pieces on its range. Anytime: when the budget
    ends, open nodes become leaves with the bounds they have; with the root alone it is LipSDP.

    Attributes:
        gap: stop once upper ≤ (1 + gap) · (best vertex value).
        max_nodes: most nodes of the tree.
        columns: rank of the relaxation.
        passes: passes of the vector-neuron iteration per node; up to ten times as many where they may close it.
    """

    name: ClassVar[str] = "branch_and_bound"
    norms: ClassVar[tuple[Norm, ...]] = ((2.0, 2.0),)
    summary: ClassVar[str] = "maximum over all activation patterns by branch and bound, anytime; at most lipsdp"

    gap: float = 1e-4
    max_nodes: int = 100_000
    columns: int = 8
    passes: int = 40

    def __post_init__(self) -> None:
        if not 0 < self.gap < 1 or self.max_nodes < 1 or self.columns < 1 or self.passes < 1:
            raise InputError("BranchAndBound needs 0 < gap < 1 and max_nodes, columns and passes ≥ 1.")

    def solve(self, problem: Problem, run: Run) -> Found:
        """Search until the gap closes, the budget ends or the tree is full; where no tree is proved, LipSDP.

        Raises:
            MethodError: a layer is too wide for the dense certificate.
        """
        self.require_norm(problem.norm)
        increments = problem.expanded_increments
        transformed = ScaledIncrements(increments, natural_exponents(increments))
        if cheapest_segments(transformed) is None:
            raise MethodError(
                "branch_and_bound needs layers that can be factored densely, and one of this network is too wide; "
                "methods without that limit: lipsdp, liplt, autolip."
            )

        def root() -> Found:
            return LipSDP().solve(problem, fork(run))

        if not any(cell.size for cell in transformed.cells):  # linear: there is nothing to branch on
            return root()
        try:
            return _Search(self, problem, transformed, run).found().before(root)
        except NotProved:
            return root()


@dataclass(eq=False)
class _Node:
    """A leaf of the tree so far; ``vectors`` (single precision) and ``branch`` serve its children.

    ``empty``: weights that prove that no point of the domain is in its region; it needs no bound then.
    """

    pattern: Tensor
    rho: float
    multipliers: Tensor
    slack: float
    lift: float
    vectors: Vectors | None = None
    branch: int = -1
    neuron: int = LEAF
    children: tuple[_Node, _Node] | None = None
    empty: Tensor | None = None


@dataclass(eq=False)
class _Search:
    options: BranchAndBound
    problem: Problem
    transformed: ScaledIncrements
    run: Run
    vertex: float = 0.0
    nodes: int = 1
    bounded: int = 1
    _visited: int = 0
    _places: int = 0
    _heap: list[tuple[float, int, _Node]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.climber = Climber(self.transformed)
        self.neurons = self.climber.neurons
        self.exact = DenseForm(self.transformed)
        self.form = BatchForm(self.exact, self.neurons)
        self.allowed = branchable(self.transformed)
        steps = steps_to_output(self.transformed)
        self.steps = torch.cat(
            [torch.full((cell.size,), float(steps[cell.node]), dtype=torch.float64) for cell in self.transformed.cells]
            or [torch.zeros(0, dtype=torch.float64)]
        )
        self.depth = max(steps.values(), default=0) + 1
        regions, self.reach = self.problem.regions, None
        if regions is not None and regions.count == int(self.allowed.sum()) and bool((regions.side != 0).any()):
            problem = self.problem
            self.reach = Reach(regions, problem.domain, problem.model.in_shape, self.allowed, self.run.generator)

    # -- the tree ---------------------------------------------------------------------------------------------

    def found(self) -> Found:
        """Branch until nothing is open, the budget ends or the tree is full; then the tree."""
        root = self.root()
        cost = self._check_cost(root)
        self._push(root)
        while self._heap and self.upper > self.goal and self.nodes < self.options.max_nodes:
            if self.run.left < 1.2 * cost * (self.bounded + 1) + 0.5:
                break
            self._round()
            self._tell()
        return self._packaged(root, 0.0)

    @property
    def goal(self) -> float:
        """A node at or below this ρ is closed."""
        return self.vertex * (1.0 + self.options.gap) ** 2

    @property
    def upper(self) -> float:
        """The largest ρ of an open node."""
        return -self._heap[0][0] if self._heap else 0.0

    def _push(self, node: _Node) -> None:
        self._places += 1
        heapq.heappush(self._heap, (-node.rho, self._places, node))

    def root(self) -> _Node:
        """LipSDP on the whole network, from a random start, to a tenth of the gap or until it stalls."""
        patterns = torch.full((1, self.neurons.count), FREE, dtype=torch.int8)
        self._value_reached()
        start = self.climber.random(1, max(self.options.columns, 16), self.run.generator)
        count, best, before = 60, None, 0.0
        while True:
            ascent = self.climber.run(patterns, start, count)
            value = float(ascent.rho[0])
            if not math.isfinite(value):
                raise NumericsError("the vector-neuron iteration overflowed; use autolip.")
            self._round_vectors(patterns, ascent)
            rho, multipliers, lift = self._upper_values(patterns, ascent)
            node = self._node(patterns[0], float(rho[0]), multipliers[0], float(lift[0]), ascent, 0)
            improved = best is None or node.rho < best.rho * (1.0 - 0.01 * self.options.gap)
            if best is None or node.rho < best.rho:
                best = node
            stalled = value <= before * (1.0 + 1e-3 * self.options.gap) and not improved
            close = best.rho <= max(value * (1.0 + 0.1 * self.options.gap) ** 2, self.goal)
            if close or stalled or count > 5000 or self.run.left < 0.5 * self.run.budget:
                break
            start, before, count = ascent.vectors, value, 2 * count
        if not math.isfinite(best.rho):
            raise NotProved("branch_and_bound found no feasible multipliers; use lipsdp or autolip.")
        return best

    def _round(self) -> None:
        """Split the worst open nodes and bound their children."""
        chosen: list[_Node] = []
        while self._heap and len(chosen) < BATCH and -self._heap[0][0] > self.goal:
            chosen.append(heapq.heappop(self._heap)[2])
        chosen = [node for node in chosen if node.branch >= 0]
        if not chosen:
            return
        places: list[tuple[_Node, Settled]] = []
        for node in chosen:
            for end in (0, 1):
                pattern = node.pattern.clone()
                pattern[node.branch] = end
                places.append((node, Settled(pattern) if self.reach is None else self.reach.settled(pattern)))
        self._value_reached()
        open_ones = [place for place in places if place[1].empty is None]
        bounded: list[_Node] = []
        if open_ones:
            vectors = [node.vectors for node, _ in open_ones if node.vectors]
            start = Vectors(torch.cat([v.x for v in vectors]).double(), torch.cat([v.units for v in vectors]).double())
            patterns = torch.stack([settled.pattern for _, settled in open_ones])
            bounded = self._bounded(patterns, start, [node for node, _ in open_ones])
        waiting = iter(bounded)
        children = [self._below(settled, None if settled.empty is not None else next(waiting)) for _, settled in places]
        for node in bounded:
            self._push(node)
        for parent, low, high in zip(chosen, children[::2], children[1::2], strict=True):
            parent.children, parent.neuron, parent.vectors = (low, high), parent.branch, None
        self.bounded += len(bounded) - len(chosen)
        self.nodes += 2 * len(chosen) + 2 * sum(len(settled.steps) for _, settled in places)

    def _below(self, settled: Settled, last: _Node | None) -> _Node:
        """The node of a pattern: ``last`` or an empty leaf, below splits with empty leaves for what is implied."""

        def leaf(weights: Tensor | None) -> _Node:
            return _Node(settled.pattern, 0.0, torch.zeros(0), 0.0, 0.0, empty=weights)

        node = leaf(settled.empty) if last is None else last
        for step in reversed(settled.steps):
            dead = leaf(step.weights)
            node = replace(leaf(None), neuron=step.neuron, children=(node, dead) if step.end else (dead, node))
        return node

    def _value_reached(self) -> None:
        """Vertex values of patterns that points of the domain have, by the same ascent with few columns."""
        if self.reach is None or self._visited == len(self.reach.patterns):
            return
        for patterns in self.reach.reached(self._visited).split(BATCH):
            start = self.climber.random(len(patterns), 2, self.run.generator)
            self.vertex = max(self.vertex, float(self.climber.run(patterns, start, 40).rho.max()))
        self._visited = len(self.reach.patterns)

    def _bounded(self, patterns: Tensor, start: Vectors, parents: list[_Node]) -> list[_Node]:
        """Children with their upper values: some passes for all, more where they may close the node."""
        ascent = self.climber.run(patterns, start, self.options.passes)
        self._round_vectors(patterns, ascent)
        rho, multipliers, lift = self._upper_values(patterns, ascent)
        spent = self.options.passes
        moving = torch.ones(len(rho), dtype=torch.bool)
        while spent < 10 * self.options.passes and self.run.left > 0:
            rows = torch.nonzero(moving & (rho > self.goal) & (ascent.rho < self.goal)).reshape(-1)
            if not len(rows):
                break
            more = self.climber.run(patterns[rows], ascent.vectors.take(rows), spent)
            spent *= 2
            values = self._upper_values(patterns[rows], more)
            better = values[0] < rho[rows]
            moving[rows] = (values[0] < rho[rows] * (1.0 - 1e-2 * self.options.gap)) | (
                more.rho > ascent.rho[rows] * (1.0 + 1e-3 * self.options.gap)
            )
            chosen = rows[better]
            rho[chosen], multipliers[chosen], lift[chosen] = (value[better] for value in values)
            ascent = ascent.replaced(rows, more)
        nodes = []
        for row, parent in enumerate(parents):
            own = float(rho[row])
            if own <= parent.rho:
                nodes.append(self._node(patterns[row], own, multipliers[row], float(lift[row]), ascent, row))
            else:  # the parent's multipliers prove the parent's ρ for the child
                nodes.append(self._node(patterns[row], parent.rho, parent.multipliers, parent.lift, ascent, row))
        return nodes

    def _node(self, pattern: Tensor, rho: float, multipliers: Tensor, lift: float, ascent: Ascent, row: int) -> _Node:
        node = _Node(pattern.clone(), rho, multipliers.clone(), 0.1 * lift, lift)
        if rho > self.goal:
            free = self.allowed & (pattern == FREE)
            if bool(free.any()):
                # ‖h‖ times the distance of z from the nearer of αv and βv, up to a factor √2
                score = ascent.strength[row] * (1.0 - ascent.cosine[row].abs().clamp(max=1.0)).sqrt()
                node.branch = int(torch.where(free, score, -1.0).argmax())
                x, units = ascent.vectors.x[row : row + 1], ascent.vectors.units[row : row + 1]
                node.vectors = Vectors(x.float(), units.float())
        return node

    # -- values -----------------------------------------------------------------------------------------------

    def _upper_values(self, patterns: Tensor, ascent: Ascent) -> tuple[Tensor, Tensor, Tensor]:
        """The best of all lifts: ρ (``inf`` where none is feasible), multipliers and lift of every node."""
        best = torch.full((len(patterns),), torch.inf, dtype=torch.float64)
        chosen = ascent.multipliers.clone()
        lifts = torch.full_like(best, LIFTS[-1])
        for p in LIFTS:
            margin = torch.full_like(best, p)
            lifted = ascent.multipliers * (1.0 + p) ** self.steps
            rho, repaired = self.form.least_rho(patterns, lifted, 0.1 * margin, margin)
            better = rho < best
            best, lifts = torch.where(better, rho, best), torch.where(better, p, lifts)
            chosen = torch.where(better[:, None], repaired, chosen)
        return best, chosen, lifts

    def _round_vectors(self, patterns: Tensor, ascent: Ascent) -> None:
        """Vertex values from the leading direction of Y: the same ascent with one column ends in a pattern.

        Where patterns that no point has are left out, only those count that a point has.
        """
        if self.reach is not None:
            return
        directions = torch.linalg.svd(ascent.y, full_matrices=False).U[:, :, 0]
        x = torch.einsum("brn,br->bn", ascent.vectors.x, directions)[:, None]
        units = torch.einsum("brn,br->bn", ascent.vectors.units, directions)[:, None]
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-150)
        units = torch.where(units == 0, 1.0, units.sign())
        for freed in (patterns, torch.full_like(patterns, FREE)):
            point = self.climber.run(freed, Vectors(x, units), 12)
            self.vertex = max(self.vertex, float(point.rho.max()))
            x, units = point.vectors.x, point.vectors.units

    # -- the end ----------------------------------------------------------------------------------------------

    def _check_cost(self, root: _Node) -> float:
        """Seconds that the certificate's check will take per leaf."""
        fixed = Slopes(self.transformed).fixed({int(j): 0 for j in torch.nonzero(self.allowed)[:1]})
        began = time.perf_counter()
        with suppress(NotProved):
            self.exact.fixing(fixed).least_rho(self._by_node(root.multipliers), root.slack, self._weights())
        return time.perf_counter() - began

    def _weights(self) -> Weights:
        increments = self.transformed.increments
        n, m = size(increments.in_shape), size(increments.out_shape)
        return Weights(torch.ones(n, dtype=torch.float64), torch.ones(m, dtype=torch.float64))

    def _by_node(self, multipliers: Tensor) -> dict[int, Tensor]:
        rows = self.neurons.split(multipliers)
        return {cell.node: rows[cell.node][:1] if cell.block else rows[cell.node] for cell in self.transformed.cells}

    def _packaged(self, root: _Node, lift: float) -> Found:
        """The witness; a weaker one lifts all leaves' multipliers further."""
        tree, every = _preorder(root)
        leaves = [leaf for leaf in every if leaf.empty is None]
        rho = max(leaf.rho for leaf in leaves)
        factors = (1.0 + lift) ** self.steps
        multipliers = self.neurons.split(torch.stack([leaf.multipliers for leaf in leaves]) * factors)
        arrays = {
            f"multipliers.{cell.node}": (multipliers[cell.node][:, :1] if cell.block else multipliers[cell.node])
            .contiguous()
            .clone()
            for cell in self.transformed.cells
        }
        arrays["exponents"] = torch.tensor(self.transformed.exponents, dtype=torch.int64)
        arrays["tree"] = torch.tensor(tree, dtype=torch.int64)
        arrays["slack"] = torch.tensor([max(leaf.slack, 0.1 * lift) for leaf in leaves], dtype=torch.float64)
        dead = [number for number, leaf in enumerate(every) if leaf.empty is not None]
        if dead:
            arrays["empty"] = torch.tensor(dead, dtype=torch.int64)
            arrays["emptiness"] = torch.stack([every[number].empty for number in dead])  # type: ignore[misc]
        widest = max(leaf.lift for leaf in leaves)
        claim = rho * (1.0 + lift) ** self.depth * (1.0 + max(1e-9, 1e-3 * max(lift, min(widest, 1e-4)))) + 1e-280
        unit = self.transformed.exponents[-1]
        settings = {
            "rho": claim,
            "vertex_value": math.ldexp(math.sqrt(self.vertex), unit) if abs(unit) < 1000 else None,
            "gap": math.sqrt(rho / self.vertex) - 1.0 if self.vertex > 0 else None,
            "leaves": len(every),
        }

        def weaker() -> Found | None:
            following = max(1e-6, 10.0 * lift)
            return self._packaged(root, following) if following < 0.5 else None

        return Found(Witness("branch_tree", arrays, settings), weaker)

    def _tell(self) -> None:
        upper, vertex = (
            math.sqrt(max(v, 0.0)) * 2.0 ** self.transformed.exponents[-1] for v in (self.upper, self.vertex)
        )
        gap = upper / vertex - 1.0 if vertex > 0 else math.inf
        done = 1.0 - max(self.run.left, 0.0) / self.run.budget
        text = f"upper {upper:.6g}, vertex value {vertex:.6g}, gap {max(gap, 0.0):.2%}, {self.nodes} nodes"
        self.run.report(min(done, 0.99), text)


def _preorder(root: _Node) -> tuple[list[int], list[_Node]]:
    """The tree in preorder, lower slope first, and its leaves in the same order."""
    tree, leaves, waiting = [], [], [root]
    while waiting:
        node = waiting.pop()
        tree.append(node.neuron if node.children else LEAF)
        if node.children:
            waiting += [node.children[1], node.children[0]]
        else:
            leaves.append(node)
    return tree, leaves
