"""The quadratic form in plain floating point, one problem or many: the same values, and the same repair."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lipcert.capture.torch_export import capture
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights
from lipcert.errors import NotProved
from lipcert.increments import Cell, ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.branch_ascent import FREE, Neurons
from lipcert.methods.branch_form import BatchForm
from lipcert.problem import Problem
from lipcert.search.float_form import repaired, sufficient


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


MODELS = {
    "chain": lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)),
    "skip": lambda: nn.Sequential(Skip(), nn.LeakyReLU(0.2), Skip(), nn.ReLU(), nn.Linear(6, 3)),
    "pool": lambda: nn.Sequential(nn.Linear(6, 12), nn.MaxPool1d(3), nn.ReLU(), nn.Linear(4, 3)),
    "softmax": lambda: nn.Sequential(nn.Linear(6, 5), nn.Softmax(-1), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)),
}


def scaled(name: str) -> ScaledIncrements:
    torch.manual_seed(3)
    increments = Problem(capture(MODELS[name]().eval(), torch.zeros(1, 6))).expanded_increments
    return ScaledIncrements(increments, natural_exponents(increments))


@pytest.mark.parametrize("spread", [0.3, 6.0])
@pytest.mark.parametrize("name", list(MODELS))
def test_one_problem_and_many_are_repaired_alike(name: str, spread: float) -> None:
    """Multipliers up to e^±spread: too small ones need the repair, and both do the same to them."""
    increments = scaled(name)
    form, neurons = DenseForm(increments), Neurons(increments)
    generator = torch.Generator().manual_seed(1)
    shape = (5, neurons.count)
    rows = torch.exp(spread * (2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0))
    parts = neurons.split(rows)
    for cell in increments.cells:
        if cell.block:
            parts[cell.node][:] = parts[cell.node][:, :1]
    margin = torch.full((5,), 1e-3, dtype=torch.float64)
    free = torch.full(shape, FREE, dtype=torch.int8)
    rho, chosen = BatchForm(form, neurons).least_rho(free, rows, torch.zeros(5, dtype=torch.float64), margin)
    relations = increments.increments.relations
    weights = Weights(*(torch.ones(relations[k].size, dtype=torch.float64) for k in (0, -1)))
    for row in range(5):
        own = {c.node: parts[c.node][row, :1] if c.block else parts[c.node][row] for c in increments.cells}
        try:
            values, alone = repaired(form, own, 1e-3, weights)
        except NotProved:  # no matter of single neurons
            assert float(rho[row]) == math.inf
            continue
        assert float(rho[row]) == pytest.approx(alone, rel=1e-6)
        for cell in increments.cells:
            many = neurons.split(chosen)[cell.node][row]
            assert torch.allclose(many, values[cell.node].expand(many.shape), rtol=1e-6)


def entries(size: int) -> tuple[Cell, ...]:
    torch.manual_seed(size)
    model = nn.Sequential(nn.Linear(4, size), nn.ReLU(), nn.Linear(size, 2)).eval()
    return Problem(capture(model, torch.zeros(1, 4))).expanded_increments.cells


def test_what_is_sufficient_is_above_the_curvature_and_large_enough_multipliers_stay() -> None:
    (cell,) = entries(6)
    curvature = torch.tensor([[1.0, 1.0, 1.0, 0.0, 1e-40, 5.0]], dtype=torch.float64).expand(2, 6)
    given = torch.tensor([[0.0, 1.0, 3.0, 0.0, -1.0, -1.0]], dtype=torch.float64).expand(2, 6)
    margin = torch.tensor([[1e-6], [1e-1]], dtype=torch.float64)
    c, d = (torch.full((1, 6), 0.5, dtype=torch.float64) for _ in range(2))
    blind = torch.zeros(6, dtype=torch.bool)
    found = sufficient(cell, given, curvature, 0.0 * curvature, c, d, margin, blind)
    assert bool((found > curvature * (1.0 + margin / 2)).all())
    assert found[:, 0].tolist() == pytest.approx([2.0, 2.0])  # Q (1 + |c|/d) is cheapest
    assert found[:, 2].tolist() == [3.0, 3.0]
    assert bool((found[:, 4:] >= 1e3 * curvature[:, 4:]).all())  # marked as free of cost
    noisy = sufficient(cell, given, curvature, curvature + 1.0, c, d, margin, blind)
    assert bool((noisy[:, :4] >= curvature[:, :4] + 1.0).all())
    blind[0] = True
    assert float(sufficient(cell, given, curvature, 0.0 * curvature, c, d, margin, blind)[0, 0]) == 5e8
