"""What underflow may take from a pass through a network whose maps are run as code and not written down."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lipcert.certificates.norms.scaling import absolute_sums, inner_reach, scaled
from lipcert.errors import NumericsError
from lipcert.increments import EntryCell, Linear, ScaledIncrements
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.rounding import UNDERFLOW, add_up, mul_up


class Amplification:
    """How far an absolute error at a node of scaled increments may grow until it reaches others.

    A product or sum of floats that underflows is off by at most the least normal number, whatever its factors. So a
    pass, forward or backward, loses at most ``loss`` at any node, in every p-norm: an error of that size in each of the
    numbers that the node's maps pass through, amplified inside a map by at most 2^reach. From there on errors grow by
    the norms of the maps between: here the greatest row or column sum of |W|, which bounds every ‖W‖_p and ‖Wᵀ‖_p.

    Raises:
        NumericsError: a map's norm lies outside the range of floats.
    """

    def __init__(self, transformed: ScaledIncrements) -> None:
        self.transformed = transformed
        self._norms: dict[int, tuple[Magnitude, ...]] = {}
        numbers, reach = 0, 0.0
        for k, maps in transformed.maps.items():
            norms = []
            for linear in maps:
                unit = scaled(linear)
                sums = absolute_sums(unit)
                greatest = max(float(s.max()) if s.numel() else 0.0 for s in sums)
                if not math.isfinite(greatest):
                    raise NumericsError("a linear map overflows float64; rescale the weights of the layers concerned.")
                norms.append(Magnitude.of(greatest).times_power(unit.exponent))
                numbers += sum(leaf.in_size + leaf.out_size for leaf in linear.leaves())
                reach = max(reach, inner_reach(linear))
            self._norms[k] = tuple(norms)
        numbers += sum(relation.size for relation in transformed.increments.relations)
        self.loss = Magnitude.of(mul_up(UNDERFLOW, 8.0, float(numbers), float(numbers))).times_power(math.ceil(reach))

    def forward(self, entering: Mapping[int, float]) -> list[Magnitude]:
        """Bounds of the factor from unit inputs, multiplied by ``entering`` where they enter, to every node."""
        result: list[Magnitude] = []
        for k, node in enumerate(self.transformed.increments.relations):
            value = Magnitude.of(entering.get(k, 0.0))
            if isinstance(node, Linear):
                for parent, norm in zip(node.parents, self._norms[k], strict=True):
                    value = value + norm * result[parent]
            elif isinstance(node, EntryCell) and node.size:
                value = value + Magnitude.of(float(node.c.abs().max())) * result[node.parent]
            result.append(value)
        return result

    def backward(self, leaving: Mapping[int, float]) -> list[Magnitude]:
        """Bounds of the factor from every node to all that is measured, multiplied by ``leaving`` where it is."""
        nodes = self.transformed.increments.relations
        result = [Magnitude.of(leaving.get(k, 0.0)) for k in range(len(nodes))]
        for k in range(len(nodes) - 1, -1, -1):
            node = nodes[k]
            if isinstance(node, Linear):
                for parent, norm in zip(node.parents, self._norms[k], strict=True):
                    result[parent] = result[parent] + norm * result[k]
            elif isinstance(node, EntryCell) and node.size:
                result[node.parent] = result[node.parent] + Magnitude.of(float(node.c.abs().max())) * result[k]
        return result

    def between_nodes(self) -> Magnitude:
        """What underflow may change of any map from (the w of) one node to another by, in every p-norm.

        Twice for the way back of a Gram map, and twice again as ‖GᵀG + E‖ ≥ (‖G‖ − 2δ)² for ‖E‖ ≤ 2δ‖G‖ + δ².
        """
        nodes = self.transformed.increments.relations
        widest = max(self.backward(dict.fromkeys(range(len(nodes)), 1.0)))
        entries = [cell for cell in self.transformed.cells if isinstance(cell, EntryCell) and cell.size]
        spread = max((float(cell.d.max()) for cell in entries), default=0.0)
        return Magnitude.of(add_up(4.0, mul_up(4.0, spread))) * Magnitude.of(float(len(nodes))) * widest * self.loss


def total(values: list[Magnitude]) -> Magnitude:
    """The sum, rounded up."""
    result = ZERO
    for value in values:
        result = result + value
    return result
