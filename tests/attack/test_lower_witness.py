"""Lower bounds against exact arithmetic: rationals, mpmath, closed forms; attempts to get a number above the truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.capture.torch_export import capture
from lipcert.certificates.lower_witness import evaluate
from lipcert.domain import Ball, Box, Domain
from lipcert.errors import LipcertError, NumericsError
from lipcert.numerics.midrad import Near, Range
from lipcert.ops import nonlinearities as known
from lipcert.ops.nonlinearities import two_slopes
from lipcert.ops.rational import Real, exactly
from lipcert.problem import Problem
from lipcert.ranges.enclosed_run import derivative
from lipcert.ranges.enclosure import Enclosure
from lipcert.result import LowerWitness

D = torch.float64


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def problem(model: nn.Module, n: int, norm=(2.0, 2.0), domain: Domain = None, dtype=D) -> Problem:
    return Problem(capture(model.eval(), torch.zeros(1, n, dtype=dtype)), norm, domain)


def at(p: Problem, x: Tensor, v: Tensor) -> float:
    """What the witness proves; 0 where it is refused."""
    try:
        return evaluate(p, LowerWitness(x, v))
    except LipcertError:
        return 0.0


def ratio(model: nn.Module, x: Tensor, v: Tensor) -> float:
    """‖Jv‖/‖v‖ by torch in float64."""
    _, change = torch.autograd.functional.jvp(model.double(), x[None], v[None])
    return float(change.norm() / v.norm())


# -- elementwise functions against mpmath ---------------------------------------------------------------------

SCALARS: dict[str, tuple[Callable[[Tensor], Tensor], Callable]] = {
    "tanh": (torch.tanh, mp.tanh),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + mp.exp(-x))),
    "softplus": (lambda x: F.softplus(x, 1.0, 40.0), lambda x: mp.log1p(mp.exp(x))),
    "gelu": (F.gelu, lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: x * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))) / 2,
    ),
    "silu": (F.silu, lambda x: x / (1 + mp.exp(-x))),
    "mish": (F.mish, lambda x: x * mp.tanh(mp.log1p(mp.exp(x)))),
    "erf": (torch.erf, mp.erf),
    "erfc": (torch.erfc, mp.erfc),
    "elu": (F.elu, lambda x: x if x > 0 else mp.expm1(x)),
    "celu 0.3": (lambda x: F.celu(x, 0.3), lambda x: x if x > 0 else 0.3 * mp.expm1(x / mp.mpf(0.3))),
    "selu": (
        F.selu,
        lambda x: (
            mp.mpf("1.0507009873554804934193349852946")
            * (x if x > 0 else mp.mpf("1.6732632423543772848170429916717") * mp.expm1(x))
        ),
    ),
    "softsign": (F.softsign, lambda x: x / (1 + abs(x))),
    "tanhshrink": (F.tanhshrink, lambda x: x - mp.tanh(x)),
    "log_sigmoid": (F.logsigmoid, lambda x: -mp.log1p(mp.exp(-x))),
    "hardswish": (F.hardswish, lambda x: x * min(max(x + 3, 0), 6) / 6),
    "sin": (torch.sin, mp.sin),
    "cos": (torch.cos, mp.cos),
    "atan": (torch.atan, mp.atan),
    "asinh": (torch.asinh, mp.asinh),
    "square": (lambda x: x**2, lambda x: x**2),
    "cube": (lambda x: x**3, lambda x: x**3),
    "sqrt": (lambda x: torch.sqrt(1 + x * x), lambda x: mp.sqrt(1 + x * x)),
    "quotient": (lambda x: x / (2.0 + x.abs()), lambda x: x / (2 + abs(x))),
    "exp": (lambda x: torch.exp(-x.abs()), lambda x: mp.exp(-abs(x))),
    "log1p": (lambda x: torch.log1p(x.abs()), lambda x: mp.log1p(abs(x))),
    "log": (lambda x: torch.log(x.abs() + 1.5), lambda x: mp.log(abs(x) + mp.mpf(1.5))),
    "leaky": (lambda x: F.leaky_relu(x, 0.3), lambda x: x if x > 0 else mp.mpf(0.3) * x),
    "softshrink": (F.softshrink, lambda x: mp.sign(x) * max(abs(x) - mp.mpf(0.5), 0)),
}
POINTS = (1e-300, 1e-9, 0.1, 0.7, 1.4142, 3.3, 8.5, 19.0, 26.0, 37.5, 45.0, 700.0, 1e6, 1e15)


@pytest.mark.few(8)
@pytest.mark.parametrize("name", SCALARS)
def test_value_and_slope_enclose_mpmath(name):
    function, reference = SCALARS[name]
    x = torch.tensor([s * p for p in POINTS for s in (1.0, -1.0)], dtype=D)
    with mp.workdps(420):
        for rad in (0.0, 1e-12):
            spread = rad * x.abs()
            result = function(Enclosure(Range(x, spread), Range.exact(torch.ones_like(x))))
            for place, value in enumerate(x.tolist()):
                for inner in (value, value + float(spread[place]) * 0.99, value - float(spread[place]) * 0.99):
                    exact = reference(mp.mpf(inner))
                    h = mp.mpf(10) ** -30 * max(1, abs(mp.mpf(inner)))
                    h = min(h, abs(mp.mpf(inner)) / 2)
                    slope = (reference(mp.mpf(inner) + h) - reference(mp.mpf(inner) - h)) / (2 * h)
                    for found, true in ((result.value, exact), (result.tangent, slope)):
                        gap = abs(true - mp.mpf(float(found.mid[place])))
                        assert gap <= mp.mpf(float(found.rad[place])) + abs(true) * mp.mpf(10) ** -19 + mp.mpf("1e-300")


def test_plain_arithmetic_encloses_rationals():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200, generator=generator, dtype=D) * 10.0 ** torch.randint(-9, 9, (200,)) for _ in range(2))
    r, s = a.abs() * 1e-9, b.abs() * 1e-3
    for name, op in {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: x * y.reciprocal() if isinstance(y, Range) else x / y,
    }.items():
        result = op(Range(a, r), Range(b, s))
        for place in range(200):
            for i in (-1, 0, 1):
                for j in (-1, 1):
                    x = Fraction(float(a[place])) + i * Fraction(float(r[place]))
                    y = Fraction(float(b[place])) + j * Fraction(float(s[place]))
                    gap = abs(op(x, y) - Fraction(float(result.mid[place])))
                    assert gap <= Fraction(float(result.rad[place])), name


# -- kinks and ties ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio_exponent", [3, 9, 12, 15])
def test_a_kink_of_a_small_tangent_counts_when_the_next_layer_magnifies_it(ratio_exponent):
    """y ↦ −relu(y) + relu(−y) + 2 relu(y + 9) has slope 1 near 0, on both sides; beside it, a huge other neuron."""
    big = 10.0**ratio_exponent
    first, last = nn.Linear(2, 4).double(), nn.Linear(4, 1, bias=False).double()
    first.weight.data = torch.tensor([[0, 1.0], [0, -1.0], [0, 1.0], [big, 0]], dtype=D)
    first.bias.data = torch.tensor([0, 0, 9.0, big], dtype=D)
    last.weight.data = torch.tensor([[-1.0, 1.0, 2.0, 0.1 / big]], dtype=D)
    p = problem(nn.Sequential(first, nn.ReLU(), last), 2)
    truth = math.hypot(1.0, 0.1)
    for y in (0.0, 1e-320, 1e-17, -1e-17, 1e-3):
        for v in ((0.05, 1.0), (0.1, 1.0), (0.1, -1.0), (1.0, 1e-9)):
            assert at(p, torch.tensor([0.0, y], dtype=D), torch.tensor(v, dtype=D)) <= truth
    assert at(p, torch.tensor([0.0, 1e-3], dtype=D), torch.tensor([0.1, 1.0], dtype=D)) >= truth * (1 - 1e-9)


def test_ties_of_pools_and_sorts_are_resolved_by_proof():
    pool = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.MaxPool1d(3), nn.Flatten())
    p = problem(pool, 3)
    tied, v = torch.tensor([0.3, 0.3, 0.1], dtype=D), torch.tensor([1.0, -1.0, 5.0], dtype=D)
    assert at(p, tied, v) == 0.0
    assert at(p, tied, torch.tensor([1.0, 0.5, 9.0], dtype=D)) <= 1.0 / math.sqrt(1 + 0.25 + 81)
    near = torch.tensor([0.3, 0.3 + 1e-14, 0.1], dtype=D)
    assert at(p, near, torch.tensor([0.0, 1.0, 0.0], dtype=D)) == pytest.approx(1.0, rel=1e-12)
    order = problem(Call(lambda x: torch.sort(x, dim=1).values[:, 1:]), 3)
    assert at(order, tied, v) <= math.sqrt(2.0 / 27.0)
    apart = torch.tensor([0.3, 0.4, 0.1], dtype=D)
    assert at(order, apart, torch.tensor([1.0, 2.0, 0.0], dtype=D)) == pytest.approx(1.0, rel=1e-12)


def test_a_kink_at_the_edge_of_the_domain_is_seen_from_inside():
    """relu(−x) is constant on [0, 1], its one-sided derivative at 0 out of the domain is not."""
    p = problem(Call(lambda x: torch.relu(-x)), 1, domain=Box(torch.zeros(1), torch.ones(1)))
    for v in (1.0, -1.0):
        assert at(p, torch.zeros(1, dtype=D), torch.tensor([v], dtype=D)) == 0.0


# -- cancellation -----------------------------------------------------------------------------------------------


def test_values_lost_to_cancellation_are_unknown_not_zero():
    """(x + 1e16) − 1e16 is x for the reals; in float64 it is even, and 0 for small x."""
    first = nn.Linear(1, 1).double()
    first.weight.data.fill_(1.0)
    first.bias.data.fill_(1e16)
    second = nn.Linear(1, 2).double()
    second.weight.data = torch.tensor([[1.0], [-1.0]], dtype=D)
    second.bias.data = torch.tensor([-1e16, 1e16], dtype=D)
    third = nn.Linear(2, 1, bias=False).double()
    third.weight.data = torch.tensor([[1.0, 1.0]], dtype=D)
    p = problem(nn.Sequential(first, second, nn.ReLU(), third), 1)  # |x|
    asymmetric = nn.Linear(2, 1, bias=False).double()
    asymmetric.weight.data = torch.tensor([[1.0, 5.0]], dtype=D)
    q = problem(nn.Sequential(first, second, nn.ReLU(), asymmetric), 1)
    for x in (0.3, -0.3, 0.9, 1.5, 7.0, -7.0):
        point, v = torch.tensor([x], dtype=D), torch.ones(1, dtype=D)
        assert at(p, point, v) <= 1.0
        assert at(q, point, v) <= (1.0 if x > 0 else 5.0)


@pytest.mark.parametrize("base", [1.0, 1e8, 1e15, 3e16, 2.0**56])
def test_layer_norm_where_its_input_cancels(base):
    """On a segment a few units in the last place long, against the Jacobian to 60 digits."""
    eps, n = 1e-5, 4
    model = nn.LayerNorm(n, eps=eps, elementwise_affine=False).double()
    generator = torch.Generator().manual_seed(int(math.log2(base)))
    ulp = math.ulp(base)
    net = capture(model.eval(), torch.zeros(1, n, dtype=D))
    v = torch.tensor([1.0, 0, 0, 0], dtype=D)
    with mp.workdps(60):
        for _ in range(20):
            x = base + torch.randint(0, 6, (n,), generator=generator).double() * ulp
            X = [mp.mpf(float(a)) for a in x]
            mean = sum(X) / n
            z = [a - mean for a in X]
            r = 1 / mp.sqrt(sum(a * a for a in z) / n + mp.mpf(eps))
            column = [r * ((i == 0) - mp.mpf(1) / n) - z[i] * z[0] * r**3 / n for i in range(n)]
            exact = mp.sqrt(sum(c * c for c in column))
            value = at(Problem(net, (2.0, 2.0)), x, v)
            assert value <= exact * (1 + mp.mpf(10) ** -18)
            if base == 1.0:
                assert value >= exact * (1 - mp.mpf(10) ** -9)


@pytest.mark.slow
def test_batch_norm_whose_shift_cancels():
    """scale = ½ exactly (var + eps = 4): the sign of (x − mean)/2·γ + β is known in rationals."""
    generator = torch.Generator().manual_seed(3)
    norm = nn.BatchNorm1d(1, eps=1.0).double()
    norm.running_var.fill_(3.0)
    v = torch.ones(1, dtype=D)
    decided = 0
    for _ in range(40):
        gamma, mean, x = (float(t) for t in torch.rand(3, generator=generator, dtype=D) + 0.5)
        mean *= 1e6
        norm.weight.data.fill_(gamma)
        norm.running_mean.fill_(mean)
        norm.bias.data.fill_((mean - x) * gamma / 2)
        true = (Fraction(x) - Fraction(mean)) / 2 * Fraction(gamma) + Fraction(float(norm.bias.data[0]))
        value = at(problem(nn.Sequential(norm, nn.ReLU()), 1), torch.tensor([x], dtype=D), v)
        assert value <= (gamma / 2 if true > 0 else 0.0)
        far = at(problem(nn.Sequential(norm, nn.ReLU()), 1), torch.tensor([x + 1e-3], dtype=D), v)
        decided += far == pytest.approx(gamma / 2, rel=1e-12)
    assert decided == 40


CONSTANTS = {
    "maximum": lambda x: torch.maximum(x, torch.full((2,), 0.25, dtype=D)),
    "where": lambda x: torch.where(torch.tensor([True, False]), x, torch.full((2,), 0.1, dtype=D)),
    "padding": lambda x: F.pad(x, (1, 1), value=0.7),
    "concatenated": lambda x: torch.cat([x, torch.full((1, 1), 0.3, dtype=D)], 1),
    "logaddexp": lambda x: torch.logaddexp(x, torch.full((2,), 0.3, dtype=D)),
    "addmm": lambda x: torch.addmm(torch.full((2,), 0.3, dtype=D), x, torch.ones(2, 2, dtype=D), beta=0.1),
    "added": lambda x: x + torch.full((2,), 0.3, dtype=D),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_offsets_of_every_op_are_known(name):
    """A kink behind them is told apart from a point that is well off it."""
    model = nn.Sequential(Call(CONSTANTS[name]), nn.ReLU())
    x, v = torch.tensor([1.5, 0.6], dtype=D), torch.tensor([1.0, 0.3], dtype=D)
    value = at(problem(model, 2), x, v)
    assert ratio(model, x, v) * (1 - 1e-12) <= value <= ratio(model, x, v) * (1 + 1e-12)


@pytest.mark.parametrize("shift", [0.0, 1e3, 1e8, 1e15])
def test_softmax_saturated_and_far_out(shift):
    p = problem(nn.Softmax(dim=1), 3)
    v = torch.tensor([1.0, -1.0, 0.5], dtype=D)
    with mp.workdps(60):
        for gap in (0.0, 1.0, 40.0, 800.0):
            x = torch.tensor([shift, shift + gap, shift - gap], dtype=D)
            weights = [mp.exp(mp.mpf(float(a)) - mp.mpf(float(x.max()))) for a in x]
            probabilities = [w / sum(weights) for w in weights]
            average = sum(q * mp.mpf(float(t)) for q, t in zip(probabilities, v, strict=True))
            change = [q * (mp.mpf(float(t)) - average) for q, t in zip(probabilities, v, strict=True)]
            exact = mp.sqrt(sum(c * c for c in change)) / mp.sqrt(mp.mpf("2.25"))
            value = at(p, x, v)
            assert value <= exact
            assert value >= exact * (1 - mp.mpf("1e-10")) or exact < mp.mpf("1e-280")


@pytest.mark.parametrize("kind", ["group", "instance", "rms", "normalize", "vector_norm", "logsumexp"])
def test_blocks_agree_with_autograd_and_never_exceed_their_gain(kind):
    model: nn.Module = {
        "group": lambda: nn.Sequential(nn.Unflatten(1, (4, 3)), nn.GroupNorm(2, 4), nn.Flatten()),
        "instance": lambda: nn.Sequential(nn.Unflatten(1, (4, 3)), nn.InstanceNorm1d(4), nn.Flatten()),
        "rms": lambda: nn.RMSNorm(12, eps=1e-5),
        "normalize": lambda: Call(lambda x: F.normalize(x, dim=1)),
        "vector_norm": lambda: Call(lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True)),
        "logsumexp": lambda: Call(lambda x: torch.logsumexp(x, 1, keepdim=True)),
    }[kind]()
    model = model.double().eval()
    p = problem(model, 12)
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-6, 1.0, 1e3):
        for _ in range(3):
            x, v = (torch.randn(12, generator=generator, dtype=D) for _ in range(2))
            value, plain = at(p, scale * x, v), ratio(model, scale * x, v)
            assert value <= plain * (1 + 1e-9)
            assert value >= plain * (1 - 1e-7)


# -- scales, precision, domains ---------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-12, 12, -150, 150])
def test_ill_scaled_layers(exponent):
    """Two layers of scales 10^±e: the product is that of plain ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    x, v = torch.randn(2, 3, dtype=D)
    plain = ratio(model, x, v)
    model[0].weight.data *= 10.0**exponent
    model[2].weight.data *= 10.0**-exponent
    value = at(problem(model, 3), x, v)
    assert plain * (1 - 1e-12) <= value <= plain * (1 + 1e-12)


