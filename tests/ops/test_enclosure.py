"""Constants that forward computes from parameters, against exact rational arithmetic: the enclosure holds it."""

import importlib
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipcert
from lipcert.ops import enclosure
from lipcert.ops.constant import Constant
from lipcert.ops.folding import fold

A = torch.ops.aten
D = torch.float64


class Fn(nn.Module):
    """f(self, x) with buffers given by name."""

    def __init__(self, f, **buffers):
        super().__init__()
        self.f = f
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value))

    def forward(self, x):
        return self.f(self, x)


def run(op, *args, **kwargs):
    """Fold an ATen overload."""
    return fold(op, op._schema.name.split("::")[-1], args, kwargs)


def fractions(values: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in values.double().reshape(-1).tolist()]


def holds(constant: Constant, exact: list[Fraction]) -> None:
    """The exact numbers lie in the enclosure; they, and what the model's precision computes, within the error."""
    ball = constant.exact
    for value, radius, exactly in zip(ball.middle.reshape(-1), ball.spread.reshape(-1), exact, strict=True):
        if math.isfinite(radius):
            assert abs(Fraction(float(value)) - exactly) <= Fraction(float(radius))
    error = torch.zeros_like(constant.value) if constant.error is None else constant.error
    own = constant.own.double().reshape(-1).tolist()
    values = constant.value.reshape(-1).tolist()
    for value, e, exactly, o in zip(values, error.reshape(-1).tolist(), exact, own, strict=True):
        if math.isinf(e):
            continue
        if constant.dtype == torch.float64:
            assert abs(Fraction(value) - exactly) <= Fraction(e)
        if math.isfinite(o):
            assert abs(Fraction(value) - Fraction(o)) <= Fraction(e)


# -- random expressions -------------------------------------------------------------------------------------

MAGNITUDES = st.sampled_from([0, 0, 0, 10, -10, 200, -200, 500, -500, 900, -900, -1000, -1070])


@st.composite
def entries(draw, n):
    """Doubles from 0 and the subnormal to 2^900, close to each other now and then."""
    values = []
    for _ in range(n):
        if values and draw(st.integers(0, 3)) == 0:
            values.append(-values[-1] * (1 + draw(st.integers(0, 2)) * 2.0**-52))
            continue
        mantissa = draw(st.sampled_from([0.0, 1.0, -1.0, 1 / 3, 0.1, -0.7, 1 + 2.0**-52, math.pi]))
        values.append(math.ldexp(mantissa, draw(MAGNITUDES)))
    return torch.tensor(values, dtype=D)


