"""Branch and bound on the whole space: against exact constants of small networks, and its proofs against forgery."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import prove
from lipcert.certificates.chains import FactoredChain, needed_chains
from lipcert.certificates.verify import verify
from lipcert.errors import CertificateError, NotProved
from lipcert.methods.space_reach import SpaceReach
from lipcert.numerics.chance import Chance
from lipcert.numerics.midrad import Range
from lipcert.problem import Problem
from lipcert.ranges.space import SpaceRegions, _share
from tests.methods.test_branch_regions import KINDS, TAMPERINGS, Chain, Kinked, solved, witness
from tests.zoo import ZOO, random_network, zoo_case

GAP = 1e-5
Cut = list[tuple[Fraction, Fraction]]


# -- the constant in the plane, in exact arithmetic ----------------------------------------------------------------


def constant_in_the_plane(model: Chain, far: int = 2**24) -> float:
    """The largest Jacobian norm over a square of that size, cut along every kink in rational numbers.

    A piece counts if it has an area, however small; only the norms are rounded.
    """
    kind = KINDS[model.kind_name]
    kinks, slopes = [Fraction(k) for k in kind.kinks], [Fraction(s) for s in kind.slopes]
    square = [(Fraction(a * far), Fraction(b * far)) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    one, zero = Fraction(1), Fraction(0)
    pieces: list[tuple[Cut, list[list[Fraction]]]] = [(square, [[one, zero, zero], [zero, one, zero]])]
    for number, layer in enumerate(model.layers):
        weight = [[Fraction(w) for w in row] for row in layer.weight.tolist()]
        bias = [Fraction(b) for b in layer.bias.tolist()]
        moved = []
        for polygon, rows in pieces:
            image = [
                [sum((w * row[c] for w, row in zip(ws, rows, strict=True)), b if c == 2 else zero) for c in range(3)]
                for ws, b in zip(weight, bias, strict=True)
            ]
            moved.append((polygon, image))
        if number == len(model.layers) - 1:
            jacobians = [[[float(v) for v in row[:2]] for row in image] for _, image in moved]
            return max(float(np.linalg.norm(np.array(j), 2)) for j in jacobians)
        pieces = [part for piece in moved for part in activated(kinks, slopes, kind, *piece)]
    raise AssertionError


def activated(
    kinks: list[Fraction], slopes: list[Fraction], kind: Kinked, polygon: Cut, rows: list[list[Fraction]]
) -> Iterator[tuple[Cut, list[list[Fraction]]]]:
    parts: list[tuple[Cut, list[list[Fraction]]]] = [(polygon, [])]
    for row in rows:
        cut = []
        for part, done in parts:
            for place, slope in enumerate(slopes):
                piece = part
                if place:
                    piece = above(piece, (row[0], row[1], row[2] - kinks[place - 1]))
                if place < len(kinks):
                    piece = above(piece, (-row[0], -row[1], kinks[place] - row[2]))
                if len(piece) < 3 or area(piece) == 0:
                    continue
                offset = Fraction(float(kind.function(torch.tensor(float(kinks[0]), dtype=torch.float64))))
                cut.append((piece, [*done, [slope * row[0], slope * row[1], offset + slope * (row[2] - kinks[0])]]))
        parts = cut
    yield from parts


def above(polygon: Cut, line: tuple[Fraction, Fraction, Fraction]) -> Cut:
    values = [line[0] * x + line[1] * y + line[2] for x, y in polygon]
    result: Cut = []
    for (p, u), (q, v) in itertools.pairwise(
        [*zip(polygon, values, strict=True), (polygon[0], values[0])] if polygon else []
    ):
        if u >= 0:
            result.append(p)
        if (u < 0 < v) or (v < 0 < u):
            t = u / (u - v)
            result.append((p[0] + (q[0] - p[0]) * t, p[1] + (q[1] - p[1]) * t))
    return result


def area(polygon: Cut) -> Fraction:
    return abs(sum((p[0] * q[1] - q[0] * p[1] for p, q in itertools.pairwise([*polygon, polygon[0]])), Fraction(0)))


def chain(widths: list[int], kind: str, seed: int, bias: bool = True) -> Chain:
    model = Chain(widths, kind, seed).eval()
    model.kind_name = kind  # type: ignore[assignment]
    for layer in model.layers if not bias else ():
        layer.bias.data.zero_()
    return model


PLANE = [
    ([2, 4, 1], "relu", 0), ([2, 4, 4, 3], "relu", 1), ([2, 3, 3, 3, 1], "leaky", 2), ([2, 5, 3, 2], "abs", 3),
    ([2, 4, 4, 2], "shifted", 4), ([2, 4, 4, 1], "falling", 5), ([2, 5, 5, 1], "relu", 6), ([2, 6, 2], "abs", 7),
    ([2, 3, 4, 2], "leaky", 8), ([2, 4, 3, 2, 2], "relu", 9),
]  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize(("widths", "kind", "seed"), PLANE)
@pytest.mark.parametrize("bias", [True, False])
def test_the_constant_in_the_plane(widths: list[int], kind: str, seed: int, bias: bool) -> None:
    """Bound = the largest Jacobian norm over all pieces, up to the gap; never below it."""
    model = chain(widths, kind, seed, bias)
    bound, truth = solved(model, 2, None, gap=GAP), constant_in_the_plane(model)
    assert truth * (1 - 1e-12) <= bound.value <= truth * (1 + 3 * GAP) + 1e-100
    assert bound.guarantee == "rigorous"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_the_constant_in_the_plane_of_more_networks(seed: int) -> None:
    random = np.random.default_rng(seed)
    widths = [2, *random.integers(1, 6, size=int(random.integers(1, 4))).tolist(), int(random.integers(1, 4))]
    kind = [k for k in KINDS if k != "clamp"][seed % 5]
    test_the_constant_in_the_plane(widths, kind, seed, bool(seed % 3))


@pytest.mark.slow
def test_patterns_without_points_make_the_difference() -> None:
    model = chain([2, 4, 4, 3], "relu", 1)
    x = torch.zeros(1, 2, dtype=torch.float64)
    everything = lipcert.bound(model, x, method=lipcert.BranchAndBound(prune=False, gap=GAP), budget=20.0)
    bound = solved(model, 2, None, gap=GAP)
    assert bound.value < 0.99 * everything.value
    assert "empty" in bound.breakdown[0].remark
    assert lipcert.lower_bound(model, x, budget=1.0).value >= bound.value * (1 - 3 * GAP)


# -- more inputs: every pattern by a linear program each -------------------------------------------------------------


def constant_by_programs(model: Chain) -> float:
    """The largest norm over the patterns into whose region a ball fits, neuron by neuron."""
    kind, best = KINDS[model.kind_name], 0.0
    n = model.layers[0].in_features

    def inside(faces: list[np.ndarray]) -> bool:
        a = np.array(faces)
        lengths = np.linalg.norm(a[:, :-1], axis=1)
        matrix = np.hstack([-a[:, :-1], np.maximum(lengths, 1e-9)[:, None]])
        found = linprog([0.0] * n + [-1.0], A_ub=matrix, b_ub=a[:, -1], bounds=[(-1e4, 1e4)] * n + [(None, 1.0)])
        return found.status == 0 and found.x[-1] > 1e-8

    def down(number: int, form: np.ndarray, faces: list[np.ndarray]) -> None:
        nonlocal best
        layer = model.layers[number]
        v = layer.weight.numpy() @ form
        v[:, -1] += layer.bias.numpy()
        if number == len(model.layers) - 1:
            best = max(best, float(np.linalg.norm(v[:, :-1], 2)))
            return
        kink, (left, right) = kind.kinks[0], kind.slopes
        at = float(kind.function(torch.tensor(kink, dtype=torch.float64)))

        def fix(j: int, done: list[np.ndarray], faces: list[np.ndarray]) -> None:
            if j == len(v):
                down(number + 1, np.array(done), faces)
                return
            away = v[j].copy()
            away[-1] -= kink
            for sign, slope in ((1.0, right), (-1.0, left)):
                further = [*faces, sign * away]
                if inside(further):
                    z = slope * away
                    z[-1] += at
                    fix(j + 1, [*done, z], further)

        fix(0, [], faces)

    down(0, np.hstack([np.eye(n), np.zeros((n, 1))]), [])
    return best


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("widths", "kind", "seed"),
    [([3, 4, 4, 2], "relu", 0), ([3, 5, 3, 1], "leaky", 1), ([5, 3, 4, 2], "relu", 2), ([1, 4, 3, 2], "falling", 3)],
)
def test_the_constant_with_more_or_fewer_inputs(widths: list[int], kind: str, seed: int) -> None:
    model = chain(widths, kind, seed)
    bound, truth = solved(model, widths[0], None, gap=GAP), constant_by_programs(model)
    assert truth * (1 - 1e-9) <= bound.value <= truth * (1 + 3 * GAP)


class Skipped(nn.Module):
    """x ↦ C relu(B relu(Ax + a) + Dx + b), with a bounded branch beside it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b, self.d, self.c = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x))) + self.d(x) + 0.3 * torch.tanh(self.d(x))))


