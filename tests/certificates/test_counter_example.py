"""The proof of a counter-example: what it takes, what it refuses, on which side it errs."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from benchmarks.breaking import break_certified
from lipcert.capture.torch_export import capture
from lipcert.certificates.counter_example import counter_example, distance, values_at
from lipcert.domain import Ball, Box, Intersection
from lipcert.errors import InputError


def tensor(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    layer.weight.data = weight.double()
    return layer


def captured(model: nn.Module, n: int):
    return capture(model.eval(), torch.zeros(1, n, dtype=torch.float64))


EYE = captured(linear(torch.eye(2)), 2)  # f = x


def test_a_point_outside_is_refused_by_however_little() -> None:
    ball = Ball(tensor(0.0, 0.0), 1.0, 2)
    for point in (tensor(1.0, 2.0**-30), tensor(0.0, math.nextafter(1.0, 2.0)), tensor(0.8, 0.6) * (1 + 2.0**-50)):
        with pytest.raises(InputError, match="outside"):
            counter_example(EYE, ball, point, 0, 1)
    clipped = Intersection(ball, Box(0, 1).fitted((2,)))
    with pytest.raises(InputError, match="outside"):
        counter_example(EYE, clipped, tensor(-5e-324, 0.5), 0, 1)
    assert counter_example(EYE, clipped, tensor(0.0, 0.5), 0, 1) is not None


@pytest.mark.parametrize("gap", [1e-100, 2.0**-60, 1e-16, 0.3])
def test_the_sign_of_the_margin_decides_and_a_tie_counts(gap: float) -> None:
    domain = Box(-1, 1).fitted((2,))
    assert counter_example(EYE, domain, tensor(gap, 0.0), 0, 1) is None
    found = counter_example(EYE, domain, tensor(0.0, gap), 0, 1)
    assert found is not None
    assert -gap <= found.margin <= 0
    assert counter_example(EYE, domain, tensor(gap, gap), 0, 1).margin == 0


def test_cancellation_is_seen_through() -> None:
    """f = (x₁ + 10¹⁶ x₂ − 10¹⁶ x₂, 0): float64 alone would lose x₁."""
    model = captured(
        nn.Sequential(linear(tensor([1.0, 1e16], [0.0, -1e16])), linear(tensor([1.0, 1.0], [0.0, 0.0]))), 2
    )
    domain = Box(-1, 1).fitted((2,))
    for x in (0.25, 2.0**-40):
        assert counter_example(model, domain, tensor(x, 1.0), 0, 1) is None
        assert counter_example(model, domain, tensor(-x, 1.0), 0, 1) is not None


def test_classes_that_are_none_are_refused() -> None:
    for label, other in ((0, 0), (0, 2), (-1, 0), (2, 1)):
        with pytest.raises(InputError, match="two of the model's 2 classes"):
            counter_example(EYE, None, tensor(0.0, 0.0), label, other)


def test_points_that_are_none_are_refused() -> None:
    for point in (tensor(math.nan, 0.0), tensor(math.inf, 0.0)):
        with pytest.raises(InputError, match="NaN or infinity"):
            counter_example(EYE, None, point, 0, 1)
    with pytest.raises(InputError, match="one example"):
        counter_example(EYE, None, tensor(0.0, 0.0, 0.0), 0, 1)
    with pytest.raises(InputError, match="rows"):
        values_at(EYE, None, tensor(0.0, 0.0), torch.ones(1, 3))


def test_values_are_never_below_the_exact_ones_and_barely_above() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        weight, x, row = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 4), (4,), (1, 3)))
        (value,) = values_at(captured(linear(weight), 4), None, x, row)
        exact = sum(
            Fraction(float(row[0, i])) * Fraction(float(weight[i, j])) * Fraction(float(x[j]))
            for i in range(3)
            for j in range(4)
        )
        assert exact <= Fraction(value) <= exact + Fraction(1, 10**12)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_distances_are_never_too_small(p: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-200, 1.0, 1e150):
        center, point = scale * torch.randn(2, 5, generator=generator, dtype=torch.float64)
        ball = Ball(center, 1e160, p)
        gaps = [abs(Fraction(a) - Fraction(b)) for a, b in zip(point.tolist(), center.tolist(), strict=True)]
        found = Fraction(distance(ball, point))
        true = {1.0: sum(gaps), 2.0: sum(g * g for g in gaps), math.inf: max(gaps)}[p]
        power = 2 if p == 2 else 1
        assert true <= found**power <= true * (1 + Fraction(1, 10**13))
    assert distance(Box(-1, 1).fitted((2,)), tensor(0.0, 0.0)) is None


def test_what_is_falsely_certified_is_broken_and_what_is_not_stands() -> None:
    network = captured(linear(tensor([3.0, -4.0], [0.0, 0.0])), 2)
    x = tensor(1.0, -1.0)  # a margin of 7 and l2 radius 1.4
    result = break_certified(network, [Ball(x, r, 2) for r in (1.39, 1.4001, 1.3999)], torch.zeros(3))
    assert list(result.broken) == [1]
    assert result.count == 3
    assert result.least < 0
    assert "1 broken" in str(result)
    assert break_certified(network, [], torch.zeros(0)).broken == {}
