"""The bound that multipliers prove, in floating point: one walk back from the output, differentiable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.floors import below, least_of
from lipcert.certificates.cost_to_go.multipliers import Edge, Multipliers
from lipcert.certificates.cost_to_go.windows_in_bases import BasisCell
from lipcert.network.linear import size
from lipcert.search.cost_to_go.cells import Cell
from lipcert.search.cost_to_go.inputs import HALVINGS, Domains
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.relaxed import Relaxed
from lipcert.search.cost_to_go.windows import WindowCell
from lipcert.search.cost_to_go.windows_in_bases import at as at_in_basis
from lipcert.search.cost_to_go.windows_in_bases import least as least_in_basis

#: (affine node, D on its value) → place of a parent → T on the parent's value.
Weigh = Callable[[int, Tensor], Mapping[int, Tensor]]
#: A quadratic cost −½T(z − z̃)²: (T, z̃).
Quadratic = tuple[Tensor, Tensor]
#: Sweeps over windows whose costs are coupled, before a proof.
SURE = 3


@dataclass(frozen=True, eq=False)
class Question:
    """Lower bounds of P linear functions of the output, each on a domain of its own.

    Attributes:
        plan: the network.
        rows: (P, m).
        low, high: per node the range on the domain, (P, *shape); empty for nodes that nobody asks for.
        domains: P of them.
        relaxed: linear bounds of nodes that have no cost of their own.
    """

    plan: Plan
    rows: Tensor
    low: Mapping[int, Tensor]
    high: Mapping[int, Tensor]
    domains: Domains
    relaxed: Relaxed = field(default_factory=Relaxed)

    def at(self, rows: Tensor) -> Question:
        """Some of the functions."""
        low, high = ({k: t[rows] for k, t in ends.items()} for ends in (self.low, self.high))
        return Question(self.plan, self.rows[rows], low, high, self.domains.at(rows), self.relaxed.at(rows))

    def value(
        self, multipliers: Multipliers, weigh: Weigh, halvings: int = HALVINGS, sweeps: int = 1, step: float = 0.0
    ) -> Tensor:
        """The lower bounds, (P,); their gradient smoothed, where slopes are to move by ``step`` of their size."""
        walk = _Walk(self, multipliers, sweeps, step)
        for k in range(len(self.plan.network.nodes) - 1, 0, -1):
            walk.back(k, weigh)
        return walk.at_input(halvings)

    def cells(self, multipliers: Multipliers, weigh: Weigh) -> tuple[dict[int, Cell], dict[int, Windows], Tensor]:
        """Position of an activation → its costs; of a maximum under a floor → its own; and the input of the least."""
        walk = _Walk(self, multipliers)
        for k in range(len(self.plan.network.nodes) - 1, 0, -1):
            walk.back(k, weigh)
        return walk.cells, walk.windows, walk.input_point()


@dataclass(frozen=True, eq=False)
class Windows:
    """The costs of maxima under a floor; the last entry of every window is what it counts as at least.

    Attributes:
        low, high: of the entries, (P, O, K).
        least: the least costs, (P, O).
        cost: entries → costs, (P, O).
    """

    low: Tensor
    high: Tensor
    least: Tensor
    cost: Callable[[Tensor], Tensor]


class _Walk:
    """What is still to be paid, going back: a linear cost and quadratic ones per node, and a number."""

    def __init__(self, question: Question, multipliers: Multipliers, sweeps: int = 1, step: float = 0.0) -> None:
        self.sweeps, self.step = sweeps, step
        self.question, self.multipliers, self.plan = question, multipliers, question.plan
        self.value = question.rows.new_zeros(len(question.rows))
        last = len(self.plan.network.nodes) - 1
        shape = self.plan.network.out_shape
        self.linear: dict[int, Tensor] = {last: question.rows.reshape(-1, *shape)}
        self.quadratic: dict[int, list[Quadratic]] = {}
        self.cells: dict[int, Cell] = {}
        self.windows: dict[int, Windows] = {}
        self.centres: dict[int, Tensor] = {}
        for k in self.plan.bent:
            self.centres[k] = self._image(k)

    def _image(self, k: int) -> Tensor:
        """ṽ of an affine node: its value at the centres of its parents."""
        node, total = self.plan.network.nodes[k], None
        for i in self.plan.linked(k):
            image = self.plan.maps[k][i].apply(self._centre(k, i))
            total = image if total is None else total + image
        if total is None:
            total = self.value.new_zeros(len(self.value), *node.shape)
        offset = getattr(node, "offset", None)
        return total if offset is None else total + offset

    def _centre(self, k: int, i: int) -> Tensor:
        """Where the quadratic cost of a parent is centred."""
        parent = self.plan.network.nodes[k].parents[i]
        if parent in self.centres:
            return self.centres[parent]
        anchor = self.multipliers.anchor.get((k, i))
        if anchor is None:
            anchor = (0.5 * self.question.low[parent] + 0.5 * self.question.high[parent]).nan_to_num(0.0, 0.0, 0.0)
        return anchor

    def back(self, k: int, weigh: Weigh) -> None:
        """Through one node."""
        c, quadratics = self.linear.pop(k, None), self.quadratic.pop(k, [])
        if c is None:
            return
        if k in self.plan.functions:
            self._through_activation(k, c, quadratics)
        elif k in self.plan.floors:
            self.linear[self.plan.floors[k].maximum] = c
            self.quadratic[self.plan.floors[k].maximum] = quadratics
        elif k in self.plan.maxima:
            self._through_maximum(k, c, quadratics)
        elif k in self.plan.maps:
            self._through_affine(k, c, quadratics, weigh)
        else:
            weight, middle = self._joined(quadratics, c)
            if k in self.plan.relaxed:
                g = self.multipliers.slope[k]
                c = c - g
                handed, constant = self.question.relaxed.back(k, g)
                self.value = self.value + constant
                for parent, linear in handed:
                    self._hand(parent, linear, None)
            ends = (self.question.low[k], self.question.high[k])
            first, second = (c * z - 0.5 * weight * (z - middle).square() for z in ends)
            self.value = self.value + torch.minimum(first, second).flatten(1).sum(1)

    def _through_activation(self, k: int, c: Tensor, quadratics: list[Quadratic]) -> None:
        parent = self.plan.network.nodes[k].parents[0]
        g, curvature = self.multipliers.slope[k], self.multipliers.curvature[k]
        centre = self._centre(k, 0)
        weight, middle = self._joined(quadratics, c)
        low, high = self.question.low[parent], self.question.high[parent]
        cell = self.cells[k] = Cell(self.plan.functions[k], c, weight, middle, g, curvature, centre, low, high)
        self.value = self.value + cell.least(self.step)
        self._hand(parent, g, (curvature, centre))

    def _through_maximum(self, k: int, c: Tensor, quadratics: list[Quadratic]) -> None:
        parent, windows, basis = self.plan.network.nodes[k].parents[0], self.plan.maxima[k], self.plan.bases.get(k)
        shape = self.plan.network.nodes[parent].shape
        index, counts = windows.index.to(c.device), windows.first.to(c.device)
        g, curvature = self.multipliers.slope[k], self.multipliers.curvature[k]

        def summed(shares: Tensor) -> Tensor:
            flat = (shares * counts).flatten(1)
            total = flat.new_zeros(len(flat), size(shape)).index_add(1, index.reshape(-1), flat)
            return total.reshape(-1, *shape)

        low, high, number = self._ends(k, parent, index)
        weight, middle = (t.expand_as(c).flatten(1) for t in self._joined(quadratics, c))
        if basis is not None:
            curvature, centre = curvature.expand_as(g), self.centres[basis.position]
            own = BasisCell(c.flatten(1), weight, middle, g, curvature, centre, low, high, counts, *basis.to(g))
            whole = own if number is None else own.with_number(number)
            costs = least_in_basis(whole, self.sweeps, self.step)
            self._spend_least(k, whole, costs, lambda v: at_in_basis(whole, v, v.argmax(-1)))
            self._hand(parent, summed(g), None)
            self._hand(basis.position, torch.zeros_like(centre), (curvature, centre))
            return
        everywhere = self._centre(k, 0)
        centre = everywhere.flatten(1)[:, index]
        cell = WindowCell(c.flatten(1), weight, middle, g, curvature.expand_as(g), centre, low, high, counts)
        cell = cell if number is None else cell.with_number(number)
        self._spend_least(k, cell, cell.least(self.step), cell.where)
        self._hand(parent, summed(g), (summed(curvature), everywhere))

    def _spend_least(
        self, k: int, cell: WindowCell | BasisCell, least: Tensor, cost: Callable[[Tensor], Tensor]
    ) -> None:
        """Of a maximum, (P, O)."""
        self.value = self.value + least.sum(1)
        if k in self.plan.levels:
            self.windows[k] = Windows(cell.low, cell.high, least, cost)

    def _ends(self, k: int, parent: int, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of the entries of a maximum's windows, (P, O, K) twice; and what it counts as at least, (P, O)."""
        question, level = self.question, self.plan.levels.get(k)
        low, high = (t.flatten(1)[:, index] for t in (question.low[parent], question.high[parent]))
        if level is None:
            return low, high, None
        return low, below(high, low, question.high[k].flatten(1)), least_of(level, question.low[k].flatten(1))

    def _through_affine(self, k: int, c: Tensor, quadratics: list[Quadratic], weigh: Weigh) -> None:
        node = self.plan.network.nodes[k]
        offset = getattr(node, "offset", None)
        if offset is not None:
            self.value = self.value + (c * offset).flatten(1).sum(1)
        total = sum((weight for weight, _ in quadratics[1:]), quadratics[0][0]) if quadratics else None
        weights = weigh(k, total) if total is not None and self.plan.linked(k) else {}
        for i, parent in enumerate(node.parents):
            quadratic = (weights[i], self._centre(k, i)) if i in weights else None
            self._hand(parent, self.plan.maps[k][i].transpose(c), quadratic)

    def _hand(self, parent: int, linear: Tensor, quadratic: Quadratic | None) -> None:
        self.linear[parent] = self.linear[parent] + linear if parent in self.linear else linear
        if quadratic is not None:
            self.quadratic.setdefault(parent, []).append(quadratic)

    def _joined(self, quadratics: list[Quadratic], like: Tensor) -> Quadratic:
        """Σ −½T_i(z − z̃_i)² = −½T(z − z̃)² − ½ΣT_i(z̃_i − z̃)² with T = ΣT_i, Tz̃ = ΣT_iz̃_i."""
        if not quadratics:
            zero = like.new_zeros(1, *[1] * (like.dim() - 1))
            return zero, zero
        if len(quadratics) == 1:
            return quadratics[0]
        weight = sum((w for w, _ in quadratics[1:]), quadratics[0][0])
        middle = sum((w * m for w, m in quadratics[1:]), quadratics[0][0] * quadratics[0][1]) / weight.clamp(min=1e-30)
        for w, m in quadratics:
            self.value = self.value - 0.5 * (w * (m - middle).square()).flatten(1).sum(1)
        return weight, middle

    def at_input(self, halvings: int) -> Tensor:
        """What is left at the input."""
        c = self.linear.pop(0, None)
        if c is None:
            return self.value
        weight, middle = self._joined(self.quadratic.pop(0, []), c)
        return self.value + self.question.domains.least(c, weight, middle, halvings)

    def input_point(self) -> Tensor:
        """Where that is attained."""
        domains, c = self.question.domains, self.linear.pop(0, None)
        if c is None:
            return domains.center
        return domains.least_point(c, *self._joined(self.quadratic.pop(0, []), c))[0]


def by_norms(plan: Plan) -> Weigh:
    """T_i = max(D)·N_i·Σ_j N_j on every value of parent i: ‖Σ A_i δ_i‖² ≤ Σ_j N_j · Σ_i N_i ‖δ_i‖²."""

    def weigh(k: int, total: Tensor) -> dict[int, Tensor]:
        most, gains = total.flatten(1).amax(1), plan.gains(k)
        shapes = {i: (-1, *[1] * len(plan.parent_shape((k, i)))) for i in plan.linked(k)}
        return {i: (most * (gains[i] * sum(gains))).reshape(shape) for i, shape in shapes.items()}

    return weigh


def stored(plan: Plan, weights: Mapping[Edge, Tensor]) -> Weigh:
    """The weights of multipliers, and by norms where a node has none."""
    fallback = by_norms(plan)

    def weigh(k: int, total: Tensor) -> Mapping[int, Tensor]:
        if all((k, i) in weights for i in plan.linked(k)):
            return {i: weights[k, i] for i in plan.linked(k)}
        return fallback(k, total)

    return weigh
