"""The paper's theorems: maximum cut as a Lipschitz constant, spectral gaps, and 1/π."""

import itertools
import math

import pytest
import torch
from torch import nn

import lipcert
from lipcert import theory
from lipcert.errors import InputError
from lipcert.methods.seqlip import ExactPairs, SeqLip
from lipcert.theory import CutNetwork
from tests.zoo import vertex_maximum

GW = theory.goemans_williamson_factor()


def exact(instance: CutNetwork) -> float:
    method = SeqLip(pairs=ExactPairs())
    return lipcert.bound(instance.network(), torch.zeros(1, len(instance.edges)), method=method).value


def sdp(instance: CutNetwork) -> float:
    """The relaxation by the better of two solvers: dead rows and degenerate optima of cut networks are hard on both."""
    x, model = torch.zeros(1, len(instance.edges)), instance.network()
    return min(lipcert.bound(model, x, method=method).value for method in ("lipsdp", "lipsdp_ipm"))


@pytest.mark.parametrize("n", range(2, 13))
def test_complete_graphs(n: int) -> None:
    assert theory.complete(n).max_cut() == theory.complete_cut(n)


@pytest.mark.parametrize("n", range(3, 13))
def test_cycles(n: int) -> None:
    assert theory.cycle(n).max_cut() == theory.cycle_cut(n)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 3), (4, 4), (1, 9)])
def test_bipartite_graphs(a: int, b: int) -> None:
    assert theory.bipartite(a, b).max_cut() == a * b


def test_cuts_by_the_definition() -> None:
    graph = theory.random_graph(7, 0.4, seed=3, weighted=True)
    best = max(graph.cut(side) for side in itertools.product((0, 1), repeat=7))
    assert graph.max_cut() == pytest.approx(best, rel=1e-12)


INSTANCES = [
    theory.complete(3), theory.complete(7), theory.cycle(5), theory.cycle(8), theory.bipartite(3, 4),
    *(theory.random_graph(8, 0.5, seed, weighted=bool(seed % 2)) for seed in range(4)),
    CutNetwork(6, ((0, 1, 1.0), (1, 2, 1.0), (0, 2, 1.0), (3, 4, 2.0), (4, 3, 0.5))),  # two components, one alone
]  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("instance", INSTANCES)
def test_the_constant_is_the_root_of_the_maximum_cut(instance: CutNetwork) -> None:
    truth = instance.constant()
    weights = [instance.incidence(), torch.ones(1, instance.nodes, dtype=torch.float64)]
    assert vertex_maximum(weights) == pytest.approx(truth, rel=1e-12)
    assert truth <= exact(instance) == pytest.approx(truth, rel=1e-9)
    relaxed = sdp(instance)
    assert truth <= relaxed
    assert GW * relaxed**2 <= truth**2 * (1 + 2e-3)
    low = lipcert.lower_bound(instance.network(), torch.zeros(1, len(instance.edges)), budget=1.0)
    assert low.value <= truth * (1 + 1e-12)


@pytest.mark.parametrize("instance", INSTANCES)
def test_a_best_cut_is_reached_by_an_input(instance: CutNetwork) -> None:
    """The image of B at x = Bᵀ(σ − mean) need not have pattern σ; a least-squares preimage of ±1 on each side does."""
    best = max(itertools.product((0, 1), repeat=instance.nodes), key=instance.cut)
    b = instance.incidence()
    wanted = torch.tensor(best, dtype=torch.float64)
    z = torch.zeros(instance.nodes, dtype=torch.float64)
    laplacian = b @ b.T
    values, vectors = torch.linalg.eigh(laplacian)
    kernel = vectors[:, values < 1e-9]
    members = (kernel @ kernel.T).abs() > 1e-9
    for v in range(instance.nodes):
        component = members[v]
        on, off = wanted[component].sum(), (1 - wanted[component]).sum()
        z[v] = 1.0 / on if wanted[v] else -1.0 / off
        if on * off == 0:
            z[v] = 0.0
    x = torch.linalg.pinv(b) @ z
    assert torch.allclose(b @ x, z, atol=1e-9)
    gradient = torch.autograd.functional.jacobian(instance.network(), x)
    assert float(gradient.norm()) == pytest.approx(instance.constant(), rel=1e-9)


