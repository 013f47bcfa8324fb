"""The steps taken so far, inserted into each other from a value back to the input."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lipcert.execution.float32 import up
from lipcert.execution.outcome import Outcome, Rows
from lipcert.execution.value import Executed
from lipcert.numerics.midrad import lengths

#: Rows times entries of all steps before a value: beyond this the forward error stands.
MOST_WORK = 2e7
#: Float64 numbers of sensitivities held at a time.
MOST_AT_ONCE = 5e6
#: Values at most of a cut that is looked at.
MOST_CUT = 4


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
        better = Executed(value.box, error.reshape(value.error.shape), known_length=value.length)
        self._same[id(better)] = id(value)
        self._kept.append(better)  # an id stays its own while the object lives
        return better

    def along(self, value: Executed, rows: Tensor) -> Tensor:
        """|C(ẑ − z)| of a value for each row of C (rows, entries).

        Why this is an upper bound: ẑ − z = Σ parts (x̂ − x) + ε at every step, so with the sensitivities Λ of C z to
        each value before it, carried back through the parts as a middle and a radius, C(ẑ − z) = Σ Λ_k ε_k, at most
        Σ (|middle| + radius) own_k. Going back may end anywhere: what is left is Σ Λ_v (v̂ − v) over the values that
        are read by a step taken back and are not taken back themselves, by their errors. The least of all is returned.
        """
        start = rows.reshape(len(rows), *value.error.shape)
        origin = self._same.get(id(value), id(value))
        reached: dict[int, Rows] = {origin: (start, torch.zeros_like(start))}
        better = {origin: value}
        total = torch.zeros(len(rows), dtype=torch.float64)
        best = torch.full_like(total, math.inf)
        terms = 0.0
        for made, outcome in reversed(self._made):
            found = reached.get(id(made))
            if found is None:
                continue
            if len(reached) <= MOST_CUT:
                best = torch.minimum(best, up(total + _cut(reached, better), terms))
            del reached[id(made)]
            middle, radius = found
            terms += float(made.error.numel())
            total = total + ((middle.abs() + radius) * outcome.own).reshape(len(rows), -1).sum(1)
            for part in outcome.parts:
                back = part.backwards(found)
                place = self._same.get(id(part.operand), id(part.operand))
                better[place] = _better(better.get(place), part.operand)
                before = reached.get(place)
                reached[place] = back if before is None else _added(before, back)
        return torch.minimum(best, up(total, terms))


def _cut(reached: Mapping[int, Rows], values: Mapping[int, Executed]) -> Tensor:
    """Σ |Λ| |ẑ − z| over the values reached, by their errors entry by entry or by the lengths of these."""
    total: Tensor | None = None
    for place, (middle, radius) in reached.items():
        size = (middle.abs() + radius).reshape(len(middle), -1)
        value, n = values[place], float(size.shape[1])
        entries = up(size @ value.error.reshape(-1), n)
        term = torch.minimum(entries, up(lengths(size, 2.0) * value.length))
        total = term if total is None else total + term
    assert total is not None
    return up(total, float(len(reached)))


def _better(known: Executed | None, other: Executed) -> Executed:
    return other if known is None or other.length < known.length else known


def _added(a: Rows, b: Rows) -> Rows:
    middle = a[0] + b[0]
    return middle, up(a[1] + b[1] + 2.0**-52 * middle.abs())