BINARY = [
    (A.add.Tensor, lambda a, b: a + b),
    (A.sub.Tensor, lambda a, b: a - b),
    (A.mul.Tensor, lambda a, b: a * b),
    (A.div.Tensor, lambda a, b: a / b if b else None),
    (A.maximum.default, max),
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_expressions_hold_the_exact_value(data):
    n = 3
    pool = [(Constant.exactly(t), fractions(t)) for t in (data.draw(entries(n)) for _ in range(3))]
    for _ in range(data.draw(st.integers(1, 6))):
        (a, x), (b, y) = (pool[data.draw(st.integers(0, len(pool) - 1))] for _ in range(2))
        op, exactly = BINARY[data.draw(st.integers(0, len(BINARY) - 1))]
        exact = [exactly(p, q) for p, q in zip(x, y, strict=True)]
        result = run(op, a, b)
        if any(e is None for e in exact):
            assert result.exact.radius is not None
            assert bool(result.exact.radius.isinf().any())
            continue
        holds(result, exact)
        pool.append((result, exact))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_single_precision_is_what_runs_or_holds_both_readings(data):
    """In float32 a constant is the module's own tensor; where that is not the exact one but for rounding, both."""
    n = 4
    a, b = (torch.tensor(data.draw(st.lists(st.floats(-10, 10, width=32), min_size=n, max_size=n))) for _ in range(2))
    exact = sum(p * q for p, q in zip(fractions(a), fractions(b), strict=True))
    total = run(A.sum.default, run(A.mul.Tensor, Constant.exactly(a), Constant.exactly(b)))
    for result in (total, run(A.dot.default, Constant.exactly(a), Constant.exactly(b))):
        holds(result, [exact])
        assert result.own.dtype == torch.float32
        value = Fraction(float(result.value))
        error = Fraction(0) if result.error is None else Fraction(float(result.error))
        assert abs(value - exact) <= error + abs(exact) / 1000


@pytest.mark.parametrize("shape", [(1,), (3,), (3, 4), (2, 3, 2, 2)])
def test_what_single_precision_loses_as_a_whole_is_not_taken_for_rounding(shape):
    """(a + 1) − 1 at one index of the first axis, a = 1e-9: lost in float32."""
    a = torch.ones(shape)
    a[-1] = 1e-9
    moved = run(A.sub.Tensor, run(A.add.Tensor, Constant.exactly(a), 1.0), 1.0)
    lost = moved.error[-1] + moved.value[-1]
    assert bool((lost >= float(torch.tensor(1e-9)) * (1 - 1e-6)).all())
    assert not bool(moved.error[:-1].any())


def rows(values: Tensor) -> list[list[Fraction]]:
    return [fractions(row) for row in values]


@settings(max_examples=60, deadline=None)
@given(entries(6), entries(6))
def test_matrix_products_and_sums(a, b):
    a, b = a.reshape(2, 3), b.reshape(3, 2)
    exact = [sum(p * q for p, q in zip(r, c, strict=True)) for r in rows(a) for c in rows(b.T)]
    for op, args in ((A.mm.default, (a, b)), (A.matmul.default, (a, b)), (A.linear.default, (a, b.T.contiguous()))):
        holds(run(op, *(Constant.exactly(t) for t in args)), exact)
    holds(run(A.einsum.default, "ij,jk->ik", [Constant.exactly(a), Constant.exactly(b)]), exact)
    running = [sum(r[: k + 1]) for r in rows(a) for k in range(3)]
    holds(run(A.cumsum.default, Constant.exactly(a), 1), running)
    products = [math.prod(r[: k + 1]) for r in rows(a) for k in range(3)]
    holds(run(A.cumprod.default, Constant.exactly(a), 1), products)
    holds(run(A.prod.dim_int, Constant.exactly(a), 1), [math.prod(r) for r in rows(a)])
    holds(run(A.mean.dim, Constant.exactly(a), [1]), [sum(r) / 3 for r in rows(a)])


@settings(max_examples=60, deadline=None)
@given(entries(8), st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_writing_at_repeated_places_adds(values, places):
    """index_put with accumulate, index_add and scatter_add over places that repeat."""
    index = torch.tensor(places)
    base = torch.tensor([1.0, -1.0, 0.1], dtype=D)
    exact = fractions(base)
    for place, value in zip(places, fractions(values), strict=True):
        exact[place] += value
    x, i, v = Constant.exactly(base), Constant.exactly(index), Constant.exactly(values)
    holds(run(A.index_put.default, x, [i], v, True), exact)
    holds(run(A.index_add.default, x, 0, i, v), exact)
    holds(run(A.scatter_add.default, x, 0, i, v), exact)


def square_within(ball: enclosure.Ball, square: Fraction) -> None:
    value, radius = Fraction(float(ball.middle)), Fraction(float(ball.spread))
    assert max(Fraction(0), value - radius) ** 2 <= square <= (value + radius) ** 2


@settings(max_examples=100, deadline=None)
@given(entries(5))
def test_norms_neither_overflow_nor_vanish(v):
    norm = enclosure.length(enclosure.exact(v), (0,), False)
    square_within(norm, sum(x * x for x in fractions(v)))
    assert float(norm.spread) <= 1e-14 * float(norm.middle) + 1e-307
    square_within(enclosure.root(enclosure.exact(v.abs()[0])), fractions(v.abs()[:1])[0])


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid", "log1p", "expm1", "erf", "atan", "asinh", "sin", "cos"])
def test_elementary_functions_hold_the_value_at_50_digits(name):
    mpmath = pytest.importorskip("mpmath")
    known = {"sigmoid": lambda x: 1 / (1 + mpmath.exp(-x))}
    exactly = known.get(name, getattr(mpmath, name, None))
    points = torch.tensor(
        [0.0, 1e-300, 1e-9, 0.3, 1.0, 2.5, 17.0, -0.25] + ([] if name == "log1p" else [-30.0]), dtype=D
    )
    third = run(A.div.Tensor, Constant.exactly(points), Constant.exactly(torch.tensor(3.0, dtype=D)))
    result = run(getattr(A, name).default, third)
    with mpmath.workdps(50):
        for x, value, error in zip(points.tolist(), result.value.tolist(), result.error.tolist(), strict=True):
            true = exactly(mpmath.mpf(x) / 3)
            assert abs(true - mpmath.mpf(value)) <= error
            assert error <= 1e-13 * max(1.0, abs(value))


def test_creations_and_whole_numbers_are_what_the_model_holds():
    grid = run(A.arange.start_step, 0, 1, 0.1, dtype=torch.float32)
    assert grid.error is None
    assert torch.equal(grid.value, torch.arange(0, 1, 0.1).double())
    eye = run(A.eye.default, 3)
    assert eye.error is None
    hot = run(A.one_hot.default, Constant.exactly(torch.tensor([0, 2, 1])), 3)
    assert hot.exact.radius is None
    assert not hot.value.is_floating_point()
    halves = run(A.mul.Tensor, hot, 0.5)
    assert halves.error is None
    assert float(halves.value.sum()) == 1.5


def test_masks_and_moves_keep_a_parameter_exact():
    w = torch.randn(4, 4)
    mask = Constant.exactly(torch.ones(4, 4).tril())
    pruned = run(A.mul.Tensor, Constant.exactly(w), mask)
    moved = run(
        A.cat.default, [run(A.t.default, pruned), run(A.masked_fill.Scalar, pruned, Constant.exactly(w > 0), 0.25)]
    )
    assert moved.error is None
    assert moved.rounding == 0.0


# -- bounds -------------------------------------------------------------------------------------------------

BOTH = ("autolip", "lipsdp")


def bound(model, n=2, method="autolip", dtype=D, **options):
    return lipcert.bound(model.eval(), torch.zeros(1, n, dtype=dtype), method=method, budget=5, **options)


@pytest.mark.parametrize("method", ["autolip", "liplt", "lipsdp"])
@pytest.mark.parametrize(
    "factor",
    [
        lambda a: ((a + 1.0) - 1.0) * 1e17,
        lambda a: (1.0 - (1.0 - a)) * 1e17,
        lambda a: (torch.cat([a, a + 1.0]).sum() - 1.0 - a) * 1e17,
        lambda a: (torch.stack([a * 0 + 1e16, a * 1e17, a * 0 - 1e16])).sum(0),
    ],
)
def test_a_constant_that_only_cancels_to_zero_is_not_zero(method, factor):
    """Truth 1 for a = 1e-17: in doubles the factor is 0."""
    result = bound(Fn(lambda s, x: x * factor(s.a), a=torch.tensor([1e-17], dtype=D)), method=method)
    assert result.guarantee == "rigorous"
    assert result.value >= 1.0 - 1e-15


@pytest.mark.parametrize("norm", [(1, 1), (2, 2), (math.inf, math.inf)])
def test_cancelled_matrix_in_every_norm(norm):
    """W = ((A + 1) − 1)·1e17 with A = 1e-17 [[1, 2], [3, 4]], entry by entry, multiplying from the right."""
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=D)
    result = bound(Fn(lambda s, x: x @ (((s.a + 1.0) - 1.0) * 1e17), a=a * 1e-17), norm=norm)
    truth = float(torch.linalg.matrix_norm(a.T, {1: 1, 2: 2, math.inf: math.inf}[norm[0]]))
    assert result.guarantee == "rigorous"
    assert truth * (1 - 1e-12) <= result.value


@pytest.mark.parametrize("v", [1.6e-162, 1e-200, 1e-310, 1.0, 1e160, 1e200, 1e307])
@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_normalised_weights_of_any_size(v, kind):
    """weight_norm of v·I with g = 1 is I, spectral_norm of v·I too, whatever v: truth 1 in exact arithmetic."""
    layer = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2, dtype=D) * v)
    if kind == "weight":
        model = nn.utils.parametrizations.weight_norm(layer, dim=0)
        with torch.no_grad():
            model.parametrizations.weight.original0.fill_(1.0)
    else:
        model = nn.utils.parametrizations.spectral_norm(layer)
        with torch.no_grad():
            state = model.parametrizations.weight[0]
            state._u.copy_(torch.tensor([1.0, 0.0], dtype=D))
            state._v.copy_(torch.tensor([1.0, 0.0], dtype=D))
    try:
        result = bound(model)
    except lipcert.errors.LipcertError:
        assert not 1e-150 < v < 1e150
        return
    assert result.value >= 1.0 - 1e-15
    if 1e-150 < v < 1e150:
        assert result.guarantee == "rigorous"
        assert result.value <= 1.0 + 1e-12


