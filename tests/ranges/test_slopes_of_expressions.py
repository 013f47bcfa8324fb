"""Expressions in one variable on intervals: never below sampled slopes, and within 1 % of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lipcert
from lipcert.domain import Box
from lipcert.errors import NotLipschitzError
from tests.zoo import Apply

D = torch.float64
BASES = torch.tensor([1.5, 0.25, 1.0], dtype=D)

#: name: (function, intervals); entry by entry.
CASES: dict[str, tuple[Callable[[Tensor], Tensor], list[tuple[float, float]]]] = {
    "x exp(x)": (lambda x: x * torch.exp(x), [(-3.0, -0.5), (-1.0, 1.0), (2.0, 5.0)]),
    "x exp(-x)": (lambda x: x * torch.exp(-x), [(-1.0, 1.0), (0.5, 4.0)]),
    "x·x·x": (lambda x: x * x * x, [(-1.0, 2.0), (0.5, 0.6), (-4.0, -3.0)]),
    "(x·x)(x + 1) − x": (lambda x: (x * x) * (x + 1) - x, [(-1.0, 0.5), (0.1, 3.0)]),
    "x·x·x·x·x": (lambda x: x * x * x * x * x, [(-1.0, 2.0)]),
    "2**x": (lambda x: 2.0**x, [(-3.0, 1.0), (4.0, 9.0)]),
    "2**x of a whole 2": (lambda x: 2**x, [(-3.0, 1.0)]),
    "0.3**x": (lambda x: 0.3**x, [(-2.0, 1.0), (3.0, 5.0)]),
    "a**x": (lambda x: BASES**x, [(-1.0, 2.0)]),
    "torch.pow(3, −x/2)": (lambda x: torch.pow(3.0, -x / 2), [(-1.0, 2.0)]),
    "x·2**x": (lambda x: x * 2.0**x, [(-4.0, 1.0)]),
    "1/(1 + 2**-x)": (lambda x: 1 / (1 + 2.0 ** (-x)), [(1.0, 3.0)]),
    "tan": (torch.tan, [(-1.2, 0.3), (2.0, 4.0)]),
    "x tan(x)": (lambda x: x * torch.tan(x), [(-0.5, 1.0)]),
    "x log(x)": (lambda x: x * torch.log(x), [(0.05, 1.0), (0.2, 0.6)]),
    "sin(x)/x": (lambda x: torch.sin(x) / x, [(0.5, 4.0)]),
    "x**3 exp(-x²)": (lambda x: x**3 * torch.exp(-x * x), [(-2.0, 1.5), (0.9, 1.0)]),
    "log(x)/x": (lambda x: torch.log(x) / x, [(0.5, 3.0)]),
    "√(1 + x³)": (lambda x: torch.sqrt(1 + x**3), [(-0.9, 2.0)]),
    "exp(sin(x)) cos(x)": (lambda x: torch.exp(torch.sin(x)) * torch.cos(x), [(-3.0, 3.0)]),
    "atan(x²) x": (lambda x: torch.atan(x * x) * x, [(-2.0, 2.0)]),
    "x softplus(x)": (lambda x: x * F.softplus(x), [(-4.0, 2.0)]),
    "exp(exp(x))": (lambda x: torch.exp(torch.exp(x)), [(-1.0, 1.5)]),
    "x²/(1 + x)": (lambda x: x * x / (1 + x), [(-0.5, 3.0)]),
    "cosh(x)/(2 + sin x)": (lambda x: torch.cosh(x) / (2 + torch.sin(x)), [(-2.0, 2.0)]),
    "max(x, 0)² exp(-x)": (lambda x: F.relu(x) ** 2 * torch.exp(-x), [(-1.0, 3.0)]),
}  # fmt: skip


def steepest(function: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    x = torch.linspace(low, high, 200_001, dtype=D)[:, None].expand(-1, 3).clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    return float(slope.abs().max())


@pytest.mark.few(2)
@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    function, intervals = CASES[name]
    model = Apply(lambda _, x: function(x)).eval()
    example = torch.full((1, 3), 0.5, dtype=D)
    for low, high in intervals:
        box = Box([low] * 3, [high] * 3)
        for norm in ((2, 2), (math.inf, math.inf)):
            value = lipcert.bound(model, example, "autolip", norm, box).value
            truth = steepest(function, low, high)
            assert truth * (1 - 1e-12) <= value <= truth * 1.01


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["x exp(x)", "a**x", "tan", "log(x)/x", "√(1 + x³)"])
def test_lower_bounds_too(name: str) -> None:
    """The enclosures of witnesses know the steps."""
    function, intervals = CASES[name]
    model = Apply(lambda _, x: function(x)).eval()
    low, high = intervals[0]
    box = Box([low] * 3, [high] * 3)
    example = torch.full((1, 3), 0.5, dtype=D)
    upper = lipcert.bound(model, example, "autolip", domain=box).value
    found = lipcert.lower_bound(model, example, domain=box, budget=0.3)
    assert 0.7 * upper <= found.value <= upper
    middle = torch.full((3,), 0.5 * (low + high), dtype=D)
    chord = lipcert.lower_bound(model, example, domain=box, anchor=middle, budget=0.3)
    assert 0.0 < chord.value <= lipcert.bound(model, example, "autolip", domain=box, anchor=middle).value


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [(torch.tan, 1.0, 2.0), (lambda x: x * torch.log(x), -0.1, 1.0), (lambda x: torch.sin(x) / x, -1.0, 1.0)],
)
def test_next_to_a_pole_there_is_none(function: Callable[[Tensor], Tensor], low: float, high: float) -> None:
    model = Apply(lambda _, x: function(x)).eval()
    with pytest.raises(NotLipschitzError):
        lipcert.bound(model, torch.full((1, 3), 0.5, dtype=D), domain=Box([low] * 3, [high] * 3))


@pytest.mark.parametrize("base", [0.0, -2.0, torch.tensor([1.0, -1.0, 2.0])])
def test_powers_of_numbers_that_are_not_positive_are_refused(base: float | Tensor) -> None:
    model = Apply(lambda _, x: base**x).eval()
    with pytest.raises(lipcert.CaptureError, match="pow"):
        lipcert.bound(model, torch.full((1, 3), 0.5, dtype=D), domain=Box([1.0] * 3, [2.0] * 3))


def test_a_power_of_one_is_a_constant() -> None:
    assert lipcert.bound(Apply(lambda _, x: 1.0**x), torch.full((1, 3), 0.5, dtype=D)).value == 0.0


def test_a_power_of_two_written_out_is_a_sigmoid() -> None:
    value = lipcert.bound(Apply(lambda _, x: 1 / (1 + 2.0 ** (-x))), torch.full((1, 3), 0.5, dtype=D)).value
    assert value == pytest.approx(math.log(2.0) / 4.0, rel=1e-12)
    assert value >= math.log(2.0) / 4.0
