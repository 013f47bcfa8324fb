"""The variables of the ascent, per function: steps from the start in its units, and Adam's state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.multipliers import Edge, Multipliers
from lipcert.search.cost_to_go.dual import SURE, Question, Weigh, by_norms
from lipcert.search.cost_to_go.inputs import by_row
from lipcert.search.cost_to_go.settings import Settings
from lipcert.search.cost_to_go.start import Start
from lipcert.search.cost_to_go.weights import Directions, excess, random_directions, scaled_weights

Key = TypeVar("Key")
#: Kind and place of a variable: ("slope", k), ("anchor", (k, i)), ("scale", k), ("curve", k), ("weight", (k, i)).
Name = tuple[str, Any]
#: Steps of the power method when its nodes are new, and of Lanczos before a proof.
SETTLE, LANCZOS = 10, 80
#: Halvings at the input in a step.
HALVINGS = 25
#: Kinds of which there are many variables that hardly matter: the share of the root mean square of a tensor's gradient
#: that is added to Adam's own size. If all moved alike, weights would have to follow those that do not matter.
GENTLE = ("curve", "weight")
LEVEL = 0.3
#: Adam: what a size is at least.
SMALL = 1e-12
#: Of what a mean of the way was before a step, the share that stays. Norms and minima have kinks, at which the ascent
#: goes to and fro; the mean does not.
STAYS = 0.9


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
        first, second, age: Adam's means of gradients and of their squares, and how many steps they are of.
        mean: of the variables over the last steps.
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
    mean: dict[Name, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, question: Question, settings: Settings, start: Start) -> Variables:
        """At the start; diagonal where that is cheap to prove, at an input of coordinates with ends, without a norm."""
        self, plan = cls(question, settings, start), question.plan
        for k, slope in start.slope.items():
            self.free["slope", k] = torch.zeros_like(slope)
            if k in start.curvature:
                self.free["scale", k] = start.curvature[k].clone()
        for edge, anchor in start.anchor.items():
            self.free["anchor", edge] = torch.zeros_like(anchor)
        self.release(
            tuple(
                k for k in plan.bent
                if plan.smaller_side(k) <= settings.small
                or (question.domains.p == math.inf and plan.reads_input(k))
                or not math.isfinite(sum(plan.gains(k)))
            )
        )  # fmt: skip
        return self

    def release(self, nodes: tuple[int, ...], most: int | None = None) -> None:
        """Make affine nodes diagonal that are not too large, and the curvatures of the activations that read them."""
        plan, like = self.question.plan, self.question.rows
        generator = torch.Generator().manual_seed(self.settings.seed)
        most = self.settings.most if most is None else most
        fit = (k for k in nodes if plan.smaller_side(k) <= most or not math.isfinite(sum(plan.gains(k))))
        new = tuple(k for k in fit if k not in self.diagonal and plan.linked(k))
        for k in new:
            for i in plan.linked(k):
                self.free["weight", (k, i)] = self._first_weight((k, i))
            self.directions.update(random_directions(plan, k, len(like), like, generator))
        self.diagonal += new
        for k, slope in ((k, self.start.slope[k]) for k in self.start.curvature):
            bending = plan.bending(k)
            if bending in self.diagonal or bending not in plan.maps:
                self.free.setdefault(("curve", k), torch.zeros_like(slope))
        if new:
            with torch.no_grad():
                self.value(SETTLE)

    def _first_weight(self, edge: Edge) -> Tensor:
        """As by norms; one number where all coordinates of a ball are alike."""
        plan, (k, i) = self.question.plan, edge
        gains, shape = plan.gains(k), plan.parent_shape(edge)
        alike = plan.network.nodes[k].parents[i] == 0 and self.question.domains.alike
        size = gains[i] * sum(gains)
        log = math.log(size) if 0.0 < size < math.inf else 0.0
        like = self.question.rows
        return torch.full((len(like), *([1] * len(shape) if alike else shape)), log, dtype=like.dtype).to(like)

    def multipliers(self) -> Multipliers:
        """In the dtype of the search, without weights."""
        start, free = self.start, self.free
        slope = {k: s + start.slope_unit[k] * free["slope", k] for k, s in start.slope.items()}
        anchor = {e: a + start.anchor_unit[e] * free["anchor", e] for e, a in start.anchor.items()}
        curvature = {}
        for k in start.curvature:
            curve = free.get(("curve", k))
            curvature[k] = (free["scale", k] if curve is None else free["scale", k] + curve).exp()
        return Multipliers(slope, curvature, anchor)

    def weigh(self, power: int) -> Weigh:
        """Weights from the curvatures."""
        plan, others = self.question.plan, by_norms(self.question.plan)

        def weigh(k: int, total: Tensor) -> Mapping[int, Tensor]:
            if k not in self.diagonal:
                return others(k, total)
            logs = {i: self.free["weight", (k, i)] for i in plan.linked(k)}
            return scaled_weights(plan, k, total, logs, self.directions, power)

        return weigh

    def value(self, power: int, step: float = 0.0) -> Tensor:
        """The bounds, (P,); with the gradient of a step of that size."""
        return self.question.value(self.multipliers(), self.weigh(power), HALVINGS, step=step)

    def ascend(self, rate: float, power: int | None = None) -> Tensor:
        """One step of Adam, after some steps of the power method; the bounds before it."""
        names = list(self.free)
        leaves = [self.free[name].detach().requires_grad_(True) for name in names]
        self.free.update(zip(names, leaves, strict=True))
        value = self.value(self.settings.power if power is None else power, self.settings.step_at(rate))
        reached = names if value.requires_grad else []  # else nothing to vary reaches the output
        gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True) if reached else (None,) * len(names)
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                variable = self.free[name] = self.free[name].detach()
                if gradient is not None:
                    variable += rate * self._move(name, gradient.nan_to_num(0.0, 0.0, 0.0))
                    if name in self.mean:
                        self.mean[name].lerp_(variable, 1.0 - STAYS)
                    else:
                        self.mean[name] = variable.clone()
        return value.detach()

    def steadied(self) -> tuple[Variables, Tensor]:
        """Of each function the mean of the way where it is worth more than where this stands; and the bounds there."""
        power = self.settings.power
        with torch.no_grad():
            value = self.value(power).nan_to_num(-torch.inf)
            mean = replace(self, free={**self.free, **self.mean}, directions=dict(self.directions))
            other = mean.value(power)
            higher = other > value

            def of(means: dict[Key, Tensor], now: dict[Key, Tensor]) -> dict[Key, Tensor]:
                return {k: torch.where(by_row(higher, t), means[k], t) for k, t in now.items()}

            steady = replace(self, free=of(mean.free, self.free), directions=of(mean.directions, self.directions))
        return steady, torch.where(higher, other, value)

    def _move(self, name: Name, gradient: Tensor) -> Tensor:
        """Adam's step of length about 1 for a variable."""
        fast, slow = self.settings.betas
        if name not in self.first:
            self.first[name], self.second[name] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        age = self.age[name] = self.age.get(name, 0) + 1
        first = self.first[name].mul_(fast).add_(gradient, alpha=1 - fast)
        second = self.second[name].mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        size = second.sqrt()
        if name[0] in GENTLE and self.question.domains.p != math.inf:  # of a box every coordinate matters
            size += by_row(LEVEL * second.flatten(1).mean(1).sqrt(), size)
        return first / (1 - fast**age) / (size / math.sqrt(1 - slow**age) + SMALL)

    def provable(self, room: Tensor) -> tuple[Multipliers, Tensor]:
        """Multipliers with weights that a check can prove, and their value: float64 on the CPU.

        Args:
            room: (P,), relative, in which weights exceed what is necessary.
        """
        plan, weights = self.question.plan, {}
        found = self.weigh(self.settings.power)

        def weigh(k: int, total: Tensor) -> Mapping[int, Tensor]:
            if k not in self.diagonal:
                return found(k, total)
            near = found(k, total)
            size = excess(plan, k, total, near, self.directions, LANCZOS) * (1.0 + room)
            sure = {i: t * by_row(size, t) for i, t in near.items()}
            weights.update({(k, i): t.expand(-1, *plan.parent_shape((k, i))) for i, t in sure.items()})
            return sure

        with torch.no_grad():
            own = self.multipliers()
            value = self.question.value(own, weigh, sweeps=SURE)
        whole = Multipliers(own.slope, own.curvature, own.anchor, weights)
        return whole.map(lambda t: t.detach().to("cpu", torch.float64).nan_to_num(0.0, 0.0, 0.0)), value.double().cpu()

    def at(self, rows: Tensor) -> Variables:
        """Those of some functions."""

        def of(tensors: dict[Key, Tensor]) -> dict[Key, Tensor]:
            return {k: t.detach()[rows] for k, t in tensors.items()}

        start = Start(*(of(group) for group in vars(self.start).values()))
        return Variables(
            self.question.at(rows), self.settings, start, of(self.free), self.diagonal, of(self.directions),
            of(self.first), of(self.second), dict(self.age), of(self.mean),
        )  # fmt: skip
