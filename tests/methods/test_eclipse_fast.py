"""ECLipsE-Fast: the published values, soundness on every slope, order, and which networks it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import lipcert
from lipcert.errors import InputError, MethodError
from tests.methods.solving import solved
from tests.methods.test_lipsdp import HARD, chain, observed, randn, recipe
from tests.zoo import Residual, mlp, vertex_maximum

#: ECLipsE recipe: (L, width, published ECLipsE-Fast value, LipSDP-Neuron optimum).
PUBLISHED = [
    (2, 20, 0.51446926, 0.3839808046),
    (2, 80, 0.30390088, 0.1587430659),
    (5, 40, 0.03705918, 0.0178039737),
    (10, 60, 0.03475104, 0.006984286),
    (20, 40, 0.10813337, 0.0054055987),
    (50, 80, 1.72075e-06, 1.882e-09),
]


def fast(model: nn.Module, n: int, **options: object) -> lipcert.Bound:
    return solved(model, n, lipcert.EclipseFast(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "width", "published", "optimum"), PUBLISHED)
def test_reproduces_the_published_value_and_never_exceeds_it(length, width, published, optimum):
    bound = fast(recipe(length, width), 4, direction="input")
    assert bound.certificate.witness.settings["closed_form_input"] == pytest.approx(published, rel=1e-6)  # type: ignore[union-attr]
    assert bound.guarantee == "rigorous"
    assert optimum <= bound.value <= published * (1 + 1e-6)


@pytest.mark.parametrize("name", ["digits_20x3", "mnist_64"])
def test_trained_networks(name):
    published, optimum = {"digits_20x3": (51.7196176, 44.2275454), "mnist_64": (18.2311143, 17.5928)}[name]
    data = np.load(f"tests/data/{name}.npz")
    weights = [torch.from_numpy(data[k]) for k in sorted(data) if k.startswith("W")]
    bound = fast(chain(*weights), weights[0].shape[1])
    assert bound.certificate.witness.settings["closed_form_input"] == pytest.approx(published, rel=1e-6)  # type: ignore[union-attr]
    assert optimum * (1 - 1e-6) <= bound.value <= published


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(8))
def test_order_on_small_chains(seed):
    weights = [randn(4, 3, seed=seed), randn(3, 4, seed=seed + 100), randn(2, 3, seed=seed + 200)]
    model = chain(*weights)
    for direction in ("input", "output", "best"):
        value = fast(model, 3, direction=direction).value
        assert vertex_maximum(weights) <= value
        assert solved(model, 3, "lipsdp_ipm").value <= value * (1 + 1e-4)
        assert value <= solved(model, 3, "autolip").value * (1 + 1e-5)


def test_best_is_the_better_of_both_ends():
    model = recipe(5, 40)
    both = [fast(model, 4, direction=d).value for d in ("input", "output")]
    assert fast(model, 4).value == min(both)


@pytest.mark.parametrize("direction", ["input", "output"])
@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, lambda: nn.LeakyReLU(-1.5)])
def test_any_slopes(activation, direction):
    model = chain(randn(6, 3, seed=1), randn(6, 6, seed=2), randn(2, 6, seed=3), activation=activation)
    value = fast(model, 3, direction=direction).value
    assert observed(model, (3,)) <= value
    assert value <= solved(model, 3, "autolip").value * (1 + 1e-5)


@pytest.mark.parametrize("direction", ["input", "output"])
def test_slopes_symmetric_about_zero_and_linear_ones(direction):
    weights = [randn(5, 3, seed=1), randn(5, 5, seed=2), randn(2, 5, seed=3)]
    even = fast(chain(*weights, activation=lambda: nn.LeakyReLU(-1.0)), 3, direction=direction).value
    assert vertex_maximum(weights, low=-1.0) <= even
    straight = fast(chain(*weights, activation=lambda: nn.LeakyReLU(1.0)), 3, direction=direction).value
    assert straight == pytest.approx(float(torch.linalg.matrix_norm(weights[2] @ weights[1] @ weights[0], 2)), rel=1e-8)


@pytest.mark.parametrize("name", HARD)
def test_degenerate_weights(name):
    weights = [w.double() for w in HARD[name]]
    value = fast(chain(*weights), weights[0].shape[1]).value
    assert math.isfinite(value)
    assert value >= vertex_maximum(weights) * (1 - 1e-13)


@pytest.mark.parametrize("power", [-6, 6])
def test_twenty_five_layers_of_extreme_scale(power):
    weights = [randn(4, 4, seed=k) for k in range(25)]
    plain = fast(chain(*weights), 4)
    extreme = fast(chain(*[w * 10.0**power for w in weights]), 4)
    assert plain.log10 is not None
    assert extreme.log10 is not None
    assert extreme.log10 == pytest.approx(plain.log10 + 25 * power, abs=1e-2)


def test_branches_and_blocks_are_refused_by_name():
    residual = nn.Sequential(Residual(mlp([4, 6, 4], seed=1)), nn.Linear(4, 2)).double().eval()
    softmax = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=-1), nn.Linear(3, 2)).double().eval()
    for model, word in ((residual, "branch"), (softmax, "gain block")):
        with pytest.raises(MethodError, match=f"{word}.*lipsdp"):
            fast(model, 4)
    with pytest.raises(InputError, match="direction"):
        lipcert.EclipseFast(direction="up")  # type: ignore[arg-type]


def test_round_trip(tmp_path):
    model = recipe(5, 40)
    bound = fast(model, 4)
    bound.save(tmp_path / "c.lipcert")
    assert lipcert.verify(tmp_path / "c.lipcert", model, torch.zeros(1, 4)).value == bound.value


def test_a_linear_network_is_exact():
    weight = randn(3, 4, seed=1)
    assert fast(chain(weight), 4).value == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=1e-7)