@pytest.mark.parametrize(("a", "b", "scales"), [(1e-200, 1e-130, (1e165, 1e165)), (1e200, 1e200, (1e-200, 1e-200))])
def test_products_that_leave_the_range_of_floats(a, b, scales):
    """x·(a·b)·s·s, truth 1: the product a·b under- or overflows."""
    buffers = {"a": torch.tensor([a], dtype=D), "b": torch.tensor([b], dtype=D)}
    model = Fn(lambda s, x: x * (s.a * s.b) * scales[0] * scales[1], **buffers)
    if a * b == math.inf:
        with pytest.raises(lipcert.errors.CaptureError, match="leaves the range of float64"):
            bound(model)
    else:
        assert bound(model).value >= 1.0 - 1e-14


@pytest.mark.parametrize(("var", "eps", "gamma"), [
    (5e-324, 0.0, 1e-162), (1e-310, 0.0, 1.0), (1e-320, 1e-320, 1e-160), (1e300, 0.0, 1e150), (0.0, 1e-300, 1.0),
    (1.0, 1e-5, 0.0), (1.0, 1e-5, 5e-324), (3.0, 0.1, 1e300),
])  # fmt: skip
def test_batch_norm_of_any_size(var, eps, gamma):
    """γ/√(var + ε) against its square in exact arithmetic."""
    layer = nn.BatchNorm1d(2, eps=eps).double()
    with torch.no_grad():
        layer.running_var.fill_(var)
        layer.weight.fill_(gamma)
    if not 2.0**-700 < gamma / math.sqrt(var + eps) < 2.0**700 and gamma:
        with pytest.raises(lipcert.errors.NumericsError, match="outside the range"):
            bound(layer)
        return
    result = bound(layer)
    square = Fraction(gamma) ** 2 / (Fraction(var) + Fraction(eps))
    assert Fraction(result.value) ** 2 >= square * (1 - Fraction(1, 2**52))
    if 1e-150 < gamma < 1e150 and square > Fraction(1, 10**600):
        assert Fraction(result.value) ** 2 <= square * (1 + Fraction(1, 10**10))


