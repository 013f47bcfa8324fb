import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcert.numerics.lanczos import lambda_max_ritz
from lipcert.numerics.probabilistic import (
    certify_sigma_max_probabilistic,
    kuczynski_wozniakowski_epsilon,
    sigma_max_probabilistic,
)

F64 = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def diagonal(values):
    return lambda x: values * x


def gram_of(w):
    return lambda x: w.mT @ (w @ x)


SPECTRA = {
    "uniform": torch.linspace(0, 1, 3000, dtype=F64),
    "clustered": 1.0 - 1e-4 * torch.linspace(0, 1, 3000, dtype=F64) ** 2,
    "one tip": torch.cat([torch.full((2999,), 0.99, dtype=F64), torch.ones(1, dtype=F64)]),
    "equal": torch.ones(3000, dtype=F64),
    "rank 1": torch.cat([torch.zeros(2999, dtype=F64), torch.ones(1, dtype=F64)]),
    "chebyshev": (0.5 + 0.5 * torch.cos(torch.linspace(0, math.pi, 3000, dtype=F64))),
}


@given(st.integers(2, 10**7), st.integers(1, 2000), st.floats(1e-12, 0.5))
def test_epsilon_solves_the_formula_from_above(n, k, delta):
    epsilon = mpmath.mpf(kuczynski_wozniakowski_epsilon(n, k, delta))
    with mpmath.workdps(40):
        root = mpmath.log(mpmath.mpf("1.648") * mpmath.sqrt(n) / mpmath.mpf(delta)) / (2 * k - 1)
        exact = min(mpmath.mpf(1), root**2)
        assert exact <= epsilon <= exact * (1 + mpmath.mpf(10) ** -12)


def test_epsilon_values_and_bad_arguments():
    # about (27/2k)^2 at delta = 1e-9 for n of some ten thousands
    assert kuczynski_wozniakowski_epsilon(70000, 200, 1e-9) == pytest.approx((27 / 400) ** 2, rel=0.03)
    assert kuczynski_wozniakowski_epsilon(1000, 5, 1e-9) == 1.0
    assert kuczynski_wozniakowski_epsilon(1, 1, 1e-9) == 0.0
    for bad in ((0, 1, 0.1), (1, 0, 0.1), (2, 2, 0.0), (2, 2, 1.0), (2, 2, math.nan)):
        with pytest.raises(ValueError, match="need n"):
            kuczynski_wozniakowski_epsilon(*bad)


@pytest.mark.parametrize("name", SPECTRA)
def test_probabilistic_bound_is_above_and_within_target(name):
    values = SPECTRA[name]
    for seed in range(3):
        upper, steps = sigma_max_probabilistic(diagonal(values), 3000, target=0.02, generator=gen(seed))
        assert 1.0 <= upper <= 1.0201
        assert steps < 100
        assert certify_sigma_max_probabilistic(diagonal(values), 3000, 1.03, steps=100, generator=gen(9))
        assert not certify_sigma_max_probabilistic(diagonal(values), 3000, 0.9999, steps=100, generator=gen(9))


def test_failures_are_not_more_frequent_than_delta():
    """At a large delta and few steps the raw Ritz value is below the truth, the inflated one rarely."""
    values, delta, runs = SPECTRA["chebyshev"], 0.1, 200
    raw = inflated = 0
    for seed in range(runs):
        ritz, _ = lambda_max_ritz(diagonal(values), 3000, 8, gen(seed))
        raw += ritz < 1.0
        inflated += ritz / (1 - kuczynski_wozniakowski_epsilon(3000, 8, delta)) < 1.0
    assert raw == runs
    assert inflated <= 0.1 * runs


@pytest.mark.parametrize("n", [1, 2, 17, 60])
def test_small_orders_are_exact(n):
    for seed in range(5):
        w = torch.randn(n + 3, n, dtype=F64, generator=gen(seed))
        upper, steps = sigma_max_probabilistic(gram_of(w), n, target=1e-4, generator=gen(seed))
        truth = float(torch.linalg.svdvals(w)[0])
        assert steps <= n
        assert truth <= upper <= truth * (1 + 1e-12)


def test_ritz_pair():
    w = torch.randn(80, 50, dtype=F64, generator=gen())
    value, vector = lambda_max_ritz(gram_of(w), 50, 40, gen(1))
    assert value == pytest.approx(float(torch.linalg.svdvals(w)[0]) ** 2, rel=1e-10)
    assert float(vector.norm()) == pytest.approx(1.0)
    assert vector.shape == (50,)
    assert float(vector @ (w.mT @ (w @ vector))) == pytest.approx(value)


def test_more_steps_than_the_space_and_breakdown():
    calls = []

    def gram(x):
        calls.append(1)
        return SPECTRA["one tip"] * x

    value, _ = lambda_max_ritz(gram, 3000, 500, gen())
    assert value == pytest.approx(1.0, abs=1e-13)
    assert len(calls) <= 4


def test_zero_map_is_zero_and_underflow_is_not():
    assert sigma_max_probabilistic(lambda x: 0.0 * x, 100, generator=gen())[0] == 0.0
    for factor in (1e-160, 1e-152, 1e-200, 1e160):
        with pytest.raises(ValueError, match="scale"):
            sigma_max_probabilistic(lambda x, f=factor: f * (f * x), 100, generator=gen())


def test_too_few_steps_say_nothing():
    upper, steps = sigma_max_probabilistic(diagonal(SPECTRA["uniform"]), 3000, max_steps=5, generator=gen())
    assert upper == math.inf
    assert steps == 5


def test_bad_maps_raise():
    for bad in (lambda x: x * math.nan, lambda x: x[:-1], lambda x: -x):
        with pytest.raises(ValueError, match="map"):
            lambda_max_ritz(bad, 20, 10, gen())
    with pytest.raises(ValueError, match="target"):
        sigma_max_probabilistic(diagonal(SPECTRA["uniform"]), 3000, target=0.0)


def test_float32():
    values = SPECTRA["clustered"].float()
    upper, _ = sigma_max_probabilistic(diagonal(values), 3000, target=1e-2, dtype=torch.float32, generator=gen())
    assert 1.0 <= upper <= 1.0101
