"""Certified operator norms of linear maps: rigorous where the map can be written down, probabilistic beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lipcert.certificates.norms.block_norm import block_norm
from lipcert.certificates.norms.scaling import (
    Scaled,
    absolute_sums,
    greatest,
    known_rounding,
    scaled,
    terms,
)
from lipcert.errors import NumericsError
from lipcert.network.linear import Identity, LinearMap, compose, size
from lipcert.numerics.chance import Chance, Share
from lipcert.numerics.lanczos import Gram
from lipcert.numerics.magnitude import Magnitude
from lipcert.numerics.probabilistic import certify_sigma_max_probabilistic, sigma_max_probabilistic
from lipcert.numerics.rounding import add_up, gamma, ldexp_down, mul_up, sqrt_up
from lipcert.numerics.spectral import (
    certify_sigma_max,
    norm_1_upper,
    norm_inf_upper,
    sigma_max_upper,
)

if TYPE_CHECKING:
    from lipcert.guarantee import Guarantee


#: Largest number of entries, and largest shorter side, of a map that is written down as a matrix.
MAX_ENTRIES, MAX_SIDE = 120_000_000, 6_500
#: Relative inflation aimed at by the probabilistic bound, and slack kept so that a re-check passes.
TARGET, SLACK = 1e-2, 3e-3


@dataclass(frozen=True)
class NormBound:
    """‖W‖_{p→p} ≤ magnitude, which may lie outside the range of floats."""

    magnitude: Magnitude
    guarantee: Guarantee

    @property
    def value(self) -> float:
        """The bound as a float, rounded up."""
        return float(self.magnitude)


#: Shorter side from which on a norm is remembered in this process, how many are, and those that are.
_REMEMBERED, _MOST_REMEMBERED = 512, 10_000
_KNOWN: dict[bytes, _Known] = {}

#: How a 2-norm is bounded: ``written``, by a matrix where it can be written down and by passes beyond; ``passes``, by
#: Lanczos passes alone; ``blocks``, by the norms of small maps side by side, where it is made of such, else by sums;
#: ``sums``, by √(‖W‖_1 ‖W‖_∞), two passes.
Route = Literal["written", "passes", "blocks", "sums"]


def map_norm(
    linear: LinearMap,
    p: float,
    claim: float | None = None,
    share: Share | None = None,
    route: Route = "written",
    target: float = TARGET,
) -> NormBound:
    """Certified upper bound of ‖W‖_{p→p}, p in {1, 2, inf}.

    With a ``claim`` that can be proved, the claim is the value (one factorisation); otherwise the value is found here.
    Where that takes a random start, its probability of error is drawn from ``share`` (None: 1e-9, fresh entropy); a
    claim that fails costs a draw of its own. ``route`` says how much work a 2-norm is worth, ``target`` the relative
    inflation that passes aim at: both decide how tight the bound is and of what kind, not whether it holds.

    Why this is an upper bound: for p = 1 and ∞ it is a sum of absolute values rounded up (Scaman & Virmaux 2018 and
    any textbook: greatest column / row sum). For p = 2 it is √(‖|W|‖_1 ‖|W|‖_∞), or a value proved by a verified
    Cholesky factorisation of the materialised matrix, whose distance from the exact map, at most
    γ_k √(‖|W|‖_1 ‖|W|‖_∞) in the 2-norm and what underflow loses, is added; or, where the matrix is too large, the
    Lanczos bound of Kuczyński & Woźniakowski (1992). Powers of two are taken out first (``scaled``).
    """
    if linear.is_zero:
        return NormBound(Magnitude.of(0.0), "rigorous")
    unit = scaled(linear)
    if claim is not None:
        claim = ldexp_down(claim, -unit.exponent) if 0.0 < claim < math.inf else None
    value, guarantee = _unit_norm(unit, p, claim or None, share or Chance().group(2), route, target)
    return NormBound(Magnitude.of(value).times_power(unit.exponent), guarantee)


def _unit_norm(
    unit: Scaled, p: float, claim: float | None, share: Share, route: Route, target: float
) -> tuple[float, Guarantee]:
    linear = unit.map
    guarantee: Guarantee = "rigorous" if known_rounding(linear) else "numerical"
    rows, columns = absolute_sums(unit)
    largest_row, largest_column = greatest(rows), greatest(columns)
    if p == math.inf:
        return _summed(unit, largest_row, by_rows=True), guarantee
    if p == 1:
        return _summed(unit, largest_column, by_rows=False), guarantee
    schur = mul_up(sqrt_up(largest_row), sqrt_up(largest_column))  # Schur's test: ‖W‖_2 ≤ √(‖W‖_1 ‖W‖_∞)
    if route == "sums" or isinstance(linear, Identity) or _attained(linear, schur, columns):
        return schur, guarantee
    if route == "blocks":
        found = block_norm(linear, written_error(unit, schur))
        return (schur if found is None else min(schur, found)), guarantee
    if route == "passes" or not writable(linear):
        return _matrix_free(unit, schur, claim, share, target)
    if claim is not None and claim >= schur:
        return schur, guarantee
    return min(schur, _written_norm(unit, schur, claim)), guarantee


def _written_norm(unit: Scaled, schur: float, claim: float | None) -> float:
    """The 2-norm of a map that is written down: the claim where it is proved, else a value found.

    What took long is remembered by what determines it, matrix and error: so no value depends on what was remembered.
    """
    matrix, error = enclosed_matrix(unit, schur)
    known = _remembered(matrix, error) if min(matrix.shape) >= _REMEMBERED else _Known()
    if claim is not None and (claim >= known.proved or certify_sigma_max(matrix, error, claim)):
        known.proved = min(known.proved, claim)
        return claim
    if known.found is None:
        known.found = sigma_max_upper(matrix, error)
        known.proved = min(known.proved, known.found)
    return known.found


@dataclass
class _Known:
    """Of a matrix: the least claim that was proved, and the value that is found without one."""

    proved: float = math.inf
    found: float | None = None


def _remembered(matrix: Tensor, error: float) -> _Known:
    digest = sha256(repr((error, matrix.shape)).encode())
    digest.update(matrix.detach().contiguous().numpy().data)
    if len(_KNOWN) > _MOST_REMEMBERED:
        _KNOWN.clear()
    return _KNOWN.setdefault(digest.digest(), _Known())


def remembered(linear: LinearMap) -> bool:
    """Whether the map's norm is so long to prove that it is remembered."""
    return writable(linear) and min(linear.out_size, linear.in_size) >= _REMEMBERED


