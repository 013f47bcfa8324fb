"""Normalisations away from the origin: least lengths against brute force, gains against sampled Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.domain import Ball, Box, Domain, Intersection
from lipcert.errors import NotLipschitzError
from lipcert.numerics.interval import Interval
from lipcert.ops.normalisation import GroupNorm, LayerNorm, RMSNorm
from lipcert.ops.recognise.normalisations import OverShiftedNorm
from lipcert.ranges.lengths import least_lengths
from tests.zoo import Apply

D = torch.float64
INF = math.inf

#: name: (function of (1, 6) or of (1, 2, 3), does it have a constant everywhere).
CASES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "normalize": (lambda x: F.normalize(x, dim=-1), True),
    "normalize, first axis": (lambda x: F.normalize(x, dim=1, eps=1e-3), True),
    "x/‖x‖": (lambda x: x / x.norm(dim=-1, keepdim=True), False),
    "x/(2‖x‖)": (lambda x: x / (2 * torch.linalg.vector_norm(x, dim=-1, keepdim=True)), False),
    "x/√Σx²": (lambda x: x / (x * x).sum(-1, keepdim=True).sqrt(), False),
    "x·rsqrt(mean x²)": (lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True)), False),
    "x/(3‖x‖ + 0.1)": (lambda x: x / (3 * x.norm(dim=-1, keepdim=True) + 0.1), True),
    "x/√(Σx² + 0.01)": (lambda x: x / ((x * x).sum(-1, keepdim=True) + 0.01).sqrt(), True),
    "rms norm": (lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-4), True),
    "layer norm": (lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-4), True),
}


def steepest(model: Callable[[Tensor], Tensor], points: Tensor, p: float) -> float:
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(points)
    n = points[0].numel()
    return float(torch.linalg.matrix_norm(jacobians.reshape(len(points), -1, n), p).max())


def sampled(domain: Domain, center: Tensor, radius: float, count: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, *center.shape, generator=generator, dtype=D) * radius
    towards = -torch.rand(count, *[1] * center.dim(), generator=generator, dtype=D) * center
    assert domain is not None
    return domain.project(torch.cat([center + noise, center + towards, center + noise + towards]))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", CASES)
def test_gains_on_domains(name: str) -> None:
    function, everywhere = CASES[name]
    place = list(CASES).index(name)
    before = (nn.Identity(), nn.Tanh())[place % 2]
    shape = ((6,), (2, 3))[place // 2 % 2]
    model = Apply(lambda s, x: function(s.before(x)), before=before).eval()
    center = torch.linspace(0.6, -1.2, 6, dtype=D).reshape(shape) + 1.5
    domains: list[Domain] = [] if not everywhere else [None]
    for radius in (0.4, 0.02):
        inner = Intersection(Ball(center, radius, 2), Box(center - radius / 3, center + radius))
        domains += [Ball(center, radius, 2), inner, Ball(center, radius / 3, INF)]
    for p in (1.0, 2.0, INF):
        bounds = lipcert.bound(model, center[None], "autolip", (p, p), domain=domains)
        for bound in bounds[everywhere:]:
            points = sampled(bound.domain, center[None], 0.1)[:, 0]
            assert bound.value >= steepest(model, points, p) * (1 - 1e-9)
        balls = [bound.value for bound in bounds if bound.domain is None or isinstance(bound.domain, Ball)]
        assert balls[::2] == sorted(balls[::2], reverse=True)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["normalize", "x/‖x‖", "x/√Σx²"])
def test_one_over_the_least_norm(name: str) -> None:
    function, _ = CASES[name]
    model = Apply(lambda _, x: function(x)).eval()
    center = torch.linspace(-1.0, 2.0, 6, dtype=D)
    for radius in (1.0, 0.1):
        truth = 1.0 / (float(center.norm()) - radius)
        value = lipcert.bound(model, center[None], "autolip", domain=Ball(center, radius, 2)).value
        assert truth * (1 - 1e-14) <= value <= truth * (1 + 1e-9)
        box = Ball(center, radius, INF)
        least = float((center.abs() - radius).clamp(min=0.0).norm())
        value = lipcert.bound(model, center[None], "autolip", domain=box).value
        assert (1 - 1e-14) / least <= value <= (1 + 1e-9) / least


@pytest.mark.slow
def test_after_a_network_by_linear_bounds() -> None:
    """A direction in which a hidden layer certainly has a component."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 16)).double().eval().requires_grad_(False)
    net[2].bias.data += 2.0
    x = torch.randn(8, dtype=D)
    model = Apply(lambda s, x: F.normalize(s.net(x), dim=-1), net=net).eval()
    truth = steepest(model, sampled(Ball(x, 0.3, 2), x, 0.3), 2)
    value = lipcert.bound(model, x[None], domain=Ball(x, 0.3, 2), budget=1.0).value
    assert truth * (1 - 1e-9) <= value <= 4.0 * truth
    chord = lipcert.lower_bound(model, x[None], domain=Ball(x, 0.3, 2), anchor="center", budget=0.3).value
    assert 0.0 < chord <= lipcert.bound(model, x[None], domain=Ball(x, 0.3, 2), anchor="center", budget=1.0).value


