import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcert.numerics.rounding import (
    UNIT,
    add_up,
    div_up,
    down,
    gamma,
    ldexp_down,
    ldexp_up,
    mul_up,
    norm_up,
    sqrt_up,
    up,
)

nonnegative = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)


def is_least_above(value: float, exact: Fraction) -> bool:
    if math.isinf(value):
        return exact > Fraction(math.nextafter(math.inf, 0.0))
    return Fraction(value) >= exact and (value == 0.0 or Fraction(down(value)) < exact)


@given(st.lists(nonnegative, max_size=6))
def test_add_up_is_the_least_double_above(xs):
    assert is_least_above(add_up(*xs), sum(map(Fraction, xs), Fraction(0)))


@given(nonnegative, nonnegative)
def test_mul_up_is_the_least_double_above(a, b):
    assert is_least_above(mul_up(a, b), Fraction(a) * Fraction(b))


@given(st.lists(nonnegative, min_size=1, max_size=4))
def test_mul_up_of_many_is_above(xs):
    value = mul_up(*xs)
    assert math.isinf(value) or Fraction(value) >= math.prod(map(Fraction, xs))


@given(nonnegative, nonnegative.filter(bool))
def test_div_up_is_the_least_double_above(a, b):
    assert is_least_above(div_up(a, b), Fraction(a) / Fraction(b))


@given(nonnegative)
def test_sqrt_up_is_the_least_double_above(x):
    value = sqrt_up(x)
    assert Fraction(value) ** 2 >= Fraction(x)
    assert value == 0.0 or Fraction(down(value)) ** 2 < Fraction(x)


@given(st.lists(nonnegative, max_size=6))
def test_norm_up_is_above_and_close(xs):
    exact = sum((Fraction(x) ** 2 for x in xs), Fraction(0))
    value = norm_up(xs)
    assert math.isinf(value) or Fraction(value) ** 2 >= exact
    if math.isfinite(value) and value > 1e-300:
        assert (Fraction(value) * Fraction(1 - 1e-14)) ** 2 < exact


@given(nonnegative, st.integers(-2200, 2200))
def test_ldexp_brackets(x, e):
    exact = Fraction(x) * Fraction(2) ** e
    assert is_least_above(ldexp_up(x, e), exact)
    assert 0.0 <= ldexp_down(x, e) < math.inf
    assert Fraction(ldexp_down(x, e)) <= exact


@given(st.integers(0, 2**51))
def test_gamma_is_the_least_double_above(k):
    assert is_least_above(gamma(k), Fraction(k) * Fraction(UNIT) / (1 - Fraction(k) * Fraction(UNIT)))


def test_subnormals_exactness_and_infinity():
    assert mul_up(5e-324, 0.5) == 5e-324
    assert mul_up(1e-200, 1e-200) == 5e-324
    assert div_up(5e-324, 1e300) == 5e-324
    assert mul_up(1.0, 1.0) == add_up(0.5, 0.5) == sqrt_up(1.0) == norm_up([1.0]) == 1.0
    assert norm_up([3.0, 4.0]) == 5.0
    assert norm_up([]) == 0.0
    assert add_up() == 0.0
    assert mul_up() == 1.0
    assert norm_up([5e-324, 5e-324]) >= 1e-323
    assert norm_up([1e308] * 4) == math.inf
    assert math.isinf(norm_up([math.inf, 1.0]))
    assert math.isinf(mul_up(0.0, math.inf))
    assert math.isinf(mul_up(1e300, 1e300, 0.0))
    assert math.isinf(add_up(1.7e308, 1.7e308))
    assert math.isinf(div_up(0.0, 0.0))
    assert div_up(1.0, math.inf) == 0.0
    assert up(1.0) == 1.0 + 2**-52
    assert down(1.0) == 1.0 - 2**-53


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_refuses_nan_and_negative(bad):
    for call in (add_up, mul_up, sqrt_up, gamma, lambda x: div_up(x, 1.0), lambda x: norm_up([x])):
        with pytest.raises(ValueError, match=r"nonnegative|meaningless"):
            call(bad)


@pytest.mark.parametrize("k", [2.0**52, 2.0**60, math.inf])
def test_gamma_refuses_meaningless_counts(k):
    with pytest.raises(ValueError, match="meaningless"):
        gamma(k)
