"""Entries whose slope is fixed are linear and leave the problem: what remains is a network of the free ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.increments.graph import Increments
from lipcert.network.linear import Composition, Identity, LinearMap, OpMap, Shape, Sum, add, compose
from lipcert.network.moves import DIAGONAL, gather, only_moves, scatter, simplified
from lipcert.network.relations import Cell, EntryCell, Linear, Relation

#: Up to this many free entries in all, linear relations are written from the input and the cells alone: a network of
#: thousands of neurons, of which few are free, becomes a small one. Up to ``MANY`` entries of input and cells this is
#: done where it makes proofs cheaper. Beyond, layers stay layers.
FEW, MANY = 400, 6000
#: Most paths that a map may be made of, which double at every residual block, and most factors of a path.
MOST_PATHS, LONGEST = 100, 12


def reduced(increments: Increments) -> Increments:
    """The same increments of input and output, with cells of free entries only; itself where all entries are free.

    A cell with some fixed entries δz_j = s_j δv_j becomes a linear relation of v for these, and a smaller cell of the
    others. Then every linear relation that only linear ones read goes into them.
    """
    if all(bool(cell.free.all()) for cell in increments.cells if isinstance(cell, EntryCell)):
        return increments
    builder = _Builder()
    for relation in increments.relations:
        builder.take(relation)
    relations = tuple(builder.relations)
    free = sum(cell.size for cell in relations if isinstance(cell, Cell))
    side = relations[0].size + free
    layers = _merged(relations, few=False)
    assert layers is not None
    if free > FEW and (side > MANY or side**3 > _layered_operations(layers)):
        return Increments(layers)
    return Increments(_merged(relations, few=True) or layers)


def _layered_operations(relations: tuple[Relation, ...]) -> float:
    """About what a proof layer by layer takes, in units in which a form of n entries takes n³.

    A layer's form has the entries that enter it, at most those of the input and the cells before, and those of its
    cell. To write its rows the map of a linear relation is multiplied by those of what it reads. A guess: it decides
    what a proof costs.
    """
    n = entering = relations[0].size
    total = 0.0
    for relation in relations[1:]:
        if isinstance(relation, Cell):
            v = relations[relation.parents[0]]
            whole = relations[v.parents[0]] if len(v.parents) == 1 and v.parents[0] else v
            total += float(min(entering, whole.size) + relation.size) ** 3
            entering += relation.size
        else:
            total += sum(
                2.0 * relation.size * relations[p].size * min(n, relations[p].size) for p in relation.parents if p
            )
    return total


def remaining(increments: Increments) -> tuple[int, ...]:
    """Positions of the cells of which ``reduced`` keeps entries, in order: relations that are numbered show them."""
    numbered = (replace(relation, name=str(k)) for k, relation in enumerate(increments.relations))
    return tuple(int(cell.name) for cell in reduced(Increments(tuple(numbered))).cells)


class _Builder:
    """Relations anew, one after the other, with the new place of every old one."""

    def __init__(self) -> None:
        self.relations: list[Relation] = []
        self.place: list[int] = []

    def append(self, relation: Relation) -> int:
        if isinstance(relation, Cell):
            relation = replace(relation, node=len(self.relations))
        self.relations.append(relation)
        return len(self.relations) - 1

    def take(self, relation: Relation) -> None:
        moved = replace(relation, parents=tuple(self.place[p] for p in relation.parents))
        free = moved.free if isinstance(moved, EntryCell) else None
        if not isinstance(moved, EntryCell) or free is None or bool(free.all()):
            self.place.append(self.append(moved))
            return
        (parent,), shape = moved.parents, moved.shape
        v_shape = self.relations[parent].shape
        fixed = torch.where(free.reshape(shape), 0.0, moved.lower)
        terms: list[tuple[int, LinearMap]] = [(parent, _diagonal(fixed, v_shape))]
        index = free.nonzero().reshape(-1)
        if len(index):
            small: Shape = (1, len(index))
            v = self.append(
                Linear((parent,), small, f"free part of {moved.name}", moved.origin, (gather(index, v_shape, small),))
            )
            lower, upper = (s.reshape(-1)[index].reshape(small) for s in (moved.lower, moved.upper))
            cell = self.append(EntryCell((v,), small, moved.name, moved.origin, 0, lower, upper))
            terms.append((cell, scatter(index, small, shape)))
        parents, maps = zip(*terms, strict=True)
        self.place.append(self.append(Linear(parents, shape, moved.name, moved.origin, maps)))


def _diagonal(factors: Tensor, v_shape: Shape) -> LinearMap:
    """Entry by entry times a stored number."""
    if bool((factors == factors.reshape(-1)[0]).all()) and v_shape == tuple(factors.shape):
        return Identity(v_shape, float(factors.reshape(-1)[0]))
    shape = tuple(factors.shape)

    def times(x: Tensor, c: Tensor) -> Tensor:
        return x.reshape(shape) * c

    def transposed(y: Tensor, c: Tensor) -> Tensor:
        return (y * c).reshape(len(y), *v_shape)

    constants = (factors.contiguous(),)
    return OpMap("slopes", times, v_shape, shape, constants, DIAGONAL, 1.0, stored=True, transposed=transposed)


def _merged(relations: tuple[Relation, ...], few: bool) -> tuple[Relation, ...] | None:
    """Linear relations put into the linear ones that read them: all of them if ``few``, else those read only once.

    Those that only move entries are put into all their readers in any case, so that what cancels is seen to. None where
    all of them would make maps of too many paths, or too long ones.
    """
    extents = _Extents()
    readers: list[list[int]] = [[] for _ in relations]
    for position, relation in enumerate(relations):
        for parent in relation.parents:
            readers[parent].append(position)
    builder = _Builder()
    inner: dict[int, Linear] = {}  # in new places, waiting to be put into their readers
    last = len(relations) - 1
    for position, relation in enumerate(relations):
        if not isinstance(relation, Linear):
            builder.place.append(
                builder.append(replace(relation, parents=tuple(builder.place[p] for p in relation.parents)))
            )
            continue
        terms: dict[int, LinearMap] = {}
        for parent, outer in zip(relation.parents, relation.maps, strict=True):
            own = inner.get(parent)
            pairs = [(builder.place[parent], outer)] if own is None else [
                (grand, compose(first, outer)) for grand, first in zip(own.parents, own.maps, strict=True)
            ]  # fmt: skip
            for grand, linear in pairs:
                if linear.is_zero:
                    continue
                terms[grand] = add(terms[grand], linear) if grand in terms else linear
        if few and extents.tangled(terms.values()):
            return None
        whole_maps = {grand: simplified(linear) for grand, linear in terms.items()}
        whole_maps = {grand: linear for grand, linear in whole_maps.items() if not linear.is_zero}
        whole = replace(relation, parents=tuple(whole_maps), maps=tuple(whole_maps.values()))
        linear_readers = [r for r in readers[position] if isinstance(relations[r], Linear)]
        worth = few or len(linear_readers) == 1 or all(only_moves(linear) for linear in whole.maps)
        waits = len(linear_readers) == len(readers[position]) and worth
        if position != last and waits and linear_readers:
            inner[position] = whole
            builder.place.append(-1)
        else:
            builder.place.append(builder.append(whole))
            if few and linear_readers:
                inner[position] = whole  # read by a cell as well: both keep their own
    return _reaching(tuple(builder.relations))


class _Extents:
    """Of maps: how many paths they are made of, and how many factors that do more than move or scale entries in a row.

    Counted once for each part, however often it occurs.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[LinearMap, int, int]] = {}

    def tangled(self, maps: Iterable[LinearMap]) -> bool:
        """Whether a map is made of too many paths, or too long ones.

        Roundings are counted relative to maps of absolute values, which grow with every path and every factor.
        """
        extents = [self.of(linear) for linear in maps]
        return any(paths > MOST_PATHS or length > LONGEST for paths, length in extents)

    def of(self, linear: LinearMap) -> tuple[int, int]:
        """(paths, factors on the longest)."""
        if not isinstance(linear, (Composition, Sum)):
            return 1, int(not only_moves(linear) and getattr(linear, "attributes", "") != DIAGONAL)
        if id(linear) not in self.known:
            paths, lengths = zip(*(self.of(part) for part in linear.maps), strict=True)
            whole = (sum(paths), max(lengths)) if isinstance(linear, Sum) else (math.prod(paths), sum(lengths))
            self.known[id(linear)] = linear, *whole
        return self.known[id(linear)][1:]


def _reaching(relations: tuple[Relation, ...]) -> tuple[Relation, ...]:
    """Those of which the last one depends, and the input."""
    needed = {0, len(relations) - 1}
    for position in range(len(relations) - 1, -1, -1):
        if position in needed:
            needed.update(relations[position].parents)
    if len(needed) == len(relations):
        return relations
    builder = _Builder()
    for position, relation in enumerate(relations):
        if position not in needed:
            builder.place.append(-1)
            continue
        moved = replace(relation, parents=tuple(builder.place[p] for p in relation.parents))
        builder.place.append(builder.append(moved))
    return tuple(builder.relations)
