"""The ascent on problems that differ in their slopes: each as if it were alone, and exact where it is linear."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lipcert.capture.torch_export import capture
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.branch_ascent import FREE, Climber, Vectors
from lipcert.problem import Problem
from lipcert.search.passes import Passes
from lipcert.search.vector_neuron import VectorNeuron


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(sum(widths))
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, dtype=torch.float64), activation()]
    return nn.Sequential(*layers[:-1]).eval()


def scaled(model: nn.Module, *shape: int) -> ScaledIncrements:
    increments = Problem(capture(model, torch.zeros(1, *shape, dtype=torch.float64))).expanded_increments
    return ScaledIncrements(increments, natural_exponents(increments))


def patterns(count: int, width: int, share_free: float = 0.3) -> Tensor:
    draw = torch.rand(count, width, generator=torch.Generator().manual_seed(5))
    ends = (torch.rand(count, width, generator=torch.Generator().manual_seed(6)) < 0.5).to(torch.int8)
    return torch.where(draw < share_free, torch.tensor(FREE, dtype=torch.int8), ends)


def test_nodes_of_a_batch_climb_as_if_they_were_alone() -> None:
    climber = Climber(scaled(mlp(5, 7, 6, 3), 5))
    rows, start = patterns(6, 13), climber.random(6, 4, torch.Generator().manual_seed(1))
    together = climber.run(rows, start, 25)
    for row in range(6):
        one = torch.tensor([row])
        alone = climber.run(rows[one], start.take(one), 25)
        assert torch.allclose(together.rho[one], alone.rho, rtol=1e-9)
        for name in ("multipliers", "strength", "cosine", "y"):
            mine, theirs = getattr(together, name)[one], getattr(alone, name)
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-7 * float(theirs.abs().max())), name


def test_where_all_neurons_are_fixed_the_value_is_the_norm_of_a_product_of_matrices() -> None:
    model = mlp(5, 7, 6, 3)
    increments = scaled(model, 5)
    climber, rows = Climber(increments), patterns(8, 13, 0.0)
    found = climber.run(rows, climber.random(8, 3, torch.Generator().manual_seed(2)), 3000)
    w1, w2, w3 = (layer.weight.detach() for layer in model if isinstance(layer, nn.Linear))
    for row, rho in zip(rows.double(), found.rho, strict=True):
        norm = torch.linalg.matrix_norm(w3 @ torch.diag(row[7:]) @ w2 @ torch.diag(row[:7]) @ w1, 2)
        assert float(rho.sqrt()) * 2.0 ** increments.exponents[-1] == pytest.approx(float(norm), rel=1e-5)
    assert bool((found.multipliers == 0).all())


def test_the_best_point_is_kept_and_its_value_is_what_a_run_says() -> None:
    climber = Climber(scaled(mlp(4, 9, 8, 2, activation=nn.Tanh), 4))
    rows = torch.full((3, 17), FREE, dtype=torch.int8)
    found = climber.run(rows, climber.random(3, 5, torch.Generator().manual_seed(3)), 40)
    again = climber.run(rows, found.vectors, 1)
    assert torch.equal(again.rho, found.rho)
    longer = climber.run(rows, found.vectors, 40)
    assert bool((longer.rho >= found.rho).all())


def test_free_nodes_reach_what_lipsdp_s_own_search_reaches() -> None:
    increments = scaled(mlp(6, 10, 10, 4), 6)
    search = VectorNeuron(Passes(increments), (2.0, 2.0), 8, torch.Generator().manual_seed(0))
    for _ in range(1500):
        search.step()
    climber = Climber(increments)
    found = climber.run(
        torch.full((1, 20), FREE, dtype=torch.int8), climber.random(1, 8, torch.Generator().manual_seed(7)), 1500
    )
    assert float(found.rho) == pytest.approx(float(search.rho), rel=1e-6)
    mine = torch.cat([search.multipliers[cell.node][0] for cell in increments.cells])
    assert torch.allclose(found.multipliers[0], mine, rtol=1e-2, atol=1e-2 * float(mine.max()))


def test_a_network_without_neurons_and_one_whose_output_is_constant() -> None:
    linear = Climber(scaled(mlp(4, 3), 4))
    found = linear.run(torch.zeros(2, 0, dtype=torch.int8), linear.random(2, 2, torch.Generator()), 5)
    assert found.multipliers.shape == (2, 0)
    assert bool((found.rho > 0).all())
    model = mlp(4, 5, 3)
    with torch.no_grad():
        model[2].weight.zero_()
    constant = Climber(scaled(model, 4))
    start = constant.random(2, 2, torch.Generator().manual_seed(1))
    found = constant.run(torch.full((2, 5), FREE, dtype=torch.int8), Vectors(start.x, start.units), 5)
    assert float(found.rho.abs().max()) == 0.0
    assert bool(torch.isfinite(found.vectors.x).all())
    assert bool(torch.isfinite(found.vectors.units).all())
