"""Norms between l1, l2 and l∞ of matrices and boxes of matrices, against brute force; what a change of norms costs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lipcert.certificates.norms.conversion import NORMS, cost, equivalence
from lipcert.certificates.norms.mixed_norm import SIGNS, Box, box_norm, mixed_norms
from lipcert.network.linear import Dense, compose
from lipcert.numerics.least_gain import least_gain_lower

INF = math.inf
PAIRS = [pair for pair in itertools.product(NORMS, NORMS) if pair != (2.0, 2.0)]


def exact(w: Tensor, p: float, q: float) -> float:
    """‖W‖_{p→q} by columns, rows, singular values or all signs of the input or of the output."""
    m, n = w.shape
    if p == 1:
        return float(w.norm(p=q, dim=0).max())
    if q == INF:
        return float(w.norm(p={2.0: 2.0, INF: 1.0}[p], dim=1).max())
    if p == q == 2:
        return float(torch.linalg.matrix_norm(w, 2))
    if p == INF:
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)
        return float((signs @ w.T).norm(p=q, dim=1).max())
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=m)), dtype=torch.float64)
    return float((signs @ w).norm(dim=1).max())


def random(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_of_one_matrix_it_is_exact(p: float, q: float) -> None:
    for seed, (m, n) in enumerate([(1, 1), (3, 4), (4, 3), (1, 6), (6, 1), (5, 9), (9, 5)]):
        w = random(m, n, seed)
        value = box_norm(Box(w, torch.zeros_like(w)), p, q)
        assert exact(w, p, q) <= value * (1 + 1e-15)
        assert value == pytest.approx(exact(w, p, q), rel=1e-13)


@pytest.mark.parametrize(("p", "q"), [(INF, 1.0), (INF, 2.0), (2.0, 1.0)])
def test_beyond_the_signs_it_is_still_a_bound(p: float, q: float) -> None:
    w = random(SIGNS + 2, SIGNS + 2)
    assert exact(w, p, q) <= box_norm(Box(w, torch.zeros_like(w)), p, q)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_of_a_box_it_is_above_every_matrix_in_it(p: float, q: float) -> None:
    for seed in range(4):
        w, radius = random(4, 5, seed), 0.3 * random(4, 5, seed + 50).abs()
        value = box_norm(Box(w, radius), p, q)
        for other in range(40):
            corner = w + radius * (random(4, 5, 100 + other).sign() if other % 2 else random(4, 5, other).clamp(-1, 1))
            assert exact(corner, p, q) <= value


@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1.0, 1e6, 1e180])
def test_of_maps_and_products_of_maps(scale: float) -> None:
    a, b = random(5, 4, 1) * scale, random(3, 5, 2)
    first = Dense((a,), (1, 4), (1, 5), 5.0, stored=True)
    both = compose(first, Dense((b,), (1, 5), (1, 3), 5.0, stored=True))
    for linear, matrix in ((first, a), (both, b @ (a / scale) * scale)):
        found, guarantee = mixed_norms(linear)
        assert guarantee == "rigorous"
        assert set(found) >= set(PAIRS)
        for pair in PAIRS:
            truth = exact(matrix / scale, *pair) * scale
            assert truth * (1 - 1e-13) <= float(found[pair]) <= truth * (1 + 1e-10)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_cost_of_another_norm_is_attained(n: int) -> None:
    ones, unit = torch.ones(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)[0]
    for p, q in itertools.product(NORMS, NORMS):
        attained = max(float(z.norm(p=q) / z.norm(p=p)) for z in (ones, unit))
        assert attained * (1 - 1e-15) <= float(equivalence(n, p, q)) <= attained * (1 + 1e-15)
        z = random(200, n)
        assert bool((z.norm(p=q, dim=1) <= float(equivalence(n, p, q)) * z.norm(p=p, dim=1) * (1 + 1e-15)).all())


def test_costs_of_matrices() -> None:
    w = random(4, 6)
    for one, other in itertools.product(itertools.product(NORMS, NORMS), repeat=2):
        assert exact(w, *one) <= float(cost(one, other, 6, 4)) * exact(w, *other) * (1 + 1e-14)


@pytest.mark.parametrize("p", NORMS)
def test_the_least_gain_is_below_every_stretch_and_near_the_truth(p: float) -> None:
    for seed, (m, n) in enumerate([(1, 1), (4, 4), (7, 4), (3, 3)]):
        w, zero = random(m, n, seed), torch.zeros(m, n, dtype=torch.float64)
        value = least_gain_lower(w, zero, p)
        x = random(4000, n, seed + 9)
        assert value <= float(((x @ w.T).norm(p=p, dim=1) / x.norm(p=p, dim=1)).min())
        if p == 2:
            assert value == pytest.approx(float(torch.linalg.svdvals(w)[-1]), rel=1e-9)
        elif m == n:
            assert value == pytest.approx(1.0 / exact(torch.linalg.inv(w), p, p), rel=1e-9)
        radius = 0.1 * value / math.sqrt(n * m) * torch.ones(m, n, dtype=torch.float64)
        lower = least_gain_lower(w, radius, p)
        assert 0.0 <= lower < value
        for other in range(20):
            v = w + radius * random(m, n, other).sign()
            assert lower <= least_gain_lower(v, zero, p) * (1 + 1e-9)


def test_the_least_gain_of_what_is_not_injective_is_zero() -> None:
    zero = torch.zeros(2, 3, dtype=torch.float64)
    assert least_gain_lower(random(2, 3), zero, 2.0) == 0.0
    assert least_gain_lower(torch.ones(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64), 2.0) == 0.0
    assert least_gain_lower(torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64), INF) == 0.0
