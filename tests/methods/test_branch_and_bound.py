"""The vertex maximum by branch and bound against enumeration of all patterns, and its certificate against tampering."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates import base
from lipcert.certificates.base import Witness
from lipcert.certificates.bound import Certificate, check
from lipcert.certificates.branch_tree import leaf_fixings
from lipcert.certificates.verify import verify
from lipcert.errors import CertificateError, InputError, MethodError, NotProved, UnsupportedNormError
from lipcert.methods.base import Run
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from tests.zoo import Residual, random_network

DATA = Path(__file__).parent.parent / "data"
GAP = 2e-5


class Gate(nn.Module):
    """An activation whose slopes can be fixed: with ``slopes`` (patterns, width) it is linear."""

    def __init__(self, width: int, function: Callable[[Tensor], Tensor], low: float, high: float) -> None:
        super().__init__()
        self.width, self.function, self.low, self.high = width, function, low, high
        self.slopes: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.slopes is None else self.slopes[:, None] * x


def relu(width: int) -> Gate:
    return Gate(width, torch.relu, 0.0, 1.0)


def leaky(width: int) -> Gate:
    return Gate(width, lambda x: F.leaky_relu(x, 0.25), 0.25, 1.0)


def absolute(width: int) -> Gate:
    return Gate(width, torch.abs, -1.0, 1.0)


def steep(width: int) -> Gate:
    return Gate(width, lambda x: F.leaky_relu(x, -0.5), -0.5, 1.0)


def linear(n: int, m: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(n, m, bias=False, dtype=torch.float64)
    layer.weight.data = torch.randn(m, n, generator=generator, dtype=torch.float64) / n**0.5
    return layer


def chain(widths: list[int], gate: Callable[[int], Gate], seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [linear(n, m, generator), gate(m)]
    return nn.Sequential(*layers[:-1]).eval()


def residual(width: int, blocks: int, gate: Callable[[int], Gate], seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [linear(3, width, generator)]
    for _ in range(blocks):
        inner = nn.Sequential(linear(width, width, generator), gate(width), linear(width, width, generator))
        layers.append(Residual(inner))
    return nn.Sequential(*layers, gate(width), linear(width, 2, generator)).eval()


def enumerated(model: nn.Module, n: int) -> float:
    """max over all patterns of the norm of the linear network: the definition of the vertex maximum."""
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    ends = [(gate.low, gate.high) for gate in gates for _ in range(gate.width)]
    assert len(ends) <= 16
    patterns = torch.tensor(list(itertools.product(*ends)), dtype=torch.float64)
    for gate, slopes in zip(gates, patterns.split([gate.width for gate in gates], dim=1), strict=True):
        gate.slopes = slopes
    try:
        with torch.no_grad():
            images = model(torch.eye(n, dtype=torch.float64).expand(len(patterns), n, n))
        return float(torch.linalg.matrix_norm(images, 2).max())
    finally:
        for gate in gates:
            gate.slopes = None


def solved(model: nn.Module, n: int, budget: float = 120.0, **options: float) -> lipcert.Bound:
    method = lipcert.BranchAndBound(prune=False, **options)  # type: ignore[arg-type]
    return lipcert.bound(model, torch.zeros(1, n, dtype=torch.float64), method=method, budget=budget)


def exact(model: nn.Module, n: int) -> None:
    """Bound = enumeration up to the gap, never below; and rigorous."""
    truth, bound = enumerated(model, n), solved(model, n, gap=GAP)
    assert truth * (1 - 1e-12) <= bound.value <= truth * (1 + 3 * GAP)
    assert bound.guarantee == "rigorous"


CHAINS = [
    ([3, 5, 1], relu, 0), ([4, 12, 2], relu, 1), ([4, 6, 6, 3], relu, 2), ([2, 4, 4, 4, 1], relu, 3),
    ([6, 8, 6, 4], absolute, 4), ([3, 5, 5, 2], steep, 5), ([3, 6, 6, 3], leaky, 6), ([1, 7, 7, 1], relu, 7),
    ([5, 3, 3, 3, 3, 2], steep, 8), ([4, 14, 1], absolute, 9), ([12, 2, 9, 1], relu, 10),
]  # fmt: skip


@pytest.mark.few(3)
@pytest.mark.parametrize(("widths", "gate", "seed"), CHAINS)
def test_exact_on_chains(widths: list[int], gate: Callable[[int], Gate], seed: int) -> None:
    exact(chain(widths, gate, seed), widths[0])


@pytest.mark.few(3)
@pytest.mark.parametrize(("blocks", "gate"), [(1, relu), (2, relu), (2, steep), (2, leaky), (2, absolute)])
def test_exact_on_residual_networks(blocks: int, gate: Callable[[int], Gate]) -> None:
    exact(residual(4, blocks, gate, blocks), 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_exact_on_random_networks(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gate = (relu, leaky, absolute, steep)[seed % 4]
    depth = int(torch.randint(1, 5, (1,), generator=generator))
    widths = [int(torch.randint(1, 16 // depth + 1, (1,), generator=generator)) for _ in range(depth)]
    ends = torch.randint(1, 8, (2,), generator=generator).tolist()
    exact(chain([ends[0], *widths, ends[1]], gate, seed), ends[0])
    exact(residual(1 + seed % 4, 1 + seed % 3, gate, seed), 3)


# -- √maxcut: x ↦ 1ᵀ relu(Bx), B the (nodes × edges) incidence matrix -------------------------------------------


def cut_network(nodes: int, edges: list[tuple[int, int, float]]) -> nn.Module:
    """‖Bᵀσ‖² is the weight of the cut σ, and every non-trivial pattern is reached."""
    incidence = torch.zeros(nodes, len(edges), dtype=torch.float64)
    for column, (i, j, weight) in enumerate(edges):
        incidence[i, column], incidence[j, column] = weight**0.5, -(weight**0.5)
    first, last = nn.Linear(len(edges), nodes, bias=False).double(), nn.Linear(nodes, 1, bias=False).double()
    first.weight.data, last.weight.data = incidence, torch.ones(1, nodes, dtype=torch.float64)
    return nn.Sequential(first, nn.ReLU(), last).eval()


def max_cut(nodes: int, edges: list[tuple[int, int, float]]) -> float:
    """Brute force over all 2^(nodes − 1) cuts."""
    codes = torch.arange(2 ** (nodes - 1))
    total = torch.zeros(len(codes), dtype=torch.float64)
    for i, j, weight in edges:
        total += weight * (((codes >> i) ^ (codes >> j)) & 1)
    return float(total.max())


def complete(n: int) -> list[tuple[int, int, float]]:
    return [(i, j, 1.0) for i in range(n) for j in range(i)]


def cycle(n: int) -> list[tuple[int, int, float]]:
    return [(i, (i + 1) % n, 1.0) for i in range(n)]


def bipartite(a: int, b: int) -> list[tuple[int, int, float]]:
    return [(i, a + j, 1.0) for i in range(a) for j in range(b)]


def random_graph(n: int, density: float, seed: int, weighted: bool = False) -> list[tuple[int, int, float]]:
    random = np.random.default_rng(seed)
    pairs = [(i, j) for i in range(n) for j in range(i) if random.random() < density]
    return [(i, j, float(random.uniform(0.2, 2.0)) if weighted else 1.0) for i, j in pairs]


GRAPHS = [
    (7, complete(7), 12.0), (8, complete(8), 16.0), (9, cycle(9), 8.0), (12, cycle(12), 12.0),
    (9, bipartite(4, 5), 20.0), (12, random_graph(12, 0.5, 0), None), (14, random_graph(14, 0.4, 1, True), None),
    (20, random_graph(20, 0.3, 2), None), (20, random_graph(20, 0.2, 0), None),  # the last has a node without edges
]  # fmt: skip


@pytest.mark.few(3)
@pytest.mark.parametrize(("nodes", "edges", "known"), GRAPHS)
def test_exact_on_max_cut(nodes: int, edges: list[tuple[int, int, float]], known: float | None) -> None:
    truth = max_cut(nodes, edges)
    assert known is None or truth == known
    bound = solved(cut_network(nodes, edges), len(edges), gap=GAP)
    assert truth**0.5 * (1 - 1e-12) <= bound.value <= truth**0.5 * (1 + 3 * GAP)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_exact_on_twenty_nodes(seed: int) -> None:
    edges = random_graph(20, (0.2, 0.5, 0.8, 1.0)[seed % 4], seed, seed >= 4)
    truth = max_cut(20, edges) ** 0.5
    bound = solved(cut_network(20, edges), len(edges), gap=GAP, budget=120.0)
    assert truth * (1 - 1e-12) <= bound.value <= truth * (1 + 3 * GAP)


# -- trained networks and order ----------------------------------------------------------------------------------


def trained(name: str) -> tuple[nn.Module, int]:
    arrays = np.load(DATA / f"{name}.npz")
    weights = [torch.from_numpy(arrays[f"W{k}"]).double() for k in range(len(arrays.files) // 2)]
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data = weight
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval(), weights[0].shape[1]


@pytest.mark.parametrize(
    ("name", "value"), [("digits_20x3", 44.1971), ("mnist_64", 17.5924), ("lipsdp_mnist", 24.2992)]
)
def test_trained_networks_close(name: str, value: float) -> None:
    model, n = trained(name)
    bound = solved(model, n, budget=30.0)
    assert value - 1e-4 <= bound.value <= value * (1 + 1.2e-4)
    assert bound.guarantee == "rigorous"
    settings = bound.certificate.witness.settings  # type: ignore[union-attr]
    assert settings["vertex_value"] == pytest.approx(value, abs=1e-4)
    assert settings["gap"] <= 1e-4


@pytest.mark.slow
def test_order_and_anytime() -> None:
    model = chain([6, 20, 20, 20, 3], relu, 0)
    example = torch.zeros(1, 6, dtype=torch.float64)
    root = solved(model, 6, max_nodes=1)
    lipsdp = lipcert.bound(model, example, method="lipsdp").value
    low = lipcert.lower_bound(model, example, budget=1.0).value
    some, many = solved(model, 6, max_nodes=9), solved(model, 6, budget=4.0)
    assert root.value == pytest.approx(lipsdp, rel=5e-4)
    assert low <= many.value <= some.value * (1 + 1e-6) <= root.value * (1 + 2e-6)
    assert many.value < 0.995 * root.value
    out_of_time = solved(model, 6, budget=1e-3)
    assert out_of_time.value >= many.value * (1 - 1e-3)


def test_gain_blocks_are_kept_as_blocks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Softmax(-1), nn.Linear(5, 3)).double().eval()
    example = torch.zeros(1, 4, dtype=torch.float64)
    bound = lipcert.bound(model, example, method="branch_and_bound", budget=5.0)
    assert lipcert.lower_bound(model, example, budget=0.5).value <= bound.value
    assert bound.value <= lipcert.bound(model, example, method="lipsdp").value * (1 + 1e-3)


def test_slopes_of_a_smooth_activation() -> None:
    model = chain([3, 8, 2], lambda width: Gate(width, F.gelu, 0.0, 0.0), 3)
    low = lipcert.lower_bound(model, torch.zeros(1, 3, dtype=torch.float64), budget=1.0).value
    bound = solved(model, 3)
    for gate in model.modules():
        if isinstance(gate, Gate):
            gate.low, gate.high = -0.12904, 1.12905  # GELU's least and greatest slope
    assert low <= bound.value == pytest.approx(enumerated(model, 3), rel=2e-4)


@pytest.mark.few(3)
@pytest.mark.parametrize("seed", range(12))
def test_never_below_an_attack(seed: int) -> None:
    case = random_network(seed)
    try:
        bound = lipcert.bound(case.model, case.example, method="branch_and_bound", budget=2.0)
        low = lipcert.lower_bound(case.model, case.example, budget=0.2)
    except lipcert.LipcertError as error:
        assert str(error)  # noqa: PT017
        return
    assert low.value <= bound.value


# -- the certificate --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proved() -> tuple[nn.Module, lipcert.Bound]:
    model = chain([4, 6, 6, 3], relu, 2)
    bound = solved(model, 4)
    assert len(bound.certificate.witness.arrays["tree"]) >= 5  # type: ignore[union-attr]
    return model, bound


def record(bound: lipcert.Bound) -> Certificate:
    assert isinstance(bound.certificate, Certificate)
    return bound.certificate


def test_roundtrip(proved: tuple[nn.Module, lipcert.Bound], tmp_path: Path) -> None:
    model, bound = proved
    bound.save(tmp_path / "a.lipcert")
    again = lipcert.verify(tmp_path / "a.lipcert", model, torch.zeros(1, 4, dtype=torch.float64))
    assert (again.value, again.guarantee, again.method) == (bound.value, "rigorous", "branch_and_bound")


def leaf_dropped(witness: Witness) -> Witness:
    """The last leaf, with its row of everything."""
    arrays = {k: v if k == "exponents" else v[:-1] for k, v in witness.arrays.items()}
    return replace(witness, arrays=arrays)


def pair_collapsed(witness: Witness) -> Witness:
    """A split at the end with its two leaves becomes one leaf, with the multipliers of one of them."""
    tree = witness.arrays["tree"].tolist()
    at = next(i for i in range(len(tree) - 3, -1, -1) if tree[i] >= 0 and tree[i + 1] == tree[i + 2] == -1)
    leaf = sum(1 for entry in tree[:at] if entry == -1)
    arrays = {
        k: v if k in ("exponents", "tree") else torch.cat([v[:leaf], v[leaf + 1 :]]) for k, v in witness.arrays.items()
    }
    arrays["tree"] = torch.tensor([*tree[:at], -1, *tree[at + 3 :]])
    return replace(witness, arrays=arrays)


def fixing_changed(witness: Witness) -> Witness:
    """Another neuron at the root of the tree."""
    tree = witness.arrays["tree"].clone()
    tree[0] = next(j for j in range(12) if j not in tree.tolist())
    return replace(witness, arrays={**witness.arrays, "tree": tree})


def fixed_twice(witness: Witness) -> Witness:
    tree = witness.arrays["tree"].clone()
    tree[1:][tree[1:] >= 0] = tree[0]
    return replace(witness, arrays={**witness.arrays, "tree": tree})


def leaf_copied(witness: Witness) -> Witness:
    arrays = {k: v if k == "exponents" else torch.cat([v, v[-1:]]) for k, v in witness.arrays.items()}
    return replace(witness, arrays=arrays)


def multiplier_negative(witness: Witness) -> Witness:
    key = next(k for k in witness.arrays if k.startswith("multipliers"))
    return replace(witness, arrays={**witness.arrays, key: -witness.arrays[key]})


def children_swapped(witness: Witness) -> Witness:
    """The leaves' multipliers in reverse order."""
    arrays = {k: v.flip(0) if k.startswith("multipliers") else v for k, v in witness.arrays.items()}
    return replace(witness, arrays=arrays)


