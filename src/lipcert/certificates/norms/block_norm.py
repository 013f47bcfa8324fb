"""Norms of maps that are many small ones side by side: one per token, head or row of attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Shape, Sum, size
from lipcert.network.touched import touched
from lipcert.numerics.many_norms import two_norms
from lipcert.numerics.rounding import add_up, mul_up
from lipcert.numerics.spectral import sigma_max_upper, to_unit

#: Least number of blocks, most entries of one, and of all together.
LEAST_BLOCKS, MOST_SIDE, MOST_ENTRIES = 4, 2_000, 1 << 26
#: Numbers per batch of a pass.
_CHUNK = 1 << 24

Pairs = list[tuple[int, int]]


def block_norm(linear: LinearMap, error: float) -> float | None:
    """‖W‖₂ ≤ the greatest norm of its blocks; None where it has none, or too large ones.

    Why this is an upper bound: if index t of an axis of the input has a part only in index t of an axis of the output,
    the map is a direct sum over t, up to the order of entries, and its norm is the greatest of the summands'. Blocks
    are what the map makes of sums of units, one of every block: exactly as rounded as one unit's image, as all other
    terms are products with 0.

    Args:
        linear: the map, of moderate constants (``scaled``).
        error: how far the matrix that float64 gives may be from the map in the 2-norm.
    """
    if not _told_by_patterns(linear):
        return None
    pairs = block_axes(linear)
    count = math.prod(linear.in_shape[a] for a, _ in pairs)
    if not pairs or count < LEAST_BLOCKS or size(linear.in_shape) * size(linear.out_shape) // count > MOST_ENTRIES:
        return None
    if min(linear.in_size, linear.out_size) // count > MOST_SIDE:
        return None
    blocks = _blocks(linear, pairs, count)
    if bool((blocks == blocks[:1]).all()):
        return sigma_max_upper(blocks[0], error)
    if len(blocks) <= LEAST_BLOCKS or blocks.shape[1] * blocks.shape[2] > 1 << 18:
        return max(sigma_max_upper(block, error) for block in blocks)
    return add_up(greatest_norm(blocks), error)


def _told_by_patterns(linear: LinearMap) -> bool:
    """Whether ``touched`` decides on zeros and ones throughout: sizes of a map of another kind may underflow."""
    if isinstance(linear, (Composition, Sum)):
        return all(_told_by_patterns(part) for part in linear.maps)
    return isinstance(linear, (OpMap, Dense, Identity))


def block_axes(linear: LinearMap) -> Pairs:
    """Pairs (axis of the input, axis of the output) of one length such that no index of one touches another.

    An index is told by its binary digits: what has a digit 1 (or 0) touches only what has the same.
    """
    found: Pairs = []
    for a, n in enumerate(linear.in_shape):
        for b, m in enumerate(linear.out_shape):
            free = n == m > 1 and all(b != other for _, other in found)
            if free and _keeps_apart(linear, a, b, n):
                found.append((a, b))
                break
    return found


def _keeps_apart(linear: LinearMap, a: int, b: int, n: int) -> bool:
    index = torch.arange(n)
    for digit in range(max(1, (n - 1).bit_length())):
        own = (index >> digit) & 1 == 1
        for chosen in (own, ~own):
            entries = _along(chosen, a, linear.in_shape)
            others = _along(~chosen, b, linear.out_shape)
            if bool((touched(linear, entries[None])[0] & others).any()):
                return False
    return True


def _along(chosen: Tensor, axis: int, shape: Shape) -> Tensor:
    """Truth per index of an axis, for all entries."""
    view = [1] * len(shape)
    view[axis] = len(chosen)
    return chosen.reshape(view).expand(shape).contiguous()


def _blocks(linear: LinearMap, pairs: Pairs, count: int) -> Tensor:
    """(count, rows, columns)."""
    ins, outs = [a for a, _ in pairs], [b for _, b in pairs]
    places = torch.arange(linear.in_size).reshape(linear.in_shape).movedim(ins, list(range(len(ins))))
    places = places.reshape(count, -1)
    columns = places.shape[1]
    images = []
    for chunk in torch.arange(columns).split(max(1, _CHUNK // max(linear.in_size, linear.out_size))):
        units = torch.zeros(len(chunk), linear.in_size, dtype=torch.float64)
        units[torch.arange(len(chunk)).repeat_interleave(count), places[:, chunk].T.reshape(-1)] = 1.0
        with torch.no_grad():
            image = linear.apply(units.reshape(len(chunk), *linear.in_shape))
        moved = image.movedim([b + 1 for b in outs], list(range(1, len(outs) + 1)))
        images.append(moved.reshape(len(chunk), count, -1))
    return torch.cat(images).permute(1, 2, 0).contiguous()


def greatest_norm(blocks: Tensor) -> float:
    """An upper bound of the greatest 2-norm of matrices (k, n, m), a little above it."""
    if not blocks.numel():
        return 0.0
    unit, exponent = to_unit(blocks.reshape(-1, blocks.shape[-1]))
    return mul_up(float(two_norms(unit.reshape(blocks.shape)).max()), 2.0**exponent)
