"""Certified operator norms of linear maps: rigorous where the map can be written down, probabilistic beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.network.linear import Composition, Identity, LinearMap, OpMap, Shape, Sum, add, compose, size
from lipcert.numerics.chance import Chance, Share
from lipcert.numerics.lanczos import Gram, certify_sigma_max_probabilistic, sigma_max_probabilistic
from lipcert.numerics.magnitude import Magnitude
from lipcert.numerics.rounding import add_up, gamma, ldexp_down, mul_up, sqrt_up
from lipcert.numerics.spectral import (
    certify_sigma_max,
    norm_1_upper,
    norm_inf_upper,
    sigma_max_upper,
)
from lipcert.result import Guarantee

#: Largest number of entries, and largest shorter side, of a map that is written down as a matrix.
MAX_ENTRIES, MAX_SIDE = 120_000_000, 6_500
#: Relative inflation aimed at by the probabilistic bound, and slack kept so that a re-check passes.
TARGET, SLACK = 1e-2, 3e-3
#: A composition is rescaled where its norm may have drifted by more than 2^DRIFT; a factor may reach 2^±REACH.
DRIFT, REACH = 32, 700
#: Rounding counts beyond this say nothing useful; such constants count as of unknown error.
MOST_ROUNDINGS = 2.0**40


@dataclass(frozen=True)
class NormBound:
    """‖W‖_{p→p} ≤ magnitude, which may lie outside the range of floats."""

    magnitude: Magnitude
    guarantee: Guarantee

    @property
    def value(self) -> float:
        """The bound as a float, rounded up."""
        return float(self.magnitude)


class Stacked(LinearMap):
    """The map (x_1, …, x_k) ↦ Σ W_i x_i of the concatenated, flattened inputs."""

    def __init__(self, maps: tuple[LinearMap, ...]) -> None:
        self.maps = maps
        self.in_shape: Shape = (sum(m.in_size for m in maps),)
        self.out_shape: Shape = maps[0].out_shape
        self.rounding = max(m.rounding for m in maps) + len(maps)

    def apply(self, x: Tensor) -> Tensor:
        pieces = torch.split(x, [m.in_size for m in self.maps], dim=1)
        images = [m.apply(p.reshape(len(x), *m.in_shape)) for m, p in zip(self.maps, pieces, strict=True)]
        return sum(images[1:], images[0])

    def absolute(self) -> LinearMap:
        return Stacked(tuple(m.absolute() for m in self.maps))

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearMap:
        return Stacked(tuple(m.to(dtype, device) for m in self.maps))

    def leaves(self) -> tuple[LinearMap, ...]:
        return tuple(leaf for m in self.maps for leaf in m.leaves())

    @property
    def is_zero(self) -> bool:
        """Whether every map is zero."""
        return all(m.is_zero for m in self.maps)

    def update_hash(self, digest: object) -> None:
        for linear in self.maps:
            linear.update_hash(digest)


@dataclass(frozen=True)
class Scaled:
    """W = 2^exponent · map, the map being written so that no intermediate value over- or underflows.

    ``underflow`` is the most that lost low-order bits (numbers below the normal range) can change the map: a bound in
    the 2-norm of the error matrix, and of each of its row and column sums.
    """

    map: LinearMap
    exponent: int
    underflow: float


def scaled(linear: LinearMap) -> Scaled:
    """Take the powers of two out of a map, factor by factor (a hundred fused layers of norm 1e±6 need this).

    Why nothing is lost: powers of two are exact. With every ‖|W_i|‖_2 ≤ 2^{e_i}, the norms of all partial products of
    the rescaled factors lie below 2^{DRIFT} and those of what follows below 2^{2·DRIFT}, times 2^{|e_i|} inside a
    factor; an error of 2^−1022 in each of the N numbers of a pass is amplified by no more than that.

    Raises:
        NumericsError: a factor's norm lies beyond 2^±REACH (about 1e±210), or overflows.
    """
    worst = [0]
    unit, exponent = _scaled(linear, worst)
    numbers = sum(leaf.in_size + leaf.out_size for leaf in unit.leaves()) + linear.in_size + linear.out_size
    numbers_squared = mul_up(float(numbers), float(numbers), 8.0)
    return Scaled(unit, exponent, mul_up(2.0 ** (-1022 + 4 * DRIFT + worst[0]), numbers_squared))


def _scaled(linear: LinearMap, worst: list[int]) -> tuple[LinearMap, int]:
    if isinstance(linear, Composition):
        return _scaled_composition(linear, worst)
    if isinstance(linear, (Sum, Stacked)):
        pieces = [_scaled(m, worst) for m in linear.maps]
        top = max(e for _, e in pieces)
        shifted = tuple(_shifted(m, e - top) for m, e in pieces)
        return (Stacked(shifted) if isinstance(linear, Stacked) else add(*shifted)), top
    exponent = _exponent(linear)
    worst[0] = max(worst[0], math.ceil(inner_reach(linear)))
    if abs(exponent) <= DRIFT:
        return linear, 0
    return _scaled_composition(Composition((linear,)), worst)


def _scaled_composition(linear: Composition, worst: list[int]) -> tuple[LinearMap, int]:
    parts: list[LinearMap] = []
    taken, drift = 0, 0
    for factor in linear.maps:
        here, inner = _scaled(factor, worst) if isinstance(factor, (Sum, Composition)) else (factor, 0)
        taken += inner
        exponent = _exponent(here)
        worst[0] = max(worst[0], abs(exponent), math.ceil(inner_reach(here)))
        drift += exponent
        if abs(drift) <= DRIFT:
            parts.append(here)
            continue
        power = Identity(here.in_shape if drift < 0 else here.out_shape, 2.0**-drift)
        parts += [power, here] if drift < 0 else [here, power]
        taken += drift
        drift = 0
    return compose(*parts), taken


def _shifted(linear: LinearMap, shift: int) -> LinearMap:
    """2^shift · map for a shift ≤ 0; beyond 2^−1600 nothing is left in floats, and ``underflow`` covers it."""
    shift = max(shift, -1600)
    while shift < 0:
        step = max(shift, -800)
        linear = compose(linear, Identity(linear.out_shape, 2.0**step))
        shift -= step
    return linear


def inner_reach(linear: LinearMap) -> float:
    """Powers of two by which a number, and with it an error of underflow, may grow between two factors of a map."""
    if isinstance(linear, Composition):
        return sum(max(inner_reach(m), abs(_exponent(m))) for m in linear.maps)
    if isinstance(linear, (Sum, Stacked)):
        return max(inner_reach(m) for m in linear.maps)
    constants = getattr(linear, "constants", ())
    return sum(_size_in_powers(c) for c in constants) if len(constants) > 1 else 0.0


def _size_in_powers(constant: Tensor) -> float:
    greatest = float(constant.abs().max()) if constant.numel() else 0.0
    return abs(math.log2(greatest)) if 0.0 < greatest < math.inf else 0.0


def _exponent(linear: LinearMap) -> int:
    """e with ‖|W|‖_2 ≤ 2^e, by √(‖W‖_1 ‖W‖_∞), and hardly less."""
    if isinstance(linear, OpMap) and inner_reach(linear) > REACH:
        raise NumericsError(f"the constants of {linear.label} are too far from 1 in size; rescale the weights.")
    rows, columns = _sums(linear)
    bound = math.sqrt(greatest(rows)) * math.sqrt(greatest(columns))
    exponent = math.frexp(bound)[1] if bound else 0
    if abs(exponent) > REACH:
        raise NumericsError(
            f"a linear map has a norm of about 2^{exponent}, outside the range in which sums stay certified "
            f"(2^±{REACH}); rescale the weights of the layer concerned."
        )
    return exponent


def _sums(linear: LinearMap) -> tuple[Tensor, Tensor]:
    """Row sums and column sums of ``absolute()``, as computed."""
    absolute = linear.absolute().to(torch.float64, "cpu")
    with torch.no_grad():
        rows = absolute.apply(torch.ones(1, *linear.in_shape, dtype=torch.float64))[0]
    columns = absolute.transpose(torch.ones(1, *linear.out_shape, dtype=torch.float64))[0].detach()
    return rows, columns


def absolute_sums(unit: Scaled) -> tuple[Tensor, Tensor]:
    """Upper bounds of the row sums and column sums of |map|: two passes of the absolute map on ones, rounded up.

    Returns:
        (row sums of shape out_shape, column sums of shape in_shape), float64, of ``unit.map`` (without its exponent).
    """
    rows, columns = _sums(unit.map)
    widen = add_up(1.0, mul_up(4.0, gamma(_terms(unit.map) + 8.0)))
    return rows * widen + unit.underflow, columns * widen + unit.underflow


#: How a 2-norm is bounded: ``written``, by a matrix where it can be written down and by passes beyond; ``passes``, by
#: Lanczos passes alone; ``sums``, by √(‖W‖_1 ‖W‖_∞), two passes.
Route = Literal["written", "passes", "sums"]


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
    guarantee: Guarantee = "rigorous" if _known(linear) else "numerical"
    rows, columns = absolute_sums(unit)
    largest_row, largest_column = greatest(rows), greatest(columns)
    if p == math.inf:
        return _summed(unit, largest_row, by_rows=True), guarantee
    if p == 1:
        return _summed(unit, largest_column, by_rows=False), guarantee
    schur = mul_up(sqrt_up(largest_row), sqrt_up(largest_column))  # Schur's test: ‖W‖_2 ≤ √(‖W‖_1 ‖W‖_∞)
    if route == "sums" or isinstance(linear, Identity) or _attained(linear, schur, columns):
        return schur, guarantee
    if route == "passes" or not writable(linear):
        return _matrix_free(unit, schur, claim, share, target)
    matrix, error = written_map(unit, schur)
    if claim is not None and certify_sigma_max(matrix, error, claim):
        return min(claim, schur), guarantee
    return min(schur, sigma_max_upper(matrix, error)), guarantee


def written_map(unit: Scaled, schur: float) -> tuple[Tensor, float]:
    """The dense matrix of ``unit.map`` and how far it may be from the exact map in the 2-norm."""
    return unit.map.matrix(), written_error(unit, schur)


def written_error(unit: Scaled, schur: float) -> float:
    """How far the matrix of ``unit.map`` may be from the exact map in the 2-norm; ``schur`` bounds ‖|W|‖_2."""
    return add_up(mul_up(2.0 * gamma(_terms(unit.map) + 8.0), schur), unit.underflow)


def writable(linear: LinearMap) -> bool:
    """Whether the map is small enough to be written down as a dense matrix."""
    sides = linear.in_size, linear.out_size
    return min(sides) <= MAX_SIDE and sides[0] * sides[1] <= MAX_ENTRIES


def _known(linear: LinearMap) -> bool:
    """Whether the rounding error of the map's constants and of applying it is known."""
    return linear.rounding <= MOST_ROUNDINGS


def _terms(linear: LinearMap) -> float:
    return linear.rounding if _known(linear) else float(linear.in_size + linear.out_size)


def greatest(values: Tensor) -> float:
    """The largest of non-negative numbers, 0 for none.

    Raises:
        NumericsError: not finite.
    """
    largest = float(values.max()) if values.numel() else 0.0
    if not math.isfinite(largest):
        raise NumericsError("a linear map overflows float64; rescale the weights of the layers concerned.")
    return largest


def _summed(unit: Scaled, pass_bound: float, by_rows: bool) -> float:
    """The greatest row or column sum; exact up to rounding for composites too, as long as they are not huge."""
    linear = unit.map
    factors = [leaf for leaf in linear.leaves() if not isinstance(leaf, Identity)]
    if len(factors) <= 1 or linear.in_size * linear.out_size > MAX_ENTRIES:
        return pass_bound
    matrix = linear.matrix()
    exact = norm_inf_upper(matrix) if by_rows else norm_1_upper(matrix)
    error = add_up(mul_up(2.0 * gamma(_terms(linear) + 8.0), pass_bound), unit.underflow)
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
    kind: Guarantee = "probabilistic" if _known(linear) else "numerical"
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
