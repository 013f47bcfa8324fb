"""Values, lines and chords of activations on intervals, against samples; extremes are not lost between them."""

from __future__ import annotations

import pytest
import torch
from slope_cases import INSTANCES
from torch import Tensor

from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.slopes import slopes
from lipcert.numerics.interval import Interval
from lipcert.ranges.functions import chords, extremes, image_of

COUNT = 400


def intervals(seed: int) -> tuple[Tensor, Tensor]:
    """Wide and narrow ones, some with an end at 0, some of one point."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(COUNT, generator=generator, dtype=torch.float64) * torch.logspace(-3, 1.3, COUNT).double()
    width = 10.0 ** (7.0 * torch.rand(COUNT, generator=generator, dtype=torch.float64) - 6.0)
    low, high = middle - width, middle + width
    low[:20], high[20:40] = 0.0, 0.0
    high[40:50] = low[40:50]
    return torch.minimum(low, high), torch.maximum(low, high)


def samples(low: Tensor, high: Tensor, count: int = 201) -> Tensor:
    share = torch.linspace(0.0, 1.0, count, dtype=torch.float64)[:, None]
    return (low + share * (high - low)).clamp(low, high)


@pytest.mark.few(25)
@pytest.mark.parametrize("function", INSTANCES, ids=repr)
def test_values_less_a_line_lie_between_the_extremes(function: Nonlinearity) -> None:
    low, high = intervals(0)
    x = samples(low, high)
    for slope in (torch.zeros(COUNT).double(), torch.randn(COUNT, generator=torch.Generator().manual_seed(1)).double()):
        least, greatest = extremes(function, slope, low, high)
        value = function.value(x) - slope * x
        room = 1e-13 * (function.value(x).abs() + (slope * x).abs() + x.abs() + 1e-3)
        assert bool((value >= least - room).all())
        assert bool((value <= greatest + room).all())
    least, greatest = image_of(function, low, high)
    value = function.value(x)
    assert bool((value >= least - 1e-13 * (1e-3 + x.abs() + value.abs())).all())
    assert bool((value <= greatest + 1e-13 * (1e-3 + x.abs() + value.abs())).all())


@pytest.mark.parametrize("function", INSTANCES, ids=repr)
def test_a_narrow_interval_loses_next_to_nothing(function: Nonlinearity) -> None:
    low, high = intervals(2)
    high = torch.minimum(high, low + 1e-3)
    alpha, beta = slopes(function, low, high)
    least, greatest = image_of(function, low, high)
    value = function.value(samples(low, high))
    steepest = torch.maximum(alpha.abs(), beta.abs())
    spare = (greatest - least) - (value.amax(0) - value.amin(0))
    assert bool((spare <= 0.5 * (beta - alpha) * (high - low) + 1e-8 * (1.0 + value.abs().amax(0) + steepest)).all())


@pytest.mark.few(25)
@pytest.mark.parametrize("function", INSTANCES, ids=repr)
@pytest.mark.parametrize("blur", [0.0, 1e-13])
def test_chords_from_a_point_lie_between_their_slopes(function: Nonlinearity, blur: float) -> None:
    low, high = intervals(3)
    share = torch.rand(COUNT, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    anchor = (low + share * (high - low)).clamp(low, high)
    anchor[::5] = low[::5]
    anchor[1::7] = high[1::7]
    alpha, beta = chords(function, Interval(low, high), Interval(anchor - blur, anchor + blur))
    x = samples(low, high)
    distance = x - anchor
    far = distance.abs() > 1e-6 * (1.0 + anchor.abs())
    value = function.value(x)
    quotient = (value - function.value(anchor)) / distance
    room = 1e-9 * (1.0 + quotient.abs()) + 4e-15 * value.abs() / distance.abs()
    assert bool((~far | (quotient >= alpha - room)).all())
    assert bool((~far | (quotient <= beta + room)).all())
    whole = slopes(function, torch.minimum(low, anchor - blur), torch.maximum(high, anchor + blur))
    assert bool(((alpha >= whole[0]) & (beta <= whole[1])).all())


def test_chords_of_a_relu_are_exact() -> None:
    function = next(f for f in INSTANCES if f.name == "relu")
    low, high = torch.tensor([-3.0, -3.0]).double(), torch.tensor([2.0, 2.0]).double()
    anchor = torch.tensor([1.0, -1.0]).double()
    alpha, beta = chords(function, Interval(low, high), Interval.point(anchor))
    assert torch.allclose(alpha, torch.tensor([0.25, 0.0], dtype=torch.float64), rtol=1e-14)
    assert torch.allclose(beta, torch.tensor([1.0, 2.0 / 3.0], dtype=torch.float64), rtol=1e-14)
