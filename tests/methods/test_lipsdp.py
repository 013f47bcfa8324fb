"""LipSDP against exact oracles, reference optima and attempts to break it."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness
from lipcert.certificates.bound import check
from lipcert.errors import CertificateError, InputError, NotProved
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.base import Run
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from lipcert.search.passes import Passes
from lipcert.search.vector_neuron import VectorNeuron
from tests.zoo import ZOO, Residual, difference_quotients, linear_weights, mlp, random_network, vertex_maximum, zoo_case

INF = math.inf

#: ECLipsE recipe: (L, width, LipSDP-Neuron optimum of a dense interior point, relative gap ≤ 1e-7).
RECIPE = [(2, 20, 0.3839808046), (2, 80, 0.1587430659), (5, 40, 0.0178039737), (10, 60, 0.006984286)]

lipsdp_free = importlib.import_module("lipcert.methods.lipsdp_free")  # lipcert.methods is also a function


def recipe(length: int, width: int) -> nn.Module:
    """Random ReLU network of the ECLipsE recipe (numpy's legacy generator)."""
    np.random.seed(7 * width + 13 * length)
    sizes = [4] + [width] * (length - 1) + [1]
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        scale = np.random.uniform(0.4, 1.8)
        weight = np.random.randn(m, n)
        weight *= scale / np.linalg.norm(weight, 2)
        layer = nn.Linear(n, m, bias=False, dtype=torch.float64)
        layer.weight.data = torch.from_numpy(weight)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def chain(*weights: Tensor, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Bias-free network with the given weights."""
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data = weight.double()
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1]).eval()


def lipsdp(model: nn.Module, n: int, norm: tuple[float, float] = (2, 2), **options: object) -> lipcert.Bound:
    return lipcert.bound(model, torch.zeros(1, n), method=lipcert.LipSDP(**options), norm=norm)  # type: ignore[arg-type]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def observed(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The steepest pair seen, less its rounding error: no bound may be below it."""
    quotient, noise = difference_quotients(model, shape)
    return max(0.0, float((quotient - noise).max()))


@pytest.mark.parametrize(("length", "width", "optimum"), RECIPE)
def test_within_a_thousandth_of_the_interior_point_and_never_below(length, width, optimum):
    bound = lipsdp(recipe(length, width), 4)
    assert bound.guarantee == "rigorous"
    assert optimum * (1 - 2e-7) <= bound.value <= optimum * 1.001


@pytest.mark.parametrize("seed", range(12))
def test_order_on_small_chains(seed):
    weights = [randn(4, 3, seed=seed), randn(3, 4, seed=seed + 100), randn(2, 3, seed=seed + 200)]
    model = chain(*weights)
    neuron, layer = lipsdp(model, 3), lipcert.bound(model, torch.zeros(1, 3), method="lipsdp_layer")
    product = lipcert.bound(model, torch.zeros(1, 3), method="autolip")
    assert vertex_maximum(weights) <= neuron.value
    assert neuron.value <= layer.value * 1.0005
    assert layer.value <= product.value * 1.0005


@pytest.mark.parametrize("norm", [(2, 2), (2, 1), (2, INF), (INF, 2), (INF, 1), (INF, INF)])
@pytest.mark.parametrize("seed", range(4))
def test_every_norm_covers_every_pattern(norm, seed):
    first, second = randn(5, 3, seed=seed), randn(2, 5, seed=seed + 50)
    bound = lipsdp(chain(first, second), 3, norm)
    worst = 0.0
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    for pattern in itertools.product([0.0, 1.0], repeat=5):
        jacobian = second @ torch.diag(torch.tensor(pattern, dtype=torch.float64)) @ first
        if norm[0] == INF:  # a convex function of x is largest at a vertex of the cube
            worst = max(worst, float(torch.linalg.vector_norm(signs @ jacobian.T, norm[1], dim=1).max()))
        elif norm[1] == 2:
            worst = max(worst, float(torch.linalg.matrix_norm(jacobian, 2)))
        elif norm[1] == INF:
            worst = max(worst, float(jacobian.norm(dim=1).max()))
        else:
            out = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)), dtype=torch.float64)
            worst = max(worst, float((out @ jacobian).norm(dim=1).max()))
    assert bound.value >= worst
    assert bound.value <= 2.0 * worst


def test_all_pairs_of_classes_in_one_run():
    model = mlp([4, 8, 3], seed=3).double().eval()
    pairs = torch.tensor([[1.0, -1, 0], [1, 0, -1], [0, 1, -1]])
    together = lipcert.bound(model, torch.zeros(1, 4), method="lipsdp", norm=(2, INF), select=pairs)
    for row, step in zip(pairs, together.breakdown, strict=True):
        alone = lipcert.bound(model, torch.zeros(1, 4), method="lipsdp", select=row[None])
        assert step.constant == pytest.approx(alone.value, rel=1e-3)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.Mish])
