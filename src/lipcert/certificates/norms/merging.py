"""Several sources that reach one node as one: an ellipsoid around the sum of ellipsoids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipcert.certificates.norms.written_map import EnclosedMatrix
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.psd import square_sum_up
from lipcert.numerics.rounding import UNDERFLOW, UNIT, add_up, div_up, mul_up, norm_up, sqrt_up
from lipcert.numerics.spectral import gram_of, gram_radius, to_unit

#: Sources whose cheap bound is less than this part of the largest are taken as a ball.
COUNTS = 1e-7
#: What is added to the square in all directions, as a part of its mean over them, if rounding does not need more.
_LIFT = 1e-11

Source = tuple[EnclosedMatrix, Magnitude]


def merged(sources: Sequence[Source], off: Magnitude = ZERO) -> Source | None:
    """(B, r) such that every Σ A_s w_s + e with ‖w_s‖₂ ≤ ℓ_s and ‖e‖₂ ≤ ``off`` is B w with ‖w‖₂ ≤ r; B is exact.

    None where nothing is proved, or nothing is there.

    Why that holds: Σ A_s w_s = Σ (f_s M_s) v_s + e with ‖v_s‖ ≤ ℓ_s/f_s, so ‖v‖ ≤ r for all v_s together, and e, of
    errors and of sources that hardly count, in a ball of radius ε. With the ball as one more source of factor f_e =
    ε/share it is X v, X = [f_1 M_1 … f_e I]. If B Bᵀ ≥ X Xᵀ, the image of a ball under X lies in that under B: the
    support functions are r‖Xᵀy‖ ≤ r‖Bᵀy‖. B is the Cholesky factor of X Xᵀ + 2τ I, rounded; what it misses is the
    computed difference, of a known Frobenius norm, and the rounding of both products: less than 2τ in all.

    Any f_s will do. In proportion to √(‖M_s‖_F ℓ_s) the sum of the squared half-axes is least.
    """
    cheap = [block.cheap_norm(2.0) * length for block, length in sources]
    largest = max([*cheap, off], key=lambda m: m.log10)
    if not largest.mantissa or not sources:
        return None
    top, n = largest.exponent, len(sources[0][0].matrix)
    ball, kept = float(off.times_power(-top)), list[tuple[Tensor, float]]()
    for (block, length), own in zip(sources, cheap, strict=True):
        if own < largest * Magnitude.of(COUNTS):
            ball = add_up(ball, float(own.times_power(-top)))
            continue
        reach = float(length.times_power(block.exponent - top))
        ball = add_up(ball, mul_up(reach, block.error))
        kept.append((block.matrix, reach))
    ball = add_up(ball, 1e-200)
    weights = [max(float(matrix.norm()) * reach, 1e-12) for matrix, reach in kept] + [ball * math.sqrt(n)]
    total = sum(weights)
    factors = [reach / math.sqrt(weight / total) for (_, reach), weight in zip(kept, weights[:-1], strict=True)]
    factors.append(ball / math.sqrt(weights[-1] / total))
    if not all(0.0 < f < math.inf for f in factors):
        return None
    spread = norm_up(
        [div_up(reach, f) for (_, reach), f in zip(kept, factors, strict=False)] + [div_up(ball, factors[-1])]
    )
    parts = [f * matrix for f, (matrix, _) in zip(factors, kept, strict=False)]
    found = _factor(torch.cat(parts, dim=1), factors[-1])
    return None if found is None else (found[0], Magnitude.of(spread).times_power(top + found[1]))


def _factor(rows: Tensor, ball: float) -> tuple[EnclosedMatrix, int] | None:
    """B and e, 2^2e B Bᵀ ≥ X Xᵀ + ball² I for all X that round to ``rows`` entry by entry; None if none is proved."""
    unit, exponent = to_unit(rows)
    n, m = unit.shape
    ball = ball * 2.0**-exponent
    size = square_sum_up(unit)
    gram = gram_of(unit)
    # X is within UNIT|X| of the rows, entry by entry; powers of two lose at most what underflows
    lost = add_up(mul_up(4.0 * UNIT, size), gram_radius(unit), mul_up(16.0 * n * m, UNDERFLOW))
    trace = float(gram.diagonal().sum())
    tau = max(8.0 * lost, _LIFT * trace / n, 4.0 * UNIT * ball * ball)
    raised = gram.clone()
    raised.diagonal().add_(ball * ball * (1.0 + 4.0 * UNIT) + 2.0 * tau)
    lower, failed = torch.linalg.cholesky_ex(raised)
    if bool(failed) or not bool(lower.isfinite().all()):
        return None
    own, power = to_unit(lower)
    difference = gram_of(own) * 2.0 ** (2 * power) - raised
    missed = sqrt_up(square_sum_up(difference)) * (1.0 + 4.0 * UNIT)
    rounding = add_up(mul_up(gram_radius(own), 2.0 ** (2 * power)), mul_up(8.0 * UNIT, float(raised.norm()) * 1.01))
    if not add_up(missed, rounding, lost) < 2.0 * tau:
        return None
    return EnclosedMatrix(lower, 0, 0.0), exponent
