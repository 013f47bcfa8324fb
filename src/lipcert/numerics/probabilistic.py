"""Upper bounds of the largest singular value of a map that is given only as code, true with a stated probability.

:func:`sigma_max_probabilistic` turns a Ritz value, an estimate from below, into an upper bound that holds with
probability >= 1 - delta over the random start of Lanczos, in exact arithmetic.
"""

from __future__ import annotations

import math

import torch

from lipcert.numerics.lanczos import Gram, lanczos_ritz
from lipcert.numerics.rounding import div_up, down, mul_up, sqrt_up, up


def kuczynski_wozniakowski_epsilon(n: int, steps: int, delta: float) -> float:
    """Relative error of Lanczos that is exceeded with probability at most ``delta``.

    The eps with ``1.648 sqrt(n) exp(-sqrt(eps) (2 k - 1)) = delta``, rounded up: for a positive
    semidefinite (n, n) matrix and a start uniform on the sphere, the largest Ritz value of the
    Krylov space of dimension k is at least ``(1 - eps) lambda_max`` with probability >= 1 - delta.

    Source: Kuczyński & Woźniakowski, *Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start*, SIAM J. Matrix Anal. Appl. 13 (1992), Theorem 4.2.

    Args:
        n: order of the matrix, >= 1.
        steps: k, the number of products with the matrix, >= 1.
        delta: probability, in (0, 1).

    Returns:
        eps; 1.0 (nothing is known) where the formula gives 1 or more; 0.0 for n = 1.
    """
    if n < 1 or steps < 1 or not 0.0 < delta < 1.0:
        raise ValueError(f"need n >= 1, steps >= 1, 0 < delta < 1; got {n}, {steps}, {delta}")
    if n == 1:
        return 0.0
    logarithm = math.log(1.648) + 0.5 * math.log(n) - math.log(delta)
    root = logarithm * (1.0 + 1e-14) / (2 * steps - 1)
    return min(1.0, up(root * root * (1.0 + 1e-15)))


def sigma_max_probabilistic(
    gram: Gram,
    n: int,
    delta: float = 1e-9,
    target: float = 1e-2,
    max_steps: int = 1000,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[float, int]:
    """Upper bound of sigma_max(W) from W^T W as code, true with probability >= 1 - delta.

    The number of steps follows from (n, delta, target) alone, not from what is observed, so delta is
    spent once: the least k with ``1/sqrt(1 - eps_k) - 1 <= target``, at most ``max_steps`` and n.

    Why this is an upper bound: ``lambda_max <= ritz / (1 - eps)`` with probability >= 1 - delta
    (:func:`kuczynski_wozniakowski_epsilon`); for k = n the Krylov space of a random start contains
    the leading eigenvector with probability one, so eps = 0. After breakdown the space already
    contains the one of the requested dimension. Rounding is not covered; the value is widened by
    ``n``-independent ``64 eps(dtype)``, far less than eps but for k = n.

    Args:
        gram: (n,) -> (n,), ``x -> W^T W x``, scaled so that it neither over- nor underflows. A map
            that is exactly zero on the start (and on the start times 2**500, 2**1000) has bound 0.
        n: order.
        delta: total probability of error.
        target: relative inflation of the result wanted.
        max_steps: most products with the map.
        generator: source of the start, on ``device``; ``None`` draws it from the operating system's entropy.
        dtype: of the basis and of the map's argument.
        device: of the same.

    Returns:
        (bound, steps); the bound is ``inf`` if ``max_steps`` is too few to say anything.
    """
    steps = min(_steps_for(n, delta, target), max_steps, n)
    ritz = lanczos_ritz(gram, n, steps, generator, dtype=dtype, device=device)
    return _inflated(ritz.value, n, steps, delta, dtype), steps


def certify_sigma_max_probabilistic(
    gram: Gram,
    n: int,
    claim: float,
    delta: float = 1e-9,
    steps: int = 200,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> bool:
    """Check ``sigma_max(W) <= claim`` with its own random start, wrong with probability <= delta.

    ``True`` when the bound of :func:`sigma_max_probabilistic` with this many steps (capped at n) is
    at most ``claim``. The generator must be independent of whoever made the claim and the map.

    Args:
        gram: (n,) -> (n,), ``x -> W^T W x``, scaled as in :func:`sigma_max_probabilistic`.
        n: order.
        claim: the value to check.
        delta: probability of a wrong ``True``.
        steps: number of products with the map.
        generator: source of the start, on ``device``; ``None`` draws it from the operating system's entropy.
        dtype: of the basis and of the map's argument.
        device: of the same.
    """
    steps = min(steps, n)
    ritz = lanczos_ritz(gram, n, steps, generator, dtype=dtype, device=device)
    return _inflated(ritz.value, n, steps, delta, dtype) <= claim


def _steps_for(n: int, delta: float, target: float) -> int:
    """Least k with ``1/sqrt(1 - eps_k) <= 1 + target``."""
    if not target > 0.0:
        raise ValueError(f"target must be positive, got {target!r}")
    if n == 1:
        return 1
    goal = 1.0 - (1.0 + target) ** -2
    logarithm = math.log(1.648 * math.sqrt(n) / delta)
    steps = max(1, math.ceil(0.5 * (logarithm / math.sqrt(goal) + 1.0)))
    while kuczynski_wozniakowski_epsilon(n, steps, delta) > goal:
        steps += 1
    return steps


def _inflated(ritz: float, n: int, steps: int, delta: float, dtype: torch.dtype) -> float:
    """``sqrt(ritz / (1 - eps))``, rounded up."""
    epsilon = 0.0 if steps >= n else kuczynski_wozniakowski_epsilon(n, steps, delta)
    value = mul_up(max(0.0, ritz), 1.0 + 128.0 * torch.finfo(dtype).eps)
    if value == 0.0:
        return 0.0
    return sqrt_up(value if epsilon == 0.0 else div_up(value, max(0.0, down(1.0 - epsilon))))
