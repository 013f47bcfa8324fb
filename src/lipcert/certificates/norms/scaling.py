"""Powers of two out of a map, factor by factor, so that no pass overflows and what underflow takes is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.network.linear import Composition, Identity, LinearMap, OpMap, Sum, add, compose
from lipcert.network.stacked import Stacked
from lipcert.numerics.rounding import add_up, gamma, mul_up

#: A composition is rescaled where its norm may have drifted by more than 2^DRIFT; a factor may reach 2^±REACH.
DRIFT, REACH = 32, 700
#: Rounding counts beyond this say nothing useful; such constants count as of unknown error.
MOST_ROUNDINGS = 2.0**40


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
    power = -1022 + 4 * DRIFT + worst[0]
    return Scaled(unit, exponent, mul_up(2.0**power, numbers_squared) if power < 1024 else math.inf)


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
    widen = add_up(1.0, mul_up(4.0, gamma(terms(unit.map) + 8.0)))
    return rows * widen + unit.underflow, columns * widen + unit.underflow


def greatest(values: Tensor) -> float:
    """The largest of non-negative numbers, 0 for none.

    Raises:
        NumericsError: not finite.
    """
    largest = float(values.max()) if values.numel() else 0.0
    if not math.isfinite(largest):
        raise NumericsError("a linear map overflows float64; rescale the weights of the layers concerned.")
    return largest


def known_rounding(linear: LinearMap) -> bool:
    """Whether the rounding error of the map's constants and of applying it is known."""
    return linear.rounding <= MOST_ROUNDINGS


def terms(linear: LinearMap) -> float:
    """The rounding count to reckon with: the map's own, or its sizes where none is known."""
    return linear.rounding if known_rounding(linear) else float(linear.in_size + linear.out_size)
