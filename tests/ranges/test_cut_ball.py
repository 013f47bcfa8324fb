"""Linear functions on a ball within a box: as great as linear programs and bisection find, and never below a point."""

import math
import random
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

import lipcert
from lipcert import InputError
from lipcert.capture.torch_export import capture
from lipcert.domain import Ball, Box, Intersection
from lipcert.network.graph import Network
from lipcert.ranges.build import boxes_of
from lipcert.ranges.input_rows import Rows
from lipcert.ranges.linear_bounds import LinearBounds


@cache
def one_map(n: int) -> Network:
    """A network of n inputs."""
    return capture(nn.Linear(n, 1).double(), torch.zeros(1, n, dtype=torch.float64))


def greatest_on(domain: Intersection, rows: Tensor) -> Tensor:
    """What linear bounds of a network that is one linear map say."""
    network = one_map(rows.shape[1])
    fitted = domain.fitted(network.in_shape)
    bounds = LinearBounds(network, fitted, boxes_of(network, fitted, "none"), {})
    zero = torch.zeros(len(rows), dtype=torch.float64)
    return bounds.topped(*bounds.support(Rows(rows), zero, zero))


def best_in_l2(c: Tensor, low: Tensor, high: Tensor, radius: float) -> float:
    """max c·d over low ≤ d ≤ high, ‖d‖₂ ≤ radius: by bisection of the multiplier, attained at a point of the set."""
    least, most = 1e-9, 1e9
    for _ in range(200):
        middle = math.sqrt(least * most)
        inside = bool((c / middle).clamp(low, high).norm() <= radius)
        least, most = (least, middle) if inside else (middle, most)
    return float(c @ (c / most).clamp(low, high))


def best_in_l1(c: Tensor, low: Tensor, high: Tensor, radius: float) -> float:
    """The same on an l1 ball: a linear program in the parts of d above and below 0."""
    cost = torch.cat([-c, c]).numpy()
    limits = [(0.0, float(end)) for end in torch.cat([high, -low])]
    return -float(linprog(cost, A_ub=np.ones((1, len(cost))), b_ub=[radius], bounds=limits).fun)


