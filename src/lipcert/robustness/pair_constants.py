"""A Lipschitz constant for the difference of any two outputs: one bound per network, shared by all examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.certificates.norms.operator_norm import map_norm
from lipcert.errors import CertificateError
from lipcert.guarantee import Guarantee, weakest
from lipcert.network.graph import AffineNode, Network
from lipcert.network.linear import Dense, LinearMap, compose, size
from lipcert.numerics.chance import Chance
from lipcert.numerics.rounding import add_up, div_up, mul_up

#: Names of what a run keeps: a constant of what the last linear map reads, and one of all outputs.
BODY, OUTPUTS = "constants", "output_constants"
#: Classes up to which every pair has a norm of its own; beyond, the sum of two rows' norms serves.
MOST_CLASSES = 24


def body(network: Network) -> Network | None:
    """The network before its last linear map; None where it does not end in one map of the value before it."""
    last = network.nodes[-1]
    alone = isinstance(last, AffineNode) and last.parents == (len(network.nodes) - 2,)
    return Network(network.nodes[:-1]) if alone else None


@dataclass(frozen=True, eq=False)
class PairConstants:
    """|(f_i − f_j)(x) − (f_i − f_j)(y)| ≤ L_ij ‖x − y‖_p for all x and y.

    Why these are upper bounds: f = W g + b, with g the body, so f_i − f_j changes by (w_i − w_j)·(g(x) − g(y)), at most
    the operator norm p → |·| of the row w_i − w_j times ‖g(x) − g(y)‖_p ≤ constant·‖x − y‖_p. Of all outputs W is 1
    and g = S f/m, with S = m·1 − (1 … 1)ᵀ(1 … 1), as (e_i − e_j) S = m (e_i − e_j).

    Attributes:
        head: W.
        p: the norm.
        constant: a Lipschitz constant of g, p → p.
        guarantee: of that.
    """

    head: LinearMap
    p: float
    constant: float
    guarantee: Guarantee
    _norms: dict[tuple[int, ...], tuple[float, Guarantee]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, network: Network, p: float, constant: float, guarantee: Guarantee) -> PairConstants:
        """From a bound of the body.

        Raises:
            CertificateError: the network has none.
        """
        last = network.nodes[-1]
        if body(network) is None or not isinstance(last, AffineNode):
            raise CertificateError("this network does not end in a linear map: pairs of its outputs have no constants.")
        return cls(last.maps[0], p, constant, guarantee)

    @classmethod
    def of_outputs(cls, network: Network, p: float, constant: float, guarantee: Guarantee) -> PairConstants:
        """From a bound of ``without_shared`` times the outputs."""
        count = classes_of(network)
        one = Dense((torch.eye(count, dtype=torch.float64),), network.out_shape, (1, count), 1.0, stored=True)
        return cls(one, p, div_up(constant, float(count)), guarantee)

    def between(self, label: int, other: int) -> tuple[float, Guarantee]:
        """L of a pair, rounded up (inf where it is beyond floats), and how sure it is."""
        i, j = min(label, other), max(label, other)
        if self.head.out_size <= MOST_CLASSES:
            norm, sure = self._norm({i: 1.0, j: -1.0})
        else:
            one, other_one = self._norm({i: 1.0}), self._norm({j: 1.0})
            norm, sure = add_up(one[0], other_one[0]), weakest([one[1], other_one[1]])
        return mul_up(norm, self.constant), weakest([sure, self.guarantee])

    def _norm(self, row: Mapping[int, float]) -> tuple[float, Guarantee]:
        key = tuple(row)
        if key not in self._norms:
            matrix = torch.zeros(1, self.head.out_size, dtype=torch.float64)
            for place, value in row.items():
                matrix[0, place] = value
            picked = Dense((matrix,), self.head.out_shape, (1, 1), float(self.head.out_size), stored=True)
            found = map_norm(compose(self.head, picked), self.p, share=Chance().group(1))
            self._norms[key] = found.value, found.guarantee
        return self._norms[key]

    def margins(self, label: int, at_centre: Tensor, radius: float) -> tuple[Tensor, Guarantee]:
        """m_k − L_k·radius for the other classes, (m − 1,), rounded down, and how sure they are.

        Args:
            label: the class.
            at_centre: (m − 1,), lower bounds of f_label − f_k at the centre, for k in order without the label.
            radius: of the ball, in the norm p.
        """
        found, sure = [], []
        for margin, other in zip(at_centre.tolist(), others(label, self.head.out_size), strict=True):
            constant, kind = self.between(label, other)
            sure.append(kind)
            lost = mul_up(constant, radius)
            found.append(-math.inf if math.isinf(lost) else math.nextafter(margin - lost, -math.inf))
        return torch.tensor(found, dtype=torch.float64), weakest(sure)

    def radius(self, label: int, at_centre: Tensor) -> float:
        """About the largest radius at which ``margins`` is positive."""
        pairs = zip(at_centre.tolist(), others(label, self.head.out_size), strict=True)
        found = math.inf
        for margin, other in pairs:
            constant, _ = self.between(label, other)
            found = min(found, margin / constant if constant > 0 else math.inf if margin > 0 else 0.0)
        return max(0.0, min(found * (1.0 - 2.0**-40), 1e300))


def without_shared(count: int) -> Tensor:
    """m·1 − (1 … 1)ᵀ(1 … 1): outputs times m, without their mean; whole numbers, so that nothing is rounded."""
    return count * torch.eye(count, dtype=torch.float64) - 1.0


def others(label: int, classes: int) -> list[int]:
    """The other classes, in order."""
    return [k for k in range(classes) if k != label]


def rows_against(label: int, classes: int) -> Tensor:
    """(m − 1, m), the rows e_label − e_k, float64."""
    rows = torch.zeros(classes - 1, classes, dtype=torch.float64)
    rows[:, label] = 1.0
    rows[torch.arange(classes - 1), others(label, classes)] = -1.0
    return rows


def classes_of(network: Network) -> int:
    """How many scores the network gives."""
    return size(network.out_shape)
