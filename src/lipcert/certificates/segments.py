"""Cut a loop-transformed network into segments and write each down as dense matrices with rounding counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcert.certificates.blocks import Block, Tracked, plus, times
from lipcert.certificates.map_norm import scaled
from lipcert.errors import NotProved
from lipcert.increments import Cell, Linear, ScaledIncrements
from lipcert.network.linear import Dense, Identity, LinearMap, size
from lipcert.numerics.rounding import UNDERFLOW, add_up, ldexp_up, mul_up

#: Largest side of a matrix that is factored.
MAX_SIDE = 6_500


@dataclass(frozen=True, eq=False)
class Written:
    """A linear map as a block, the block that dominates it, and what underflow may have taken from any entry."""

    block: Block
    dominant: Block
    floor: float


@dataclass(frozen=True)
class Segment:
    """Nodes start+1 … stop, of which only ``start`` has outside parents' values and only ``stop`` is read outside."""

    start: int
    stop: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, eq=False)
class SegmentMatrices:
    """The linear relation of a segment: (s_start, w_1, …) ↦ v of each cell and s_stop.

    Attributes:
        preactivations: the block row of each cell's v.
        output: the block row of s_stop.
        places: columns of each block: block 0 is s_start, block i the w of cell i.
    """

    preactivations: tuple[Tracked, ...]
    output: Tracked
    places: list[slice]

    @property
    def entry(self) -> int:
        """Number of entries of s_start."""
        return int(self.places[0].stop)

    @property
    def side(self) -> int:
        """Number of entries of (s_start, w_1, …)."""
        return int(self.places[-1].stop)


def cheapest_segments(transformed: ScaledIncrements) -> list[Segment] | None:
    """The cheapest way to cut the network into factorable segments, from input to output; None if there is none."""
    places = transformed.increments.cuts
    nodes = transformed.increments.relations
    best: list[tuple[float, int]] = [(0.0, -1)]
    for j in range(1, len(places)):
        choice = (math.inf, -1)
        for i in range(j - 1, -1, -1):
            inner = [c for c in transformed.cells if places[i] < c.node <= places[j]]
            cost = best[i][0] + _cost(
                size(nodes[places[i]].shape), size(nodes[places[j]].shape), inner, transformed, i == 0
            )
            choice = min(choice, (cost, i))
            if sum(c.size for c in inner) > MAX_SIDE:
                break
        best.append(choice)
    if math.isinf(best[-1][0]):
        return None
    result = []
    j = len(places) - 1
    while j > 0:
        i = best[j][1]
        inside = tuple(c for c in transformed.cells if places[i] < c.node <= places[j])
        result.append(Segment(places[i], places[j], inside))
        j = i
    return result[::-1]


def _cost(entry: int, exit_: int, cells: list[Cell], transformed: ScaledIncrements, first: bool) -> float:
    if exit_ > MAX_SIDE:
        return math.inf
    if not cells:
        if first and entry > exit_:
            return float(exit_) ** 2 * entry + exit_**3
        return math.inf if entry > MAX_SIDE else 2.0 * float(exit_) * entry * (entry + exit_)
    side = entry + sum(c.size for c in cells)
    rows = exit_ + sum(transformed.increments.relations[c.parent].size for c in cells)
    return math.inf if side > MAX_SIDE else 2.0 * float(side) ** 3 + 2.0 * float(side) ** 2 * rows + 1e5


def matrices(
    transformed: ScaledIncrements, segment: Segment, written: dict[tuple[int, int], Written] | None = None
) -> SegmentMatrices:
    """The segment's relation as float64 blocks with entrywise error bounds; ``written`` keeps maps for a next time.

    Raises:
        NotProved: it overflows.
    """
    written = {} if written is None else written
    nodes = transformed.increments.relations
    entry = size(nodes[segment.start].shape)
    places = [slice(0, entry)]
    ones = torch.ones(entry, dtype=torch.float64)
    known: dict[int, Tracked] = {segment.start: Tracked({0: ones}, {0: ones}, entry, 0.0, 0.0)}
    preactivations = []
    for k in range(segment.start + 1, segment.stop + 1):
        relation = nodes[k]
        if isinstance(relation, Linear):
            known[k] = _linear(transformed, k, relation, known, written)
            continue
        cell = transformed.cell_at[k]
        v = known[cell.parent]
        preactivations.append(v)
        places.append(slice(places[-1].stop, places[-1].stop + cell.size))
        known[k] = _activate(cell, v, len(places) - 1)
    return SegmentMatrices(tuple(preactivations), known[segment.stop], places)


