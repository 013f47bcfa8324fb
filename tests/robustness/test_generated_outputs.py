"""Output bounds of 300 generated networks of every kind, against an attack, samples and grids; none may be false."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.attack.adversarial import lowest
from lipcert.capture.torch_export import capture
from tests.zoo import ACTIVATIONS, Apply, Branches, Concat, Double, Residual, max_min

DOUBLE = torch.float64
NAMES = list(ACTIVATIONS)
Sizes = random.Random


# -- networks ------------------------------------------------------------------------------------------------------


def filled(model: nn.Module, seed: int) -> nn.Module:
    """Weights of about the size 1/√fan-in, times up to 2; batch norms with statistics of their own."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                fan = module.weight[0].numel()
                size = 1.5 * torch.randn(module.weight.shape, generator=generator) / fan**0.5
                module.weight.copy_(size)
                if module.bias is not None:
                    module.bias.copy_(0.5 * torch.randn(module.bias.shape, generator=generator))
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(uniform(module.running_mean, -0.5, 0.5))
                module.running_var.copy_(uniform(module.running_var, 0.2, 2.0))
                module.weight.copy_(uniform(module.weight, -1.5, 1.5))
                module.bias.copy_(uniform(module.bias, -0.5, 0.5))
    return model.eval()


Activation = Callable[[], nn.Module]


def chain(act: Activation, sizes: Sizes) -> tuple[nn.Module, tuple[int, ...]]:
    n, widths = sizes.randint(1, 4), [sizes.randint(2, 8) for _ in range(sizes.randint(1, 3))]
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip([n, *widths], widths, strict=False):
        layers += [nn.Linear(fan_in, fan_out), act()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], sizes.randint(1, 3))), (n,)


def residual(act: Activation, sizes: Sizes) -> tuple[nn.Module, tuple[int, ...]]:
    n, m = sizes.randint(2, 3), sizes.randint(3, 6)
    inner = [nn.Sequential(nn.Linear(m, m), act(), nn.Linear(m, m)) for _ in range(2)]
    first = nn.Sequential(nn.Linear(n, m), nn.BatchNorm1d(m), act(), Residual(inner[0]))
    return nn.Sequential(first, act(), Residual(inner[1], sizes.choice([1.0, -0.5])), nn.Linear(m, 2)), (n,)


def concatenation(act: Activation, sizes: Sizes) -> tuple[nn.Module, tuple[int, ...]]:
    n, a, b = sizes.randint(2, 3), sizes.randint(2, 4), sizes.randint(2, 4)
    left = nn.Sequential(nn.Linear(n, a), act())
    right = nn.Sequential(nn.Linear(n, b), act(), nn.Linear(b, b))
    return nn.Sequential(Concat(left, right), nn.Linear(a + b, 5), act(), nn.Linear(5, 2)), (n,)


def branches(act: Activation, sizes: Sizes) -> tuple[nn.Module, tuple[int, ...]]:
    n = sizes.randint(2, 3)
    one, other = (nn.Sequential(nn.Linear(n, 4), act(), nn.Linear(4, 4)) for _ in range(2))
    return nn.Sequential(Branches(one, other), Apply(max_min), nn.Linear(4, 3), act(), nn.Linear(3, 2)), (n,)


def image(act: Activation, sizes: Sizes) -> tuple[nn.Module, tuple[int, ...]]:
    channels, side, stride = sizes.randint(1, 2), sizes.randint(4, 6), sizes.randint(1, 2)
    wide, mode = sizes.randint(2, 3), sizes.choice(["zeros", "zeros", "circular"])
    out = (side - 1) // stride + 1
    layers = [nn.Conv2d(channels, wide, 3, stride, 1, padding_mode=mode), nn.BatchNorm2d(wide), act()]
    if out >= 2:
        layers.append(sizes.choice([nn.MaxPool2d(2), nn.MaxPool2d(2, 1), nn.AvgPool2d(2)]))
        out = out // 2 if layers[-1].stride == 2 else out - 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(wide * out * out, 3)), (channels, side, side)


def deep_image(act: Activation, sizes: Sizes) -> tuple[nn.Module, tuple[int, ...]]:
    side, groups = sizes.randint(4, 5), sizes.choice([1, 2])
    inner = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, groups=groups), nn.BatchNorm2d(2), act())
    first = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), act(), nn.MaxPool2d(2, 1))
    head = nn.Sequential(nn.Flatten(), nn.Linear(2 * (side - 1) ** 2, 4), act(), nn.Linear(4, 2))
    return nn.Sequential(first, Residual(inner), head), (1, side, side)


