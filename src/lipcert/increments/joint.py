"""Two activations of one value as one relation of two dimensions.

``linked`` is for proofs with a multiplier per entry, ``stacked`` for those that know a constant of every cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.increments.graph import Increments
from lipcert.network.linear import Identity, LinearMap, OpMap, Shape, add, compose, size
from lipcert.network.moves import gather, times
from lipcert.network.relations import BlockCell, Cell, EntryCell, Linear, Relation
from lipcert.network.twins import Circle, Mirrored, Twins
from lipcert.numerics.rounding import add_up, mul_up, sqrt_up


def linked(increments: Increments, twins: Sequence[Twins]) -> Increments:
    """With the second of mirrored cells as a linear relation, and a sine and a cosine as one block. Positions stay.

    δz₂ = sign·δz₁ + slope·δv₁; |δz₁|² + |δz₂|² ≤ |δv|², entry by entry. The latter says nothing of where the slopes
    are, so it is left where a domain knows that better.
    """
    relations = list(increments.relations)
    for pair in twins:
        first, second = relations[pair.first], relations[pair.second]
        if not isinstance(first, EntryCell) or not isinstance(second, EntryCell):
            continue
        if isinstance(pair, Circle):
            readers = increments.consumers[pair.first]
            if all(isinstance(relations[k], Linear) for k in readers) and _wide(first, second):
                _turn(relations, readers, pair, first, second)
            continue
        terms: list[tuple[int, LinearMap]] = [(pair.first, Identity(first.shape, pair.sign))]
        if pair.slope:
            terms.append((first.parent, _scaling(pair.slope, first.shape)))
        parents, maps = zip(*terms, strict=True)
        relations[pair.second] = Linear(parents, second.shape, second.name, second.origin, maps)
    return Increments(tuple(relations))


def _scaling(slope: float, shape: Shape) -> LinearMap:
    """Times a number that the double stands for."""
    if slope in (-1.0, 1.0):
        return Identity(shape, slope)
    constant = torch.full(shape, slope, dtype=torch.float64)
    return OpMap("times", times, shape, shape, (constant,), "times", 3.0)


def _wide(first: EntryCell, second: EntryCell) -> bool:
    """Whether the slopes of both are, on average, farther from their middles than the circle's points from 0."""
    return bool((first.d.square() + second.d.square()).mean().sqrt() > 1.0) if first.size else False


def _turn(relations: list[Relation], readers: Sequence[int], pair: Circle, first: EntryCell, second: EntryCell) -> None:
    """Both cells as one block at the place of the first, of which the second is a part, and readers read parts."""
    shape: Shape = (*first.shape, 2)
    places = 2 * torch.arange(first.size)
    gains = {1.0: sqrt_up(2.0), 2.0: 1.0, math.inf: 1.0}
    name = f"{first.name}, {second.name}"
    relations[pair.first] = BlockCell(
        first.parents, shape, name, first.origin, first.node, gains, "gain", "two activations of one value", first.size
    )
    parts = [gather(places + k, shape, cell.shape) for k, cell in enumerate((first, second))]
    relations[pair.second] = Linear((pair.first,), second.shape, second.name, second.origin, (parts[1],))
    for reader in readers:
        relation = relations[reader]
        assert isinstance(relation, Linear)
        maps = tuple(
            compose(parts[0], linear) if parent == pair.first else linear
            for parent, linear in zip(relation.parents, relation.maps, strict=True)
        )
        relations[reader] = replace(relation, maps=maps)


def stacked(increments: Increments, twins: Sequence[Twins]) -> Increments:
    """With each pair as one block: ‖(δz₁, δz₂)‖ ≤ g‖δv‖."""
    relations = increments.relations
    chosen: dict[int, tuple[Twins, BlockCell]] = {}
    for pair in twins:
        first, second = relations[pair.first], relations[pair.second]
        if isinstance(first, EntryCell) and isinstance(second, EntryCell):
            chosen[pair.first] = chosen[pair.second] = pair, _block(pair, first, second)
    return _Rewriter(chosen).rewritten(relations) if chosen else increments


