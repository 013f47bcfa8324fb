"""Certified operator norms of linear maps: rigorous where the map can be written down, probabilistic beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.network.linear import Identity, LinearMap, Shape, compose, size
from lipcert.numerics.lanczos import certify_sigma_max_probabilistic, sigma_max_probabilistic
from lipcert.numerics.rounding import add_up, gamma, mul_up, sqrt_up
from lipcert.numerics.spectral import certify_sigma_max, norm_1_upper, norm_inf_upper, sigma_max_upper
from lipcert.result import Guarantee

#: Largest number of entries, and largest shorter side, of a map that is written down as a matrix.
MAX_ENTRIES, MAX_SIDE = 120_000_000, 6_500
#: Relative inflation aimed at by the probabilistic bound, and slack kept so that a re-check passes.
TARGET, SLACK = 1e-2, 1e-3
#: A nonzero map whose computed norm falls below this may have underflowed; the bound stops here.
FLOOR = 1e-280


@dataclass(frozen=True)
class NormBound:
    """‖W‖_{p→p} ≤ value."""

    value: float
    guarantee: Guarantee


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

    def update_hash(self, digest: object) -> None:
        for linear in self.maps:
            linear.update_hash(digest)


def is_zero(linear: LinearMap) -> bool:
    """Whether the map is exactly zero by construction: an empty side, or a factor whose constants are all zero."""
    if linear.in_size == 0 or linear.out_size == 0:
        return True
    parts = getattr(linear, "maps", None)
    if parts is not None:
        zero = [is_zero(m) for m in parts]
        return any(zero) if type(linear).__name__ == "Composition" else all(zero)
    if isinstance(linear, Identity):
        return linear.scale == 0.0
    constants = getattr(linear, "constants", ())
    return any(not bool(c.any()) for c in constants)


def absolute_sums(linear: LinearMap) -> tuple[Tensor, Tensor]:
    """Upper bounds of the row sums and column sums of |W|: two passes of the absolute map on ones, rounded up.

    Returns:
        (row sums of shape out_shape, column sums of shape in_shape), float64.
    """
    absolute = linear.absolute().to(torch.float64, "cpu")
    with torch.no_grad():
        rows = absolute.apply(torch.ones(1, *linear.in_shape, dtype=torch.float64))[0]
    columns = absolute.transpose(torch.ones(1, *linear.out_shape, dtype=torch.float64))[0].detach()
    widen = add_up(1.0, mul_up(4.0, gamma(_terms(linear) + 8.0)))
    return rows * widen, columns * widen


def map_norm(linear: LinearMap, p: float, claim: float | None = None, delta: float = 1e-9,
             generator: torch.Generator | None = None) -> NormBound:  # fmt: skip
    """Certified upper bound of ‖W‖_{p→p}, p in {1, 2, inf}.

    With a ``claim`` that can be proved, the claim is the value (one factorisation); otherwise the value is found here.

    Why this is an upper bound: for p = 1 and ∞ it is a sum of absolute values rounded up (Scaman & Virmaux 2018 and
    any textbook: greatest column / row sum). For p = 2 it is √(‖|W|‖_1 ‖|W|‖_∞), or a value proved by a verified
    Cholesky factorisation of the materialised matrix, whose distance from the exact map, at most
    γ_k √(‖|W|‖_1 ‖|W|‖_∞) in the 2-norm, is added; or, where the matrix is too large, the Lanczos bound of
    Kuczyński & Woźniakowski (1992).
    """
    if is_zero(linear):
        return NormBound(0.0, "rigorous")
    guarantee: Guarantee = "rigorous" if math.isfinite(linear.rounding) else "numerical"
    rows, columns = absolute_sums(linear)
    largest_row, largest_column = _greatest(rows), _greatest(columns)
    if p == math.inf:
        return NormBound(max(FLOOR, _summed(linear, largest_row, by_rows=True)), guarantee)
    if p == 1:
        return NormBound(max(FLOOR, _summed(linear, largest_column, by_rows=False)), guarantee)
    schur = _schur_of(largest_row, largest_column)
    if isinstance(linear, Identity) or _attained(linear, schur):
        return NormBound(schur, guarantee)
    if writable(linear):
        matrix = linear.matrix()
        error = mul_up(2.0 * gamma(_terms(linear) + 8.0), schur)
        if claim is not None and certify_sigma_max(matrix, error, claim):
            return NormBound(max(FLOOR, min(claim, schur)), guarantee)
        return NormBound(max(FLOOR, min(schur, sigma_max_upper(matrix, error))), guarantee)
    return _matrix_free(linear, schur, claim, delta, generator)


def propose_norm(linear: LinearMap, p: float, delta: float = 1e-9, generator: torch.Generator | None = None) -> float:
    """A value that ``map_norm`` will very probably be able to prove: the search side, not a bound."""
    if p != 2 or is_zero(linear):
        return map_norm(linear, p).value
    if not writable(linear):
        return map_norm(linear, p, None, delta, generator).value * (1.0 + SLACK)
    return sigma_max_upper(linear.matrix(), mul_up(2.0 * gamma(_terms(linear) + 8.0), _schur(linear))) * (1.0 + 1e-12)


def writable(linear: LinearMap) -> bool:
    """Whether the map is small enough to be written down as a dense matrix."""
    sides = linear.in_size, linear.out_size
    return min(sides) <= MAX_SIDE and sides[0] * sides[1] <= MAX_ENTRIES


def _terms(linear: LinearMap) -> float:
    return linear.rounding if math.isfinite(linear.rounding) else float(linear.in_size + linear.out_size)


def _greatest(values: Tensor) -> float:
    greatest = float(values.max()) if values.numel() else 0.0
    if not math.isfinite(greatest):
        raise NumericsError("a linear map overflows float64; rescale the weights of the layers concerned.")
    return greatest


def _schur_of(largest_row: float, largest_column: float) -> float:
    """√(‖W‖_1 ‖W‖_∞) ≥ ‖W‖_2, rounded up (Schur's test)."""
    return max(FLOOR, mul_up(sqrt_up(largest_row), sqrt_up(largest_column)))


def _schur(linear: LinearMap) -> float:
    rows, columns = absolute_sums(linear)
    return _schur_of(_greatest(rows), _greatest(columns))


def _summed(linear: LinearMap, pass_bound: float, by_rows: bool) -> float:
    """The greatest row or column sum; exact up to rounding for composites too, as long as they are not huge."""
    if len(linear.leaves()) <= 1 or linear.in_size * linear.out_size > MAX_ENTRIES:
        return pass_bound
    matrix = linear.matrix()
    exact = norm_inf_upper(matrix) if by_rows else norm_1_upper(matrix)
    return min(pass_bound, add_up(exact, mul_up(2.0 * gamma(_terms(linear) + 8.0), pass_bound)))


def _unit(linear: LinearMap) -> tuple[LinearMap, float]:
    """The map divided by a power of two so that its norm is about 1 at most, and that power."""
    rows, columns = absolute_sums(linear)
    bound = math.sqrt(_greatest(rows)) * math.sqrt(_greatest(columns))
    exponent = max(-1000, min(1000, math.frexp(bound)[1]))
    return compose(Identity(linear.in_shape, 2.0**-exponent), linear), 2.0**exponent


def _gram(linear: LinearMap):  # type: ignore[no-untyped-def]
    """x ↦ WᵀW x on flat float64 vectors."""
    here = linear.to(torch.float64, "cpu")
    return lambda x: here.gram(x.reshape(1, *linear.in_shape)).reshape(-1)


def _attained(linear: LinearMap, schur: float) -> bool:
    """Whether a few steps from below already meet √(‖W‖_1‖W‖_∞) (permutations, slices, batch norm, …)."""
    scaled, scale = _unit(linear)
    gram = _gram(scaled)
    vector = torch.ones(linear.in_size, dtype=torch.float64)
    rows, columns = absolute_sums(linear)
    spike = torch.zeros(linear.in_size, dtype=torch.float64)
    spike[int(columns.reshape(-1).argmax())] = 1.0
    for start in (spike, vector):
        image = gram(start)
        below = math.sqrt(max(float(image @ start), 0.0) / max(float(start @ start), 1e-300)) * scale
        if below >= schur * (1.0 - 1e-9):
            return True
    return False


def _matrix_free(
    linear: LinearMap, schur: float, claim: float | None, delta: float, generator: torch.Generator | None
) -> NormBound:
    scaled, scale = _unit(linear)
    gram, n = _gram(scaled), size(linear.in_shape)
    if claim is not None:
        goal = claim / scale * (1.0 - 1e-12)
        if certify_sigma_max_probabilistic(gram, n, goal, delta, _steps(n, delta), generator):
            return NormBound(min(claim, schur), "probabilistic" if math.isfinite(linear.rounding) else "numerical")
    value, _ = sigma_max_probabilistic(gram, n, delta, TARGET, 1000, generator)
    value = mul_up(value, scale)
    kind: Guarantee = "probabilistic" if math.isfinite(linear.rounding) else "numerical"
    return NormBound(max(FLOOR, value), kind) if value < schur else NormBound(schur, kind)


def _steps(n: int, delta: float) -> int:
    """Lanczos steps whose inflation is TARGET: the least k with 1/√(1 − ε) − 1 ≤ TARGET."""
    epsilon = 1.0 - 1.0 / (1.0 + TARGET) ** 2
    logarithm = math.log(1.648) + 0.5 * math.log(n) - math.log(delta)
    return min(n, int(math.ceil((logarithm / math.sqrt(epsilon) + 1.0) / 2.0)) + 1)
