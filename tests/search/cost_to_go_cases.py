"""Small networks on domains, as the search of the cost-to-go and its check see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
from lipcert.search.cost_to_go.ascent import Found, ascend
from lipcert.search.cost_to_go.dual import Question
from lipcert.search.cost_to_go.inputs import Domains
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.settings import Settings
from lipcert.search.cost_to_go.variables import Variables
from tests.zoo import Apply, Concat, Residual

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
        x = low + (high - low) * torch.rand(count, *self.network.in_shape, generator=generator_of(1), dtype=F64)
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
        found = self.found(chosen)
        return found.value, found.proved

    def found(self, settings: Settings, begun: Sequence[Variables | None] = ()) -> Found:
        start = self.domain.home().expand(len(self.rows), *self.network.in_shape)
        return ascend(
            self.network, self.norms, self.boxes, self.domains, self.rows, self.example, start, settings, self.prove,
            begun=begun,
        )  # fmt: skip


def generator_of(seed: int) -> torch.Generator:
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
    generator, question = generator_of(seed), case.question()
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
