"""LipSDP's multipliers and what its bound loses at each layer, seen from one increment."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.attack.pushforward import Pair, push
from lipcert.certificates.forms.multipliers import Notation, in_own_units, read_multipliers
from lipcert.errors import LipcertError
from lipcert.network.graph import PartNode
from lipcert.network.relations import BlockCell, Cell
from lipcert.report.findings import Layer, LayerTable
from lipcert.result import LowerWitness

if TYPE_CHECKING:
    from lipcert.increments import ScaledIncrements
    from lipcert.network.graph import Network, Node
    from lipcert.network.origin import Origins
    from lipcert.problem import Problem
    from lipcert.result import Bound, LowerBound


#: What float64 may leave of a number that is ≥ 0, as a share of the gap.
ROUNDING = 1e-6
#: Powers of two up to which the units of a form are worked with.
MODERATE = 200


@dataclass(frozen=True, eq=False)
class Sdp:
    """What the quadratic form says of every cell.

    The form is ρ‖x‖² + Σ λ_j (w_j² − v_j²) − ‖y‖² ≥ 0. At an increment of the network with ‖x‖ = 1 therefore
    ρ − ‖y‖² = Σ λ_j (v_j² − w_j²) + (the form there): what each layer gives away, and what is left.

    Attributes:
        value: √ρ, the bound.
        multipliers: λ of every cell, by the origin of its node, in order.
        slacks: Σ λ_j (v_j² − w_j²) over ρ − ‖y‖², of the same; empty where the witness does not fit the form.
    """

    value: float
    multipliers: dict[Origins, list[Tensor]]
    slacks: dict[Origins, list[float]]

    @classmethod
    def of(cls, problem: Problem, bound: Bound, lower: LowerBound | None) -> Sdp | None:
        """Of a Bound whose certificate is one quadratic form; None for others."""
        certificate = bound.certificate
        if certificate is None or certificate.kind != "quadratic" or bound.via is not None:
            return None
        layerwise = bool(certificate.witness.settings.get("layerwise", False))
        transformed = in_own_units(problem, layerwise)
        try:
            notation = Notation.of(certificate.witness, transformed)
            held = read_multipliers(certificate.witness, transformed, notation, 1)
        except LipcertError:  # several forms, or another problem's
            return None
        multipliers: dict[Origins, list[Tensor]] = defaultdict(list)
        for cell in transformed.cells:
            multipliers[cell.origin].append(held[cell.node][0])
        found = cls(bound.value, multipliers, defaultdict(list))
        network = problem.expanded if problem.is_expanded else problem.network
        moderate = max(map(abs, transformed.exponents)) < MODERATE  # squares of what is shown stay in float64
        if moderate and lower is not None and isinstance(lower.witness, LowerWitness) and _same(transformed, network):
            found._look(transformed, network, held, lower.witness)
        return found

    def _look(
        self, transformed: ScaledIncrements, network: Network, held: dict[int, Tensor], witness: LowerWitness
    ) -> None:
        shape = (1, *network.in_shape)
        direction = witness.direction.reshape(shape)
        losses: list[tuple[Origins, float]] = []

        def keep(position: int, _: Node, before: list[Pair], pair: Pair) -> Pair:
            cell = transformed.cell_at.get(position)
            if cell is not None:
                unit = 2.0 ** -transformed.exponents[position]
                losses.append((cell.origin, _given_away(cell, held[position][0], before[0][1] * unit, pair[1] * unit)))
            return pair

        with torch.no_grad():
            _, image = push(network.to(torch.float64, "cpu"), witness.point.reshape(shape), direction, hook=keep)
        length = float(direction.norm())
        steep = float(image.norm()) / length if length > 0 else 0.0
        gap = (self.value**2 - steep**2) / 4.0 ** transformed.exponents[-1]
        # a loss below 0 is no increment that the form is about
        if (
            min((loss for _, loss in losses), default=0.0) >= -ROUNDING * abs(gap) * length**2
            and gap > 1e-9 * self.value**2 / 4.0 ** transformed.exponents[-1]
        ):
            for origin, loss in losses:
                self.slacks[origin].append(loss / length**2 / gap)

    def added_to(self, table: LayerTable, network: Network) -> LayerTable:
        """The table with multipliers and slacks; cells of one node of the network are told together."""
        origins = [network.nodes[layer.position].origin for layer in table.layers]
        last = {origin: k for k, origin in enumerate(origins) if table.layers[k].kind != "linear"}
        layers: list[Layer] = []
        for k, (layer, origin) in enumerate(zip(table.layers, origins, strict=True)):
            values, slacks = self.multipliers.get(origin, []), self.slacks.get(origin, [])
            if layer.kind == "linear" or not values:
                layers.append(layer)
                continue
            rest = k == last[origin]  # of a module that is called several times each call has one, the last the rest
            joined = torch.cat(values) if rest else values[0]
            slack = (sum(slacks) if rest else slacks[0]) if slacks else None
            if not rest:
                self.multipliers[origin], self.slacks[origin] = values[1:], slacks[1:]
            spread = (float(joined.min()), float(joined.median()), float(joined.max())) if joined.numel() else None
            layers.append(replace(layer, multipliers=spread, slack=slack))
        known = [layer.slack for layer in layers if layer.slack is not None]
        return replace(table, layers=tuple(layers), sdp=self.value, form=1.0 - sum(known) if known else None)


def _same(transformed: ScaledIncrements, network: Network) -> bool:
    """Whether the form is about this network's nodes, one by one, and each has an increment of its own.

    Parts of a product have not: only their sum is a value.
    """
    relations = transformed.increments.relations
    if any(isinstance(node, PartNode) for node in network.nodes):
        return False
    return [(r.name, r.shape) for r in relations] == [(n.name, n.shape) for n in network.nodes]


def _given_away(cell: Cell, multipliers: Tensor, v: Tensor, z: Tensor) -> float:
    """Σ λ (v² − w²) with z = c v + d w."""
    inner, outer = v.reshape(-1), z.reshape(-1)
    c, d = cell.c.reshape(-1), cell.d.reshape(-1)
    if isinstance(cell, BlockCell) or cell.block:
        groups = cell.groups
        d = d.max() if d.numel() else d.new_zeros(())
        w = outer - c * inner if inner.numel() == outer.numel() else outer
        spent = (w / d if d > 0 else w).reshape(groups, -1).square().sum(1)
        return float((multipliers * (inner.reshape(groups, -1).square().sum(1) - spent)).sum())
    w = torch.where(d > 0, (outer - c * inner) / d.clamp(min=1e-300), torch.zeros_like(inner))
    return float((multipliers * (inner.square() - w.square())).sum())
