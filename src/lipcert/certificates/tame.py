"""Refuse networks whose fused maps might under- or overflow between their factors when they are run as code."""

from __future__ import annotations

import math

from lipcert.certificates.map_norm import _exponent
from lipcert.errors import NumericsError
from lipcert.increments import ScaledIncrements
from lipcert.network.linear import Composition, Identity, LinearMap, Sum

#: Most powers of two that the factors of one map may have, up and down together.
MOST = 500


def require_tame(transformed: ScaledIncrements) -> None:
    """Layers of norm 1e-170, 1e-170 and 1e300 fused into one map would be computed as zero: no probability covers that.

    Raises:
        NumericsError: the factors of a map lie too far from 1.
    """
    for k, maps in transformed.maps.items():
        for linear in maps:
            if _reach(linear) > MOST:
                node = transformed.increments.relations[k]
                raise NumericsError(
                    f"the layers fused into {node.name} at {node.where or f'node {k}'} have norms too far from 1 "
                    f"(2^±{MOST}) to be multiplied as code; rescale their weights."
                )


def _reach(linear: LinearMap) -> float:
    if isinstance(linear, Composition):
        return sum(_reach(m) for m in linear.maps)
    if isinstance(linear, Sum):
        return max(_reach(m) for m in linear.maps)
    if isinstance(linear, Identity):
        return abs(math.log2(abs(linear.scale))) if linear.scale else 0.0
    return abs(_exponent(linear))
