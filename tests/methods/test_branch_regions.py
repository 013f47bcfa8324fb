"""Branch and bound on domains: against all regions of small networks, and proofs of empty leaves against forgery."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness
from lipcert.certificates.bound import Certificate, check
from lipcert.certificates.verify import verify
from lipcert.domain import Ball, Box, Domain, Intersection
from lipcert.errors import CertificateError, NotProved
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from tests.zoo import ZOO, random_network, zoo_case

DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True)
class Kinked:
    """An activation as its kinks and the slopes between them, and its code."""

    function: Callable[[Tensor], Tensor]
    kinks: tuple[float, ...]
    slopes: tuple[float, ...]


KINDS = {
    "relu": Kinked(torch.relu, (0.0,), (0.0, 1.0)),
    "leaky": Kinked(lambda x: F.leaky_relu(x, 0.25), (0.0,), (0.25, 1.0)),
    "abs": Kinked(torch.abs, (0.0,), (-1.0, 1.0)),
    "clamp": Kinked(lambda x: torch.clamp(x, -0.3, 0.4), (-0.3, 0.4), (0.0, 1.0, 0.0)),
    "shifted": Kinked(lambda x: F.threshold(x, 0.2, 0.2), (0.2,), (0.0, 1.0)),
    "falling": Kinked(lambda x: F.leaky_relu(x, -0.5), (0.0,), (-0.5, 1.0)),
}


class Chain(nn.Module):
    """Linear layers with biases and one activation between."""

    def __init__(self, widths: list[int], kind: str, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.kind_name, self.kind, layers = kind, KINDS[kind], []
        for n, m in itertools.pairwise(widths):
            layer = nn.Linear(n, m, dtype=torch.float64)
            layer.weight.data = torch.randn(m, n, generator=generator, dtype=torch.float64) / n**0.5
            layer.bias.data = 0.4 * torch.randn(m, generator=generator, dtype=torch.float64)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.kind.function(layer(x))
        return self.layers[-1](x)


def true_constant(model: Chain, corners: Tensor) -> float:
    """The largest Jacobian norm over a convex polygon in the plane, cut along every kink."""
    parts = [(corners, torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))]
    for number, layer in enumerate(model.layers):
        moved = [(p, layer.weight @ a, layer.weight @ b + layer.bias) for p, a, b in parts]
        if number == len(model.layers) - 1:
            return max(float(torch.linalg.matrix_norm(a, 2)) for _, a, _ in moved)
        parts = []
        for piece in moved:
            parts += _activated(model.kind, *piece)
    raise AssertionError


def _activated(kind: Kinked, polygon: Tensor, a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    parts = [(polygon, torch.zeros_like(a), torch.zeros_like(b))]
    for j in range(len(a)):
        cut = []
        for part, slopes, offsets in parts:
            for place, slope in enumerate(kind.slopes):
                piece = part
                if place:
                    piece = _above(piece, a[j], b[j] - kind.kinks[place - 1])
                if place < len(kind.kinks):
                    piece = _above(piece, -a[j], kind.kinks[place] - b[j])
                if _area(piece) < 1e-13:
                    continue
                own, offset = slopes.clone(), offsets.clone()
                own[j] = slope * a[j]
                middle = piece.mean(dim=0)
                v = a[j] @ middle + b[j]
                offset[j] = kind.function(v) - slope * (a[j] @ middle)
                cut.append((piece, own, offset))
        parts = cut
    return parts


def _above(polygon: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    """What of a convex polygon has normal·x + offset ≥ 0."""
    rows = []
    for p, q in zip(polygon, polygon.roll(-1, 0), strict=True):
        u, v = float(normal @ p + offset), float(normal @ q + offset)
        if u >= 0:
            rows.append(p)
        if (u < 0 < v) or (v < 0 < u):
            rows.append(p + (q - p) * (u / (u - v)))
    return torch.stack(rows) if rows else polygon[:0]


def _area(polygon: Tensor) -> float:
    if len(polygon) < 3:
        return 0.0
    x, y = polygon.T
    return 0.5 * abs(float((x * y.roll(-1) - y * x.roll(-1)).sum()))


def solved(model: nn.Module, n: int, domain: Domain, budget: float = 20.0, **options: float) -> lipcert.Bound:
    method = lipcert.BranchAndBound(**options)  # type: ignore[arg-type]
    return lipcert.bound(model, torch.zeros(1, n, dtype=torch.float64), domain=domain, method=method, budget=budget)


def witness(bound: lipcert.Bound) -> Witness:
    assert isinstance(bound.certificate, Certificate)
    return bound.certificate.witness


def polygon(domain: Domain) -> Tensor:
    """A polygon in a domain of the plane: all of it where that is one."""
    assert domain is not None
    if isinstance(domain, Ball) and domain.p == 2:
        turn = torch.arange(400, dtype=torch.float64) * (2 * torch.pi / 400)
        return domain.center + domain.radius * torch.stack([turn.cos(), turn.sin()], dim=1)
    if isinstance(domain, Ball) and domain.p == 1:
        corners = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
        return domain.center + domain.radius * corners
    if isinstance(domain, Intersection):
        result = polygon(domain.ball)
        for sign, end in ((1.0, domain.box.lower), (-1.0, domain.box.upper)):
            for j in range(2):
                normal = sign * torch.eye(2, dtype=torch.float64)[j]
                result = _above(result, normal, -sign * end.expand(2)[j])
        return result
    low, high = domain.bounds()
    return torch.tensor([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]]).double()


DOMAINS: dict[str, Domain] = {
    "ball": Ball([0.1, -0.2], 0.7, 2),
    "small ball": Ball([0.3, 0.1], 0.1, 2),
    "l1": Ball([0.1, -0.2], 0.9, 1),
    "linf": Ball([-0.1, 0.2], 0.5),
    "box": Box([-0.2, -0.9], [0.8, 0.1]),
    "capped": Intersection(Ball([0.1, -0.2], 0.7, 2), Box([-0.2, -0.5], [0.6, 0.3])),
}


#: One of three seeds for each pair; the other two are slow tests.
CASES = [
    pytest.param(place, kind, seed, marks=[] if (i + j) % 3 == seed else [pytest.mark.slow])
    for i, place in enumerate(DOMAINS)
    for j, kind in enumerate(KINDS)
    for seed in range(3)
]


@pytest.mark.few(2)
@pytest.mark.parametrize(("place", "kind", "seed"), CASES)
def test_the_local_constant_in_the_plane(place: str, kind: str, seed: int) -> None:
    """Never below; equal where every neuron has two pieces (a clamp's three are not told apart)."""
    widths = [[2, 6, 2], [2, 4, 4, 3], [2, 3, 3, 3, 1]][seed]
    model = Chain(widths, kind, seed).eval()
    bound = solved(model, 2, DOMAINS[place], gap=1e-5)
    with torch.no_grad():
        truth = true_constant(model, polygon(DOMAINS[place]))
    assert truth * (1 - 1e-12) <= bound.value
    if kind != "clamp":
        assert bound.value <= truth * (1 + 3e-4)


def test_some_leaves_are_empty_and_none_without_pruning_would_do() -> None:
    model = Chain([2, 4, 4, 3], "relu", 1).eval()
    bound = solved(model, 2, DOMAINS["ball"], gap=1e-5)
    arrays = witness(bound).arrays
    assert len(arrays["empty"]) >= 1
    assert "empty" in bound.breakdown[0].remark


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(6))
def test_three_dimensions_by_samples(seed: int) -> None:
    model = Chain([[3, 8, 2], [3, 4, 4, 2]][seed % 2], list(KINDS)[seed], seed).eval()
    domain = Ball([0.1, 0.2, -0.1], 0.5, (2, 1, torch.inf)[seed % 3])
    bound = solved(model, 3, domain)
    points = domain.project(domain.center + 0.5 * torch.randn(3000, 3, dtype=torch.float64))
    jacobians = torch.func.vmap(torch.func.jacrev(model))(points)
    seen = float(torch.linalg.matrix_norm(jacobians, 2).max())
    assert seen * (1 - 1e-12) <= bound.value <= seen * (1.02 if seed != 3 else 2.0)


