"""Lanczos for symmetric maps that are given only as code.

Everything here sees a *Gram map* ``x -> W^T W x`` from (n,) to (n,). Two kinds of number come out and
must not be mixed up: Ritz values approach the largest eigenvalue **from below**
(estimates); :func:`sigma_max_probabilistic` turns a Ritz value into an upper bound that holds with
probability >= 1 - delta over the random start, in exact arithmetic.

The map must be scaled by its caller so that ``||W^T W||`` is far from over- and underflow; where it
is not, ``ValueError`` is raised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcert.numerics.rounding import div_up, down, mul_up, sqrt_up, up

Gram = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Ritz:
    """Largest Ritz pair of a Krylov space.

    Attributes:
        value: Ritz value, an estimate from below.
        vector: (n,) unit Ritz vector.
        residual: ``||A x - value x||``.
        uncertainty: heuristic size of ``lambda_max - value``, no bound.
        steps: dimension of the space; below the requested one after breakdown or convergence.
    """

    value: float
    vector: Tensor
    residual: float
    uncertainty: float
    steps: int


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


def lambda_max_ritz(
    gram: Gram,
    n: int,
    steps: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[float, Tensor]:
    """Largest Ritz value and vector after ``steps`` Lanczos steps from a uniform random start.

    Full reorthogonalisation, twice. Stops early only on breakdown (an invariant subspace, which
    contains the Krylov space of every dimension). The value is an estimate **from below**.

    Args:
        gram: (n,) -> (n,), symmetric positive semidefinite.
        n: order.
        steps: dimension of the Krylov space, capped at n.
        generator: source of the start, on ``device``; ``None`` draws it from the operating system's entropy.
        dtype: of the basis and of the map's argument.
        device: of the same.

    Returns:
        (value, vector (n,)); value 0.0 for a map that sends the start to zero.

    Raises:
        ValueError: the map returns NaN, infinity or a wrong shape, or its scale is out of range.
    """
    ritz = lanczos_ritz(gram, n, steps, generator, dtype=dtype, device=device)
    return ritz.value, ritz.vector


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


def lanczos_ritz(
    gram: Gram,
    n: int,
    steps: int,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    tol: float = 0.0,
) -> Ritz:
    """Lanczos with full reorthogonalisation (twice) from a uniform random start.

    Args:
        gram: (n,) -> (n,), symmetric positive semidefinite.
        n: order.
        steps: dimension of the Krylov space, capped at n.
        generator: source of the start, on ``device``; ``None`` draws it from the operating system's entropy.
        dtype: of the basis and of the map's argument.
        device: of the same.
        tol: stop once the residual is below ``tol * value``; 0 runs all steps. Must be 0 where a
            probability is to be attached to the number of steps.

    Returns:
        The largest Ritz pair, an estimate from below.
    """
    if n < 1 or steps < 1:
        raise ValueError(f"need n >= 1 and steps >= 1, got {n}, {steps}")
    steps = min(steps, n)
    basis = torch.empty(0, n, dtype=dtype, device=device)
    x = _random_unit(n, generator, dtype, device)
    alphas: list[float] = []
    betas: list[float] = []
    scale = 0.0
    for k in range(steps):
        if k == basis.shape[0]:
            basis = _grown(basis, min(steps, max(32, 2 * k)))
        basis[k] = x
        y = _apply(gram, x)
        if k == 0:
            _require_range(gram, x, y)
        alphas.append(float(x @ y))
        known = basis[: k + 1]
        for _ in range(2):
            y = y - known.mT @ (known @ y)
        beta = float(y.norm())
        betas.append(beta)
        scale = max(scale, abs(alphas[-1]) + beta)
        done = k + 1 == steps or beta <= 8 * torch.finfo(dtype).eps * scale
        if done or (tol > 0.0 and k % 8 == 7):
            ritz = _ritz(alphas, betas, basis)
            if done or ritz.residual <= tol * ritz.value:
                break
        x = y / beta
    if ritz.value < -1e-3 * scale:
        raise ValueError("the map is not positive semidefinite")
    return ritz


def _ritz(alphas: list[float], betas: list[float], basis: Tensor) -> Ritz:
    k = len(alphas)
    off = torch.tensor(betas[:-1], dtype=torch.float64)
    tridiagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    value, coefficients = float(values[-1]), vectors[:, -1]
    residual = abs(betas[-1] * float(coefficients[-1]))
    gap = float(values[-1] - values[-2]) if k > 1 else value
    return Ritz(
        value=value,
        vector=basis[:k].mT @ coefficients.to(basis),
        residual=residual,
        uncertainty=min(residual, residual**2 / gap) if gap > 0.0 else residual,
        steps=k,
    )


def _grown(basis: Tensor, rows: int) -> Tensor:
    larger = basis.new_empty(rows, basis.shape[1])
    larger[: basis.shape[0]] = basis
    return larger


def _random_unit(n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Uniform on the sphere: a normalised Gaussian vector, drawn in float64.

    Without a generator: numpy's PCG64, seeded with 128 bits of the operating system's entropy. (torch's CPU generator
    keeps 32 bits of its seed. A matrix made blind to n of the 2^32 starts that it knows would be taken at its word with
    a probability of n 2^−32, which is no longer below δ for n ≥ 5.) Numbers of the ziggurat method have the exact tails
    of the normal law; what is not covered is their rounding to 53 bits.
    """
    if generator is None:
        x = torch.from_numpy(np.random.default_rng().standard_normal(n)).to(device)
    else:
        x = torch.randn(n, generator=generator, dtype=torch.float64, device=device)
    return (x / x.norm()).to(dtype)


def _apply(gram: Gram, x: Tensor) -> Tensor:
    y = gram(x).detach()
    if y.shape != x.shape:
        raise ValueError(f"the Gram map sends shape {tuple(x.shape)} to {tuple(y.shape)}")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("the Gram map returned NaN or infinity; scale the map to norm about 1")
    return y


def _require_range(gram: Gram, x: Tensor, y: Tensor) -> None:
    """Refuse a Gram map so large or small that its products over- or underflow."""
    info = torch.finfo(x.dtype)
    size = float(y.abs().max())
    if size == 0.0:
        lifts = (2.0**500, 2.0**1000) if x.dtype == torch.float64 else (2.0**60, 2.0**120)
        if any(bool((gram(x * lift) != 0.0).any()) for lift in lifts):
            raise ValueError("the Gram map underflows; scale the map to norm about 1")
    elif size < info.tiny * 2.0**40 / info.eps or size > info.max * info.eps:
        raise ValueError(f"the Gram map has size {size:.1e}; scale the map to norm about 1")


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
