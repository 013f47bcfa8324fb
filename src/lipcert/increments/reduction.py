"""Entries whose slope is fixed are linear and leave the problem: what remains is a network of the free ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.network.linear import Identity, LinearMap, OpMap, Shape, add, compose
from lipcert.network.moves import gather, scatter
from lipcert.network.relations import Cell, EntryCell, Linear, Relation

if TYPE_CHECKING:
    pass

#: Up to this many free entries in all, linear relations are written from the input and the cells alone: a network of
#: thousands of neurons, of which few are free, becomes a small one. Beyond, layers stay layers.
FEW = 400


def reduced(relations: tuple[Relation, ...]) -> tuple[Relation, ...]:
    """The same increments of input and output, with cells of free entries only.

    A cell with some fixed entries δz_j = s_j δv_j becomes a linear relation of v for these, and a smaller cell of the
    others. Then every linear relation that only linear ones read goes into them.
    """
    builder = _Builder()
    for relation in relations:
        builder.take(relation)
    few = sum(cell.size for cell in builder.relations if isinstance(cell, Cell)) <= FEW
    return _merged(tuple(builder.relations), few)


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

    return OpMap("slopes", times, v_shape, shape, (factors.contiguous(),), "entries times constants", 1.0, stored=True)


def _merged(relations: tuple[Relation, ...], few: bool) -> tuple[Relation, ...]:
    """Linear relations put into the linear ones that read them: all of them if ``few``, else those read only once."""
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
        whole = replace(relation, parents=tuple(terms), maps=tuple(terms.values()))
        linear_readers = [r for r in readers[position] if isinstance(relations[r], Linear)]
        waits = len(linear_readers) == len(readers[position]) and (few or len(linear_readers) == 1)
        if position != last and waits and linear_readers:
            inner[position] = whole
            builder.place.append(-1)
        else:
            builder.place.append(builder.append(whole))
            if few and linear_readers:
                inner[position] = whole  # read by a cell as well: both keep their own
    return tuple(builder.relations)
