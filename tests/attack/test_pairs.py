"""Lower bounds of anchored constants: closed forms, exact rationals, grids, and forged witnesses."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import mpmath as mp
import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.attack import evaluate
from lipcert.capture.torch_export import capture
from lipcert.domain import Ball, Box, Domain, Intersection
from lipcert.errors import InputError, NumericsError, UnsupportedNormError
from lipcert.problem import Problem
from lipcert.result import LowerWitness, PairWitness
from tests.zoo import Apply, random_network

D = torch.float64
INF = math.inf
NORMS = list(itertools.product((1.0, 2.0, INF), repeat=2))


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def example(n: int) -> Tensor:
    return torch.zeros(1, n, dtype=D)


def mlp(seed: int, *widths: int, activation: type[nn.Module] = nn.ReLU, spread: float = 2.0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    model = nn.Sequential(*layers[:-1]).double().eval()
    model[0].weight.data *= spread
    model[0].bias.data *= spread
    return model


def lower(model: nn.Module, n: int, norm: tuple[float, float], domain: Domain, anchor: Any, budget: float = 5.0) -> Any:
    return lipcert.lower_bound(model, example(n), norm=norm, domain=domain, anchor=anchor, budget=budget)


def anchored(
    model: nn.Module, anchor: Tensor, norm: tuple[float, float] = (2.0, 2.0), domain: Domain = None
) -> Problem:
    return Problem(capture(model.eval(), anchor[None]), norm, domain, anchor=anchor)


def operator_norm(matrix: Tensor, p: float, q: float) -> float:
    """By the extreme points of one of the two unit balls, or the SVD."""
    m, n = matrix.shape
    if (p, q) == (2.0, 2.0):
        return float(torch.linalg.matrix_norm(matrix, 2))
    if p == 1.0:
        return float(matrix.norm(p=q, dim=0).max())
    if q == INF:
        return float(matrix.norm(p={2.0: 2.0, INF: 1.0}[p], dim=1).max())
    if p == INF:
        signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=n)), dtype=D)
        return float((signs @ matrix.T).norm(p=q, dim=1).max())
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=m)), dtype=D)
    return float((signs @ matrix).norm(dim=1).max())


# -- what is found --------------------------------------------------------------------------------------------


@pytest.mark.few(2)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("where", ["everywhere", "ball", "tiny ball", "box"])
def test_linear_models_have_their_norm(norm: tuple[float, float], where: str) -> None:
    model = mlp(0, 4, 5)
    anchor = torch.linspace(-1.0, 2.0, 4, dtype=D)
    domain = {
        "everywhere": None, "ball": Ball(anchor, 3.0, 2), "tiny ball": Ball(anchor, 1e-6, 1),
        "box": Box(anchor - 1.0, anchor + 1.0),
    }[where]  # fmt: skip
    truth = operator_norm(model[0].weight.data, *norm)
    found = lower(model, 4, norm, domain, anchor)
    assert truth * (1.0 - 1e-9) <= found.value <= truth * (1.0 + 1e-15)


def test_affine_models_from_a_corner_move_into_the_box_only() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = tensor(3.0, -4.0)[None]
    corner = Box([0.0, 0.0], [1.0, 1.0])
    assert lower(model, 2, (2, 2), corner, [0.0, 0.0], 0.5).value == pytest.approx(
        4.0, rel=1e-9
    )  # both up: at most |−4|
    assert lower(model, 2, (2, 2), corner, [0.0, 1.0], 0.5).value == pytest.approx(5.0, rel=1e-9)


def _grid(domain: Domain, anchor: Tensor) -> Tensor:
    assert domain is not None
    low, high = (end.reshape(-1) for end in domain.bounds())
    count = 20001 if len(anchor) == 1 else 200
    axes = [torch.linspace(float(a), float(b), count, dtype=D) for a, b in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*axes).reshape(-1, len(anchor))
    points = torch.cat([points, anchor + (points - anchor) * 1e-4])
    for ball in domain.balls():
        points = points[(points - ball.center).norm(p=ball.p, dim=1) <= ball.radius]
    return points[(points - anchor).abs().sum(1) > 1e-9]


@pytest.mark.few(2)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(k, marks=pytest.mark.slow) for k in range(2, 6))])
def test_small_networks_against_grids(seed: int, norm: tuple[float, float]) -> None:
    n = 1 + seed % 2
    model = mlp(seed, n, 12, 12, 3, activation=(nn.ReLU, nn.Tanh, nn.LeakyReLU)[seed % 3])
    anchor = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=D) * 0.3
    domain: Domain = (
        Ball(anchor, 1.0, 2), Ball(anchor, 1.0, 1), Ball(anchor + 0.2, 1.0, INF), Box(anchor - 0.1, anchor + 1.3),
        Intersection(Ball(anchor, 0.7, 2), Box(anchor - 0.2, anchor + 0.5)), Box(anchor, anchor + 1.0),
    )[seed]  # fmt: skip
    points = _grid(domain, anchor)
    with torch.no_grad():
        rises = (model(points) - model(anchor)).norm(p=norm[1], dim=1)
    truth = float((rises / (points - anchor).norm(p=norm[0], dim=1)).max())
    found = lower(model, n, norm, domain, anchor)
    assert found.value >= truth * (1.0 - 1e-4)
    assert domain.contains(found.witness.point)
    for method in ("autolip", "lipsdp"):
        try:
            bound = lipcert.bound(model, example(n), method, norm, domain, anchor=anchor, budget=1.0)
        except UnsupportedNormError:
            continue
        assert found.value <= bound.value


def test_the_constant_of_an_anchor_is_not_that_of_all_pairs() -> None:
    """relu(x − 5) is flat around 0 and has a chord of 1/6 from there to 6, where its slope is 1."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double()
    model[0].weight.data, model[0].bias.data = tensor(1.0)[None], tensor(-5.0)
    ball = Ball([0.0], 6.0)
    assert lipcert.lower_bound(model, example(1), domain=ball, budget=0.3).value == pytest.approx(1.0)
    found = lower(model, 1, (2, 2), ball, "center")
    assert found.value == pytest.approx(1.0 / 6.0, rel=1e-9)
    assert found.value <= lipcert.bound(model, example(1), domain=ball, anchor="center").value
    assert lower(model, 1, (2, 2), None, [0.0]).value > 0.95  # ever further away the chord tends to 1


