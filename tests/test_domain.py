"""Domains: what they contain, their boxes, points moved into them, what is refused, bounds and witnesses on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipcert
from lipcert import Ball, Box, InputError, Intersection
from lipcert.capture.torch_export import capture
from lipcert.certificates.lower_witness import evaluate, movable
from lipcert.problem import Problem
from lipcert.result import LowerWitness

INF, D = math.inf, torch.float64
ORDERS = [1.0, 2.0, INF]

finite = st.floats(allow_nan=False, allow_infinity=False)
tame = st.floats(-4.0, 4.0).map(lambda x: round(x, 3))
radii = st.floats(0.0, 4.0).map(lambda x: round(x, 3)) | st.just(0.0)


def tensor(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=D)


def length(x: Tensor, y: Tensor, p: float) -> Fraction:
    """‖x − y‖_p, exactly; its square for p = 2."""
    gaps = [abs(Fraction(a) - Fraction(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    return max(gaps) if p == INF else sum((g**2 if p == 2 else g for g in gaps), Fraction(0))


def model(n: int = 3) -> nn.Module:
    torch.manual_seed(n)
    return nn.Sequential(nn.Linear(n, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def bound(domain: Any, n: int = 3, **options: Any) -> Any:
    return lipcert.bound(model(n), torch.zeros(1, n), **{"method": "autolip", **options}, domain=domain)


# -- what is stored ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "center",
    [
        torch.tensor([1.0, 2.0, -3.0]),
        torch.tensor([1, 2, -3]),
        torch.tensor([1, 2, -3], dtype=torch.int8),
        torch.tensor([1.0, 2.0, -3.0], dtype=torch.float16, requires_grad=True),
        nn.Parameter(torch.tensor([1.0, 2.0, -3.0])),
        torch.tensor([[1.0, 9.0], [2.0, 9.0], [-3.0, 9.0]])[:, 0],
        np.array([1.0, 2.0, -3.0], dtype=np.float32),
        np.array([-3, 2, 1])[::-1],
        [1, 2.0, -3],
        (1.0, 2.0, -3.0),
    ],
)
def test_centres_of_any_kind(center: Any) -> None:
    ball = Ball(center, 1)
    assert ball.center.tolist() == [1.0, 2.0, -3.0]
    assert (ball.center.dtype, ball.center.device.type) == (D, "cpu")
    assert not ball.center.requires_grad
    assert type(ball.center) is Tensor
    assert ball.dimension == 3


def test_numbers_are_kept_as_they_are() -> None:
    """A list of floats passes through no float32, and what is changed later changes no domain."""
    assert Ball([0.1, 0.2], 0.3).center.tolist() == [0.1, 0.2]
    ends = torch.zeros(2, dtype=D)
    box = Box(ends, 1.0)
    ends += 5
    assert box.lower.tolist() == [0.0, 0.0]
    array = np.zeros(2)
    ball = Ball(array, np.float32(0.1))
    array += 5
    assert (ball.center.tolist(), ball.radius) == ([0.0, 0.0], float(np.float32(0.1)))
    assert Ball(torch.tensor(2**53), torch.tensor(1)).center.item() == 2.0**53


def test_domains_that_are_made_in_inference_mode() -> None:
    with torch.inference_mode():
        ball = Ball(torch.zeros(3), 1.0)
        inside = bound(ball)
    assert not ball.center.is_inference()
    assert bound(ball).value == inside.value
    assert lipcert.lower_bound(model(), torch.zeros(1, 3), domain=ball, budget=0.1).value > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ball([math.nan, 0.0], 1.0), "centre of a ball holds NaN"),
        (lambda: Ball(torch.tensor([INF]), 1.0), "centre of a ball holds NaN or infinity"),
        (lambda: Ball(torch.tensor([True, False]), 1.0), "truth values"),
        (lambda: Ball(np.array([True, False]), 1.0), "truth values"),
        (lambda: Ball(True, 1.0), "truth values"),
        (lambda: Ball(torch.tensor([2**53 + 1]), 1.0), "beyond 2\\^53"),
        (lambda: Ball(torch.tensor([-(2**63)]), 1.0), "beyond 2\\^53"),
        (lambda: Ball(np.array([2**64 - 1], dtype=np.uint64), 1.0), "beyond 2\\^53"),
        (lambda: Ball([2**53 + 1, 0.5], 1.0), "beyond 2\\^53"),
        (lambda: Ball([10**400], 1.0), "beyond 2\\^53"),
        (lambda: Ball([[1.0, 2.0], [3.0]], 1.0), "centre of a ball must be"),
        (lambda: Ball("center.npy", 1.0), "not a str"),
        (lambda: Ball(None, 1.0), "not a NoneType"),
        (lambda: Ball(1j, 1.0), "not a complex"),
        (lambda: Ball(np.array(["a"]), 1.0), "an array of <U1"),
        (lambda: Ball(np.zeros(2, dtype=np.longdouble), 1.0), "an array of float128|an array of longdouble"),
        (lambda: Ball(torch.zeros(2, dtype=torch.complex64), 1.0), "must be a real tensor"),
        (lambda: Ball(torch.zeros(2, device="meta"), 1.0), "meta device"),
        (lambda: Ball(torch.zeros(2).to_sparse(), 1.0), "sparse"),
        (lambda: Ball(torch.zeros(2, dtype=torch.float8_e5m2), 1.0), r"\.float\(\)"),
        (lambda: Ball(0.0, -1e-9), "finite radius ≥ 0.*not -1e-09"),
        (lambda: Ball(0.0, math.nan), "finite radius ≥ 0.*not nan"),
        (lambda: Ball(0.0, INF), "finite radius ≥ 0.*not inf"),
        (lambda: Ball(0.0, None), "finite radius ≥ 0.*not None"),
        (lambda: Ball(0.0, True), "finite radius ≥ 0.*not True"),
        (lambda: Ball(0.0, [1.0]), "finite radius"),
        (lambda: Ball(0.0, 2**53 + 1), "finite radius"),
        (lambda: Ball(0.0, 1.0, 3), r"p in \{1, 2, inf\}, not 3"),
        (lambda: Ball(0.0, 1.0, 0.5), r"p in \{1, 2, inf\}"),
        (lambda: Ball(0.0, 1.0, math.nan), r"p in \{1, 2, inf\}"),
        (lambda: Ball(0.0, 1.0, -INF), r"p in \{1, 2, inf\}"),
        (lambda: Ball(0.0, 1.0, "two"), r"p in \{1, 2, inf\}"),
        (lambda: Ball(0.0, 1.0, True), r"p in \{1, 2, inf\}"),
        (lambda: Box([0.0, 2.0], [1.0, 1.0]), "lower is 2 and upper 1 at 1"),
        (lambda: Box(1.0, 0.0), "lower is 1 and upper 0"),
        (lambda: Box(INF, INF), "a finite number between"),
        (lambda: Box(-INF, -INF), "a finite number between"),
        (lambda: Box(0.0, math.nan), "an end of a box holds NaN"),
        (lambda: Box([0.0], [1.0, 1.0]), r"one shape, not \(1,\) and \(2,\)"),
        (lambda: Box(torch.tensor([True]), 1.0), "lower end of a box holds truth values"),
        (lambda: Intersection(Box(0.0, 1.0), Ball(0.0, 1.0)), "in this order"),
        (
            lambda: Intersection(Ball([0.0] * 3, 1.0), Box([0.0] * 2, 1.0)),
            r"the box has shape \(2,\), .*ball has \(3,\)",
        ),
        (lambda: Intersection(Ball([2.0, 2.0], 1.0, 2), Box(0.0, 1.0)), "no point in common.*1.41421 away"),
        (lambda: Intersection(Ball(2.0, 0.5), Box(0.0, 1.0)), "no point in common"),
        (lambda: Box(0.0, 1.0).dimension, "until it is fitted"),
        (lambda: Ball([0.0, 0.0], 1.0).contains([0.0]), "1 coordinates, the domain has 2"),
    ],
)
def test_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def test_another_default_device_changes_no_domain() -> None:
    net, x = model(), torch.zeros(1, 3)
    with torch.device("meta"):
        domain = Intersection(Ball([0.1, 0.2, 0.3], 0.3, 2), Box(0, 1))
        found = lipcert.bound(net, x, method="autolip", domain=domain)
    assert found.domain.ball.center.tolist() == [[0.1, 0.2, 0.3]]
    assert found.value == bound(domain).value


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_centre_on_another_device() -> None:
    assert Ball(torch.ones(2, device="cuda"), 1.0).center.device.type == "cpu"


# -- fitted -----------------------------------------------------------------------------------------------------


def test_single_numbers_stand_for_all_coordinates() -> None:
    for domain in (Ball(0.5, 0.25, 2), Box(0, 1), Intersection(Ball(0.5, 0.25, 2), Box(0, 1))):
        lower, upper = domain.fitted((1, 2, 3)).bounds()
        assert lower.shape == upper.shape == (1, 2, 3)
        assert domain.fitted((1, 2, 3)).dimension == 6
        found = bound(domain)
        assert found.domain.dimension == 3
        assert found.domain.describe() == domain.describe()
    assert Box(0.0, [1.0, 2.0]).lower.tolist() == [0.0, 0.0]
    assert Intersection(Ball([0.5, 0.5], 1.0), Box(0.0, 1.0)).box.upper.tolist() == [1.0, 1.0]
    assert Intersection(Ball(0.5, 1.0), Box(0.0, [1.0, 2.0])).ball.center.tolist() == [0.5, 0.5]


def test_a_ball_may_leave_a_box_only_once_the_dimension_is_known() -> None:
    corner = Intersection(Ball(1.5, 1.0, 2), Box(0.0, 1.0))
    assert corner.fitted((1, 4)).contains(torch.ones(4))
    with pytest.raises(InputError, match="no point in common"):
        corner.fitted((1, 5))
    with pytest.raises(InputError, match="no point in common"):
        bound(corner, 5)


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (Ball(torch.zeros(2), 1.0), r"centre of the ball has shape \(2,\), one example .* \(3,\) \(without batch\)"),
        (Ball(torch.zeros(5, 3), 1.0), r"shape \(5, 3\), one example .* \(3,\).*list of domains"),
        (Ball(torch.zeros(3, 1), 1.0), r"shape \(3, 1\)"),
        (Box(torch.zeros(1), 1.0), r"the box has shape \(1,\)"),
        (Intersection(Ball(torch.zeros(4), 1.0), Box(0, 1)), r"shape \(4,\)"),
        ([Ball(torch.zeros(3), 1.0), Ball(torch.zeros(2), 1.0)], r"domain\[1\].*shape \(2,\)"),
        ([Box(0, 1), 3], r"domain\[1\] must be None, a lipcert.Ball"),
        (torch.zeros(3), "domain must be None, a lipcert.Ball"),
        ("box", "domain must be None"),
    ],
)
def test_domains_that_do_not_fit(domain: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        bound(domain)


def test_a_batch_of_one_is_an_example() -> None:
    for shape in ((3,), (1, 3)):
        assert bound(Ball(torch.ones(shape), 1.0)).domain.center.tolist() == [[1.0, 1.0, 1.0]]


def test_many_domains() -> None:
    domains = [Ball(torch.zeros(3), 0.5), None, Box(0, 1), Intersection(Ball(torch.zeros(3), 0.5, 2), Box(0, 1))]
    found = bound(domains)
    assert [b.domain and b.domain.describe() for b in found] == [d and d.describe() for d in domains]
    assert [b.value for b in found] == [bound(d).value for d in domains]
    assert bound(tuple(domains[:1]))[0].value == found[0].value
    assert bound([]) == []


def test_many_domains_capture_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("lipcert.api.common.capture", lambda *a: calls.append(a) or capture(*a))
    bound([Ball(i, 1.0) for i in range(5)])
    assert len(calls) == 1


# -- what they contain, and their boxes -------------------------------------------------------------------------


@given(center=finite, radius=st.floats(0.0, allow_infinity=False), p=st.sampled_from(ORDERS))
def test_the_box_of_a_ball_is_rounded_outward_and_tight(center: float, radius: float, p: float) -> None:
    lower, upper = (float(end) for end in Ball([center], radius, p).bounds())
    low, high = Fraction(center) - Fraction(radius), Fraction(center) + Fraction(radius)
    for end, exact, sign in ((lower, low, 1), (upper, high, -1)):
        assert math.isinf(end) or sign * (exact - Fraction(end)) >= 0
        nearer = math.nextafter(end, sign * INF)
        if math.isfinite(nearer):
            assert sign * (Fraction(nearer) - exact) > 0 or Fraction(end) == exact


@settings(max_examples=200)
@given(st.data())
def test_membership_boxes_and_projections(data: st.DataObject) -> None:
    n, p = data.draw(st.integers(1, 4)), data.draw(st.sampled_from(ORDERS))
    vectors = st.lists(tame, min_size=n, max_size=n).map(lambda v: torch.tensor(v, dtype=D))
    center, a, b, x = (data.draw(vectors) for _ in range(4))
    radius = data.draw(radii)
    ball, box = Ball(center, radius, p), Box(torch.minimum(a, b), torch.maximum(a, b))
    in_ball = length(x, center, p) <= Fraction(radius) ** (2 if p == 2 else 1)
    in_box = all(low <= v <= high for low, v, high in zip(box.lower, x, box.upper, strict=True))
    assert ball.contains(x) == in_ball
    assert box.contains(x) == in_box
    try:
        both = Intersection(ball, box)
    except InputError:
        assert not (in_ball and in_box)
        assert not ball.contains(center.clamp(box.lower, box.upper))
        return
    assert both.contains(x) == (in_ball and in_box)
    for domain in (ball, box, both):
        assert domain.contains(domain.home())
        lower, upper = domain.bounds()
        moved = domain.project(x[None])[0]
        assert bool((lower <= moved + 1e-9).all() and (moved - 1e-9 <= upper).all())
        if domain.contains(x):
            assert bool((lower <= x).all() and (x <= upper).all())
            assert torch.allclose(moved, x, atol=1e-9)
        assert length(domain.project(moved[None])[0], moved, INF) <= 1e-8
    moved = both.project(x[None])[0]
    assert box.contains(moved)
    assert float((moved - center).norm(p=p)) <= radius * (1 + 1e-9) + 1e-9
    if p == 2 and float((both.home() - center).norm()) < radius - 1e-3:  # the nearest: no feasible step shortens x
        for other in (both.home(), both.project((x + 0.3)[None])[0], both.project((moved - 0.2)[None])[0]):
            assert float((x - moved) @ (other - moved)) <= 1e-6


def test_infinite_points_lie_nowhere() -> None:
    assert not Box(-INF, INF).contains([INF])
    assert not Box(0.0, INF).contains([math.nan])
    assert Box(-INF, INF).contains([1e308])
    assert not Intersection(Ball(0.0, 1e308), Box(0.0, INF)).contains([INF])


def test_balls_that_a_domain_is_a_part_of() -> None:
    ball, box = Ball([0.0, 0.0], 1.0, 2), Box(0.0, 1.0)
    assert ball.balls() == (ball,)
    assert box.balls() == ()
    assert Intersection(ball, box).balls() == (ball,)


# -- directions that stay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ball", "box", "expected"),
    [
        (Ball([0.5, 0.5], 0.1), Box([0.0, 0.5], [1.0, 0.5]), [1, 0]),
        (Ball([0.5, 0.5], 0.0), Box(0.0, 1.0), [0, 0]),
        (Ball([2.0, 0.5], 1.0), Box(0.0, 1.0), [0, 1]),  # touches the face: moves along it
        (Ball([2.0, 0.5], 1.0, 2), Box(0.0, 1.0), [0, 0]),  # touches it in one point
        (Ball([2.0, 0.5], 1.0, 1), Box(0.0, 1.0), [0, 0]),
        (Ball([-1.0, 0.5], 1.0), Box(0.0, 1.0), [0, 1]),
        (Ball([2.0, 0.5], 1.0 + 2**-40, 2), Box(0.0, 1.0), [1, 1]),
        (Ball([2.0, 2.0], 2.0, 1), Box(0.0, 1.0), [0, 0]),
        (Ball([2.0, 2.0], 1.5, 2), Box(0.0, 1.0), [1, 1]),
        (Ball([0.0, 0.0], 5e-324, 2), Box(0.0, INF), [1, 1]),
        (Ball([4.0, 6.0], 5.0, 2), Box(-INF, [1.0, 2.0]), [0, 0]),
        (Ball([4.0, 6.0], 5.0, 2), Box([1.0, -INF], [1.0, 9.0]), [0, 1]),
    ],
)
def test_directions_within_an_intersection(ball: Ball, box: Box, expected: list[int]) -> None:
    domain = Intersection(ball, box)
    assert movable(domain, (2,)).tolist() == expected
    assert domain.contains(domain.home())


@settings(max_examples=200)
@given(st.data())
def test_a_direction_is_allowed_only_if_the_domain_extends_along_it(data: st.DataObject) -> None:
    """Exactly: along an l∞ ball in a box by coordinates, else if a point of the box lies strictly in the ball."""
    n, p = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(ORDERS))
    vectors = st.lists(st.integers(-3, 3), min_size=n, max_size=n).map(lambda v: torch.tensor(v, dtype=D))
    center, a, b = (data.draw(vectors) for _ in range(3))
    radius = data.draw(st.integers(0, 5))
    box = Box(torch.minimum(a, b), torch.maximum(a, b))
    try:
        domain = Intersection(Ball(center, radius, p), box)
    except InputError:
        return
    moves = domain.movable().tolist()
    if p == INF:
        lower, upper = torch.maximum(box.lower, center - radius), torch.minimum(box.upper, center + radius)
        assert moves == (lower < upper).tolist()
    else:
        inside = length(domain.home(), center, p) < radius ** (2 if p == 2 else 1)
        assert moves == [inside and bool(m) for m in box.lower < box.upper]


def test_a_witness_stays_in_the_intersection() -> None:
    slope = nn.Linear(2, 1, bias=False)
    slope.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    domain = Intersection(Ball([2.0, 0.5], 1.0), Box(0.0, 1.0))
    asked = Problem(capture(slope.eval(), torch.zeros(1, 2)), (2.0, 2.0), domain)
    assert evaluate(asked, LowerWitness(tensor(1.0, 0.25), tensor(0, 1))) == pytest.approx(4.0)
    with pytest.raises(InputError, match="direction leaves the domain"):
        evaluate(asked, LowerWitness(tensor(1.0, 0.25), tensor(3, 4)))
    with pytest.raises(InputError, match="outside the linf ball of radius 1 within the box"):
        evaluate(asked, LowerWitness(tensor(math.nextafter(1.0, 0.0), 0.25), tensor(0, 1)))


# -- lower bounds inside ----------------------------------------------------------------------------------------

INSIDE = [
    Intersection(Ball([0.9, 0.1, 0.5], 0.3, 2), Box(0, 1)),
    Intersection(Ball([0.9, 0.1, 0.5], 0.3, 1), Box(0, 1)),
    Intersection(Ball([0.9, 0.1, 0.5], 0.3), Box(0, 1)),
    Intersection(Ball([1.2, 0.1, 0.5], 0.3, 2), Box([-INF, 0.1, 0.0], [1.0, 0.1, INF])),
    Intersection(Ball([2.0, 0.5, 0.5], 1.0), Box(0, 1)),
    Intersection(Ball([2.0, 0.5, 0.5], 1.0, 2), Box(0, 1)),
    Intersection(Ball([1e6] * 3, 1e-3, 2), Box(1e6, INF)),
    Intersection(Ball(0.0, 1e6, 2), Box(0.25, 0.5)),
    Intersection(Ball(0.3, 1e300, 1), Box(-INF, INF)),
    Box([-INF, 0.0, 2.0], [-3.0, INF, 2.0]),
]


@pytest.mark.few(3)
@pytest.mark.parametrize("domain", INSIDE, ids=lambda d: d.describe())
def test_lower_bounds_inside_the_domain(domain: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 2)).double().eval()
    found = lipcert.lower_bound(net, torch.zeros(1, 3), domain=domain, budget=0.5)
    point, direction = found.witness.point, found.witness.direction
    asked = Problem(capture(net, torch.zeros(1, 3, dtype=D)), (2.0, 2.0), domain)
    assert asked.domain is not None
    assert asked.domain.contains(point)
    assert not bool((direction[~asked.domain.movable().reshape(-1)] != 0).any())
    assert (found.value > 0) == bool(asked.domain.movable().any())
    assert evaluate(asked, found.witness) == found.value
    assert domain.describe() in str(found)
    first, last = net[0].weight.detach(), net[2].weight.detach()
    keep = asked.domain.movable().double().reshape(-1)
    best = 0.0
    generator = torch.Generator().manual_seed(1)
    lower, upper = (end.clamp(-1e3, 1e7).reshape(-1) for end in asked.domain.bounds())
    if float((upper - lower).max()) <= 2.0:  # else samples say little
        points = lower + (upper - lower) * torch.rand(400, 3, generator=generator, dtype=D)
        for x in points:
            if asked.domain.contains(x):
                on = (net[0](x) > 0).double().detach()
                best = max(best, float(torch.linalg.matrix_norm((last * on) @ first * keep, 2)))
    assert found.value >= best * (1 - 1e-6)
    for method in ("autolip", "lipsdp"):
        assert found.value <= lipcert.bound(net, torch.zeros(1, 3), method=method, domain=domain).value


def test_texts() -> None:
    x = torch.zeros(1, 3)
    domain = Intersection(Ball(0.5, 0.25, 2), Box(0, 1))
    assert "on the l2 ball of radius 0.25 within the box [0, 1]" in str(bound(domain))
    assert "Intersection(ball=Ball(" in repr(bound(domain))
    assert "on the box;" in str(bound(Box([0.0, 0.0, 1.0], 2.0)))
    rows = lipcert.compare(model(), x, domain=domain, methods=["autolip"], lower_budget=0.1)
    assert "on the l2 ball of radius 0.25 within the box [0, 1]" in str(rows)
    assert "everywhere" in str(bound(None))
    assert "on the" not in str(lipcert.lower_bound(model(), x, budget=0.1))


def test_a_radius_that_was_given_is_printed_as_it_was_given() -> None:
    """0.3 is the double that is meant; a number of more digits is rounded towards what is claimed."""
    assert Ball(torch.zeros(2), 0.3, p=2).describe() == "l2 ball of radius 0.3"
    assert Ball(torch.zeros(2), 1 / 3, p=2).describe() == "l2 ball of radius 0.333333"
    assert Ball(torch.zeros(2), 2 / 3, p=2).describe() == "l2 ball of radius 0.666666"
    assert Box(0.1, 2 / 3).fitted((1, 2)).describe() == "box [0.1, 0.666666]"
