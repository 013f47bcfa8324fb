"""Nodes of several values in the cost-to-go: any part of their cost may go through linear bounds, the rest is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.cost_to_go.multipliers import Multipliers, handed
from lipcert.certificates.cost_to_go.walk import lower_bounds
from lipcert.certificates.outputs import Subject


class Gated(nn.Module):
    """A gate, a product and a softmax, each read by what follows."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which
        self.first, self.second, self.last = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        if self.which == "gate":
            z = torch.sigmoid(a) * b
        elif self.which == "product":
            z = torch.relu(a * b)
        else:
            z = torch.softmax(a, -1) * torch.tanh(b)
        return self.last(z)


def _case(which: str) -> tuple[nn.Module, Tensor, lipcert.Ball, Tensor]:
    torch.manual_seed(len(which))
    model = Gated(which).double().eval()
    x = torch.randn(1, 3, dtype=torch.float64)
    ball = lipcert.Ball(x[0], 0.4)
    ways = torch.randn(5000, 3, dtype=torch.float64)
    points = x + 0.4 * torch.rand(5000, 1, dtype=torch.float64) ** 0.2 * ways / ways.norm(dim=1, keepdim=True)
    return model, x, ball, points


@pytest.mark.parametrize("which", ["gate", "product", "softmax"])
def test_any_part_may_be_handed_on(which: str) -> None:
    model, x, ball, points = _case(which)
    network = capture(model, x)
    subject = Subject(network)
    setting = subject.setting(subject.facts, ball.fitted(network.in_shape), True)
    assert setting.planes
    rows = torch.randn(20, 2, dtype=torch.float64)
    least = (model(points) @ rows.T).amin(0)
    generator = torch.Generator().manual_seed(0)
    nodes, best = subject.network.nodes, torch.full((20,), -torch.inf, dtype=torch.float64)
    for scale in (0.0, 0.1, 1.0, 10.0):
        slope = {
            k: scale * torch.randn(20, *handed(node), generator=generator, dtype=torch.float64)
            for k, node in enumerate(nodes)
            if k
        }
        value, _ = lower_bounds(setting, rows, Multipliers(slope=slope))
        assert bool((value <= least).all())
        best = torch.maximum(best, value)
    assert bool(best.isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("which", ["gate", "softmax"])
def test_the_search_beats_linear_bounds(which: str) -> None:
    model, x, ball, points = _case(which)
    found = lipcert.output_bounds(model, x, ball)
    network = capture(model, x)
    subject = Subject(network)
    plain = subject.setting(subject.facts, ball.fitted(network.in_shape), True).plain(torch.eye(2, dtype=torch.float64))
    lower = torch.as_tensor(found.lower).reshape(-1)
    assert bool((lower <= model(points).amin(0) + 1e-12).all())
    assert bool((lower >= plain - 1e-9).all())
    assert bool((lower > plain + 1e-3).any())
