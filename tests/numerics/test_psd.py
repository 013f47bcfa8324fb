import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcert.numerics import psd
from lipcert.numerics.psd import all_finite, is_positive_definite, is_positive_definite_scaled
from tests.numerics.exact import fractions
from tests.numerics.exact import is_positive_definite as exactly_pd

CHECKS = [is_positive_definite, is_positive_definite_scaled]


def mat(rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("check", CHECKS)
@settings(max_examples=120, deadline=None)
@given(
    entries=st.lists(st.integers(-3, 3), min_size=16, max_size=16),
    rank=st.integers(1, 4),
    shift=st.sampled_from([-1.0, -(2.0**-45), -(2.0**-52), 0.0, 2.0**-50, 2.0**-20, 1.0]),
    power=st.sampled_from([0, -500, 480]),
)
def test_a_proof_is_never_wrong(check, entries, rank, shift, power):
    """Gram matrices of small integers (often singular), moved by a few ulps, against exact pivots."""
    b = mat(entries).view(4, 4)[:, :rank]
    a = (b @ b.mT + shift * torch.eye(4, dtype=torch.float64)) * 2.0**power
    proved = check(a)
    assert not proved or exactly_pd(fractions(a))
    if shift == 1.0:
        assert proved


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("n", [2, 3, 7, 40, 600])
def test_singular_matrices_are_not_proved(check, n):
    ones = torch.ones(n, n, dtype=torch.float64)
    assert not check(ones)
    laplacian = n * torch.eye(n, dtype=torch.float64) - ones
    assert not check(laplacian)
    assert not check(laplacian - 2.0**-50 * torch.eye(n, dtype=torch.float64))
    assert check(laplacian + 1e-6 * torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("reach", [1, 40, 300])
def test_bands_are_proved_by_blocks(check, reach, monkeypatch):
    """Sums of (x_i − x_j)² over neighbours: 0 at the ones, and no factor of the whole matrix is asked for."""
    n, factored = 1500, []
    dense = torch.linalg.cholesky_ex

    def seen(b):
        factored.append(len(b))
        return dense(b)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", seen)
    near = (torch.arange(n)[:, None] - torch.arange(n)).abs() <= reach
    laplacian = -near.double().fill_diagonal_(0.0)
    laplacian.diagonal().copy_(-laplacian.sum(dim=1))
    least = float(laplacian.diagonal().max())
    assert not check(laplacian)
    assert not check(laplacian - 1e-9 * torch.eye(n, dtype=torch.float64))
    assert check(laplacian + 1e-8 * least * torch.eye(n, dtype=torch.float64))
    hole = laplacian + torch.eye(n, dtype=torch.float64)
    assert check(hole)
    hole[n - 3, n - 3] = 0.5 * float(hole[n - 3, n - 4])  # less than 0
    assert not check(hole)
    assert set(factored) <= {256, n % 256}


def test_a_factor_by_blocks_is_one():
    """B = LLᵀ for bands whose width varies, against LAPACK."""
    torch.manual_seed(0)
    width = torch.randint(1, 260, (1300,))
    near = (torch.arange(1300)[:, None] - torch.arange(1300)) <= width[:, None]
    lower = torch.where(near, torch.randn(1300, 1300, dtype=torch.float64) / 20.0, 0.0).tril()
    lower.diagonal().fill_(2.0)
    b = lower @ lower.mT
    found = psd._cholesky(b)
    assert found is not None
    assert torch.equal(found, found.tril())
    assert torch.allclose(found, torch.linalg.cholesky(b), rtol=1e-9, atol=1e-10)
    b[700, 700] = -1.0
    assert psd._cholesky(b) is None


@pytest.mark.parametrize("check", CHECKS)
def test_hilbert_matrices(check):
    """The stored (rounded) Hilbert matrices, judged by exact pivots."""
    verdicts = []
    for n in range(1, 16):
        h = mat([[1.0 / (i + j + 1) for j in range(n)] for i in range(n)])
        verdicts.append(check(h))
        assert not verdicts[-1] or exactly_pd(fractions(h))
    assert all(verdicts[:9])
    assert not all(verdicts)


def test_radius_is_respected_to_the_limit():
    q, _ = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(1)).double())
    a = (q * torch.linspace(0.5, 2.0, 30, dtype=torch.float64)) @ q.mT
    a = (a + a.mT) / 2
    assert is_positive_definite(a, 0.5 - 1e-10)
    assert not is_positive_definite(a, 0.5 + 1e-10)
    assert not is_positive_definite(a, 0.5)
    assert not is_positive_definite(a, math.inf)


