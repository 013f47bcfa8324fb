"""Bilinear maps in more than float64: operands cut into slices of few bits, whose products and sums are exact.

Source: Ozaki, Ogita, Oishi & Rump 2012, *Error-free transformations of matrix multiplication by using fast routines of
matrix multiplication and its applications*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lipcert.numerics.midrad import TINY, UP, Range, renormalised

#: Slices are whole numbers below 2^_RANGE in all exponents that occur, or the map is not cut.
_RANGE = 900
#: The most slices a constant is cut into; what is left of it counts to the radius.
_CONSTANT_SLICES = 8


def cut(parts: Sequence[Tensor], bits: int, count: int) -> tuple[Tensor, int, Tensor] | None:
    """Σ parts = Σ_k slices[k] · 2^(exponent − bits (k + 1)) + rest, with whole slices; None near over- and underflow.

    Returns:
        (count, *shape) slices, at most 2^bits of size per part; the exponent; the absolute value of the rest.
    """
    largest = max((float(part.abs().max()) for part in parts if part.numel()), default=0.0)
    if not math.isfinite(largest):
        return None
    exponent = math.frexp(largest)[1] + 1 if largest else 0
    if abs(exponent) > _RANGE or abs(exponent - bits * count) > _RANGE:
        return None
    slices = torch.zeros(count, *parts[0].shape, dtype=torch.float64)
    rest = torch.zeros_like(parts[0])
    for part in parts:
        left = part
        for k in range(count):
            grid = 2.0 ** (exponent - bits * (k + 1))
            whole = torch.round(left / grid)
            slices[k] += whole
            left = left - whole * grid
        rest = rest + left.abs()
    return slices, exponent, rest * UP


def bilinear(apply: Callable[[Tensor, Tensor], Tensor], constant: Tensor, x: Range, terms: float) -> Range | None:
    """The image of a batch under a map linear in ``constant`` and in x, to as many digits as x has; None if not cut.

    Why it is exact: a slice of x is a whole number of at most 2^(bits + 1 + log₂ parts), one of the constant at most
    2^(bits + 1), and a sum of ``terms`` products of them, added up over the pairs of slices of one order of magnitude,
    stays below 2^53: every sum that float64 forms, in any order, is a whole number that it holds. The radius takes the
    rests of both operands and the pairs of slices below the last digit, bounded by ``terms`` times their largest sizes.

    Args:
        apply: apply(constant, batch), exact on whole numbers whose sums stay below 2^53; with |constant| it dominates.
        constant: stored exactly.
        x: batch (B, *in_shape) with a tail.
        terms: of the longest sum.
    """
    digits = len(x.tail)
    precision = 53 * (digits + 1)
    spare = math.log2(max(1.0, terms)) + math.log2(digits + 1.0) + 2.0 + 5.0  # 5: up to 32 pairs of one magnitude
    bits = int((53.0 - spare) // 2)
    if bits < 6:
        return None
    count = -(-precision // bits) + 1
    of_x = cut([x.mid, *x.tail], bits, count)
    of_c = cut([constant], bits, min(_CONSTANT_SLICES, 32))
    if of_x is None or of_c is None:
        return None
    (xs, above_x, rest_x), (cs, above_c, rest_c) = of_x, of_c
    used = [j for j in range(len(cs)) if bool(cs[j].any())]
    levels: list[Tensor | None] = [None] * (count + 1)
    batch = x.mid.shape
    lost = False
    for j in used:
        kept = min(count, count + 1 - j)
        lost |= bool(xs[max(0, kept) :].any())
        if kept <= 0:
            continue
        images = apply(cs[j], xs[:kept].reshape(kept * batch[0], *batch[1:]))
        images = images.reshape(kept, batch[0], *images.shape[1:])
        for k in range(kept):
            level = levels[j + k]
            levels[j + k] = images[k] if level is None else level + images[k]
    top = above_x + above_c - 2 * bits
    if not top - bits * (count + 1) > -_RANGE or not top < _RANGE:
        return None
    size = x.mag
    radius = apply(constant.abs(), x.rad + rest_x)
    if bool(rest_c.any()):
        radius = radius + apply(rest_c, size)
    radius = radius * (1.0 + 4.0 * (terms + 4.0) * 2.0**-53) * UP
    dropped = len(used) * count * terms * (digits + 1.0) * 2.0 ** (above_x + above_c - bits * (count + 1) + 4)
    dropped = dropped if lost else 0.0
    radius = torch.where(radius > 0, radius + TINY * (1.0 + float(constant.abs().max())) * terms, radius)
    parts = [level * 2.0 ** (top - bits * s) for s, level in enumerate(levels) if level is not None]
    if not parts:
        zero = torch.zeros_like(radius)
        return Range(zero, radius + dropped, (zero,) * digits)
    return renormalised(parts, radius + dropped, digits)
