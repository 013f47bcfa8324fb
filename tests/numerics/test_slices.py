"""More than float64: sums and bilinear maps against exact rationals."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lipcert.numerics.midrad import Range, renormalised
from lipcert.numerics.slices import bilinear, cut


def numbers(*shape: int, seed: int, spread: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 2.0 ** torch.randint(-spread, spread + 1, shape, generator=generator).double()
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def exact(x: Range, place: int) -> Fraction:
    return sum((Fraction(float(p.reshape(-1)[place])) for p in (x.mid, *x.tail)), Fraction(0))


def long_numbers(*shape: int, seed: int, digits: int, spread: int) -> Range:
    mid = numbers(*shape, seed=seed, spread=spread)
    tail = [numbers(*shape, seed=seed + k + 1, spread=0) * mid.abs() * 2.0 ** (-54 * (k + 1)) for k in range(digits)]
    return Range(mid, mid.abs() * 1e-25, tuple(tail))


@pytest.mark.parametrize("digits", [1, 2, 4])
def test_sums_lose_nothing(digits):
    parts = [numbers(50, seed=k, spread=60) for k in range(6)]
    parts[3] = -parts[0]
    total = renormalised(list(parts), torch.zeros(50, dtype=torch.float64), digits)
    for place in range(50):
        true = sum(Fraction(float(p[place])) for p in parts)
        assert abs(true - exact(total, place)) <= Fraction(float(total.rad[place]))
        assert float(total.rad[place]) <= 2.0 ** (-50 * (digits + 1)) * max(1e-300, abs(float(true))) + 1e-90


@pytest.mark.parametrize("spread", [0, 10, 40, 300])
@pytest.mark.parametrize("digits", [1, 3])
def test_products_enclose_rationals(spread, digits):
    W = numbers(5, 7, seed=1, spread=spread)
    x = long_numbers(2, 7, seed=2, digits=digits, spread=min(spread, 40))

    def apply(constant: Tensor, batch: Tensor) -> Tensor:
        return batch @ constant.T

    image = bilinear(apply, W, x, 8.0)
    assert image is not None
    scale = float((W.abs() @ x.mid.abs().T).max())
    for row in range(2):
        for i in range(5):
            place = row * 5 + i
            true = sum(Fraction(float(W[i, j])) * exact(x, row * 7 + j) for j in range(7))
            wide = sum(abs(Fraction(float(W[i, j]))) * Fraction(float(x.rad[row, j])) for j in range(7))
            assert abs(true - exact(image, place)) + wide <= Fraction(float(image.rad.reshape(-1)[place]))
            if spread <= 10:
                assert float(image.rad.reshape(-1)[place]) <= float(wide) * 1.001 + scale * 2.0 ** (-50 * (digits + 1))


def test_slices_add_up():
    x = numbers(40, seed=5, spread=20)
    tail = numbers(40, seed=6, spread=0) * 2.0**-60
    slices, exponent, rest = cut([x, tail], 15, 6)  # type: ignore[misc]
    for place in range(40):
        whole = sum(Fraction(float(s[place])) * Fraction(2) ** (exponent - 15 * (k + 1)) for k, s in enumerate(slices))
        true = Fraction(float(x[place])) + Fraction(float(tail[place]))
        assert abs(true - whole) <= Fraction(float(rest[place]))
        assert all(float(s[place]) == round(float(s[place])) for s in slices)
    assert cut([torch.tensor([1e300], dtype=torch.float64)], 15, 6) is None
    assert cut([torch.tensor([torch.inf], dtype=torch.float64)], 15, 6) is None
