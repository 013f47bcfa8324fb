"""The whole attack against constants that are known, and against enumeration of activation patterns."""

import copy
import itertools
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lipcert
from lipcert.attack import attack, evaluate, norms, search
from lipcert.attack.pool import Pool
from lipcert.capture.torch_export import capture
from lipcert.domain import Ball, Box
from lipcert.errors import InputError
from lipcert.problem import Problem

DATA = Path(__file__).parents[1] / "data"
PAIRS = list(itertools.product((1.0, 2.0, math.inf), repeat=2))


def relu_chain(weights, biases=None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, W in enumerate(weights):
        layer = nn.Linear(W.shape[1], W.shape[0], bias=biases is not None).to(W.dtype)
        layer.weight.data = W
        if biases is not None:
            layer.bias.data = biases[i]
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def random_chain(*widths: int, seed: int = 0) -> nn.Sequential:
    g = torch.Generator().manual_seed(seed)
    pairs = list(itertools.pairwise(widths))
    weights = [torch.randn(b, a, generator=g, dtype=torch.float64) / math.sqrt(a) for a, b in pairs]
    return relu_chain(weights, [0.3 * torch.randn(b, generator=g, dtype=torch.float64) for _, b in pairs])


def problem(model: nn.Module, shape, norm=(2.0, 2.0), domain=None, dtype=torch.float64) -> Problem:
    return Problem(capture(model, torch.zeros(1, *shape, dtype=dtype)), norm, domain)


def trained(name: str) -> tuple[nn.Sequential, torch.Tensor]:
    stored = np.load(DATA / f"{name}.npz")
    layers = len(stored.files) // 2
    weights = [torch.from_numpy(stored[f"W{i}"]) for i in range(layers)]
    biases = [torch.from_numpy(stored[f"b{i}"]) for i in range(layers)]
    return relu_chain(weights, biases), torch.from_numpy(np.load(DATA / f"{name}_points.npy"))


def reevaluated(model: nn.Module, lower) -> float:
    """The witness in plain torch: the module's own directional derivative in float64."""
    exact = copy.deepcopy(model).double()
    point, direction = lower.witness.point[None], lower.witness.direction[None]
    _, change = torch.autograd.functional.jvp(exact, point, direction)
    p, q = lower.norm
    return float(change.reshape(-1).norm(p=q) / direction.reshape(-1).norm(p=p))


def vertex_maximum(model: nn.Sequential, norm) -> float:
    """Max of ‖J‖ over all activation patterns, reachable or not, for norms with p = 1, q = ∞ or p = q = 2."""
    weights = [m.weight.detach() for m in model if isinstance(m, nn.Linear)]
    hidden = [len(W) for W in weights[:-1]]
    p, q = norm
    best = 0.0
    for pattern in itertools.product((0.0, 1.0), repeat=sum(hidden)):
        slopes = torch.tensor(pattern, dtype=torch.float64).split(hidden)
        J = weights[0]
        for s, W in zip(slopes, weights[1:], strict=True):
            J = W @ (s[:, None] * J)
        if p == 1:
            best = max(best, float(J.norm(p=q, dim=0).max()))
        elif q == math.inf:
            best = max(best, float(J.norm(p=2.0 if p == 2 else 1.0, dim=1).max()))
        else:
            best = max(best, float(torch.linalg.matrix_norm(J, 2)))
    return best


def test_linear_network_is_exact():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).double().eval()
    W = model[1].weight.detach() @ model[0].weight.detach()
    exact = {
        (2.0, 2.0): float(torch.linalg.matrix_norm(W, 2)),
        (1.0, 1.0): float(W.abs().sum(0).max()),
        (math.inf, math.inf): float(W.abs().sum(1).max()),
    }
    for norm, value in exact.items():
        lower = attack(problem(model, (6,), norm), budget=0.2)
        assert value * (1 - 1e-10) <= lower.value <= value
        assert lower.value <= reevaluated(model, lower) * (1 + 1e-13)


def maxcut_graph(name: str) -> tuple[list[tuple[int, int]], int, int]:
    """Edges, vertices and the maximum cut."""
    if name.startswith("complete"):
        n = int(name[8:])
        return list(itertools.combinations(range(n), 2)), n, (n // 2) * (n - n // 2)
    if name.startswith("cycle"):
        n = int(name[5:])
        return [(i, (i + 1) % n) for i in range(n)], n, n - n % 2
    if name == "bipartite":
        return [(i, 4 + j) for i in range(4) for j in range(3)], 7, 12
    edges = [e for i, e in enumerate(itertools.combinations(range(9), 2)) if (7 * i + i * i) % 5 < 2]
    cuts = itertools.product((0, 1), repeat=9)
    return edges, 9, max(sum(s[a] != s[b] for a, b in edges) for s in cuts)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["complete5", "complete8", "cycle7", "cycle10", "bipartite", "random"])
