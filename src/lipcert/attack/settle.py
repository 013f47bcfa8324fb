"""From the search's points to a witness that the trusted end accepts."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from lipcert.attack.jacobian import SearchNetwork
from lipcert.attack.pool import Pool
from lipcert.attack.starts import Region, inside
from lipcert.attack.witness import evaluate, movable
from lipcert.errors import InputError, NumericsError
from lipcert.problem import Problem
from lipcert.result import LowerWitness

#: Tries, with growing steps, to leave a point without a derivative.
_NUDGES = 12
#: A point is left if its proof loses more than this share of what float64 says: it is close to a kink.
_LOSS = 1e-6


def finish(problem: Problem, pool: Pool, deadline: float, seed: int) -> tuple[float, LowerWitness]:
    """The best of the finalists after the trusted evaluation in float64."""
    shape = problem.network.in_shape[1:]
    center = torch.zeros(1, *problem.network.in_shape, dtype=torch.float64)
    center = Region.of(problem.domain, problem.network.in_shape, None, center).origin[0, 0]
    best = (0.0, LowerWitness(inside(problem.domain, center), torch.zeros(shape, dtype=torch.float64)))
    precise = SearchNetwork.of(problem, torch.float64, "cpu")
    generator = torch.Generator().manual_seed(seed)
    for value, point, direction in pool.entries:
        if best[0] >= value * (1 - 1e-9) or (best[0] > 0 and time.perf_counter() > deadline):
            break
        found = settle(problem, precise, point.double().cpu(), direction.double().cpu(), generator, deadline)
        if found is not None and found[0] > best[0]:
            best = found
    return best


def settle(
    problem: Problem,
    precise: SearchNetwork,
    point: Tensor,
    direction: Tensor,
    generator: torch.Generator,
    deadline: float = math.inf,
) -> tuple[float, LowerWitness] | None:
    """A witness at ``point``, or next to it where the derivative there is ambiguous; None if none is found.

    The direction is polished in float64 at the point; refused points are moved at random, a little further
    each time.
    """
    shape = problem.network.in_shape[1:]
    reach = float(point.abs().max()) or 1.0
    found: tuple[float, LowerWitness] | None = None
    for attempt in range(_NUDGES):
        noise = torch.randn(point.shape, generator=generator, dtype=torch.float64)
        moved = point if attempt == 0 else point + reach * 10.0 ** (attempt / 2 - 8) * noise
        moved = inside(problem.domain, moved.reshape(problem.network.in_shape))
        values, best = precise.gains(moved[None], direction.reshape(1, *problem.network.in_shape), iterations=2)
        kept = best[0] * movable(problem.domain, problem.network.in_shape)
        for v in (kept, direction):
            witness = LowerWitness(moved.reshape(shape).clone(), v.reshape(shape).clone())
            try:
                proved = evaluate(problem, witness)
            except (NumericsError, InputError):
                continue
            if found is None or proved > found[0]:
                found = proved, witness
            if proved >= float(values[0]) * (1.0 - _LOSS):
                return found
        if attempt and time.perf_counter() > deadline:
            break
    return found
