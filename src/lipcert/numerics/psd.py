"""Verified positive definiteness of float64 matrices.

The factorisation is not trusted, only its residual is. After the shift of Rump (*Verification of
positive definiteness*, BIT 46, 2006) a Cholesky factor L of ``B ~ A - c I`` is computed by LAPACK.
``L L^T`` is positive semidefinite whatever L is, so with a rigorous bound ``r >= ||B - L L^T||_2``
from one more product,

    lambda_min(A) >= c + lambda_min(B) >= c - r .

Rump bounds r beforehand by ``gamma_{n+1}/(1-gamma_{n+1}) trace(B)``; that holds for the textbook
algorithm, but blocked libraries multiply by inverted diagonal blocks. Measuring r costs as much as
the factorisation again and assumes only what follows.

Assumptions: IEEE binary64 in round-to-nearest, with subnormals (checked) and a BLAS whose ``gemm``
computes every entry as a conventional inner product (any order, any blocking, with or without fused
multiply-add; not Strassen), which MKL, OpenBLAS and BLIS do. Everything runs on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lipcert.numerics.rounding import UNDERFLOW, UNIT, add_up, gamma, ldexp_up, mul_up, sqrt_up

_CHUNK, _FEW = 512, 256
#: A matrix is factored by blocks if it has as many rows of them, and at most this part of their pairs is used.
_BAND = 4
_HALF = 0.5


def product_terms(depth: int) -> int:
    """Index k of the ``gamma_k`` that bounds the rounding of :func:`product_rows` at this depth."""
    return min(depth, _CHUNK) + max(1, math.ceil(depth / _CHUNK))


def product_rows(x: Tensor, start: int, stop: int, depth: int) -> Tensor:
    """Rows ``start:stop``, columns ``:stop``, of ``X X^T`` over the first ``depth`` columns of X.

    The inner products are split into chunks of 512 and the partial sums added, so that for every
    entry ``|computed - exact| <= gamma_k (|X||X|^T) + 4 (depth+1) UNDERFLOW`` with
    ``k = product_terms(depth)``: at most ``min(depth, 512)`` roundings inside a chunk in whatever
    order the BLAS takes, and one for every addition of a chunk (Higham, §3.1 and §4.2). Products outside the band
    in which these rows are not 0 are left out: they are exactly 0.

    Args:
        x: (n, m) float64, finite.
        start: first row.
        stop: one past the last row, and the number of columns.
        depth: columns of X to sum over.
    """
    if depth <= _CHUNK:
        return x[start:stop, :depth] @ x[:stop, :depth].mT
    total = x.new_zeros(stop - start, stop)
    low, high = _span((x[start:stop, :depth] != 0).any(dim=0))
    first, last = _span((x[:stop, low:high] != 0).any(dim=1))
    for k in range(low, high, _CHUNK):
        end = min(k + _CHUNK, high)
        total[:, first:last].add_(x[start:stop, k:end] @ x[first:last, k:end].mT)
    return total


def _span(used: Tensor) -> tuple[int, int]:
    """The shortest range of places outside of which nothing is used."""
    places = used.nonzero()
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def by_first_entry(x: Tensor) -> Tensor:
    """Places of the rows in the order of their first entries that are not 0: a convolution's become a band."""
    if len(x) <= _FEW:
        return torch.arange(len(x), device=x.device)
    return (x != 0).to(torch.uint8).argmax(dim=1).argsort(stable=True)


def square_sum_up(x: Tensor) -> float:
    """Upper bound of ``sum x_i**2`` for a float64 tensor (``inf`` if not finite)."""
    value = sum(float((rows * rows).sum()) for rows in x.split(_CHUNK))
    if not math.isfinite(value):
        return math.inf
    return add_up(mul_up(value, add_up(1.0, gamma(x.numel() + 8))), mul_up(4.0 * x.numel(), UNDERFLOW))


def proof_cost(n: int, trace: float) -> float:
    """Shift beyond the radius that a proof for an (n, n) matrix of this trace needs (rounding)."""
    k = product_terms(n)
    return add_up(mul_up(gamma(1.25 * k + 24), trace), mul_up(64.0 * (n + 1) ** 2, UNDERFLOW))


