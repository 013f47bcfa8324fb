"""Attacks on what was made for wide transformers on small balls: ways of ``joint_transform``, and their corners."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates import merged_recursion
from lipcert.certificates.base import Proof, Witness, prove
from lipcert.certificates.joint_recursion import JointRecursion
from lipcert.certificates.norms.block_norm import block_norm
from lipcert.certificates.norms.merging import merged
from lipcert.certificates.norms.operator_norm import map_norm
from lipcert.certificates.norms.written_map import EnclosedMatrix
from lipcert.certificates.recursions import FreeRecursion
from lipcert.domain import Domain
from lipcert.errors import CertificateError, NotProved
from lipcert.increments import Linear
from lipcert.network.linear import LinearMap
from lipcert.numerics.chance import Chance
from lipcert.numerics.magnitude import Magnitude
from lipcert.problem import Problem

D = torch.float64
WORKS = ("matrices", "merged", "norms")


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small nodes take the paths of wide ones: pieces, sources that their readers write down, merging."""
    monkeypatch.setattr(merged_recursion, "PIECE", 3)
    monkeypatch.setattr(merged_recursion, "MOST_COLUMNS", 0.3)


class Attention(nn.Module):
    """A block of a transformer in its smallest form."""

    def __init__(self, width: int, heads: int, norm: str, last: Callable[[Tensor], Tensor], masked: bool) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(width, width) for _ in range(5)])
        self.heads, self.last, self.masked = heads, last, masked
        self.norm = nn.Identity() if norm == "none" else nn.LayerNorm(width, elementwise_affine=norm == "affine")
        if norm == "affine":
            nn.init.normal_(self.norm.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        own = self.norm(x)
        q, k, v = (m(own).reshape(b, t, self.heads, -1).transpose(1, 2) for m in self.maps[:3])
        scores = q @ k.transpose(-1, -2)
        if self.masked:
            scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -math.inf)
        x = x + self.maps[3]((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, w))
        return x + self.last(self.maps[4](x))


