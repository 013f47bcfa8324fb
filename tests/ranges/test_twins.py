"""Two activations of one value: [sin, cos], CReLU and the like against sampled slopes, attacks, and each other."""

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
from lipcert.domain import Ball
from lipcert.increments import BlockCell, EntryCell
from lipcert.problem import Problem
from tests.zoo import Apply

D = torch.float64

#: name: (functions of one value, constant of [them] in l2).
PAIRS: dict[str, tuple[Callable[[Tensor], list[Tensor]], float]] = {
    "sin, cos": (lambda x: [x.sin(), x.cos()], 1.0),
    "cos, sin of 3x": (lambda x: [(3 * x).cos(), (3 * x).sin()], 3.0),
    "octaves": (lambda x: [f(2.0**i * x) for i in range(3) for f in (torch.sin, torch.cos)], math.sqrt(21)),
    "relu": (lambda x: [F.relu(x), F.relu(-x)], 1.0),
    "relu, negative first": (lambda x: [F.relu(-x), F.relu(x)], 1.0),
    "leaky": (lambda x: [F.leaky_relu(x, 0.1), F.leaky_relu(-x, 0.1)], math.sqrt(1.01)),
    "silu": (lambda x: [F.silu(x), F.silu(-x)], 1.1043615),
    "sigmoid": (lambda x: [torch.sigmoid(x), torch.sigmoid(-x)], ROOT_8 if (ROOT_8 := math.sqrt(2) / 4) else 0.0),
    "elu, not twins": (lambda x: [F.elu(x), F.elu(-x)], math.sqrt(2.0)),
}


def concatenated(name: str) -> nn.Module:
    return Apply(lambda _, x: torch.cat(PAIRS[name][0](x), 1)).eval()


@pytest.mark.few(3)
@pytest.mark.parametrize("name", PAIRS)
def test_constants_of_concatenations(name: str) -> None:
    x = torch.zeros(1, 3, dtype=D)
    truth = PAIRS[name][1]
    line = torch.linspace(-9, 9, 20001, dtype=D)
    slopes = sum((torch.func.vmap(torch.func.grad(lambda t, i=i: PAIRS[name][0](t)[i]))(line)) ** 2 for i in range(2))
    if len(PAIRS[name][0](line)) == 2:
        assert float(torch.as_tensor(slopes).max().sqrt()) == pytest.approx(truth, rel=1e-5)
    for method in ("auto", "autolip", "lipsdp"):
        value = lipcert.bound(concatenated(name), x, method=method, budget=1).value
        assert truth * (1 - 1e-6) <= value <= truth * 1.001


