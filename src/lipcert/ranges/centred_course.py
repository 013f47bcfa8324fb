"""A ``Course`` around values that floats give, not around those at a point: rounding does not grow with depth."""

from __future__ import annotations

import torch

from lipcert.domain import Domain
from lipcert.errors import CaptureError, NotProved
from lipcert.network.attention_bound import Factors
from lipcert.network.graph import HeadNode, InputNode, Network
from lipcert.network.relations import Local, Relation
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import UP
from lipcert.numerics.rounding import div_up
from lipcert.numerics.rows import length_up
from lipcert.ranges.course import Course
from lipcert.ranges.intervals import through

#: The least radius, relative to the size of x̂: below, what floats are off would count as much as the ball.
LEAST_RADIUS = 1e-9


class CentredCourse(Course):
    """The relations of nodes around ẑ_k: the middle of what node k makes of the ẑ of its parents.

    An enclosure of all values at x̂ widens by a factor per layer, that of absolute sums, and is of no use behind a few.
    Here a node's own rounding is all that is off: ‖g_k(ẑ) − ẑ_k‖ ≤ η_k, ``errors[k]`` in units of the radius.

    Why that is enough: let ‖z(x) − ẑ‖ ≤ ℓρ be known of the parents for all x of the domain. Then z_k(x) − ẑ_k is
    g_k(z(x)) − g_k(ẑ), an increment of the node between two points of the convex sets around its parents' ẑ, and what
    is left of at most η_k. So all z(x) − ẑ obey the relations of increments, with one more source in a ball of radius
    η_k at every node, and ‖x − x̂‖ ≤ ρ. Constants that count these sources, too, are true of increments between points
    of the domain, which have none of them, and ℓρ bounds ‖z(x) − ẑ‖ as before. Sets hold ẑ as well as the node's box.
    """

    def __init__(self, network: Network, domain: Domain) -> None:
        self.errors: list[float] = []
        super().__init__(network, domain)
        size = float(length_up(self.home.reshape(1, -1)))
        self.radius = max(self.radius, LEAST_RADIUS * size, 1e-100)  # a larger ball will do
        self.errors = [div_up(error, self.radius) for error in self.errors]
        self.boxes = tuple(
            Interval(torch.minimum(box.low, centre.low), torch.maximum(box.high, centre.high))
            for box, centre in zip(self.ranges.boxes, self._centres, strict=True)
        )

    def relation(self, k: int) -> Relation:
        """As of a course.

        Raises:
            NotProved: nothing is known of the node's increments; other ways may know more.
        """
        try:
            return super().relation(k)
        except CaptureError as error:
            raise NotProved(f"{self.network.nodes[k].name}: no gain is known around what floats give.") from error

    def closed(self, k: int) -> tuple[Factors, float] | None:
        """As of a course; what is added is how far ẑ is from the attention of the ẑ of Q, Kᵀ and V."""
        found, node = super().closed(k), self.network.nodes[k]
        if found is None or not isinstance(node, HeadNode):
            return None
        own, centre = node.at([self._centres[p] for p in node.parents[1:]]), self._centres[k].low
        off = torch.maximum(own.high - centre, centre - own.low).clamp(min=0.0) * UP
        error = float(length_up(off.reshape(1, -1)))
        return (found[0], div_up(error, self.radius)) if error < 1e100 else None

    def _run(self, network: Network) -> list[Interval]:
        """ẑ of every node, as points."""
        centres: list[Interval] = []
        with torch.no_grad():
            for node in network.nodes:
                if isinstance(node, InputNode):
                    centres.append(Interval.point(self.home.reshape(node.shape)))
                    self.errors.append(0.0)
                    continue
                box = through(node, [centres[p] for p in node.parents])
                middle = 0.5 * box.low + 0.5 * box.high
                off = torch.maximum(box.high - middle, middle - box.low).clamp(min=0.0) * UP
                error = float(length_up(off.reshape(1, -1))) if off.numel() else 0.0
                if not error < 1e100:
                    raise NotProved(f"the value of {node.name} at the middle of the domain is not known.")
                centres.append(Interval.point(middle))
                self.errors.append(error)
        return centres

    def _known(self, k: int) -> Local | None:
        """Nothing: what the boxes give is true of values in the domain, but ẑ is none of them."""
        return None
