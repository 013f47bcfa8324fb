"""The transposed of maps and of increments, and the box of Jacobians: against matrices that slopes make."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.domain import Ball
from lipcert.errors import UnsupportedNormError
from lipcert.increments import BlockCell, EntryCell, Increments, Linear
from lipcert.increments.adjoint import adjoint
from lipcert.increments.jacobian import jacobian
from lipcert.network.adjoint import adjoint as turned
from lipcert.problem import Problem
from tests.zoo import ZOO, Double, random_network, zoo_case

NAMES = [row[0] for row in ZOO]


def with_slopes(increments: Increments, slopes: dict[str, Tensor]) -> Tensor:
    """The matrix that fixed slopes make; a block passes nothing on. Slopes are found by the cells' names."""

    def linear(_: int, relation: Linear, before: list[Tensor]) -> Tensor:
        images = [m.apply(v) for m, v in zip(relation.maps, before, strict=True)]
        return sum(images[1:], images[0]) if images else torch.zeros(n, *relation.shape, dtype=torch.float64)

    def cell(_: int, relation: EntryCell | BlockCell, before: Tensor) -> Tensor:
        if isinstance(relation, EntryCell):
            return slopes[relation.name] * before
        return torch.zeros(n, *relation.shape, dtype=torch.float64)

    n = increments.relations[0].size
    units = torch.eye(n, dtype=torch.float64).reshape(n, *increments.in_shape)
    with torch.no_grad():
        return increments.walk(lambda *_: units, linear, cell)[-1].reshape(n, -1).T  # type: ignore[arg-type]


@pytest.mark.few(6)
@pytest.mark.parametrize("name", NAMES)
def test_the_transposed_relations_make_the_transposed_matrices_and_the_box_holds_them(name: str) -> None:
    case = zoo_case(name)
    plain = Problem(capture(case.model, case.example)).reduced_increments
    named = Increments(tuple(replace(r, name=str(k)) for k, r in enumerate(plain.relations)))
    box, back = jacobian(named), adjoint(named)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        slopes = {}
        for relation in named.cells:
            if isinstance(relation, EntryCell):
                share = torch.rand(relation.shape, generator=generator, dtype=torch.float64).round()
                slopes[relation.name] = relation.lower + share * (relation.upper - relation.lower)
        matrix = with_slopes(named, slopes)
        torch.testing.assert_close(with_slopes(back, slopes), matrix.T, rtol=1e-12, atol=1e-12)
        if not any(isinstance(cell, BlockCell) for cell in named.cells):
            assert bool(((box.low <= matrix + 1e-12) & (matrix <= box.high + 1e-12)).all())


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ["small cnn", "groups", "recurrence", "concatenation", "gains before selections"])
def test_transposed_maps(name: str) -> None:
    case = zoo_case(name)
    problem = Problem(capture(case.model, case.example))
    for network in (problem.unfused, problem.network, problem.expanded):
        for linear in (m for node in network.nodes for m in getattr(node, "maps", ())):
            other = turned(linear)
            torch.testing.assert_close(other.matrix(), linear.matrix().T, rtol=1e-13, atol=0.0)
            torch.testing.assert_close(other.absolute().matrix(), linear.absolute().matrix().T, rtol=1e-13, atol=0.0)
            y = torch.randn(3, *linear.out_shape, dtype=torch.float64)
            torch.testing.assert_close(other.apply(y), linear.transpose(y), rtol=1e-12, atol=1e-12)
            x = torch.randn(3, *linear.in_shape, dtype=torch.float64)
            torch.testing.assert_close(other.transpose(x), linear.apply(x), rtol=1e-12, atol=1e-12)
            assert other.rounding == linear.rounding


@pytest.mark.few(4)
@pytest.mark.parametrize("seed", range(120))
def test_jacobians_of_generated_networks_lie_in_their_box(seed: int) -> None:
    """Up to 1e-6: torch's own derivatives of some activations hold constants in float32."""
    case = random_network(seed)
    shape = tuple(case.example.shape[1:])
    generator, model = torch.Generator().manual_seed(seed), Double(case.model)
    center = torch.randn(shape, generator=generator, dtype=torch.float64)
    network = capture(case.model, case.example)
    for domain in (None, Ball(center, 0.2)):
        box = jacobian(Problem(network, (2.0, 2.0), domain).reduced_increments)
        for _ in range(5):
            x = center + 0.2 * (2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0)
            found = torch.autograd.functional.jacobian(lambda z: model(z[None]).reshape(-1), x)
            found = found.reshape(box.low.shape)
            slack = 1e-6 * found.abs().amax(1, keepdim=True) if found.numel() else 0.0
            assert bool(((box.low <= found + slack) & (found - slack <= box.high)).all()), case.name


def test_what_cannot_be_transposed_costs_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a transposed the box is that from the input alone, and the default names why a route was not taken."""

    def refuse(_: object) -> None:
        raise UnsupportedNormError("no transposed here.")

    case = zoo_case("relu 4-6-3")
    both = jacobian(Problem(capture(case.model, case.example)).reduced_increments)
    monkeypatch.setattr("lipcert.increments.jacobian.adjoint", refuse)
    monkeypatch.setattr("lipcert.problem.adjoint", refuse)
    alone = jacobian(Problem(capture(case.model, case.example)).reduced_increments)
    assert bool(((alone.low <= both.low) & (both.high <= alone.high)).all())
    found = lipcert.bound(case.model, case.example, norm=(1, 1), budget=3.0)
    assert any("no transposed here" in row.remark for row in found.tried)
    assert found.value >= lipcert.lower_bound(case.model, case.example, norm=(1, 1), budget=0.2).value


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_log_sum_exp_on_a_small_domain_goes_back_too(axis: int) -> None:
    x = torch.randn(1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    class LogSumExp(torch.nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            return torch.logsumexp(v * 2.0, axis)

    box = jacobian(Problem(capture(LogSumExp(), x), (1.0, float("inf")), Ball(x, 1e-3)).reduced_increments)
    found = torch.autograd.functional.jacobian(LogSumExp(), x).reshape(box.low.shape)
    assert bool(((box.low <= found) & (found <= box.high)).all())
    assert float((box.high - box.low).max()) < 0.1
