"""Dense matrices with an exponent and a norm-wise error bound, for products over many layers.

Every error is bounded in the p-norm of the whole matrix: entrywise absolute maps would grow by a factor per layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcert.certificates.norms.scaling import MOST_ROUNDINGS, absolute_sums, scaled
from lipcert.errors import NumericsError
from lipcert.network.linear import LinearMap
from lipcert.numerics.magnitude import Magnitude
from lipcert.numerics.psd import square_sum_up
from lipcert.numerics.rounding import UNDERFLOW, UNIT, add_up, gamma, ldexp_up, mul_up, sqrt_up
from lipcert.numerics.spectral import norm_1_upper, norm_inf_upper, sigma_max_upper


@dataclass(frozen=True, eq=False)
class EnclosedMatrix:
    """All maps W with ‖W − 2^exponent · matrix‖_p ≤ 2^exponent · error."""

    matrix: Tensor
    exponent: int
    error: float

    def norm(self, p: float) -> Magnitude:
        """‖W‖_p, rounded up."""
        if p == 2:
            return Magnitude.of(sigma_max_upper(self.matrix, self.error)).times_power(self.exponent)
        return self.cheap_norm(p)

    def cheap_norm(self, p: float) -> Magnitude:
        """As ``norm``, for p = 2 by √(‖W‖_1 ‖W‖_∞) and ‖W‖_F only."""
        return Magnitude.of(add_up(_elementary(self.matrix, p), self.error)).times_power(self.exponent)


@dataclass(frozen=True, eq=False)
class WrittenMap:
    """A linear map as a block, with the norms that its products need; ``known``: its rounding is known."""

    block: EnclosedMatrix
    p: float
    known: bool
    norm: float
    spread: float

    def after(self, block: EnclosedMatrix) -> EnclosedMatrix:
        """This map after ``block``.

        Why the error holds: |fl(AB) − AB| ≤ γ_n |A||B| + n·2^−1022 entry by entry, and
        AB − A'B' = A(B − B') + (A − A')B', each factor bounded in the p-norm.
        """
        a, b = self.block, block
        product = a.matrix @ b.matrix
        rows, inner, columns = a.matrix.shape[0], a.matrix.shape[1], b.matrix.shape[1]
        size_b = _spread(b.matrix, self.p)
        error = add_up(
            mul_up(add_up(self.norm, a.error), b.error),
            mul_up(a.error, size_b),
            mul_up(gamma(inner + 2.0), self.spread, size_b),
            mul_up(4.0 * (inner + 1.0) * rows * max(1, columns), UNDERFLOW),
        )
        return _normalised(product, a.exponent + b.exponent, error)


def written(linear: LinearMap, p: float) -> WrittenMap:
    """A linear map as a matrix: its constants' and its own rounding are the error (see ``map_norm``)."""
    if linear.is_zero:
        zero = EnclosedMatrix(torch.zeros(linear.out_size, linear.in_size, dtype=torch.float64), 0, 0.0)
        return WrittenMap(zero, p, True, 0.0, 0.0)
    unit = scaled(linear)
    known = linear.rounding <= MOST_ROUNDINGS and unit.map.rounding <= MOST_ROUNDINGS
    terms = unit.map.rounding if known else float(linear.in_size + linear.out_size)
    matrix = unit.map.matrix()
    rows, columns = (float(sums.max()) for sums in absolute_sums(unit))
    greatest = {1.0: columns, 2.0: mul_up(sqrt_up(rows), sqrt_up(columns)), math.inf: rows}[p]
    error = add_up(mul_up(2.0 * gamma(terms + 8.0), greatest), unit.underflow)
    block = _normalised(matrix, unit.exponent, error)
    return WrittenMap(block, p, known, _elementary(block.matrix, p), _spread(block.matrix, p))


@dataclass(frozen=True, eq=False)
class PassedMap:
    """A linear map as the code that it is given by, for maps whose matrix holds mostly zeros.

    Attributes:
        map: in the units of ``exponent``.
        known: whether its rounding is known.
        norm: an upper bound of ‖map‖_p.
        relative: what its rounding and its constants' errors may change it by, in the p-norm.
        floor: what underflow may change an entry of an image by.
    """

    map: LinearMap
    exponent: int
    p: float
    known: bool
    norm: float
    relative: float
    floor: float

    def after(self, block: EnclosedMatrix) -> EnclosedMatrix:
        """This map after ``block``, column by column.

        Why the error holds: |fl(A b) − A b| ≤ γ|A||b| entry by entry (``LinearMap.rounding``), of a norm of at most
        γ‖|A|‖_p times that of |b|, and A b − A b' = A(b − b').
        """
        columns = block.matrix.shape[1]
        with torch.no_grad():
            image = self.map.apply(block.matrix.T.reshape(columns, *self.map.in_shape).contiguous())
        product = image.reshape(columns, self.map.out_size).T.contiguous()
        size_b = _spread(block.matrix, self.p)
        error = add_up(
            mul_up(self.norm, block.error),
            mul_up(self.relative, size_b),
            mul_up(self.floor, float(max(1, product.numel()))),
        )
        return _normalised(product, self.exponent + block.exponent, error)