def test_selections_are_expanded_and_pruned() -> None:
    torch.manual_seed(0)
    pool = (nn.Unflatten(1, (1, 8)), nn.MaxPool1d(2), nn.Flatten())
    model = nn.Sequential(nn.Linear(3, 8), *pool, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    domain = Ball([0.1, 0.2, -0.1], 0.6, 2)
    bound = solved(model, 3, domain)
    points = domain.project(domain.center + 0.6 * torch.randn(4000, 3, dtype=torch.float64))
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(points)
    seen = float(torch.linalg.matrix_norm(jacobians, 2).max())
    assert seen * (1 - 1e-12) <= bound.value <= seen * 1.01


def test_smooth_neurons_stay_without_a_region() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).double().eval()
    domain = Ball([0.1, 0.2], 0.5, 2)
    problem = Problem(capture(model, torch.zeros(1, 2, dtype=torch.float64)), domain=domain)
    assert problem.regions is not None
    assert set(problem.regions.side.tolist()) == {0.0, 1.0}
    bound = solved(model, 2, domain, budget=3.0)
    points = domain.project(domain.center + 0.5 * torch.randn(2000, 2, dtype=torch.float64))
    jacobians = torch.func.vmap(torch.func.jacrev(model))(points)
    assert bound.value >= float(torch.linalg.matrix_norm(jacobians, 2).max())


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "domain", [Ball([0.0, 0.0], 1e200, 2), Box(-1e200, 1e200), Ball([0.1, 0.2], 0.0, 2), Box(0.5, 0.5)]
)
@pytest.mark.parametrize("factor", [1.0, 1e100, 1e-100])
def test_extreme_sizes(domain: Domain, factor: float) -> None:
    model = Chain([2, 4, 4, 2], "relu", 3).eval()
    for layer in model.layers:
        layer.weight.data *= factor
    bound = solved(model, 2, domain, budget=2.0)
    x = domain.bounds()[1].expand(2)  # type: ignore[union-attr]
    at = torch.linalg.matrix_norm(torch.func.jacrev(model)(0.7 * x if domain.bounds()[0].min() < 0 else x), 2)  # type: ignore[union-attr]
    assert bound.value >= float(at) * (1 - 1e-12) or not np.isfinite(float(at))