def test_maxcut(name):
    """x ↦ 1ᵀ relu(Bx), B the (vertices × edges) incidence matrix.

    A gradient Bᵀs has one ±1 for every edge that the set s cuts; all but the empty and full set are reached.
    """
    edges, n, cut = maxcut_graph(name)
    B = torch.zeros(n, len(edges), dtype=torch.float64)
    for column, (a, b) in enumerate(edges):
        B[a, column], B[b, column] = 1.0, -1.0
    model = relu_chain([B, torch.ones(1, n, dtype=torch.float64)])
    lower = attack(problem(model, (len(edges),)), budget=0.7)
    assert math.sqrt(cut) * (1 - 1e-9) <= lower.value <= math.sqrt(cut)


@pytest.mark.few(2)
@pytest.mark.parametrize("norm", [(2.0, 2.0), (1.0, 1.0), (math.inf, math.inf), (1.0, 2.0), (2.0, math.inf)])
def test_between_nothing_and_the_vertex_maximum(norm):
    for seed in range(2):
        model = random_chain(4, 6, 5, 3, seed=seed)
        lower = attack(problem(model, (4,), norm), budget=0.5)
        best = vertex_maximum(model, norm)
        assert 0.6 * best <= lower.value <= best * (1 + 1e-12)
        assert lower.value == pytest.approx(reevaluated(model, lower), rel=1e-10)


@pytest.mark.few(3)
@pytest.mark.parametrize("norm", PAIRS)
def test_witness_reevaluates_in_plain_torch(norm):
    model = random_chain(6, 12, 12, 4, seed=5)
    p = problem(model, (6,), norm)
    lower = attack(p, budget=0.4)
    assert lower.value == pytest.approx(reevaluated(model, lower), rel=1e-10)
    assert lower.value <= reevaluated(model, lower) * (1 + 1e-13)
    assert evaluate(p, lower.witness) == lower.value
    assert lower.witness.point.shape == (6,)
    assert lower.norm == norm


def test_convolutions_and_residuals():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)
            self.last = nn.Linear(2 * 36, 3)

        def forward(self, x):
            return self.last((x + self.second(torch.relu(self.first(x)))).flatten(1))

    torch.manual_seed(0)
    model = Residual().eval()
    p = problem(model, (2, 6, 6), dtype=torch.float32)
    lower = attack(p, inputs=torch.rand(10, 2, 6, 6), budget=1.5)
    assert lower.witness.point.shape == (2, 6, 6)
    assert lower.value == pytest.approx(reevaluated(model, lower), rel=1e-9)
    plain = max(float(torch.linalg.matrix_norm(p.network.nodes[-1].maps[0].matrix(), 2)), 0.0)
    assert lower.value > 0.1 * plain


def known(name: str) -> tuple[nn.Module, int, float]:
    eye = torch.eye(1, dtype=torch.float64)

    def scalar(activation: nn.Module) -> nn.Module:
        model = nn.Sequential(nn.Linear(1, 1, bias=False), activation, nn.Linear(1, 1, bias=False)).double().eval()
        model[0].weight.data, model[2].weight.data = eye.clone(), eye.clone()
        return model

    class Abs(nn.Module):
        def forward(self, x):
            return (2.0 * x).abs()

    return {
        "gelu": (scalar(nn.GELU()), 1, 1.12890447),
        "silu": (scalar(nn.SiLU()), 1, 1.09983933),
        "hardtanh": (scalar(nn.Hardtanh()), 1, 1.0),
        "tanh": (scalar(nn.Tanh()), 1, 1.0),
        "abs": (Abs(), 3, 2.0),
        "softmax": (nn.Softmax(dim=1), 4, 0.5),
        "maxpool": (
            nn.Sequential(nn.Unflatten(1, (1, 6)), nn.MaxPool1d(3, 1), nn.Flatten()),
            6,
            math.sqrt(3.0),
        ),
    }[name]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["gelu", "silu", "hardtanh", "tanh", "abs", "softmax", "maxpool"])
def test_known_constants(name):
    model, n, constant = known(name)
    p = problem(model.eval(), (n,))
    attack(p, budget=0.1)  # torch.func loads its rules on first use
    lower = attack(p, budget=1.0)
    assert constant * (1 - 1e-3) <= lower.value <= constant * (1 + 1e-8)
    assert lower.value == pytest.approx(reevaluated(model, lower), rel=1e-9)


def test_domains():
    model = random_chain(5, 20, 20, 3, seed=2)
    center = torch.full((5,), 0.3, dtype=torch.float64)
    above = lipcert.bound(model, torch.zeros(1, 5, dtype=torch.float64), method="lipsdp").value
    for domain in (
        Ball(center, 0.1),
        Ball(center, 0.1, 2.0),
        Ball(center, 0.1, 1.0),
        Box(center - 0.1, center + torch.tensor([0.1, 0.1, -0.1, 0.0, 1e-9], dtype=torch.float64)),
        Box(torch.full((5,), -math.inf), torch.full((5,), math.inf)),
        Ball(center + 1e6, 1e-3),
    ):
        lower = attack(problem(model, (5,), domain=domain), inputs=torch.zeros(3, 5), budget=0.3)
        assert domain.contains(lower.witness.point)
        assert 0 < lower.value <= above
        if isinstance(domain, Box) and not bool((domain.lower < domain.upper)[2]):
            assert lower.witness.direction[2] == 0
    point = attack(problem(model, (5,), domain=Ball(center, 0.0)), budget=0.4)
    assert point.value == 0.0
    assert evaluate(problem(model, (5,), domain=Ball(center, 0.0)), point.witness) == 0.0


