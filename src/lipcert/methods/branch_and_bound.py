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
from lipcert.certificates.branch_tree import Slopes, branchable
from lipcert.certificates.forms.elimination import cheapest_segments
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights
from lipcert.errors import InputError, MethodError, NotProved, NumericsError
from lipcert.increments import Cell, ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.base import Found, Method, Run, fork, method
from lipcert.methods.branch_ascent import FREE, Ascent, Climber, Vectors
from lipcert.methods.branch_form import BatchForm
from lipcert.methods.branch_nodes import Node, Pace, Settled, below, preorder
from lipcert.methods.branch_regions import Reach
from lipcert.methods.lipsdp import LipSDP
from lipcert.methods.space_reach import SpaceReach
from lipcert.network.linear import size
from lipcert.problem import Norm, Problem
from lipcert.ranges.regions import Regions
from lipcert.ranges.space import SpaceRegions
from lipcert.search.passes import steps_to_output

#: Geometric lifts tried for every node, finest first.
LIFTS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

#: Most nodes that are split in one round.
BATCH = 32

#: On the whole space regions are looked at where inputs and neurons are no more than this.
MOST_REACHED = 1500

#: On the whole space, once the bound is the vertex maximum, the search goes on as long as regions bring it further: it
#: ends after so many tests of regions, and as many as there were before, without.
PATIENCE = 150