# -- regions: what is said of the points in them -----------------------------------------------------------------


@pytest.mark.few(3)
@pytest.mark.parametrize("case", [name for name, _, _ in ZOO] + list(range(6)))
def test_no_point_of_a_region_exceeds_its_bound(case: str | int) -> None:
    """Σ μ_j s_j (v_j − kink_j) by the network's own values, against ``greatest`` for fixings that points agree with."""
    one = zoo_case(case) if isinstance(case, str) else random_network(case)
    try:
        network = capture(one.model, one.example)
        shape = network.in_shape
        generator = torch.Generator().manual_seed(3)
        domain = Ball(torch.randn(shape[1:], generator=generator, dtype=torch.float64), 0.5, 2)
        problem = Problem(network, domain=domain)
        increments = problem.expanded_increments
    except lipcert.LipcertError:
        return
    regions = problem.regions
    assert regions is not None
    assert regions.count == sum(int(cell.free.sum()) for cell in increments.cells if hasattr(cell, "free"))
    if regions.count == 0 or not bool((regions.side != 0).any()):
        return
    noise = torch.randn(30, *shape, generator=generator, dtype=torch.float64)
    points = problem.domain.project(problem.domain.center + 0.5 * noise)  # type: ignore[union-attr]
    own = regions.at(points)
    network, values = regions.network, {}
    for position, value in network.values(points):
        values[position] = value.reshape(len(points), -1)
    signed = torch.zeros(len(points), regions.count, dtype=torch.float64)
    for k, halves in regions.halves.items():
        place, entries = regions.places[k]
        v = values[network.nodes[k].parents[0]][:, entries] - halves.kink.reshape(-1)[entries]
        signed[:, place] = torch.where(halves.side.reshape(-1)[entries] == 0, 0.0, v.abs())
    for share in (0.1, 0.5, 1.0):
        fixed = torch.rand(own.shape, generator=generator) < share
        fixings = torch.where(fixed, own, -1)
        weights = torch.rand(own.shape, generator=generator, dtype=torch.float64) ** 4
        used = (fixings >= 0) & (regions.side != 0)
        sums = torch.where(used, weights * signed, 0.0).sum(dim=1)
        top = regions.greatest(fixings.to(torch.int8), weights)
        assert bool((top >= sums * (1 - 1e-12)).all())
        assert torch.equal(regions.greatest(fixings.to(torch.int8), -weights), torch.zeros(len(points)).double())


