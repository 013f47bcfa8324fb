"""Increments in units of powers of two, so that a hundred layers of norm 1e±6 neither overflow nor vanish."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.network.linear import Dense, Identity, LinearMap, compose
from lipcert.network.relations import Cell, EntryCell, Linear

if TYPE_CHECKING:
    from lipcert.increments.graph import Increments


#: Linear maps up to this many entries are written down as matrices for speed.
DENSE_ENTRIES = 4_000_000


@dataclass(frozen=True, eq=False)
class ScaledIncrements:
    """Increments with a unit 2^e for every node.

    A node's true increment is 2^exponent times its value here. Powers of two make the change of units exact.

    Attributes:
        increments: in true units.
        exponents: one integer per node; a cell has its parent's, the input has 0.
    """

    increments: Increments
    exponents: tuple[int, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells: v and z have the same unit, so they are those of the increments."""
        return self.increments.cells

    @property
    def cell_at(self) -> Mapping[int, Cell]:
        """Position → cell."""
        return self.increments.cell_at

    @cached_property
    def maps(self) -> Mapping[int, tuple[LinearMap, ...]]:
        """Position of a linear relation → its maps in the units of both sides, with their rounding counts."""
        return {
            k: tuple(
                in_units(linear, self.exponents[parent] - self.exponents[k])
                for parent, linear in zip(relation.parents, relation.maps, strict=True)
            )
            for k, relation in self.increments.linears.items()
        }

    def run(
        self,
        inputs: Tensor,
        cell_output: Callable[[Cell, Tensor], Tensor],
        maps: Mapping[int, Sequence[LinearMap]] | None = None,
    ) -> list[Tensor]:
        """Values of all nodes for a batch of input increments.

        Args:
            inputs: (B, *in_shape).
            cell_output: function (cell, v) → z, both (B, *shape).
            maps: what to use for ``maps``, ``matrices`` perhaps.

        Returns:
            List of node values, (B, *shape) each.
        """
        used = self.maps if maps is None else maps

        def linear(k: int, relation: Linear, before: list[Tensor]) -> Tensor:
            images = [m.apply(value) for m, value in zip(used[k], before, strict=True)]
            return sum(images[1:], images[0]) if images else inputs.new_zeros(len(inputs), *relation.shape)

        return self.increments.walk(lambda *_: inputs, linear, lambda _, cell, v: cell_output(cell, v))

    @cached_property
    def matrices(self) -> Mapping[int, tuple[LinearMap, ...]]:
        """``maps`` for speed, in float64: small ones as matrices, their roundings not counted."""
        return self.written(torch.float64, "cpu")

    def written(self, dtype: torch.dtype, device: torch.device | str) -> dict[int, tuple[LinearMap, ...]]:
        """As ``matrices``, with constants in ``dtype`` on ``device``."""

        def one(linear: LinearMap) -> LinearMap:
            if isinstance(linear, Identity) or linear.in_size * linear.out_size > DENSE_ENTRIES:
                return linear.to(dtype, device)
            matrix = linear.matrix(torch.float64).to(device, dtype)
            return Dense((matrix,), linear.in_shape, linear.out_shape, math.inf)

        return {k: tuple(one(linear) for linear in maps) for k, maps in self.maps.items()}

    def fixing(self, slopes: Mapping[int, Tensor]) -> ScaledIncrements:
        """The same with these slopes fixed; the maps are shared."""
        result = replace(self, increments=self.increments.fixing(slopes))
        object.__setattr__(result, "maps", self.maps)
        return result


def in_units(linear: LinearMap, exponent: int) -> LinearMap:
    """``2^exponent · linear``; a float holds 2^±1000, a deep rescaling may need more."""
    while exponent:
        step = max(-1000, min(1000, exponent))
        linear = compose(linear, Identity(linear.out_shape, 2.0**step))
        exponent -= step
    return linear


def natural_exponents(increments: Increments, seed: int = 0, columns: int = 4) -> tuple[int, ...]:
    """One exponent per node that brings a typical increment of the node to size about 1.

    A batch of random increments is sent through the relations and renormalised node by node.
    """
    generator = torch.Generator().manual_seed(seed)
    exponents: list[int] = []

    def start(_: int, relation: object) -> Tensor:
        value = torch.randn(columns, *increments.in_shape, generator=generator, dtype=torch.float64)
        exponents.append(0)
        return value / value.norm()

    def linear(_: int, relation: Linear, before: list[Tensor]) -> Tensor:
        image, exponent = _image(relation, before, [exponents[p] for p in relation.parents])
        value = torch.zeros(columns, *relation.shape, dtype=torch.float64) if image is None else image
        length = float(value.norm())
        shift = round(math.log2(length)) if 0 < length < math.inf else 0
        exponents.append(exponent + shift)
        return value * 2.0**-shift

    def cell(_: int, relation: Cell, v: Tensor) -> Tensor:
        exponents.append(exponents[relation.parent])
        u = torch.randn(columns, *relation.shape, generator=generator, dtype=torch.float64)
        if not isinstance(relation, EntryCell):
            return relation.d * u * (v.norm() / u.norm().clamp(min=1e-300))
        w = u * (v.norm(dim=0) / u.norm(dim=0).clamp(min=1e-300))
        return relation.c * v + relation.d * w

    increments.walk(start, linear, cell)
    return tuple(exponents)


def _image(relation: Linear, values: Sequence[Tensor], exponents: Sequence[int]) -> tuple[Tensor | None, int]:
    """Value of a linear relation in the largest of its parents' units, and that unit."""
    if not values:
        return None, 0
    exponent = max(exponents)
    total: Tensor | None = None
    for linear, value, own in zip(relation.maps, values, exponents, strict=True):
        with torch.no_grad():
            image = linear.to(torch.float64, "cpu").apply(value * 2.0 ** max(-1000, own - exponent))
        total = image if total is None else total + image
    return total, exponent
