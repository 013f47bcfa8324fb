"""The variables of the ascent, per function: steps from the start in its units, and Adam's state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.multipliers import Edge, Multipliers
from lipcert.search.cost_to_go.dual import Question, Weigh, by_norms
from lipcert.search.cost_to_go.settings import Settings
from lipcert.search.cost_to_go.start import Start
from lipcert.search.cost_to_go.weights import Directions, largest, random_directions, scaled_weights

#: Kind and place of a variable: ("slope", k), ("anchor", (k, i)), ("scale", k), ("curve", k), ("weight", (k, i)).
Name = tuple[str, Any]
#: Of variables that are many and of which most hardly matter, the share of the root mean square of a tensor's gradient
#: that is added to Adam's own size: if all moved alike, weights would have to follow those that do not matter.
LEVEL = 0.3
#: Steps of the power method at its start, and of Lanczos before a proof.
SETTLE, LANCZOS = 10, 40


@dataclass(eq=False)
class Variables:
    """Of P functions; every tensor has P rows.

    Attributes:
        question: what is asked.
        settings: of the search.
        start: where it began.
        free: the variables.
        diagonal: affine nodes whose weights are diagonal; the others' are by norms.
        directions: of the power method at these.
    """

    question: Question
    settings: Settings
    start: Start
    free: dict[Name, Tensor] = field(default_factory=dict)
    diagonal: tuple[int, ...] = ()
    directions: Directions = field(default_factory=dict)
    first: dict[Name, Tensor] = field(default_factory=dict)
    second: dict[Name, Tensor] = field(default_factory=dict)
    age: dict[Name, int] = field(default_factory=dict)

    @classmethod
    def of(cls, question: Question, settings: Settings, start: Start) -> Variables:
        """At the start, with one curvature per activation; diagonal where the input's coordinates have their ranges."""
        self = cls(question, settings, start)
        for k, slope in start.slope.items():
            self.free["slope", k] = torch.zeros_like(slope)
            self.free["scale", k] = start.curvature[k].clone()
        for edge, anchor in start.anchor.items():
            self.free["anchor", edge] = torch.zeros_like(anchor)
        plan, boxed = question.plan, question.domains.boxed
        small = (k for k in plan.bent if plan.smaller_side(k) <= settings.small or (boxed and plan.reads_input(k)))
        self.release(tuple(small))
        return self

    def release(self, nodes: tuple[int, ...]) -> None:
        """Make affine nodes diagonal, and the curvatures of the activations that read them."""
        plan = self.question.plan
        nodes = tuple(k for k in nodes if k not in self.diagonal and plan.linked(k))
        like = self.question.rows
        generator = torch.Generator().manual_seed(self.settings.seed)
        for k in nodes:
            gains = plan.gains(k)
            for i in plan.linked(k):
                one = plan.network.nodes[plan.network.nodes[k].parents[i]]
                single = not plan.network.nodes[k].parents[i] and not self.question.domains.boxed
                shape = [1] * len(one.shape) if single else one.shape
                size = gains[i] * sum(gains)
                self.free["weight", (k, i)] = torch.full((len(like), *shape), size, dtype=like.dtype).log().to(like)
            self.directions.update(random_directions(plan, k, len(like), like, generator))
        self.diagonal += nodes
        for k in self.start.slope:
            if plan.network.nodes[k].parents[0] in self.diagonal or plan.network.nodes[k].parents[0] not in plan.maps:
                self.free.setdefault(("curve", k), torch.zeros_like(self.start.slope[k]))
        with torch.no_grad():
            self.value(SETTLE)

    def multipliers(self) -> Multipliers:
        """In the dtype of the search, without weights."""
        start, free = self.start, self.free
        slope = {k: s + start.slope_unit[k] * free["slope", k] for k, s in start.slope.items()}
        anchor = {e: a + start.anchor_unit[e] * free["anchor", e] for e, a in start.anchor.items()}
        curvature = {}
        for k in slope:
            curve = free.get(("curve", k))
            curvature[k] = (free["scale", k] if curve is None else free["scale", k] + curve).exp()
        return Multipliers(slope, curvature, anchor)

    def weigh(self, power: int) -> Weigh:
        """Weights from the curvatures."""
        fallback = by_norms(self.question.plan)

        def weigh(k: int, total: Tensor) -> dict[int, Tensor]:
            if k not in self.diagonal:
                return dict(fallback(k, total))
            logs = {i: self.free["weight", (k, i)] for i in self.question.plan.linked(k)}
            return scaled_weights(self.question.plan, k, total, logs, self.directions, power)

        return weigh

    def value(self, power: int) -> Tensor:
        """The bounds, (P,)."""
        return self.question.value(self.multipliers(), self.weigh(power), 25)

    def ascend(self, rate: float) -> Tensor:
        """One step of Adam; the bounds before it."""
        names = list(self.free)
        for t in self.free.values():
            t.requires_grad_(True)
        value = self.value(self.settings.power)
        if not value.requires_grad:  # nothing to vary reaches the output
            return value
        gradients = torch.autograd.grad(value.sum(), [self.free[n] for n in names], allow_unused=True)
        fast, slow = self.settings.betas
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                variable = self.free[name].detach()
                self.free[name] = variable
                if gradient is None:
                    continue
                gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
                if name not in self.first:
                    self.first[name], self.second[name] = torch.zeros_like(variable), torch.zeros_like(variable)
                age = self.age[name] = self.age.get(name, 0) + 1
                first = self.first[name].mul_(fast).add_(gradient, alpha=1 - fast)
                second = self.second[name].mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
                size = second.sqrt().div_((1 - slow**age) ** 0.5).add_(1e-12)
                if self._gentle(name):
                    level = second.flatten(1).mean(1).sqrt() / (1 - slow**age) ** 0.5
                    size += LEVEL * level.reshape(-1, *[1] * (size.dim() - 1))
                variable.addcdiv_(first, size, value=rate / (1 - fast**age))
        return value.detach()

    def _gentle(self, name: Name) -> bool:
        """Whether a variable is one of many of which most hardly matter; all coordinates of a box do."""
        kind, place = name
        if kind != "weight" or not self.question.domains.boxed:
            return kind in ("curve", "weight")
        return self.question.plan.network.nodes[place[0]].parents[place[1]] != 0

    def provable(self, rows: Tensor, room: Tensor) -> tuple[Multipliers, Tensor]:
        """Of some functions, in float64 on the CPU: multipliers with weights that a check can prove, and their value.

        Args:
            rows: which.
            room: relative, per function, in which weights exceed what is necessary.
        """
        some = self.at(rows)
        plan, weights = some.question.plan, {}
        inner = some.weigh(some.settings.power)

        def weigh(k: int, total: Tensor) -> dict[int, Tensor]:
            found = dict(inner(k, total))
            if k not in some.diagonal:
                return found
            size = largest(plan, k, total, found, some.directions, LANCZOS)
            for i, t in found.items():
                found[i] = t * (size * (1.0 + room)).reshape(-1, *[1] * (t.dim() - 1))
                weights[k, i] = found[i].expand(-1, *plan.parent_shape((k, i)))
            return found

        with torch.no_grad():
            result = some.multipliers()
            value = some.question.value(result, weigh)
        whole = Multipliers(result.slope, result.curvature, result.anchor, weights)
        return whole.map(lambda t: t.detach().to("cpu", torch.float64)), value.double().cpu()

    def at(self, rows: Tensor) -> Variables:
        """Those of some functions."""

        def of(tensors: dict) -> dict:
            return {k: t.detach()[rows] for k, t in tensors.items()}

        start = Start(*(of(group) for group in vars(self.start).values()))
        return Variables(
            self.question.at(rows), self.settings, start, of(self.free), self.diagonal, of(self.directions),
            of(self.first), of(self.second), dict(self.age),
        )  # fmt: skip
