import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcert.numerics.triplets import top_singular_triplets

F64 = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def triplets(w, k, **options):
    m, n = w.shape
    options.setdefault("generator", gen(5))
    return top_singular_triplets(lambda x: x @ w.mT, lambda y: y @ w, n, m, k, dtype=w.dtype, **options)


def assert_triplets(w, k, result, tol):
    u, s, v, residuals = result
    scale = float(torch.linalg.svdvals(w)[0]) or 1.0
    eye = torch.eye(k, dtype=w.dtype)
    assert u.shape == (w.shape[0], k)
    assert v.shape == (w.shape[1], k)
    assert residuals.shape == (k,)
    torch.testing.assert_close(s, torch.linalg.svdvals(w)[:k], rtol=0, atol=tol * scale)
    torch.testing.assert_close(u.mT @ u, eye, rtol=0, atol=100 * torch.finfo(w.dtype).eps)
    torch.testing.assert_close(v.mT @ v, eye, rtol=0, atol=100 * torch.finfo(w.dtype).eps)
    exact = torch.hypot((w @ v - u * s).norm(dim=0), (w.mT @ u - v * s).norm(dim=0))
    torch.testing.assert_close(exact, residuals, rtol=1e-2, atol=100 * torch.finfo(w.dtype).eps * scale)
    assert float(residuals.max()) <= tol * scale


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.data())
def test_against_the_dense_svd(m, n, rank, data):
    k = data.draw(st.integers(1, min(m, n)))
    block = data.draw(st.sampled_from([None, 1, 3, 64]))
    g = gen(m * 1000 + n)
    w = torch.randn(m, rank, dtype=F64, generator=g) @ torch.randn(rank, n, dtype=F64, generator=g)
    assert_triplets(w, k, triplets(w, k, block=block, tol=1e-9), 1e-9)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_restarts_converge(shape, dtype):
    w = torch.randn(*shape, generator=gen(2), dtype=F64).to(dtype)
    tol = 1e-8 if dtype == F64 else 3e-5
    assert_triplets(w, 25, triplets(w, 25, tol=tol), tol)


def test_equal_singular_values_and_zero():
    q, _ = torch.linalg.qr(torch.randn(120, 120, dtype=F64, generator=gen()))
    w = q * torch.cat([torch.full((6,), 2.0), torch.full((114,), 1.0)]).double()
    assert_triplets(w, 10, triplets(w, 10, block=8, tol=1e-9), 1e-9)
    assert_triplets(torch.zeros(30, 20, dtype=F64), 4, triplets(torch.zeros(30, 20, dtype=F64), 4), 1e-12)


def test_strided_convolution_given_as_code():
    kernel = torch.randn(4, 3, 3, 3, dtype=F64, generator=gen(1))

    def apply(x):
        return F.conv2d(x.view(-1, 3, 10, 10), kernel, stride=2, padding=1).flatten(1)

    def transpose(y):
        return torch.func.vjp(apply, y.new_zeros(len(y), 300))[1](y)[0]

    dense = apply(torch.eye(300, dtype=F64)).mT
    result = top_singular_triplets(apply, transpose, 300, 100, 12, generator=gen(), tol=1e-9)
    assert_triplets(dense, 12, result, 1e-9)


def test_unconverged_residuals_are_reported():
    w = torch.randn(500, 500, dtype=F64, generator=gen())
    *_, residuals = triplets(w, 20, tol=1e-12, max_iter=0)
    assert 1e-6 < float(residuals.max()) < math.inf


@pytest.mark.parametrize("k", [0, 21])
def test_bad_k_raises(k):
    with pytest.raises(ValueError, match="k must be"):
        triplets(torch.ones(20, 30, dtype=F64), k)


def test_bad_maps_raise():
    for bad in (lambda x: x * math.nan, lambda x: x[:, :-1]):
        with pytest.raises(ValueError, match="the map returned"):
            top_singular_triplets(bad, lambda y: y, 8, 8, 2, generator=gen())