@pytest.mark.few(10)
@pytest.mark.parametrize("scale", [1e160, 1e250, 1e-160, 1e-250])
@pytest.mark.parametrize("name", CASES)
def test_extreme_lengths_overflow_to_no_gain_of_0(name: str, scale: float) -> None:
    function, _ = CASES[name]
    model = Apply(lambda _, x: function(x)).eval()
    center = torch.linspace(-1.0, 2.0, 6, dtype=D) * scale
    try:
        value = lipcert.bound(model, torch.ones(1, 6, dtype=D), "autolip", domain=Ball(center, 0.1 * scale, 2)).value
    except NotLipschitzError:
        return
    assert value > 0.0
    unit = torch.autograd.functional.jacobian(lambda x: function(x)[0], center[None] / scale)
    if scale > 1:  # there an ε plays no part
        assert value * scale >= float(torch.linalg.matrix_norm(unit.reshape(6, 6), 2)) * (1 - 1e-2)


# -- least lengths --------------------------------------------------------------------------------------------


@pytest.mark.few(15)
@pytest.mark.parametrize("seed", range(30))
def test_least_lengths_of_boxes(seed: int) -> None:
    """Below the length of every point of the box, and that of one of them."""
    generator = torch.Generator().manual_seed(seed)
    n = 1 + seed % 5
    middle = torch.randn(3, n, generator=generator, dtype=D) * 10.0 ** (seed % 3)
    reach = torch.rand(3, n, generator=generator, dtype=D) * 2.0
    box = Interval(middle - reach, middle + reach)
    plain = least_lengths(RMSNorm("rms", {}, "", 1, 0.0, n), box, None)
    nearest = torch.zeros(3, n, dtype=D).clamp(box.low, box.high).norm(dim=1)
    assert bool((plain <= nearest).all())
    assert bool((plain >= nearest * (1 - 1e-12)).all())
    centred = least_lengths(LayerNorm("layer", {}, "", (n,), 0.0), box, None)
    best = torch.full((3,), INF, dtype=D)
    for m in torch.linspace(float(box.low.min()), float(box.high.max()), 4001, dtype=D):
        best = torch.minimum(best, (m.clamp(box.low, box.high) - m).norm(dim=1))
    assert bool((centred <= best * (1 + 1e-12)).all())
    assert bool((centred >= best - 1e-2 * (1.0 + middle.abs().amax(dim=1))).all())


