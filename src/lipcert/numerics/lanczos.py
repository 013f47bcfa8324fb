"""Lanczos for symmetric maps that are given only as code.

Everything here sees a *Gram map* ``x -> W^T W x`` from (n,) to (n,). Ritz values approach the largest
eigenvalue **from below**: they are estimates. What follows from one with a probability is in
:mod:`lipcert.numerics.probabilistic`.

The map must be scaled by its caller so that ``||W^T W||`` is far from over- and underflow; where it
is not, ``ValueError`` is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
    x = random_unit(n, generator, dtype, device)
    alphas: list[float] = []
    betas: list[float] = []
    scale = 0.0
    for k in range(steps):
        if k == basis.shape[0]:
            basis = _grown(basis, min(steps, max(32, 2 * k)))
        basis[k] = x
        y = apply_gram(gram, x)
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


def random_unit(n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device | str) -> Tensor:
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


def apply_gram(gram: Gram, x: Tensor) -> Tensor:
    """One product; ValueError where it is not finite or of another shape."""
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
