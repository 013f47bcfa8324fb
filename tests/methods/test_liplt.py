"""LipLT: closed forms, the order of methods, other norms, graphs, scales, the matrix-free route and its errors."""

from __future__ import annotations

import importlib
import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates import loop_transform
from lipcert.certificates.norms import written_map
from lipcert.certificates.recursions import SparseRecursion
from lipcert.errors import CertificateError, InputError, UnsupportedNormError
from lipcert.network.linear import Dense, Identity
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from tests.methods.solving import solved
from tests.methods.test_lipsdp import HARD, INF, chain, observed, randn, recipe
from tests.numerics.exact import fractions
from tests.zoo import ZOO, difference_quotients, mlp, vertex_maximum, zoo_case

liplt_module = importlib.import_module("lipcert.methods.liplt")  # the name lipcert.methods is taken by the function


def liplt(model: nn.Module, n: int, norm: tuple[float, float] = (2, 2), **options: object) -> lipcert.Bound:
    return solved(model, n, lipcert.LipLT(**options), norm=norm)  # type: ignore[arg-type]


def autolip(model: nn.Module, n: int, norm: tuple[float, float] = (2, 2)) -> float:
    return solved(model, n, "autolip", norm=norm).value


def two_norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def test_the_formula_on_three_layers():
    a, b, c = randn(5, 3, seed=1), randn(4, 5, seed=2), randn(2, 4, seed=3)
    first = two_norm(a)
    second = min(two_norm(b @ a) / 2 + two_norm(b) * first / 2, two_norm(b) * first)
    direct = two_norm(c @ b @ a) / 4 + two_norm(c @ b) * first / 4 + two_norm(c) * second / 2
    bound = liplt(chain(a, b, c), 3)
    assert bound.guarantee == "rigorous"
    assert min(direct, two_norm(c) * second) == pytest.approx(bound.value, rel=1e-9)
    assert bound.value >= min(direct, two_norm(c) * second)


@pytest.mark.parametrize("seed", range(6))
def test_between_vertex_maximum_and_product(seed):
    weights = [randn(4, 3, seed=seed), randn(4, 4, seed=seed + 100), randn(2, 4, seed=seed + 200)]
    model = chain(*weights)
    for p in (2.0, 1.0, INF):
        assert vertex_maximum(weights, p=p) <= liplt(model, 3, (p, p)).value
        assert liplt(model, 3, (p, p)).value <= autolip(model, 3, (p, p)) * (1 + 1e-9)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [name for name, _, _ in ZOO])
def test_the_zoo(name):
    case = zoo_case(name)
    for p in (2.0, 1.0, INF):
        product = solved(case.model, case.example, "autolip", (p, p)).value
        value = solved(case.model, case.example, "liplt", (p, p)).value
        quotient, noise = difference_quotients(case.model, tuple(case.example.shape[1:]), p, p)
        assert bool((quotient - noise <= value).all())
        assert value <= product * (1 + 1e-9)


@pytest.mark.parametrize("name", HARD)
def test_degenerate_weights(name):
    weights = [w.double() for w in HARD[name]]
    model, n = chain(*weights), weights[0].shape[1]
    assert vertex_maximum(weights) * (1 - 1e-13) <= liplt(model, n).value <= autolip(model, n) * (1 + 1e-9)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.ELU, nn.Mish])
def test_slopes_below_zero_and_above_one(activation):
    model = chain(randn(6, 3, seed=1), randn(6, 6, seed=2), randn(2, 6, seed=3), activation=activation)
    assert liplt(model, 3).value >= observed(model, (3,))


def test_a_leaky_relu_of_slope_one_is_linear():
    a, b, c = randn(5, 3, seed=1), randn(5, 5, seed=2), randn(2, 5, seed=3)
    model = chain(a, b, c, activation=lambda: nn.LeakyReLU(1.0))
    assert liplt(model, 3).value == pytest.approx(two_norm(c @ b @ a), rel=1e-9)


@pytest.mark.parametrize("power", [pytest.param(-6, marks=pytest.mark.slow), 6])
def test_twenty_layers_of_extreme_scale(power):
    weights = [randn(4, 4, seed=k) for k in range(20)]
    plain = liplt(chain(*weights), 4)
    extreme = liplt(chain(*[w * 10.0**power for w in weights]), 4)
    assert plain.log10 is not None
    assert extreme.log10 is not None
    assert extreme.log10 == pytest.approx(plain.log10 + 20 * power, abs=1e-6)


def test_gain_block_in_the_middle():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Softmax(dim=-1), nn.Linear(5, 2)).eval()
    assert observed(model, (4,)) <= liplt(model, 4).value <= autolip(model, 4) * (1 + 1e-9)


def test_no_worse_than_the_product_on_deep_recipe_nets_and_fast():
    bound = liplt(recipe(20, 40), 4)
    assert 0.0054055987 <= bound.value <= 0.1922
    assert bound.seconds < 20


class Wide:
    """Force the matrix-free route."""

    @staticmethod
    def is_dense(network: object) -> bool:
        return False


@pytest.mark.parametrize("build", [lambda: recipe(5, 40), lambda: zoo_case("residual").model,
                                   lambda: zoo_case("max-min 4-6-6-3").model])  # fmt: skip