@pytest.mark.parametrize("scale", [1.0, 2.0**-900, 2.0**900, 2.0**-1060])
def test_order_one_and_extreme_scales(scale):
    assert is_positive_definite(mat([[scale]]), scale / 2)
    assert not is_positive_definite(mat([[scale]]), scale)
    eye = torch.eye(3, dtype=torch.float64) * scale
    assert is_positive_definite(eye, scale * 0.5)
    assert not is_positive_definite(eye, scale)
    assert is_positive_definite_scaled(eye, eye * 0.5)
    assert not is_positive_definite_scaled(eye, eye)


def test_scaled_entry_radius():
    """[[1, x], [x, 1]] is definite iff |x| < 1, at wild scalings of the two rows."""
    d = torch.diag(mat([2.0**-300, 2.0**250]))
    base, error = d @ mat([[1.0, 0.5], [0.5, 1.0]]) @ d, d @ mat([[0.0, 1.0], [1.0, 0.0]]) @ d
    assert is_positive_definite_scaled(base, 0.499999 * error)
    assert not is_positive_definite_scaled(base, 0.5 * error)
    assert not is_positive_definite_scaled(base, 0.7 * error)
    assert not is_positive_definite_scaled(base, math.inf * mat([[1.0, 1.0], [1.0, 1.0]]))


@given(st.integers(0, 2**31), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_scaled_entry_radius_covers_its_corners(seed, n):
    """Every sign pattern of the error that is tried must leave a proved matrix definite."""
    g = torch.Generator().manual_seed(seed)
    b = torch.randn(n, n, dtype=torch.float64, generator=g)
    d = torch.diag(2.0 ** torch.randint(-20, 20, (n,), generator=g).double())
    a = d @ (b @ b.mT + 0.3 * torch.eye(n, dtype=torch.float64)) @ d
    a = a.tril() + a.tril(-1).mT
    e = d @ torch.rand(n, n, dtype=torch.float64, generator=g) @ d
    e = 0.1 * (e + e.mT)
    if is_positive_definite_scaled(a, e):
        signs = torch.randn(n, dtype=torch.float64, generator=g).sign()
        for pattern in (torch.outer(signs, signs), -torch.outer(signs, signs)):
            corner = [
                [Fraction(x) + Fraction(y) for x, y in zip(r, s, strict=True)]
                for r, s in zip(a.tolist(), (pattern * e).tolist(), strict=True)
            ]
            assert exactly_pd(corner)


@pytest.mark.parametrize("check", CHECKS)
def test_degenerate_input(check):
    assert check(torch.empty(0, 0, dtype=torch.float64))
    for bad in (math.nan, math.inf):
        a = torch.eye(3, dtype=torch.float64)
        a[0, 1] = a[1, 0] = bad
        assert not check(a)
    assert not check(mat([[1.0, 1e300], [1e300, 1.0]]))
    assert not check(torch.zeros(2, 2, dtype=torch.float64))
    assert not check(mat([[0.0]]))
    for wrong in (torch.ones(2, 3).double(), torch.eye(2), mat([[1.0, 0.5], [0.4, 1.0]])):
        with pytest.raises(ValueError, match=r"symmetric|square"):
            check(wrong)


def test_bad_radius_raises():
    eye = torch.eye(2, dtype=torch.float64)
    for radius in (-1.0, math.nan):
        with pytest.raises(ValueError, match="radius"):
            is_positive_definite(eye, radius)
        with pytest.raises(ValueError, match="radius"):
            is_positive_definite_scaled(eye, radius * eye)
    with pytest.raises(ValueError, match="radius"):
        is_positive_definite_scaled(eye, torch.zeros(3, 3, dtype=torch.float64))


def test_a_wrong_factor_proves_nothing(monkeypatch):
    """The factorisation is untrusted: one that lies must be caught by its residual."""
    n = 20
    eye = torch.eye(n, dtype=torch.float64)
    indefinite = eye.clone()
    indefinite[0, 1] = indefinite[1, 0] = 1.5
    lie = eye.clone()
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda b: (lie, torch.tensor(0)))
    assert not is_positive_definite(indefinite)
    lie[3, 3] = math.nan
    assert not is_positive_definite(eye)