def _block(pair: Twins, first: EntryCell, second: EntryCell) -> BlockCell:
    """Both cells as one, of shape (2, …), with constants that hold entry by entry, so for all entries together.

    A pair of slopes (s, t) has ‖(s, t)‖_p ≤ g_p for all that are possible: for (s, sign·s + slope) with s in an
    interval the norm is convex in s, so greatest at an end; else |s| and |t| are at most what each cell says.
    """
    if isinstance(pair, Mirrored):
        ends = torch.stack([first.lower, first.upper])
        sizes = ends.abs(), _up((pair.sign * ends).add(pair.slope).abs() + _loss(ends, pair.slope))
    else:
        sizes = tuple(torch.maximum(cell.lower.abs(), cell.upper.abs()) for cell in (first, second))  # type: ignore[assignment]
    gains = {q: _greatest(*sizes, q) for q in (1.0, 2.0, math.inf)}
    if isinstance(pair, Circle):
        gains[2.0] = min(gains[2.0], 1.0)
        gains[1.0] = min(gains[1.0], sqrt_up(2.0))
    shape: Shape = (2, *first.shape)
    name = f"{first.name}, {second.name}"
    source = "two activations of one value"
    return BlockCell(first.parents, shape, name, first.origin, first.node, gains, "gain", source)


def _loss(ends: Tensor, slope: float) -> Tensor:
    """What rounding may take from sign·s + slope."""
    return (ends.abs() + abs(slope)) * 2.0**-52


def _up(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))


def _greatest(s: Tensor, t: Tensor, p: float) -> float:
    """The greatest ‖(s_j, t_j)‖_p of numbers ≥ 0, rounded up."""
    if not s.numel():
        return 0.0
    if p == math.inf:
        return max(float(s.max()), float(t.max()))
    if p == 1.0:
        return float(_up(s + t).max())
    greatest = max(float(s.max()), float(t.max()))
    if not 1e-100 < greatest < 1e100:
        return mul_up(sqrt_up(2.0), greatest)
    squares = ((s / greatest).square() + (t / greatest).square()) * (1.0 + 2.0**-48)
    return mul_up(greatest, sqrt_up(add_up(float(squares.max()), 1e-300)))


class _Rewriter:
    """Relations anew, with blocks in place of pairs; linear relations read their parts through moves."""

    def __init__(self, chosen: dict[int, tuple[Twins, BlockCell]]) -> None:
        self.chosen = chosen
        self.relations: list[Relation] = []
        self.place: dict[int, int] = {}
        self.parts: dict[int, tuple[int, LinearMap]] = {}  # position of one of a pair → its block, and which part

    def rewritten(self, relations: Sequence[Relation]) -> Increments:
        """All of them."""
        for position, relation in enumerate(relations):
            if position in self.chosen:
                self._take(position, relation, *self.chosen[position])
            elif isinstance(relation, Linear):
                self.place[position] = self._append(self._read(relation))
            else:
                parents = tuple(self._at(p, relations) for p in relation.parents)
                self.place[position] = self._append(replace(relation, parents=parents))
        last = len(relations) - 1
        if last in self.parts:
            self._at(last, relations)
        return Increments(tuple(self.relations))

    def _append(self, relation: Relation) -> int:
        if isinstance(relation, Cell):
            relation = replace(relation, node=len(self.relations))
        self.relations.append(relation)
        return len(self.relations) - 1

    def _take(self, position: int, relation: Relation, pair: Twins, block: BlockCell) -> None:
        """The block at the first of a pair; each of the two is a part of it."""
        if position == pair.first:
            parent = self._append(replace(block, parents=(self._parent(relation),)))
        else:
            parent = self.parts[pair.first][0]
        entries = size(relation.shape)
        start = 0 if position == pair.first else entries
        self.parts[position] = parent, gather(torch.arange(start, start + entries), block.shape, relation.shape)

    def _parent(self, relation: Relation) -> int:
        (parent,) = relation.parents
        return self._at_shape(parent, relation.shape)

    def _at_shape(self, position: int, shape: Shape) -> int:
        if position not in self.place:
            self.place[position] = self._append(self._whole(position, shape))
        return self.place[position]

    def _at(self, position: int, relations: Sequence[Relation]) -> int:
        """Where a value is, written out if it is a part of a block."""
        return self._at_shape(position, relations[position].shape)

    def _whole(self, position: int, shape: Shape) -> Linear:
        block, move = self.parts[position]
        cell = self.relations[block]
        return Linear((block,), shape, cell.name, cell.origin, (move,))

    def _read(self, relation: Linear) -> Linear:
        terms: dict[int, LinearMap] = {}
        for parent, linear in zip(relation.parents, relation.maps, strict=True):
            place, moved = (self.place[parent], linear) if parent not in self.parts else self._part(parent, linear)
            terms[place] = add(terms[place], moved) if place in terms else moved
        return replace(relation, parents=tuple(terms), maps=tuple(terms.values()))

    def _part(self, parent: int, linear: LinearMap) -> tuple[int, LinearMap]:
        block, move = self.parts[parent]
        return block, compose(move, linear)