def test_two_pieces_are_told_from_more_and_from_curves() -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.relu(x), torch.clamp(x, -0.1, 0.1), torch.tanh(x), torch.abs(x - 0.2)], dim=1)

    network = capture(Several(), torch.zeros(1, 2, dtype=torch.float64))
    regions = Problem(network, domain=Box([-1.0, 0.05], [1.0, 1.0])).regions
    assert regions is not None
    sides = [int(s) for s in regions.side]
    # relu(x_0); clamp of x_0 (three pieces) and of x_1 (falls from 1 to 0); tanh twice; |x − 0.2| twice
    assert sorted(sides) == sorted([1, 0, -1, 0, 0, 1, 1])
    assert Problem(network, domain=Box([-1.0, -torch.inf], [1.0, torch.inf])).regions is None
    anchored = Problem(network, domain=Box(-1.0, 1.0), anchor=torch.zeros(2))
    assert anchored.regions is None


# -- certificates ------------------------------------------------------------------------------------------------

MODEL = Chain([2, 4, 4, 3], "relu", 1).eval()
PLACE = DOMAINS["ball"]


@pytest.fixture(scope="module")
def proved() -> lipcert.Bound:
    return solved(MODEL, 2, PLACE, gap=1e-5)


def test_roundtrip(proved: lipcert.Bound, tmp_path: Path) -> None:
    proved.save(tmp_path / "a.lipcert")
    again = lipcert.verify(tmp_path / "a.lipcert", MODEL, torch.zeros(1, 2, dtype=torch.float64))
    assert (again.value, again.guarantee) == (proved.value, "rigorous")


def changed(**arrays: Callable[[Tensor], Tensor | None]) -> Callable[[Witness], Witness]:
    def change(old: Witness) -> Witness:
        new = dict(old.arrays)
        for name, function in arrays.items():
            value = function(new[name])
            new = {k: v for k, v in new.items() if k != name} if value is None else {**new, name: value}
        return replace(old, arrays=new)

    return change


def first_to(number: float) -> Callable[[Tensor], Tensor]:
    def change(weights: Tensor) -> Tensor:
        weights = weights.clone()
        weights[0, int(weights[0].argmax())] = number
        return weights

    return change


