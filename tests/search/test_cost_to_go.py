"""The search of the quadratic cost-to-go: its pieces against grids and dense algebra, its bounds against a check's."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lipcert.capture.torch_export import capture
from lipcert.certificates.cost_to_go.facts import Facts
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.walk import Setting, lower_bounds
from lipcert.domain import Ball, Box, Domain, Intersection
from lipcert.errors import NotProved
from lipcert.network.graph import Network
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from lipcert.search.cost_to_go.ascent import ascend, first_variables
from lipcert.search.cost_to_go.cells import Cell
from lipcert.search.cost_to_go.dual import Question, stored
from lipcert.search.cost_to_go.inputs import Domains
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.settings import Settings
from lipcert.search.cost_to_go.weights import excess, random_directions, scaled_weights
from tests.zoo import Apply, Concat, Residual, random_network

F64 = torch.float64


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(5)
        return build().eval()

    return made


def _chain(activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)))


def _image() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Conv2d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip


def _two_readers() -> nn.Module:
    """A value read by an activation and by a skip, and an activation read by two maps."""
    inner = nn.Sequential(nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    return nn.Sequential(nn.Linear(4, 5), Residual(inner), nn.ReLU(), Concat(nn.Linear(5, 3), nn.Linear(5, 2)),
                         nn.ReLU(), nn.Linear(5, 3))  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "relu": _chain(nn.ReLU),
    "leaky": _chain(lambda: nn.LeakyReLU(0.2)),
    "hardtanh": _chain(lambda: nn.Hardtanh(-0.3, 0.4)),
    "tanh": _chain(nn.Tanh),
    "gelu": _chain(nn.GELU),
    "selu": _chain(nn.SELU),
    "softshrink": _chain(lambda: nn.Softshrink(0.2)),
    "image": seeded(_image),
    "two readers": seeded(_two_readers),
    "first activation": seeded(lambda: nn.Sequential(nn.Tanh(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))),
    "last activation": seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Sigmoid())),
    "gain block": seeded(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Softmax(-1), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    ),
    "exponential": seeded(lambda: nn.Sequential(nn.Linear(4, 5), Apply(lambda _, x: torch.exp(x)), nn.Linear(5, 3))),
    "linear": seeded(lambda: nn.Linear(4, 3)),
    "nothing": seeded(lambda: nn.Identity()),
}  # fmt: skip


class Case:
    """A network on a domain, in the eyes of the check and of the search; ``count`` random rows."""

    def __init__(self, name: str, domain: Domain, count: int = 4, linear: bool = False) -> None:
        self.model = MODELS[name]().double()
        captured = capture(MODELS[name](), torch.zeros(1, 4))
        self.network: Network = Problem(captured, domain=domain).expanded
        self.domain = domain.fitted(self.network.in_shape)
        self.facts = Facts(self.network, Chance())
        self.setting = Setting(self.facts, self.domain, linear)
        outputs = self.network.out_shape[-1]
        self.rows = torch.randn(count, outputs, generator=torch.Generator().manual_seed(2), dtype=F64)
        self.norms = {k: tuple(n.value for n in self.facts.norms(k)) for k in self.affine()}
        self.example = torch.zeros(count, dtype=torch.int64)
        self.domains = as_domains(self.domain)

    def inputs(self) -> list[tuple[int, int]]:
        """(position, parent) of activations."""
        return [(k, self.network.nodes[k].parents[0]) for k in Plan(self.network, {}).functions]

    def affine(self) -> tuple[int, ...]:
        return Plan(self.network, {}).affine

    @property
    def boxes(self) -> list[tuple[Tensor, Tensor]]:
        return [(b.low[None], b.high[None]) for b in self.setting.boxes]

    def question(self) -> Question:
        plan = Plan(self.network, self.norms)
        low, high = ({k: b[end][self.example] for k, b in enumerate(self.boxes)} for end in (0, 1))
        return Question(plan, self.rows, low, high, self.domains.at(self.example))

    def points(self, count: int) -> Tensor:
        """Of the domain; half of them far out."""
        low, high = (t.clamp(-3, 3) for t in self.domain.bounds())
        x = low + (high - low) * torch.rand(count, *self.network.in_shape, generator=_generator(1), dtype=F64)
        corners = torch.where(x > 0.5 * (low + high), high, low)
        return self.domain.project(torch.where(torch.arange(count).reshape(-1, 1, 1) % 2 == 0, x, corners))

    def prove(self, index: Tensor, multipliers: Multipliers) -> Tensor:
        values = []
        for place, row in enumerate(self.rows[index].split(1)):
            try:
                own = multipliers.map(lambda t, place=place: t[place : place + 1])  # type: ignore[misc]
                values.append(lower_bounds(self.setting, row, own)[0][0])
            except NotProved:
                values.append(torch.tensor(-math.inf, dtype=F64))
        return torch.stack(values)

    def search(self, **settings: object) -> tuple[Tensor, Tensor]:
        chosen = Settings(**{"goal": None, "steps": 30, "warm": 12, **settings})  # type: ignore[arg-type]
        start = self.domain.home().expand(len(self.rows), *self.network.in_shape)
        found = ascend(
            self.network, self.norms, self.boxes, self.domains, self.rows, self.example, start, chosen, self.prove
        )
        return found.value, found.proved


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_domains(domain: Domain) -> Domains:
    ball = domain if isinstance(domain, Ball) else domain.ball if isinstance(domain, Intersection) else None
    low, high = domain.bounds()
    box = domain.box if isinstance(domain, Intersection) else domain if isinstance(domain, Box) else None
    open_ = torch.full_like(low, math.inf)
    ends = (-open_, open_) if box is None else (box.lower, box.upper)
    centre = 0.5 * (low + high) if ball is None else ball.center
    radius = math.inf if ball is None else ball.radius
    p = math.inf if ball is None else ball.p
    return Domains(centre[None], torch.tensor([radius], dtype=F64), p, ends[0][None], ends[1][None])


def within_both(case: Case) -> bool:
    """Whether a ball's multiplier has to be found, of which the check tries fewer than the search."""
    return case.domains.p == 2 and (not case.domains.plain or (0 in {p for _, p in case.inputs()}))


