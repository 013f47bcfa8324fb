"""One-sided Lipschitz constants (logarithmic norms) of vector fields: how fast solutions of x' = f(x) move apart."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from lipcert.errors import InputError, LipcertError, NumericsError
from lipcert.increments.jacobian import jacobian, operations
from lipcert.methods.auto import Auto
from lipcert.methods.base import Run, fork
from lipcert.network.graph import AffineNode, Network
from lipcert.network.linear import Dense, Identity, LinearMap
from lipcert.numerics.chance import Chance
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import UNIT, UP
from lipcert.numerics.psd import is_positive_definite
from lipcert.numerics.rounding import up
from lipcert.numerics.spectral import norm_inf_upper
from lipcert.problem import Problem
from lipcert.result import Bound
from lipcert.variation.derivatives import MOST_WORK
from lipcert.variation.derived import Derived

#: Shifts, in units of the Lipschitz constant: a larger one loses less, and feels the tolerance of the bound more.
SHIFTS = (2.0, 16.0)


@dataclass(frozen=True, eq=False)
class OneSidedBound(Derived):
    """μ ≤ ``value``, which may be negative, for μ the supremum of the logarithmic norms μ_p(J) on a convex domain.

    Solutions of x' = f(x) that stay in the domain obey ‖x(t) − y(t)‖_p ≤ e^(value·t)‖x(0) − y(0)‖_p; for p = 2
    ⟨f(x) − f(y), x − y⟩ ≤ value · ‖x − y‖².

    Attributes:
        value: upper bound, in units of 1/time; rounded up.
        guarantee: as of a ``Bound``.
        norm: p.
        domain: where it holds (None: everywhere).
        method: ``shift``, ``interval_jacobian`` or ``lipschitz``.
        shift, bound: for ``shift`` and ``lipschitz`` value = bound.value − shift, ``bound`` the Bound of f + shift·I.
        delta: probability of error; 0 if rigorous.
        seconds: wall time.
    """

    claim: ClassVar[str] = "one-sided Lipschitz constant ≤"

    method: str = "shift"
    shift: float = 0.0
    bound: Bound | None = None

    @property
    def origin(self) -> str:
        """The method."""
        return self.method


def one_sided_bound(problem: Problem, run: Run) -> OneSidedBound:
    """The least of L(f), of L(f + sI) − s for some shifts s, and of what the interval Jacobian says.

    Why these are upper bounds: (‖I + hJ‖_p − 1)/h falls to μ_p(J) as h > 0 falls to 0, so with h = 1/s that is at most
    ‖J + sI‖_p − s for every s > 0, and ‖J + sI‖_p ≤ L(f + sI) (Söderlind 2006). From intervals of J: ``log_norm``.

    Args:
        problem: norms (p, p), as many outputs as inputs.
        run: budget, all together.

    Raises:
        InputError: outputs and inputs differ in number.
    """
    n, m = problem.unfused.nodes[0], problem.unfused.nodes[-1]
    if math.prod(n.shape) != math.prod(m.shape):
        raise InputError(
            f"a one-sided constant is of a vector field, with as many outputs as inputs; this model has "
            f"{math.prod(m.shape)} and {math.prod(n.shape)}."
        )
    p, chance = problem.norm[0], Chance()
    found: list[OneSidedBound] = []
    failure: LipcertError | None = None
    if operations(problem.reduced_increments) <= MOST_WORK:
        try:
            value = log_norm(jacobian(problem.reduced_increments), p)
            found.append(OneSidedBound(value, "rigorous", p, problem.domain, "interval_jacobian"))
        except NumericsError as reason:
            failure = reason
    length = 0.0
    for number, factor in enumerate((0.0, *SHIFTS)):
        shift = 2.0 ** round(math.log2(factor * length)) if factor and 1e-300 < factor * length < 1e300 else 0.0
        if number and not shift:
            break
        shifted = problem if not shift else replace(
            problem, model=plus_identity(problem.unfused, shift), select=None
        )  # fmt: skip
        try:
            bound = Auto().bound(shifted, fork(run, 1.0 / (len(SHIFTS) + 1)), chance)
        except LipcertError as reason:
            failure = reason
            break
        length = length or bound.value
        value = bound.value if not shift else up(bound.value - shift)
        name = "shift" if shift else "lipschitz"
        found.append(OneSidedBound(value, bound.guarantee, p, problem.domain, name, shift, bound))
    best = min((one for one in found if not math.isnan(one.value)), key=lambda one: one.value, default=None)
    if best is None:
        assert failure is not None
        raise failure
    delta = 0.0 if best.guarantee == "rigorous" else chance.spent
    return replace(best, delta=delta, seconds=time.perf_counter() - run.started)


def plus_identity(network: Network, shift: float) -> Network:
    """f + shift·I as a network."""
    first, last = network.nodes[0].shape, network.nodes[-1].shape
    own: LinearMap = Identity(first, shift)
    if first != last:
        matrix = shift * torch.eye(math.prod(first), dtype=torch.float64)
        own = Dense((matrix,), first, last, 1.0, stored=True)
    place = len(network.nodes) - 1
    parents, maps = ((place, 0), (Identity(last), own)) if place else ((0,), (Identity(first, 1.0 + shift),))
    node = AffineNode(parents=parents, shape=last, name="shift", maps=maps)
    return Network((*network.nodes, node))


def log_norm(box: Interval, p: float) -> float:
    """An upper bound of μ_p(J) for all J between two ends, (n, n), rounded up.

    p = ∞: max_i J_ii + Σ_{j≠i} |J_ij|; p = 1: of the transposed; p = 2: λ_max((J + Jᵀ)/2), at most that of the middle
    plus the greatest row sum of the radius, proved by a verified Cholesky factorisation.
    """
    n = len(box.low)
    if not n:
        return -math.inf
    if not bool(box.finite.all()):
        return math.inf
    if p == 2:
        return _symmetric(box)
    low, high = (box.low, box.high) if p == math.inf else (box.low.T, box.high.T)
    greatest = torch.maximum(low.abs(), high.abs())
    greatest.fill_diagonal_(0.0)
    return max(up(math.fsum([float(high[i, i]), *greatest[i].tolist()])) for i in range(n))  # fsum rounds once


def _symmetric(box: Interval) -> float:
    mid = 0.25 * (box.low + box.high)
    middle = mid + mid.T
    upper, lower = 0.5 * box.high + 0.5 * box.high.T, 0.5 * box.low + 0.5 * box.low.T
    size = 4.0 * UNIT * (box.greatest + box.greatest.T) + 2.0**-1000
    radius = (torch.maximum(upper - middle, middle - lower) + size) * UP
    spread = norm_inf_upper(torch.maximum(radius, radius.T))
    estimate = float(torch.linalg.eigvalsh(middle)[-1])
    scale = float(middle.abs().sum(1).max()) + spread
    for extra in (1e-14, 1e-12, 1e-9, 1e-6, 1e-3, 1.0, 4.0):
        value = estimate + spread + extra * len(mid) * scale + 1e-300
        shifted = -middle
        diagonal = value + shifted.diagonal()  # rounded down, so that what is proved of it holds for value·I
        shifted.diagonal().copy_(torch.nextafter(diagonal, torch.full_like(diagonal, -math.inf)))
        if is_positive_definite(shifted, spread):
            return value
    return math.inf
