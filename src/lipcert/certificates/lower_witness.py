"""What the witness of a lower bound proves: the derivative at a point, or the quotient of a pair, with all roundings.

This file, ``ranges/enclosed_run.py``, ``ranges/enclosure.py``, ``ranges/enclosure_rules.py`` and ``numerics/midrad.py``
are all that a LowerBound rests on, beside the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.domain import Domain
from lipcert.errors import InputError, NumericsError
from lipcert.network.linear import Shape, size
from lipcert.numerics.midrad import UNIT, Range, require_subnormals
from lipcert.numerics.process_state import ordinary
from lipcert.problem import Problem
from lipcert.ranges.enclosed_run import derivative, run
from lipcert.ranges.enclosure import Enclosure, exact
from lipcert.result import LowerWitness, PairWitness

if TYPE_CHECKING:
    from lipcert.network.graph import Network


#: Doubles carried beyond the first, in turn, until the radius is below this share of the value: an enclosure in float64
#: widens by about the root of the width per layer, so that deep networks need more.
_DIGITS, _LOSS = (0, 1, 3, 5), 1e-9
#: Covers the roundings of a norm: scaling, squares, exact sum, root.
_NORM = 32.0 * UNIT
#: Entries of differences below count as 0, and points as near as this as one: products with them might underflow.
_LEAST = 2.0**-900


@ordinary()
def evaluate(problem: Problem, witness: LowerWitness | PairWitness) -> float:
    """The lower bound that a witness proves, rounded down.

    That is ‖f'(x; v)‖_q / ‖v‖_p of a point and a direction, for the constant of all pairs of points of the domain, and
    ‖f(x) − f(x̂)‖_q / ‖x − x̂‖_p of a pair, for an anchored problem, whose anchor x̂ is. Both hold for the real-valued
    function of the stored parameters: constants count with the errors with which they were folded, and every float64
    operation with its own. Of the array library they assume what ``numerics/midrad.py`` says.

    Args:
        problem: network (evaluated op by op, not fused), norms, domain and anchor.
        witness: points and direction of one example's shape; used in float64.

    Returns:
        A finite number ≥ 0 that is at most the constant; 0 for the zero direction.

    Raises:
        InputError: a witness of another kind than the problem asks for, wrong shape, NaN, a point outside the domain, a
            direction that leaves a flat domain, another anchor than the problem's, or a point that is the anchor.
        NumericsError: nothing can be enclosed (overflow, constants without an error bound, a root at 0).
    """
    require_subnormals()
    if isinstance(witness, PairWitness):
        return _quotient(problem, witness)
    if problem.anchor is not None:
        raise InputError(
            "a derivative at a point proves nothing about the constant of an anchor: pairs of points that lie close "
            "together need not hold the anchor. Give a PairWitness."
        )
    return _steepness(problem, witness)


# -- the derivative at a point ------------------------------------------------------------------------------


def _steepness(problem: Problem, witness: LowerWitness) -> float:
    """‖f'(x; v)‖_q / ‖v‖_p.

    Why this is a lower bound: D is convex, x lies in D and v is a direction of D's affine hull. At every x' in the
    relative interior of D the one-sided derivative f'(x'; v) exists (all nodes are Lipschitz and have one-sided
    derivatives; chain rule: Shapiro 1990, *On concepts of directional differentiability*) and x' + hv lies in D for
    small h, so ‖f'(x'; v)‖_q ≤ L‖v‖_p. Now let x' tend to x within D. Node by node, ``Enclosure`` holds every limit
    of the derivatives: of a branch that is certain it holds φ' on an interval around the pre-activation, at a kink or
    tie that the interval does not exclude it holds both sides. So the limit of f'(x'; v) has entries of size at least
    |mid| − rad, whose norm is returned. No kink is told by a threshold: where many are undecided the enclosure is wide
    and the number small, and it is true all the same.
    """
    network = problem.unfused
    x, v = _checked(problem, witness)
    p, q = problem.norm
    v = v * 2.0 ** -max(-1000, min(1000, math.frexp(norm(v, math.inf))[1]))
    length = norm(v, p) * (1.0 + _NORM)
    if length == 0.0:
        return 0.0
    shape = (1, *network.in_shape)
    best, finite, width = 0.0, False, math.inf
    for digits in _DIGITS:
        with torch.no_grad():
            tangent = derivative(network, x.reshape(shape), v.reshape(shape), digits).plain
        if not bool((torch.isfinite(tangent.mid) & torch.isfinite(tangent.rad)).all()):
            continue
        finite = True
        gap = tangent.mid.abs() - tangent.rad
        least = torch.clamp(torch.nextafter(gap, torch.full_like(gap, -math.inf)), min=0.0)
        best = max(best, norm(least, q))
        before, width = width, norm(tangent.rad, q)
        if width <= _LOSS * best or width > 0.1 * before:  # narrow, or no narrower than before: further digits are idle
            break
    if not finite:
        raise NumericsError(
            "the derivative at the witness cannot be enclosed: it overflows, or does not exist; no lower bound."
        )
    value = best * (1.0 - _NORM) / length
    if not math.isfinite(value):
        raise NumericsError("the value at the witness overflows float64; no lower bound.")
    return max(0.0, math.nextafter(value, -math.inf))


# -- the quotient of a pair ---------------------------------------------------------------------------------


def _quotient(problem: Problem, witness: PairWitness) -> float:
    """‖f(x) − f(x̂)‖_q / ‖x − x̂‖_p.

    Why this is a lower bound: both points lie in the domain and x̂ is the problem's anchor, so the quotient is at most
    the anchored constant. The distance is rounded up. Of each entry of f(x) − f(x̂) the size is taken from below, from
    two enclosures, of which the better counts: the difference of the two values; and the derivatives f'(x̂ + tδ; δ) for
    all t in [0, 1], δ = x − x̂, of which f(x) − f(x̂) is the mean, as f is Lipschitz along the segment. The second
    loses nothing where the points are so close that the first cancels.
    """
    network = problem.unfused
    if problem.anchor is None:
        raise InputError("a pair is the witness of an anchored problem, and this one has no anchor.")
    p, q = problem.norm
    x, anchor = _point(problem, "point", witness.point), _point(problem, "anchor", witness.anchor)
    if not torch.equal(anchor.reshape(-1), problem.anchor.reshape(-1)):
        raise InputError("the witness's anchor is not the anchor of the problem.")
    if torch.equal(x.reshape(-1), anchor.reshape(-1)):
        raise InputError("the witness's point is the anchor itself: a pair needs two points.")
    shape = (1, *network.in_shape)
    x, anchor = x.reshape(shape), anchor.reshape(shape)
    step = Range.exact(x) - Range.exact(anchor)
    distance = norm(step.mag, p) * (1.0 + _NORM)
    if not _LEAST < distance < math.inf:
        raise NumericsError("the two points of the witness are too near to each other, or too far apart, for float64.")
    least, finite = torch.zeros(1), False
    with torch.no_grad():
        for difference in _differences(network, anchor, x, step):
            known = difference.mid.isfinite() & difference.rad.isfinite()
            finite |= bool(known.all())
            gap = difference.mid.abs() - difference.rad
            gap = torch.where(known, torch.nextafter(gap, torch.full_like(gap, -math.inf)), 0.0)
            least = torch.maximum(least, torch.where(gap > _LEAST, gap, 0.0))
            if norm(torch.where(known, difference.rad, math.inf), q) <= _LOSS * norm(least, q):
                break
    if not finite:
        raise NumericsError(
            "the difference of the outputs at the witness cannot be enclosed: it overflows, or does not exist; no "
            "lower bound."
        )
    value = norm(least, q) * (1.0 - _NORM) / distance
    if not math.isfinite(value):
        raise NumericsError("the value at the witness overflows float64; no lower bound.")
    return max(0.0, math.nextafter(value, -math.inf))


def _differences(network: Network, anchor: Tensor, x: Tensor, step: Range) -> Iterator[Range]:
    """Enclosures of f(x) − f(x̂), the cheap ones first; no further digits where the first of them were idle."""
    width = math.inf
    for digits in _DIGITS:
        values = [run(network, exact(point).to_digits(digits)).value for point in (x, anchor)]
        difference = (values[0] - values[1]).plain
        yield difference
        before, width = width, norm(difference.rad, math.inf)
        if digits == 0:
            segment = Range.between(torch.minimum(x, anchor), torch.maximum(x, anchor))
            yield run(network, Enclosure(segment, step)).tangent.plain
        elif not width <= 0.1 * before:
            break


# -- points and norms ---------------------------------------------------------------------------------------


def norm(vector: Tensor, p: float) -> float:
    """‖vector‖_p within a relative 16 units of roundoff: the sum is exact (fsum), overflow is scaled away."""
    entries = vector.detach().reshape(-1).abs().double().cpu()
    largest = float(entries.max()) if entries.numel() else 0.0
    if largest == 0.0 or p == math.inf or not math.isfinite(largest):
        return largest
    entries = entries / largest
    total = math.fsum(entries.tolist()) if p == 1 else math.sqrt(math.fsum((entries * entries).tolist()))
    return total * largest


def movable(domain: Domain, shape: Shape) -> Tensor:
    """0/1 tensor: the coordinates along which the domain extends at all."""
    if domain is None:
        return torch.ones(shape, dtype=torch.float64)
    return domain.movable().double().reshape(shape)


def _checked(problem: Problem, witness: LowerWitness) -> tuple[Tensor, Tensor]:
    x, v = _point(problem, "point", witness.point), _example(problem, "direction", witness.direction)
    if problem.domain is not None and bool((v.reshape(-1)[movable(problem.domain, (v.numel(),)) == 0] != 0).any()):
        raise InputError("the witness's direction leaves the domain, which is flat along it.")
    return x, v


def _point(problem: Problem, name: str, given: Tensor) -> Tensor:
    """A point of the domain, in float64."""
    x = _example(problem, name, given)
    if problem.domain is not None and not problem.domain.contains(x):
        raise InputError(f"the witness's {name} lies outside the {problem.domain.describe()}.")
    return x


def _example(problem: Problem, name: str, given: Tensor) -> Tensor:
    """Finite numbers of one example's shape, in float64."""
    x, in_shape = given.detach().to(device="cpu", dtype=torch.float64), problem.model.in_shape
    if tuple(x.shape) != tuple(in_shape[1:]) and x.numel() != size(in_shape):
        raise InputError(f"the witness's {name} has shape {tuple(x.shape)}, one example {tuple(in_shape[1:])}.")
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"the witness's {name} holds NaN or infinity.")
    return x