CENTRE = [0.3, -0.2, 0.1, 0.4]
DOMAINS: dict[str, Domain] = {
    "l2": Ball(CENTRE, 0.5, 2),
    "l1": Ball(CENTRE, 0.6, 1),
    "linf": Ball(CENTRE, 0.2),
    "box": Box([-0.1, -0.4, 0.0, 0.4], [0.3, 0.1, 0.5, 0.4]),
    "clipped": Intersection(Ball(CENTRE, 0.5, 2), Box([0.0, -0.3, 0.0, 0.0], [1.0] * 4)),
}


def random_multipliers(case: Case, seed: int) -> Multipliers:
    """Anything goes: half of them with weights that are proved by a Gram matrix's greatest eigenvalue."""
    generator, question = _generator(seed), case.question()
    plan, count = question.plan, len(case.rows)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=F64)

    nodes = case.network.nodes
    slope = {k: draw(nodes[k].shape) for k in plan.functions}
    curvature = {k: draw(nodes[k].shape).exp() for k in plan.functions}
    anchor = {e: 0.3 * draw(plan.parent_shape(e)) for e in plan.anchored}
    weights: dict[tuple[int, int], Tensor] = {}
    if seed % 2:
        own: dict[int, Tensor] = {}

        def weigh(k: int, total: Tensor) -> dict[int, Tensor]:
            matrix = torch.cat([nodes[k].maps[i].matrix() for i in plan.linked(k)], dim=1)  # type: ignore[attr-defined]
            found = {i: draw(plan.parent_shape((k, i))).exp() for i in plan.linked(k)}
            if case.domains.alike and plan.reads_input(k):  # one number for a ball
                found = {i: t.flatten(1)[:, :1, None].expand(t.shape) for i, t in found.items()}
            flat = torch.cat([t.flatten(1) for t in found.values()], dim=1)
            gram = matrix.T @ (total.expand(count, *nodes[k].shape).flatten(1)[:, :, None] * matrix)
            scaled = gram * flat.rsqrt()[:, :, None] * flat.rsqrt()[:, None, :]
            size = torch.linalg.eigvalsh(scaled)[:, -1] * 1.001
            sure = {i: t * size.reshape(-1, *[1] * (t.dim() - 1)) for i, t in found.items()}
            weights.update({(k, i): t for i, t in sure.items()})
            own[k] = total
            return sure

        question.value(Multipliers(slope, curvature, anchor), weigh)
    return Multipliers(slope, curvature, anchor, weights)