@pytest.mark.parametrize("depth", [3, 512, 513, 1700])
def test_product_rows_is_within_its_gamma(depth):
    g = torch.Generator().manual_seed(depth)
    x = torch.randn(6, depth, dtype=torch.float64, generator=g) * torch.logspace(-8, 8, depth).double()
    got = psd.product_rows(x, 2, 6, depth)
    rows = fractions(x)
    gamma = Fraction(psd.gamma(psd.product_terms(depth)))
    for i in range(4):
        for j in range(6):
            terms = [a * b for a, b in zip(rows[i + 2], rows[j], strict=True)]
            assert abs(Fraction(float(got[i, j])) - sum(terms)) <= gamma * sum(map(abs, terms))


@pytest.mark.parametrize("seed", range(4))
def test_a_banded_product_leaves_out_nothing(seed):
    """Rows ``start:stop`` of X Xᵀ where X has zeros all over: as with all products, in exact arithmetic."""
    generator = torch.Generator().manual_seed(seed)
    n, m = 1300, 1700
    x = torch.randint(-3, 4, (n, m), generator=generator).double()
    width = int(torch.randint(1, 700, (1,), generator=generator))
    x = x * ((torch.arange(n)[:, None] - torch.arange(m)).abs() < width)
    x[600:900] = 0.0  # a piece without an entry
    for start, stop in ((0, 512), (512, 1024), (600, 900), (1024, n)):
        assert torch.equal(psd.product_rows(x, start, stop, m), x[start:stop] @ x[:stop].mT)
        assert torch.equal(psd.product_rows(x, start, stop, stop), x[start:stop, :stop] @ x[:stop, :stop].mT)


@pytest.mark.parametrize("width", [1, 40])
def test_the_band_of_a_large_matrix_is_judged_by_its_least_eigenvalue(width):
    """Second differences of lines side by side: the least eigenvalue is 4 sin²(π/(2(k + 1))), k to a line."""
    n = 1600
    k = n // width
    a = 2.0 * torch.eye(n, dtype=torch.float64)
    a.diagonal(width).fill_(-1.0)
    a.diagonal(-width).fill_(-1.0)
    least = 4.0 * math.sin(math.pi / (2 * (k + 1))) ** 2
    eye = torch.eye(n, dtype=torch.float64)
    for share, definite in ((0.9, True), (1.1, False)):
        assert is_positive_definite(a - share * least * eye) is definite
        assert is_positive_definite_scaled(a - share * least * eye) is definite


def test_residual_bound_is_above_the_exact_residual():
    g = torch.Generator().manual_seed(0)
    b = torch.randn(12, 12, dtype=torch.float64, generator=g)
    b = b @ b.mT + torch.eye(12, dtype=torch.float64)
    b = b.tril() + b.tril(-1).mT
    factor = fractions(torch.linalg.cholesky_ex(b)[0])
    exact = np.array(
        [
            [
                float(sum(p * q for p, q in zip(factor[i], factor[j], strict=True)) - Fraction(float(b[i, j])))
                for j in range(12)
            ]
            for i in range(12)
        ]
    )
    bound = psd._factor_residual_up(b)
    assert np.linalg.norm(exact, 2) <= bound < 1e-11


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (17, 9), (8, 64)])
def test_one_entry_that_is_not_finite_is_seen(value: float, sides: tuple[int, int]) -> None:
    """At every place, of the matrix and of its transpose, beside numbers of every size."""
    matrix = torch.logspace(-300, 300, sides[0] * sides[1], dtype=torch.float64).reshape(sides)
    assert all_finite(matrix)
    assert all_finite(-matrix.mT)
    for place in range(matrix.numel()):
        lie = matrix.clone()
        lie.reshape(-1)[place] = value
        assert not all_finite(lie)
        assert not all_finite(lie.mT)
    assert all_finite(matrix[:0])