def test_points_that_everything_kinks_at():
    """Without biases every pre-activation is 0 at 0: the search nudges."""
    model = relu_chain([torch.eye(3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)])
    lower = attack(problem(model, (3,)), inputs=torch.zeros(1, 3), budget=0.3)
    assert lower.value == pytest.approx(math.sqrt(6.0), rel=1e-9)
    at_kink = problem(model, (3,), domain=Ball(torch.zeros(3), 1e-9))
    assert attack(at_kink, inputs=torch.zeros(1, 3), budget=0.3).value == pytest.approx(math.sqrt(6.0), rel=1e-9)


def test_degenerate_networks():
    zero = relu_chain([torch.zeros(3, 2, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)])
    lower = attack(problem(zero, (2,)), budget=0.3)
    assert lower.value == 0.0
    tiny = random_chain(3, 8, 2)
    for layer in (tiny[0], tiny[2]):
        layer.weight.data *= 1e-30
        layer.bias.data *= 1e-30
    lower = attack(problem(tiny, (3,)), budget=0.5)
    assert 0 < lower.value == pytest.approx(reevaluated(tiny, lower), rel=1e-9)
    assert attack(problem(random_chain(3, 8, 2), (3,)), budget=0.0).value > 0


@pytest.mark.slow
def test_seed_repeats_and_progress_is_told(monkeypatch):
    monkeypatch.setattr(search, "_PATIENCE", 1)
    p = problem(random_chain(3, 10, 2, seed=1), (3,))
    told: list[float] = []
    first = attack(p, budget=20.0, seed=4, progress=lambda fraction, text: told.append(fraction))
    second = attack(p, budget=20.0, seed=4)
    assert first.value == second.value
    assert torch.equal(first.witness.point, second.witness.point)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_bad_arguments():
    p = problem(random_chain(3, 4, 2), (3,))
    for arguments in ({"budget": -1.0}, {"budget": math.nan}, {"inputs": torch.zeros(2, 4)}):
        with pytest.raises(InputError):
            attack(p, **arguments)
    with pytest.raises(InputError, match="NaN"):
        attack(p, inputs=torch.full((1, 3), math.nan))


def test_budget_is_kept(monkeypatch):
    """By a clock that moves on only when it is read: the search is cut off by it, and what is found is settled soon."""
    p = problem(random_chain(20, 40, 40, 20), (20,))
    readings = []
    for step in (0.01, 0.05):
        now = itertools.count(step=step)
        monkeypatch.setattr(time, "perf_counter", lambda now=now: next(now))
        attack(p, budget=1.0)
        readings.append(next(now) / step)
    assert readings[1] < 30 < readings[0]


@pytest.mark.few(1)
@pytest.mark.parametrize(("name", "target", "upper"), [("digits_20x3", 44.0, 44.2275454), ("mnist_64", 17.55, 17.5928)])
def test_trained_networks(name, target, upper):
    model, points = trained(name)
    p = Problem(capture(model, points[:1].float()))
    lower = attack(p, inputs=points, budget=3.0)
    assert target <= lower.value <= upper
    assert lower.value == pytest.approx(reevaluated(model, lower), rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.parametrize(
    ("name", "target", "upper"), [("digits_20x3", 44.05, 44.2275454), ("mnist_64", 17.57, 17.5928)]
)
def test_reference_targets(name, target, upper, with_data):
    model, points = trained(name)
    lower = attack(Problem(capture(model, points[:1].float())), inputs=points if with_data else None, budget=30.0)
    assert target <= lower.value <= upper


def test_points_whose_derivative_is_no_number_spoil_no_search():
    """x·sigmoid(1e300 x) overflows to NaN at most points; the others are steep, and the search finds them."""
    w = torch.tensor([0.0, 1e-300, 1e300, -1.0], dtype=torch.float64)

    class Gate(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x * w)

    model = Gate().eval()
    value = lipcert.lower_bound(model, torch.zeros(1, 4, dtype=torch.float64), budget=0.3).value
    assert 0.99 < value <= 1.0998393194


def test_best_directions_pass_over_matrices_with_nan():
    matrices = torch.stack(
        [torch.full((2, 2), math.nan), torch.diag(torch.tensor([1.0, 3.0])), torch.full((2, 2), math.inf)]
    )
    values, _ = norms.best_directions(matrices.double(), 2.0, 2.0)
    assert float(values[1]) == pytest.approx(3.0)
    pool = Pool(0.0)
    pool.add(torch.zeros(9, 2), torch.tensor([math.nan] * 8 + [3.0]), torch.ones(9, 2))
    assert pool.best == 3.0
