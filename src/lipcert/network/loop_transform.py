"""The loop-transformed network: every nonlinearity as z = c·v + d·w with |w| ≤ |v|, in units of powers of two.

With α ≤ slope ≤ β, c = (α + β)/2 and d = (β − α)/2, a slope-restricted increment is δz = c δv + d δw with
|δw| ≤ |δv|; a gain block is the same with c = 0, d = g and ‖δw‖ ≤ ‖δv‖. What is left of the network is linear in
(δx, δw_1, …, δw_K): LipLT, LipSDP and their checks work on that linear network alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lipcert.errors import UnsupportedNormError
from lipcert.network.graph import ActivationNode, AffineNode, GainNode, InputNode, Network
from lipcert.network.linear import Dense, Identity, LinearMap, Shape, compose, size

#: From a gradient at a value to the gradient at what it was computed from.
Pull = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Cell:
    """A nonlinear node as z = c·v + d·w.

    Attributes:
        node, parent: positions of z and v in the network.
        c, d: float64 tensors of the node's shape (for a gain block: zeros and the gain); d is rounded up so that
            [c − d, c + d] contains [α, β].
        block: ‖w‖ ≤ ‖v‖ for the node as a whole instead of entry by entry.
    """

    node: int
    parent: int
    c: Tensor
    d: Tensor
    block: bool
    out_shape: Shape

    @property
    def size(self) -> int:
        """Number of entries of w (equal to z's)."""
        return size(self.out_shape)


def _cell(position: int, node: ActivationNode | GainNode, layerwise: bool = False, fixed: Tensor | None = None) -> Cell:
    if isinstance(node, ActivationNode):
        low, high = node.function.slopes(node.shape)
        c = (low + high) / 2
        d = torch.maximum(_difference_up(high, c), _difference_up(c, low))
        if fixed is not None:
            free = fixed.isnan()
            c, d = torch.where(free, c, fixed), torch.where(free, d, torch.zeros_like(d))
        return Cell(position, node.parents[0], c.contiguous(), d.contiguous(), layerwise, node.shape)
    gain = node.function.gains.get(2.0)
    if gain is None:
        raise UnsupportedNormError(f"{node.name} at {node.where} has no known l2 constant.")
    shape = node.shape
    return Cell(
        position, node.parents[0], torch.zeros(shape, dtype=torch.float64),
        torch.full(shape, gain, dtype=torch.float64), True, shape,
    )  # fmt: skip


CPU = torch.device("cpu")


def _difference_up(a: Tensor, b: Tensor) -> Tensor:
    """a − b ≥ 0, exact where the subtraction is (Knuth's two-sum tells), else rounded up."""
    difference = a - b
    back = difference - a
    error = (a - (difference - back)) + (-b - back)
    return torch.where(error == 0, difference, torch.nextafter(difference, torch.full_like(difference, math.inf)))


@dataclass(frozen=True, eq=False)
class LoopTransformed:
    """The linear network behind a (fused, selection-free) network, with a unit 2^e for every node.

    A node's true increment is 2^exponent times its value here; with units near the node's own scale, a hundred layers
    of norm 1e±6 neither overflow nor vanish. Powers of two make the change of units exact.

    Attributes:
        network: fused, without selections.
        exponents: one integer per node; a nonlinear node has its parent's, the input has 0.
        layerwise: one inequality ‖w‖ ≤ ‖v‖ per layer instead of one per neuron (weaker, fewer multipliers).
        dtype, device: where the maps' constants live.
        fixed: node → float64 slopes of the node's shape, NaN where a neuron is free: a fixed neuron is z = slope·v.
    """

    network: Network
    exponents: tuple[int, ...]
    layerwise: bool = False
    dtype: torch.dtype = torch.float64
    device: torch.device = CPU
    fixed: Mapping[int, Tensor] = field(default_factory=dict)

    def fixing(self, fixed: Mapping[int, Tensor]) -> LoopTransformed:
        """The same network with these slopes fixed and no others; the maps are shared."""
        result = replace(self, fixed=fixed)
        shared = {name: made for name, made in self.__dict__.items() if name in ("maps", "exact_maps")}
        result.__dict__.update(shared)
        return result

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The nonlinear nodes, in topological order."""
        nodes = self.network.nodes
        return tuple(
            _cell(k, node, self.layerwise, self.fixed.get(k))
            for k, node in enumerate(nodes)
            if isinstance(node, (ActivationNode, GainNode))
        )

    @cached_property
    def cell_at(self) -> Mapping[int, Cell]:
        """Position of a nonlinear node → its cell."""
        return {cell.node: cell for cell in self.cells}

    @cached_property
    def maps(self) -> Mapping[int, tuple[LinearMap, ...]]:
        """Position of an affine node → its maps in the units of both sides, small ones as matrices."""
        result: dict[int, tuple[LinearMap, ...]] = {}
        for k, node in enumerate(self.network.nodes):
            if isinstance(node, AffineNode):
                result[k] = tuple(
                    self._scaled(linear, self.exponents[parent] - self.exponents[k])
                    for parent, linear in zip(node.parents, node.maps, strict=True)
                )
        return result

    @cached_property
    def exact_maps(self) -> Mapping[int, tuple[LinearMap, ...]]:
        """As ``maps``, but in float64 with the original operations and their rounding counts, for checks."""
        return {
            k: tuple(
                _in_units(linear, self.exponents[parent] - self.exponents[k])
                for parent, linear in zip(node.parents, node.maps, strict=True)
            )
            for k, node in enumerate(self.network.nodes)
            if isinstance(node, AffineNode)
        }

    @cached_property
    def reached(self) -> tuple[Tensor, ...]:
        """For every node, 1.0 at entries that may depend on the input and 0.0 at those that do not, whatever x is."""
        reached: list[Tensor] = []
        for k, node in enumerate(self.network.nodes):
            if isinstance(node, InputNode):
                value = torch.ones(node.shape, dtype=torch.float64)
            elif isinstance(node, AffineNode):
                value = torch.zeros(node.shape, dtype=torch.float64)
                for linear, parent in zip(self.exact_maps[k], node.parents, strict=True):
                    with torch.no_grad():
                        value = value + linear.absolute().apply(reached[parent][None])[0]
            else:
                value = reached[self.cell_at[k].parent]
                value = value.max().expand(node.shape) if isinstance(node, GainNode) else value
            reached.append((value > 0).double())
        return tuple(reached)

    @cached_property
    def blind(self) -> Mapping[int, Tensor]:
        """Position of a nonlinear node → which entries of its v no input reaches: v = 0 there whatever x is."""
        return {cell.node: (self.reached[cell.parent] == 0).reshape(-1) for cell in self.cells}

    def _scaled(self, linear: LinearMap, exponent: int) -> LinearMap:
        scaled = _in_units(linear, exponent)
        if isinstance(scaled, Identity):
            return scaled
        if linear.in_size * linear.out_size <= DENSE_ENTRIES:
            matrix = scaled.matrix(torch.float64)
            return Dense((matrix.to(self.device, self.dtype),), scaled.in_shape, scaled.out_shape, math.inf)
        return scaled.to(self.dtype, self.device)

    def spread(self, inputs: Tensor, cell_output, upto: int | None = None):  # type: ignore[no-untyped-def]
        """Values of all nodes for a batch of input increments.

        Args:
            inputs: (B, *in_shape).
            cell_output: function (cell, v) → z, both (B, *shape).
            upto: last node wanted.

        Returns:
            List of node values, (B, *shape) each.
        """
        values: list[Tensor] = []
        last = len(self.network.nodes) - 1 if upto is None else upto
        for k, node in enumerate(self.network.nodes[: last + 1]):
            if isinstance(node, InputNode):
                values.append(inputs)
            elif isinstance(node, AffineNode):
                total = None
                for linear, parent in zip(self.maps[k], node.parents, strict=True):
                    image = linear.apply(values[parent])
                    total = image if total is None else total + image
                if total is None:
                    total = inputs.new_zeros(len(inputs), *node.shape)
                values.append(total)
            else:
                cell = self.cell_at[k]
                values.append(cell_output(cell, values[cell.parent]))
        return values

    def spread_both_ways(
        self, inputs: Tensor, cell_output: Callable[[Cell, Tensor], tuple[Tensor, Pull]]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor | None]]:
        """As ``spread``, with the way back.

        Args:
            inputs: (B, *in_shape).
            cell_output: function (cell, v) → z and the pull-back of a gradient from z to v.

        Returns:
            The output, and a function to call once: from a gradient there to the gradient at the input, or None where
            the output does not depend on it.
        """
        values: list[Tensor] = []
        ways: list[list[tuple[int, Pull]]] = []
        for k, node in enumerate(self.network.nodes):
            back: list[tuple[int, Pull]] = []
            if isinstance(node, InputNode):
                values.append(inputs)
            elif isinstance(node, AffineNode):
                total = None
                for linear, parent in zip(self.maps[k], node.parents, strict=True):
                    image, pull = linear.with_transpose(values[parent])
                    total = image if total is None else total + image
                    back.append((parent, pull))
                values.append(inputs.new_zeros(len(inputs), *node.shape) if total is None else total)
            else:
                cell = self.cell_at[k]
                z, pull = cell_output(cell, values[cell.parent])
                values.append(z)
                back.append((cell.parent, pull))
            ways.append(back)

        def pull_back(gradient: Tensor) -> Tensor | None:
            pending = {len(ways) - 1: gradient}
            at_input: Tensor | None = None
            for k in range(len(ways) - 1, -1, -1):
                g = pending.pop(k, None)
                if g is None:
                    continue
                if isinstance(self.network.nodes[k], InputNode):
                    at_input = g
                for parent, pull in ways[k]:
                    part = pull(g)
                    pending[parent] = pending[parent] + part if parent in pending else part
            return at_input

        return values[-1], pull_back


def _in_units(linear: LinearMap, exponent: int) -> LinearMap:
    """``2^exponent · linear``; a float holds 2^±1000, a deep rescaling may need more."""
    while exponent:
        step = max(-1000, min(1000, exponent))
        linear = compose(linear, Identity(linear.out_shape, 2.0**step))
        exponent -= step
    return linear


#: Linear maps up to this many entries are written down as matrices for speed.
DENSE_ENTRIES = 4_000_000


def natural_exponents(network: Network, seed: int = 0, columns: int = 4) -> tuple[int, ...]:
    """One exponent per node that brings a typical increment of the node to size about 1.

    A batch of random increments is sent through the loop-transformed network and renormalised node by node.
    """
    generator = torch.Generator().manual_seed(seed)
    exponents: list[int] = []
    values: list[Tensor] = []
    for k, node in enumerate(network.nodes):
        if isinstance(node, InputNode):
            value = torch.randn(columns, *node.shape, generator=generator, dtype=torch.float64)
            exponents.append(0)
            values.append(value / value.norm())
        elif isinstance(node, AffineNode):
            image, exponent = _affine_value(node, values, exponents)
            value = torch.zeros(columns, *node.shape, dtype=torch.float64) if image is None else image
            length = float(value.norm())
            shift = round(math.log2(length)) if 0 < length < math.inf else 0
            exponents.append(exponent + shift)
            values.append(value * 2.0**-shift)
        else:
            assert isinstance(node, (ActivationNode, GainNode))
            cell = _cell(k, node)
            v = values[cell.parent]
            exponents.append(exponents[cell.parent])
            if isinstance(node, GainNode):
                z = torch.randn(columns, *node.shape, generator=generator, dtype=torch.float64)
                values.append(cell.d * z * (v.norm() / z.norm().clamp(min=1e-300)))
            else:
                u = torch.randn(v.shape, generator=generator, dtype=torch.float64)
                w = u * (v.norm(dim=0) / u.norm(dim=0).clamp(min=1e-300))
                values.append(cell.c * v + cell.d * w)
    return tuple(exponents)


def _affine_value(node: AffineNode, values: Sequence[Tensor], exponents: Sequence[int]) -> tuple[Tensor | None, int]:
    """Value of an affine node in the largest of its parents' units, and that unit."""
    if not node.parents:
        return None, 0
    exponent = max(exponents[p] for p in node.parents)
    total: Tensor | None = None
    for linear, parent in zip(node.maps, node.parents, strict=True):
        value = values[parent] * 2.0 ** max(-1000, exponents[parent] - exponent)
        with torch.no_grad():
            image = linear.to(torch.float64, "cpu").apply(value)
        total = image if total is None else total + image
    return total, exponent
