"""The joint recursion for networks too wide for matrices: constants by passes from a random start, probabilistic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.norms.operator_norm import NormBound, map_norm
from lipcert.certificates.recursions import Recursion
from lipcert.errors import NumericsError
from lipcert.guarantee import Guarantee
from lipcert.increments import Cell, EntryCell, Increments, Linear, Relation
from lipcert.network.linear import Identity, LinearMap, OpMap, size
from lipcert.network.moves import DIAGONAL
from lipcert.numerics.lanczos import random_normal
from lipcert.numerics.magnitude import ONE, Magnitude
from lipcert.numerics.probabilistic import sigma_max_probabilistic
from lipcert.ranges.course import Course

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem

#: Relative inflation that norms on the way, and that of the output, aim at.
ON_THE_WAY, AT_THE_END = 0.05, 0.01
#: Random directions that bound the constants of entries, how many are sent at once, and entries of a batch.
PROBES, BATCH = 128, 1 << 24
#: Up to so many entries each has a row of its own.
FEW_ROWS = 2048
#: Diagonal maps whose least entry is at least this share of the greatest are as good as a number.
UNIFORM = 0.95
#: Rounds of weights, and steps of the power method in each.
ROUNDS, STEPS = 3, 3


class JointPasses(Recursion):
    """δv = Σ_s A_s w_s with ‖w_s‖ ≤ ℓ_s ‖δx‖ over sources s; the A_s are code.

    Why this is an upper bound: for any weights t_s > 0, ‖Σ A_s w_s‖ ≤ ‖[t_s A_s]‖ √(Σ (ℓ_s/t_s)²)‖δx‖, and the norm is
    bounded by Lanczos from a random start. Likewise for each entry with the norm of a row a of [t_s A_s]: for K
    standard normal vectors g_i, Σ (a·g_i)² is ‖a‖² times a chi-square of K degrees of freedom, below εK with a
    probability of at most (ε e^{1−ε})^{K/2} (Chernoff); so ‖a‖² ≤ Σ (a·g_i)²/(εK) but for that probability. Weights
    come from a few steps of the power method, and may be any. Roundings are not included, as of every norm by passes;
    those of the values at x̂ are allowed for.
    """

    def __init__(self, problem: Problem, chance: Chance) -> None:
        self.course = Course(problem.expanded, problem.domain, enclosed=False)
        super().__init__(Increments.of(problem.expanded, self.course.ranges), 2.0, chance, None)
        self.share = chance.group(2 * len(self.course.asked))
        self.relations: list[Relation] = []
        self.entries: dict[int, Tensor] = {}
        self.norms: dict[int, tuple[LinearMap, NormBound]] = {}
        self.entered: dict[int, Magnitude] = {0: ONE}

    def relation(self, k: int) -> Relation:
        """As the course has it."""
        self.relations.append(self.course.relation(k))
        return self.relations[k]

    def enter(self, k: int, relation: Relation) -> None:
        """Cells are sources; the course is told."""
        if isinstance(relation, Cell):
            self.entered[k] = self.constants[relation.parent if isinstance(relation, EntryCell) else k]
        self.course.tell(float(self.constants[k]), self.entries.get(k))

    def _norm_of(self, linear: LinearMap, term: int) -> NormBound:
        if id(linear) not in self.norms:
            self.norms[id(linear)] = linear, map_norm(linear, self.p, None, self.share, route="sums")
        return self.norms[id(linear)][1]

    def through(self, k: int, node: Linear, product: Magnitude) -> tuple[Magnitude, Guarantee]:
        """Norms where they are asked for."""
        if k not in self.course.asked or (k not in self.course.by_entries and _only_scales(node)):
            return product, "rigorous"
        sources = _Sources(self, k, node)
        if not sources.lengths:
            return product, "rigorous"
        last = k == len(self.increments.relations) - 1
        try:
            value = sources.whole(AT_THE_END if last else ON_THE_WAY)
            if k in self.course.by_entries:
                self.entries[k] = sources.each()
        except ValueError as error:
            raise NumericsError(f"the norm of a map over several layers cannot be bounded: {error}.") from error
        return (value, "probabilistic") if value < product else (product, "rigorous")


class _Sources:
    """The map from all sources to one node, weighted."""

    def __init__(self, recursion: JointPasses, target: int, node: Linear) -> None:
        self.relations, self.share = [*recursion.relations], recursion.share
        self.target, self.shape = target, node.shape
        reached = {target}
        for k in range(target, -1, -1):
            if k in reached and not _starts(self.relations[k]):
                reached.update(self.relations[k].parents)
        self.order = sorted(reached)
        known = {k: float(recursion.entered[k]) for k in self.order if k in recursion.entered}
        self.lengths = {k: length for k, length in known.items() if length > 0}
        if not all(map(math.isfinite, self.lengths.values())):
            raise NumericsError("constants overflow float64.")
        self._leaves = {
            k: torch.zeros(1, *self.relations[k].shape, dtype=torch.float64, requires_grad=True) for k in self.lengths
        }
        with torch.enable_grad():
            self._image = self.apply(self._leaves)
        self.weights = dict.fromkeys(self.lengths, 1.0)
        self._weigh()

    def apply(self, inputs: Mapping[int, Tensor]) -> Tensor:
        """Σ A_s w_s."""
        known: dict[int, Tensor] = {}
        for k in self.order:
            relation = self.relations[k]
            if isinstance(relation, Linear):
                images = [m.apply(known[p]) for p, m in zip(relation.parents, relation.maps, strict=True) if p in known]
                if images:
                    known[k] = sum(images[1:], images[0])
            elif isinstance(relation, EntryCell):
                parts = [relation.c * known[relation.parent]] if relation.parent in known else []
                parts += [relation.d * inputs[k]] if k in inputs else []
                if parts:
                    known[k] = sum(parts[1:], parts[0])
            elif k in inputs:
                known[k] = inputs[k]
        return known[self.target]

    def back(self, y: Tensor) -> dict[int, Tensor]:
        """A_sᵀ y for every s."""
        found = torch.autograd.grad(self._image, list(self._leaves.values()), y[None], retain_graph=True)
        return dict(zip(self._leaves, found, strict=True))

    def gram(self, y: Tensor) -> Tensor:
        """Σ t_s² A_s A_sᵀ y."""
        parts = self.back(y.reshape(self.shape))
        with torch.no_grad():
            return self.apply({s: part * self.weights[s] ** 2 for s, part in parts.items()}).reshape(-1)

    def _weigh(self) -> None:
        """Weights that are best where all sources meet in the direction in which the node moves most."""
        generator = torch.Generator().manual_seed(0)
        y = torch.randn(size(self.shape), generator=generator, dtype=torch.float64)
        for _ in range(ROUNDS):
            for _ in range(STEPS):
                y = self.gram(y)
                y = y / y.norm().clamp(min=1e-300)
            sizes = {s: float(part.norm()) for s, part in self.back(y.reshape(self.shape)).items()}
            floor = 1e-9 * max(sizes[s] * self.lengths[s] for s in sizes) + 1e-300
            self.weights = {
                s: math.sqrt(self.lengths[s] / max(sizes[s], floor / self.lengths[s])) for s in self.lengths
            }

    @property
    def spread(self) -> float:
        """√(Σ (ℓ_s/t_s)²), with room for its roundings."""
        return math.hypot(*(self.lengths[s] / self.weights[s] for s in self.lengths)) * (1.0 + 1e-12)

    def whole(self, target: float) -> Magnitude:
        """A constant of the node."""
        delta = self.share.draw(value=True)
        value, _ = sigma_max_probabilistic(self.gram, size(self.shape), delta, target, 1000, self.share.generator)
        return Magnitude.of(value) * Magnitude.of(self.spread)

    def each(self) -> Tensor:
        """A constant of every entry, from its rows Σ_s ‖a_s‖ ℓ_s where these are few."""
        count = size(self.shape)
        if count <= FEW_ROWS:
            return self._rows(count)
        share = _share(PROBES, self.share.draw(value=True) / count)
        batch = max(1, min(PROBES, BATCH // sum(leaf.numel() for leaf in self._leaves.values())))
        total = torch.zeros(count, dtype=torch.float64)
        for start in range(0, PROBES, batch):
            rows = min(batch, PROBES - start)
            normal = {s: self._normal(rows, leaf) * self.weights[s] for s, leaf in self._leaves.items()}
            total += self.apply(normal).reshape(rows, -1).square().sum(0)
        return torch.sqrt(total / (share * PROBES)) * self.spread * (1.0 + 1e-12)

    def _rows(self, count: int) -> Tensor:
        entries = sum(leaf.numel() for leaf in self._leaves.values())
        batch = max(1, BATCH // entries)
        found = []
        for start in range(0, count, batch):
            units = torch.zeros(min(batch, count - start), count, dtype=torch.float64)
            units[torch.arange(len(units)), torch.arange(start, start + len(units))] = 1.0
            wanted = units.reshape(len(units), 1, *self.shape)
            parts = torch.autograd.grad(
                self._image, list(self._leaves.values()), wanted, retain_graph=True, is_grads_batched=True
            )
            norms = [part.reshape(len(units), -1).norm(dim=1) for part in parts]
            found.append(sum(own * length for own, length in zip(norms, self.lengths.values(), strict=True)))
        return torch.cat([torch.as_tensor(own) for own in found]) * (1.0 + 1e-9)

    def _normal(self, rows: int, leaf: Tensor) -> Tensor:
        return random_normal(rows * leaf.numel(), self.share.generator).reshape(rows, *leaf.shape[1:])


def _only_scales(node: Linear) -> bool:
    """Whether a node is about the same multiple of all entries of another, whose constant says it all."""
    if len(node.maps) != 1 or isinstance(node.maps[0], Identity):
        return len(node.maps) == 1
    (linear,) = node.maps
    if not isinstance(linear, OpMap) or linear.attributes != DIAGONAL or not linear.constants[0].numel():
        return False
    sizes = linear.constants[0].abs()
    return float(sizes.min()) >= UNIFORM * float(sizes.max())


def _starts(relation: Relation) -> bool:
    """Whether nothing that comes before a relation passes through it."""
    return isinstance(relation, Cell) and not isinstance(relation, EntryCell)


def _share(count: int, delta: float) -> float:
    """ε ≤ 1 with (ε e^{1−ε})^{count/2} ≤ δ, by bisection from below."""
    goal = 2.0 * math.log(delta) / count * (1.0 + 1e-12)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if math.log(middle) + 1.0 - middle <= goal:
            low = middle
        else:
            high = middle
    return low
