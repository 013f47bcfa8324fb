"""An l2 input of many entries that few numbers are made of becomes an input of as many entries as numbers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipcert.increments.graph import Increments
from lipcert.network.linear import Dense, LinearMap
from lipcert.network.relations import Linear, Relation, Start
from lipcert.numerics.midrad import TINY, UNIT, UP
from lipcert.numerics.psd import is_positive_definite_scaled

#: Most rows of all that is read of the input, and least ratio of entries to rows for which the work is worth it.
MOST_ROWS, WORTH = 1200, 1.5
#: The new input reaches further by these shares, of each direction and of each row: what the proof needs.
STRETCH, LIFTS = 1e-10, (1e-10, 1e-9, 1e-8)


def narrowed(increments: Increments) -> Increments:
    """The same increments of all nodes but the input's, for an input in l2; itself where nothing is gained.

    Let M be the rows of all maps that read the input, one above the other, and L a square matrix with L Lᵀ ≥ M Mᵀ.
    Then {Mx: ‖x‖₂ ≤ r} lies in {Lx': ‖x'‖₂ ≤ r} for every r (an ellipsoid in another; the support functions are
    r‖Mᵀy‖ ≤ r‖Lᵀy‖), so that increments which x gives are given by an x' no longer than x. L is the Cholesky factor of
    M Mᵀ, a little stretched; L Lᵀ − M Mᵀ > 0 is proved with the roundings of the maps, of both products and of the
    difference.
    """
    relations = increments.relations
    readers = [k for k, relation in enumerate(relations) if 0 in relation.parents]
    n = relations[0].size
    rows = sum(relations[k].size for k in readers)
    if not all(isinstance(relations[k], Linear) for k in readers) or not 0 < rows <= min(MOST_ROWS, n / WORTH):
        return increments
    maps = [_from_input(relations[k]) for k in readers]
    factor = _factor(maps, n)
    if factor is None:
        return increments
    result = list(relations)
    result[0] = replace(relations[0], shape=(1, rows)) if isinstance(relations[0], Start) else relations[0]
    for k, block in zip(readers, factor.split([relations[k].size for k in readers]), strict=True):
        relation = relations[k]
        assert isinstance(relation, Linear)
        own = Dense((block.contiguous(),), (1, rows), relation.shape, float(rows), stored=True)
        place = relation.parents.index(0)
        result[k] = replace(relation, maps=(*relation.maps[:place], own, *relation.maps[place + 1 :]))
    return Increments(tuple(result))


def _from_input(relation: Relation) -> LinearMap:
    assert isinstance(relation, Linear)
    return relation.maps[relation.parents.index(0)]


def _factor(maps: list[LinearMap], n: int) -> Tensor | None:
    """L, proved; None where no proof was found."""
    blocks, sizes, floor, count = [], [], 0.0, 0.0
    for linear in maps:
        g = linear.rounding + 2.0
        if not g < 2.0**30:
            return None
        blocks.append(linear.matrix())
        sizes.append(linear.absolute().matrix() * (1.0 + 2.0 * g * UNIT) * UP)
        count = max(count, g)
        numbers, factor = 0.0, 1.0
        for leaf in linear.leaves():
            numbers += leaf.in_size + leaf.out_size
            factor *= max(1.0, abs(getattr(leaf, "scale", 1.0)))
            for constant in getattr(leaf, "constants", ()):
                factor *= max(1.0, float(constant.abs().max()) if constant.numel() else 1.0)
        floor = max(floor, TINY * factor * numbers**2)
    matrix, size = torch.cat(blocks), torch.cat(sizes)
    largest = float(size.max())
    if not 1e-60 < largest < 1e60 or not floor < 1e-200:
        return None
    rows = len(matrix)
    gram, gram_size = matrix @ matrix.T, size @ size.T
    gram = 0.5 * (gram + gram.T)
    # |M − M'| ≤ γ_k |M|: both factors of M Mᵀ are off by that, the product by its own roundings
    share = (3.0 * count + n + 8.0) * UNIT * UP
    least = float(gram.diagonal().min())
    if not least > 1e-150:
        return None
    for lift in LIFTS:
        stretched = gram * (1.0 + STRETCH) + torch.diag(lift * gram.diagonal())
        lower, failed = torch.linalg.cholesky_ex(stretched)
        if bool(failed):
            continue
        product, product_size = lower @ lower.T, lower.abs() @ lower.abs().T
        product = 0.5 * (product + product.T)
        difference = product - gram
        radius = share * gram_size + (rows + 8.0) * UNIT * product_size + 4.0 * UNIT * product.abs()
        radius = (radius + floor * n * largest + 1e-250) * (1.0 + 1e-6)
        radius = torch.maximum(radius, radius.T)
        if is_positive_definite_scaled(difference, radius):
            return lower
    return None