KINDS = list(DOMAINS)
#: Every model on two domains or three, every domain with many models.
PAIRS = [
    pytest.param(name, KINDS[(k + j) % len(KINDS)], marks=[pytest.mark.slow] * (j > 0 or k % 3 == 2))
    for k, name in enumerate(MODELS)
    for j in (0, 2)
]


@pytest.mark.parametrize(("name", "domain"), PAIRS)
def test_the_search_values_multipliers_as_the_check_does(name: str, domain: str) -> None:
    """Both are the same sum; the check rounds down, and loses a little where an activation is curved."""
    case = Case(name, DOMAINS[domain])
    for seed in (0, 1):
        multipliers = random_multipliers(case, seed)
        question = case.question()
        value = question.value(multipliers, stored(question.plan, multipliers.weight))
        proved = case.prove(torch.arange(len(case.rows)), multipliers)
        curved = any(f.curved for f in question.plan.functions.values())
        loss = 0.2 if within_both(case) else 5e-3 if curved else 1e-8
        assert bool((value - proved <= loss * (1.0 + value.abs())).all()), value - proved
        if domain in ("linf", "box"):
            assert bool((proved - value <= 1e-4 * (1.0 + value.abs())).all()), value - proved


@pytest.mark.parametrize(("name", "domain"), PAIRS)
def test_what_was_searched_is_proved_and_below_every_value(name: str, domain: str) -> None:
    case = Case(name, DOMAINS[domain])
    value, proved = case.search(dtype=F64, room=1e-6, small=4)
    outputs = case.model(case.points(400).reshape(400, 4)).detach()
    least = (outputs.flatten(1) @ case.rows.T).amin(0)
    assert bool((proved <= least + 1e-9).all())
    assert bool((proved.isfinite()).all())
    assert bool((value - proved <= (2e-2 if within_both(case) else 1e-3) * (1.0 + proved.abs())).all())


@pytest.mark.parametrize(
    ("name", "gap"), [("relu", 0.4), ("leaky", 0.4), ("tanh", 0.02), ("gelu", 0.05), ("linear", 1e-6)]
)
def test_small_networks_are_nearly_solved(name: str, gap: float) -> None:
    """The least value over a small ball is found from both sides."""
    case = Case(name, Ball(CENTRE, 0.25, 2))
    _, proved = case.search(steps=250, warm=0, dtype=F64, room=1e-6, decay=0.985)
    x = case.points(64).reshape(64, 4).repeat(len(case.rows), 1).requires_grad_(True)
    rows = case.rows.repeat_interleave(64, 0)
    for step in range(200):
        value = (case.model(x) * rows).sum(1)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        moved = x - 0.05 * 0.98**step * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-9)
        x = case.domain.project(moved.reshape(-1, 1, 4)).reshape(-1, 4).detach().requires_grad_(True)
    least = (case.model(x) * rows).sum(1).detach().reshape(-1, 64).amin(1)
    centre = (case.model(torch.tensor([CENTRE], dtype=F64)) * case.rows).sum(1).detach()
    assert bool((proved <= least + 1e-9).all())
    assert bool((least - proved <= gap * (centre - least) + 1e-6).all()), (least - proved, centre - least)


ACTIVATIONS = (
    nn.ReLU(), nn.LeakyReLU(0.3), nn.LeakyReLU(-0.5), nn.ReLU6(), nn.Hardtanh(-0.5, 0.8), nn.Softshrink(0.3),
    nn.Hardsigmoid(), nn.PReLU(init=0.4), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.ELU(), nn.SELU(),
    nn.CELU(2.0), nn.Softplus(), nn.Mish(), nn.Softsign(), nn.Hardswish(), nn.Tanhshrink(), nn.LogSigmoid(),
)  # fmt: skip


