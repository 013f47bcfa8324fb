"""Values at points of a domain lie in the ranges of every node; ranges grow with the domain."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.domain import Ball, Box, Domain
from lipcert.network.graph import Network
from lipcert.network.linear import Identity, size
from lipcert.network.relations import LocalGains, LocalSlopes
from lipcert.network.transform import expand, fuse
from lipcert.numerics.interval import Interval
from lipcert.ranges import Ranges
from lipcert.ranges.intervals import mapped
from tests.zoo import ZOO, random_network, zoo_case

NAMES = [name for name, _, _ in ZOO]


def domains(shape: tuple[int, ...], seed: int) -> list[Domain]:
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(shape, generator=generator, dtype=torch.float64)
    balls: list[Domain] = [Ball(center, r, p) for r, p in ((1e-3, 2), (0.3, 1), (0.5, math.inf), (4.0, 2))]
    return [*balls, Box(center - 0.1, center + 1.0), Box(center, center)]


def points(domain: Domain, shape: tuple[int, ...], count: int = 300) -> Tensor:
    """Points of the domain, many of them at its edge."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64) * 3.0
    if isinstance(domain, Ball):
        offset = x.reshape(count, -1)
        size = offset.norm(p=domain.p, dim=1, keepdim=True)
        share = torch.rand(count, 1, generator=generator, dtype=torch.float64) ** 0.1
        return domain.center + (offset / size * domain.radius * share * (1 - 1e-12)).reshape(x.shape)
    assert isinstance(domain, Box)
    return torch.sigmoid(4.0 * x) * (domain.upper - domain.lower) + domain.lower


def holds(network: Network, domain: Domain) -> Ranges:
    ranges = Ranges.of(network, domain)
    x = points(domain, network.in_shape)
    for position, value in network.values(x):
        box = ranges.boxes[position]
        room = 1e-11 * (1.0 + value.abs())
        assert bool((value >= box.low - room).all()), network.nodes[position].name
        assert bool((value <= box.high + room).all()), network.nodes[position].name
        assert box.low.shape == network.nodes[position].shape
    return ranges


@pytest.mark.few(3)
@pytest.mark.parametrize("name", NAMES)
def test_values_lie_in_the_ranges(name: str) -> None:
    case = zoo_case(name)
    captured = capture(case.model, case.example)
    every = domains(captured.in_shape, 1)
    for network, some in ((captured, every[:2]), (fuse(captured), every[2:4]), (fuse(expand(captured)), every)):
        for domain in some:
            holds(network, domain)


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(12))
def test_values_of_random_networks_lie_in_the_ranges(seed: int) -> None:
    case = random_network(seed)
    network = fuse(expand(capture(case.model, case.example)))
    for domain in domains(network.in_shape, seed):
        holds(network, domain)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NAMES)
def test_linear_bounds_only_add_to_intervals_and_a_smaller_domain_has_smaller_ranges(name: str) -> None:
    case = zoo_case(name)
    network = fuse(capture(case.model, case.example))
    center = torch.zeros(network.in_shape, dtype=torch.float64)
    before: Ranges | None = None
    for radius in (1e-6, 0.1, 1.0):
        tight, loose = (Ranges.of(network, Ball(center, radius, 2), tighten=how) for how in ("undecided", "none"))
        for a, b in zip(tight.boxes, loose.boxes, strict=True):
            assert bool(((a.low >= b.low) & (a.high <= b.high)).all())
        for k, known in () if before is None else before.local.items():
            if isinstance(known, LocalSlopes):
                assert bool((known.box.low >= loose.boxes[network.nodes[k].parents[0]].low - 1e-9).all())
            else:
                later = loose.local[k]
                assert isinstance(later, LocalGains)
                assert all(known.gains[p] <= gain for p, gain in later.gains.items())
        before = tight


def test_the_first_layer_is_exact_on_every_ball() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(7, 5).double()
    network = fuse(
        capture(nn.Sequential(layer, nn.ReLU(), nn.Linear(5, 1)).double().eval(), torch.zeros(1, 7).double())
    )
    center = torch.randn(7, dtype=torch.float64)
    weight, middle = layer.weight.detach(), layer(center).detach()
    for p, dual in ((1, math.inf), (2, 2), (math.inf, 1)):
        radius = 3.0  # every neuron undecided
        box = Ranges.of(network, Ball(center, radius, p)).boxes[1]
        undecided = (middle.abs() < weight.norm(p=dual, dim=1) * radius)[None]
        reach = (weight.norm(p=dual, dim=1) * radius)[None]
        assert torch.allclose(box.high[undecided], (middle + reach)[undecided], rtol=1e-12)
        assert torch.allclose(box.low[undecided], (middle - reach)[undecided], rtol=1e-12)


def test_folded_constants_count_with_their_errors() -> None:
    """A batch norm's constants are computed: the box at a point is wider than a point."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).eval()
    network = fuse(capture(model, torch.zeros(1, 3)))
    box = Ranges.of(network, Box(torch.zeros(3), torch.zeros(3))).boxes[1]
    assert bool((box.high > box.low).all())
    assert float((box.high - box.low).max()) < 1e-13


def test_half_infinite_boxes_keep_their_sign() -> None:
    """exp(−relu(x)): −relu has no lower end and ends at 0."""

    class Falling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -torch.relu(x) * 2.0

    network = capture(Falling(), torch.zeros(1, 3))
    box = Ranges.of(network, None).boxes[-1]
    assert bool((box.high <= 0.0).all())
    assert bool((box.low == -math.inf).all())
    assert size(box.low.shape) == 3


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.3, -2.0, 1e-320, 0.0])
def test_ends_that_are_moved_or_scaled_are_not_rounded_to_the_larger_one(scale: float) -> None:
    """Against fractions; of [0, 1e10] + 1e-6, a variance after a maximum with 0, it is known to be positive."""
    low, high = (torch.tensor([[a, b, -c]]) for a, b, c in ((0.0, -0.1, 3e-310), (1e10, 1e-300, -0.1)))
    box = Interval(low.double(), high.double())
    found = mapped(Identity((1, 3), scale), box)
    for a, b, x, y in zip(*(t.reshape(-1).tolist() for t in (found.low, found.high, box.low, box.high)), strict=True):
        ends = sorted((Fraction(x) * Fraction(scale), Fraction(y) * Fraction(scale)))
        assert Fraction(a) <= ends[0]
        assert ends[1] <= Fraction(b)
        assert abs(scale) != 1.0 or (Fraction(a), Fraction(b)) == (ends[0], ends[1])

    factor = max(abs(scale), 0.1)

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            variance = torch.relu(x * 1e10).expand(-1, 3) * factor
            return (variance + 1e-6).rsqrt()

    steep = lipcert.bound(Root(), torch.zeros(1, 1), domain=Ball(torch.zeros(1), 1.0), method="autolip")
    assert steep.value >= 0.5 * 1e9 * 1e10 * factor * math.sqrt(3) * (1 - 1e-6)
    assert math.isfinite(steep.value)