def test_the_matrix_free_route_agrees(monkeypatch, build):
    model = build()
    dense = liplt(model, 4)
    monkeypatch.setattr(loop_transform, "is_dense", Wide.is_dense)
    free = liplt(model, 4)
    assert (dense.guarantee, free.guarantee) == ("rigorous", "probabilistic")
    assert dense.value * 0.9999 <= free.value <= dense.value * 1.1


def test_a_shorter_window_is_looser_and_still_true(monkeypatch):
    model = recipe(5, 40)
    monkeypatch.setattr(loop_transform, "is_dense", Wide.is_dense)
    values = [liplt(model, 4, window=w).value for w in (1, 2, 4)]
    assert 0.0178 <= values[2] <= values[1] * 1.02
    assert values[1] <= values[0] * 1.02
    assert values[0] <= autolip(model, 4) * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e7])
def test_written_products_enclose_the_exact_ones(scale):
    maps = [randn(4, 4, seed=k) * scale ** ((-1) ** k) for k in range(6)]
    block = written_map.identity(4)
    exact = [[Fraction(int(i == j)) for j in range(4)] for i in range(4)]
    for matrix in maps:
        block = written_map.written(Dense((matrix,), (1, 4), (1, 4), math.inf), 2.0).after(block)
        left = fractions(matrix)
        exact = [[sum(left[i][k] * exact[k][j] for k in range(4)) for j in range(4)] for i in range(4)]
    unit = Fraction(2) ** block.exponent
    distance = sum((Fraction(float(block.matrix[i, j])) * unit - exact[i][j]) ** 2 for i in range(4) for j in range(4))
    assert distance <= (Fraction(block.error) * unit) ** 2
    assert block.error < 1e-11 * float(block.matrix.norm())


def test_sums_of_blocks_far_apart_in_size():
    small, large = (
        written_map.EnclosedMatrix(randn(3, 3, seed=1), -3000, 1e-16),
        written_map.EnclosedMatrix(randn(3, 3, seed=2), 5, 0.0),
    )
    both = written_map.total([small, large], 2.0)
    assert both.exponent == pytest.approx(5, abs=8)
    assert both.norm(2.0).log10 == pytest.approx(large.norm(2.0).log10, abs=1e-12)


def test_round_trip_and_refusals(tmp_path):
    model = recipe(2, 20)
    bound = liplt(model, 4)
    bound.save(tmp_path / "c.lipcert")
    assert lipcert.verify(tmp_path / "c.lipcert", model, torch.zeros(1, 4)).value == bound.value
    with pytest.raises(CertificateError):
        lipcert.verify(tmp_path / "c.lipcert", recipe(2, 80), torch.zeros(1, 4))
    with pytest.raises(UnsupportedNormError):
        liplt(model, 4, (2, 1))
    for window in (0, -1, 1.5):
        with pytest.raises(InputError):
            lipcert.LipLT(window=window)  # type: ignore[arg-type]


def test_scaling_a_layer_scales_the_bound():
    a, b = randn(6, 3, seed=1), randn(2, 6, seed=2)
    assert liplt(chain(a, -3 * b), 3).value == pytest.approx(3 * liplt(chain(a, b), 3).value, rel=1e-9)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_maxcut_of_complete_graphs(size):
    edges = list(itertools.combinations(range(size), 2))
    incidence = torch.zeros(size, len(edges))
    for place, (i, j) in enumerate(edges):
        incidence[i, place], incidence[j, place] = 1.0, -1.0
    assert liplt(chain(incidence, torch.ones(1, size)), len(edges)).value >= math.sqrt(size * size // 4)


def test_constant_network_has_constant_zero():
    assert liplt(mlp([3, 4, 2], seed=0).double(), 3).value > 0
    assert liplt(chain(torch.zeros(4, 3), randn(2, 4, seed=1)), 3).value == 0.0


@pytest.mark.few(11)
@pytest.mark.parametrize("name", [name for name, _, _ in ZOO])
def test_every_view_computes_the_network_itself(name):
    case = zoo_case(name)
    problem = Problem(capture(case.model, case.example))
    x = torch.randn(3, *problem.network.in_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for view in (problem.network, problem.expanded):
        assert torch.allclose(view.forward(x), problem.model.forward(x), atol=1e-10)


def test_a_wide_network_with_pooling(monkeypatch):
    """The route without matrices on selections, which it once could not evaluate."""
    monkeypatch.setattr(liplt_module, "is_dense", lambda network: False)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.ReLU()).eval()
    quotient, noise = difference_quotients(model, (1, 10, 10), 2.0, 2.0)
    bound = lipcert.bound(model, torch.zeros(1, 1, 10, 10), lipcert.LipLT(), budget=5.0)
    assert bool((quotient - noise <= bound.value).all())


def test_norms_of_maps_that_are_gone_are_not_those_of_others() -> None:
    increments = Problem(capture(mlp([2, 3, 2]), torch.zeros(1, 2)), (2.0, 2.0)).increments
    recursion = SparseRecursion(increments, 2.0, Chance(), None)
    for k in range(1, 100):
        value = recursion._norm_of(Identity((1, 2), float(k)), 0).value
        assert k <= value <= k * (1.0 + 1e-9)