@pytest.mark.parametrize("divisor", [3.0, 0.1, 1e200, 2.0**600, 1e-200, 1e308, 1.7e308, 2.0**1023, 1e-300, 2.0**-1022])
def test_division_by_any_constant(divisor):
    result = bound(Fn(lambda s, x: x / s.c, c=torch.tensor([divisor], dtype=D)))
    assert Fraction(result.value) >= 1 / Fraction(divisor)
    assert Fraction(result.value) <= 1 / Fraction(divisor) * (1 + Fraction(1, 10**12))


@pytest.mark.parametrize("divisor", [1e308, 1.7e308, 2.0**1023, 1e-300, 2.0**-1022])
def test_division_by_extreme_constants(divisor):
    """1/c is below the normal numbers, or beyond 2^700."""
    result = bound(Fn(lambda s, x: x / s.c, c=torch.tensor([divisor], dtype=D)))
    assert 1 / Fraction(divisor) <= Fraction(result.value) <= 1 / Fraction(divisor) * (1 + Fraction(1, 10**12))


def test_division_by_the_least_number():
    result = bound(Fn(lambda s, x: x / s.c, c=torch.tensor([5e-324], dtype=D)))
    assert result.value == math.inf
    assert result.log10 == pytest.approx(1074 * math.log10(2.0))


@pytest.mark.few(2)
@pytest.mark.parametrize("write", ["index_put", "index_add", "cumsum"])
def test_sums_that_a_write_makes_are_counted(write):
    """Σ w over N places, w = 1e16, 1, …, 1, −1e16: truth N − 2, which float sums lose."""
    n = 40
    w = torch.ones(n * n, dtype=D)
    w[0], w[-1] = 1e16, -1e16
    index = torch.zeros(n * n, dtype=torch.long)

    def model(s, x):
        assert x.shape[0] == 1
        v = (x.repeat(1, n * n) * s.w).reshape(-1)
        if write == "index_put":
            return torch.zeros(1, 1, dtype=D).index_put((s.i, s.i), v, accumulate=True)
        if write == "index_add":
            return torch.zeros(1, 1, dtype=D).index_add(1, s.i, v.reshape(1, -1))
        return v.cumsum(0)[None, -1:]

    for method in BOTH:
        result = bound(Fn(model, w=w, i=index), n=1, method=method)
        assert result.value >= n * n - 2


