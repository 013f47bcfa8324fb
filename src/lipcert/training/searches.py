"""AutoLip, LipLT and LipSDP as smooth functions of the parameters at a point that is moved from step to step.

Each is a maximum over a point: unit vectors of maps, or the vectors of LipSDP's dual. At the point the value is a
function of the parameters whose gradient costs one pass; where the point is a maximum it is that of the maximum
(envelope theorem). One pass gives that gradient and the next point of the power method, too. Values lie below what the
methods give, the further the less the point has settled: they are estimates and no bounds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lipcert.errors import UnsupportedNormError
from lipcert.increments import BlockCell, Cell, EntryCell, Increments, Linear
from lipcert.network.graph import Network, SelectionNode
from lipcert.network.linear import size
from lipcert.network.transform import expand, fuse
from lipcert.problem import Norm
from lipcert.search.sphere_ascent import input_axes, scaled_to_unit, unit
from lipcert.training.layers import Layers, Template, alone, widened

#: Point of a search by the names of its parts.
State = dict[str, Tensor]


class Search(ABC):
    """A method's value at a point.

    Attributes:
        name: of the method, as ``lipcert.bound`` knows it.
        expands: whether maxima and sorts are written as linear maps and ReLUs.
        norm: of inputs and of outputs.
    """

    name: ClassVar[str]
    expands: ClassVar[bool]

    def __init__(self, network: Network, norm: Norm = (2.0, 2.0)) -> None:
        self.norm = norm
        self._require_norm(size(network.out_shape))
        selects = any(isinstance(node, SelectionNode) for node in network.nodes)
        self.template = Template.of(fuse(expand(network) if self.expands and selects else network))
        for cell in self.template.increments.cells:
            if isinstance(cell, BlockCell) and 2.0 not in cell.gains:
                raise UnsupportedNormError(f"{cell.name} at {cell.where} has no known constant in l2.")

    def _require_norm(self, outputs: int) -> None:
        """Raise UnsupportedNormError if it cannot follow a constant between these norms."""
        if self.norm != (2.0, 2.0):
            raise UnsupportedNormError(
                f"training follows {self.name} in l2 only, not from l{self.norm[0]:g} to l{self.norm[1]:g}; "
                "method='lipsdp' follows constants from l2 or l∞ to l2 or l1."
            )

    @property
    def increments(self) -> Increments:
        """What is searched, with the numbers of the capture."""
        return self.template.increments

    @abstractmethod
    def start(self, generator: torch.Generator) -> State:
        """A random point, float64."""

    @abstractmethod
    def value(self, layers: Layers, point: Mapping[str, Tensor]) -> Tensor:
        """The value at a point, a differentiable scalar in parameters and point."""

    def moved(self, point: State, gradients: Mapping[str, Tensor | None]) -> State:
        """The next point: where the gradients point, part by part; a part whose gradient vanishes stays."""
        return {
            name: old if (g := gradients[name]) is None else self._unit(name, g, old) for name, old in point.items()
        }

    def _unit(self, name: str, g: Tensor, old: Tensor) -> Tensor:
        """Rows (B, …) of unit length."""
        return scaled_to_unit(g, old, tuple(range(1, g.dim())))


def norm(x: Tensor) -> Tensor:
    """‖x‖₂ of all entries, with a gradient of 0 at 0."""
    length: Tensor = torch.linalg.vector_norm(x)
    return length


class AutoLipSearch(Search):
    """L_k = Σ_i ‖A_i‖ L_i along the graph (Scaman & Virmaux 2018), every norm at a unit vector."""

    name = "autolip"
    expands = False

    def start(self, generator: torch.Generator) -> State:
        """A vector for each map."""
        found = {}
        for k, relation in self.increments.linears.items():
            for t, linear in enumerate(relation.maps):
                found[f"{k}.{t}"] = _random((1, *linear.in_shape), generator)
        return found

    def value(self, layers: Layers, point: Mapping[str, Tensor]) -> Tensor:
        """Of the output."""
        return self.constants(layers, point)[-1]

    def constants(self, layers: Layers, point: Mapping[str, Tensor], but_last: bool = False) -> list[Tensor]:
        """Of all relations; of the last one 0 with ``but_last``."""
        one = next(iter(point.values())).new_ones(())
        last = len(self.increments.relations) - 1

        def linear(k: int, _: Linear, before: list[Tensor]) -> Tensor:
            if but_last and k == last:
                return 0.0 * one
            pairs = enumerate(zip(layers.maps[k], before, strict=True))
            parts = [norm(alone(m, point[f"{k}.{t}"])) * v for t, (m, v) in pairs]
            return sum(parts[1:], parts[0]) if parts else 0.0 * one

        def cell(k: int, _: Cell, v: Tensor) -> Tensor:
            return v * layers.gain(k)

        return layers.increments.walk(lambda *_: one, linear, cell)


class LipLTSearch(Search):
    """ℓ_j = ‖A_{j←0}‖ + Σ_i ‖A_{j←i} diag(d_i)‖ ℓ_i over the cells i before j (Fazlyab et al. 2023).

    A_{j←i} is the map to j from the free part of cell i, or from the input, through the middle slopes of the cells
    between. All pairs run in one batch that grows from cell to cell.
    """

    name = "liplt"
    expands = True

    def __init__(self, network: Network, norm: Norm = (2.0, 2.0)) -> None:
        super().__init__(network, norm)
        increments = self.increments
        wanted = sorted({cell.parent for cell in increments.cells} | {len(increments.relations) - 1})
        sources = [0, *(cell.node for cell in increments.cells)]
        reach = {i: _reached(increments, i) for i in sources}
        #: source → nodes whose ℓ needs its norm, in order
        self.targets = {i: [j for j in wanted if j in reach[i] and j > 0] for i in sources}
        self.targets = {i: js for i, js in self.targets.items() if js}
        self.rows: dict[tuple[int, int], int] = {}
        for i, js in self.targets.items():
            for j in js:
                self.rows[i, j] = len(self.rows)
        self.first = {i: self.rows[i, js[0]] for i, js in self.targets.items()}
        self.wanted = wanted

    def start(self, generator: torch.Generator) -> State:
        """A vector for each pair."""
        shapes = {i: self.increments.relations[i].shape for i in self.targets}
        return {str(i): _random((len(js), *shapes[i]), generator) for i, js in self.targets.items()}

    def value(self, layers: Layers, point: Mapping[str, Tensor]) -> Tensor:
        """Of the output."""
        increments = self.increments

        def cell(relation: Cell, v: Tensor, c: Tensor, d: Tensor) -> Tensor:
            i = relation.node
            through = c * v if isinstance(relation, EntryCell) else v.new_zeros(len(v), *relation.shape)
            if i not in self.targets:
                return through
            return torch.cat([widened(through, self.first[i]), d * point[str(i)]])

        any_part = next(iter(point.values()))
        start = point["0"] if "0" in point else any_part.new_zeros(0, *increments.in_shape)
        values = layers.run(start, cell)
        lengths: dict[int, Tensor] = {}
        for j in self.wanted:
            total = any_part.new_ones(()) if j == 0 else any_part.new_zeros(())
            for i in self.targets:
                if j in self.targets[i] and j != 0:
                    before = 1.0 if i == 0 else lengths[increments.cell_at[i].parent]
                    total = total + norm(values[j][self.rows[i, j]]) * before
            lengths[j] = total
        return lengths[self.wanted[-1]]


class LipSDPSearch(Search):
    """√ of LipSDP's dual at a point: the largest ‖Y‖ for X and unit vectors u_j in R^columns (docs/soundness.md).

    Input norm 2: ‖X‖_F = 1; ∞: every entry of the input has a unit vector. Output norm 2: ‖Y‖_F; 1: Σ_i ‖y_i‖.
    Several ``problems`` have a point each.
    """

    name = "lipsdp"
    expands = True

    def __init__(self, network: Network, columns: int, norm: Norm = (2.0, 2.0), problems: int = 1) -> None:
        super().__init__(network, norm)
        self.columns, self.problems = columns, problems

    def _require_norm(self, outputs: int) -> None:
        p, q = self.norm
        if p == 1.0 or (q == math.inf and outputs > 1):
            raise UnsupportedNormError(
                f"training follows constants from l2 or l∞ to l2 or l1, not from l{p:g} to l{q:g}. To l∞ is the "
                "largest constant of one output: follow one, with select= its row."
            )

    def start(self, generator: torch.Generator) -> State:
        """X and the u_j of every cell, (problems, columns, …)."""
        increments, first = self.increments, (self.problems, self.columns)
        x = torch.randn(*first, *increments.in_shape, generator=generator, dtype=torch.float64)
        found = {"x": scaled_to_unit(x, None, input_axes(x, self.norm))}
        for cell in increments.cells:
            u = torch.randn(*first, *cell.shape, generator=generator, dtype=torch.float64)
            found[str(cell.node)] = unit(u, None, cell)
        return found

    def value(self, layers: Layers, point: Mapping[str, Tensor]) -> Tensor:
        """‖Y‖ of the one problem."""
        y = self.outputs(layers, point)[0]
        return torch.linalg.vector_norm(y, dim=0).sum() if self.norm[1] == 1.0 else norm(y)

    def outputs(self, layers: Layers, point: Mapping[str, Tensor]) -> Tensor:
        """Y of each problem, (problems, columns, *out_shape)."""
        tiny = torch.finfo(point["x"].dtype).tiny

        def cell(relation: Cell, v: Tensor, c: Tensor, d: Tensor) -> Tensor:
            u = point[str(relation.node)]
            w = v.reshape(u.shape)
            if not relation.block:
                return (c * w + (d * (w.square().sum(1, keepdim=True) + tiny).sqrt()) * u).reshape(v.shape)
            runs = w.reshape(*w.shape[:2], relation.groups, -1)
            lengths = (runs.square().sum(dim=(1, 3)) + tiny).sqrt()
            spread = lengths.repeat_interleave(relation.size // relation.groups, dim=1)
            return (d * spread.reshape(-1, 1, *relation.shape) * u).reshape(v.shape)

        y = layers.run(point["x"].flatten(0, 1), cell)[-1]
        return y.reshape(self.problems, self.columns, *y.shape[1:])

    def _unit(self, name: str, g: Tensor, old: Tensor) -> Tensor:
        if name == "x":
            return scaled_to_unit(g, old, input_axes(g, self.norm))
        return unit(g, old, self.increments.cell_at[int(name)])


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return scaled_to_unit(x, x, tuple(range(1, x.dim())))


def _reached(increments: Increments, source: int) -> set[int]:
    """The relations that a path leads to from ``source`` without passing a block, which starts anew."""
    found = {source}
    for k in range(source + 1, len(increments.relations)):
        relation = increments.relations[k]
        if isinstance(relation, BlockCell) and k != source:
            continue
        if any(p in found for p in relation.parents):
            found.add(k)
    return found