def test_slopes_below_zero_and_above_one(activation):
    model = chain(randn(6, 3, seed=1), randn(6, 6, seed=2), randn(2, 6, seed=3), activation=activation)
    assert lipsdp(model, 3).value >= observed(model, (3,))


def test_silu_twice_with_unit_weights_is_above_the_truth():
    one = torch.ones(1, 1)
    assert lipsdp(chain(one, one, one, activation=nn.SiLU), 1).value >= 1.189


HARD = {
    "dead neurons": [torch.zeros(4, 3), randn(2, 4, seed=1)],
    "half dead": [randn(4, 3, seed=2) * torch.tensor([[1.0], [0.0], [1.0], [0.0]]), randn(2, 4, seed=3)],
    "unread": [randn(4, 3, seed=4), randn(2, 4, seed=5) * torch.tensor([1.0, 0.0, 0.0, 1.0])],
    "rank one": [torch.outer(randn(4, seed=6), randn(3, seed=7)), torch.outer(randn(2, seed=8), randn(4, seed=9))],
    "width one": [randn(1, 3, seed=10), randn(1, 1, seed=11), randn(2, 1, seed=12)],
    "tiny": [1e-6 * randn(4, 3, seed=13), 1e-6 * randn(2, 4, seed=14)],
    "huge and tiny": [1e6 * randn(4, 3, seed=15), 1e-6 * randn(4, 4, seed=16), 1e6 * randn(2, 4, seed=17)],
    "one huge neuron": [randn(4, 3, seed=18) * torch.tensor([[1e8], [1.0], [1e-8], [1.0]]), randn(2, 4, seed=19)],
    "opposite": [torch.eye(3), -torch.eye(3), torch.eye(3)],
    "repeated rows": [torch.ones(4, 3), torch.ones(2, 4)],
    "cancelling": [torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, -1.0]])],
}


@pytest.mark.parametrize("name", HARD)
def test_degenerate_weights(name):
    weights = [w.double() for w in HARD[name]]
    bound = lipsdp(chain(*weights), weights[0].shape[1])
    assert math.isfinite(bound.value)
    assert bound.value >= vertex_maximum(weights) * (1 - 1e-13)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_constant_networks_have_the_constant_zero(place):
    model = mlp((4, 6, 5, 3), 0)
    torch.nn.init.zeros_(model[place].weight)
    found = lipcert.bound(model, torch.zeros(1, 4), "lipsdp")
    assert (found.value, found.guarantee) == (0.0, "rigorous")
    again = mlp((4, 6, 5, 3), 0)
    warm = lipcert.bound(again, torch.zeros(1, 4), lipcert.LipSDP(start=found))  # training from a layer of zeros
    assert warm.value == pytest.approx(lipcert.bound(again, torch.zeros(1, 4), "lipsdp").value, rel=1e-3)
    mixed = lipcert.bound(model, torch.zeros(1, 4), "lipsdp", norm=(math.inf, 2))
    assert 0.0 <= mixed.value < 1e-100


@pytest.mark.slow
@pytest.mark.parametrize("power", [pytest.param(-6, marks=pytest.mark.slow), 6])
def test_a_hundred_layers_of_extreme_scale(power):
    weights = [randn(4, 4, seed=k) * 10.0**power for k in range(100)]
    bound = lipsdp(chain(*weights), 4)
    product = lipcert.bound(chain(*weights), torch.zeros(1, 4), method="autolip")
    assert bound.log10 is not None
    assert product.log10 is not None
    assert math.isfinite(bound.log10)
    assert bound.log10 <= product.log10
    pattern = math.log10(float(torch.linalg.matrix_norm(chain_product([w / 10.0**power for w in weights]), 2)))
    assert bound.log10 >= pattern + 100 * power


def chain_product(weights: list[Tensor]) -> Tensor:
    """Jacobian of the pattern in which every neuron is on, as a scaled product."""
    result = weights[0]
    for weight in weights[1:]:
        result = weight @ result
    return result


