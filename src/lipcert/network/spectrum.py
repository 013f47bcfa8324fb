"""Leading singular triplets of a linear map of a network: estimates with residuals, no bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.linear import LinearMap
from lipcert.numerics.triplets import top_singular_triplets


@dataclass(frozen=True, eq=False)
class Triplets:
    """W ≈ U diag(s) Vᵀ.

    Attributes:
        u: left singular vectors, (out_size, k).
        s: singular values, (k,), descending.
        v: right singular vectors, (in_size, k).
        residuals: √(‖W v − s u‖² + ‖Wᵀ u − s v‖²) of every triplet, (k,).
    """

    u: Tensor
    s: Tensor
    v: Tensor
    residuals: Tensor


def leading_triplets(
    linear: LinearMap, k: int, tol: float, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Triplets:
    """The k leading singular triplets, to residuals of about ``tol`` s_1, by forward and backward passes on the CPU."""
    here = linear.to(dtype, "cpu")

    def apply(x: Tensor) -> Tensor:
        with torch.no_grad():
            return here.apply(x.reshape(len(x), *here.in_shape)).reshape(len(x), -1)

    def transpose(y: Tensor) -> Tensor:
        return here.transpose(y.reshape(len(y), *here.out_shape)).reshape(len(y), -1)

    found = top_singular_triplets(
        apply, transpose, here.in_size, here.out_size, k, generator=generator, dtype=dtype, tol=tol
    )
    return Triplets(*found)
