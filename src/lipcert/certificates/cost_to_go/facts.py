"""What the cost-to-go needs of a network whatever the domain: norms of its maps, and how far a ball reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.bases import with_bases
from lipcert.certificates.cost_to_go.cells import SUBNORMAL
from lipcert.certificates.cost_to_go.floors import floors
from lipcert.certificates.norms.operator_norm import NormBound, map_norm, writable
from lipcert.certificates.norms.scaling import absolute_sums, known_rounding, scaled, terms
from lipcert.domain import Ball, Box, Domain
from lipcert.errors import CertificateError, NotProved
from lipcert.network.graph import ActivationNode, AffineNode, GainNode, Network, SelectionNode
from lipcert.network.linear import LinearMap
from lipcert.numerics.interval import Interval
from lipcert.numerics.matrices import Pieces
from lipcert.numerics.midrad import UP, lengths
from lipcert.numerics.psd import by_first_entry
from lipcert.numerics.rounding import add_up, gamma, mul_up
from lipcert.ranges.build import bounds_of, boxes_of
from lipcert.ranges.linear_bounds import LinearBounds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lipcert.numerics.chance import Chance


@dataclass(frozen=True, eq=False)
class Written:
    """A matrix A as it is computed, and how far it may be from the exact one: of A and Aᵀ that with fewer rows.

    Attributes:
        transposed: whether it is Aᵀ.
        matrix: it, with its rows in an order in which those of a convolution overlap only with their neighbours.
        majorant: ≥ |A'| for every A' within the error, in the same form.
        order: the place of each row before.
        share: the error of an entry is at most this share of the majorant's.
    """

    transposed: bool
    matrix: Tensor
    majorant: Tensor
    order: Tensor
    share: float

    @cached_property
    def pieces(self) -> Pieces:
        """The matrix by pieces of its rows."""
        return Pieces.of(self.matrix)

    @classmethod
    def of(cls, matrix: Tensor, majorant: Tensor, share: float) -> Written:
        """From A and what dominates it, (n, m) both."""
        transposed = matrix.shape[0] > matrix.shape[1]
        if transposed:
            matrix, majorant = matrix.mT, majorant.mT
        order = by_first_entry(matrix)
        in_order = torch.equal(order, torch.arange(len(order)))
        own, above = (t.contiguous() if in_order else t[order] for t in (matrix, majorant))
        return cls(transposed, own, above, order, share)


def _times_power(x: Tensor, exponent: int) -> Tensor:
    """2^exponent x for x ≥ 0, not below it where it leaves the normal range."""
    product = torch.from_numpy(np.ldexp(x.numpy(), exponent))
    return torch.nextafter(product, torch.full_like(product, math.inf))


def _beside(matrices: Sequence[Tensor]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(tuple(matrices), dim=1)


#: No bases.
_NONE: Mapping[int, Tensor] = MappingProxyType({})


class Facts:
    """Of one network, worked out when first asked for and kept: many domains share them.

    Args:
        network: fused, sorts expanded.
        chance: what random starts of norms may spend.
        claims: norms of the maps of all affine nodes, one after another, to be proved rather than found.
        given: position of a maximum in that network → the bases of its windows, (classes, K, K); see ``with_bases``.

    Attributes:
        network: the network, with a node for each basis.
        bases: of the maxima that have one, by their positions there.
        floors: activations that may leave their costs to the maximum before them, by position.
        orders: hashes of the costs before and behind maps whose order was proved (``require_order``).

    Raises:
        CertificateError: there are not as many claims as maps, or the bases do not fit.
    """

    def __init__(
        self, network: Network, chance: Chance, claims: Tensor | None = None, given: Mapping[int, Tensor] = _NONE
    ) -> None:
        self.network, self.bases = with_bases(network, given)
        self.floors = floors(self.network)
        self._given = given
        nodes = self.network.nodes
        maps = [(k, i) for k, n in enumerate(nodes) if isinstance(n, AffineNode) for i in range(len(n.maps))]
        if claims is not None and (tuple(claims.shape) != (len(maps),) or not bool((claims >= 0).all())):
            raise CertificateError(f"the certificate must hold {len(maps)} norms.")
        self._claims = {} if claims is None else dict(zip(maps, claims.double().tolist(), strict=True))
        self.orders: set[bytes] = set()
        self._share = chance.group(2 * len(maps))
        self._norms: dict[tuple[int, int], NormBound] = {}
        self._written: dict[int, Written] = {}
        self._last: tuple[Tensor, list[Interval]] | None = None

    def norms(self, position: int) -> tuple[NormBound, ...]:
        """‖A_i‖₂ of the maps of an affine node."""
        node = self.network.nodes[position]
        assert isinstance(node, AffineNode)
        return tuple(self._norm(position, place, linear) for place, linear in enumerate(node.maps))

    def _norm(self, position: int, place: int, linear: LinearMap) -> NormBound:
        key = (position, place)
        if key not in self._norms:
            self._norms[key] = map_norm(linear, 2.0, self._claims.get(key), self._share)
        return self._norms[key]

    @property
    def arrays(self) -> dict[str, Tensor]:
        """What a witness holds beside multipliers: the norms and the bases."""
        return {"norms": self.claims, **{f"basis.{k}": basis for k, basis in self._given.items()}}

    @property
    def claims(self) -> Tensor:
        """All norms, for a witness: a norm that is found may be another one elsewhere, one that is proved is not."""
        nodes = [k for k, node in enumerate(self.network.nodes) if isinstance(node, AffineNode)]
        return torch.tensor([norm.value for k in nodes for norm in self.norms(k)], dtype=torch.float64)

    def written(self, position: int) -> Written:
        """The maps of an affine node side by side as one matrix, each scaled first, so that no pass of it vanishes.

        Raises:
            NotProved: the rounding of a map's constants is not known.
        """
        if position not in self._written:
            node = self.network.nodes[position]
            assert isinstance(node, AffineNode)
            if not all(known_rounding(linear) for linear in node.maps):
                raise NotProved(f"how far the constants of {node.name} are from the exact ones is not known")
            units = [scaled(linear) for linear in node.maps]
            shares = [2.0 * gamma(terms(unit.map) + 8.0) for unit in units]
            majorants = [
                _times_power(unit.map.absolute().matrix() * (1.0 + 2.0**-10) + unit.underflow / share, unit.exponent)
                for unit, share in zip(units, shares, strict=True)
            ]
            self._written[position] = Written.of(
                _beside([torch.from_numpy(np.ldexp(unit.map.matrix().numpy(), unit.exponent)) for unit in units]),
                _beside(majorants) + SUBNORMAL / min(shares),  # what the matrix loses below the normal range
                max(shares) * UP,
            )
        return self._written[position]

    def bounds(self, domain: Domain, linear: bool, until: float = math.inf) -> LinearBounds:
        """Boxes of every node on a domain: by intervals, on balls by prefixes, and by linear bounds if asked for.

        Raises:
            NotProved: linear bounds were not done ``until`` then (perf_counter).
        """
        return bounds_of(self.network, domain, "undecided" if linear else "none", self._near_centre(domain), until)

    def _near_centre(self, domain: Domain) -> Mapping[int, Interval]:
        """|v_j − v̂_j| ≤ ρ e_j on an l2 ball of radius ρ, e_j bounding how fast v_j changes, v̂ the centre's value."""
        found: dict[int, Interval] = {}
        for ball in () if domain is None else domain.balls():
            if ball.p > 2.0:
                continue
            centre = self._centre(ball.center)
            for k, reach in self.reaches.items():
                box = self._around(centre[k], reach, ball)
                found[k] = box.meet(found[k]) if k in found else box
        return found

    def _centre(self, point: Tensor) -> list[Interval]:
        """Values at a point; the last one's are kept, as balls of several radii have one centre."""
        if self._last is None or not torch.equal(self._last[0], point):
            self._last = point.clone(), boxes_of(self.network, Box(point, point), "none")
        return self._last[1]

    @staticmethod
    def _around(centre: Interval, reach: Tensor, ball: Ball) -> Interval:
        width = reach * ball.radius * UP
        low, high = centre.low - width, centre.high + width
        low = torch.nextafter(low, torch.full_like(low, -math.inf))
        high = torch.nextafter(high, torch.full_like(high, math.inf))
        return Interval(low.nan_to_num(-math.inf, math.inf, -math.inf), high.nan_to_num(math.inf, math.inf, -math.inf))

    @cached_property
    def reaches(self) -> dict[int, Tensor]:
        """e_j of the entries of every affine node: |δv_j| ≤ e_j ‖δx‖₂ for all pairs of inputs, rounded up.

        By the triangle inequality over a node's parents, the rows' lengths, and ‖δz‖₂ ≤ L ‖δx‖₂ of every node: by norms
        of the maps, or the length of e; an activation multiplies it by its greatest slope, a selection by its gain.
        """
        rates = [1.0]
        found: dict[int, Tensor] = {}
        for k, node in enumerate(self.network.nodes[1:], start=1):
            before = [rates[p] for p in node.parents]
            rate = math.inf
            if isinstance(node, AffineNode):
                rows = torch.zeros(node.shape, dtype=torch.float64)
                total = 0.0
                for place, (linear, own) in enumerate(zip(node.maps, before, strict=True)):
                    through = self._row_lengths(linear) * own
                    rows = (rows + torch.nextafter(through, torch.full_like(through, math.inf))) * UP
                    total = add_up(total, mul_up(self._sure_norm(k, place, linear), own))
                rows = rows.nan_to_num(math.inf, math.inf)
                found[k] = rows
                rate = min(total, float(lengths(rows.reshape(1, -1), 2.0)))
            elif isinstance(node, ActivationNode):
                lower, upper = node.function.slope_range(node.shape)
                steepest = torch.maximum(lower.abs(), upper.abs())
                rate = mul_up(before[0], float(steepest.max()) if steepest.numel() else 0.0)
            elif isinstance(node, SelectionNode):
                rate = mul_up(before[0], node.function.gain(2.0))
            elif isinstance(node, GainNode):
                rate = mul_up(before[0], node.function.gains.get(2.0, math.inf))
            rates.append(rate if rate == rate else math.inf)
        return {k: rows for k, rows in found.items() if bool(rows.isfinite().any())}

    def _sure_norm(self, position: int, place: int, linear: LinearMap) -> float:
        """A norm that no chance has a part in: ranges carry none."""
        if not math.isfinite(linear.rounding):
            return math.inf
        bound = self._norm(position, place, linear) if writable(linear) else map_norm(linear, 2.0, route="sums")
        return bound.value if bound.guarantee == "rigorous" else math.inf

    @staticmethod
    def _row_lengths(linear: LinearMap) -> Tensor:
        """‖row‖₂ of every row, of the map's out_shape, rounded up; their sums of sizes where it is too large."""
        if not math.isfinite(linear.rounding):
            return torch.full(linear.out_shape, math.inf, dtype=torch.float64)
        unit = scaled(linear)
        if writable(unit.map):
            share = 2.0 * gamma(terms(unit.map) + 8.0)
            rows = lengths(unit.map.matrix(), 2.0).reshape(linear.out_shape) + absolute_sums(unit)[0] * share
            rows = rows + unit.underflow
        else:
            rows = absolute_sums(unit)[0]
        return _times_power(rows * UP, unit.exponent)