@method
@dataclass(frozen=True, kw_only=True)
class BranchAndBound(Method):
    """The largest norm over the patterns σ_j ∈ {α_j, β_j} of the network's slopes that points of the domain have.

    A node of the tree fixes some neurons to one of their two slopes; its upper value comes from LipSDP on what is left.
    On the whole space and on bounded domains patterns that no point has are proved empty and left out, and the values
    from below are those of patterns that points have: it ends at the Lipschitz constant itself where every activation
    is two linear pieces. Elsewhere it ends at the vertex maximum, over all patterns, which lies above it (the
    branch-tree certificate says why). Anytime: when the budget ends, open nodes become leaves with the bounds they
    have; with the root alone it is LipSDP. Where the bound is the vertex maximum and regions do not bring it further,
    it ends before.

    Attributes:
        gap: stop once upper ≤ (1 + gap) · (best vertex value).
        max_nodes: most nodes of the tree.
        columns: rank of the relaxation.
        passes: passes of the vector-neuron iteration per node; up to ten times as many where they may close it.
        prune: leave out patterns that no point has; without, it ends at the vertex maximum.
    """

    name: ClassVar[str] = "branch_and_bound"
    norms: ClassVar[tuple[Norm, ...]] = ((2.0, 2.0),)
    summary: ClassVar[str] = (
        "maximum over activation patterns that points have, by branch and bound, anytime; at most lipsdp"
    )

    gap: float = 1e-4
    max_nodes: int = 100_000
    columns: int = 8
    passes: int = 40
    prune: bool = True

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
class _Search:
    options: BranchAndBound
    problem: Problem
    transformed: ScaledIncrements
    run: Run
    vertex: float = 0.0
    ceiling: float = 0.0
    nodes: int = 1
    bounded: int = 1
    pace: Pace = field(default_factory=Pace)
    cost: float = 0.0
    _slowest: float = 0.0
    _likely: Tensor | None = None
    _progress: tuple[float, float, int] = (math.inf, 0.0, 0)
    _visited: int = 0
    _places: int = 0
    _heap: list[tuple[float, int, Node]] = field(default_factory=list)

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
        self.reach = self._reach() if self.options.prune else None

    def _reach(self) -> Reach | SpaceReach | None:
        """What finds patterns that no point has, if there may be any."""
        shape, seed = self.problem.model.in_shape, self.run.generator
        if self.problem.domain is None and int(self.allowed.sum()) + size(shape) > MOST_REACHED:
            return None
        regions = self.problem.regions
        if regions is None or regions.count != int(self.allowed.sum()) or not bool((regions.side != 0).any()):
            return None
        if isinstance(regions, Regions):
            return Reach(regions, self.problem.domain, shape, self.allowed, seed)
        return SpaceReach(regions, shape, self.allowed, seed) if isinstance(regions, SpaceRegions) else None

    # -- the tree ---------------------------------------------------------------------------------------------

    def found(self) -> Found:
        """Branch until nothing is open, the budget ends or the tree is full; then the tree."""
        root = self.root()
        self.cost = self._check_cost(root)
        self._push(root)
        while self._heap and self.upper > self.goal and self.nodes < self.options.max_nodes:
            if self.spare <= 0.0 or self._idle():
                break
            self._round()
            self._tell()
        return self._packaged(root, 0.0)

    @property
    def spare(self) -> float:
        """Seconds that are left beside those of the check."""
        proofs = self.reach.seconds if isinstance(self.reach, SpaceReach) else 0.0
        return self.run.left - 1.2 * (self.cost * (self.bounded + 1) + proofs) - 0.5

    @property
    def goal(self) -> float:
        """A node at or below this ρ is closed."""
        return self.vertex * (1.0 + self.options.gap) ** 2

    @property
    def low(self) -> bool:
        """Whether the bound is that over all patterns, so that only those that no point has are in its way."""
        return self.upper <= self.ceiling * (1.0 + self.options.gap) ** 2

    def _idle(self) -> bool:
        """Whether tests of regions of the whole space have brought nothing for long."""
        if not isinstance(self.reach, SpaceReach) or not self.low:
            return False
        if self._likely is not None:
            self._test(self._likely)
            self._likely = None
        upper, vertex, last = self._progress
        if self.upper < upper * (1.0 - self.options.gap) or self.vertex > vertex * (1.0 + self.options.gap):
            self._progress = self.upper, self.vertex, self.pace.tests
            return False
        last = max(last, self.pace.last)
        return self.pace.tests - last > max(PATIENCE, last)

    @property
    def upper(self) -> float:
        """The largest ρ of an open node."""
        return -self._heap[0][0] if self._heap else 0.0

    def _push(self, node: Node) -> None:
        self._places += 1
        heapq.heappush(self._heap, (-node.rho, self._places, node))

    def root(self) -> Node:
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
        """Split the worst open nodes and bound their children; those without a point are empty leaves."""
        chosen: list[Node] = []
        again: list[Node] = []
        while self._heap and len(chosen) + len(again) < BATCH and self.upper > self.goal:
            node = heapq.heappop(self._heap)[2]
            inner = self._looked_at(node)
            if inner is node:
                chosen += [node] if node.branch >= 0 else []
            elif inner is not None:
                again.append(inner)
        places: list[tuple[Node, Settled]] = []
        for node in chosen:
            for end in (0, 1):
                pattern = node.pattern.clone()
                pattern[node.branch] = end
                early = isinstance(self.reach, Reach) and self.pace.due()
                places.append((node, self._test(pattern) if early else Settled(pattern)))
        self._value_reached()
        open_ones = [(node, settled.pattern) for node, settled in places if settled.empty is None]
        bounded = self._bounded([*open_ones, *((node, node.pattern) for node in again)])
        waiting = iter(bounded)
        children = []
        for _, settled in places:
            child = None if settled.empty is not None else next(waiting)
            if child is not None:
                child.tested = settled.tested
            children.append(below(settled, child))
        for node, new in zip(again, waiting, strict=True):
            new.tested = True
            node.become(new)
        for node in [*bounded[: len(open_ones)], *again]:
            self._push(node)
        for parent, low, high in zip(chosen, children[::2], children[1::2], strict=True):
            parent.children, parent.neuron, parent.vectors = (low, high), parent.branch, None
        self.bounded += len(open_ones) - len(chosen)
        self.nodes += 2 * len(chosen) + 2 * sum(len(settled.steps) for _, settled in places)

    def _test(self, pattern: Tensor) -> Settled:
        """Whether a point has the pattern, and what of it follows."""
        assert self.reach is not None
        began = time.perf_counter()
        settled = self.reach.settled(pattern)
        self._slowest = max(self._slowest, time.perf_counter() - began)
        settled.tested = True
        self.pace.count(settled.empty is not None or bool(settled.steps))
        return settled

    def _looked_at(self, node: Node) -> Node | None:
        """An open node, or what is left of it below what follows for its region; None if no point is in that."""
        if self.reach is None or node.tested or self.spare < 2.0 * self._slowest:
            return node
        if not (self.low or self.pace.due()):
            return node
        settled = self._test(node.pattern)
        self._value_reached()
        node.tested = True
        if settled.empty is None and not settled.steps:
            return node
        inner = None if settled.empty is not None else replace(node, pattern=settled.pattern)
        node.become(below(settled, inner))
        self.nodes += 2 * len(settled.steps)
        self.bounded -= inner is None
        return inner

    def _value_reached(self) -> None:
        """Vertex values of patterns that points of the domain have, by the same ascent with few columns."""
        if self.reach is None or self._visited == len(self.reach.patterns):
            return
        for patterns in self.reach.reached(self._visited).split(BATCH):
            start = self.climber.random(len(patterns), 2, self.run.generator)
            self.vertex = max(self.vertex, float(self.climber.run(patterns, start, 40).rho.max()))
        self._visited = len(self.reach.patterns)

    def _bounded(self, asked: list[tuple[Node, Tensor]]) -> list[Node]:
        """Nodes for patterns below others, with their upper values: more passes where they may close the node."""
        if not asked:
            return []
        parents, vectors = [parent for parent, _ in asked], [parent.vectors for parent, _ in asked if parent.vectors]
        start = Vectors(torch.cat([v.x for v in vectors]).double(), torch.cat([v.units for v in vectors]).double())
        patterns = torch.stack([pattern for _, pattern in asked])
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

    def _node(self, pattern: Tensor, rho: float, multipliers: Tensor, lift: float, ascent: Ascent, row: int) -> Node:
        node = Node(pattern.clone(), rho, multipliers.clone(), 0.1 * lift, lift)
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

        Where patterns that no point has are left out, they are a ceiling only.
        """
        directions = torch.linalg.svd(ascent.y, full_matrices=False).U[:, :, 0]
        x = torch.einsum("brn,br->bn", ascent.vectors.x, directions)[:, None]
        units = torch.einsum("brn,br->bn", ascent.vectors.units, directions)[:, None]
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-150)
        units = torch.where(units == 0, 1.0, units.sign())
        for freed in (patterns, torch.full_like(patterns, FREE)):
            point = self.climber.run(freed, Vectors(x, units), 12)
            best = int(point.rho.argmax())
            if float(point.rho[best]) > self.ceiling:
                self.ceiling = float(point.rho[best])
                slopes = torch.where(point.cosine[best] > 0, 1, 0).to(torch.int8)
                self._likely = torch.where(freed[best] == FREE, slopes, freed[best])
            x, units = point.vectors.x, point.vectors.units
        if self.reach is None:
            self.vertex = self.ceiling

    # -- the end ----------------------------------------------------------------------------------------------

    def _check_cost(self, root: Node) -> float:
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
        return {cell.node: _of_groups(rows[cell.node], cell) for cell in self.transformed.cells}

    def _packaged(self, root: Node, lift: float) -> Found:
        """The witness; a weaker one lifts all leaves' multipliers further."""
        tree, every = preorder(root)
        leaves = [leaf for leaf in every if leaf.empty is None]
        rho = max(leaf.rho for leaf in leaves)
        factors = (1.0 + lift) ** self.steps
        multipliers = self.neurons.split(torch.stack([leaf.multipliers for leaf in leaves]) * factors)
        arrays = {
            f"multipliers.{cell.node}": _of_groups(multipliers[cell.node], cell).contiguous().clone()
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


def _of_groups(values: Tensor, cell: Cell) -> Tensor:
    """Of numbers per entry of z, (..., size), one per multiplier."""
    return values[..., :: max(1, cell.size // max(1, cell.groups))]