def is_positive_definite(a: Tensor, radius: float = 0.0) -> bool:
    """Prove that every symmetric A' with ``||A' - A||_2 <= radius`` is positive definite.

    ``True`` is a proof; ``False`` says only that none was found (the least eigenvalue is not above
    ``radius`` by more than about ``1.25 min(n, 512) u trace(A)``, or a number is not finite).

    Why ``True`` is a proof: see the module; ``A`` is first multiplied by a power of two, what this
    loses to underflow (at most ``n UNDERFLOW``) counts as radius, and all bounds are rounded up.

    Args:
        a: (n, n) float64, exactly symmetric. ``n = 0`` is positive definite.
        radius: spectral-norm radius >= 0.

    Raises:
        ValueError: ``a`` is not a square, symmetric, float64 matrix, or radius is negative or NaN.
    """
    if not radius >= 0.0:
        raise ValueError(f"radius must be >= 0, got {radius!r}")
    matrix = _symmetric_array(a)
    if matrix is None or math.isinf(radius):
        return False
    n = matrix.shape[0]
    if n == 0:
        return True
    if n == 1:
        return bool(matrix[0, 0] > radius)
    largest = float(matrix.diagonal().max())
    if largest <= 0.0 or not _has_subnormals():
        return False
    exponent = math.frexp(largest)[1]
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.ldexp(matrix, -exponent)
    return _prove(scaled, ldexp_up(radius, -exponent))