def pooled(act: Activation, sizes: Sizes) -> tuple[nn.Module, tuple[int, ...]]:
    n, size = sizes.randint(2, 3), sizes.randint(2, 3)
    pool = sizes.choice([nn.MaxPool1d, nn.AvgPool1d])(size, 1)
    conv = Apply(lambda s, x: s.pool(s.conv(x.unsqueeze(1))).flatten(1), conv=nn.Conv1d(1, 2, 3, padding=1), pool=pool)
    return nn.Sequential(nn.Linear(n, 6), act(), conv, act(), nn.Linear(2 * (7 - size), 2)), (n,)


KINDS = (chain, residual, concatenation, branches, image, deep_image, pooled)
DOMAINS = ("ball 2", "ball inf", "box", "ball 1", "ball 2 in box", "ball inf in box", "ball 1 in box", "flat box")
SEEDS = 300


@dataclass(frozen=True, eq=False)
class Instance:
    model: nn.Module
    shape: tuple[int, ...]
    domain: lipcert.Ball | lipcert.Box | lipcert.Intersection


def instance(seed: int) -> Instance:
    """Every activation in eight networks or more, every kind with every domain."""
    sizes = random.Random(seed)
    model, shape = KINDS[seed % len(KINDS)](ACTIVATIONS[NAMES[seed % len(NAMES)]], sizes)
    kind = DOMAINS[(seed // len(KINDS)) % len(DOMAINS)]
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(shape, generator=generator, dtype=DOUBLE)
    radius = sizes.choice([0.03, 0.3, 1.0])
    low, high = (centre + sign * radius * torch.rand(shape, generator=generator, dtype=DOUBLE) for sign in (-1.0, 1.0))
    if kind == "flat box":  # every other coordinate is fixed
        fixed = torch.arange(centre.numel()).reshape(shape) % 2 == 1
        low, high = torch.where(fixed, centre, low), torch.where(fixed, centre, high)
    domain = lipcert.Box(low, high)
    if kind.startswith("ball"):
        ball = lipcert.Ball(centre, radius, float(kind.split()[1]))
        domain = lipcert.Intersection(ball, domain) if kind.endswith("box") else ball  # type: ignore[assignment]
    return Instance(filled(model, seed), shape, domain)


# -- what they put out -----------------------------------------------------------------------------------------------


def points(domain: lipcert.Ball | lipcert.Box | lipcert.Intersection, shape: tuple[int, ...]) -> Tensor:
    """Points of a domain: a fine grid where there are one or two coordinates, and random ones near and on its edge."""
    low, high = domain.bounds()
    n = low.numel()
    generator = torch.Generator().manual_seed(0)
    shares = [torch.rand(400, n, generator=generator, dtype=DOUBLE), torch.randint(0, 2, (400, n), generator=generator)]
    if n <= 2:
        side = torch.linspace(0.0, 1.0, {1: 2001, 2: 61}[n], dtype=DOUBLE)
        shares.append(torch.cartesian_prod(*[side] * n).reshape(-1, n))
    share = torch.cat([s.double() for s in shares])
    x = (low.reshape(-1) + share * (high - low).reshape(-1)).reshape(-1, *shape)
    pulled = domain.project(x)
    inside = ((pulled >= low) & (pulled <= high)).reshape(len(x), -1).all(dim=1)
    for ball in domain.balls():  # what rounding may have put outside is left out
        distance = (pulled - ball.center).reshape(len(x), -1).norm(p=ball.p, dim=1)
        inside &= distance * (1.0 + 1e-13) <= ball.radius
    return pulled[inside]


def check(seed: int, path: Path) -> None:
    it = instance(seed)
    example = torch.zeros(1, *it.shape)
    bound = lipcert.output_bounds(it.model, example, it.domain, budget=0.2)
    assert bool((bound.lower <= bound.upper).all())
    assert bound.guarantee == "rigorous"
    network = capture(it.model, example)
    eye = torch.eye(len(bound.lower), dtype=DOUBLE)
    found = lowest(network, [it.domain], torch.cat([eye, -eye]), seed=1).values[0]
    assert bool((bound.lower <= found[: len(eye)]).all())
    assert bool((bound.upper >= -found[len(eye) :]).all())
    x = points(it.domain, it.shape)
    assert len(x) > 100
    with torch.no_grad():
        y = Double(it.model)(x).reshape(len(x), -1)
    slack = 1e-12 * (1.0 + float(y.abs().max()))
    assert bool((bound.lower - slack <= y.amin(dim=0)).all())
    assert bool((bound.upper + slack >= y.amax(dim=0)).all())
    bound.save(path)
    again = lipcert.verify(path, it.model, example)
    assert torch.equal(again.lower, bound.lower)
    assert torch.equal(again.upper, bound.upper)


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_generated_networks(seed: int, tmp_path: Path) -> None:
    """No point of the domain, by attack, chance or grid, lies outside; the certificate proves the same."""
    check(seed, tmp_path / "o.lipcert")