def layerwise(witness: Witness) -> Witness:
    return replace(witness, settings={**witness.settings, "layerwise": True})


def no_tree(witness: Witness) -> Witness:
    return replace(witness, arrays={k: v for k, v in witness.arrays.items() if k != "tree"})


def slack_nan(witness: Witness) -> Witness:
    return replace(witness, arrays={**witness.arrays, "slack": witness.arrays["slack"] * float("nan")})


def rho_nan(witness: Witness) -> Witness:
    return replace(witness, settings={**witness.settings, "rho": float("nan")})


TAMPERINGS = [
    leaf_dropped, pair_collapsed, fixing_changed, fixed_twice, leaf_copied, multiplier_negative, children_swapped,
    layerwise, no_tree, slack_nan, rho_nan,
]  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERINGS)
def test_tampered_tree_is_refused(
    proved: tuple[nn.Module, lipcert.Bound], tamper: Callable[[Witness], Witness]
) -> None:
    model, bound = proved
    network = capture(model, torch.zeros(1, 4, dtype=torch.float64))
    changed = tamper(record(bound).witness)
    with pytest.raises(CertificateError):
        verify(replace(record(bound), witness=changed), network)


def test_lowered_claim_is_refused(proved: tuple[nn.Module, lipcert.Bound]) -> None:
    model, bound = proved
    network = capture(model, torch.zeros(1, 4, dtype=torch.float64))
    value = bound.value * 0.999
    settings = {**record(bound).witness.settings, "rho": record(bound).witness.settings["rho"] * 0.998}
    witness = replace(record(bound).witness, settings=settings)
    with pytest.raises(CertificateError):
        verify(replace(record(bound), witness=witness, value=value), network)
    honest = check(Problem(network), witness, "branch_and_bound", Chance())
    assert honest.value >= enumerated(model, 4) * (1 - 1e-12)