def is_positive_definite_scaled(
    a: Tensor, entry_radius: Tensor | Callable[[Tensor], Tensor] | None = None, scale: Tensor | None = None
) -> bool:
    """Prove that every symmetric A' with ``|A' - A| <= E`` entrywise is positive definite.

    For matrices whose diagonal spans many orders of magnitude: the test is made on ``D A D`` with
    ``D = diag(2**-k_i)`` such that its diagonal lies in [1/4, 1), or below where ``scale`` asks for more: a diagonal
    entry that is the small difference of two others of this size has the errors of those.

    Why ``True`` is a proof: congruence with D preserves definiteness and is exact but for underflow,
    which counts as radius (``n UNDERFLOW``); ``||D (A'-A) D||_2 <= ||D E D||_2 <= sqrt(||.||_1
    ||.||_inf)``, rounded up, is the radius of :func:`is_positive_definite`.

    Args:
        a: (n, n) float64, exactly symmetric.
        entry_radius: (n, n) float64, nonnegative, ``None`` for zero, or E given only as code: a function that takes a
            nonnegative (n,) vector d and returns an upper bound of E d, its own rounding included.
        scale: (n,) float64; D is chosen for the larger of it and the diagonal. Any values give a proof.

    Raises:
        ValueError: ``a`` is not a square, symmetric, float64 matrix, or ``entry_radius`` has another
            shape or dtype, a negative entry or NaN.
    """
    matrix = _symmetric_array(a)
    errors = _radius_array(entry_radius, a.shape) if isinstance(entry_radius, Tensor) else None
    if matrix is None:
        return False
    n = matrix.shape[0]
    if n == 0:
        return True
    if not bool((matrix.diagonal() > 0.0).all()) or not _has_subnormals():
        return False
    largest = matrix.diagonal()
    if scale is not None:
        wanted = scale.detach().cpu().numpy()
        largest = np.where(np.isfinite(wanted), np.maximum(largest, wanted), largest)
    half = -((-np.frexp(largest)[1]) // 2)  # ceil(e / 2)
    exponents = -(half[:, None] + half[None, :])
    radius = 0.0
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.ldexp(matrix, exponents)
        if errors is not None:
            radius = _absolute_norm_up(np.ldexp(errors, exponents))
    if callable(entry_radius) and not isinstance(entry_radius, Tensor):
        factors = torch.from_numpy(np.ldexp(np.ones(n), -half))
        sums = factors * entry_radius(factors)
        widest = float(sums.max())
        if not math.isfinite(widest) or bool((sums < 0.0).any()):
            return False
        radius = add_up(mul_up(widest, 1.0 + 4.0 * UNIT), mul_up(4.0 * n, UNDERFLOW))
    return _prove(scaled, radius)


def _prove(scaled: np.ndarray, radius: float) -> bool:
    """Proof for a matrix with diagonal <= 1 that may be off by ``UNDERFLOW`` per entry; overwrites it."""
    b = torch.from_numpy(scaled)
    n = b.shape[0]
    diagonal = b.diagonal()
    if math.isinf(radius) or not bool((diagonal > 0.0).all()):
        return False
    radius = add_up(radius, mul_up(float(n), UNDERFLOW))
    shift = add_up(radius, proof_cost(n, add_up(*diagonal.tolist())))
    diagonal.copy_(torch.nextafter(diagonal - shift, torch.full_like(diagonal, -math.inf)))
    return add_up(_factor_residual_up(b), radius) < shift


def _factor_residual_up(b: Tensor) -> float:
    """Upper bound of ``||B - L L^T||_2`` for a computed factor L; ``inf`` where there is none.

    Why this is an upper bound: ``|B - L L^T| <= |E| (1+u) + gamma_k |L||L|^T`` plus underflow, with
    E the computed residual; the spectral norm of the first is at most its Frobenius norm, that of
    ``|L||L|^T`` at most ``||L||_F**2``. Only lower block rows are formed; each off-diagonal block
    counts twice.
    """
    n = b.shape[0]
    factor = _cholesky(b)
    if factor is None:
        return math.inf
    factor_squares = square_sum_up(factor)
    if math.isinf(factor_squares):
        return math.inf
    squares = 0.0
    for start in range(0, n, _CHUNK):
        stop = min(start + _CHUNK, n)
        residual = product_rows(factor, start, stop, stop).sub_(b[start:stop, :stop])
        squares = add_up(squares, square_sum_up(residual))
    measured = mul_up(sqrt_up(mul_up(2.0, squares)), add_up(1.0, gamma(2)))
    product = mul_up(gamma(product_terms(n)), factor_squares)
    return add_up(measured, product, mul_up(8.0 * n * (n + 1), UNDERFLOW))


def _cholesky(b: Tensor) -> Tensor | None:
    """A lower triangular L with ``L L^T`` about B, which nothing relies on; ``None`` where there is none.

    By blocks where most of them are 0 left of the first one in their row that is not: those of L are 0 there, too.
    """
    pieces = [slice(k, min(k + _FEW, len(b))) for k in range(0, len(b), _FEW)]
    first = [_span((b[rows, : rows.stop] != 0).any(dim=0))[0] // _FEW for rows in pieces]
    if len(pieces) < _BAND or sum(k - begin for k, begin in enumerate(first)) > len(pieces) ** 2 / _BAND:
        factor, info = torch.linalg.cholesky_ex(b)
        return None if int(info) else factor.tril()
    result = torch.zeros_like(b)
    for i, rows in enumerate(pieces):
        for j in range(first[i], i + 1):
            columns = pieces[j]
            known = slice(_FEW * max(first[i], first[j]), columns.start)
            rest = b[rows, columns] - result[rows, known] @ result[columns, known].mT
            if i == j:
                block, info = torch.linalg.cholesky_ex(rest)
                if int(info):
                    return None
                result[rows, rows] = block.tril()
            else:
                own = result[columns, columns]
                result[rows, columns] = torch.linalg.solve_triangular(own, rest.mT, upper=False).mT
    return result


def all_finite(a: Tensor) -> bool:
    """Whether no entry is NaN or infinite, by the least and the greatest, which NaN would be: a tenth of the time."""
    return not a.numel() or all(math.isfinite(float(end)) for end in torch.aminmax(a))


def _symmetric_array(a: Tensor) -> np.ndarray | None:
    """``a`` as an array on the CPU; ``None`` if an entry is not finite."""
    if a.dtype != torch.float64 or a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"expected a square float64 matrix, got {a.dtype} of shape {tuple(a.shape)}")
    a = a.detach().cpu()
    if not all_finite(a):
        return None
    if not torch.equal(a, a.mT):
        raise ValueError("the matrix is not symmetric")
    return a.numpy()


def _radius_array(e: Tensor, shape: torch.Size) -> np.ndarray:
    if e.dtype != torch.float64 or e.shape != shape or not bool((e >= 0.0).all()):
        raise ValueError(f"entry_radius must be nonnegative float64 of shape {tuple(shape)}")
    return e.detach().cpu().numpy()


def _absolute_norm_up(e: np.ndarray) -> float:
    """Upper bound of ``sqrt(||E||_1 ||E||_inf)`` for E >= 0 off by at most ``UNDERFLOW`` per entry."""
    n = e.shape[0]
    columns, rows = float(e.sum(axis=0).max()), float(e.sum(axis=1).max())
    if not (math.isfinite(columns) and math.isfinite(rows)):
        return math.inf
    growth, lost = add_up(1.0, gamma(n + 1)), mul_up(4.0 * n, UNDERFLOW)
    return sqrt_up(mul_up(add_up(mul_up(columns, growth), lost), add_up(mul_up(rows, growth), lost)))


def _has_subnormals() -> bool:
    """Whether subnormal numbers survive here (``torch.set_flush_denormal(True)`` removes them)."""
    return UNDERFLOW * _HALF > 0.0