def test_rescaling_neurons_and_permuting_them_changes_nothing():
    first, second = randn(6, 3, seed=1), randn(2, 6, seed=2)
    plain = lipsdp(chain(first, second), 3, tolerance=1e-6).value
    scale = torch.rand(6, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 10 + 0.1
    order = torch.randperm(6, generator=torch.Generator().manual_seed(4))
    assert lipsdp(chain(first * scale, second / scale.T), 3, tolerance=1e-6).value == pytest.approx(plain, rel=1e-4)
    assert lipsdp(chain(first[order], second[:, order]), 3, tolerance=1e-6).value == pytest.approx(plain, rel=1e-4)
    assert lipsdp(chain(first, -3.0 * second), 3, tolerance=1e-6).value == pytest.approx(3.0 * plain, rel=1e-4)


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_maxcut_of_complete_graphs_within_goemans_williamson(size):
    edges = list(itertools.combinations(range(size), 2))
    incidence = torch.zeros(size, len(edges))  # one neuron per node: the gradient at σ is the signed sum of its rows
    for place, (i, j) in enumerate(edges):
        incidence[i, place], incidence[j, place] = 1.0, -1.0
    bound = lipsdp(chain(incidence, torch.ones(1, size)), len(edges))
    cut = (size * size) // 4
    assert math.sqrt(cut) <= bound.value <= math.sqrt(cut / 0.87856) * 1.001


@pytest.mark.few(4)
@pytest.mark.parametrize("name", [name for name, _, _ in ZOO])
def test_the_zoo_lies_between_attack_and_product(name):
    case = zoo_case(name)
    product = lipcert.bound(case.model, case.example, method="autolip").value
    value = lipcert.bound(case.model, case.example, method="lipsdp", budget=10).value
    shape = tuple(case.example.shape[1:])
    assert observed(case.model, shape) <= value
    assert value <= product * 1.01


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", [s if s < 15 else pytest.param(s, marks=pytest.mark.slow) for s in range(40)])
def test_random_networks_are_never_below_what_is_observed(seed):
    case = random_network(1000 + seed)
    value = lipcert.bound(case.model, case.example, budget=5).value
    assert observed(case.model, tuple(case.example.shape[1:])) <= value


def test_matrix_free_route_agrees_and_says_probabilistic():
    model = nn.Sequential(Residual(mlp([6, 8, 6], seed=1)), nn.ReLU(), nn.Linear(6, 2)).double().eval()
    dense = lipcert.bound(model, torch.zeros(1, 6), method=lipcert.LipSDP(route="dense"))
    free = lipcert.bound(model, torch.zeros(1, 6), method=lipcert.LipSDP(route="matrix_free"))
    assert (dense.guarantee, free.guarantee) == ("rigorous", "probabilistic")
    assert dense.value * 0.999 <= free.value <= dense.value * 1.05


def test_too_few_columns_are_noticed_and_more_are_added(monkeypatch):
    """One column stops at a saddle point, where the multipliers are far from feasible."""
    model, x = chain(randn(40, 20, seed=1), randn(40, 40, seed=2), randn(20, 40, seed=3)), torch.zeros(1, 20)
    optimum = lipcert.bound(model, x, method="lipsdp_ipm").value
    one = lipcert.LipSDP(columns=1, route="matrix_free")
    assert optimum * (1 - 1e-6) <= lipcert.bound(model, x, method=one).value <= 1.02 * optimum
    monkeypatch.setattr(lipsdp_free, "MOST_COLUMNS", 1)
    assert lipcert.bound(model, x, method=one).value > 1.4 * optimum  # lifted, or another method's: valid all the same


def test_float32_search_gives_a_valid_bound():
    weights = linear_weights(recipe(5, 40))
    assert lipsdp(chain(*weights), 4, precision="float32").value >= 0.0178039737 * (1 - 2e-7)


@pytest.mark.few(7)
@pytest.mark.parametrize("norm", [(2, 2), (2, 1), (2, INF)])
@pytest.mark.parametrize("name", [name for name, _, _ in ZOO])
def test_the_gradients_of_a_pass_are_those_of_autograd(name, norm):
    case = zoo_case(name)
    increments = Problem(capture(case.model, case.example)).expanded_increments
    passes = Passes(ScaledIncrements(increments, natural_exponents(increments)))
    search = VectorNeuron(passes, norm, 3, torch.Generator().manual_seed(1))
    point = search.evaluate()
    value, found = point.value, [point.g, *(point.h.get(cell.node) for cell in search.cells)]
    x = search._x.clone().requires_grad_()
    at_z = {}

    def output(cell, flat):
        v = flat.reshape(search.problems, 3, *flat.shape[1:])
        unit = search._units[cell.node]
        if cell.block:  # the columns and entries of a group together
            runs = v.reshape(len(v), 3, cell.groups, -1).norm(dim=(1, 3))
            length = runs.repeat_interleave(cell.size // cell.groups, dim=1).reshape(len(v), 1, *cell.shape)
        else:
            length = v.norm(dim=1, keepdim=True)
        z = cell.d * length * unit
        at_z[cell.node] = z if v.shape != z.shape else z + cell.c * v
        return at_z[cell.node].reshape(-1, *cell.shape)

    y = passes.forward(x.reshape(-1, *x.shape[2:]), output)[-1].reshape(search.problems, 3, -1)
    squares = y.square().sum(dim=1)
    expected = {2: squares.sum(dim=1), 1: squares.sqrt().sum(dim=1).square(), INF: squares.diagonal()}[norm[1]]
    assert torch.allclose(value, expected, rtol=1e-12)
    if expected.requires_grad:
        wanted = [x, *(at_z[cell.node] for cell in search.cells)]
        gradients = torch.autograd.grad(0.5 * expected.sum(), wanted, allow_unused=True)
        for mine, theirs in zip(found, gradients, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12 * float(theirs.abs().max()))


def test_a_warm_start_needs_fewer_passes_and_proves_as_much(tmp_path):
    model, x = recipe(10, 20), torch.zeros(1, 4)
    before = lipcert.bound(model, x, method="lipsdp")
    for parameter in model.parameters():
        parameter.data *= 1.0 + 0.01 * randn(*parameter.shape, seed=3)
    cold = lipcert.bound(model, x, method="lipsdp")
    warm = lipcert.bound(model, x, method=lipcert.LipSDP(start=before))
    passes = [b.certificate.witness.settings["passes"] for b in (cold, warm)]
    assert passes[1] < passes[0]
    assert warm.value == pytest.approx(cold.value, rel=5e-4)
    warm.save(tmp_path / "warm.lipcert")
    verified = lipcert.verify(tmp_path / "warm.lipcert", model, x)
    assert verified.value == warm.value
    with pytest.raises(InputError, match="in this process"):
        lipcert.LipSDP(start=verified)
    with pytest.raises(InputError, match="another network"):
        lipcert.bound(recipe(10, 21), x, method=lipcert.LipSDP(start=before))
    with pytest.raises(InputError, match="another network"):
        lipcert.bound(model, x, norm=(2, INF), select=torch.ones(2, 1), method=lipcert.LipSDP(start=before))


def _problem_and_witness(weights: list[Tensor]) -> tuple[Problem, Witness]:
    problem = Problem(capture(chain(*weights), torch.zeros(1, weights[0].shape[1])))
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), budget=10.0)
    return problem, lipcert.LipSDP().solve(problem, run).witness


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.99, 1.01, 3.0, 1e6])
def test_a_changed_multiplier_is_valid_at_its_own_value_or_refused(factor):
    weights = [randn(5, 3, seed=1), randn(4, 5, seed=2), randn(2, 4, seed=3)]
    problem, witness = _problem_and_witness(weights)
    key = next(k for k in witness.arrays if k.startswith("multipliers."))
    for place in range(witness.arrays[key].shape[1]):
        changed = witness.arrays[key].clone()
        changed[0, place] *= factor
        attacked = replace(witness, arrays={**witness.arrays, key: changed})
        try:
            value = check(problem, attacked, "x", Chance()).value
        except (CertificateError, NotProved):
            continue
        assert value >= vertex_maximum(weights)