def float32_weights() -> list[tuple[str, nn.Module]]:
    torch.manual_seed(3)
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 9))
    nested = nn.utils.parametrizations.weight_norm(nn.Linear(12, 9))
    lora = Fn(
        lambda s, x: x @ (s.w + (s.a @ s.b) * 0.1).T, w=torch.randn(9, 12), a=torch.randn(9, 2), b=torch.randn(2, 12)
    )
    scaled = Fn(lambda s, x: (x @ s.w) * torch.exp(s.t) / s.t.abs().mean(), w=torch.randn(12, 9), t=torch.randn(9))
    return [("spectral_norm", normed), ("weight_norm", nested), ("lora", lora), ("exp", scaled)]


@pytest.mark.parametrize(("name", "model"), float32_weights(), ids=lambda v: v if isinstance(v, str) else "")
def test_float32_bounds_are_those_of_the_weight_that_runs(name, model):
    """… to the last digits, and those of the exact weight up to the rounding of float32."""
    model = model.eval()
    eye = torch.eye(12)
    runs = model.weight.detach().double() if name.endswith("norm") else None
    exact = model.double()(eye.double()) - model(torch.zeros(1, 12, dtype=D))
    truth = float(torch.linalg.matrix_norm(exact, 2))
    result = bound(model.float(), n=12, dtype=torch.float32)
    assert result.guarantee == "rigorous"
    if runs is not None:
        own = float(torch.linalg.matrix_norm(runs, 2))
        assert own * (1 - 1e-15) <= result.value <= own * (1 + 1e-10)
    assert truth * (1 - 1e-6) <= result.value <= truth * (1 + 1e-6)


def test_orthogonal_weights_stay_numerical():
    """Ops without an enclosure (matrix_exp, householder, solve) never make a rigorous bound."""
    for kind in ("matrix_exp", "householder"):
        model = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4, bias=False), orthogonal_map=kind).double()
        result = bound(model, n=4)
        assert result.guarantee == "numerical"
        assert result.value == pytest.approx(1.0, abs=1e-6)


def test_prelu_with_cancelled_slopes():
    """Slopes (a + 1) − 1 with a = 1e-17, times 1e17 afterwards: truth 1 left of 0, 1e17 right of it."""
    model = Fn(lambda s, x: torch.prelu(-x.abs(), (s.a + 1.0) - 1.0) * 1e17, a=torch.tensor([1e-17], dtype=D))
    assert bound(model).value >= 1.0 - 1e-15