@pytest.mark.parametrize("p", [1.0, 2.0])
@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), radius=st.floats(0.01, 2.0))
def test_the_part_of_a_ball_within_a_box_is_all_that_counts(p: float, seed: int, n: int, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, generator=generator, dtype=torch.float64)
    centre = torch.where(torch.rand(n, generator=generator) < 0.5, centre.round(), centre)  # some at an end
    rows = torch.randn(3, n, generator=generator, dtype=torch.float64)
    domain = Intersection(Ball(centre, radius, p), Box(0.0, 1.0))
    best = best_in_l2 if p == 2.0 else best_in_l1
    for row, top in zip(rows, greatest_on(domain, rows).tolist(), strict=True):
        exact = float(row @ centre) + best(row, -centre, 1.0 - centre, radius)
        assert exact - 1e-12 <= top <= exact + 1e-7 * (1.0 + abs(exact))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_no_point_of_the_set_is_above(p: float) -> None:
    """Centres outside the box, sides of length 0, sides left open, rows of 0, entries of sizes far apart."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        n = int(torch.randint(1, 9, (1,), generator=generator))
        centre = torch.randn(n, generator=generator, dtype=torch.float64)
        low = torch.where(torch.rand(n, generator=generator) < 0.3, -math.inf, centre - 0.3).double()
        high = torch.where(torch.rand(n, generator=generator) < 0.3, math.inf, centre + 0.2).double()
        low = torch.where(torch.rand(n, generator=generator) < 0.2, centre + 0.1, low)  # the centre lies outside
        high = torch.maximum(high, low)
        radius = 0.1 * math.sqrt(n) + (0.1 * n if p == 1.0 else 0.0) + 1.0
        domain = Intersection(Ball(centre, radius, p), Box(low, high))
        sizes = 10.0 ** torch.randint(-150, 150, (4, 1), generator=generator).double()
        rows = torch.randn(4, n, generator=generator, dtype=torch.float64) * sizes
        rows[0] = 0.0
        points = domain.project(centre + 3.0 * torch.randn(50, n, generator=generator, dtype=torch.float64))
        points = torch.stack([x for x in points if domain.contains(x)] or [domain.home()])
        values = (rows @ points.T).amax(dim=1)
        assert bool((greatest_on(domain, rows) >= values - 1e-14 * rows.abs().sum(dim=1)).all())


@pytest.mark.parametrize("p", [1, 2])
def test_at_a_corner_of_the_pixels_a_linear_classifier_keeps_its_class_as_far_as_it_does(p: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(20, 3).eval(), torch.zeros(1, 20)
    found = lipcert.certify(model, x, model(x).argmax(1), norm=p, clip=(0, 1), progress=False)
    assert found[0].certified_radius >= 0.985 * found[0].attacked_radius
    assert found.verify(model)[0].certified_radius == found[0].certified_radius


@pytest.mark.parametrize("radius", [1e-300, 1e-170, 1e-150, 1e140, 1e200, 1e300])
def test_no_square_vanishes_or_overflows(radius: float) -> None:
    """At a corner of the box, where half of the ball is cut off, the greatest value is ρ‖c₊‖₂."""
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    domain = Intersection(Ball(torch.zeros(6), radius, 2.0), Box(0.0, math.inf))
    exact = radius * rows.clamp(min=0.0).norm(dim=1)
    top = greatest_on(domain, rows)
    assert bool((top >= exact * (1.0 - 1e-15)).all())
    if 1e-160 < radius < 1e150:  # beyond, steps towards the best multiplier see no squares
        assert bool((top <= exact * (1.0 + 1e-9)).all())


def test_a_multiplier_below_the_normal_numbers() -> None:
    """Half of it is rounded by as much as a third, and ρ² times that is a part of the value."""
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** (-162.0 + 4.0 * torch.rand(300, 1, generator=generator, dtype=torch.float64))
    for radius in (1e152, 1e153, 1e154, 1.3e154):
        top = greatest_on(Intersection(Ball([0.0], radius, 2.0), Box(0.0, math.inf)), sizes)
        for size, bound in zip(sizes.reshape(-1).tolist(), top.tolist(), strict=True):
            assert Fraction(bound) >= Fraction(size) * Fraction(radius)


def exactly_reached(row: list[float], domain: Intersection) -> Fraction:
    """Σ c_i x_i at a point of the domain, nearly the best, in rational arithmetic."""
    c, centre, low, high = (
        [Fraction(v) if math.isfinite(v) else None for v in ends]
        for ends in (row, *(t.tolist() for t in (domain.ball.center, domain.box.lower, domain.box.upper)))
    )
    places, radius = range(len(row)), Fraction(domain.ball.radius)
    ends = [[None if e is None else e - centre[i] for e in (low[i], high[i])] for i in places]  # type: ignore[operator]

    def within(i: int, d: Fraction) -> Fraction:
        least, most = ends[i]
        d = d if least is None else max(d, least)
        return d if most is None else min(d, most)

    home = [within(i, Fraction(0)) for i in places]
    found = list(home)
    if domain.ball.p == 1.0:
        left = radius - sum(map(abs, home))
        for i in sorted(places, key=lambda i: -abs(c[i])):  # type: ignore[arg-type]
            found[i] = within(i, home[i] + (left if c[i] > 0 else -left if c[i] < 0 else 0))  # type: ignore[operator]
            left -= abs(found[i] - home[i])
    else:
        least = Fraction(0)
        most = max(map(abs, c)) / radius * 2**30 or Fraction(1)  # type: ignore[arg-type]
        for _ in range(90):
            middle = (least + most) / 2
            found = [within(i, c[i] / middle) for i in places]  # type: ignore[operator]
            outside = sum(d * d for d in found) > radius * radius
            least, most = (middle, most) if outside else (least, middle)
        found = [within(i, c[i] / most) for i in places]  # type: ignore[operator]
        if sum(d * d for d in found) > radius * radius:
            found = home
    return sum(c[i] * (centre[i] + found[i]) for i in places)  # type: ignore[operator, misc]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_numbers_of_all_sizes_against_rational_arithmetic(seed: int) -> None:
    """Centres far away or beside the box, sides of length 0, sides left open, -0.0, subnormal and huge numbers."""
    chance, tried = random.Random(seed), 0
    while tried < 400:
        n, p = chance.choice([1, 2, 3, 6]), chance.choice([1.0, 2.0, 2.0])
        radius = chance.uniform(1.0, 9.9) * 10.0 ** chance.choice([0, -320, -300, -155, 150, 153, 300])
        step = chance.choice([radius, min(1e306, radius * 1e14)])
        centre = [chance.choice([0.0, -0.0, chance.gauss(0.0, 1.0) * step]) for _ in range(n)]
        low = [chance.choice([c, c - 0.2 * radius, -math.inf, c + 0.1 * radius / n]) for c in centre]
        high = [chance.choice([c, c + 0.3 * radius, math.inf, c - 0.1 * radius / n]) for c in centre]
        try:
            box = Box(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))
            domain = Intersection(Ball(torch.tensor(centre, dtype=torch.float64), radius, p), box)
        except InputError:  # they have no point in common
            continue
        sizes = [chance.choice([0, -322, -305, -161, -150, 150, 290]) for _ in range(4)]
        rows = [[chance.choice([0.0, 1.0, -2.3, 3.7]) * 10.0 ** (k + chance.choice([0, 0, 9])) for _ in range(n)]
                for k in sizes]  # fmt: skip
        for row, top in zip(rows, greatest_on(domain, torch.tensor(rows, dtype=torch.float64)).tolist(), strict=True):
            assert top == math.inf or Fraction(top) >= exactly_reached(row, domain), (row, domain)
        tried += 1