def one_more_is_empty(old: Witness) -> Witness:
    """A leaf with a bound loses it, and is said to be empty with all weights that there are."""
    empty, count = old.arrays["empty"].tolist(), int((old.arrays["tree"] == -1).sum())
    living = next(number for number in range(count) if number not in empty)
    place = [number for number in range(count) if number not in empty].index(living)
    arrays = {}
    for key, value in old.arrays.items():
        if key.startswith("multipliers") or key == "slack":
            value = torch.cat([value[:place], value[place + 1 :]])
        arrays[key] = value
    order = sorted([*empty, living])
    rows = dict(zip(empty, old.arrays["emptiness"], strict=True))
    rows[living] = torch.ones_like(old.arrays["emptiness"][0])
    arrays["empty"] = torch.tensor(order)
    arrays["emptiness"] = torch.stack([rows[number] for number in order])
    return replace(old, arrays=arrays)


def all_are_empty(old: Witness) -> Witness:
    count = int((old.arrays["tree"] == -1).sum())
    arrays = {k: v[:0] if k.startswith("multipliers") or k == "slack" else v for k, v in old.arrays.items()}
    arrays["empty"] = torch.arange(count)
    arrays["emptiness"] = torch.ones(count, old.arrays["emptiness"].shape[1], dtype=torch.float64)
    return replace(old, arrays=arrays)


def root_is_empty(old: Witness) -> Witness:
    alone = replace(old, arrays={**old.arrays, "tree": torch.tensor([-1])})
    return all_are_empty(alone)


def leaf_missing(old: Witness) -> Witness:
    """The tree ends before its last leaf, an empty one or not."""
    return replace(old, arrays={**old.arrays, "tree": old.arrays["tree"][:-1]})


def rolled(weights: Tensor) -> Tensor:
    return weights.roll(1, dims=1)


TAMPERINGS = {
    "negative": changed(emptiness=first_to(-1.0)),
    "tiny negative": changed(emptiness=lambda w: torch.where(w == 0, -1e-300, w)),
    "NaN": changed(emptiness=first_to(float("nan"))),
    "infinite": changed(emptiness=first_to(float("inf"))),
    "zero": changed(emptiness=torch.zeros_like),
    "of other neurons": changed(emptiness=rolled),
    "a column less": changed(emptiness=lambda w: w[:, :-1]),
    "a row less": changed(emptiness=lambda w: w[:-1]),
    "one row for all": changed(emptiness=lambda w: w[0]),
    "whole numbers": changed(emptiness=lambda w: w.long()),
    "no weights": changed(emptiness=lambda w: None),
    "no numbers": changed(empty=lambda e: None),
    "a number less": changed(empty=lambda e: e[:-1], emptiness=lambda w: w[:-1]),
    "numbers as floats": changed(empty=lambda e: e.double()),
    "descending": changed(empty=lambda e: e.flip(0), emptiness=lambda w: w.flip(0)),
    "twice": changed(empty=lambda e: torch.cat([e[:1], e]), emptiness=lambda w: torch.cat([w[:1], w])),
    "no leaf's number": changed(empty=lambda e: torch.cat([e[:-1], e[-1:] + 1000])),
    "a negative number": changed(empty=lambda e: torch.cat([e[:1] * 0 - 1, e[1:]])),
    "the next leaf": changed(empty=lambda e: (e + 1) % (int(e.max()) + 2)),
    "one more": one_more_is_empty,
    "all": all_are_empty,
    "the root": root_is_empty,
    "missing leaf": leaf_missing,
}


@pytest.mark.few(8)
@pytest.mark.parametrize("name", TAMPERINGS)
def test_forged_empty_leaves_are_refused(proved: lipcert.Bound, name: str) -> None:
    forged = TAMPERINGS[name](witness(proved))
    network = capture(MODEL, torch.zeros(1, 2, dtype=torch.float64))
    assert isinstance(proved.certificate, Certificate)
    with pytest.raises(CertificateError):
        verify(replace(proved.certificate, witness=forged), network)