def test_groups_are_those_of_the_block() -> None:
    box = Interval.point(torch.arange(24, dtype=D).reshape(1, 4, 6))
    found = least_lengths(GroupNorm("group", {}, "", 2, 0.0, 12), box, None)
    groups = box.low.reshape(2, 12)
    assert torch.allclose(found, (groups - groups.mean(1, keepdim=True)).norm(dim=1), rtol=1e-12)
    found = least_lengths(OverShiftedNorm("over", {}, "", (1,), 1.0, 0.0, 1.0), box, None)
    assert torch.allclose(found, box.low[0].norm(dim=0), rtol=1e-12)


@pytest.mark.parametrize("function", [RMSNorm("rms", {}, "", 1, 0.0, 3), LayerNorm("layer", {}, "", (3,), 0.0)])
def test_nothing_is_known_of_infinite_boxes_and_of_those_around_0(function: RMSNorm | LayerNorm) -> None:
    for low, high in ((-INF, INF), (1.0, INF), (-1.0, 1.0), (0.0, 0.0), (-1e308, 1e308), (math.nan, math.nan)):
        box = Interval(torch.full((1, 3), low, dtype=D), torch.full((1, 3), high, dtype=D))
        assert float(least_lengths(function, box, None)) == 0.0


# -- what is refused, said and kept ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, (_, everywhere) in CASES.items() if not everywhere])
def test_at_the_origin_there_is_none(name: str) -> None:
    function, _ = CASES[name]
    model = Apply(lambda _, x: function(x)).eval()
    for domain in (None, Ball(torch.ones(6), 3.0, 2), Box([0.0] * 6, [1.0] * 6)):
        with pytest.raises(NotLipschitzError, match=r"norm has no Lipschitz constant near 0[\s\S]*away from 0"):
            lipcert.bound(model, torch.ones(1, 6, dtype=D), domain=domain)


def test_everywhere_where_an_activation_keeps_away_from_0() -> None:
    model = Apply(lambda _, x: (t := torch.sigmoid(x) + 1.0) / t.norm(dim=-1, keepdim=True)).eval()
    value = lipcert.bound(model, torch.ones(1, 4, dtype=D), "autolip").value
    assert value == pytest.approx(0.25 / 2.0, rel=1e-9)


def test_saved_and_verified(tmp_path: Path) -> None:
    first, second = (Apply(lambda _, x, d=d: x / x.norm(dim=d, keepdim=True)).eval() for d in (-1, 1))
    x = torch.ones(1, 2, 3, dtype=D)
    assert capture(first, x).fingerprint != capture(second, x).fingerprint
    bound = lipcert.bound(first, x, "autolip", domain=Ball(torch.ones(2, 3), 0.5, 2))
    bound.save(tmp_path / "c.lipcert")
    assert lipcert.verify(tmp_path / "c.lipcert", first, x).value == bound.value
    with pytest.raises(lipcert.CertificateError, match="another model"):
        lipcert.verify(tmp_path / "c.lipcert", second, x)


class _Cancelled(torch.nn.Module):
    """x/‖x‖·√n less its derivative at 0.07 in all entries."""

    def __init__(self, n: int) -> None:
        super().__init__()
        eye = torch.eye(n, dtype=torch.float64)
        self.register_buffer("w", (eye - 1.0 / n) / 0.07)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, [x.shape[-1]], eps=1e-12) - x @ self.w


def test_the_middle_of_a_box_may_be_shorter_than_all_values_of_the_domain() -> None:
    n = 100
    corner = torch.full((1, n), 0.1075, dtype=torch.float64)  # ‖corner‖ − 0.075 = 1, but ‖middle‖ = 0.7
    domain = lipcert.Intersection(lipcert.Ball(corner, 0.075, p=2), lipcert.Box(corner - 0.075, corner))
    model = _Cancelled(n).eval()
    found = lipcert.bound(model, corner, domain=domain, method="liplt", budget=1.0).value
    inside = corner[0] - 1e-3
    truth = torch.func.jacrev(lambda x: model(x[None])[0])(inside)
    assert found >= float(torch.linalg.matrix_norm(truth, 2))
