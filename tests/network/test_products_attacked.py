"""Generated networks with products, quotients and gates, attacked inside their domains: no bound is ever exceeded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.errors import LipcertError
from lipcert.methods.base import Run, registered
from lipcert.network.graph import Network
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem

D = torch.float64


class Random(nn.Module):
    """A few blocks, each of values that came before."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.n, self.kinds = 3, [self._draw(len(self.BLOCKS)) for _ in range(2 + self._draw(3))]
        sizes = [(4, 3)] + [(4, 4)] * (3 * len(self.kinds)) + [(2, 4)]
        self.maps = nn.ParameterList(nn.Parameter(self._randn(*size) * (0.4 + 0.3 * self._draw(3))) for size in sizes)

    def _draw(self, count: int) -> int:
        return int(torch.randint(count, (1,), generator=self.generator))

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=D)

    BLOCKS = (
        lambda x, a, b: torch.tanh(a) * torch.sigmoid(b),
        lambda x, a, b: nn.functional.glu(torch.cat([a, b], 1)),
        lambda x, a, b: x + a * torch.sigmoid(b),
        lambda x, a, b: a * torch.relu(b),
        lambda x, a, b: a / (1.5 + torch.sin(b)),
        lambda x, a, b: torch.sin(a) / (0.5 + b.abs().mean(1, keepdim=True)),
        lambda x, a, b: x * torch.sigmoid(a.mean(1, keepdim=True)) + torch.relu(b),
        lambda x, a, b: torch.cat([x[:, :2], x[:, 2:] * torch.exp(torch.tanh(a[:, :2])) + b[:, :2]], 1),
        lambda x, a, b: torch.sigmoid(a) * torch.tanh(b) + (1 - torch.sigmoid(a)) * x,
        lambda x, a, b: torch.relu(a) - torch.where(b > 0, b, 0.2 * b),
        lambda x, a, b: (a * b) * nn.functional.silu(x),
    )

    def forward(self, x: Tensor) -> Tensor:
        maps = list(self.maps)
        z = x @ maps[0].T
        for place, kind in enumerate(self.kinds):
            a, b, _ = (z @ m.T for m in maps[1 + 3 * place : 4 + 3 * place])
            z = type(self).BLOCKS[kind](z, a, b)
        return z @ maps[-1].T


NORMS: tuple[Norm, ...] = ((2.0, 2.0), (1.0, 1.0), (math.inf, math.inf), (math.inf, 1.0), (2.0, math.inf))


def attained(model: nn.Module, domain: lipcert.Ball, norm: Norm, anchor: bool, seed: int) -> float:
    """The greatest difference quotient of pairs in the domain, short ones along the worst of random directions."""
    generator = torch.Generator().manual_seed(seed)
    p, q = norm
    noise = torch.randn(4000, 3, generator=generator, dtype=D)
    steps = noise / noise.norm(p=domain.p, dim=1, keepdim=True) * domain.radius
    points = domain.center.reshape(1, 3) + steps * torch.rand(4000, 1, generator=generator, dtype=D).clamp(max=0.999)
    if anchor:
        a, b = points, domain.center.reshape(1, 3).expand_as(points)
    else:
        jacobians = torch.func.vmap(torch.func.jacrev(lambda z: model(z[None])[0]))(points[:500]).detach()
        corners = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=D)] * 3)[1:]
        corners = torch.cat([corners[corners.abs().sum(1) > 0], torch.linalg.svd(jacobians).Vh[:, 0][:50]])
        rates = torch.einsum("kij,dj->kdi", jacobians, corners).norm(p=q, dim=2) / corners.norm(p=p, dim=1)
        best = int(rates.flatten().argmax())
        a = points[:500][best // len(corners)].repeat(2000, 1)
        b = a + 1e-6 * domain.radius * corners[best % len(corners)]
        a, b = torch.cat([a[:1], points[:2000]]), torch.cat([b[:1], points[2000:]])
    with torch.no_grad():
        rise = (model(a) - model(b)).norm(p=q, dim=1)
    moved = (a - b).norm(p=p, dim=1)
    return float((rise / moved)[moved > 1e-9 * domain.radius].max())


def check(seed: int) -> int:
    """Bounds of one network; how many there were."""
    model = Random(seed).eval()
    centre = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=D)
    network: Network = capture(model, centre[None])
    radius, p = (1e-3, 0.1, 0.7)[seed % 3], (2.0, math.inf, 1.0)[seed // 3 % 3]
    domain, count = lipcert.Ball(centre, radius, p), 0
    for place, norm in enumerate((NORMS[seed % 5], NORMS[(seed + 2) % 5])):
        anchored = bool((seed + place) % 2)
        greatest = attained(model, domain, norm, anchored, seed)
        try:
            problem = Problem(network, norm, domain, None, centre if anchored else None)
        except LipcertError:
            assert seed % 3 == 2  # a denominator that may vanish, on the large domains only
            return count
        for name, kind in registered().items():
            if norm not in kind.norms or name == "seqlip":
                continue
            run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), budget=0.3)
            try:
                found = kind().bound(problem, run, Chance())
            except LipcertError:
                continue  # chains only, or no time
            assert greatest <= found.value * (1 + 1e-6), (seed, norm, name, anchored, greatest, found.value)
            count += 1
            if name == "lipsdp" and radius == 1e-3:
                assert found.value <= 1.2 * greatest + 1e-9, (seed, norm, anchored, greatest, found.value)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_no_bound_is_exceeded(seed: int) -> None:
    assert check(seed) > 0
