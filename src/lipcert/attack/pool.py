"""The best points a search has seen."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from torch import Tensor

#: Points that are kept, moved from and finally re-evaluated in float64.
FINALISTS = 6


@dataclass(eq=False)
class Pool:
    """The best points seen so far, best first, one per value (as a rule: one per activation pattern)."""

    begin: float
    entries: list[tuple[float, Tensor, Tensor]] = field(default_factory=list)
    history: list[tuple[float, float]] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The largest value so far."""
        return self.entries[0][0] if self.entries else 0.0

    def add(self, x: Tensor, values: Tensor, v: Tensor) -> None:
        """Take in a batch of points with the values and directions of the true Jacobian."""
        before = self.best
        values = values.nan_to_num(-math.inf, -math.inf, -math.inf)  # NaN would sort before all others
        for place in values.argsort(descending=True)[:FINALISTS].tolist():
            value = float(values[place])
            if not math.isfinite(value) or any(abs(value - e[0]) <= 1e-6 * value for e in self.entries):
                continue
            self.entries.append((value, x[place].detach().clone(), v[place].detach().clone()))
        self.entries.sort(key=lambda e: -e[0])
        del self.entries[FINALISTS:]
        if self.best > before:
            self.history.append((time.perf_counter() - self.begin, self.best))
