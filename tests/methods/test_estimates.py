"""The paper's heuristics reproduce its kind of numbers, on either side of the truth, and never pass for bounds."""

import numpy as np
import pytest
import torch
from torch import nn

import lipcert
from lipcert.errors import InputError, MethodError, UnsupportedNormError
from lipcert.methods.estimates import METHODS
from lipcert.methods.pair_ascent import Slopes, Stage, maximise_greedily, maximise_lbfgs
from tests.methods.test_seqlip import chain, trained
from tests.zoo import ZOO, Residual, linear_weights, mlp, vertex_maximum, zoo_case

COUNTEREXAMPLE = [np.array([[-2, -2, 0], [1, 2, 2], [2, 1, -1]]), np.array([[1, 1, 0], [1, 0, 1]])]


def estimate(model: nn.Module, n: int, method: str = "seqlip_greedy", **options: object) -> lipcert.Estimate:
    return lipcert.estimate(model, torch.zeros(1, n), method, **options)  # type: ignore[arg-type]


def test_greedy_lies_below_a_proven_lower_bound() -> None:
    model = chain(COUNTEREXAMPLE)
    found = estimate(model, 3)
    assert found.value == pytest.approx(3.16227766, rel=1e-7)
    x = torch.tensor([-1.0, 0.5, -0.5], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x)
    assert float(torch.linalg.matrix_norm(jacobian, 2)) == pytest.approx(4.0)
    assert not isinstance(found, (lipcert.Bound, lipcert.LowerBound))
    assert "not a bound" in str(found)


@pytest.mark.parametrize(("name", "n", "value"), [("digits_20x3", 64, 51.014), ("mnist_64", 784, 17.5924)])
def test_reference_values(name: str, n: int, value: float) -> None:
    model = trained(name)
    assert estimate(model, n).value == pytest.approx(value, abs=6e-5 * value / 10)
    assert estimate(model, n, "seqlip_lbfgs").value == pytest.approx(value, rel=2e-2)
    product = lipcert.bound(model, torch.zeros(1, n), method="autolip").value
    assert estimate(model, n, "power_iteration").value == pytest.approx(product, rel=1e-3)
    assert estimate(model, n, "power_iteration", steps=1).value < product


@pytest.mark.parametrize("seed", range(5))
def test_one_pair_is_approached_from_below(seed: int) -> None:
    model = mlp((4, 9, 3), seed)
    truth = vertex_maximum(linear_weights(model))
    for method in ("seqlip_greedy", "seqlip_lbfgs", "seqlip_rank_k"):
        assert 0.5 * truth <= estimate(model, 4, method).value <= truth * (1 + 1e-9)


def test_low_rank_tends_to_the_full_spectrum() -> None:
    model = trained("digits_20x3")
    values = [estimate(model, 64, "seqlip_rank_k", k=k).value for k in (1, 5, 20)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(estimate(model, 64).value, rel=1e-6)


@pytest.mark.parametrize("maximise", [maximise_greedily, maximise_lbfgs])
def test_large_pairs_flip_many_neurons_at_once(maximise: object) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(700, 40, generator=generator).double()
    b = torch.randn(40, 700, generator=generator).double()
    low, high = torch.zeros(700).double(), torch.ones(700).double()
    value = maximise(b, a, Stage([Slopes(low, high)]))  # type: ignore[operator]
    norms = [float(torch.linalg.matrix_norm(w, 2)) for w in (a, b)]
    assert float(torch.linalg.matrix_norm(b @ a, 2)) <= value <= norms[0] * norms[1]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [name for name, _, _ in ZOO])
def test_every_estimate_on_every_graph(name: str) -> None:
    case = zoo_case(name)
    values = [lipcert.estimate(case.model, case.example, method, steps=300).value for method in METHODS]
    product = lipcert.bound(case.model, case.example, method="autolip").value
    assert all(0.0 <= value <= product * (1 + 1e-9) for value in values)


def test_residual_and_negative_slopes() -> None:
    model = Residual(mlp((3, 6, 3), 0, lambda: nn.LeakyReLU(-1.5)))
    inner = vertex_maximum(linear_weights(model.inner), -1.5, 1.0)
    assert estimate(model, 3).value <= (1.0 + inner) * (1 + 1e-9)


def test_bad_input() -> None:
    model = mlp((4, 5, 3), 0)
    with pytest.raises(InputError, match="unknown estimate 'greedy'; estimates: seqlip_greedy"):
        estimate(model, 4, "greedy")
    with pytest.raises(UnsupportedNormError):
        estimate(model, 4, norm=(1, 1))
    with pytest.raises(MethodError, match=r"k = 9 is more than the rank of any layer \(4\)"):
        estimate(model, 4, "seqlip_rank_k", k=9)
    for options in ({"k": 2}, {"steps": 0}, {"steps": True}):
        with pytest.raises(InputError):
            estimate(model, 4, **options)