@pytest.mark.slow
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.ReLU])
def test_as_the_radius_vanishes_it_is_the_norm_of_the_jacobian(activation: type[nn.Module]) -> None:
    model = mlp(3, 6, 20, 20, 4, activation=activation)
    anchor = torch.linspace(-1.0, 1.0, 6, dtype=D)
    jacobian = torch.autograd.functional.jacobian(model, anchor)
    truth = float(torch.linalg.matrix_norm(jacobian, 2))
    assert lower(model, 6, (2, 2), Ball(anchor, 1e-7, 2), anchor).value == pytest.approx(truth, rel=1e-6)
    assert lower(model, 6, (2, 2), Ball(anchor, 0.5, 2), anchor).value >= truth * (1.0 - 1e-6)


@pytest.mark.parametrize("model", [Apply(lambda _, x: 0.0 * x + 3.0), Apply(lambda _, x: torch.relu(-1.0 - x.abs()))])
def test_constants_rise_by_nothing(model: nn.Module) -> None:
    found = lower(model, 2, (2, 2), Ball([1.0, 2.0], 1.0), "center", 0.2)
    assert found.value == 0.0
    assert torch.equal(found.witness.anchor, found.witness.point)


@pytest.mark.parametrize("domain", [Ball([1.0, 2.0], 0.0), Box([1.0, 2.0], [1.0, 2.0])])
def test_a_domain_that_is_a_point_has_no_pair(domain: Domain) -> None:
    assert lower(mlp(0, 2, 3), 2, (2, 2), domain, [1.0, 2.0], 0.2).value == 0.0


def test_a_flat_domain_is_kept_to() -> None:
    model = mlp(1, 3, 8, 2)
    flat = Box([0.0, 1.0, -1.0], [0.0, 2.0, -1.0])
    found = lower(model, 3, (2, 2), flat, [0.0, 1.0, -1.0])
    assert found.value > 0.0
    assert flat.contains(found.witness.point)


def test_selected_outputs_and_data() -> None:
    model = mlp(2, 4, 10, 3)
    row = tensor(1.0, -1.0, 0.0)[None]
    ball = Ball([0.1, 0.2, 0.3, 0.4], 1.0, 2)
    data = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    found = lipcert.lower_bound(model, example(4), domain=ball, select=row, anchor="center", inputs=data, budget=0.5)
    x, a = found.witness.point, found.witness.anchor
    with torch.no_grad():
        rise = float((row @ (model(x) - model(a))).abs())
    assert found.value == pytest.approx(rise / float((x - a).norm()), rel=1e-9)
    assert found.value <= lipcert.bound(model, example(4), domain=ball, select=row, anchor="center").value


# -- what is proved -------------------------------------------------------------------------------------------


def _exactly(model: nn.Sequential, x: list[float]) -> list[Fraction]:
    value = [Fraction(v) for v in x]
    for part in model:
        if isinstance(part, nn.Linear):
            rows, offsets = part.weight.tolist(), part.bias.tolist()
            value = [
                sum((Fraction(w) * v for w, v in zip(row, value, strict=True)), Fraction(b))
                for row, b in zip(rows, offsets, strict=True)
            ]
        else:
            value = [max(v, Fraction(0)) for v in value]
    return value