@pytest.mark.parametrize(
    "problem",
    [
        {"domain": None},
        {"domain": Ball([0.1, -0.2], 0.71, 2)},
        {"domain": Ball([0.1, -0.2], 0.7, 2), "anchor": torch.tensor([0.1, -0.2])},
        {"domain": Ball([0.1, -0.2], 5.0, 2)},
    ],
    ids=["everywhere", "larger", "anchored", "much larger"],
)
def test_on_another_domain_nothing_is_proved_below_its_own_constant(proved: lipcert.Bound, problem: dict) -> None:
    network = capture(MODEL, torch.zeros(1, 2, dtype=torch.float64))
    try:
        bound = check(Problem(network, **problem), witness(proved), "x", Chance())
    except (CertificateError, NotProved):
        return
    assert set(problem) == {"domain"}
    assert problem["domain"] is not None
    assert bound.value >= true_constant(MODEL, polygon(problem["domain"])) * (1 - 1e-12)


def test_anchored_bounds_have_no_empty_leaves() -> None:
    bound = lipcert.bound(
        MODEL, torch.zeros(1, 2, dtype=torch.float64), domain=PLACE, anchor=torch.tensor([0.1, -0.2]).double(),
        method="branch_and_bound", budget=3.0,
    )  # fmt: skip
    assert "empty" not in witness(bound).arrays


def test_random_claims_of_emptiness_never_prove_less_than_the_truth(proved: lipcert.Bound) -> None:
    """Leaves are said to be empty at random, with the weights of others or none."""
    truth = true_constant(MODEL, polygon(PLACE))
    problem = Problem(capture(MODEL, torch.zeros(1, 2, dtype=torch.float64)), domain=PLACE)
    old = witness(proved)
    count, dead = int((old.arrays["tree"] == -1).sum()), old.arrays["empty"].tolist()
    living = [number for number in range(count) if number not in dead]
    random = np.random.default_rng(0)
    proofs = 0
    for _ in range(40):
        claimed = sorted({*dead, *random.choice(living, int(random.integers(1, 3)), replace=False).tolist()})
        kept = [living.index(number) for number in living if number not in claimed]
        arrays = {k: v[kept] if k.startswith("multipliers") or k == "slack" else v for k, v in old.arrays.items()}
        weights = torch.from_numpy(random.exponential(size=(len(claimed), old.arrays["emptiness"].shape[1])))
        for row, number in enumerate(claimed):
            if number in dead:
                weights[row] = old.arrays["emptiness"][dead.index(number)]
        arrays |= {"empty": torch.tensor(claimed), "emptiness": weights}
        try:
            bound = check(problem, replace(old, arrays=arrays), "x", Chance())
        except (CertificateError, NotProved):
            continue
        proofs += 1
        assert bound.value >= truth * (1 - 1e-12)
    assert proofs < 40


# -- trained networks --------------------------------------------------------------------------------------------


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "place", "radius", "value"),
    [
        ("digits_20x3", 0, 0.05, 28.238762), ("digits_20x3", 0, 0.3, 30.038870), ("digits_20x3", 3, 0.3, 40.673170),
        ("digits_20x3", 4, 0.3, 39.097819), ("mnist_64", 0, 0.3, 16.381761), ("mnist_64", 3, 0.3, 15.317253),
    ],
)  # fmt: skip
def test_local_constants_of_trained_networks(name: str, place: int, radius: float, value: float) -> None:
    """``value``: the norm of the Jacobian at a point of the ball, so the constant is no less."""
    arrays = np.load(DATA / f"{name}.npz")
    layers: list[nn.Module] = []
    for k in range(sum(key.startswith("W") for key in arrays.files)):
        weight, bias = (torch.from_numpy(arrays[f"{kind}{k}"]).double() for kind in "Wb")
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        layer.weight.data, layer.bias.data = weight, bias
        layers += [layer, nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).eval()
    center = torch.from_numpy(np.load(DATA / f"{name}_points.npy")[place]).double().reshape(-1)
    bound = solved(model, len(center), Ball(center, radius, 2), budget=10.0)
    assert value * (1 - 1e-7) <= bound.value <= value * (1 + 2e-4)
    assert bound.seconds < 10.0