def test_a_network_without_any_slope_has_constant_0() -> None:
    """Its second layer is never reached, which no pattern alone says."""
    model = chain([2, 3, 2, 1], "relu", 0)
    model.layers[1].weight.data = -model.layers[1].weight.data.abs() - 0.1
    model.layers[1].bias.data.fill_(-0.5)
    assert solved(model, 2, None).value <= 1e-100


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(3))
def test_graphs_and_bounded_activations(seed: int) -> None:
    model = Skipped(seed).double().eval()
    bound = solved(model, 2, None)
    grid = torch.linspace(-30, 30, 201, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    jacobians = torch.func.vmap(torch.func.jacrev(model))(points).detach()
    seen = float(torch.linalg.matrix_norm(jacobians, 2).max())
    everything = lipcert.bound(model, points[:1], method=lipcert.BranchAndBound(prune=False), budget=1.0)
    assert seen * (1 - 1e-12) <= bound.value <= everything.value * (1 + 3e-4)


# -- what is said to be empty ----------------------------------------------------------------------------------------


def degenerate(mode: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Chains with parallel rows, no offsets, whole numbers, or numbers of all sizes."""
    g = torch.Generator().manual_seed(seed)
    widths = [[2, 5, 3, 2], [4, 3, 5, 1], [1, 6, 2], [3, 2, 2, 2, 2]][seed % 4]
    model = chain(widths, [k for k in KINDS if k != "clamp"][seed % 5], seed)
    for layer in model.layers:
        weight, bias = layer.weight.data, layer.bias.data
        if mode == "twins":
            weight[1::2], bias[1::2] = -weight[0::2][: len(weight[1::2])], -bias[0::2][: len(bias[1::2])]
        elif mode == "homogeneous":
            bias.zero_()
        elif mode == "whole":
            weight.copy_(torch.randint(-2, 3, weight.shape, generator=g))
            bias.copy_(torch.randint(-1, 2, bias.shape, generator=g))
        elif mode == "sizes":
            weight *= 10.0 ** torch.randint(-6, 7, weight.shape, generator=g)
        elif mode == "huge":
            weight *= 1e160
    return model, torch.zeros(1, widths[0], dtype=torch.float64)


CASES = [*(name for name, _, _ in ZOO), *range(6)]
CASES += [f"{m} {s}" for m in ("twins", "homogeneous", "whole", "sizes", "huge", "plain") for s in range(4)]


@pytest.mark.few(3)
@pytest.mark.parametrize("case", CASES)
def test_no_region_of_a_point_is_said_to_be_empty(case: str | int) -> None:
    """Whatever coefficients are offered: random ones, and those that are proofs for neighbouring regions."""
    mode = str(case).split(" ")[0]
    try:
        if mode in ("twins", "homogeneous", "whole", "sizes", "huge", "plain"):
            model, example = degenerate(mode, int(str(case).split(" ")[1]))
        else:
            one = zoo_case(case) if isinstance(case, str) else random_network(case)
            model, example = one.model, one.example
        network = capture(model, example)
        regions = Problem(network).regions
    except lipcert.LipcertError:
        return
    if regions is None or not 0 < regions.count <= 200 or not bool((regions.side != 0).any()):
        return
    assert isinstance(regions, SpaceRegions)
    g, n = torch.Generator().manual_seed(0), int(np.prod(network.in_shape))
    sizes = 10.0 ** torch.randint(-8, 9, (30, 1), generator=g, dtype=torch.float64)
    own = regions.at((torch.randn(30, n, generator=g, dtype=torch.float64) * sizes).reshape(-1, *network.in_shape))
    scale = 10.0 ** torch.randint(-3, 4, (30, 1), generator=g, dtype=torch.float64)
    offered = [torch.randn(own.shape, generator=g, dtype=torch.float64) * scale, torch.zeros(own.shape).double()]
    if n <= 20:
        reach = SpaceReach(regions, network.in_shape, torch.ones(regions.count, dtype=torch.bool), g)
        for row in own[:6]:
            flipped = row.clone()
            flipped[torch.randint(regions.count, (2,), generator=g)] ^= 1
            proof = reach.settled(torch.where(flipped < 0, -1, flipped).clamp(max=1)).empty
            if proof is not None:
                offered += [proof.expand(own.shape).contiguous(), -proof.expand(own.shape)]
    for coefficients in offered:
        for share in (0.4, 1.0):
            fixings = torch.where(torch.rand(own.shape, generator=g) < share, own, -1).to(torch.int8)
            assert not bool(regions.empty(fixings, coefficients).any())


def test_points_on_kinks_and_neurons_that_never_leave_theirs() -> None:
    """Neurons that are 0 everywhere have both their regions; three lines through one point leave almost none."""
    model = chain([2, 3, 1], "relu", 0)
    model.layers[0].weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).double()
    model.layers[0].bias.data.zero_()
    regions = Problem(capture(model, torch.zeros(1, 2).double())).regions
    assert isinstance(regions, SpaceRegions)
    g = torch.Generator().manual_seed(0)
    for pattern in ([1, -1, -1], [0, -1, -1], [1, 1, 0], [0, 0, 1]):
        rows = torch.tensor([pattern] * 50, dtype=torch.int8)
        assert not bool(regions.empty(rows, torch.randn(50, 3, generator=g, dtype=torch.float64)).any())
        assert not bool(regions.empty(rows, torch.randint(-2, 3, (50, 3), generator=g).double()).any())


def test_proofs_hold_for_rows_that_nearly_vanish() -> None:
    """λ of the strip 1 ≤ x ≤ 0 and of 1 ≤ x ≤ 1 + 2⁻³⁰: parallel rows of one direction, residual exactly 0 or not."""
    model = chain([1, 3, 1], "relu", 0)
    for gap, factor in itertools.product((-1.0, 2.0**-30), (1.0, 3.0, 0.1)):
        model.layers[0].weight.data = torch.tensor([[1.0], [-factor], [1.0]]).double()
        model.layers[0].bias.data = torch.tensor([-1.0, factor * (1.0 + gap), 5.0]).double()
        regions = Problem(capture(model, torch.zeros(1, 1).double())).regions
        assert isinstance(regions, SpaceRegions)
        reach = SpaceReach(regions, (1, 1), torch.ones(3, dtype=torch.bool), torch.Generator().manual_seed(0))
        pattern = torch.tensor([1, 1, -1], dtype=torch.int8)
        assert (reach.settled(pattern).empty is None) == (gap > 0)
        candidates = torch.rand(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        candidates[:, 0] = candidates[:, 1] * factor * (1 + 1e-15 * torch.arange(200))
        assert gap < 0 or not bool(regions.empty(pattern.expand(200, 3), candidates).any())


@pytest.mark.parametrize("seed", range(20))
def test_the_change_that_is_proved_to_exist(seed: int) -> None:
    """η with Vᵀη = −r and ‖η‖ < √t, found here by least squares."""
    g = torch.Generator().manual_seed(seed)
    n = 1 + seed % 5
    v = torch.randn(n + seed % 3, n, generator=g, dtype=torch.float64) * 10.0 ** (-(seed % 7))
    r = torch.randn(n, generator=g, dtype=torch.float64) * 10.0 ** (-6 - seed % 7)
    share = _share(Range.exact(v), Range.exact(r))
    eta = torch.linalg.lstsq(v.T, -r[:, None], driver="gelsd").solution[:, 0]
    assert share == torch.inf or float(eta.norm()) <= share
    flat = v.clone()
    flat[:, 0] = flat[:, -1] if n > 1 else 0.0
    assert _share(Range.exact(flat), Range.exact(r)) == torch.inf


# -- certificates ------------------------------------------------------------------------------------------------------

MODEL = chain([2, 4, 4, 3], "relu", 1)
EXAMPLE = torch.zeros(1, 2, dtype=torch.float64)


@pytest.fixture(scope="module")
def proved() -> lipcert.Bound:
    bound = solved(MODEL, 2, None, gap=GAP)
    assert len(witness(bound).arrays["empty"]) >= 2
    return bound


def test_roundtrip(proved: lipcert.Bound, tmp_path: Path) -> None:
    proved.save(tmp_path / "a.lipcert")
    again = lipcert.verify(tmp_path / "a.lipcert", MODEL, EXAMPLE)
    assert (again.value, again.guarantee) == (proved.value, "rigorous")


#: Another number in a proof may be a proof as well.
HARMLESS = {"negative", "tiny negative", "zero"}


@pytest.mark.few(8)
@pytest.mark.parametrize("name", TAMPERINGS)
def test_forged_empty_leaves_are_refused(proved: lipcert.Bound, name: str) -> None:
    record = proved.certificate
    forged = replace(record, witness=TAMPERINGS[name](witness(proved)))  # type: ignore[type-var]
    network = capture(MODEL, EXAMPLE)
    if name not in HARMLESS:
        with pytest.raises(CertificateError):
            verify(forged, network)  # type: ignore[arg-type]
        return
    with contextlib.suppress(CertificateError):
        assert verify(forged, network).value == proved.value  # type: ignore[arg-type]


def test_proofs_are_about_offsets() -> None:
    """The same weights with other offsets: patterns are reached that were not, and the proofs do not hold."""
    bound = solved(MODEL, 2, None, gap=GAP)
    other = chain([2, 4, 4, 3], "relu", 1)
    g = torch.Generator().manual_seed(2)
    for layer in other.layers:
        layer.bias.data = 2 * torch.randn(len(layer.bias), generator=g, dtype=torch.float64)
    truth = constant_in_the_plane(other)
    assert truth > bound.value * 1.001
    with pytest.raises(CertificateError):
        verify(bound.certificate, capture(other, EXAMPLE))  # type: ignore[arg-type]
    with pytest.raises(NotProved):
        prove(Problem(capture(other, EXAMPLE)), witness(bound), Chance())


@pytest.mark.parametrize("through", [False, True])
def test_pairs_of_layers_have_no_regions(through: bool) -> None:
    """Their offsets are left out, so that patterns without a point there are those of points of the network."""
    torch.manual_seed(0)
    pool = (nn.Unflatten(1, (1, 6)), nn.MaxPool1d(3, 1), nn.Flatten())
    model = nn.Sequential(nn.Linear(2, 6), *pool, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    network = Problem(capture(model, torch.zeros(1, 2).double())).network
    pairs = 0
    for own in needed_chains(network, through).values():
        for i in range(len(own.maps) - 1):
            pair = FactoredChain(own, None).pair(i)
            if pair is not None:
                pairs += 1
                assert pair.regions is None
    assert pairs >= 1


def test_maps_without_error_bounds_have_no_regions() -> None:
    model = chain([2, 3, 1], "relu", 0)
    network = capture(model, EXAMPLE)
    first = network.nodes[1]
    unknown = replace(first, maps=(replace(first.maps[0], rounding=torch.inf, stored=False),))  # type: ignore[attr-defined]
    assert Problem(replace(network, nodes=(network.nodes[0], unknown, *network.nodes[2:]))).regions is None