def test_random_trees_and_multipliers_never_prove_less_than_the_truth() -> None:
    """Whatever witness is offered: refused, or a value at or above the vertex maximum."""
    model = chain([3, 4, 4, 2], steep, 1)
    truth = enumerated(model, 3)
    network = capture(model, torch.zeros(1, 3, dtype=torch.float64))
    good = (
        lipcert.BranchAndBound(gap=1e-5, prune=False)
        .solve(Problem(network), Run(torch.Generator().manual_seed(0), torch.device("cpu")))
        .witness
    )
    problem = Problem(network)
    root = lipcert.LipSDP().solve(problem, Run(torch.Generator().manual_seed(0), torch.device("cpu"))).witness
    assert torch.equal(root.arrays["exponents"], good.arrays["exponents"])
    random = np.random.default_rng(0)
    outcomes = []
    for _ in range(60):
        tree = random_tree(random, list(range(8)), 3)
        leaves, own = tree.count(-1), len(good.arrays["slack"])
        rows = torch.from_numpy(np.where(random.random(leaves) < 0.8, own, random.integers(0, own, leaves)))
        noise = float(random.choice([0.0, 1e-4, 1e-2, 0.3]))
        arrays = {
            "exponents": good.arrays["exponents"],
            "tree": torch.tensor(tree),
            "slack": torch.full((leaves,), 1e-6),
        }
        for key, value in good.arrays.items():
            if key.startswith("multipliers"):
                factor = torch.from_numpy(np.exp(noise * random.standard_normal((leaves, value.shape[1])) + 3 * noise))
                offered = torch.cat([value, root.arrays[key]])[rows]  # the last row is feasible in every leaf
                arrays[key] = offered.clamp(min=1e-6) * factor
        settings = {"rho": truth**2 * float(random.choice([0.5, 0.999, 1.01]))}
        try:
            bound = check(problem, Witness("branch_tree", arrays, settings), "x", Chance())
        except (CertificateError, NotProved):
            continue
        outcomes.append(bound.value)
    assert 5 <= len(outcomes) < 60
    assert min(outcomes) >= truth * (1 - 1e-12)


