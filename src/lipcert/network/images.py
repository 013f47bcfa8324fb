"""The image of known ranges under a linear map, in float64 or in more digits."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Sum
from lipcert.network.touched import touched
from lipcert.numerics.midrad import TINY, UNIT, UP, Range
from lipcert.numerics.slices import bilinear


def image_if_known(linear: LinearMap, x: Range) -> Range:
    """W x of one example, with a radius of infinity where a map's constants have no error bound."""
    try:
        return image(linear, x.map(lambda t: t[None])).map(lambda t: t[0])
    except NumericsError:
        mid = linear.apply(x.mid[None])[0]
        return Range(mid, torch.full_like(mid, math.inf))


def image(linear: LinearMap, x: Range) -> Range:
    """W x on a batch (B, *in_shape).

    Why this encloses: the computed image is within γ_k|W||x| of the exact one (``LinearMap.rounding``, which counts
    the errors of folded constants too), an error r of x moves it by at most |W|r, and |W| computed by ``absolute``
    is short by at most another factor 1 − γ_k. Compositions and sums are taken apart, so that the term for underflow
    is passed on by what follows.

    Raises:
        NumericsError: a map whose constants have no error bound.
    """
    if isinstance(linear, Composition):
        for part in linear.maps:
            x = image(part, x)
        return x
    if isinstance(linear, Sum):
        total = image(linear.maps[0], x)
        for part in linear.maps[1:]:
            total = total + image(part, x)
        return total
    if isinstance(linear, Identity):
        return x if linear.scale == 1.0 else -x if linear.scale == -1.0 else x * Range.literal(linear.scale)
    if x.tail:
        long = _long_image(linear, x)
        return image(linear, x.plain).to_digits(len(x.tail)) if long is None else long
    if not math.isfinite(linear.rounding):
        label = linear.label if isinstance(linear, OpMap) else "linear"
        raise NumericsError(
            f"the constants of {label} are folded by operations without an error bound: nothing is known of its image."
        )
    gamma = _gamma(linear.rounding)
    mid = linear.apply(x.mid)
    rad = linear.absolute().apply(x.mid.abs() * gamma + x.rad) * (1.0 + 2.0 * gamma) * UP
    if gamma > 0:
        reached = touched(linear, x.mid.abs() + x.rad > 0)
        rad = torch.where(reached, rad + TINY * _factor(linear) * linear.in_size, rad)
    return Range(mid, rad)


def _long_image(linear: LinearMap, x: Range) -> Range | None:
    """The image to as many digits as x has, where the constants are stored ones; else None.

    Without constants, sums of one term that map 1 to 0 or 1 move entries and do nothing else.
    """
    if not isinstance(linear, (OpMap, Dense)) or not linear.stored or len(linear.constants) > 1:
        return None
    if linear.constants:

        def apply(constant: Tensor, batch: Tensor) -> Tensor:
            return replace(linear, constants=(constant,)).apply(batch)

        return bilinear(apply, linear.constants[0], x, linear.rounding + 1.0)
    moved = linear.apply(torch.ones_like(x.mid[:1]))
    if linear.rounding > 1.0 or not bool(((moved == 0) | (moved == 1)).all()):
        return None
    return x.map(linear.apply)


def _gamma(count: float) -> float:
    """γ of one rounding more than counted, which covers the product γ|x|; 0 for a map that only moves entries."""
    k = (count + 1.0) * UNIT if count else 0.0
    return k / (1.0 - k) * (1.0 + 4.0 * UNIT) if k < 0.25 else math.inf


def _factor(linear: LinearMap) -> float:
    """What may multiply an intermediate product that has underflowed: the map's other constants."""
    factor = 1.0
    for constant in getattr(linear, "constants", ()):
        factor *= max(1.0, float(constant.abs().max()) if constant.numel() else 1.0)
    return factor