@pytest.mark.parametrize("module", ACTIVATIONS, ids=lambda m: type(m).__name__)
def test_least_costs_of_cells_against_a_grid(module: nn.Module) -> None:
    """No point of a fine grid is cheaper than what is said to be the least cost, and one is about as cheap."""
    count, n = 8, 40
    network = Problem(capture(module, torch.zeros(1, n))).expanded
    (function,) = Plan(network, {}).functions.values()
    generator = _generator(7)

    def draw() -> Tensor:
        return torch.randn(count, 1, n, generator=generator, dtype=F64)

    middle, half = 1.5 * draw(), draw().abs()
    low, high = middle - half, middle + half * (torch.arange(n) % 5 > 0)  # every fifth range ends where it is centred
    low[:, :, ::7] = high[:, :, ::7]
    cell = Cell(function, draw(), draw().exp(), draw(), draw(), draw().exp(), middle + 0.5 * draw(), low, high)
    share = torch.linspace(0, 1, 4001, dtype=F64).reshape(-1, 1, 1, 1)
    grid = low + (high - low) * share
    on_grid = torch.stack([cell.at(v, function(v)) for v in grid]).amin(0).flatten(1).sum(1)
    least = cell.least()
    tolerance = 2e-4 if function.curved else 1e-9
    assert bool((least <= on_grid + tolerance * n).all()), (least - on_grid).max()
    assert bool((least >= on_grid - 1e-3 * n).all())


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Hardtanh(), nn.Tanh()], ids=lambda m: type(m).__name__)
def test_gradients_of_least_costs(module: nn.Module) -> None:
    """Those of finite differences, in every argument and of every shape."""
    network = Problem(capture(module, torch.zeros(1, 5))).expanded
    (function,) = Plan(network, {}).functions.values()
    generator = _generator(3)
    full = [torch.randn(2, 1, 5, generator=generator, dtype=F64) for _ in range(4)]
    single = [torch.randn(2, 1, 1, generator=generator, dtype=F64).exp() for _ in range(2)]
    low, high = full[3] - 0.7, full[3] + 0.9

    def total(c: Tensor, weight: Tensor, middle: Tensor, g: Tensor, curvature: Tensor, centre: Tensor) -> Tensor:
        return Cell(function, c, weight, middle, g, 3.0 + curvature, centre, low, high).least()

    arguments = (full[0], single[0], full[1], full[2], single[1], full[3])
    for a in arguments:
        a.requires_grad_(True)
    assert torch.autograd.gradcheck(total, arguments, eps=1e-5, atol=5e-3 if module.__class__ is nn.Tanh else 1e-5)


@pytest.mark.parametrize("kind", list(DOMAINS))
def test_least_costs_of_the_input(kind: str) -> None:
    """Never above the cost at a point of the domain; attained at a point of it where that is known in closed form."""
    domain = DOMAINS[kind]
    domains = as_domains(domain.fitted((1, 4))).at(torch.zeros(6, dtype=torch.int64))
    generator = _generator(4)
    c, middle = (torch.randn(6, 1, 4, generator=generator, dtype=F64) for _ in range(2))
    weight = torch.randn(6, 1, 1 if kind == "l2" else 4, generator=generator, dtype=F64).exp()
    least = domains.least(c, weight, middle)
    x = torch.randn(4000, 1, 4, generator=generator, dtype=F64) * 0.4 + torch.tensor(CENTRE, dtype=F64)
    x = domain.fitted((1, 4)).project(x)
    cost = (c * x[:, None] - 0.5 * weight * (x[:, None] - middle).square()).flatten(2).sum(2)
    assert bool((least <= cost.amin(0) + 1e-9).all())
    if kind != "clipped":
        assert bool((least >= cost.amin(0) - 0.2 * c.norm()).all())
        point, multiplier = domains.least_point(c, weight, middle)
        at_point = (c * point - 0.5 * weight * (point - middle).square()).flatten(1).sum(1)
        assert torch.allclose(least, at_point)
        assert not bool(multiplier.any())
    else:  # without a quadratic cost the ball's multiplier loses nothing
        straight = domains.least(c, torch.zeros_like(weight), middle)
        nearest = (c * x[:, None]).flatten(2).sum(2).amin(0)
        assert bool((straight <= nearest + 1e-9).all())
        assert bool((straight >= nearest - 0.05).all())


