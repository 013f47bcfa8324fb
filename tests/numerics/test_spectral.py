import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcert.numerics.rounding import down
from lipcert.numerics.spectral import (
    certify_sigma_max,
    gram_radius,
    norm_1_upper,
    norm_inf_upper,
    sigma_max_upper,
)
from tests.numerics.exact import exceeds_sigma_max

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def svd_max(w: torch.Tensor) -> float:
    """sigma_max by SVD of the matrix scaled exactly to about one."""
    e = math.frexp(float(w.abs().max()))[1]
    half = e // 2
    scaled = w.double() * 2.0**-half * 2.0 ** -(e - half)
    return float(torch.linalg.svdvals(scaled)[0]) * 2.0**half * 2.0 ** (e - half)


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.lists(st.integers(-9, 9), min_size=25, max_size=25),
    st.sampled_from([0, -20, -498, 498, -1060]),
)
@settings(max_examples=120, deadline=None)
def test_never_below_the_exact_value(m, n, entries, power):
    """Exact rational oracle: the bound may equal sigma_max, one ulp more must exceed it."""
    small = torch.tensor(entries, dtype=F64)[: m * n].view(m, n)
    w = small * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)
    value = sigma_max_upper(w)
    if not bool(w.any()):
        assert value == 0.0
        return
    scale = Fraction(2) ** -power
    assert exceeds_sigma_max(small, Fraction(math.nextafter(value, math.inf)) * scale)
    assert not exceeds_sigma_max(small, Fraction(value) * scale * (1 - Fraction(1, 10**11))) or power < -1000
    assert certify_sigma_max(w, 0.0, value)
    wrong = svd_max(small) * (1 - 1e-13) * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)
    assert not certify_sigma_max(w, 0.0, wrong) or power < -1000


@given(st.lists(st.integers(-3, 3), min_size=9, max_size=9), st.integers(-3, 3))
@settings(max_examples=120, deadline=None)
def test_a_claim_within_ulps_is_proved_only_if_true(entries, ulps):
    w = torch.tensor(entries, dtype=F64).view(3, 3)
    if not bool(w.any()):
        return
    claim = svd_max(w) * (1 + ulps * 2.0**-52)
    if certify_sigma_max(w, 0.0, claim):
        assert exceeds_sigma_max(w, Fraction(math.nextafter(claim, math.inf)))


SHAPES = [(1, 1), (1, 9), (9, 1), (3, 200), (200, 3), (60, 60)]
SCALES = [1.0, 1e-6, 1e150, 1e-150, 1e-300]
LARGE = [((420, 410), 1.0), ((600, 520), 1e-6)]


@pytest.mark.parametrize(("shape", "scale"), [(s, c) for s in SHAPES for c in SCALES] + LARGE)
def test_close_to_the_svd_and_not_below(shape, scale):
    w = randn(*shape, seed=sum(shape)) * scale
    value, reference = sigma_max_upper(w), svd_max(w)
    assert reference * (1 - 1e-14) <= value <= reference * (1 + 1e-10)
    assert certify_sigma_max(w, 0.0, value)
    assert not certify_sigma_max(w, 0.0, reference * (1 - 1e-12))


@pytest.mark.parametrize("n", [5, 450])
def test_clustered_equal_and_deficient_spectra(n):
    q, _ = torch.linalg.qr(randn(n, n))
    p, _ = torch.linalg.qr(randn(n, n, seed=1))
    for values in (
        torch.ones(n, dtype=F64),
        1.0 - 1e-7 * torch.rand(n, dtype=F64, generator=torch.Generator().manual_seed(3)),
        torch.cat([torch.ones(2, dtype=F64), torch.zeros(n - 2, dtype=F64)]),
        torch.logspace(0, -200, n, dtype=F64),
    ):
        w = (q * values) @ p.mT
        value, reference = sigma_max_upper(w), svd_max(w)
        assert reference * (1 - 1e-14) <= value <= reference * (1 + 1e-9)


def test_a_bad_estimate_still_gives_a_bound(monkeypatch):
    from lipcert.numerics import spectral

    w = randn(30, 40)
    truth = svd_max(w)
    for factor in (0.0, 0.3, 0.999999, 3.0):
        monkeypatch.setattr(spectral, "estimate_lambda_max", lambda g, f=factor: f * truth**2)
        assert sigma_max_upper(w) >= truth


def test_exact_where_the_norms_are():
    assert sigma_max_upper(torch.eye(7)) == 1.0
    assert sigma_max_upper(torch.eye(7)[torch.randperm(7)] * 3.0) == 3.0
    assert sigma_max_upper(torch.tensor([[3.0, 4.0]])) == 5.0
    assert sigma_max_upper(torch.tensor([[-2.5]])) == 2.5


@pytest.mark.parametrize("error", [1e-300, 1e-12, 0.3, 1e9])
def test_error_radius_is_added_and_recheckable(error):
    for w in (randn(20, 30), torch.eye(5, dtype=F64)):
        value, reference = sigma_max_upper(w, error), svd_max(w)
        assert (reference + error) * (1 - 1e-14) <= value <= (reference + error) * (1 + 1e-10)
        assert certify_sigma_max(w, error, value)
        assert not certify_sigma_max(w, error, (reference + error) * (1 - 1e-12))
        if error > 1e-13:
            assert not certify_sigma_max(w, error, value - 0.01 * error - 1e-10 * reference)