def attention(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    width, heads = (4, 1 + seed % 2)
    norm = ("none", "plain", "affine")[seed % 3]
    last = (F.gelu, F.relu, torch.tanh)[seed // 2 % 3]
    model = nn.Sequential(*[Attention(width, heads, norm, last, seed % 4 == 3) for _ in range(1 + (seed % 5 == 4))])
    return model.to(D).eval(), torch.randn(1, 2 + seed % 3, width, dtype=D)


class Function(nn.Module):
    """A function of an input and of matrices that are drawn here."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, int]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.function = function
        self.own = nn.ParameterList([nn.Parameter(torch.randn(s, dtype=D) / math.sqrt(s[1])) for s in shapes])

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(x, *self.own)
        return result


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """At one example."""
    value = torch.autograd.functional.jacobian(lambda y: model(y.reshape(1, *x.shape)).reshape(-1), x)
    return value.reshape(-1, x.numel())


def inside(domain: Domain, centre: Tensor, radius: float, count: int) -> Iterator[Tensor]:
    """Points of a domain: of its sphere, its corners and its inside."""
    assert domain is not None
    generator = torch.Generator().manual_seed(1)
    for k in range(count):
        step = torch.randn(centre.shape, generator=generator, dtype=D)
        step = step.sign() if k % 3 == 1 else step
        if isinstance(domain, lipcert.Ball):
            step = step / step.norm(p=domain.p) * (1.0 - 1e-9)
        point = domain.project((centre + radius * step * (0.5 if k % 5 == 4 else 1.0))[None])[0]
        if domain.contains(point):
            yield point


def steep(model: nn.Module, points: list[Tensor]) -> float:
    """The greatest norm of a Jacobian at, and ratio of increments between, some points."""
    found = max(float(torch.linalg.matrix_norm(jacobian(model, x), 2)) for x in points[::3])
    with torch.no_grad():
        values = [model(x[None]) for x in points]
    for k in range(1, len(points)):
        gap = float((points[k] - points[k - 1]).norm())
        found = max(found, float((values[k] - values[k - 1]).norm()) / gap if gap > 1e-6 else 0.0)
    return found


def proved(problem: Problem, work: str, **settings: object) -> Proof:
    """What one way proves."""
    witness = Witness("joint_transform", {}, {"work": work, "alone": True, **settings})
    return prove(problem, witness, Chance())


def domain_of(kind: str, x: Tensor, r: float) -> Domain:
    if kind in ("l1", "l2", "linf"):
        return lipcert.Ball(x, r, p={"l1": 1, "l2": 2, "linf": math.inf}[kind])
    ball, far = lipcert.Ball(x, r, p=2), r / math.sqrt(x.numel())
    if kind == "box":  # 0 is none of its points, so that its home is a corner
        return lipcert.Box(x - 0.2 * far, x + 0.8 * far)
    if kind == "flat":  # no length in most directions
        low, high = x.clone(), x.clone()
        high[0, :2] += far
        return lipcert.Box(low, high)
    if kind == "cut":
        return lipcert.Intersection(ball, lipcert.Box(x - 0.1 * far, x + 2.0 * far))
    if kind == "corner":  # the centre is none of its points
        return lipcert.Intersection(ball, lipcert.Box(x + 0.4 * far, x + 3.0 * far))
    return lipcert.Intersection(
        lipcert.Ball(x, r, p=math.inf), lipcert.Box(x + (1.0 - 1e-9) * r, x + 2.0 * r)
    )  # all but a point


DOMAINS = ("l1", "l2", "linf", "box", "flat", "cut", "corner", "point")


@pytest.mark.parametrize("seed", [pytest.param(k, marks=() if k == 6 else pytest.mark.slow) for k in range(32)])
def test_no_way_is_below_what_attacks_find(seed: int) -> None:
    model, x = attention(seed)
    radius = 10.0 ** -(1 + seed % 4)
    domain = domain_of(DOMAINS[seed % 8], x[0], radius)
    below = steep(model, list(inside(domain, x[0], radius, 24)))
    problem = Problem(capture(model, x), (2.0, 2.0), domain)
    for work in WORKS:
        assert below <= float(proved(problem, work).value) * (1.0 + 1e-9), work


def _two(x: Tensor, a: Tensor, b: Tensor, c: Tensor, e: Tensor) -> Tensor:
    return F.softmax((x * x) @ a + ((x @ c) * (x @ e)) @ b, -1)


def _three(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.tanh(torch.tanh((x @ c) @ (x @ c).mT + 0.01 * x) @ b + (x @ a) * (x @ b))


def _cuts(x: Tensor) -> Tensor:
    """What is bent before the first node that all paths pass and is read by a block counts at the second, too."""
    z = x + 1.6 * (x @ x)
    return z.flip(-1) + 0.01 * F.softmax(z, -1)


#: What is all but nothing at the centre, 0, so that all that counts is what bends; how far above the truth they are.
BENT: dict[str, tuple[nn.Module, tuple[int, int], float]] = {
    "gram": (Function(lambda x: x @ x.mT), (3, 4), 1.001),
    "gram after a map": (Function(lambda x, a: (x @ x.mT) @ a, (3, 5)), (3, 4), 1.6),
    "gram of gram": (Function(lambda x: (x @ x.mT) @ (x @ x.mT)), (2, 3), 2.1),
    "squares": (Function(lambda x, a, b: (x * (x @ b)) @ a, (3, 4), (3, 3)), (2, 3), 4.0),
    "cubes": (Function(lambda x, a: (x @ a) @ x.mT @ x, (3, 3)), (3, 3), 3.0),
    "two sources": (Function(_two, (4, 5), (6, 5), (4, 6), (4, 6)), (2, 4), 200.0),
    "two nodes that all pass": (Function(_cuts), (3, 3), 2.0),
    "two tanh": (Function(_three, (3, 3), (3, 3), (3, 3)), (3, 3), 10.0),
}


@pytest.mark.parametrize("radius", [0.3, pytest.param(1e-3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if "gram" in n else pytest.mark.slow) for n in BENT])
def test_where_all_is_bent_nothing_of_it_is_lost(name: str, radius: float) -> None:
    """By ascent of the Jacobian's norm, which is close to the bound here: a term that was forgotten would show."""
    model, shape, factor = BENT[name]
    centre = torch.zeros(1, *shape, dtype=D)
    below, point = 0.0, torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=D)
    for _ in range(15):
        point = (point / point.norm() * radius * (1.0 - 1e-12)).detach().requires_grad_(True)
        output = lambda y: model(y[None]).reshape(-1)  # noqa: E731
        matrix = torch.autograd.functional.jacobian(output, point, create_graph=True)
        norm = torch.linalg.matrix_norm(matrix.reshape(-1, point.numel()), 2)
        below = max(below, float(norm.detach()))
        (up,) = torch.autograd.grad(norm, point)
        point = point.detach() + radius * 0.5 * up / up.norm().clamp(min=1e-300)
    problem = Problem(capture(model, centre), (2.0, 2.0), lipcert.Ball(centre[0], radius, p=2))
    for work in WORKS:
        assert below <= float(proved(problem, work).value) * (1.0 + 1e-9) <= factor * below, work


def test_errors_may_be_beyond_all_floats_in_units_of_the_map() -> None:
    """Where the input has no part in a node at the middle but for rounding there is a bound all the same."""
    model, shape, _ = BENT["two sources"]
    centre = torch.zeros(1, *shape, dtype=D)
    problem = Problem(capture(model, centre), (2.0, 2.0), lipcert.Ball(centre[0], 0.3, p=2))
    points = list(inside(problem.domain, centre, 0.3, 12))
    assert steep(model, [x[0] for x in points]) <= float(proved(problem, "merged").value) < 2.0


@pytest.mark.parametrize("size", [0.7, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.1, 0.11))])
def test_maps_that_cancel_but_for_rounding_have_what_it_leaves(size: float) -> None:
    """(3·s − fl(3 s)) x is not 0, though passes may say so."""
    first, second = torch.eye(2, dtype=D) * size, torch.eye(2, dtype=D) * (3.0 * size)
    maps = [nn.Linear(2, 2, bias=False, dtype=D) for _ in range(3)]
    with torch.no_grad():
        for linear, weight in zip(maps, (first, 3.0 * torch.eye(2, dtype=D), second), strict=True):
            linear.weight.copy_(weight)

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList(maps)

        def forward(self, x: Tensor) -> Tensor:
            z = self.maps[1](self.maps[0](x)) - self.maps[2](x)
            return z.flip(-1) + 1e-40 * F.softmax(z, -1)

    true = abs(float(Fraction(size) * 3 - Fraction(3.0 * size)))
    assert true > 0.0
    x = torch.zeros(1, 2, 2, dtype=D)
    problem = Problem(capture(Cancelling().eval(), x), (2.0, 2.0), lipcert.Ball(x[0], 1e-3, p=2))
    for work in WORKS:
        assert true <= float(proved(problem, work).value) <= 1e-13, work


