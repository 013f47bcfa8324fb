"""What a search of the quadratic cost-to-go can be told."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: By how much of the whole the steps are to be behind the time until rates follow this; else nothing depends on it.
BEHIND = 0.1


def progress(part: float, gone: float) -> float:
    """Which part of a search is over: of its steps, or of its time where the steps are far behind."""
    return part if gone < part + BEHIND else gone


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long to search, and how.

    Attributes:
        steps: of the ascent, at most.
        warm: of them with diagonal weights only where these are cheap to prove; elsewhere with one curvature per
            activation and the norms of maps.
        small: the least side of a matrix up to which they are.
        large, late: the least side of a matrix beyond which that is so for ``late`` steps; its proofs take seconds.
        most: the least side beyond which it stays so: they would take minutes.
        rate: of Adam, in the units of the start.
        last: of the rate, the share that is left at the end of the steps or of the time.
        betas: of Adam.
        smooth, blunt: over how many steps gradients of minima are smoothed; the share of slopes that is most.
        scales: factors of the curvatures of the start; of these the best for each function.
        power: steps of the power method per step, at the end; fewer before.
        every: steps between attempts to prove.
        goal: what values are to exceed: such functions are proved and leave; None: as high as the steps go.
        room: relative, in which weights exceed what was found necessary.
        dtype, device: of the search.
        chunk: most entries of the values of the nodes, over functions, at a time.
        seed: of the start of the power method.
    """

    steps: int = 500
    warm: int = 50
    small: int = 512
    large: int = 2_000
    late: int = 150
    most: int = 3_200
    rate: float = 0.16
    last: float = 0.015
    betas: tuple[float, float] = (0.8, 0.95)
    smooth: float = 1.5
    blunt: float = 0.08
    scales: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1, 0.04, 0.015, 0.005, 0.002)
    power: int = 3
    every: int = 25
    goal: float | None = 0.0
    room: float = 1e-4
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    chunk: int = 1 << 22
    seed: int = 0

    def rate_at(self, part: float) -> float:
        """After a part of the search, 0 to 1."""
        return float(self.rate * self.last**part)

    def step_at(self, rate: float) -> float:
        """Share of slopes over which gradients are smoothed in a step of that rate."""
        return min(self.smooth * rate, self.blunt)

    def power_at(self, part: float) -> int:
        """After a part of the search, 0 to 1."""
        return min(self.power, 1 + int(self.power * part))
