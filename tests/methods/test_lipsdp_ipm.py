"""The interior point: reference optima to six digits, order, oracles, every kind of graph, and its limits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness
from lipcert.certificates.bound import check
from lipcert.errors import CertificateError, InputError, MethodError, NotProved, NumericsError
from lipcert.methods.base import Run
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from lipcert.search.interior_point import Program, solve
from tests.methods.solving import solved
from tests.methods.test_lipsdp import HARD, chain, observed, randn, recipe
from tests.zoo import ZOO, Residual, mlp, random_network, vertex_maximum, zoo_case

RECIPE = [(2, 20, 0.3839808046), (2, 80, 0.1587430659), (5, 40, 0.0178039737)]
#: LipSDP-Neuron optima of trained and random networks; the vertex maximum of lipsdp_mnist is 24.2992.
STORED = {"digits_20x3": 44.2275454, "mnist_64": 17.59284, "lipsdp_mnist": 24.366348, "lipsdp_random": 36.4822295}


def ipm(model: nn.Module, n: int, **options: object) -> lipcert.Bound:
    method = lipcert.LipSDPInteriorPoint(**options)  # type: ignore[arg-type]
    return solved(model, n, method)


def settings(bound: lipcert.Bound) -> dict[str, float]:
    return bound.certificate.witness.settings  # type: ignore[union-attr]


def value(model: nn.Module, n: int, method: str) -> float:
    return solved(model, n, method).value


@pytest.mark.parametrize(("length", "width", "optimum"), RECIPE)
def test_reference_optima(length, width, optimum):
    bound = ipm(recipe(length, width), 4)
    assert bound.guarantee == "rigorous"
    assert settings(bound)["dual_value"] == pytest.approx(optimum, rel=1e-6)
    assert abs(settings(bound)["gap"]) <= 1e-7
    assert settings(bound)["iterations"] <= 30
    assert optimum * (1 - 1e-7) <= bound.value <= optimum * (1 + 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "width", "optimum"), [(10, 60, 0.006984286), (20, 40, 0.0054055987)])
def test_deep_reference_optima(length, width, optimum):
    bound = ipm(recipe(length, width), 4)
    assert settings(bound)["dual_value"] == pytest.approx(optimum, rel=1e-6)
    assert optimum * (1 - 1e-7) <= bound.value <= optimum * (1 + 1e-4)


@pytest.mark.parametrize("name", STORED)
def test_stored_networks(name):
    data = np.load(f"tests/data/{name}.npz")
    weights = [torch.from_numpy(data[k]).double() for k in sorted(data) if k.startswith("W")]
    bound = ipm(chain(*weights), weights[0].shape[1])
    assert settings(bound)["dual_value"] == pytest.approx(STORED[name], rel=1e-6)
    assert STORED[name] * (1 - 1e-6) <= bound.value <= STORED[name] * (1 + 1e-4)
    if name == "lipsdp_mnist":
        assert bound.value >= 24.2992


@pytest.mark.few(3)
@pytest.mark.parametrize("seed", range(6))
def test_order_on_small_chains(seed):
    weights = [randn(4, 3, seed=seed), randn(3, 4, seed=seed + 100), randn(2, 3, seed=seed + 200)]
    model = chain(*weights)
    neuron, layer, loop = ipm(model, 3).value, ipm(model, 3, layerwise=True).value, value(model, 3, "liplt")
    assert vertex_maximum(weights) <= neuron
    assert neuron <= layer * (1 + 1e-4)
    assert layer <= loop * (1 + 1e-4)
    assert loop <= value(model, 3, "autolip") * (1 + 1e-9)
    assert neuron == pytest.approx(value(model, 3, "lipsdp"), rel=1e-3)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [name for name, _, _ in ZOO])
def test_the_zoo(name):
    case = zoo_case(name)
    low = solved(case.model, case.example, "lipsdp_ipm").value
    assert observed(case.model, tuple(case.example.shape[1:])) <= low
    expanded = name.startswith("max-min")  # the expansion of a sort may lose against its own constant
    assert expanded or low <= solved(case.model, case.example, "liplt").value * (1 + 1e-5)


@pytest.mark.few(4)
@pytest.mark.parametrize("seed", range(2000, 2020))
def test_random_networks_are_never_below_what_is_observed(seed):
    case = random_network(seed)
    method = lipcert.LipSDPInteriorPoint(max_size=400)
    try:
        bound = solved(case.model, case.example, method)
    except MethodError:
        pytest.skip("too large")
    assert observed(case.model, tuple(case.example.shape[1:])) <= bound.value


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, lambda: nn.LeakyReLU(-1.5)])
def test_other_slopes(activation):
    model = chain(randn(6, 3, seed=1), randn(6, 6, seed=2), randn(2, 6, seed=3), activation=activation)
    low = ipm(model, 3).value
    assert observed(model, (3,)) <= low <= value(model, 3, "liplt") * (1 + 1e-5)
    assert low == pytest.approx(value(model, 3, "lipsdp"), rel=1e-3)


def test_linear_neurons_are_exact():
    weights = [randn(5, 3, seed=1), randn(2, 5, seed=2)]
    exact = float(torch.linalg.matrix_norm(weights[1] @ weights[0], 2))
    assert ipm(chain(*weights, activation=lambda: nn.LeakyReLU(1.0)), 3).value == pytest.approx(exact, rel=1e-6)
    assert ipm(chain(weights[0]), 3).value == pytest.approx(float(torch.linalg.matrix_norm(weights[0], 2)), rel=1e-6)


@pytest.mark.parametrize("name", HARD)
def test_degenerate_weights(name):
    weights = [w.double() for w in HARD[name]]
    model, n = chain(*weights), weights[0].shape[1]
    bound = ipm(model, n)
    assert math.isfinite(bound.value)
    assert bound.value >= vertex_maximum(weights) * (1 - 1e-13)
    assert bound.value <= value(model, n, "autolip") * (1 + 1e-4) + 1e-60


@pytest.mark.few(1)
@pytest.mark.parametrize("power", [-6, 6])
def test_fifteen_layers_of_extreme_scale(power):
    weights = [randn(3, 3, seed=k) for k in range(15)]
    plain, extreme = ipm(chain(*weights), 3), ipm(chain(*[w * 10.0**power for w in weights]), 3)
    assert plain.log10 is not None
    assert extreme.log10 is not None
    assert extreme.log10 == pytest.approx(plain.log10 + 15 * power, abs=1e-3)


def maxcut(adjacency: Tensor) -> float:
    size = len(adjacency)
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=size)), dtype=torch.float64)
    return float(((adjacency.sum() - (signs @ adjacency * signs).sum(dim=1)) / 4).max())


def incidence(adjacency: Tensor) -> Tensor:
    edges = [(i, j) for i, j in itertools.combinations(range(len(adjacency)), 2) if adjacency[i, j]]
    result = torch.zeros(len(adjacency), len(edges), dtype=torch.float64)
    for place, (i, j) in enumerate(edges):
        result[i, place], result[j, place] = 1.0, -1.0
    return result


@pytest.mark.parametrize("graph", ["complete 4", "complete 5", "cycle 5", "cycle 6", "bipartite", "random 7"])
def test_maxcut_within_goemans_williamson(graph):
    kind, _, number = graph.partition(" ")
    n = int(number or 6)
    adjacency = torch.zeros(n, n, dtype=torch.float64)
    for i, j in itertools.combinations(range(n), 2):
        chosen = {
            "complete": True, "cycle": (j - i) in (1, n - 1), "bipartite": (i < 3) != (j < 3),
            "random": (7 * i + 5 * j + i * j) % 3 != 0,
        }[kind]  # fmt: skip
        adjacency[i, j] = adjacency[j, i] = float(chosen)
    cut = maxcut(adjacency)
    edges = incidence(adjacency)
    low = ipm(chain(edges, torch.ones(1, n)), edges.shape[1]).value
    assert math.sqrt(cut) <= low <= math.sqrt(cut / 0.87856) * (1 + 1e-5)
    if kind == "bipartite":
        assert low == pytest.approx(math.sqrt(cut), rel=2e-4)


def test_residual_network_and_gain_block():
    residual = nn.Sequential(nn.Linear(4, 5), Residual(mlp([5, 6, 5], seed=1)), nn.ReLU(), nn.Linear(5, 2)).double()
    softmax = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(dim=-1), nn.Linear(3, 2)).double()
    for model in (residual.eval(), softmax.eval()):
        low = ipm(model, 4).value
        assert observed(model, (4,)) <= low <= value(model, 4, "liplt") * (1 + 1e-5)
        assert low == pytest.approx(value(model, 4, "lipsdp"), rel=2e-3)


def test_too_large_and_bad_options_are_refused_by_name():
    with pytest.raises(MethodError, match=r"neurons are more than max_size=10.*lipsdp"):
        ipm(recipe(2, 20), 4, max_size=10)
    for options in ({"tolerance": 0.0}, {"tolerance": 2.0}, {"max_iterations": 0}, {"max_size": 0}):
        with pytest.raises(InputError):
            lipcert.LipSDPInteriorPoint(**options)  # type: ignore[arg-type]


def test_few_iterations_still_give_a_valid_bound():
    model = recipe(2, 20)
    for iterations in (1, 3, 6):
        assert ipm(model, 4, max_iterations=iterations).value >= 0.3839808046 * (1 - 1e-7)


def test_round_trip(tmp_path):
    model = recipe(2, 20)
    for options in ({}, {"layerwise": True}):
        bound = ipm(model, 4, **options)
        bound.save(tmp_path / "c.lipcert")
        assert lipcert.verify(tmp_path / "c.lipcert", model, torch.zeros(1, 4)).value == bound.value


def test_the_schur_complement_is_the_matrix_of_traces():
    p, q, y = randn(4, 6, seed=1), randn(4, 6, seed=2), randn(2, 6, seed=3)
    group = torch.tensor([0, 1, 1, 2])
    program = Program(2, p, q, group, y, 3)
    matrices = [torch.diag(torch.tensor([1.0, 1, 0, 0, 0, 0], dtype=torch.float64))]
    for g in range(3):
        terms = [(torch.outer(p[i], q[i]) + torch.outer(q[i], p[i])) / 2 for i in range(4) if group[i] == g]
        matrices.append(torch.stack(terms).sum(dim=0))
    x, inverse = (m @ m.T for m in (randn(6, 6, seed=4), randn(6, 6, seed=5)))
    traces = torch.tensor([[float((a @ x @ b @ inverse).trace()) for b in matrices] for a in matrices])
    assert torch.allclose(program.schur(x, inverse), traces.double(), rtol=1e-5)
    t = torch.tensor([2.0, 3.0, 5.0, 7.0], dtype=torch.float64)
    assert torch.allclose(program.adjoint(t), sum(c * m for c, m in zip(t, matrices, strict=True)))
    assert torch.allclose(program.forward(x), torch.stack([(m * x).sum() for m in matrices]))


def test_the_solver_alone_on_a_program_with_a_known_optimum():
    # one neuron: y = w, w² ≤ v², v = 3x  →  ρ = 9
    v, e = torch.tensor([[3.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    solution = solve(Program(1, e - v, e + v, torch.tensor([0]), e, 1))
    assert solution.converged
    assert solution.rho == pytest.approx(9.0, rel=1e-6)
    assert float(solution.multipliers[0]) == pytest.approx(1.0, rel=1e-5)


def attacked(problem: Problem, witness: Witness, power: int) -> tuple[dict[str, Tensor], float]:
    """Arrays and ρ of the same witness in output units 2^power times larger."""
    half = 2.0**-power
    arrays = {k: v.double() * half * half if k.startswith("multipliers") else v for k, v in witness.arrays.items()}
    arrays["exponents"] = witness.arrays["exponents"].clone()
    arrays["exponents"][-1] += power
    return arrays, witness.settings["rho"][0] * half * half


@pytest.mark.parametrize("power", [0, 30, 518, 536])
@pytest.mark.parametrize("factor", [1.0, 0.9, 0.5])
def test_matrix_free_certificates_in_units_that_underflow_are_refused(power, factor):
    # With multipliers near 1e-310 a clamp at 1e-300 once weakened every neuron: 9.79 was "proved" for a truth of 10.87.
    weights = [randn(8, 4, seed=0), randn(3, 8, seed=1)]
    problem = Problem(capture(chain(*weights), torch.zeros(1, 4)))
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"))
    witness = lipcert.LipSDP(route="matrix_free").solve(problem, run).witness
    arrays, rho = attacked(problem, witness, power)
    crafted = Witness("quadratic", arrays, {**witness.settings, "rho": [rho * factor**2]})
    try:
        bound = check(problem, crafted, "x", Chance())
    except (CertificateError, NotProved):
        return
    assert bound.value >= vertex_maximum(weights)


@pytest.mark.parametrize("scales", [(1e-170, 1e-170, 1e300), (1e-100, 1e-100, 1e200), (1e-90, 1e-150, 1e200)])
@pytest.mark.parametrize("method", ["lipsdp_ipm", "lipsdp", "eclipse_fast", "liplt", "lipsdp matrix-free"])
def test_fused_layers_that_underflow_between_each_other(scales, method):
    # A product computed as zero once gave a rigorous 1e-125 for a truth of 1e-38.
    weights = [randn(4, 4, seed=k) for k in range(4)]
    layers = [nn.Linear(4, 4, bias=False, dtype=torch.float64) for _ in range(4)]
    for layer, weight, scale in zip(layers, weights, (*scales, 1.0), strict=True):
        layer.weight.data = weight * scale
    model = nn.Sequential(*layers[:3], nn.ReLU(), layers[3]).eval()
    truth = vertex_maximum([weights[2] @ weights[1] @ weights[0], weights[3]])
    log10 = math.log10(truth) + sum(map(math.log10, scales))
    chosen = lipcert.LipSDP(route="matrix_free") if "matrix" in method else method
    try:
        bound = solved(model, 4, chosen)
    except NumericsError:
        return
    assert bound.log10 is not None
    assert bound.log10 >= log10 - 1e-9
