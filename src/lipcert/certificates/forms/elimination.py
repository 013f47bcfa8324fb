"""Cut a loop-transformed network into segments and write each down as dense matrices with rounding counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcert.certificates.forms.block_rows import Block, Tracked, dense, plus, times
from lipcert.certificates.norms.scaling import scaled
from lipcert.errors import NotProved
from lipcert.increments import Cell, Increments, Linear, ScaledIncrements
from lipcert.network.linear import Dense, Identity, LinearMap, size
from lipcert.numerics.rounding import UNDERFLOW, add_up, ldexp_up, mul_up

#: Largest side of a matrix that is factored.
MAX_SIDE = 6_500


@dataclass(frozen=True, eq=False)
class MapBlock:
    """A linear map as a block, the block that dominates it, and what underflow may have taken from any entry."""

    block: Block
    dominant: Block
    floor: float


@dataclass(frozen=True)
class Segment:
    """Nodes start+1 … stop, between two cuts of the graph.

    Attributes:
        start, stop: last node before, and last node of, the segment.
        entering, leaving: the nodes up to ``start``, and up to ``stop``, that are read later: the two cuts.
        cells: the nonlinear nodes inside.
    """

    start: int
    stop: int
    entering: tuple[int, ...]
    leaving: tuple[int, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, eq=False)
class SegmentMatrices:
    """The linear relation of a segment: (s, w_1, …) ↦ v of each cell and s', s and s' the values on its two cuts.

    Attributes:
        preactivations: the block row of each cell's v.
        output: the block row of s', the leaving nodes one below the other.
        places: columns of each block: block 0 is s, the entering nodes side by side; block i the w of cell i.
    """

    preactivations: tuple[Tracked, ...]
    output: Tracked
    places: list[slice]

    @property
    def entry(self) -> int:
        """Number of entries of s."""
        return int(self.places[0].stop)

    @property
    def side(self) -> int:
        """Number of entries of (s, w_1, …)."""
        return int(self.places[-1].stop)


def live(increments: Increments) -> list[tuple[int, ...]]:
    """For every node k: the nodes up to k that are read after k, or, behind the last one, the output."""
    furthest = [max(c, default=k) for k, c in enumerate(increments.consumers)]
    furthest[-1] = len(furthest)
    result: list[tuple[int, ...]] = [(0,)]
    for k in range(1, len(furthest)):
        result.append(tuple(i for i in (*result[-1], k) if furthest[i] > k))
    return result


def cheapest_segments(transformed: ScaledIncrements) -> list[Segment] | None:
    """The cheapest way to cut the network into factorable segments, from input to output; None if there is none.

    A cut may cross several nodes: an unrolled recurrence is cut between two steps, the state and the inputs still to
    come being what crosses, and a residual block in its middle where that is cheaper.
    """
    nodes = transformed.increments.relations
    crossing = live(transformed.increments)
    width = [sum(size(nodes[i].shape) for i in cut) for cut in crossing]
    cell_at = transformed.cell_at
    places = [k for k in range(len(nodes)) if k == 0 or 0 < width[k] <= MAX_SIDE]
    if places[-1] != len(nodes) - 1:
        return None
    best: dict[int, tuple[float, int]] = {0: (0.0, -1)}
    for number, j in enumerate(places[1:], 1):
        choice = (math.inf, -1)
        inner, rows = 0, 0  # sizes of the w and of the v inside
        k = j
        for i in reversed(places[:number]):
            while k > i:
                cell = cell_at.get(k)
                if cell is not None:
                    inner, rows = inner + cell.size, rows + size(nodes[cell.parent].shape)
                k -= 1
            if inner > MAX_SIDE:
                break
            choice = min(choice, (best[i][0] + _cost(width[i], width[j], inner, rows, i == 0), i))
        best[j] = choice
    if math.isinf(best[len(nodes) - 1][0]):
        return None
    result = []
    j = len(nodes) - 1
    while j > 0:
        i = best[j][1]
        inside = tuple(c for c in transformed.cells if i < c.node <= j)
        result.append(Segment(i, j, crossing[i], crossing[j], inside))
        j = i
    return result[::-1]


def operations(transformed: ScaledIncrements, segment: Segment) -> float:
    """About how many floating-point operations one look at the form on a segment takes."""
    nodes = transformed.increments.relations
    entry, exit_ = (sum(nodes[k].size for k in cut) for cut in (segment.entering, segment.leaving))
    inner = sum(cell.size for cell in segment.cells)
    rows = sum(nodes[cell.parent].size for cell in segment.cells)
    return _cost(entry, exit_, inner, rows, segment.start == 0)


def _cost(entry: int, exit_: int, inner: int, rows: int, first: bool) -> float:
    """About how many operations a segment takes, infinite if it is too wide to factor."""
    if not inner:
        if first and entry > exit_:
            return float(exit_) ** 2 * entry + exit_**3
        return math.inf if entry > MAX_SIDE else 2.0 * float(exit_) * entry * (entry + exit_)
    side = entry + inner
    return math.inf if side > MAX_SIDE else 2.0 * float(side) ** 3 + 2.0 * float(side) ** 2 * (exit_ + rows) + 1e5


def matrices(
    transformed: ScaledIncrements, segment: Segment, written: dict[tuple[int, int], MapBlock] | None = None
) -> SegmentMatrices:
    """The segment's relation as float64 blocks with entrywise error bounds; ``written`` keeps maps for a next time.

    Raises:
        NotProved: it overflows.
    """
    written = {} if written is None else written
    nodes = transformed.increments.relations
    known, entry = _entering(transformed, segment)
    places = [slice(0, entry)]
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
    output = _stacked([known[k] for k in segment.leaving], places)
    return SegmentMatrices(tuple(preactivations), output, places)


def _entering(transformed: ScaledIncrements, segment: Segment) -> tuple[dict[int, Tracked], int]:
    """Every entering node as its own rows of the identity on all of them, and the size of that."""
    sizes = [size(transformed.increments.relations[k].shape) for k in segment.entering]
    ones = torch.ones(sum(sizes), dtype=torch.float64)
    if len(sizes) == 1:
        return {segment.entering[0]: Tracked({0: ones}, {0: ones}, sizes[0], 0.0, 0.0)}, sizes[0]
    rows = torch.diag(ones).split(sizes)
    return {
        k: Tracked({0: part}, {0: part}, len(part), 0.0, 0.0) for k, part in zip(segment.entering, rows, strict=True)
    }, sum(sizes)


def _stacked(parts: list[Tracked], places: list[slice]) -> Tracked:
    """Block rows one below the other."""
    if len(parts) == 1:
        return parts[0]

    def column(blocks: list[Mapping[int, Tensor]], i: int) -> Tensor:
        width = places[i].stop - places[i].start
        empty = [torch.zeros(part.rows, width, dtype=torch.float64) for part in parts]
        return torch.cat([dense(b[i]) if i in b else e for b, e in zip(blocks, empty, strict=True)])

    numbers = sorted({i for part in parts for i in part.parts})
    values = {i: column([part.parts for part in parts], i) for i in numbers}
    absolute = {i: column([part.absolute for part in parts], i) for i in numbers}
    rounding, floor = max(part.rounding for part in parts), max(part.floor for part in parts)
    return Tracked(values, absolute, sum(part.rows for part in parts), rounding, floor)


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
    written: dict[tuple[int, int], MapBlock],
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


def _product_floor(linear: MapBlock, inner: Tracked) -> float:
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


def _written(linear: LinearMap) -> MapBlock:
    """The map as a block, one that dominates |W| but for rounding, and what underflow may have taken."""
    if isinstance(linear, Identity):
        diagonal = torch.full((linear.in_size,), linear.scale, dtype=torch.float64)
        return MapBlock(diagonal, diagonal.abs(), 0.0)
    # Factor by factor: layers of norm 1e-170, 1e-170 and 1e300 fused into one map would vanish on the way.
    unit = scaled(linear)
    matrix = unit.map.matrix()
    single = len(unit.map.leaves()) == 1 and isinstance(unit.map, Dense)
    dominant = matrix.abs() if single else unit.map.absolute().matrix()
    floor = 0.0 if single else unit.underflow
    if unit.exponent:
        matrix, dominant = (torch.from_numpy(np.ldexp(m.numpy(), unit.exponent)) for m in (matrix, dominant))
        floor = add_up(ldexp_up(floor, unit.exponent), UNDERFLOW)
    return MapBlock(matrix, dominant, floor)