def deep(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    parts = len(PAIRS[name][0](torch.zeros(1)))
    return nn.Sequential(
        nn.Linear(3, 5), concatenated(name), nn.Linear(5 * parts, 4), concatenated(name), nn.Linear(4 * parts, 2)
    ).double().eval()  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_order_of_methods_and_certificates(name: str, tmp_path: Path) -> None:
    model, x = deep(name), torch.zeros(1, 3, dtype=D)
    low = lipcert.lower_bound(model, x, budget=0.3).value
    values = {}
    for method in ("lipsdp", "lipsdp_ipm", "lipsdp_layer", "branch_and_bound", "liplt", "autolip"):
        bound = lipcert.bound(model, x, method=method, budget=1)
        values[method] = bound.value
        assert low <= bound.value
        bound.save(tmp_path / "c.lipcert")
        assert lipcert.verify(tmp_path / "c.lipcert", model, x).value == bound.value
    assert values["lipsdp"] <= values["lipsdp_ipm"] * 1.005
    assert values["lipsdp_ipm"] <= values["lipsdp_layer"] * 1.001
    assert values["lipsdp"] <= min(values["liplt"], values["autolip"]) * 1.001
    for norm in ((math.inf, 2), (2, math.inf), (1, 1), (math.inf, math.inf)):
        bound = lipcert.bound(model, x, norm=norm, budget=1)
        assert lipcert.lower_bound(model, x, norm=norm, budget=0.2).value <= bound.value
    free = lipcert.bound(model, x, method=lipcert.LipSDP(route="matrix_free"), budget=2).value
    assert low <= free <= values["lipsdp"] * 1.01


@pytest.mark.few(1)
@pytest.mark.parametrize("name", PAIRS)
def test_on_balls(name: str) -> None:
    """Above an attack, nearly the Jacobian's norm on a small ball, and never above what holds everywhere."""
    model, x = deep(name), torch.zeros(1, 3, dtype=D)
    everywhere = lipcert.bound(model, x, budget=6).value
    point = torch.tensor([0.3, -0.2, 0.5], dtype=D)
    jacobian = torch.func.jacrev(lambda z: model(z[None])[0])(point).detach()
    for radius in (1e-4, 0.1, 2.0, 50.0):
        bound = lipcert.bound(model, x, domain=Ball(point, radius), budget=3).value
        assert lipcert.lower_bound(model, x, domain=Ball(point, radius), budget=0.2).value <= bound
        assert bound <= everywhere * 1.001
        if radius == 1e-4:
            assert bound <= float(torch.linalg.matrix_norm(jacobian, 2)) * 1.01


def test_relations_hold_between_points() -> None:
    """What blocks and linear relations say, at pairs of points, of the values themselves."""
    for name in PAIRS:
        problem = Problem(capture(deep(name), torch.zeros(1, 3, dtype=D)))
        network = problem.network
        x, y = (3 * torch.randn(200, 1, 3, dtype=D, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
        values = [dict(network.values(z)) for z in (x, y)]
        kept = {k: (values[0][k] - values[1][k]) for k in values[0]}
        relations = problem._whole_increments.relations
        for k, relation in enumerate(relations):
            if isinstance(relation, BlockCell):  # sin and cos
                partner = next(
                    j for j, r in enumerate(relations) if r.parents == (k,) and r.shape == network.nodes[k].shape
                )
                pair = torch.stack([kept[k], kept[partner]]).square().sum(0)
                assert bool((pair <= kept[relation.parent].square() * (1 + 1e-12) + 1e-24).all())
            elif not isinstance(relation, EntryCell) and hasattr(relation, "maps"):
                parts = [p for p in relation.parents if isinstance(relations[p], BlockCell)]
                if not parts:
                    image = sum(m.apply(kept[p]) for p, m in zip(relation.parents, relation.maps, strict=True))
                    assert torch.allclose(torch.as_tensor(image), kept[k], atol=1e-12)


def test_a_reader_that_is_an_activation() -> None:
    """tanh(sin(v)) beside cos(v): readers of a pair that are no linear maps."""
    w = torch.randn(3, 6, dtype=D, generator=torch.Generator().manual_seed(0))
    model = Apply(lambda _, x: torch.cat([torch.tanh(x.sin()), x.cos()], 1) @ w.T).eval()
    x = torch.zeros(1, 3, dtype=D)
    low = lipcert.lower_bound(model, x, budget=0.3).value
    for method in ("autolip", "liplt", "lipsdp"):
        assert low <= lipcert.bound(model, x, method=method, budget=1).value


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(30))
def test_generated_networks(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    names = list(PAIRS)
    name = names[seed % len(names)]
    model = deep(name, seed)
    tail = seed % 3
    if tail:
        inner = model
        loss = (lambda z: -F.log_softmax(z, 1)[:, :1]) if tail == 1 else (lambda z: z.amax(1, keepdim=True))
        model = nn.Sequential(inner, Apply(lambda _, z: loss(z))).eval()
    x = torch.zeros(1, 3, dtype=D)
    norm = ((2.0, 2.0), (math.inf, math.inf), (1.0, 1.0), (2.0, math.inf))[seed % 4]
    ball = None if seed % 2 else Ball(torch.randn(3, generator=generator, dtype=D), 10.0 ** (seed % 5 - 3))
    bound = lipcert.bound(model, x, norm=norm, domain=ball, budget=1)
    assert lipcert.lower_bound(model, x, norm=norm, domain=ball, budget=0.3).value <= bound.value