@pytest.mark.parametrize("name", ["image", "two readers"])
def test_maps_and_transposes_have_each_other_as_gradients(name: str) -> None:
    case = Case(name, DOMAINS["l2"])
    for maps in case.question().plan.maps.values():
        for both in maps:
            x = torch.randn(2, *both.linear.in_shape, dtype=F64, requires_grad=True)
            y = torch.randn(2, *both.linear.out_shape, dtype=F64, requires_grad=True)
            assert torch.allclose((both.apply(x) * y).sum(), (x * both.transpose(y)).sum())
            assert torch.autograd.gradcheck(both.apply, (x,))
            assert torch.autograd.gradcheck(both.transpose, (y,))
            assert torch.allclose(both.transpose(y[:1]), both.transpose(y)[:1])


def test_diagonal_weights_are_as_small_as_they_may_be() -> None:
    """λ of the dense matrix, over several parents at once, and its gradient by finite differences."""
    case = Case("two readers", DOMAINS["l2"], count=3)
    plan = case.question().plan
    k = next(k for k in plan.bent if len(plan.linked(k)) > 1)
    node, generator = case.network.nodes[k], _generator(6)
    total = torch.randn(3, *node.shape, generator=generator, dtype=F64).exp().requires_grad_(True)
    logs = {
        i: torch.randn(3, *plan.parent_shape((k, i)), generator=generator, dtype=F64).requires_grad_(True)
        for i in plan.linked(k)
    }
    matrix = torch.cat([m.matrix() for m in node.maps], dim=1)  # type: ignore[attr-defined]

    def exact(d: Tensor, *t: Tensor) -> Tensor:
        roots = torch.cat([(-0.5 * s).exp().flatten(1) for s in t], dim=1)
        through = matrix * roots[:, None]
        gram = through.mT @ (d.flatten(1)[:, :, None] * through)
        return torch.linalg.eigvalsh(gram)[:, -1]

    directions = random_directions(plan, k, 3, case.rows, generator)
    weights = scaled_weights(plan, k, total, logs, directions, 400)
    wanted = exact(total, *logs.values())
    for i, t in weights.items():
        assert torch.allclose(t, logs[i].exp() * wanted.reshape(-1, 1, 1), rtol=1e-6)
    mine = torch.autograd.grad(sum(t.log().mean() for t in weights.values()), [total, *logs.values()])
    share = sum((logs[i] + wanted.log().reshape(-1, 1, 1)).mean() for i in weights)
    theirs = torch.autograd.grad(share, [total, *logs.values()])
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    fresh = random_directions(plan, k, 3, case.rows, generator)
    held = {i: t.detach() for i, t in weights.items()}
    assert torch.allclose(excess(plan, k, total.detach(), held, fresh, 40), torch.ones(3, dtype=F64), rtol=1e-6)


SEEDS = [pytest.param(k, marks=[pytest.mark.slow] * (k >= 6)) for k in range(40)]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks_are_bounded_and_none_is_refused(seed: int) -> None:
    """Whatever they are made of: what the search finds is proved, and no value within the domain is below."""
    zoo = random_network(seed)
    flat = zoo.example[0].reshape(-1).double()
    radius, p = 0.1 * (1.0 + seed % 3), (2.0, math.inf, 1.0)[seed % 3]
    network = Problem(capture(zoo.model, zoo.example[:1]), domain=Ball(zoo.example[0], radius, p)).expanded
    domain = Ball(flat.reshape(network.in_shape), radius, p)
    setting, plan = Setting(Facts(network, Chance()), domain, False), Plan(network, {})
    norms = {k: tuple(n.value for n in setting.facts.norms(k)) for k in plan.affine}
    outputs = math.prod(network.out_shape)
    rows = torch.randn(3, outputs, generator=_generator(seed), dtype=F64)
    refused = []

    def prove(index: Tensor, multipliers: Multipliers) -> Tensor:
        try:
            return lower_bounds(setting, rows[index], multipliers)[0]
        except NotProved as error:
            refused.append(error)
            return torch.full((len(index),), -math.inf, dtype=F64)

    boxes = [(b.low[None], b.high[None]) for b in setting.boxes]
    start = domain.center.expand(3, *network.in_shape)
    settings = Settings(goal=None, steps=25, warm=10)
    zero = torch.zeros(3, dtype=torch.int64)
    found = ascend(network, norms, boxes, as_domains(domain), rows, zero, start, settings, prove)
    x = domain.center + radius * torch.randn(200, *network.in_shape, generator=_generator(1), dtype=F64)
    least = (network.forward(domain.project(x)).reshape(200, -1) @ rows.T).amin(0)
    assert not refused
    assert bool((found.proved <= least + 1e-7 * (1.0 + least.abs())).all())
    assert bool(found.value.isfinite().all())
    if max(float(box.greatest.max()) for box in setting.boxes) < 1e3:  # beyond, float32 and parts of ranges are coarse
        assert bool((found.proved >= found.value - 0.02 * (1.0 + found.value.abs())).all()), (found.proved, found.value)


