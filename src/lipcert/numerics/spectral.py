"""Certified upper bounds of matrix norms of stored matrices.

The largest singular value is proposed by an eigenvalue estimate and *proved* by a verified Cholesky
factorisation (:mod:`lipcert.numerics.psd`); whatever the estimate is, the result is a bound. The
1- and infinity-norms are sums, rounded upward.

All functions take 2-D real floating tensors; float16, bfloat16 and float32 convert to float64
exactly. NaN, infinity, and other dtypes raise ``ValueError``. An optional ``error`` is a radius:
the bound then holds for every W with ``||W - w||_2 <= error``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lipcert.numerics import psd
from lipcert.numerics.lanczos import lanczos_ritz
from lipcert.numerics.rounding import (
    UNDERFLOW,
    add_up,
    down,
    gamma,
    ldexp_down,
    ldexp_up,
    mul_up,
    norm_up,
    sqrt_up,
)

DENSE_EIGENVALUES = 400
STEPS = 500  # of Lanczos, at most
_EXACT_SUM_ENTRIES = 300_000
_NORMAL = 1_000  # exponents of normal numbers
_EXACT_NORM_ENTRIES = 1_000_000
SLACK = 1.0 + 1e-12
"""Widening of what is returned, so that a re-check whose BLAS rounds differently passes too."""


def sigma_max_upper(w: Tensor, error: float = 0.0) -> float:
    """Certified upper bound of the largest singular value of a stored matrix.

    The least of ``sqrt(||W||_1 ||W||_inf)``, ``||W||_F`` (both rounded up) and the value proved by
    :func:`certify_sigma_max`'s test; the proposal starts at the estimate plus what the proof costs
    and widens geometrically until proved. Relative overestimate: 1e-12 for
    small ones, below 1e-10 at 2000 x 2000.

    Args:
        w: (m, n).
        error: spectral-norm radius >= 0 around w; the result includes it.

    Returns:
        Bound; ``error`` itself for a zero or empty matrix; ``inf`` if it overflows.

    Raises:
        ValueError: NaN or infinity in w, not a real floating matrix, error negative or NaN.

    Why this is an upper bound: each of the three is (certify_sigma_max for the third), and
    ``||W|| <= ||w|| + error``, rounded up.
    """
    matrix, error = as_matrix(w), as_radius(error)
    if matrix.numel() == 0 or not bool(matrix.any()):
        return error
    scaled, exponent = to_unit(matrix)
    loss = scaling_loss(matrix, scaled)
    value = ldexp_up(_scaled_sigma_upper(scaled), exponent)
    if error == 0.0 and loss == 0.0:
        return value
    return mul_up(add_up(value, error, ldexp_up(loss, exponent)), 1.0 + 2e-15)


def certify_sigma_max(w: Tensor, error: float, claim: float) -> bool:
    """Prove ``sigma_max(W) <= claim`` for every W with ``||W - w||_2 <= error``.

    Why ``True`` is a proof: with ``s <= claim - error`` (rounded down) and G the computed Gram matrix
    of the smaller side of w, every matrix within :func:`gram_radius` of ``M <= s^2 I - G`` is proved
    positive definite, the exact ``s^2 I - w^T w`` (or its other side) included or exceeded by M;
    so ``sigma_max(w) < s``. w is first multiplied by a power of two; what this loses to underflow is
    added to the error. Alternatively ``s`` reaches one of two elementary bounds of ``||w||_2``.

    Source: Rump, *Verification of positive definiteness*, BIT 46 (2006), with a measured residual.

    Args:
        w: (m, n).
        error: spectral-norm radius >= 0.
        claim: the value to prove. A negative or NaN claim is never proved.

    Raises:
        ValueError: as :func:`sigma_max_upper`.
    """
    matrix, error = as_matrix(w), as_radius(error)
    if not claim >= error:
        return False
    if math.isinf(claim) or matrix.numel() == 0 or not bool(matrix.any()):
        return True
    scaled, exponent = to_unit(matrix)
    spent = add_up(ldexp_up(error, -exponent), scaling_loss(matrix, scaled))
    goal = ldexp_down(claim, -exponent)
    if spent > 0.0:
        goal = down(goal - spent)
    if goal <= 0.0:
        return False
    if elementary_upper(scaled) <= goal:
        return True
    x = short_side(scaled)
    return x.shape[0] > 1 and _proves(gram_of(x), gram_radius(x), goal)


def gram_radius(x: Tensor) -> float:
    """Bound of ``||fl(X X^T) - X X^T||_2`` for the Gram matrix as computed here.

    ``gamma_k max_i (|X| (|X|^T 1))_i`` plus underflow, k from :func:`lipcert.numerics.psd.product_terms`.

    Why this is an upper bound: entrywise ``|fl(X X^T) - X X^T| <= gamma_k |X||X|^T``, a symmetric
    nonnegative matrix, whose spectral norm is at most its largest row sum, computed with rounding
    covered by one more gamma.

    Args:
        x: (n, m) float64, entries of magnitude <= 1.
    """
    n, m = x.shape
    columns = torch.linalg.vector_norm(x, 1, dim=0)
    row_sum = max(float((rows.abs() @ columns).max()) for rows in x.split(psd._CHUNK))
    sum_up = add_up(mul_up(row_sum, add_up(1.0, gamma(n + m + 4))), 8.0 * (n + m) * UNDERFLOW)
    return add_up(mul_up(gamma(psd.product_terms(m)), sum_up), mul_up(8.0 * n * (m + 1), UNDERFLOW))


def norm_1_upper(w: Tensor) -> float:
    """Certified upper bound of the operator norm 1 -> 1: the largest absolute column sum, (m, n).

    The largest sums are recomputed by ``math.fsum`` and rounded up once.

    Why this is an upper bound: a column not recomputed has, even with its rounding error
    ``gamma_m`` added, a smaller sum than one that was.

    Raises:
        ValueError: NaN or infinity in w, or not a real floating matrix.
    """
    return _column_sum_up(as_matrix(w))


def norm_inf_upper(w: Tensor) -> float:
    """Certified upper bound of the operator norm inf -> inf: the largest absolute row sum.

    See :func:`norm_1_upper`, of which it is the transpose.
    """
    return _column_sum_up(as_matrix(w).mT)


def as_matrix(w: Tensor) -> Tensor:
    """``w`` in float64 on the CPU.

    Raises:
        ValueError: NaN or infinity, or not a real floating matrix.
    """
    if w.ndim != 2 or not w.is_floating_point():
        raise ValueError(f"expected a real floating matrix, got {w.dtype} of shape {tuple(w.shape)}")
    matrix = w.detach().to(device="cpu", dtype=torch.float64)
    if not psd.all_finite(matrix):
        raise ValueError("the matrix has NaN or infinite entries")
    return matrix


def as_radius(error: float) -> float:
    """``error`` as a float; ValueError where it is negative or NaN."""
    error = float(error)
    if not error >= 0.0:
        raise ValueError(f"error must be >= 0, got {error!r}")
    return error


def to_unit(matrix: Tensor) -> tuple[Tensor, int]:
    """``(matrix * 2**-e, e)`` with largest magnitude in [1/2, 1)."""
    if not psd._has_subnormals():
        raise ValueError("subnormal numbers are flushed here; call torch.set_flush_denormal(False)")
    low, high = torch.aminmax(matrix)
    exponent = math.frexp(max(float(high), -float(low)))[1]
    array = matrix.numpy()
    with np.errstate(under="ignore"):  # a product with 2^-e rounds once, as ldexp does, and takes a fifth of the time
        scaled = array * 2.0**-exponent if abs(exponent) < _NORMAL else np.ldexp(array, -exponent)
    return torch.from_numpy(scaled), exponent


def scaling_loss(matrix: Tensor, scaled: Tensor) -> float:
    """Bound of ``||scaled - exact||_2``: zero unless a nonzero entry came near underflow."""
    pairs = zip(matrix.split(psd._CHUNK), scaled.split(psd._CHUNK), strict=True)
    if all(float(torch.where(a == 0.0, 1.0, b.abs()).min()) >= 2.0 * UNDERFLOW for a, b in pairs):
        return 0.0
    return mul_up(sqrt_up(float(scaled.numel())), UNDERFLOW)


def short_side(scaled: Tensor) -> Tensor:
    """X, (n, m) with n <= m, with the singular values of ``scaled``; the Gram matrix of a convolution is a band."""
    x = scaled if scaled.shape[0] <= scaled.shape[1] else scaled.mT
    x = x[psd.by_first_entry(x)]
    return x[:, psd.by_first_entry(x.mT)]


def elementary_upper(scaled: Tensor, slack: float = 1.0) -> float:
    """``min(sqrt(||.||_1 ||.||_inf), slack ||.||_F)``, rounded up (Golub & Van Loan, §2.3)."""
    product = mul_up(_column_sum_up(scaled), _column_sum_up(scaled.mT))
    if min(scaled.shape) == 1 and scaled.numel() <= _EXACT_NORM_ENTRIES:
        return min(norm_up(scaled.abs().flatten().tolist()), sqrt_up(product))
    return min(mul_up(slack, sqrt_up(psd.square_sum_up(scaled))), sqrt_up(product))


def _scaled_sigma_upper(scaled: Tensor) -> float:
    ceiling = elementary_upper(scaled, SLACK)
    x = short_side(scaled)
    n = x.shape[0]
    if n == 1:
        return ceiling
    gram = gram_of(x)
    radius = gram_radius(x)
    proposal, estimate, extra = proposed(gram, radius)
    while True:
        if not proposal < ceiling:
            return ceiling
        if _proves(gram, radius, proposal):
            return min(ceiling, mul_up(proposal, SLACK))
        extra = 4.0 * extra + 1e-13 * ceiling * ceiling
        proposal = sqrt_up(max(0.0, estimate) + extra)


def proposed(gram: Tensor, radius: float) -> tuple[float, float, float]:
    """A value that is probably provable; the estimate of the largest eigenvalue behind it; what it adds to that."""
    n = gram.shape[0]
    estimate = estimate_lambda_max(gram)
    extra = provable(n, estimate, float(gram.diagonal().sum()), radius)
    return sqrt_up(max(0.0, estimate) + extra), estimate, extra


def provable(n: int, estimate: float, trace: float, radius: float) -> float:
    """What a proof needs above the largest eigenvalue of an (n, n) Gram matrix of at least this trace."""
    cost = psd.proof_cost(n, max(0.0, n * estimate - trace) + estimate)
    return 1.1 * (radius + cost) + 1e-13 * estimate


def gram_of(x: Tensor) -> Tensor:
    """Symmetric float matrix within :func:`gram_radius` of ``X X^T``; x is (n, m), n <= m."""
    n, m = x.shape
    gram = x.new_empty(n, n)
    for start in range(0, n, psd._CHUNK):
        stop = min(start + psd._CHUNK, n)
        rows = psd.product_rows(x, start, stop, m)
        corner = rows[:, start:]
        corner.copy_(corner.tril() + corner.tril(-1).mT)
        gram[start:stop, :stop] = rows
        gram[:start, start:stop] = rows[:, :start].mT
    return gram


def _proves(gram: Tensor, radius: float, goal: float) -> bool:
    """Prove that ``goal^2 I - G'`` is positive definite for all G' within ``radius`` of ``gram``."""
    shifted = -gram
    diagonal = shifted.diagonal()
    square = max(0.0, down(goal * goal))
    diagonal.copy_(torch.nextafter(square + diagonal, torch.full_like(diagonal, -math.inf)))
    return psd.is_positive_definite(shifted, radius)


def estimate_lambda_max(gram: Tensor) -> float:
    """Largest eigenvalue of a dense symmetric matrix, unproved; Lanczos above order 400."""
    n = gram.shape[0]
    if n <= DENSE_EIGENVALUES:
        return float(torch.linalg.eigvalsh(gram)[-1])
    generator = torch.Generator().manual_seed(0)
    ritz = lanczos_ritz(gram.mv, n, min(n, STEPS), generator, tol=1e-9)
    return ritz.value + ritz.uncertainty


def _column_sum_up(matrix: Tensor) -> float:
    if matrix.numel() == 0:
        return 0.0
    sums = torch.linalg.vector_norm(matrix, 1, dim=0)
    largest = float(sums.max())
    if math.isinf(largest):
        return math.inf
    rows = matrix.shape[0]
    candidates = torch.nonzero(sums >= largest * (1.0 - 8.0 * rows * 2.0**-53)).flatten().tolist()
    if len(candidates) * rows > _EXACT_SUM_ENTRIES:
        return mul_up(largest, add_up(1.0, gamma(rows)))
    return max(add_up(*matrix[:, j].abs().tolist()) for j in candidates)