def random_tree(random: np.random.Generator, free: list[int], depth: int) -> list[int]:
    if depth == 0 or random.random() < 0.2:
        return [-1]
    neuron = int(random.choice(free))
    rest = [j for j in free if j != neuron]
    return [neuron, *random_tree(random, rest, depth - 1), *random_tree(random, rest, depth - 1)]


def test_leaves_partition_the_patterns() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        tree = random_tree(random, list(range(6)), 5)
        leaves = list(leaf_fixings(tree, torch.ones(6, dtype=torch.bool)))
        for pattern in itertools.product((0, 1), repeat=6):
            assert sum(all(pattern[j] == end for j, end in leaf.items()) for leaf in leaves) == 1


@pytest.mark.parametrize("tree", [[], [0], [0, -1], [-1, -1], [0, -1, -1, -1], [0, 0, -1, -1, -1], [6, -1, -1], [-2]])
def test_broken_trees(tree: list[int]) -> None:
    with pytest.raises(CertificateError):
        list(leaf_fixings(tree, torch.ones(6, dtype=torch.bool)))


def test_what_cannot_be_split() -> None:
    with pytest.raises(CertificateError):
        list(leaf_fixings([1, -1, -1], torch.tensor([True, False])))


# -- bad input --------------------------------------------------------------------------------------------------