def test_a_function_goes_on_alone_as_it_would_among_others() -> None:
    """Rows that leave take nothing along: variables, Adam's state and the power method are per function."""
    case = Case("two readers", DOMAINS["linf"])
    settings = Settings(dtype=F64, small=1)
    points = case.domain.home().expand(len(case.rows), *case.network.in_shape)
    together = first_variables(case.question(), points, settings)
    for step in range(6):
        if step == 3:
            together.release(together.question.plan.bent)
        together.ascend(0.03)
    alone = together.at(torch.tensor([2]))
    for _ in range(4):
        together.ascend(0.03)
        alone.ascend(0.03)
    assert torch.allclose(together.value(2)[2], alone.value(2)[0], rtol=1e-9)


def test_chunks_find_what_one_batch_finds() -> None:
    case = Case("relu", DOMAINS["l2"], count=5)
    whole, _ = case.search(dtype=F64)
    parts, _ = case.search(dtype=F64, chunk=1)
    assert torch.allclose(whole, parts, rtol=1e-6, atol=1e-9)


def test_functions_leave_when_they_are_proved() -> None:
    """With a goal the search asks for proofs on the way, each function's only until it has one."""
    case = Case("relu", DOMAINS["l2"], count=6)
    _, high = case.search(steps=100)
    asked: list[int] = []
    inner = case.prove

    def prove(index: Tensor, multipliers: Multipliers) -> Tensor:
        asked.extend(index.tolist())
        assert all(t.dtype == F64 and len(t) == len(index) for t in multipliers.slope.values())
        return inner(index, multipliers)

    case.prove = prove  # type: ignore[method-assign]
    goal = float(high.median()) - 1e-3
    _, proved = case.search(steps=100, every=5, goal=goal)
    reached = (proved > goal).nonzero().reshape(-1).tolist()
    assert len(reached) >= 3
    assert all(asked.count(k) == 1 for k in reached)
    assert not [k for k in asked if k not in reached]


def test_a_refused_proof_is_tried_again_with_more_room() -> None:
    case = Case("relu", DOMAINS["l2"], count=2)
    rooms: list[float] = []
    inner = case.prove

    def prove(index: Tensor, multipliers: Multipliers) -> Tensor:
        rooms.append(
            float(
                multipliers.weight[min(multipliers.weight)].sum()
                / multipliers.curvature[min(multipliers.curvature)].sum()
            )
        )
        return torch.full((len(index),), -math.inf, dtype=F64) if len(rooms) < 3 else inner(index, multipliers)

    case.prove = prove  # type: ignore[method-assign]
    case.search(steps=40, every=10, goal=-100.0)
    assert len(rooms) == 3


def test_empty_batches_and_radius_zero() -> None:
    case = Case("relu", Ball(CENTRE, 0.0, 2))
    _value, proved = case.search(steps=5)
    exact = (case.model(torch.tensor([CENTRE], dtype=F64)) * case.rows).sum(1).detach()
    assert torch.allclose(proved, exact, atol=1e-4)
    assert bool((proved <= exact).all())
    nobody = without_rows(case)
    assert [len(t) for t in nobody.search(steps=5)] == [0, 0]


def without_rows(case: Case) -> Case:
    case.rows, case.example = case.rows[:0], case.example[:0]
    return case