def test_the_triangle_is_the_cycle_where_relaxation_loses_most_of_a_small_graph() -> None:
    assert sdp(theory.cycle(3)) ** 2 == pytest.approx(9 / 4, rel=2e-3)  # three vectors at 120 degrees
    assert theory.cycle(3).max_cut() == 2.0


def test_goemans_williamson_factor() -> None:
    assert pytest.approx(0.87856720578485, abs=1e-12) == GW
    angles = torch.linspace(0.01, math.pi, 10_000, dtype=torch.float64)
    assert float((2 / math.pi * angles / (1 - angles.cos())).min()) >= GW


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.5, 1.0), (0.2, 1.0)])
@pytest.mark.parametrize("decay", [1.0, 0.3, 0.01])
def test_theorem_2_lies_between_seqlip_and_autolip(low: float, high: float, decay: float) -> None:
    generator = torch.Generator().manual_seed(1)
    widths = [5, 7, 6, 8, 4]
    weights = []
    for n, m in itertools.pairwise(widths):
        u, _, vh = torch.linalg.svd(torch.randn(m, n, generator=generator).double(), full_matrices=False)
        s = torch.cat([torch.ones(1), decay * torch.rand(min(n, m) - 1, generator=generator)]).double()
        weights.append((u * s.sort(descending=True).values) @ vh)
    layers: list[nn.Module] = []
    for w in weights:
        layer = nn.Linear(w.shape[1], w.shape[0], bias=False).double()
        layer.weight.data.copy_(w)
        layers += [layer, nn.LeakyReLU(low)]
    model = nn.Sequential(*layers[:-1]).eval()
    seqlip = lipcert.bound(model, torch.zeros(1, 5), method=SeqLip(pairs=ExactPairs())).value
    gaps = theory.spectral_gaps(weights, low, high)
    assert seqlip <= gaps.bound * (1 + 1e-6)
    assert gaps.bound <= gaps.autolip * (1 + 1e-12)
    product = lipcert.bound(model, torch.zeros(1, 5), method="autolip").value
    assert gaps.autolip == pytest.approx(product, rel=1e-6)


def test_theorem_2_is_sharp_for_rank_one_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(6, generator=generator).double() for _ in range(6)]
    weights = [torch.outer(vectors[2 * k], vectors[2 * k + 1]) for k in range(3)]
    assert theory.spectral_gaps(weights).bound == pytest.approx(vertex_maximum(weights), rel=1e-6)


def test_theorem_3_tends_to_one_over_pi() -> None:
    assert theory.alignment_limit() == 1 / math.pi
    assert theory.alignment_limit(-1.0, 1.0) == 2 / math.pi
    assert theory.mean_alignment(1) == pytest.approx(0.5)
    assert theory.mean_alignment(100_000) == pytest.approx(1 / math.pi, rel=1e-4)
    generator = torch.Generator().manual_seed(0)
    for low, high in ((0.0, 1.0), (-0.5, 1.0), (-1.0, 1.0)):
        u, v = torch.randn(2, 400_000, generator=generator).double()
        value = theory.alignment(v / v.norm(), u / u.norm(), low, high)
        assert value == pytest.approx(theory.alignment_limit(low, high), rel=2e-2)


def test_the_mean_at_finite_size() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.nn.functional.normalize(torch.randn(2, 40_000, 5, generator=generator).double(), dim=2)
    assert float((u * v).clamp(min=0).sum(1).mean()) == pytest.approx(theory.mean_alignment(5), rel=1e-2)


def test_alignment_is_the_maximum_over_patterns() -> None:
    generator = torch.Generator().manual_seed(2)
    u, v = torch.randn(2, 8, generator=generator).double()
    for low, high in ((0.0, 1.0), (-2.0, 0.5)):
        patterns = torch.tensor(list(itertools.product((low, high), repeat=8)), dtype=torch.float64)
        assert theory.alignment(v, u, low, high) == pytest.approx(float((patterns @ (u * v)).abs().max()), rel=1e-12)


def test_bad_graphs() -> None:
    for nodes, edges in ((0, ()), (3, ()), (2, ((0, 2, 1.0),)), (2, ((0, 0, 1.0),)), (2, ((0, 1, -1.0),))):
        with pytest.raises(InputError):
            CutNetwork(nodes, edges)
    with pytest.raises(InputError, match="brute force"):
        theory.cycle(30).max_cut()
    with pytest.raises(InputError):
        theory.cycle(2)
