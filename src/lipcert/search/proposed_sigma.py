"""Claims for the largest singular value that a verified factorisation will very probably prove: no bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.numerics import psd
from lipcert.numerics.lanczos import Gram, lanczos_ritz
from lipcert.numerics.rounding import add_up, gamma, ldexp_up, mul_up, sqrt_up
from lipcert.numerics.spectral import (
    SLACK,
    STEPS,
    as_matrix,
    as_radius,
    elementary_upper,
    gram_of,
    gram_radius,
    proposed,
    provable,
    scaling_loss,
    short_side,
    to_unit,
)


def propose_sigma_max(w: Tensor, error: float = 0.0) -> float:
    """A claim that ``certify_sigma_max`` will very probably prove, without proving it: no bound.

    Arguments and errors are those of :func:`sigma_max_upper`.
    """
    matrix, error = as_matrix(w), as_radius(error)
    if matrix.numel() == 0 or not bool(matrix.any()):
        return error
    scaled, exponent = to_unit(matrix)
    ceiling, x = elementary_upper(scaled, SLACK), short_side(scaled)
    value = ceiling if x.shape[0] == 1 else min(ceiling, mul_up(proposed(gram_of(x), gram_radius(x))[0], SLACK))
    return mul_up(add_up(ldexp_up(add_up(value, scaling_loss(matrix, scaled)), exponent), error), 1.0 + 2e-15)


def propose_sigma_max_of_map(gram: Gram, shape: tuple[int, int], size: float, error: float) -> float:
    """As :func:`propose_sigma_max` for a large W of norm about 1, from passes alone: W is not written down.

    Args:
        gram: ``x -> W^T W x`` or ``y -> W W^T y``, float64, on vectors of W's shorter side.
        shape: (m, n) of W.
        size: at least ``sqrt(||W||_1 ||W||_inf)``.
        error: spectral-norm radius that ``certify_sigma_max`` will be told.

    Raises:
        ValueError: the map returns NaN or infinity, or leaves the range of float64.
    """
    n = min(shape)
    ritz = lanczos_ritz(gram, n, min(n, STEPS), torch.Generator().manual_seed(0), tol=1e-9)
    estimate = ritz.value + ritz.uncertainty
    radius = 1.1 * gamma(psd.product_terms(max(shape))) * size * size
    value = sqrt_up(max(0.0, estimate) + provable(n, estimate, 0.0, radius))
    return mul_up(add_up(mul_up(value, SLACK), error), 1.0 + 2e-15)
