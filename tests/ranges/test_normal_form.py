"""Mirrors, waves and exact lines against values."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

import lipcert
from lipcert.network.activations import gates, piecewise, smooth
from lipcert.network.activations.clamp import Clamp
from lipcert.numerics.midrad import Near
from lipcert.ops import nonlinearities as known
from lipcert.ranges.mirror import _MIRRORS, mirror_of
from lipcert.ranges.normal_form import same
from lipcert.ranges.polyline import Lines, _composed, _sum
from tests.zoo import Apply

D = torch.float64

FUNCTIONS = [
    Clamp("relu", 0.0, 1.0, 0.0, None), Clamp("min", 0.0, 1.0, None, 0.0), known.ABS,
    piecewise.LeakyReLU("leaky", 0.25, 1.0, 0.25), piecewise.Softshrink("shrink", 0.0, 1.0, 0.5),
    smooth.Softplus("softplus", 0.0, 1.0, 2.0), gates.Swish("swish", -0.1, 1.1, 1.7),
    gates.ErfGELU("gelu", -0.2, 1.2, 0.9), gates.TanhGELU("gelu", -0.2, 1.2, 0.8, 0.0357),
    *(kind(kind.__name__, -1.2, 1.2) for kind in (
        smooth.Tanh, smooth.Sin, smooth.Cos, smooth.Softsign, smooth.Erf, smooth.Erfc, smooth.Atan, smooth.Asinh,
        smooth.Tanhshrink, smooth.Sigmoid, smooth.LogSigmoid, gates.SiLU, gates.GELU, gates.GELUTanh,
        gates.Hardswish, piecewise.HardSigmoid,
    )),
]  # fmt: skip


def test_every_mirror_has_a_case() -> None:
    assert {type(f) for f in FUNCTIONS} >= set(_MIRRORS)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_mirrors(function) -> None:
    mirror = mirror_of(function)
    assert mirror is not None
    x = torch.linspace(-30, 30, 4001, dtype=D)
    found = mirror.sign * function(x) + float(mirror.slope) * x + float(mirror.offset)
    assert torch.allclose(function(-x), found, rtol=1e-12, atol=1e-12)


def test_functions_without_a_mirror() -> None:
    for function in (gates.Mish("mish", -0.2, 1.1), Clamp("clamp", 0.0, 1.0, -1.0, 2.0)):
        assert mirror_of(function) is None


#: name: (function, constant).
SUMS = {
    "x by relus": (lambda x: F.relu(x) - F.relu(-x), 1.0),
    "|x| by relus": (lambda x: F.relu(x) + F.relu(-x), 1.0),
    "x by softplus": (lambda x: F.softplus(x) - F.softplus(-x), 1.0),
    "1 by sigmoids": (lambda x: torch.sigmoid(x) + torch.sigmoid(-x), 0.0),
    "0 by tanh": (lambda x: torch.tanh(2 * x) + torch.tanh(-2 * x), 0.0),
    "2 silu - x": (lambda x: F.silu(x) + F.silu(-x), 1.1996786),
    "wave": (lambda x: 0.6 * x.sin() + 0.8 * x.cos(), 1.0),
    "wave of 5x": (lambda x: torch.sin(5 * x) - torch.cos(5 * x), 5 * math.sqrt(2)),
    "wave and line": (lambda x: x + 0.5 * torch.sin(x + 0.5) + 0.5 * torch.cos(x + 0.5), 1 + math.sqrt(0.5)),
    "clamp": (lambda x: F.relu(x) - F.relu(x - 1), 1.0),
    "hat": (lambda x: F.relu(x) - 2 * F.relu(x - 1) + F.relu(x - 2), 1.0),
    "leaky": (lambda x: F.relu(x) - 0.1 * F.relu(-x), 1.0),
    "leaky by clamps": (lambda x: x.clamp(min=0) + 0.1 * x.clamp(max=0), 1.0),
    "staircase": (lambda x: F.hardtanh(4 * x) + F.relu(x.abs() - 2), 4.0),
    "soft threshold": (lambda x: F.relu(x - 0.3) - F.relu(-x - 0.3), 1.0),
}  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("name", SUMS)
def test_sums_of_one_value(name: str) -> None:
    function, truth = SUMS[name]
    model = Apply(lambda _, x: function(x)).eval()
    x = torch.zeros(1, 3, dtype=D)
    for method in ("auto", "autolip"):
        value = lipcert.bound(model, x, method=method, budget=1).value
        assert truth * (1 - 1e-6) <= value <= truth * 1.001 + 1e-12
    low = lipcert.lower_bound(model, x, budget=0.2).value
    assert low <= value


def test_what_is_not_defined_does_not_cancel() -> None:
    """log x − log x is 0 where x > 0, and nothing elsewhere."""
    model = Apply(lambda _, x: torch.log(x) + torch.log(x) * -1.0).eval()
    with pytest.raises(lipcert.LipcertError):
        lipcert.bound(model, torch.ones(1, 3, dtype=D))


def test_exact_lines_against_values() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):

        def some() -> Lines:
            count = int(torch.randint(0, 3, (), generator=generator))
            kinks = sorted({Fraction(int(k), 4) for k in torch.randint(-9, 9, (count,), generator=generator)})
            rates = [Fraction(int(r)) for r in torch.randint(-3, 4, (len(kinks) + 1,), generator=generator)]
            levels = [Fraction(1)]
            for k, (a, b) in zip(kinks, itertools.pairwise(rates), strict=True):
                levels.append(levels[-1] + (a - b) * k)
            return Lines(tuple(kinks), tuple(rates), tuple(levels))

        f, g = some(), some()
        total, inner = _sum([f, g], [Fraction(2), Fraction(-1, 3)], Fraction(5)), _composed(f, g)
        for k in range(-40, 41):
            x = Fraction(k, 8)
            assert total.at(x) == 2 * f.at(x) - g.at(x) / 3 + 5
            assert inner.at(x) == f.at(g.at(x))


def test_what_is_left_of_a_sum_does_not_vanish() -> None:
    """A factor of 1e−400 is no 0."""
    model = Apply(lambda _, x: 1e-200 * F.relu(1e-200 * x) - 1e-200 * F.relu(-1e-200 * x)).eval()
    bound = lipcert.bound(model, torch.zeros(1, 3, dtype=D), method="autolip")
    assert bound.log10 is not None
    assert -400.0 <= bound.log10 <= -399.0


def test_numbers_that_are_only_near_are_not_the_same() -> None:
    """Of two rates known to rounding the difference may be anything of that size."""
    rate = torch.tensor(0.1, dtype=D) * torch.tensor(3.0, dtype=D)
    other = torch.tensor(0.3, dtype=D)
    for a, b in ((rate, rate), (rate, other)):
        model = Apply(lambda _, x, a=a, b=b: x * torch.sigmoid(a * x) - x * torch.sigmoid(b * x)).eval()
        assert lipcert.bound(model, torch.zeros(1, 3, dtype=D), budget=1).value >= 0.0
    exactly, nearly = gates.Swish("swish", -0.1, 1.1, 0.3), gates.Swish("swish", -0.1, 1.1, 0.3, 1e-15)
    assert same(exactly, gates.Swish("swish", -0.1, 1.1, 0.3))
    assert not same(nearly, nearly)
    about = piecewise.LeakyReLU("leaky", 0.3, 1.0, Near(0.3, 1e-17))
    assert not same(about, about)
