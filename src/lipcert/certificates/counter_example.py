"""What a point of a domain proves of f there: that combinations of outputs do get that low.

Upper bounds of c·f at a point, so of its minimum on the domain; an image whose class changes is c = e_y − e_k, ≤ 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.lower_witness import norm
from lipcert.domain import Ball, Domain, Intersection
from lipcert.errors import InputError, NumericsError
from lipcert.network.linear import Dense, size
from lipcert.numerics.midrad import UNIT, require_subnormals
from lipcert.numerics.process_state import ordinary
from lipcert.ranges.enclosed_run import enclosed

if TYPE_CHECKING:
    from lipcert.network.graph import Network

#: Doubles carried beyond the first, in turn, until the sign is known.
_DIGITS = (0, 1, 3)
#: Covers the roundings of a distance: of the differences, and those of ``lower_witness.norm``.
_DISTANCE = 64.0 * UNIT


@dataclass(frozen=True, eq=False)
class CounterExample:
    """A point of the domain at which another class is at least as high as the label's: f_other ≥ f_label.

    Attributes:
        point: of one example's shape, float64; it lies in the domain by proof.
        label, other: the two classes.
        margin: ≥ f_label − f_other at ``point``, roundings included, and ≤ 0: a tie changes the class, as the label's
            output is no longer the largest.
        distance: ≥ the distance of ``point`` from the ball's centre in the ball's norm; None where the domain is a box.
    """

    point: Tensor
    label: int
    other: int
    margin: float
    distance: float | None


def counter_example(network: Network, domain: Domain, point: Tensor, label: int, other: int) -> CounterExample | None:
    """The proof that f_other ≥ f_label at a point of the domain; None where that is not so or cannot be told.

    Args:
        network: the model as captured.
        domain: fitted to the network's ``in_shape``; None for the whole space.
        point: of one example's shape, float64.
        label, other: two different classes.

    Raises:
        InputError: the point has another shape or lies outside the domain, or there are no two such classes.
    """
    m = size(network.out_shape)
    if not (0 <= label < m and 0 <= other < m and label != other):
        raise InputError(f"a counter-example needs two of the model's {m} classes, not {label} and {other}.")
    row = torch.zeros(1, m, dtype=torch.float64)
    row[0, label], row[0, other] = 1.0, -1.0
    try:
        (margin,) = values_at(network, domain, point, row, least=0.0)
    except NumericsError:
        return None
    if not margin <= 0.0:
        return None
    held = point.detach().to("cpu", torch.float64).reshape(network.in_shape[1:]).clone()
    return CounterExample(held, label, other, margin, distance(domain, held))


@ordinary()
def values_at(network: Network, domain: Domain, point: Tensor, rows: Tensor, least: float = math.nan) -> list[float]:
    """For each row c an upper bound of c·f(point), hence of the minimum of c·f on the domain.

    Why these are upper bounds: the point lies in the domain, which ``contains`` decides exactly; ``enclosed`` holds the
    value of every node at the point with all roundings and the errors of folded constants, ``Dense`` that of c·f;
    the upper end of the last is returned.

    Args:
        network: the model as captured.
        domain: fitted to the network's ``in_shape``; None for the whole space.
        point: of one example's shape, float64.
        rows: (k, m), taken exactly.
        least: more digits are carried while the enclosure of some row holds this number inside.

    Raises:
        InputError: the point or the rows have another shape, or the point lies outside the domain.
        NumericsError: the values there cannot be enclosed (overflow, constants without an error bound).
    """
    require_subnormals()
    m, shape = size(network.out_shape), (1, *network.in_shape)
    x = point.detach().to("cpu", torch.float64)
    if x.numel() != size(shape) or rows.dim() != 2 or rows.shape[1] != m:
        raise InputError(
            f"values at a point need one example {network.in_shape[1:]} and rows (k, {m}), not {tuple(point.shape)} "
            f"and {tuple(rows.shape)}."
        )
    if not bool(torch.isfinite(x).all()) or not bool(torch.isfinite(rows).all()):
        raise InputError("the point or a row holds NaN or infinity.")
    if domain is not None and not domain.contains(x):
        raise InputError(f"the point lies outside the {domain.describe()}.")
    matrix = rows.detach().to("cpu", torch.float64)
    combined = Dense((matrix,), network.out_shape, (1, len(matrix)), float(max(m, 1)), stored=True)
    x = x.reshape(shape)
    best = torch.full((len(matrix),), math.inf, dtype=torch.float64)
    for digits in _DIGITS:
        with torch.no_grad():
            value = enclosed(network, x, torch.zeros_like(x), digits).through(combined).value.plain
        high, low = value.high.reshape(-1), value.low.reshape(-1)
        best = torch.minimum(best, torch.where(high.isnan(), math.inf, high))
        if not bool(((low < least) & (high > least)).any()):
            break
    if not bool(torch.isfinite(best).all()):
        raise NumericsError("the network's values at the point cannot be enclosed: they overflow, or are not known.")
    return best.tolist()


def distance(domain: Domain, point: Tensor) -> float | None:
    """≥ ‖point − centre‖_p for a point of a ball, or of a ball within a box; None for other domains.

    Why it is not too small: each rounded difference is within a factor 1 ± u of the exact one (sums of doubles do not
    underflow), the norm of those within 16 u, and both are paid for; a point of the ball is within its radius.
    """
    ball = domain.ball if isinstance(domain, Intersection) else domain
    if not isinstance(ball, Ball):
        return None
    offset = point.detach().to("cpu", torch.float64).reshape(-1) - ball.center.reshape(-1)
    length = norm(offset, ball.p)
    return 0.0 if length == 0.0 else min(math.nextafter(length * (1.0 + _DISTANCE), math.inf), ball.radius)
