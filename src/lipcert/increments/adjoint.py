"""The increments of the transposed: every relation backwards, from the output to the input."""

from __future__ import annotations

import math
from dataclasses import replace

from lipcert.errors import UnsupportedNormError
from lipcert.increments.graph import Increments
from lipcert.network.adjoint import adjoint as turned
from lipcert.network.linear import Identity, LinearMap
from lipcert.network.relations import BlockCell, Cell, EntryCell, Linear, Relation, Start

#: 1/p + 1/p* = 1.
DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


def adjoint(increments: Increments) -> Increments:
    """Relations of (δy*, …, δx*) such that every J with δy = J δx that the given ones allow has its Jᵀ among these.

    Why: what obeys the relations is δy = Jδx with J a sum over paths of products of maps, of diagonal matrices of
    slopes and, for blocks, of a matrix S with δz = Sδv: the block's mean derivative between the two points, of norm at
    most g_p in every p for which it has a gain. Jᵀ is the sum over the same paths backwards, of transposed maps, the
    same slopes, and Sᵀ, whose norm p* → p* is that of S in p → p. So ‖δy‖_q ≤ sup ‖J‖_{p→q} ‖δx‖_p, and
    sup ‖J‖_{p→q} = sup ‖Jᵀ‖_{q*→p*}.

    Raises:
        UnsupportedNormError: a relation without a transposed.
    """
    relations = increments.relations
    result: list[Relation] = []
    place: dict[int, int] = {}  # node → where what comes back to it is
    through: dict[int, int] = {}  # cell → where that is behind it

    def append(relation: Relation) -> int:
        result.append(replace(relation, node=len(result)) if isinstance(relation, Cell) else relation)
        return len(result) - 1

    for k in range(len(relations) - 1, -1, -1):
        relation = relations[k]
        if k == len(relations) - 1:
            place[k] = append(Start((), relation.shape, relation.name, relation.origin))
            if k == 0:
                place[k] = append(_linear(relation, [(place[k], Identity(relation.shape))]))
        else:
            terms: list[tuple[int, LinearMap]] = []
            for reader in increments.consumers[k]:
                other = relations[reader]
                if isinstance(other, Linear):
                    terms.append((place[reader], turned(other.maps[other.parents.index(k)])))
                elif len(other.parents) != 1:
                    raise UnsupportedNormError(f"{other.name} at {other.where} has no transposed.")
                else:
                    terms.append((through[reader], Identity(relation.shape)))
            place[k] = append(_linear(relation, terms))
        if isinstance(relation, Cell):
            through[k] = append(_cell(relation, place[k], relations[relation.parent]))
    return Increments(tuple(result))


def _linear(relation: Relation, terms: list[tuple[int, LinearMap]]) -> Linear:
    parents, maps = tuple(p for p, _ in terms), tuple(m for _, m in terms)
    return Linear(parents, relation.shape, relation.name, relation.origin, maps)


def _cell(cell: Cell, parent: int, v: Relation) -> Cell:
    if isinstance(cell, EntryCell):
        if v.shape != cell.shape:
            raise UnsupportedNormError(f"{cell.name} at {cell.where} changes the shape of its argument.")
        return replace(cell, parents=(parent,))
    if not isinstance(cell, BlockCell):
        raise UnsupportedNormError(f"{cell.name} at {cell.where} has no transposed.")
    gains = {DUAL[p]: gain for p, gain in cell.gains.items()}
    return replace(cell, parents=(parent,), shape=v.shape, gains=gains)
