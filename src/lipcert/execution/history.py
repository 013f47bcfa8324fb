"""The steps taken so far, inserted into each other from a value back to the input."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.execution.float32 import up
from lipcert.execution.outcome import Outcome, Rows
from lipcert.execution.value import Executed

#: Rows times entries of all steps before a value: beyond this the forward error stands.
MOST_WORK = 2e7
#: Float64 numbers of sensitivities held at a time.
MOST_AT_ONCE = 5e6


class History:
    """Executed values with their outcomes, in the order of execution."""

    def __init__(self) -> None:
        self._made: list[tuple[Executed, Outcome]] = []
        self._entries = 0
        self._same: dict[int, int] = {}
        self._kept: list[Executed] = []

    def add(self, value: Executed, outcome: Outcome) -> None:
        """A further step."""
        self._made.append((value, outcome))
        self._entries += value.error.numel()

    def refined(self, value: Executed, wanted: Tensor | None = None) -> Executed:
        """The value with the smaller of its forward error and of that along its history.

        Args:
            value: of a step taken.
            wanted: truth per entry: the others keep their forward error.
        """
        n = value.error.numel()
        entries = torch.arange(n) if wanted is None else wanted.reshape(-1).nonzero().reshape(-1)
        if not len(entries) or len(entries) * self._entries > MOST_WORK:
            return value
        error = value.error.reshape(-1).clone()
        for part in entries.split(max(1, int(MOST_AT_ONCE // max(1, self._entries)))):
            rows = torch.zeros(len(part), n, dtype=torch.float64)
            rows[torch.arange(len(part)), part] = 1.0
            error[part] = torch.minimum(error[part], self.along(value, rows))
        better = Executed(value.box, error.reshape(value.error.shape))
        self._same[id(better)] = id(value)
        self._kept.append(better)  # an id stays its own while the object lives
        return better

    def along(self, value: Executed, rows: Tensor) -> Tensor:
        """|C(ẑ − z)| of a value for each row of C (rows, entries).

        Why this is an upper bound: ẑ − z = Σ parts (x̂ − x) + ε at every step, so with the sensitivities Λ of C z to
        each value before it, carried back through the parts as a middle and a radius, C(ẑ − z) = Σ Λ_k ε_k, at most
        Σ (|middle| + radius) own_k.
        """
        start = rows.reshape(len(rows), *value.error.shape)
        reached: dict[int, Rows] = {self._same.get(id(value), id(value)): (start, torch.zeros_like(start))}
        total = torch.zeros(len(rows), dtype=torch.float64)
        terms = 0.0
        for made, outcome in reversed(self._made):
            found = reached.pop(id(made), None)
            if found is None:
                continue
            middle, radius = found
            terms += float(made.error.numel())
            total = total + ((middle.abs() + radius) * outcome.own).reshape(len(rows), -1).sum(1)
            for part in outcome.parts:
                back = part.backwards(found)
                place = self._same.get(id(part.operand), id(part.operand))
                before = reached.get(place)
                reached[place] = back if before is None else _added(before, back)
        return up(total, terms)


def _added(a: Rows, b: Rows) -> Rows:
    middle = a[0] + b[0]
    return middle, up(a[1] + b[1] + 2.0**-52 * middle.abs())
