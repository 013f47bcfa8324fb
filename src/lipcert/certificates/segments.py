"""Cut a loop-transformed network into segments and write each down as dense matrices with rounding counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.graph import AffineNode
from lipcert.network.loop_transform import Cell, LoopTransformed
from lipcert.network.linear import size

#: Largest side of a matrix that is factored.
MAX_SIDE = 6_500


@dataclass(frozen=True)
class Segment:
    """Nodes start+1 … stop, of which only ``start`` has outside parents' values and only ``stop`` is read outside."""

    start: int
    stop: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, eq=False)
class Tracked:
    """A computed matrix, one that dominates the absolute value of every intermediate sum, and a rounding count.

    The exact matrix differs from ``value`` by at most γ_rounding · ``absolute``, entry by entry.
    """

    value: Tensor
    absolute: Tensor
    rounding: float


@dataclass(frozen=True, eq=False)
class SegmentMatrices:
    """The linear relation of a segment: (s_start, w_1, …) ↦ v of each cell and s_stop."""

    preactivations: tuple[Tracked, ...]
    output: Tracked
    entry: int


def cuts(transformed: LoopTransformed) -> list[int]:
    """Nodes through which every path from input to output passes, input and output included."""
    nodes = transformed.network.nodes
    reach = 0
    result = []
    furthest = [max(c, default=k) for k, c in enumerate(transformed.network.consumers)]
    for k in range(len(nodes)):
        if reach <= k:
            result.append(k)
        reach = max(reach, furthest[k])
    return result


def cheapest_segments(transformed: LoopTransformed) -> list[Segment] | None:
    """The cheapest way to cut the network into factorable segments, from input to output; None if there is none."""
    places = cuts(transformed)
    nodes = transformed.network.nodes
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


def _cost(entry: int, exit_: int, cells: list[Cell], transformed: LoopTransformed, first: bool) -> float:
    if exit_ > MAX_SIDE:
        return math.inf
    if not cells:
        if first and entry > exit_:
            return float(exit_) ** 2 * entry + exit_**3
        return math.inf if entry > MAX_SIDE else 2.0 * float(exit_) * entry * (entry + exit_)
    side = entry + sum(c.size for c in cells)
    rows = exit_ + sum(size(transformed.network.nodes[c.parent].shape) for c in cells)
    return math.inf if side > MAX_SIDE else 2.0 * float(side) ** 3 + 2.0 * float(side) ** 2 * rows + 1e5


def matrices(transformed: LoopTransformed, segment: Segment) -> SegmentMatrices:
    """The segment's relation as dense float64 matrices with entrywise error bounds."""
    nodes = transformed.network.nodes
    entry = size(nodes[segment.start].shape)
    columns = entry + sum(c.size for c in segment.cells)
    place = entry
    eye = torch.eye(entry, columns, dtype=torch.float64)
    known: dict[int, Tracked] = {segment.start: Tracked(eye, eye, 0.0)}
    preactivations = []
    for k in range(segment.start + 1, segment.stop + 1):
        node = nodes[k]
        if isinstance(node, AffineNode):
            known[k] = _affine(transformed, k, known, columns)
            continue
        cell = transformed.cell_at[k]
        v = known[cell.parent]
        preactivations.append(v)
        c, d = cell.c.reshape(-1, 1), cell.d.reshape(-1)
        if v.value.shape[0] == cell.size:
            value, absolute = c * v.value, c.abs() * v.absolute
        else:  # a gain block that changes the shape: c = 0
            value = torch.zeros(cell.size, columns, dtype=torch.float64)
            absolute = torch.zeros_like(value)
        index = torch.arange(cell.size)
        value[index, place + index] = d
        absolute[index, place + index] = d
        known[k] = Tracked(value, absolute, v.rounding + 1.0)
        place += cell.size
    return SegmentMatrices(tuple(preactivations), known[segment.stop], entry)


def _affine(transformed: LoopTransformed, k: int, known: Mapping[int, Tracked], columns: int) -> Tracked:
    node = transformed.network.nodes[k]
    value = torch.zeros(size(node.shape), columns, dtype=torch.float64)
    absolute = torch.zeros_like(value)
    rounding = 0.0
    for linear, parent in zip(transformed.exact_maps[k], node.parents, strict=True):
        matrix = linear.matrix()
        dominant = matrix.abs() if len(linear.leaves()) <= 2 else linear.absolute().matrix()
        # What underflow may have taken: γ times this exceeds a few subnormals in the units used.
        gap = transformed.exponents[parent] - transformed.exponents[k]
        dominant = dominant + 1e-300 * (1.0 + 2.0 ** max(0, gap))
        inner = known[parent]
        if torch.equal(inner.value, torch.eye(*inner.value.shape, dtype=torch.float64)):
            value[:, : matrix.shape[1]] += matrix
            absolute[:, : matrix.shape[1]] += dominant
        else:
            value += matrix @ inner.value
            absolute += dominant @ inner.absolute
        own = linear.rounding if math.isfinite(linear.rounding) else float(linear.in_size + linear.out_size)
        rounding = max(rounding, inner.rounding + own + matrix.shape[1] + 2.0)
    return Tracked(value, absolute, rounding + 2.0 * len(node.parents))
