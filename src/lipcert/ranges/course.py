"""Ranges worked out along the graph together with constants: how far a node goes on a ball follows from its constant.

Boxes alone are of little use behind a few layers: one of half-widths δ around n entries reaches √n times farther than
the ball that it is around, node after node.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.domain import Ball, Box, Domain, Intersection
from lipcert.network.attention_bound import Factors
from lipcert.network.graph import ActivationNode, GainNode, HeadNode, InputNode, Network, Node, OpenNode, PartNode
from lipcert.network.linear import size
from lipcert.network.relations import Local, LocalGains, LocalSlopes, Relation
from lipcert.network.slopes import slopes
from lipcert.numerics.interval import Around, Interval
from lipcert.numerics.midrad import TINY, UP
from lipcert.numerics.rounding import add_up, mul_up
from lipcert.numerics.rows import length_up
from lipcert.ranges.build import Ranges, applied, boxes_of


def middle_and_reach(domain: Domain) -> tuple[Tensor, float]:
    """A point of the domain, and how far others are from it in l2, rounded up; ∞ where that is not bounded.

    Of ``home``, which of a box may be a corner, and the middle of what bounds the domain the one with the least reach.
    """
    assert domain is not None
    low, high = domain.bounds()
    points = [domain.home()]
    middle = 0.5 * low + 0.5 * high
    if bool(middle.isfinite().all()) and domain.contains(middle):
        points.append(middle)
    return min(((point, _reach(domain, point, low, high)) for point in points), key=lambda pair: pair[1])


def _reach(domain: Box | Ball | Intersection, point: Tensor, low: Tensor, high: Tensor) -> float:
    """By the bounds, and by balls in l1 and l2 that the domain is a part of."""
    far = torch.maximum(high - point, point - low).reshape(1, -1) * UP
    least = float(length_up(far)) if bool(far.isfinite().all()) else math.inf
    for ball in domain.balls():
        if ball.p <= 2:
            off = (point - ball.center).reshape(1, -1) * UP
            least = min(least, add_up(ball.radius, float(length_up(off)) if bool(off.any()) else 0.0))
    return least


def reach_of(domain: Domain) -> float:
    """How far points of the domain may be from one of them in l2, rounded up; ∞ where that is not bounded."""
    return math.inf if domain is None else middle_and_reach(domain)[1]


class Course:
    """The relations of a network's nodes, each from the constants of the nodes before.

    Why these hold: let x̂ be a point of the convex domain, none of whose points is farther from it than ρ. If
    ‖z(x) − z(x')‖ ≤ ℓ‖x − x'‖ in l2 for the argument z of a node and all points of the domain, z(x) lies within ℓρ of
    z(x̂), and so does each entry with a constant of its own. Between points of that set, which is convex, the node's
    increment obeys the relation that ``Around`` gives. So if all constants told so far are true, the next relation is.
    z(x̂) is known but for its roundings, which are added.

    Args:
        network: whose parts may be nearly linear.
        domain: bounded.
    """

    def __init__(self, network: Network, domain: Domain) -> None:
        assert domain is not None
        self.network = network
        self.home, self.radius = middle_and_reach(domain)
        self.ranges = Ranges.of(network, domain, None, "none")
        self.boxes = self.ranges.boxes
        self.asked = asked(network)
        self._centres = self._run(network)
        self._constants: list[float] = []
        self._entries: dict[int, Tensor] = {}
        self._parts: dict[tuple[int, ...], tuple[Local, ...]] = {}

    def _run(self, network: Network) -> list[Interval]:
        """The values at x̂."""
        return boxes_of(network, Box(self.home, self.home), "none")

    def relation(self, k: int) -> Relation:
        """What node k's increments obey; the constants of all nodes before have been told."""
        node = self.network.nodes[k]
        return node.relation(k, self._local(k, node))

    def tell(self, constant: float, entries: Tensor | None = None) -> None:
        """A constant of the next node, and of each of its entries."""
        k = len(self._constants)
        self._constants.append(constant)
        if entries is not None:
            self._entries[k] = entries

    def closed(self, k: int) -> tuple[Factors, float] | None:
        """Of the output of attention factors of Q, Kᵀ and V (``attention_factors``), and what is to be added.

        None where the node is none, or nothing is known.
        """
        node = self.network.nodes[k]
        if not isinstance(node, HeadNode) or any(isinstance(self.network.nodes[p], PartNode) for p in node.parents):
            return None
        found = node.factors([self._around(p) for p in node.parents[1:]])
        return None if found is None else (found, 0.0)

    def is_scaling(self, k: int) -> bool:
        """Whether node k scales the entries of an argument for a rest."""
        node = self.network.nodes[k]
        return isinstance(node, PartNode) and node.which in node.function.chain.values()

    def _local(self, k: int, node: Node) -> Local | None:
        """What the node's increments obey where its arguments are around their centres."""
        known = self._known(k)
        if isinstance(node, PartNode):
            key = (id(node.function), *node.arguments)
            if key not in self._parts:
                found = node.function.obeyed([self._around(p) for p in node.arguments])
                lost = any(isinstance(part, LocalGains) and not part.gains for part in found)
                self._parts[key] = () if lost else found
            return self._parts[key][node.which] if self._parts[key] else known
        function = applied(node)
        if function is None:
            return known
        box = self._around(node.parents[0]).expanded(node.shape)
        lower, upper = slopes(function, box.low, box.high)
        return LocalSlopes(lower.expand(node.shape), upper.expand(node.shape), box)

    def _known(self, k: int) -> Local | None:
        """What the node's increments obey by its own box."""
        return self.ranges.local.get(k)

    def _around(self, k: int) -> Interval:
        """The values of node k: in their box, and as near to those at x̂ as constants say."""
        centre, box = self._centres[k], self.boxes[k]
        shape = box.low.shape
        middle = 0.5 * centre.low + 0.5 * centre.high
        off = torch.maximum(centre.high - middle, middle - centre.low) * UP + TINY
        reach = mul_up(self._constants[k], self.radius) if self.radius else 0.0
        if not bool(off.isfinite().all()) or math.isnan(reach):
            return box
        far = torch.full(shape, reach, dtype=torch.float64)
        if k in self._entries:
            own = (self._entries[k] * self.radius * UP + TINY).reshape(shape)
            far = torch.where(own < far, own, far)
        far = (far + off) * UP
        low, high = torch.maximum(box.low, _below(middle - far)), torch.minimum(box.high, _above(middle + far))
        if bool((low > high).any()):
            return box
        return Around(low, high, middle, (reach + float(length_up(off.reshape(1, -1)))) * UP)


def asked(network: Network) -> set[int]:
    """Positions whose constants decide a relation, and the output's."""
    found = {len(network.nodes) - 1}
    for k, node in enumerate(network.nodes):
        if isinstance(node, PartNode):
            found.update(node.parents)
        elif isinstance(node, HeadNode):
            found.add(k)
        elif isinstance(node, (ActivationNode, GainNode, OpenNode)):
            found.update(node.parents[:1])
    return {k for k in found if not isinstance(network.nodes[k], InputNode)}


def sides(network: Network) -> list[tuple[float, float]]:
    """(entries, entries of the input and all cells before) of every node whose constant is asked for."""
    columns, found, wanted = float(size(network.in_shape)), [], asked(network)
    for k, node in enumerate(network.nodes):
        entries = float(size(node.shape))
        if k in wanted:
            found.append((entries, columns))
        columns += entries if is_source(node) else 0.0
    return found


def is_source(node: Node) -> bool:
    """Whether a node's increment is more than a linear map of others."""
    rest = isinstance(node, PartNode) and node.which in node.function.chain
    return rest or isinstance(node, (ActivationNode, GainNode, OpenNode))


def _below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _above(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))
