"""The largest ‖P diag(σ) Q‖ over all vertices: ascent by flips for a good start, then every vertex."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.certificates.vertex_enumeration import Pair
from lipcert.problem import Problem


def likely_vertex(problem: Problem, generator: torch.Generator, starts: int = 256) -> float:
    """The best vertex that ascent finds; nearly always the maximum, which the check then proves."""
    pair = Pair.of(problem)
    if pair.p.numel() == 0 or pair.q.numel() == 0:
        return 0.0
    return math.ldexp(ascend(pair, generator, starts), pair.exponent)


def best_vertex(problem: Problem, start: float) -> float:
    """The maximum over all vertices of a pair, in floating point, by looking at each; ``start``: a known vertex."""
    pair = Pair.of(problem)
    best = math.ldexp(start, -pair.exponent)
    for batch in pair.grams():
        gram = pair.survivors(batch, best * best)
        if len(gram):
            best = max(best, math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[:, -1].max()))))
    return math.ldexp(best, pair.exponent)


def ascend(pair: Pair, generator: torch.Generator, starts: int) -> float:
    """Alternate leading singular vectors (u, v) and σ_j = the better slope for (p_j·u)(q_j·v); many random starts."""
    n = pair.low.numel()
    on = torch.rand(starts, n, generator=generator, dtype=torch.float64) < 0.5
    on[0] = True
    sigma = torch.where(on, pair.high, pair.low)
    best = torch.zeros(starts, dtype=torch.float64)
    for _ in range(50):
        u, s, v = _leading(pair, sigma)
        if bool((s <= best * (1.0 + 1e-12)).all()):
            break
        best = torch.maximum(best, s)
        weight = (u @ pair.p) * (v @ pair.q.T)
        sigma = torch.where(weight > 0, pair.high, pair.low)
    return float(best.max())


def _leading(pair: Pair, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    matrices = (pair.p * sigma[:, None, :]) @ pair.q
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    return u[:, :, 0], s[:, 0], vh[:, 0]