@pytest.mark.parametrize("beta", [1.0, -1.0, 0.01, 1e-6, 1e-300])
@pytest.mark.parametrize("threshold", [20, 30, 40, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_is_refused_where_the_switch_to_the_identity_shows(beta, threshold, dtype):
    """torch's softplus jumps by log1p(exp(−t))/β at x = t/β: a step that float32 cannot resolve, float64 can."""
    model = nn.Softplus(beta=beta, threshold=threshold)
    jump = math.log1p(math.exp(-threshold)) / abs(beta)
    if dtype == torch.float64 and threshold < 40 and jump > 1e-6:
        with pytest.raises(lipcert.errors.NotLipschitzError, match="threshold of 40 or more"):
            bound(model, dtype=dtype)
        return
    assert bound(model, dtype=dtype).value == 1.0
    if abs(beta) > 1e-30 and threshold < 80:  # across the switch the model climbs as it should, up to rounding
        low, high = (torch.tensor([threshold / beta * (1 + s)], dtype=dtype).double() for s in (-1e-6, 1e-6))
        assert float((model(high) - model(low)).abs() / (high - low).abs()) <= 1.0 + 1e-3


class Wrong(nn.Module):
    """Half precision inside: x ↦ W x with W in bfloat16, whatever the module is cast to."""

    def __init__(self, dtype):
        super().__init__()
        self.kind = dtype
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return (x.to(self.kind) @ self.w.to(self.kind)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_wrong_rule_does_not_hide_behind_half_precision(dtype, monkeypatch):
    """A rule that is 4 % off passes for rounding against a bfloat16 model, not against its program in float64."""
    model = Wrong(dtype).eval()
    honest = bound(model, n=4, dtype=torch.float32)
    weight = model.w.detach().to(dtype).double()
    assert honest.value == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=1e-9)
    rules = importlib.import_module("lipcert.ops.linear")
    product = rules._product

    def off(ctx, a, b, multiply):
        return product(ctx, a, b, lambda p, q: 1.04 * multiply(p, q))

    monkeypatch.setattr(rules, "_product", off)
    with pytest.raises(lipcert.errors.CaptureError, match="exported program"):
        bound(model, n=4, dtype=torch.float32)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_factors_that_are_no_numbers_are_named(factor):
    ones = torch.ones(2, 2, dtype=D)
    model = Fn(lambda s, x: torch.addmm(s.a[:1], x, s.a, alpha=factor), a=ones)
    with pytest.raises(lipcert.errors.UnsupportedOpError, match="finite"):
        bound(model)


class Weight(nn.Module):
    """A parametrisation given as a function."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, w):
        return self.f(w)


PLACES = torch.tensor([[0, 0, 1, 2, 2]] * 5)
RIGOROUS = {
    "rows of length exp(w)": lambda w: torch.exp(w[:, :1]) * w / w.norm(dim=1, keepdim=True).clamp_min(1e-3),
    "standardised": lambda w: (w - w.mean(1, keepdim=True)) / torch.sqrt(w.var(1, keepdim=True) + 1e-5),
    "by moments": lambda w: w * torch.rsqrt(torch.var_mean(w, dim=1, keepdim=True, correction=0)[0] + 1e-5),
    "symmetric": lambda w: w.triu() + w.triu(1).T,
    "stochastic": lambda w: torch.softmax(w, 1),
    "positive": torch.nn.functional.softplus,
    "quantised": lambda w: torch.round(w / (w.abs().max() / 127)).clamp(-127, 127) * (w.abs().max() / 127),
    "cumulated": lambda w: torch.cumprod(w, 1) + torch.cumsum(w, 0),
    "scattered": lambda w: torch.zeros_like(w).scatter_add(1, PLACES, w),
    "contracted": lambda w: torch.einsum("ij,jk->ik", w, torch.eye(5, dtype=w.dtype)[[1, 0, 2, 4, 3]]),
}
UNKNOWN = {
    "scatter_reduce": lambda w: torch.zeros_like(w).scatter_reduce(1, PLACES, w, "amax", include_self=False),
    "power": lambda w: torch.linalg.matrix_power(w, 3),
}


@pytest.mark.few(16)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*RIGOROUS, *UNKNOWN])
@pytest.mark.parametrize("normed", [False, True])
def test_parametrised_weights_are_those_that_run(name, dtype, normed):
    """The bound is the norm of the module's own weight, to the last digits; spectral_norm on top of it or not."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 5, bias=False)
    nn.utils.parametrize.register_parametrization(layer, "weight", Weight({**RIGOROUS, **UNKNOWN}[name]))
    layer = (nn.utils.parametrizations.spectral_norm(layer) if normed else layer).to(dtype).eval()
    own = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    result = bound(layer, n=5, dtype=dtype)
    assert result.guarantee == ("rigorous" if name in RIGOROUS else "numerical")
    assert own * (1 - 1e-15) <= result.value <= own * (1 + 1e-10)


SMALL = 1e-17
BETWEEN = {
    "matrix product": (lambda s, x: x @ (((s.a + 1.0) - 1.0) * 1e17).expand(2, 2), 2.0),
    "convolution": (lambda s, x: torch.conv1d(x[:, None], ((s.a + 1) - 1)[None, None] * 1e17)[:, 0], 1.0),
    "masked": (lambda s, x: x.masked_fill(torch.tensor([True, False]), 0.0) * ((s.a + 1) - 1) * 1e17, 1.0),
    "bilinear": (lambda s, x: nn.functional.bilinear(x, (s.a + 1 - 1).expand(1, 2) * 1e17, s.ones), 8**0.5),
    "bias": (lambda s, x: torch.relu(x + (s.a + 1 - 1)), 1.0),
    "joined": (lambda s, x: torch.relu(torch.cat([x, (s.a + 1 - 1)[None]], 1)).sum(1, keepdim=True), 2**0.5),
    "in a layer": (lambda s, x: torch.tanh(x * (s.a + 1)) * 0.5 + x * ((s.a + 1) - 1) * 1e17, 1.5),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", BETWEEN)
def test_undetermined_constants_leave_the_truth_between_the_bounds(name):
    """a + 1 − 1 with a = 1e-17 is 0 in floats and 1e-17 in truth: neither bound takes the 0 for granted."""
    function, truth = BETWEEN[name]
    model = Fn(function, a=torch.tensor([SMALL], dtype=D), ones=torch.ones(1, 2, 2, dtype=D)).eval()
    for method in BOTH:
        result = bound(model, method=method)
        assert result.guarantee == "rigorous"
        assert truth * (1 - 1e-15) <= result.value <= truth * 1.3
    lower = lipcert.lower_bound(model, torch.zeros(1, 2, dtype=D), budget=0.5)
    assert lower.value <= truth * (1 + 1e-15)