def passed(linear: LinearMap, p: float, norm: float) -> PassedMap:
    """A linear map as code, with the error of its constants and of applying it (see ``written``).

    ``norm`` is an upper bound of ‖linear‖_p, infinite where none is known.
    """
    unit = scaled(linear)
    known = linear.rounding <= MOST_ROUNDINGS and unit.map.rounding <= MOST_ROUNDINGS
    terms = unit.map.rounding if known else float(linear.in_size + linear.out_size)
    rows, columns = (float(sums.max()) if sums.numel() else 0.0 for sums in absolute_sums(unit))
    greatest = {1.0: columns, 2.0: mul_up(sqrt_up(rows), sqrt_up(columns)), math.inf: rows}[p]
    relative = mul_up(2.0 * gamma(terms + 8.0), greatest)
    own = min(greatest, add_up(ldexp_up(norm, -unit.exponent), relative, unit.underflow))
    return PassedMap(unit.map, unit.exponent, p, known, own, relative, unit.underflow)


def identity(n: int) -> EnclosedMatrix:
    """The identity, exactly."""
    return EnclosedMatrix(torch.eye(n, dtype=torch.float64), 0, 0.0)


def spike(d: Tensor) -> EnclosedMatrix:
    """diag(d), exactly."""
    return EnclosedMatrix(torch.diag(d), 0, 0.0)


def scaled_rows(c: Tensor, block: EnclosedMatrix, p: float) -> EnclosedMatrix:
    """diag(c) after ``block``: one rounding per entry."""
    matrix = c[:, None] * block.matrix
    greatest = float(c.abs().max())
    error = add_up(
        mul_up(greatest, block.error),
        mul_up(2.0 * UNIT, greatest, _spread(block.matrix, p)),
        mul_up(float(max(1, matrix.numel())), UNDERFLOW),
    )
    return _normalised(matrix, block.exponent, error)


def total(blocks: Sequence[EnclosedMatrix], p: float) -> EnclosedMatrix:
    """The sum of blocks of one shape, in units of the largest."""
    if len(blocks) == 1:
        return blocks[0]
    exponent = max(b.exponent for b in blocks)
    matrix = torch.zeros_like(blocks[0].matrix)
    error = 0.0
    for block in blocks:
        shift = max(block.exponent - exponent, -2000)
        moved = torch.from_numpy(np.ldexp(block.matrix.numpy(), shift))
        matrix = matrix + moved
        lost = mul_up(float(max(1, matrix.numel())), UNDERFLOW)
        error = add_up(error, ldexp_up(block.error, shift), mul_up(2.0 * UNIT, _spread(matrix, p)), lost)
    return _normalised(matrix, exponent, error)


def _normalised(matrix: Tensor, exponent: int, error: float) -> EnclosedMatrix:
    """The same block with its larger number of matrix and error near 1; powers of two are exact but for underflow."""
    if not bool(torch.isfinite(matrix).all()) or not math.isfinite(error):
        raise NumericsError("a product of layers overflows float64; rescale the weights of the layers concerned.")
    greatest = max(float(matrix.abs().max()) if matrix.numel() else 0.0, error)
    if greatest == 0.0:
        return EnclosedMatrix(matrix, 0, 0.0)
    shift = -math.frexp(greatest)[1]
    if abs(shift) <= 8:
        return EnclosedMatrix(matrix, exponent, error)
    moved = torch.from_numpy(np.ldexp(matrix.numpy(), shift))
    lost = mul_up(float(matrix.numel()), UNDERFLOW) if shift < 0 else 0.0
    return EnclosedMatrix(moved, exponent - shift, add_up(ldexp_up(error, shift), lost))


def _spread(matrix: Tensor, p: float) -> float:
    """A norm of |matrix| that bounds its p-norm: Frobenius for p = 2."""
    if p == 2:
        return sqrt_up(square_sum_up(matrix)) if matrix.numel() else 0.0
    return _elementary(matrix, p)


def _elementary(matrix: Tensor, p: float) -> float:
    if matrix.numel() == 0:
        return 0.0
    if p == 1:
        return norm_1_upper(matrix)
    if p == math.inf:
        return norm_inf_upper(matrix)
    schur = mul_up(sqrt_up(norm_1_upper(matrix)), sqrt_up(norm_inf_upper(matrix)))
    return min(schur, sqrt_up(square_sum_up(matrix)))
