"""Norms that a check will very probably be able to prove: what AutoLip claims."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.certificates.norms.operator_norm import (
    SLACK,
    TARGET,
    Route,
    enclosed_matrix,
    flat_gram,
    map_norm,
    writable,
    written_error,
)
from lipcert.certificates.norms.scaling import absolute_sums, greatest, scaled
from lipcert.network.linear import LinearMap
from lipcert.numerics.lanczos import Gram, lambda_max_ritz
from lipcert.numerics.rounding import ldexp_up, mul_up, sqrt_up
from lipcert.numerics.spectral import DENSE_EIGENVALUES
from lipcert.search.proposed_sigma import propose_sigma_max, propose_sigma_max_of_map


def propose_norm(
    linear: LinearMap,
    p: float,
    generator: torch.Generator | None = None,
    route: Route = "written",
    target: float = TARGET,
) -> float:
    """A value that ``map_norm`` will very probably be able to prove: the search side, not a bound."""
    if p != 2 or linear.is_zero or route == "sums":
        return map_norm(linear, p, route=route).value
    if route == "passes" or not writable(linear):
        return _rough_sigma(linear, generator) * (1.0 + target) * (1.0 + SLACK)
    unit = scaled(linear)
    rows, columns = absolute_sums(unit)
    schur = mul_up(sqrt_up(greatest(rows)), sqrt_up(greatest(columns)))
    shape = linear.out_size, linear.in_size
    if min(shape) <= DENSE_EIGENVALUES:
        value = propose_sigma_max(*enclosed_matrix(unit, schur))
    else:
        value = propose_sigma_max_of_map(_short_gram(unit.map), shape, schur, written_error(unit, schur))
    value = min(schur, value)
    return ldexp_up(value * (1.0 + 1e-12), unit.exponent)


def _rough_sigma(linear: LinearMap, generator: torch.Generator | None) -> float:
    """σ_max from below by a short Lanczos run in float32."""
    unit = scaled(linear)
    here = unit.map.to(torch.float32, "cpu")

    def gram(x: Tensor) -> Tensor:
        return here.gram(x.reshape(1, *linear.in_shape)).reshape(-1)

    steps = min(80, linear.in_size)
    try:
        ritz, _ = lambda_max_ritz(gram, linear.in_size, steps, generator, dtype=torch.float32)
    except ValueError:
        return math.nan
    return ldexp_up(math.sqrt(max(ritz, 0.0)), unit.exponent)


def _short_gram(linear: LinearMap) -> Gram:
    """WᵀW or WWᵀ on flat float64 vectors, whichever is smaller."""
    if linear.in_size <= linear.out_size:
        return flat_gram(linear)
    here = linear.to(torch.float64, "cpu")

    def gram(y: Tensor) -> Tensor:
        with torch.no_grad():
            return here.apply(here.transpose(y.reshape(1, *linear.out_shape))).reshape(-1)

    return gram