@pytest.mark.parametrize("size", [0.7, 0.1, 0.11])
@pytest.mark.parametrize("bent", [False, True])
def test_so_they_do_in_the_recursion_of_passes(size: float, bent: bool) -> None:
    """Straight, and through two ReLUs whose difference is the identity: passes find nothing, or too little to go on."""

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList(nn.Linear(2, 2, bias=False, dtype=D) for _ in range(3))
            with torch.no_grad():
                for linear, factor in zip(self.maps, (size, 3.0, 3.0 * size), strict=True):
                    linear.weight.copy_(torch.eye(2, dtype=D) * factor)

        def forward(self, x: Tensor) -> Tensor:
            inner = self.maps[0](x)
            return self.maps[1](inner.relu() - (-inner).relu() if bent else inner) - self.maps[2](x)

    true = abs(float(Fraction(size) * 3 - Fraction(3.0 * size)))
    problem = Problem(capture(Cancelling().eval(), torch.zeros(1, 2, dtype=D)), (2.0, 2.0))
    for increments in (problem.unfused_increments, problem.merged_increments):
        steps = FreeRecursion(increments, 2.0, Chance(), None).run()
        assert true <= float(steps[-1].constant) <= 20.0


@pytest.mark.parametrize("scale", [1e-20, pytest.param(1e-160, marks=pytest.mark.slow)])
def test_rounding_may_be_all_that_there_is_to_merge(scale: float) -> None:
    model, x = attention(0)
    with torch.no_grad():
        model[0].maps[3].weight *= scale  # type: ignore[index, union-attr]
        model[0].maps[4].weight *= scale  # type: ignore[index, union-attr]
    problem = Problem(capture(model, x), (2.0, 2.0), lipcert.Ball(x[0], 1e-3, p=2))
    assert 1.0 <= float(proved(problem, "merged").value) <= 1.001