def _activate(cell: Cell, v: Tracked, block: int) -> Tracked:
    """c·v + d·w with w in its own column block."""
    c, d = cell.c.reshape(-1), cell.d.reshape(-1)
    parts: dict[int, Tensor] = {}
    absolute: dict[int, Tensor] = {}
    floor = 0.0
    if v.rows == cell.size and bool(c.any()):  # a gain block may change the shape; its c is zero
        parts = {i: times(c, part) for i, part in v.parts.items()}
        absolute = {i: times(c.abs(), part) for i, part in v.absolute.items()}
        floor = add_up(mul_up(float(c.abs().max()), v.floor), 4.0 * UNDERFLOW)
    parts[block], absolute[block] = d, d.abs()
    return Tracked(parts, absolute, cell.size, v.rounding + 1.0, floor)


def _linear(
    transformed: ScaledIncrements,
    k: int,
    relation: Linear,
    known: Mapping[int, Tracked],
    written: dict[tuple[int, int], Written],
) -> Tracked:
    parts: dict[int, Tensor] = {}
    absolute: dict[int, Tensor] = {}
    rounding = floor = 0.0
    for linear, parent in zip(transformed.maps[k], relation.parents, strict=True):
        if (k, parent) not in written:
            written[k, parent] = _written(linear)
        own_map, inner = written[k, parent], known[parent]
        for i, part in inner.parts.items():
            parts[i] = plus(parts.get(i), times(own_map.block, part))
            absolute[i] = plus(absolute.get(i), times(own_map.dominant, inner.absolute[i]))
        floor = add_up(floor, _product_floor(own_map, inner))
        own = linear.rounding if math.isfinite(linear.rounding) else float(linear.in_size + linear.out_size)
        rounding = max(rounding, inner.rounding + own + linear.in_size + 2.0)
    return Tracked(parts, absolute, relation.size, rounding + 2.0 * len(relation.parents), floor)


def _product_floor(linear: Written, inner: Tracked) -> float:
    """What underflow may take from an entry of the product of a map and a block row, beyond relative errors.

    With W' = W + A, |A| ≤ γD + w, |W| ≤ D + w and P' = P + B, |B| ≤ γ|P| + f: |WP − W'P'| is at most a multiple of
    γ D|P|, which is counted as rounding, plus D f + w |P| + w f summed over n inner entries, plus what the n products
    and sums lose themselves. The factors 2 are more than γ and the rounding of these norms.
    """
    n = linear.block.shape[-1]
    rows = linear.dominant if linear.dominant.dim() == 1 else linear.dominant.sum(dim=1)
    columns = [part if part.dim() == 1 else part.sum(dim=0) for part in inner.absolute.values()]
    return add_up(
        mul_up(2.0, _greatest(rows), inner.floor),
        mul_up(2.0, linear.floor, max((_greatest(sums) for sums in columns), default=0.0)),
        mul_up(2.0 * n, linear.floor, inner.floor),
        mul_up(8.0 * (n + 1), UNDERFLOW),
    )


def _greatest(values: Tensor) -> float:
    greatest = float(values.max()) if values.numel() else 0.0
    if not greatest < math.inf:
        raise NotProved("the relation of a segment overflows.")
    return greatest


def _written(linear: LinearMap) -> Written:
    """The map as a block, one that dominates |W| but for rounding, and what underflow may have taken."""
    if isinstance(linear, Identity):
        diagonal = torch.full((linear.in_size,), linear.scale, dtype=torch.float64)
        return Written(diagonal, diagonal.abs(), 0.0)
    # Factor by factor: layers of norm 1e-170, 1e-170 and 1e300 fused into one map would vanish on the way.
    unit = scaled(linear)
    matrix = unit.map.matrix()
    single = len(unit.map.leaves()) == 1 and isinstance(unit.map, Dense)
    dominant = matrix.abs() if single else unit.map.absolute().matrix()
    floor = 0.0 if single else unit.underflow
    if unit.exponent:
        matrix, dominant = (torch.from_numpy(np.ldexp(m.numpy(), unit.exponent)) for m in (matrix, dominant))
        floor = add_up(ldexp_up(floor, unit.exponent), UNDERFLOW)
    return Written(matrix, dominant, floor)