def test_products_that_underflow_are_not_taken_for_zero_or_more():
    model = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    ).double()
    for layer, weight in zip(model, (1e-200, 1e-200, 1e300), strict=True):
        layer.weight.data.fill_(weight)
    assert at(problem(model, 1), torch.ones(1, dtype=D), torch.ones(1, dtype=D)) <= 1e-100


@pytest.mark.parametrize(
    "weights", [(1e-310, 1e300), (3e-320, 1e300, 1e10), (1e-160, 1e-160, 1e300), (1e-300, 1e-20, 1e308)]
)
def test_subnormal_products_are_never_too_large(weights):
    """The rounding of a subnormal number is large beside it, and the error bound itself must not underflow."""
    layers = [nn.Linear(1, 1, bias=False).double() for _ in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data.fill_(weight)
    p = problem(nn.Sequential(*layers), 1)
    true = math.prod(Fraction(w) for w in weights)
    for x in (1.0, 0.3, 1e-5, 1e5):
        for v in (1.0, 0.7, 1e-3):
            assert Fraction(at(p, torch.tensor([x], dtype=D), torch.tensor([v], dtype=D))) <= true


def test_overflow_is_refused():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for layer in model:
        layer.weight.data.fill_(1e200)
    with pytest.raises(NumericsError):
        evaluate(problem(model, 1), LowerWitness(torch.ones(1), torch.ones(1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_parameters_are_exact(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype).eval()
    p = problem(model, 3, dtype=dtype)
    x, v = torch.randn(2, 3, dtype=D)
    plain = ratio(model, x, v)
    assert plain * (1 - 1e-12) <= at(p, x, v) <= plain * (1 + 1e-13)


@pytest.mark.parametrize("function", [F.gelu, torch.tanh, F.elu, F.silu, torch.sin])
@pytest.mark.parametrize("where", [1.0, -25.0, 1e15])
def test_boxes_one_unit_wide(function, where):
    """The difference quotient over the box, to 60 digits, is within a curvature's reach of every slope in it."""
    name = {F.gelu: "gelu", torch.tanh: "tanh", F.elu: "elu", F.silu: "silu", torch.sin: "sin"}[function]
    low, high = where, math.nextafter(where, math.inf)
    p = problem(Call(function), 1, domain=Box(torch.tensor([low], dtype=D), torch.tensor([high], dtype=D)))
    with mp.workdps(60):
        f = SCALARS[name][1]
        grid = [mp.mpf(low) + (mp.mpf(high) - mp.mpf(low)) * k / 64 for k in range(65)]
        steepest = max(abs((f(b) - f(a)) / (b - a)) for a, b in itertools.pairwise(grid))
        for x in (low, high):
            value = at(p, torch.tensor([x], dtype=D), torch.ones(1, dtype=D))
            assert value <= steepest + 2 * (grid[1] - grid[0]) + mp.mpf(10) ** -25


def test_balls_contain_by_exact_arithmetic():
    generator = torch.Generator().manual_seed(0)
    for p in (1.0, 2.0, math.inf):
        for _ in range(100):
            center, step = (torch.randn(3, generator=generator, dtype=D) for _ in range(2))
            x = center + step
            gaps = [abs(Fraction(float(a)) - Fraction(float(b))) for a, b in zip(x, center, strict=True)]
            exact = max(gaps) if p == math.inf else sum(gaps) if p == 1 else sum(g * g for g in gaps)
            for radius in {float((x - center).norm(p=p)) * (1 + k * 2.0**-52) for k in range(-2, 3)}:
                true = exact <= (Fraction(radius) ** 2 if p == 2 else Fraction(radius))
                assert Ball(center, radius, p).contains(x) == true
    assert not Ball(torch.zeros(1), 1.0).contains(torch.tensor([math.nan]))
    huge = torch.full((2,), 1e300, dtype=D)
    assert Ball(huge, 0.0, 2.0).contains(huge)
    assert not Ball(huge, 1e280, 2.0).contains(torch.nextafter(huge, 2 * huge))


def test_flushed_subnormals_change_nothing():
    """A weight that is subnormal counts: max(1e-310 · 1e300, …) decides the slope of |x − 1e-10|."""
    first, second = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1).double()
    first.weight.data.fill_(1e-310)
    second.weight.data.fill_(1e300)
    second.bias.data.fill_(-0.5e-10)
    p = problem(nn.Sequential(first, second, nn.ReLU()), 1)
    witness = LowerWitness(torch.ones(1), torch.ones(1))
    plain = evaluate(p, witness)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        assert evaluate(p, witness) == plain
    finally:
        torch.set_flush_denormal(False)
    assert Fraction(plain) <= Fraction(1e-310) * Fraction(1e300)


@pytest.mark.parametrize("digits", [0, 1, 3])
def test_the_enclosure_holds_the_exact_derivative_of_a_deep_rational_network(digits):
    """Ten layers of width 12 in rationals."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for a, b in [(3, 12), *[(12, 12)] * 9]:
        layers += [nn.Linear(a, b).double(), nn.ReLU()]
    net = capture(nn.Sequential(*layers).eval(), torch.zeros(1, 3, dtype=D))
    x, v = torch.randn(2, 3, dtype=D)
    found = derivative(net, x[None, None], v[None, None], digits)
    z, t = ([Fraction(float(a)) for a in c] for c in (x, v))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            W = [[Fraction(float(w)) for w in row] for row in layer.weight.detach()]
            z = [
                sum(w * a for w, a in zip(r, z, strict=True)) + Fraction(b)
                for r, b in zip(W, layer.bias.tolist(), strict=True)
            ]
            t = [sum(w * a for w, a in zip(r, t, strict=True)) for r in W]
        else:
            t = [s if a > 0 else Fraction(0) for a, s in zip(z, t, strict=True)]
            z = [max(a, Fraction(0)) for a in z]
    parts = [found.mid, found.rad, *found.tail]
    for place, exact in enumerate(t):
        mid, rad, *tail = (Fraction(float(part.reshape(-1)[place])) for part in parts)
        assert abs(exact - mid - sum(tail)) <= rad
        assert rad <= 10.0 ** (-9 - 15 * digits) * abs(float(exact)) + 10.0 ** (-12 - 15 * digits)


def test_tensors_known_up_to_rounding_are_enclosed_with_their_error():
    """Slopes, ends, offsets and rates per entry stand for every number within their spread."""
    a, spread = torch.tensor([0.5, 0.5], dtype=D), torch.tensor([0.25, 0.0], dtype=D)
    x = torch.tensor([-1.0, -1.0], dtype=D)

    def tangent(function, at):
        result = function(Enclosure(Range.exact(at), Range.exact(torch.ones(2, dtype=D)))).tangent
        return result.low.tolist(), result.high.tolist()

    low, high = tangent(known.prelu(a, a - spread, a + spread, spread), x)
    assert low[0] <= 0.25
    assert high[0] >= 0.75
    assert low[1] == high[1] == 0.5
    clamp = known.clamp_between(-a, a, spread, spread)
    for place in (-0.6, 0.6):
        low, high = tangent(clamp, torch.tensor([place, place], dtype=D))
        assert low[0] <= 0.0
        assert high[0] >= 1.0
        assert low[1] == high[1] == 0.0
    lines = known.extreme_line(True, (exactly(0), exactly(1)), (a, 0.0 * a), spread)
    low, high = tangent(lines, torch.tensor([0.6, 0.6], dtype=D))
    assert low[0] <= 0.0
    assert low[1] == high[1] == 1.0
    low, high = tangent(known.swish(a, 0.5), x)
    rates = torch.tensor([0.25, 0.5, 0.75], dtype=D)
    slopes = torch.sigmoid(-rates) - rates * torch.sigmoid(-rates) * torch.sigmoid(rates)
    assert low[0] <= float(slopes.min())
    assert high[0] >= float(slopes.max())


def test_constants_known_to_be_rounded_are_enclosed_with_their_error():
    """The left slope is a number computed with a thousand roundings: no lower bound may use its last digits."""
    loose = two_slopes((Real.of(0.5, 1e9), exactly(0)), (exactly(0.25), exactly(0)), Fraction(0), "bent")
    x = torch.tensor([-1.0, 2.0], dtype=D)
    result = loose(Enclosure(Range.exact(x), Range.exact(torch.ones(2, dtype=D))))
    low, high = result.tangent.low, result.tangent.high
    true = Real.of(0.5, 1e9)
    assert Fraction(float(low[0])) <= true.low
    assert true.high <= Fraction(float(high[0]))
    assert low[1] == high[1] == 0.25
    assert float(-Near(3.0, 0.5)) == -3.0
    assert (-Near(3.0, 0.5)).radius == 0.5
