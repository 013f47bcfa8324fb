"""Functions of outputs on balls whose radii move: what multipliers prove at any radius, and up to which one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.search.cost_to_go.dual import Question
from lipcert.search.cost_to_go.inputs import Domains, by_row
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.variables import Variables

#: Values that a root is looked for by, and the factor between the first of them.
VALUES, STRIDE = 4, 1.12
#: What a value is taken to fall by at least.
SMALL = 1e-12


@dataclass(frozen=True, eq=False)
class Ranges:
    """Of P functions: boxes at one radius each, from which those at others are guessed.

    A box is taken to grow in proportion to the radius from the value at the centre: the search needs no more.

    Attributes:
        rows: (P, m).
        low, high: per node that is asked for its range at ``measured``, (P, *shape).
        centre: its value at the centre of the ball, (P, *shape).
        domains: the balls; their radii are not used.
        measured: (P,).
        goal: (P,), what values are to exceed.
    """

    rows: Tensor
    low: Mapping[int, Tensor]
    high: Mapping[int, Tensor]
    centre: Mapping[int, Tensor]
    domains: Domains
    measured: Tensor
    goal: Tensor

    def question(self, plan: Plan, radius: Tensor) -> Question:
        """At other radii, (P,)."""
        share = radius / self.measured
        low, high = (
            {k: torch.lerp(self.centre[k], t, by_row(share, t)) for k, t in ends.items()}
            for ends in (self.low, self.high)
        )
        return Question(plan, self.rows, low, high, replace(self.domains, radius=radius))

    @classmethod
    def together(cls, several: Sequence[Ranges]) -> Ranges:
        """The functions of several, one after another."""
        first = several[0]
        if len(several) == 1:
            return first
        low, high, centre = (
            {k: torch.cat([getattr(one, name)[k] for one in several]) for k in first.low}
            for name in ("low", "high", "centre")
        )
        center, domain_low, domain_high = (
            torch.cat([getattr(one.domains, name) for one in several]) for name in ("center", "low", "high")
        )
        rows, radius, measured, goal = (
            torch.cat(parts)
            for parts in (
                [one.rows for one in several], [one.domains.radius for one in several],
                [one.measured for one in several], [one.goal for one in several],
            )
        )  # fmt: skip
        domains = Domains(center, radius, first.domains.p, domain_low, domain_high)
        return cls(rows, low, high, centre, domains, measured, goal)


@dataclass(eq=False)
class Rows:
    """P functions in the ascent.

    Attributes:
        plan: the network.
        ranges: theirs.
        variables: theirs.
    """

    plan: Plan
    ranges: Ranges
    variables: Variables

    @property
    def radius(self) -> Tensor:
        """Where they are, (P,)."""
        return self.variables.question.domains.radius

    def move(self, radius: Tensor) -> None:
        """To these radii, (P,)."""
        self.variables.question = self.ranges.question(self.plan, radius)

    def above(self, radius: Tensor, power: int = 0) -> Tensor:
        """What values at these radii exceed the goals by, (P,)."""
        moved = replace(self.variables, question=self.ranges.question(self.plan, radius))
        with torch.no_grad():
            return (moved.value(power) - self.ranges.goal).nan_to_num(-torch.inf, -torch.inf, -torch.inf)

    def roots(self, near: Tensor, values: int = VALUES, power: int = 2) -> Tensor:
        """About the radius of each up to which its multipliers prove it, (P,), looked for from these on.

        By strides that grow until the sign changes, then between the two nearest radii of unlike signs.

        Args:
            near: (P,), where to begin.
            values: that are worked out.
            power: steps of the power method before: fewer take weights for smaller than they must be.
        """
        low, high = torch.zeros_like(near), torch.full_like(near, torch.inf)
        at_low, at_high = torch.zeros_like(near), torch.zeros_like(near)
        point, stride = near, STRIDE
        for number in range(values):
            value = self.above(point, power if not number else 0)
            proved = value > 0
            low, at_low = torch.where(proved, point, low), torch.where(proved, value, at_low)
            high, at_high = torch.where(proved, high, point), torch.where(proved, at_high, value)
            outward = torch.where(proved, point * stride, point / stride)
            point = torch.where((low > 0) & high.isfinite(), _crossing(low, at_low, high, at_high), outward)
            stride = stride**1.5
        bracketed = (low > 0) & high.isfinite()
        return torch.where(bracketed, _crossing(low, at_low, high, at_high), torch.where(low > 0, low, point))


def _crossing(low: Tensor, at_low: Tensor, high: Tensor, at_high: Tensor) -> Tensor:
    """Where the line through a positive and a negative value is 0, a little within the two ends."""
    share = (at_low / (at_low - at_high).clamp(min=SMALL)).nan_to_num(0.0).clamp(0.05, 0.95)
    return torch.where(high.isfinite(), low + share * (high.nan_to_num(0.0, 0.0) - low), low)