def test_a_ball_alone_and_sizes_beyond_squares_are_merged_or_refused() -> None:
    small = (EnclosedMatrix(torch.eye(3, dtype=D) * 1e-12, 0, 0.0), Magnitude.of(1.0))
    found = merged([small], Magnitude.of(1.0))
    assert found is not None
    block, length = found
    least = float(torch.linalg.svdvals(block.matrix)[-1]) * 2.0**block.exponent * float(length)
    assert 1.0 + 1e-12 <= least <= 1.0 + 1e-11
    tiny = (EnclosedMatrix(torch.full((3, 2), 1e-250, dtype=D), 0, 0.0), Magnitude.of(1e250))
    huge = (EnclosedMatrix(torch.full((3, 2), 1e250, dtype=D), 0, 0.0), Magnitude.of(1e-250))
    for sources in ([tiny], [huge], [tiny, huge]):
        found = merged(sources)
        if found is not None:
            block, length = found
            y = torch.ones(3, dtype=D)
            within = float((block.matrix.T @ y).norm()) * 2.0**block.exponent * float(length)
            assert len(sources) * 3.0 * math.sqrt(2.0) <= within * (1.0 + 1e-12)


class Mixed(nn.Module):
    """Maps that move, repeat, drop and mix entries along every axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.second, self.third = nn.Linear(8, 8), nn.ConvTranspose2d(8, 4, 2, 2)
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        z = self.third(torch.cat([z, y.flip(1)], 1)[:, ::2]).repeat(1, 2, 1, 1).unfold(2, 2, 2)
        z = z + z.mean(-1, keepdim=True) - z.roll(1, 2)
        u = z.sum(1).unsqueeze(1).expand(-1, 3, -1, -1, -1).flatten(1, 2)
        return torch.einsum("bijk,jl->blik", u, self.weight[:1].expand(u.shape[2], -1)).cumsum(2).transpose(1, 2)


def maps_of(seed: int) -> Iterator[LinearMap]:
    if seed < 0:
        torch.manual_seed(0)
        model, x = Mixed(), torch.randn(1, 4, 6, 6)  # float32
        for node in capture(model.eval(), x).nodes:
            yield from getattr(node, "maps", ())
        return
    model, x = attention(seed)
    problem = Problem(capture(model, x), (2.0, 2.0), lipcert.Ball(x[0], 0.01, p=2))
    recursion = JointRecursion(problem, Chance())
    recursion.run()
    for relation in recursion.relations:
        yield from relation.maps if isinstance(relation, Linear) else ()


@pytest.mark.parametrize("seed", [-1, *(pytest.param(k, marks=pytest.mark.slow) for k in range(8))])
def test_norms_of_blocks_of_true_networks_are_no_less_than_those_of_matrices(seed: int) -> None:
    blocks = 0
    for linear in maps_of(seed):
        true = float(torch.linalg.matrix_norm(linear.matrix(), 2))
        assert true <= map_norm(linear, 2.0, route="blocks").value * (1.0 + 1e-13)
        found = block_norm(linear, 0.0)
        blocks += found is not None
        assert found is None or true <= found * (1.0 + 1e-13)
    assert blocks >= 2


@pytest.mark.slow
@pytest.mark.parametrize("work", ["merged", "norms"])
def test_a_tampered_certificate_proves_nothing_false(
    work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = import_module("lipcert.methods.joint_cost")
    monkeypatch.setattr(costs, "JOINT_WORK", 0.0)
    monkeypatch.setattr(costs, "MERGED_WORK", 1e30 if work == "merged" else 0.0)
    model, x = attention(0)
    ball = lipcert.Ball(x[0], 0.01, p=2)
    bound = lipcert.bound(model, x, method="liplt", domain=ball)
    record = bound.certificate
    assert record is not None
    assert record.witness.settings["work"] == work
    below = steep(model, list(inside(ball, x[0], 0.01, 12)))
    assert below <= bound.value
    arrays = {name: torch.zeros(2, 2, dtype=D) for name in ("matrix", "centre", "radius", "errors", "0")}
    changed = [
        replace(record, value=below * 0.99, log10=math.log10(below * 0.99)),
        replace(record, domain=lipcert.Ball(ball.center, 1.0, ball.p)),
        *(
            replace(
                record,
                value=below * 0.99,
                log10=math.log10(below * 0.99),
                witness=Witness("joint_transform", arrays, {**record.witness.settings, **other}),
            )
            for other in ({"work": "norms"}, {"work": "matrices"}, {"radius": 0.0}, {"work": ["merged"]})
        ),
        replace(record, guarantee="rigorous", witness=Witness("joint_transform", {}, {"work": "norms", "alone": True})),
    ]
    for k, one in enumerate(changed):
        one.save(tmp_path / f"{k}.lipcert")
        with pytest.raises(CertificateError):
            lipcert.verify(tmp_path / f"{k}.lipcert", model, x)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["merged", "norms"])
def test_all_that_is_asked_of_forced_ways_holds(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several domains, a selection, an anchor, other norms: each bound is above the attack's own."""
    costs = import_module("lipcert.methods.joint_cost")
    monkeypatch.setattr(costs, "JOINT_WORK", 0.0)
    monkeypatch.setattr(costs, "MERGED_WORK", 1e30 if work == "merged" else 0.0)
    model, x = attention(2)
    domains = [domain_of(kind, x[0], 0.01) for kind in ("l2", "box", "corner")]
    for domain, bound in zip(domains, lipcert.bound(model, x, domain=domains, budget=8.0), strict=True):
        assert steep(model, list(inside(domain, x[0], 0.01, 24))) <= bound.value * (1.0 + 1e-9)
    select = torch.zeros(1, model(x).numel(), dtype=D)
    select[0, :2] = torch.tensor([1.0, -1.0], dtype=D)
    some = {"select": select, "budget": 8.0}
    for norm in ((2, 2), (math.inf, 2)):
        whole = lipcert.bound(model, x, domain=domains[0], norm=norm, **some)  # type: ignore[call-overload]
        below = lipcert.lower_bound(model, x, domain=domains[0], norm=norm, **some)
        assert below.value <= whole.value * (1.0 + 1e-9)
    near = lipcert.bound(model, x, domain=domains[0], anchor=x[0], budget=8.0)  # type: ignore[call-overload]
    with torch.no_grad():
        for y in inside(domains[0], x[0], 0.01, 50):
            assert float((model(y[None]) - model(x)).norm()) <= near.value * float((y - x[0]).norm()) * (1.0 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("radius", [1e-4, 1e-2, 0.1])
def test_where_a_variance_may_be_0_there_is_a_bound_or_none(radius: float) -> None:
    model, x = attention(1)
    x = torch.full_like(x, 0.5)
    x[0, 1] += 1e-3 * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=D)
    ball = lipcert.Ball(x[0], radius, p=2)
    flat = x[0].clone()
    flat[1] = flat[1] + (0.5 - flat[1]) * min(1.0, radius / 2.0001e-3)
    below = max(steep(model, list(inside(ball, x[0], radius, 12))), steep(model, [flat, x[0]]))
    problem = Problem(capture(model, x), (2.0, 2.0), ball)
    for work in WORKS:
        try:
            assert below <= float(proved(problem, work).value) * (1.0 + 1e-9)
        except NotProved:
            continue
