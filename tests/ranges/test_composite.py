"""Activations made of several steps: their slopes hold, in 50 digits, and are narrow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcert.network.activations import steep
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.slopes import slopes
from lipcert.numerics.midrad import Range
from lipcert.ops import nonlinearities as known
from lipcert.ranges.composite import Composite
from lipcert.ranges.functions import extremes, image_of, value_at
from lipcert.ranges.steps import Apply, Combine, Product, Quotient, Step

mp.mp.dps = 50
D = torch.float64
INF = math.inf


def logistic(t):
    return 1 / (1 + mp.exp(-t))


#: name: the activation, the function in 50 digits.
UNARY: dict[str, tuple[Nonlinearity, Callable]] = {
    "tanh": (known.TANH, mp.tanh),
    "sigmoid": (known.SIGMOID, logistic),
    "sin": (known.SIN, mp.sin),
    "cos": (known.COS, mp.cos),
    "atan": (known.ATAN, mp.atan),
    "relu": (known.RELU, lambda t: max(t, mp.mpf(0))),
    "abs": (known.ABS, abs),
    "clamp": (known.clamp(-1.0, 1.0), lambda t: min(max(t, mp.mpf(-1)), mp.mpf(1))),
    "softplus": (known.SOFTPLUS, lambda t: mp.log1p(mp.exp(t))),
    "gelu": (known.GELU, lambda t: t * mp.erfc(-t / mp.sqrt(2)) / 2),
    "exp": (steep.steep(steep.Exp, "exp"), mp.exp),
    "square": (steep.power(2.0), lambda t: t * t),
    "cube": (steep.power(3.0), lambda t: t**3),
    "log": (steep.steep(steep.Log, "log"), mp.log),
    "sqrt": (steep.power(0.5), mp.sqrt),
    "reciprocal": (steep.power(-1.0), lambda t: 1 / t),
}


@dataclass(frozen=True)
class Expression:
    """A tree: ("x",), (name, a), ("line", a, factor, offset), ("add" | "mul" | "div", a, b)."""

    tree: tuple

    def steps(self) -> list[Step]:
        found: list[Step] = []

        def build(tree) -> int:
            if tree[0] == "x":
                return 0
            if tree[0] == "line":
                factors = (Range.exact(torch.tensor(tree[2], dtype=D)),)
                step: Step = Combine((build(tree[1]),), factors, Range.exact(torch.tensor(tree[3], dtype=D)))
            elif tree[0] == "add":
                step = Combine((build(tree[1]), build(tree[2])), (Range.literal(1.0), Range.literal(1.0)))
            elif tree[0] in ("mul", "div"):
                step = (Product if tree[0] == "mul" else Quotient)((build(tree[1]), build(tree[2])))
            else:
                step = Apply((build(tree[1]),), UNARY[tree[0]][0])
            found.append(step)
            return len(found)

        build(self.tree)
        return found

    def composite(self) -> Composite:
        return Composite.of("test", self.steps())

    def at(self, x, tree=None):
        """In 50 digits; None where it is not defined."""
        tree = self.tree if tree is None else tree
        if tree[0] == "x":
            return mp.mpf(x)
        values = [self.at(x, t) for t in tree[1:] if isinstance(t, tuple)]
        if any(v is None or abs(v) > mp.mpf(10) ** 300 for v in values):
            return None
        if tree[0] == "line":
            return values[0] * mp.mpf(tree[2]) + mp.mpf(tree[3])
        if tree[0] == "add":
            return values[0] + values[1]
        if tree[0] == "mul":
            return values[0] * values[1]
        if tree[0] == "div":
            return values[0] / values[1] if values[1] else None
        if (tree[0] in ("log", "sqrt") and values[0] <= 0) or (tree[0] == "reciprocal" and not values[0]):
            return None
        return UNARY[tree[0]][1](values[0])


X = ("x",)
#: name: expression, its least and greatest slope on the line if these are known.
NAMED: dict[str, tuple[tuple, tuple[float, float] | None]] = {
    "exp(tanh x)": (("exp", ("tanh", X)), (0.0, 1.2535595643294637)),
    "exp(1.27 atan x)": (("exp", ("line", ("atan", X), 1.272, 0.0)), (0.0, 1.861648214717107)),
    "tanh² x": (("square", ("tanh", X)), (-0.7698003589167443, 0.7698003589167443)),
    "σ(1 − σ)": (
        ("mul", ("sigmoid", X), ("line", ("sigmoid", X), -1.0, 1.0)),
        (-0.09622504486493763, 0.09622504486493763),
    ),
    "clamp(x)³": (("cube", ("clamp", X)), (0.0, 3.0)),
    "log(1 + relu x)": (("log", ("line", ("relu", X), 1.0, 1.0)), (0.0, 1.0)),
    "√(1 + relu x)": (("sqrt", ("line", ("relu", X), 1.0, 1.0)), (0.0, 0.5)),
    "tanh x/(2 + sin x)": (("div", ("tanh", X), ("line", ("sin", X), 1.0, 2.0)), None),
    "x·exp x": (("mul", X, ("exp", X)), None),
    "exp of a line": (("tanh", ("exp", ("line", X, -3.0, 0.25))), None),
    "cubes and squares": (("add", ("cube", X), ("line", ("square", X), -2.0, 0.5)), None),
    "|x|·x": (("mul", ("abs", X), X), None),
    "steep at 1e-3": (("exp", ("tanh", ("line", X, 1000.0, -1.0))), (0.0, 1253.5595643294637)),
    "gate of a gate": (("mul", ("gelu", ("tanh", X)), ("sigmoid", ("sin", X))), None),
    "undefined in part": (("tanh", ("log", ("line", X, 1.0, 1.0))), None),
}
INTERVALS = [
    (-INF, INF), (-INF, -1.0), (0.5, INF), (-1e-3, 1e-3), (0.0, 1e-12), (-1.0, 1.0), (1.0, 1.0 + 2.0**-52),
    (-1.0 - 2.0**-52, -1.0), (-30.0, 4.0), (0.25, 0.2501), (3.0, 3.0), (-0.5, 700.0), (1e10, 1e12), (-1e300, 1.0),
]  # fmt: skip


def points(low: float, high: float, count: int = 41) -> list[float]:
    """Doubles in the interval, its ends and places near 0 and ±1 among them."""
    low, high = max(low, -1e3), min(high, 1e3)
    if low > high:
        return []
    near = [0.0, 1.0, -1.0, 1e-9, -1e-9, 0.6585, -0.6585, 1e-3, 1.0 / 3.0]
    even = [low + (high - low) * k / (count - 1) for k in range(count)]
    return sorted({min(max(t, low), high) for t in (*even, *near)})


def check(expression: Expression, low: float, high: float) -> tuple[float, float]:
    """Every quotient of neighbours, in 50 digits, lies between the slopes; returned."""
    function = expression.composite()
    least, greatest = (float(s) for s in slopes(function, low, high))
    ends = torch.tensor(low, dtype=D), torch.tensor(high, dtype=D)
    bottom, top = (float(s) for s in image_of(function, *ends))
    found = points(low, high)
    values = [expression.at(t) for t in found]
    if None in values:
        assert (least, greatest) == (-INF, INF) or any(v is None for v in (values[0], values[-1]))
    for t, v in zip(found, values, strict=True):
        if v is not None:
            assert bottom <= v <= top
            ball = value_at(function, torch.tensor(t, dtype=D))
            if bool(ball.mid.isfinite()):
                assert mp.mpf(float(ball.low)) <= v <= mp.mpf(float(ball.high))
    for a, b, u, v in zip(found, found[1:], values, values[1:], strict=False):
        if u is None or v is None:
            continue
        width = mp.mpf(b) - mp.mpf(a)
        slack = (abs(u) + abs(v) + 1) * mp.mpf(10) ** -40 / width  # of the 50 digits
        assert least - slack <= (v - u) / width <= greatest + slack
    if math.isfinite(low) and math.isfinite(high):
        for s in (0.0, 0.7, -1.3):
            bottom, top = (float(e) for e in extremes(function, s, *ends))
            for t, v in zip(found, values, strict=True):
                if v is not None:
                    assert bottom <= v - mp.mpf(s) * mp.mpf(t) <= top
    return least, greatest


@pytest.mark.few(3)
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    "interval", [i if not k % 3 else pytest.param(i, marks=pytest.mark.slow) for k, i in enumerate(INTERVALS)], ids=str
)
def test_slopes_and_values_hold(name, interval):
    check(Expression(NAMED[name][0]), *interval)


@pytest.mark.parametrize("name", [name for name, (_, truth) in NAMED.items() if truth])
def test_slopes_on_the_line_are_narrow(name):
    function, truth = Expression(NAMED[name][0]).composite(), NAMED[name][1]
    size = max(abs(t) for t in truth)
    assert truth[0] - 2e-3 * size <= function.lower <= truth[0]
    assert truth[1] * (1 - 1e-12) <= function.upper <= truth[1] + 2e-3 * size


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ["exp(tanh x)", "tanh² x", "σ(1 − σ)", "cubes and squares", "gate of a gate"])
@pytest.mark.parametrize("width", [0.3, 1e-3, 1e-9])
def test_slopes_on_small_intervals_are_narrow(name, width):
    """By no more than a part is wide."""
    expression = Expression(NAMED[name][0])
    function = expression.composite()
    for start in (-0.9, -0.1, 0.4, 1.1):
        low, high = start, start + width
        least, greatest = (float(s) for s in slopes(function, low, high))
        inner = [mp.diff(expression.at, low + (high - low) * k / 32) for k in range(33)]
        slack = 0.02 * width + 1e-12
        assert float(min(inner)) - slack <= least
        assert greatest <= float(max(inner)) + slack


def test_undefined_is_unknown():
    function = Expression(NAMED["undefined in part"][0]).composite()
    for low, high in ((-2.0, -1.5), (-2.0, 3.0), (-INF, INF)):
        assert [float(s) for s in slopes(function, low, high)] == [-INF, INF]
    flat = Expression(("log", ("relu", X))).composite()  # log 0: no slope of 0
    assert [float(s) for s in slopes(flat, -2.0, -1.0)] == [-INF, INF]
    product = Expression(("mul", ("relu", X), ("log", X))).composite()
    assert [float(s) for s in slopes(product, -2.0, -1.0)] == [-INF, INF]
    assert [float(s) for s in slopes(Expression(("div", X, ("abs", X))).composite(), -1.0, 1.0)] == [-INF, INF]


def test_settings_per_entry():
    """As one entry at a time."""
    factor = torch.tensor([[0.5, -2.0, 3.0]], dtype=D)
    offset = torch.tensor([[0.0, 0.3, -1.0]], dtype=D)

    def made(f, o):
        inner = Combine((0,), (Range.exact(f),), Range.exact(o).widened(torch.full_like(o, 1e-9)))
        return Composite.of("test", [inner, Apply((1,), known.TANH), Apply((2,), steep.steep(steep.Exp, "exp"))])

    function = made(factor, offset)
    low, high = torch.tensor([[-1.0, 0.2, -INF]], dtype=D), torch.tensor([[1.0, 0.3, INF]], dtype=D)
    together = slopes(function, low, high)
    for k in range(3):
        alone = made(factor[0, k], offset[0, k])
        own = slopes(alone, low[0, k], high[0, k])
        for a, b in zip(own, together, strict=True):
            assert float(a) == pytest.approx(float(b[0, k]), abs=3e-3)
    stacked = slopes(function, low.expand(4, 1, 3), high.expand(4, 1, 3))
    assert torch.equal(stacked[0][2], together[0])
    assert torch.equal(function.value(torch.zeros(5, 1, 3, dtype=D))[3], torch.exp(torch.tanh(offset)))
    assert function.to(torch.float32, "cpu").value(torch.zeros(1, 3)).dtype == torch.float32


def test_many_entries_take_no_search_each():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(1 << 15, generator=generator, dtype=D)
    function = Expression(NAMED["exp(tanh x)"][0]).composite()
    least, greatest = slopes(function, low, low + 0.1)
    x = low + 0.05
    slope = torch.exp(torch.tanh(x)) * (1 - torch.tanh(x) ** 2)
    assert bool(((least <= slope) & (slope <= greatest)).all())
    assert float((greatest - least).max()) < 0.3


# -- any expression -----------------------------------------------------------------------------------------

NUMBER = st.floats(-3.0, 3.0).map(lambda t: round(t, 3))
TREES = st.recursive(
    st.just(X),
    lambda t: st.one_of(
        st.tuples(st.sampled_from(sorted(UNARY)), t),
        st.tuples(st.just("line"), t, NUMBER, NUMBER),
        st.tuples(st.sampled_from(["add", "mul", "div"]), t, t),
    ),
    max_leaves=4,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(TREES.filter(lambda t: t != X), st.floats(-20.0, 20.0), st.integers(0, 120), st.integers(0, 12))
def test_any_expression_on_any_interval(tree, low, width, shrink):
    check(Expression(tree), low, low + width / 4 * 10.0**-shrink)


@settings(max_examples=10, deadline=None)
@given(TREES.filter(lambda t: t != X))
def test_any_expression_on_the_line(tree):
    check(Expression(tree), -INF, INF)