def enclosed_matrix(unit: Scaled, schur: float) -> tuple[Tensor, float]:
    """The dense matrix of ``unit.map`` and how far it may be from the exact map in the 2-norm."""
    return unit.map.matrix(), written_error(unit, schur)


def written_error(unit: Scaled, schur: float) -> float:
    """How far the matrix of ``unit.map`` may be from the exact map in the 2-norm; ``schur`` bounds ‖|W|‖_2."""
    return add_up(mul_up(2.0 * gamma(terms(unit.map) + 8.0), schur), unit.underflow)


def writable(linear: LinearMap) -> bool:
    """Whether the map is small enough to be written down as a dense matrix."""
    sides = linear.in_size, linear.out_size
    return min(sides) <= MAX_SIDE and sides[0] * sides[1] <= MAX_ENTRIES


def _summed(unit: Scaled, pass_bound: float, by_rows: bool) -> float:
    """The greatest row or column sum; exact up to rounding for composites too, as long as they are not huge."""
    linear = unit.map
    factors = [leaf for leaf in linear.leaves() if not isinstance(leaf, Identity)]
    if len(factors) <= 1 or linear.in_size * linear.out_size > MAX_ENTRIES:
        return pass_bound
    matrix = linear.matrix()
    exact = norm_inf_upper(matrix) if by_rows else norm_1_upper(matrix)
    error = add_up(mul_up(2.0 * gamma(terms(linear) + 8.0), pass_bound), unit.underflow)
    return min(pass_bound, add_up(exact, error))


def flat_gram(linear: LinearMap) -> Gram:
    """x ↦ WᵀW x on flat float64 vectors."""
    here = linear.to(torch.float64, "cpu")
    return lambda x: here.gram(x.reshape(1, *linear.in_shape)).reshape(-1)


def _attained(linear: LinearMap, schur: float, columns: Tensor) -> bool:
    """Whether one step from below already meets √(‖W‖_1‖W‖_∞) (permutations, slices, batch norm, …)."""
    gram = flat_gram(linear)
    spike = torch.zeros(linear.in_size, dtype=torch.float64)
    spike[int(columns.reshape(-1).argmax())] = 1.0
    for start in (spike, torch.ones(linear.in_size, dtype=torch.float64)):
        below = math.sqrt(max(float(gram(start) @ start), 0.0) / max(float(start @ start), 1e-300))
        if below >= schur * (1.0 - 1e-9):
            return True
    return False


def _matrix_free(
    unit: Scaled, schur: float, claim: float | None, share: Share, target: float
) -> tuple[float, Guarantee]:
    """The Lanczos bound, and what the passes' own rounding may hide; claim and search draw one δ each.

    Rounding inside Lanczos is not included: that is what ``probabilistic`` leaves out.
    """
    linear, hidden = unit.map, written_error(unit, schur)
    kind: Guarantee = "probabilistic" if known_rounding(linear) else "numerical"
    power = math.frexp(schur)[1]  # the Gram map is applied to a map of norm about 1
    gram, n = flat_gram(compose(Identity(linear.in_shape, 2.0**-power), linear)), size(linear.in_shape)
    try:
        if claim is not None:
            goal = ldexp_down(max(0.0, claim - hidden), -power) * (1.0 - 1e-12)
            delta = share.draw()
            if certify_sigma_max_probabilistic(gram, n, goal, delta, lanczos_steps(n, delta, target), share.generator):
                return min(claim, schur), kind
        value, _ = sigma_max_probabilistic(gram, n, share.draw(value=True), target, 1000, share.generator)
    except ValueError as error:
        raise NumericsError(f"the largest singular value of a linear map cannot be found: {error}.") from error
    value = add_up(mul_up(value, 2.0**power), hidden)
    return (value, kind) if value < schur else (schur, kind)


def lanczos_steps(n: int, delta: float, target: float) -> int:
    """Lanczos steps whose inflation is ``target``: the least k with 1/√(1 − ε) − 1 ≤ target."""
    epsilon = 1.0 - 1.0 / (1.0 + target) ** 2
    logarithm = math.log(1.648) + 0.5 * math.log(n) - math.log(delta)
    return min(n, math.ceil((logarithm / math.sqrt(epsilon) + 1.0) / 2.0) + 1)
