"""Ranges and constants worked out together: each node's against what it does at points of the ball."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates import joint_transform, merged_recursion
from lipcert.certificates.base import Witness, prove
from lipcert.certificates.joint_recursion import JointRecursion
from lipcert.certificates.merged_recursion import MergedRecursion
from lipcert.certificates.recursions import Recursion
from lipcert.certificates.wide_recursion import WideRecursion
from lipcert.errors import NotProved
from lipcert.network.expanded import Expanded, MatrixProduct, SmoothBlock
from lipcert.network.graph import PartNode
from lipcert.numerics.chance import Chance
from lipcert.numerics.interval import Around
from lipcert.ops.normalisation import LayerNorm
from lipcert.ops.softmax import Softmax
from lipcert.problem import Problem
from lipcert.ranges.course import middle_and_reach, reach_of
from tests.test_attention import network, steepest

D = torch.float64


def values_of(problem: Problem, x: Tensor) -> list[Tensor]:
    """The value of every node."""
    found: list[Tensor] = []
    for node in problem.headed.nodes:
        found.append(node.value([found[p][None] for p in node.parents], x[None])[0])
    return found


def points_of(ball: lipcert.Ball, count: int) -> Tensor:
    """Points of an l2 ball, on its sphere and inside."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(count, ball.center.numel(), generator=generator, dtype=D)
    steps = steps / steps.norm(dim=1, keepdim=True) * ball.radius * (1.0 - 1e-9)
    steps[::3] *= torch.rand(len(steps[::3]), 1, generator=generator, dtype=D)
    return ball.center + steps.reshape(count, *ball.center.shape)


@pytest.mark.few(2)
@pytest.mark.parametrize("recursion_of", [JointRecursion, MergedRecursion, WideRecursion])
@pytest.mark.parametrize("radius", [0.1, *(pytest.param(r, marks=pytest.mark.slow) for r in (1e-3, 1.0))])
@pytest.mark.parametrize("seed", [4, *(pytest.param(k, marks=pytest.mark.slow) for k in range(30))])
def test_no_node_does_more_than_its_constants_say(
    seed: int, radius: float, recursion_of: type[Recursion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_recursion, "PIECE", 3)
    monkeypatch.setattr(merged_recursion, "MOST_COLUMNS", 0.5)
    model, x = network(seed)
    problem = Problem(capture(model, x), (2.0, 2.0), lipcert.Ball(x[0], radius, p=2))
    assert isinstance(problem.domain, lipcert.Ball)
    recursion = recursion_of(problem, Chance())  # type: ignore[call-arg, arg-type]
    steps = recursion.run()
    entries = getattr(recursion, "entries", {})
    centre = values_of(problem, problem.domain.center)
    shown = [
        k for k in sorted(recursion.course.asked)  # type: ignore[attr-defined]
        if not (isinstance(problem.headed.nodes[k], PartNode) and problem.headed.nodes[k].which)  # type: ignore[attr-defined]
    ]  # fmt: skip
    assert len(shown) >= 2
    for x_k in points_of(problem.domain, 2):
        values = values_of(problem, x_k)
        jacobians = torch.func.jacfwd(lambda z: [values_of(problem, z)[k] for k in shown])(x_k)
        for k, jacobian in zip(shown, jacobians, strict=True):
            j = jacobian.reshape(centre[k].numel(), -1)
            constant = float(steps[k].constant)
            assert float(torch.linalg.matrix_norm(j, 2)) <= constant * (1.0 + 1e-9)
            gap = (values[k] - centre[k]).reshape(-1)
            assert float(gap.norm()) <= constant * radius * (1.0 + 1e-9)
            if k in entries:
                assert bool((j.norm(dim=1) <= entries[k] * (1.0 + 1e-9)).all())
                assert bool((gap.abs() <= entries[k] * radius * (1.0 + 1e-9)).all())


@pytest.mark.parametrize("function", [MatrixProduct(), SmoothBlock(Softmax("softmax", {}, "", axis=-1)),
                                      SmoothBlock(LayerNorm("layer_norm", {}, "", shape=(5,), eps=1e-3))])  # fmt: skip
@pytest.mark.parametrize("reach", [1e-3, 0.3, 2.0])
def test_pairs_of_a_ball_obey_its_expansion(function: Expanded, reach: float) -> None:
    """The box alone would be much larger than the ball."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, 2, 3, 5), (1, 2, 5, 4)][: function.count]
    centres = [torch.randn(shape, generator=generator, dtype=D) for shape in shapes]
    around = [Around(c - reach, c + reach, c, reach) for c in centres]
    found = function.expansion(around)
    assert found is not None

    def point(c: Tensor) -> Tensor:
        step = torch.randn(c.shape, generator=generator, dtype=D)
        return c + step / step.norm() * reach * (1.0 - 1e-9)

    for _ in range(40):
        one, two = [point(c) for c in centres], [point(c) for c in centres]
        if _ % 2:  # steep directions are met by near pairs
            two = [a + 1e-4 * (b - a) for a, b in zip(one, two, strict=True)]
        rest = function.value([a[None] for a in one])[0] - function.value([b[None] for b in two])[0]
        allowed = 0.0
        for a, b, linear, scale, gains in zip(one, two, found.maps, found.scales, found.gains, strict=True):
            rest = rest - (linear.apply((a - b)[None])[0] if linear is not None else 0.0)
            allowed += gains[2.0] * float((scale * (a - b)).norm())
        assert float(rest.norm()) <= allowed * (1.0 + 1e-9) + 1e-13


@pytest.mark.slow
def test_boxes_that_explode_do_not_matter(tmp_path: Path) -> None:
    """Where ranges are boxes only, this has a constant of no use."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).to(D).eval()
    x = torch.randn(1, 6, 8, dtype=D)
    ball = lipcert.Ball(x[0], 0.01, p=2)
    bound = lipcert.bound(model, x, "liplt", domain=ball)
    assert bound.guarantee == "rigorous"
    below = steepest(model, ball, 2.0, 0)
    assert below <= bound.value <= 2.0 * below
    assert bound.certificate is not None
    bound.certificate.save(tmp_path / "joint.lipcert")
    assert lipcert.verify(tmp_path / "joint.lipcert", model, x).value == pytest.approx(bound.value, rel=1e-9)
    problem = Problem(capture(model, x), (2.0, 2.0), ball)
    apart = prove(problem, Witness("loop_transform"), Chance())
    assert float(apart.value) >= 1.1 * bound.value


def test_where_it_does_not_apply_it_proves_nothing() -> None:
    """On the whole space, between other norms, and for networks without blocks or products."""
    model, x = network(4)
    plain = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).to(D).eval()
    ball = lipcert.Ball(torch.zeros(1, 3, dtype=D), 0.1, p=2)
    for problem in (
        Problem(capture(model, x), (math.inf, math.inf), lipcert.Ball(x[0], 1e-3)),
        Problem(capture(plain, torch.zeros(1, 3, dtype=D)), (2.0, 2.0), ball),
    ):
        assert not joint_transform.applies(problem)
        for settings in ({}, {"alone": True}):
            with pytest.raises(NotProved):
                prove(problem, Witness("joint_transform", {}, settings), Chance())