@pytest.mark.few(3)
@pytest.mark.parametrize("exponent", [0, -3, -8, -13, -15])
def test_quotients_of_rationals(exponent: int) -> None:
    """Below the exact quotient, and little so however close the pair is."""
    model, generator = mlp(5, 3, 8, 8, 2), torch.Generator().manual_seed(exponent + 100)
    for _ in range(4):
        anchor, step = (torch.randn(3, generator=generator, dtype=D) for _ in range(2))
        x = anchor + step * 10.0**exponent
        rises = [a - b for a, b in zip(_exactly(model, x.tolist()), _exactly(model, anchor.tolist()), strict=True)]
        steps = [Fraction(a) - Fraction(b) for a, b in zip(x.tolist(), anchor.tolist(), strict=True)]
        square = {
            1.0: lambda v: sum(map(abs, v)) ** 2,
            2.0: lambda v: sum(c * c for c in v),
            INF: lambda v: max(map(abs, v)) ** 2,
        }
        for p, q in NORMS:
            value = evaluate(anchored(model, anchor, (p, q)), PairWitness(anchor, x))
            exact = square[q](rises) / square[p](steps)
            assert Fraction(value) ** 2 <= exact
            assert value >= math.sqrt(exact) * (1.0 - 1e-9)


@pytest.mark.few(2)
@pytest.mark.parametrize("exponent", [0, -2, -4, -6, -9, -12])
def test_quotients_of_a_smooth_function(exponent: int) -> None:
    model = nn.Sequential(nn.Tanh(), nn.Softplus(beta=2.0, threshold=40.0)).double()
    for at in (-1.3, 0.2, 3.0):
        anchor, x = tensor(at), tensor(at + 10.0**exponent)
        with mp.workdps(60):

            def f(z: float) -> Any:
                return mp.log1p(mp.exp(2 * mp.tanh(mp.mpf(z)))) / 2

            exact = abs(f(float(x)) - f(at)) / (mp.mpf(float(x)) - mp.mpf(at))
            value = evaluate(anchored(model, anchor), PairWitness(anchor, x))
            assert value <= exact
            assert value >= exact * (1 - 1e-6)


