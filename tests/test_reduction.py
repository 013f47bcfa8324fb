"""Reduced and narrowed increments are those of the same network: dense maps for slopes chosen alike in both."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from lipcert.capture.torch_export import capture
from lipcert.domain import Ball
from lipcert.increments import Cell, EntryCell, Increments, Linear
from lipcert.increments.narrowing import narrowed
from lipcert.increments.reduction import reduced
from lipcert.network.linear import size
from lipcert.network.moves import gather, only_moves, scatter, simplified
from lipcert.problem import Problem
from lipcert.ranges import Ranges
from tests.zoo import ZOO, mlp, random_network, zoo_case


def dense(increments: Increments, share: float) -> Tensor:
    """The map from input to output where every slope is lower + share · (upper − lower)."""
    n = size(increments.in_shape)
    unit = torch.eye(n, dtype=torch.float64).reshape(n, *increments.in_shape)

    def linear(_: int, relation: Linear, before: list[Tensor]) -> Tensor:
        total = torch.zeros(n, *relation.shape, dtype=torch.float64)
        for map_, value in zip(relation.maps, before, strict=True):
            total = total + map_.apply(value)
        return total

    def cell(_: int, relation: Cell, v: Tensor) -> Tensor:
        if not isinstance(relation, EntryCell):
            return v[:, :1].expand(n, *relation.shape) * share if v.shape[1:] != relation.shape else v * share
        return v * (relation.lower + share * (relation.upper - relation.lower))

    return increments.walk(lambda *_: unit, linear, cell)[-1].reshape(n, -1).T


def on_balls(problem: Problem) -> list[Increments]:
    shape = problem.model.in_shape
    center = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [
        Increments.of(on.expanded, Ranges.of(on.expanded, on.domain))
        for on in (problem.on(Ball(center, radius, 2)) for radius in (1e-4, 0.2, 1.0))
    ]


@functools.cache
def problems() -> list[tuple[str, Problem]]:
    named = [(name, zoo_case(name)) for name, _, _ in ZOO] + [(str(s), random_network(s)) for s in range(8)]
    return [(name, Problem(capture(case.model, case.example))) for name, case in named]


@pytest.mark.few(3)
@pytest.mark.parametrize("place", range(len(ZOO) + 8))
def test_reduced_increments_are_the_same_map(place: int) -> None:
    for increments in on_balls(problems()[place][1]):
        if any(not isinstance(c, EntryCell) for c in increments.cells):
            continue
        fewer = reduced(increments)
        assert all(bool(c.free.all()) for c in fewer.cells if isinstance(c, EntryCell))
        assert sum(c.size for c in fewer.cells) <= sum(c.size for c in increments.cells)
        for share in (0.0, 0.3, 1.0):
            a, b = dense(increments, share), dense(fewer, share)
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12 * (1.0 + float(a.abs().max())))


@pytest.mark.parametrize("widths", [(40, 6, 5, 3), (200, 10, 4), (30, 9, 9, 2)])
@pytest.mark.parametrize("radius", [1e-3, 0.3, 3.0])
def test_a_narrowed_input_reaches_as_far_and_hardly_further(widths: tuple[int, ...], radius: float) -> None:
    captured = capture(mlp(widths, 1), torch.zeros(1, widths[0]))
    center = torch.randn(widths[0], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = reduced(Problem(captured, (2.0, 2.0), Ball(center, radius, 2)).increments)
    fewer = narrowed(whole)
    assert size(fewer.in_shape) < size(whole.in_shape)
    for share in (0.0, 0.4, 1.0):
        a, b = dense(whole, share), dense(fewer, share)
        values = torch.linalg.eigvalsh(b @ b.T - a @ a.T)
        top = float((a @ a.T).diagonal().max()) + 1e-12
        assert float(values.min()) >= -1e-13 * top
        assert float(values.max()) <= 1e-7 * top


def test_an_input_that_cells_read_stays() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(30, 2)).double().eval()
    captured = capture(model, torch.zeros(1, 30, dtype=torch.float64))
    increments = Problem(captured, (2.0, 2.0), Ball(torch.zeros(30), 1.0, 2)).increments
    assert narrowed(increments) is increments


def test_a_sure_maximum_is_one_entry() -> None:
    """b + (a − b) is a: simplified to one entry a row, without the roundings of b."""
    shape, out = (1, 6), (1, 3)
    a, b = torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])
    from lipcert.network.linear import add, compose

    first, second = gather(a, shape, out), gather(b, shape, out)
    both = add(second, compose(add(first, gather(b, shape, out, -1.0)), scatter(torch.arange(3), out, out)))
    assert only_moves(both)
    shorter = simplified(both)
    assert torch.equal(shorter.matrix(), first.matrix())
    assert torch.equal(shorter.absolute().matrix(), first.matrix())
    nothing = simplified(add(first, gather(a, shape, out, -1.0)))
    assert nothing.is_zero


class Blocks(nn.Module):
    """x ↦ x + B relu(A x), over and over."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def layer() -> nn.Linear:
            made = nn.Linear(width, width).double()
            made.weight.data = torch.randn(width, width, generator=generator).double() / width**0.5
            made.bias.data = torch.randn(width, generator=generator).double()
            return made

        self.inner = nn.ModuleList(layer() for _ in range(count))
        self.outer = nn.ModuleList(layer() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) → (B, width)."""
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(torch.relu(inner(x)))
        return x


@pytest.mark.few(2)
@pytest.mark.parametrize("count", [2, 12, 40])
def test_blocks_with_few_free_neurons_stay_blocks_where_their_paths_multiply(count: int) -> None:
    """2^60 paths are not written down; two blocks with few free neurons are one form of input and cells."""
    captured = capture(Blocks(8, count).eval(), torch.zeros(1, 8, dtype=torch.float64))
    whole = Problem(captured, (2.0, 2.0), Ball(torch.zeros(8), 0.02 / 2.0**count, 2)).increments
    fewer = reduced(whole)
    if not any(isinstance(cell, EntryCell) and bool(cell.free.any()) for cell in whole.cells):
        assert not fewer.cells
    leaves = [len(m.leaves()) for relation in fewer.relations if isinstance(relation, Linear) for m in relation.maps]
    assert max(leaves) < 100 * 40
    for share in (0.0, 1.0):
        a, b = dense(whole, share), dense(fewer, share)
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12 * (1.0 + float(a.abs().max())))


def test_many_free_neurons_of_wide_layers_leave_the_layers() -> None:
    """More than 400 of them, in layers far wider: the form has the input and the free neurons, and no layer."""
    model = nn.Sequential(nn.Linear(6, 1500), nn.ReLU(), nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 2)).double()
    with torch.no_grad():
        for place, layer in enumerate(m for m in model if isinstance(m, nn.Linear)):
            generator = torch.Generator().manual_seed(place)
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
            layer.bias.copy_(1e6 * (-1.0) ** torch.arange(len(layer.bias)))
            layer.bias[:250] = 0.0
    model[2].weight.data[:, ::2] = 0.0  # of the neurons that are on
    captured = capture(model.eval(), torch.zeros(1, 6, dtype=torch.float64))
    domain = Ball(torch.zeros(6), 0.1, 2)
    network = Problem(captured).network
    whole = Increments.of(network, Ranges.of(network, domain, tighten="none"))
    fewer = reduced(whole)
    free = sum(cell.size for cell in fewer.cells)
    assert free > 400
    assert max(relation.size for relation in fewer.relations) < 1000
    for share in (0.0, 1.0):
        a, b = dense(whole, share), dense(fewer, share)
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12 * (1.0 + float(a.abs().max())))