def test_zero_empty_and_infinite():
    for w in (torch.zeros(3, 4), torch.empty(0, 4), torch.empty(4, 0)):
        assert sigma_max_upper(w) == 0.0
        assert sigma_max_upper(w, 0.25) == 0.25
        assert certify_sigma_max(w, 0.25, 0.25)
        assert not certify_sigma_max(w, 0.25, 0.2)
    assert sigma_max_upper(torch.full((2, 2), 1.7e308, dtype=F64)) == math.inf
    w = torch.ones(2, 2)
    assert certify_sigma_max(w, 0.0, math.inf)
    assert not certify_sigma_max(w, math.inf, 5.0)
    assert not certify_sigma_max(w, 0.0, math.nan)
    assert not certify_sigma_max(w, 0.0, -1.0)
    assert not certify_sigma_max(w, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_exact(dtype):
    w = randn(20, 30).to(dtype)
    assert sigma_max_upper(w) == sigma_max_upper(w.double())


@pytest.mark.parametrize(
    "w",
    [
        torch.tensor([[math.nan, 1.0]]),
        torch.tensor([[math.inf, 1.0]]),
        torch.ones(3),
        torch.ones(2, 2, dtype=torch.int64),
        torch.ones(2, 2, dtype=torch.complex64),
    ],
)
def test_bad_matrices_raise(w):
    for call in (sigma_max_upper, norm_1_upper, norm_inf_upper, lambda x: certify_sigma_max(x, 0.0, 9.0)):
        with pytest.raises(ValueError, match="matrix"):
            call(w)


@pytest.mark.parametrize("error", [-1.0, math.nan])
def test_bad_error_raises(error):
    with pytest.raises(ValueError, match="error must be"):
        sigma_max_upper(torch.ones(2, 2), error)


def test_flushed_subnormals_are_refused():
    if not torch.set_flush_denormal(True):
        pytest.skip("cannot flush here")
    try:
        with pytest.raises(ValueError, match="subnormal"):
            sigma_max_upper(randn(3, 3))
    finally:
        torch.set_flush_denormal(False)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([1.0, 1e-320, 1e150]))
@settings(max_examples=60, deadline=None)
def test_sums_are_the_least_doubles_above(m, n, seed, scale):
    w = randn(m, n, seed=seed) * scale
    exact = max(sum(abs(Fraction(x)) for x in column) for column in w.mT.tolist())
    for value in (norm_1_upper(w), norm_inf_upper(w.mT)):
        assert Fraction(value) >= exact
        assert value == 0.0 or Fraction(down(value)) < exact


def test_sums_with_ties_and_overflow(monkeypatch):
    from lipcert.numerics import spectral

    w = torch.full((1000, 50), 0.1, dtype=F64)
    exact = 1000 * Fraction(0.1)
    tight = norm_1_upper(w)
    monkeypatch.setattr(spectral, "_EXACT_SUM_ENTRIES", 10)
    loose = norm_1_upper(w)
    assert exact <= Fraction(tight) <= Fraction(loose)
    assert loose < tight * (1 + 1e-12)
    assert norm_1_upper(torch.full((2, 2), 1.7e308, dtype=F64)) == math.inf
    assert norm_1_upper(torch.empty(0, 3)) == norm_inf_upper(torch.empty(0, 3)) == 0.0


def test_gram_radius_is_above_the_true_rounding():
    x = randn(5, 700) / 4
    rows = [[Fraction(v) for v in r] for r in x.tolist()]
    from lipcert.numerics.spectral import gram_of

    gram = gram_of(x)
    assert torch.equal(gram, gram.mT)
    worst = max(
        abs(Fraction(float(gram[i, j])) - sum(a * b for a, b in zip(rows[i], rows[j], strict=True)))
        for i in range(5)
        for j in range(5)
    )
    assert 0 < worst <= Fraction(gram_radius(x))
    assert gram_radius(x) < 1e-10


@pytest.mark.parametrize("wide", [False, True])
def test_many_small_blocks_in_any_order_have_the_norm_of_the_largest(wide):
    """Rows and columns are put in order for the proof, which is to change no singular value."""
    generator = torch.Generator().manual_seed(5)
    block = torch.randn(20, 26, dtype=torch.float64, generator=generator)
    scales = torch.linspace(0.1, 1.0, 31, dtype=torch.float64)
    whole = torch.block_diag(*(s * block for s in scales))
    whole = whole[torch.randperm(whole.shape[0], generator=generator)]
    whole = whole[:, torch.randperm(whole.shape[1], generator=generator)]
    whole = whole if wide else whole.mT
    exact = float(torch.linalg.svdvals(block)[0])
    assert exact * (1 - 1e-14) <= sigma_max_upper(whole) <= exact * (1 + 1e-9)
    assert certify_sigma_max(whole, 0.0, exact * (1 + 1e-10))
    assert not certify_sigma_max(whole, 0.0, exact * (1 - 1e-10))


def test_another_default_device_changes_nothing():
    w = torch.randn(200, 220, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = sigma_max_upper(w)
    with torch.device("meta"):
        for _ in range(20):  # what was read from there was uninitialised memory
            assert sigma_max_upper(w) == expected
            assert not certify_sigma_max(w, 0.0, 0.5 * expected)