def test_close_pairs_off_kinks_are_proved_to_the_last_digits() -> None:
    """Values that cancel to nothing: 1e12 + x at points 1e-9 apart."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ELU()).double()
    model[0].weight.data, model[0].bias.data = tensor(1.0)[None], tensor(1e12)
    anchor = tensor(0.0)
    assert evaluate(anchored(model, anchor), PairWitness(anchor, tensor(1e-9))) == pytest.approx(1.0, rel=1e-9)


def test_a_pair_across_a_kink_has_its_chord() -> None:
    model = nn.Sequential(nn.ReLU()).double()
    for shift in (1.0, 1e-6, 1e-200):
        a, x = tensor(-shift), tensor(3.0 * shift)
        assert 0.75 * (1.0 - 1e-12) <= evaluate(anchored(model, a), PairWitness(a, x)) <= 0.75


# -- what is refused ------------------------------------------------------------------------------------------

_MODEL = mlp(7, 2, 6, 2)
_BALL = Ball([0.5, 0.5], 1.0, 2)
_CENTRE = tensor(0.5, 0.5)


@pytest.mark.parametrize(
    ("witness", "words"),
    [
        (PairWitness(_CENTRE, _CENTRE), "is the anchor itself"),
        (PairWitness(_CENTRE + 0.1, _CENTRE), "not the anchor of the problem"),
        (PairWitness(tensor(9.0, 9.0), _CENTRE), "anchor lies outside"),
        (PairWitness(_CENTRE, tensor(0.5, 1.5 + 1e-15)), "point lies outside"),
        (PairWitness(_CENTRE, tensor(0.5, math.nan)), "NaN"),
        (PairWitness(_CENTRE, tensor(0.5, INF)), "infinity"),
        (PairWitness(_CENTRE, tensor(0.5, 0.6, 0.7)), "shape"),
        (LowerWitness(_CENTRE, tensor(1.0, 0.0)), "proves nothing about the constant of an anchor"),
    ],
)
def test_forged_witnesses(witness: Any, words: str) -> None:
    problem = anchored(_MODEL, _CENTRE, domain=_BALL)
    with pytest.raises(InputError, match=words):
        evaluate(problem, witness)


def test_a_pair_is_no_witness_without_an_anchor() -> None:
    problem = Problem(capture(_MODEL, example(2)), (2.0, 2.0), _BALL)
    with pytest.raises(InputError, match="has no anchor"):
        evaluate(problem, PairWitness(_CENTRE, _CENTRE + 0.1))


def test_zeros_of_either_sign_are_one_point() -> None:
    with pytest.raises(InputError, match="anchor itself"):
        evaluate(anchored(_MODEL, tensor(0.0, 0.0)), PairWitness(tensor(0.0, 0.0), tensor(-0.0, 0.0)))


@pytest.mark.parametrize("size", [1e-300, 5e-324, 1e308])
def test_extreme_distances_are_refused_or_right(size: float) -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data = tensor(2.0)[None]
    anchor, x = tensor(-size if size > 1 else 0.0), tensor(size)
    try:
        assert evaluate(anchored(model, anchor), PairWitness(anchor, x)) <= 2.0
    except NumericsError:
        return


@pytest.mark.parametrize(
    ("domain", "anchor", "words"),
    [
        (_BALL, [9.0, 9.0], "outside"),
        (Box([0.0, 0.0], [1.0, 1.0]), "center", "'center' where that is a ball"),
        (_BALL, [0.5], "shape"),
        (None, [math.nan, 0.0], "NaN"),
    ],
)
@pytest.mark.parametrize("call", [lipcert.lower_bound, lipcert.compare])
def test_unusable_anchors(call: Any, domain: Domain, anchor: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(_MODEL, example(2), domain=domain, anchor=anchor)


# -- what is said ---------------------------------------------------------------------------------------------


def test_reports() -> None:
    found = lower(_MODEL, 2, (2, 2), _BALL, "center", 0.2)
    assert "between an anchor and points on the l2 ball of radius 1; a pair of points" in str(found)
    assert torch.equal(found.anchor.reshape(-1), _CENTRE)
    table = lipcert.compare(
        _MODEL, example(2), domain=_BALL, anchor="center", methods=["autolip", "lipsdp"], budget=1.0, lower_budget=0.3
    )
    assert "between an anchor and points on the l2 ball of radius 1" in str(table)
    assert all(ratio is not None and ratio >= 1.0 for ratio in map(table.ratio, table.rows))
    local = lipcert.bound(_MODEL, example(2), "lipsdp", domain=_BALL, anchor="center").value
    assert [row.value for row in table.rows if row.method == "lipsdp"] == [pytest.approx(local, rel=1e-3)]


# -- generated networks ---------------------------------------------------------------------------------------


def _attacked(seed: int) -> None:
    """Lower ≤ upper, no sampled pair above the upper bound, and none noticeably above what was found."""
    case = random_network(seed)
    generator = torch.Generator().manual_seed(seed)
    shape = case.example.shape[1:]
    model, like = case.model.double(), case.example.double()
    anchor = torch.randn(shape, generator=generator, dtype=D)
    radius, order = 10.0 ** (seed % 4 - 2), (1.0, 2.0, INF)[seed // 4 % 3]
    ball = Ball(anchor, radius, order)
    domain: Domain = (ball, Box(anchor - radius, anchor + 0.5 * radius), Intersection(ball, Box(anchor, anchor + 1.0)))[
        seed % 3
    ]
    norm = ((2.0, 2.0), (INF, INF), (1.0, 1.0), (2.0, 2.0), (INF, 2.0))[seed % 5]
    try:
        bound = lipcert.bound(model, like, "autolip" if norm != (INF, 2.0) else "lipsdp", norm, domain, anchor=anchor)
    except (UnsupportedNormError, InputError):
        return
    found = lipcert.lower_bound(model, like, norm, domain, budget=2.0, anchor=anchor, seed=seed)
    assert found.value <= bound.value, (seed, found.value, bound.value)
    points = domain.project(anchor + torch.randn(400, *shape, generator=generator, dtype=D) * radius)
    points = torch.cat([points, anchor + (points - anchor) * 0.03])
    with torch.no_grad():
        outputs, at_anchor = model(points).reshape(800, -1), model(anchor[None]).reshape(1, -1)
    noise = 1e-13 * float(at_anchor.norm(p=norm[1]) + outputs.norm(p=norm[1], dim=1).max())
    rises = ((outputs - at_anchor).norm(p=norm[1], dim=1) - noise).clamp(min=0.0)
    distances = (points - anchor).reshape(800, -1).norm(p=norm[0], dim=1)
    kept = distances > 1e-6 * radius
    if bool(kept.any()):
        seen = float((rises[kept] / distances[kept]).max())
        assert seen <= bound.value * (1.0 + 1e-9), (seed, seen, bound.value)
        assert found.value >= seen * (1.0 - 1e-3) - 1e-12, (seed, found.value, seen)


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(8))
def test_generated_networks(seed: int) -> None:
    _attacked(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 320))
def test_many_generated_networks(seed: int) -> None:
    _attacked(seed)