def test_norms() -> None:
    model = chain([3, 4, 2], relu, 0)
    with pytest.raises(UnsupportedNormError, match="methods that can"):
        lipcert.bound(model, torch.zeros(1, 3, dtype=torch.float64), method="branch_and_bound", norm=(1, 1))


def test_options() -> None:
    for options in ({"gap": 0.0}, {"gap": 2.0}, {"max_nodes": 0}, {"columns": 0}, {"passes": 0}):
        with pytest.raises(InputError):
            lipcert.BranchAndBound(**options)  # type: ignore[arg-type]


def test_too_wide() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    with pytest.raises(MethodError, match="lipsdp"):
        lipcert.bound(model, torch.zeros(1, 1, 32, 32), method="branch_and_bound")


@pytest.mark.parametrize("widths", [[3, 2], [3, 4, 2]])
def test_linear_and_zero_networks(widths: list[int]) -> None:
    model = chain(widths, relu, 0)
    exact(model, 3)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert solved(model, 3).value <= 1e-100


# -- pools: terms of a curvature cancel where max(a, b) = b + relu(a − b) has its ReLU fixed ------------------------


def pooled(kind: int, seed: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    layers: tuple[nn.Module, ...]
    if kind == 0:
        layers, shape = (nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), (1, 6, 6)
    elif kind == 1:
        pool = (nn.Unflatten(1, (1, 8)), nn.MaxPool1d(2), nn.Flatten())
        layers, shape = (nn.Linear(4, 8), nn.ReLU(), *pool, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (4,)
    else:  # windows that overlap
        pool = (nn.Unflatten(1, (1, 9)), nn.MaxPool1d(3, 2), nn.Flatten())
        layers, shape = (nn.Linear(5, 9), *pool, nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), (5,)
    return nn.Sequential(*layers).double().eval(), torch.zeros(1, *shape, dtype=torch.float64)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_networks_with_pools_get_a_proved_tree(kind: int) -> None:
    model, x = pooled(kind, kind)
    bound = lipcert.bound(model, x, method=lipcert.BranchAndBound(max_nodes=20), budget=5)
    assert record(bound).kind == "branch_tree"
    assert not bound.breakdown[0].remark.startswith("1 leaves")
    assert bound.value <= lipcert.bound(model, x, method="lipsdp").value * (1 + 1e-3)
    assert bound.value >= lipcert.lower_bound(model, x, budget=0.2).value


def test_where_no_tree_is_proved_lipsdp_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain([3, 4, 2], relu, 0)

    def nothing(*arguments: object) -> None:
        raise NotProved("nothing.")

    monkeypatch.setitem(base._CHECKS, "branch_tree", nothing)  # type: ignore[arg-type]
    bound, x = solved(model, 3), torch.zeros(1, 3, dtype=torch.float64)
    assert record(bound).kind == "quadratic"
    assert bound.value == pytest.approx(lipcert.bound(model, x, method="lipsdp").value, rel=1e-3)
    monkeypatch.setitem(base._CHECKS, "quadratic", nothing)  # type: ignore[arg-type]
    assert record(solved(model, 3)).kind in ("loop_transform", "layer_product")
