"""Parts of an outcome: forwards and backwards bound what an error becomes, whatever it is."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from lipcert.execution.history import History
from lipcert.execution.outcome import Choice, Linear, Outcome, Part, Slopes
from lipcert.execution.value import Executed
from lipcert.numerics.interval import Interval


def operand(shape: tuple[int, ...], generator: torch.Generator) -> Executed:
    middle = torch.randn(shape, generator=generator, dtype=torch.float64)
    error = torch.rand(shape, generator=generator, dtype=torch.float64)
    error = torch.where(torch.rand(shape, generator=generator) < 0.2, 0.0, error)
    return Executed(Interval.point(middle), error)


def parts(generator: torch.Generator) -> list[tuple[Part, list[Tensor]]]:
    """Each with matrices that it may stand for."""
    x = operand((2, 3), generator)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    linear = Linear(x, lambda t: t @ weight.T, lambda t: t @ weight.abs().T, weight)
    exact = torch.kron(torch.eye(2, dtype=torch.float64), weight)

    image = operand((1, 2, 5, 5), generator)
    kernel = torch.randn(3, 2, 3, 3, generator=generator, dtype=torch.float64)
    conv = Linear(image, lambda t: F.conv2d(t, kernel, padding=1), lambda t: F.conv2d(t, kernel.abs(), padding=1))
    columns = [conv.apply(e.reshape(1, 2, 5, 5)).reshape(-1) for e in torch.eye(50, dtype=torch.float64)]

    low = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    high = low + torch.rand(2, 3, generator=generator, dtype=torch.float64)
    slopes = Slopes(x, low, high)
    middles = [low + s * (high - low) for s in torch.rand(3, 2, 3, generator=generator, dtype=torch.float64)]

    wide = Slopes(operand((1, 3), generator), low, high)  # broadcast over rows
    spread = [torch.cat([torch.diag(m[0]), torch.diag(m[1])]) for m in middles]

    index = torch.randint(0, 6, (4, 3), generator=generator)
    may = torch.rand(4, 3, generator=generator) < 0.6
    may[:, 0] = True
    choice = Choice(x, index, may)
    chosen = []
    for _ in range(3):
        weights = torch.rand(4, 3, generator=generator, dtype=torch.float64) * may
        weights = weights / weights.sum(1, keepdim=True)
        chosen.append(torch.zeros(4, 6, dtype=torch.float64).scatter_add_(1, index, weights))
    return [
        (linear, [exact]), (conv, [torch.stack(columns, 1)]), (slopes, [torch.diag(m.reshape(-1)) for m in middles]),
        (wide, spread), (choice, chosen),
    ]  # fmt: skip


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_forwards_and_backwards(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for part, matrices in parts(generator):
        error = part.operand.error
        for matrix in matrices:
            delta = (2 * torch.rand(error.shape, generator=generator, dtype=torch.float64) - 1) * error
            after = matrix @ delta.reshape(-1)
            live = (error.reshape(-1) > 0).to(torch.float64)
            assert float(torch.linalg.matrix_norm(matrix * live, 2)) <= part.gain() * (1 + 1e-12)
            forwards = part.forwards(error).reshape(-1)
            assert bool((after.abs() <= forwards + 1e-300).all())
            shape = part.forwards(error).shape
            middle = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
            radius = torch.rand(5, *shape, generator=generator, dtype=torch.float64)
            rows = middle + (2 * torch.rand(middle.shape, generator=generator, dtype=torch.float64) - 1) * radius
            back, width = part.backwards((middle, radius))
            moved = rows.reshape(5, -1) @ matrix
            gap = (moved - back.reshape(5, -1)).abs() * live
            assert bool((gap <= width.reshape(5, -1) * (1 + 1e-9) + 1e-12).all())


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_carried_back_to_any_cut(seed: int) -> None:
    """A chain with a residual sum, its errors drawn within what is known: no row of the output is off by more."""
    generator = torch.Generator().manual_seed(seed)
    start = operand((1, 4), generator)
    history = History()

    def step(parts: tuple[Part, ...], matrices: list[Tensor], deltas: list[Tensor]) -> tuple[Executed, Tensor]:
        own = 0.1 * torch.rand(1, 4, generator=generator, dtype=torch.float64)
        outcome = Outcome(own, parts)
        noise = (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1) * own[0]
        delta = sum((m @ d for m, d in zip(matrices, deltas, strict=True)), noise)
        value = Executed(start.box, outcome.error(), known_length=outcome.length())
        assert bool((delta.abs() <= value.error[0]).all())
        assert float(delta.norm()) <= value.length * (1 + 1e-12)
        history.add(value, outcome)
        return value, delta

    first = (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1) * start.error[0]
    history.add(start, Outcome(start.error))
    values, deltas = [start], [first]
    for _ in range(3):
        w = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        part = Linear(values[-1], lambda t, w=w: t @ w.T, lambda t, w=w: t @ w.abs().T, w)  # type: ignore[misc]
        inner, delta = step((part,), [w], [deltas[-1]])
        low = torch.randn(1, 4, generator=generator, dtype=torch.float64)
        high = low + torch.rand(1, 4, generator=generator, dtype=torch.float64)
        s = low + torch.rand(1, 4, generator=generator, dtype=torch.float64) * (high - low)
        one = torch.ones(1, 4, dtype=torch.float64)
        bent = Slopes(inner, low, high)
        found, delta = step(
            (bent, Slopes(values[-1], one, one)), [torch.diag(s[0]), torch.eye(4).double()], [delta, deltas[-1]]
        )
        values.append(found)
        deltas.append(delta)
    rows = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    assert bool(((rows @ deltas[-1]).abs() <= history.along(values[-1], rows) * (1 + 1e-12)).all())
    refined = history.refined(values[-1])
    assert bool((deltas[-1].abs() <= refined.error[0]).all())
    assert bool((refined.error <= values[-1].error).all())


def test_a_slope_that_nothing_asks_for_may_be_infinite() -> None:
    x = Executed(Interval.point(torch.zeros(2, dtype=torch.float64)), torch.tensor([0.0, 1.0], dtype=torch.float64))
    part = Slopes(x, torch.tensor([-torch.inf, 1.0]).double(), torch.tensor([torch.inf, 2.0]).double())
    assert part.forwards(x.error)[0] == 0.0
    assert part.forwards(x.error)[1] == pytest.approx(2.0)
    middle, radius = part.backwards((torch.ones(1, 2).double(), torch.zeros(1, 2).double()))
    assert bool(middle.isfinite().all() & radius.isfinite().all())