@pytest.mark.parametrize("change", ["rho", "exponent", "size", "negative", "nan", "missing"])
def test_a_tampered_witness_is_refused_or_still_true(change):
    weights = [randn(5, 3, seed=1), randn(2, 5, seed=2)]
    problem, witness = _problem_and_witness(weights)
    arrays, settings = dict(witness.arrays), dict(witness.settings)
    key = next(k for k in arrays if k.startswith("multipliers."))
    if change == "rho":
        settings["rho"] = [settings["rho"][0] * 0.9]
    elif change == "exponent":
        arrays["exponents"] = arrays["exponents"] + torch.tensor([0] + [900] * (len(arrays["exponents"]) - 1))
    elif change == "size":
        arrays[key] = arrays[key][:, :-1]
    elif change == "negative":
        arrays[key] = -arrays[key]
    elif change == "nan":
        arrays[key] = arrays[key] * math.nan
    else:
        del arrays[key]
    attacked = Witness(witness.kind, arrays, settings)
    try:
        value = check(problem, attacked, "x", Chance()).value
    except (CertificateError, NotProved):
        return
    assert change in ("rho", "exponent")
    assert value >= vertex_maximum(weights)


def test_certificate_round_trip(tmp_path):
    model = recipe(2, 20)
    for norm in ((2, 2), (INF, 1), (2, INF)):
        bound = lipsdp(model, 4, norm)
        bound.save(tmp_path / "c.lipcert")
        assert lipcert.verify(tmp_path / "c.lipcert", model, torch.zeros(1, 4)).value == bound.value


def test_auto_keeps_the_best_and_shows_what_it_tried():
    bound = lipcert.bound(recipe(5, 40), torch.zeros(1, 4))
    assert bound.method == "lipsdp"
    assert bound.value == min(row.value for row in bound.tried if row.value is not None)
    comparison = lipcert.compare(recipe(2, 20), torch.zeros(1, 4), methods=["autolip", "lipsdp"], lower_budget=1)
    assert all(ratio is not None and ratio >= 1 for ratio in map(comparison.ratio, comparison.rows))
    assert "lipsdp" in str(comparison)
