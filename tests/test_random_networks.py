"""AutoLip is above everything an attack or a sample finds, on networks nobody chose; nothing fails without a name."""

import functools
import math

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given

import lipcert
from lipcert.arguments import generator_of
from lipcert.attack import attack
from lipcert.capture.torch_export import capture
from lipcert.methods.base import Run
from lipcert.network.graph import Network
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from tests.zoo import (
    ZOO,
    Case,
    difference_quotients,
    linear_weights,
    networks,
    random_network,
    vertex_maximum,
    zoo_case,
)

INF = math.inf
NORMS = [(2.0, 2.0), (1.0, 1.0), (INF, INF)]


def autolip(problem: Problem) -> lipcert.Bound:
    return lipcert.AutoLip().bound(problem, Run(generator_of(0), torch.device("cpu")), Chance())


def refute(case: Case, norm: tuple[float, float], budget: float) -> str:
    """Bound the network and try to break the bound; the outcome, or an assertion."""
    try:
        problem = Problem(capture(case.model, case.example), norm)
        bound = autolip(problem)
        low = attack(problem, None, budget, seed=0)
    except lipcert.LipcertError as error:
        return type(error).__name__
    assert bound.value >= 0.0  # not NaN either
    assert low.value <= bound.value
    quotients, noise = difference_quotients(case.model, tuple(case.example.shape[1:]), *norm)
    assert bool((quotients <= bound.value * (1 + 1e-9) + noise).all()), (quotients - noise).max()
    return bound.guarantee


@pytest.mark.few(1)
@pytest.mark.parametrize("norm", NORMS)
def test_twelve_networks_in_each_norm(norm: tuple[float, float]) -> None:
    first = {2.0: 0, 1.0: 1000, INF: 2000}[norm[0]]
    outcomes = [refute(random_network(seed), norm, 0.05) for seed in range(first, first + 12)]
    assert outcomes.count("rigorous") >= 9, outcomes


@given(networks())
@hypothesis.settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_hypothesis_draws(case: Case) -> None:
    refute(case, (2.0, 2.0), 0.05)


@pytest.mark.slow
@given(networks())
@hypothesis.settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_five_hundred_networks(case: Case) -> None:
    """The figure of the issue; a share of the networks in each of the three norms."""
    norm = NORMS[[0, 0, 1, 2][len(case.name) % 4]]
    outcome = refute(case, norm, 0.3)
    hypothesis.event(f"{norm[0]:g}: {outcome}")
    assert outcome in ("rigorous", "UnsupportedNormError"), outcome


@pytest.mark.few(6)
@pytest.mark.parametrize("name", [row[0] for row in ZOO])
def test_zoo(name: str) -> None:
    case = zoo_case(name)
    assert refute(case, (2.0, 2.0), 0.05) == "rigorous"


@functools.cache
def captured(name: str) -> Network:
    case = zoo_case(name)
    return capture(case.model, case.example)


@pytest.mark.parametrize("name", ["relu 4-6-3", "relu 1-1-1", "relu 10-4-10", "linear 4-3"])
@pytest.mark.parametrize("norm", NORMS)
def test_order_on_relu_chains(name: str, norm: tuple[float, float]) -> None:
    """lower ≤ L ≤ vertex maximum ≤ AutoLip."""
    case = zoo_case(name)
    problem = Problem(captured(name), norm)
    vertex = vertex_maximum(linear_weights(case.model), p=norm[0])
    assert attack(problem, None, 0.15).value <= vertex * (1 + 1e-9)
    assert vertex <= autolip(problem).value


@pytest.mark.slow
def test_generator_reaches_everything() -> None:
    words = " ".join(random_network(seed).name for seed in range(150))
    for word in ("residual", "concat", "branches", "twice", "conv1d", "conv2d", "MaxPool", "x1e+06", "x1e-06", "zero",
                 "dead", "f32", "f64", "softmax", "layer norm", "max-min", "batch norm", "(1,)"):  # fmt: skip
        assert word in words, word


def test_same_seed_same_network() -> None:
    a, b = random_network(7), random_network(7)
    assert a.name == b.name
    for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
        assert torch.equal(x, y)
