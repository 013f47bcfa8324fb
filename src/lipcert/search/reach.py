"""Which entries of a network's values may depend on its input, whatever the input is: for searches alone."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lipcert.increments import Cell, EntryCell, Increments, Linear

_REACHED: WeakKeyDictionary[Increments, tuple[Tensor, ...]] = WeakKeyDictionary()
_UNREACHED: WeakKeyDictionary[Increments, Mapping[int, Tensor]] = WeakKeyDictionary()


def reached(increments: Increments) -> tuple[Tensor, ...]:
    """For every node, 1.0 at entries that may depend on the input and 0.0 at those that do not.

    The maps are run in floating point, where a product may underflow: good enough for a search, and no proof.
    """
    if increments not in _REACHED:
        ones = torch.ones(increments.in_shape, dtype=torch.float64)
        _REACHED[increments] = tuple(increments.walk(lambda *_: ones, _linear, _cell))
    return _REACHED[increments]


def unreached(increments: Increments) -> Mapping[int, Tensor]:
    """Position of a cell → which entries of its v, flattened, no input reaches: δv = 0 there."""
    if increments not in _UNREACHED:
        known = reached(increments)
        _UNREACHED[increments] = {cell.node: (known[cell.parent] == 0).reshape(-1) for cell in increments.cells}
    return _UNREACHED[increments]


def _linear(_: int, relation: Linear, inputs: list[Tensor]) -> Tensor:
    value = torch.zeros(relation.shape, dtype=torch.float64)
    for map_, before in zip(relation.maps, inputs, strict=True):
        with torch.no_grad():
            value = value + map_.absolute().apply(before[None])[0]
    return (value > 0).double()


def _cell(_: int, relation: Cell, before: Tensor) -> Tensor:
    return before if isinstance(relation, EntryCell) else before.max().expand(relation.shape)