def test_how_far_a_domain_reaches() -> None:
    zero = torch.zeros(1, 4, dtype=D)
    assert reach_of(None) == math.inf
    assert reach_of(lipcert.Ball(zero, 0.25, p=1)) == reach_of(lipcert.Ball(zero, 0.25, p=2)) == 0.25
    assert 0.5 <= reach_of(lipcert.Ball(zero, 0.25, p=math.inf)) <= 0.5 * (1.0 + 1e-12)
    assert 1.0 <= reach_of(lipcert.Box(zero - 0.5, zero + 0.5)) <= 1.0 + 1e-12
    assert reach_of(lipcert.Box(zero - math.inf, zero + 0.5)) == math.inf


def test_how_far_it_reaches_is_told_from_the_middle() -> None:
    """A box has a corner next to 0; a ball that a box cuts is no larger for it."""
    zero = torch.zeros(1, 4, dtype=D)
    point, reach = middle_and_reach(lipcert.Box(zero, zero + 1.0))
    assert bool((point == 0.5).all())
    assert 1.0 <= reach <= 1.0 + 1e-12
    cut = lipcert.Intersection(lipcert.Ball(zero, 0.25, p=2), lipcert.Box(zero - 1.0, zero + 0.2))
    assert reach_of(cut) == 0.25
    corner = lipcert.Intersection(lipcert.Ball(zero, 0.25, p=2), lipcert.Box(zero + 0.1, zero + 1.0))
    point, reach = middle_and_reach(corner)
    assert corner.contains(point)
    inside = points_of(lipcert.Ball(zero, 0.25, p=2), 4000)
    inside = inside[(inside >= 0.1).all(dim=-1).all(dim=-1)]
    assert len(inside)
    assert float((inside - point).flatten(1).norm(dim=1).max()) <= reach < 0.31


SMALL = (3, 4, 1)
LARGER = (6, 8, 2)


@pytest.mark.parametrize(
    ("sizes", "radius", "factor", "work"),
    [
        (SMALL, 1e-3, 1.3, "merged"),
        *(
            pytest.param(*case, work, marks=pytest.mark.slow)
            for case in ((SMALL, 1e-3, 1.3), (SMALL, 1e-12, 1.02), (LARGER, 1e-12, 1.02), (LARGER, 1e-3, 4.0))
            for work in ("merged", "norms")
        ),
        pytest.param(LARGER, 0.03, 1e12, "merged", marks=pytest.mark.slow),
        pytest.param(LARGER, 0.03, 1e12, "norms", marks=pytest.mark.slow),
    ],
)
def test_wide_networks_by_either_way(
    work: str,
    sizes: tuple[int, int, int],
    radius: float,
    factor: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = import_module("lipcert.methods.joint_cost")
    monkeypatch.setattr(costs, "JOINT_WORK", 0.0)
    monkeypatch.setattr(costs, "MERGED_WORK", 1e30 if work == "merged" else 0.0)
    monkeypatch.setattr(merged_recursion, "PIECE", 2 * sizes[1])
    torch.manual_seed(0)
    tokens, width, layers = sizes
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True, activation="gelu", dropout=0.0)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).to(D).eval()
    x = torch.randn(1, tokens, width, dtype=D)
    ball = lipcert.Ball(x[0], radius, p=2)
    bound = lipcert.bound(model, x, domain=ball)
    assert bound.method == "liplt"
    assert bound.guarantee == ("rigorous" if work == "merged" else "probabilistic")
    below = steepest(model, ball, 2.0, 0)
    assert below <= bound.value * (1.0 + 1e-9)
    assert bound.value <= factor * below
    assert bound.certificate is not None
    assert bound.certificate.witness.settings["work"] == work
    bound.certificate.save(tmp_path / "wide.lipcert")
    again = lipcert.verify(tmp_path / "wide.lipcert", model, x)
    assert again.value == pytest.approx(bound.value, rel=0.02)
    if work == "norms":
        sure = lipcert.bound(model, x, domain=ball, guarantee="rigorous")
        assert sure.guarantee == "rigorous"
        assert below <= sure.value * (1.0 + 1e-9)
