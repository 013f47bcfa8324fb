"""Every activation: slopes within [lower, upper], both ends attained, kinks where they are said to be."""

import math
from fractions import Fraction

import mpmath as mp
import pytest
import torch
from activation_cases import ENDS, HAND, ROWS, SELU, SMOOTH, TWO_BY_ROOT_PI
from slope_cases import PARTS
from torch import nn

from lipcert.capture.torch_export import capture
from lipcert.errors import CaptureError, NotLipschitzError, TrainModeError, UnsupportedOpError
from lipcert.network.activations.exponential import SELU_ALPHA, SELU_SCALE
from lipcert.network.graph import ActivationNode, AffineNode
from lipcert.network.linear import Identity, OpMap, compose
from lipcert.network.slopes import slopes
from lipcert.ops import nonlinearities as known
from lipcert.ops.rational import Real, above, below, exactly
from lipcert.ops.registry import supported_ops
from lipcert.problem import Problem

ALL = [*ROWS, *HAND]
SHAPE = (3, 4)


def case_id(row):
    return row.name


@pytest.fixture(scope="module")
def captured():
    """Row → (module, network), captured once."""
    cache = {}

    def get(row):
        if row not in cache:
            module = row.make().eval().double().requires_grad_(False)
            generator = torch.Generator().manual_seed(1)
            example = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
            cache[row] = module, capture(module, example)
        return cache[row]

    return get


def the_activation(network):
    nodes = [n for n in network.nodes if isinstance(n, ActivationNode)]
    assert len(nodes) == 1
    return nodes[0].function


def outer_scale(network):
    """The factor by which affine nodes stretch the activation: product of inner and outer scalings."""
    scale = 1.0
    for node in network.nodes:
        if isinstance(node, AffineNode):
            assert len(node.maps) == 1
            for leaf in node.maps[0].leaves():
                scale *= leaf.scale if isinstance(leaf, Identity) else float(leaf.constants[0])
    return scale


def slope_range(network):
    function, scale = the_activation(network), outer_scale(network)
    low = float(torch.as_tensor(function.lower, dtype=torch.float64).min()) * scale
    high = float(torch.as_tensor(function.upper, dtype=torch.float64).max()) * scale
    return min(low, high), max(low, high)


def grid():
    generator = torch.Generator().manual_seed(3)
    parts = [torch.linspace(-12, 12, 6001, dtype=torch.float64) + 1.234e-4]
    parts += [s * torch.randn(1500, generator=generator, dtype=torch.float64) for s in (1e-3, 0.1, 3.0, 30.0)]
    return torch.cat(parts)


def evaluate(function, x):
    """The elementwise module on many scalars: they fill the last axes of the captured shape."""
    return function(x.reshape(-1, 1, 1, 1).expand(-1, 1, *SHAPE).clone()).reshape(len(x), -1)[:, 0]


def on_module(module, x):
    return module(x.reshape(-1, 1, 1).expand(-1, *SHAPE).clone()).reshape(len(x), -1)[:, 0]


def derivative(function, x):
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(function(x).sum(), x)[0]


# -- (a) and (b): the range holds, and is attained ------------------------------------------------------


@pytest.mark.few(15)
@pytest.mark.parametrize("row", ALL, ids=case_id)
def test_one_node_with_the_range(row, captured):
    _, network = captured(row)
    low, high = slope_range(network)
    slack = 4e-14 * max(1.0, abs(row.low), abs(row.high))
    assert row.low - slack <= low <= row.low + 1e-15 * abs(row.low)
    assert row.high - 1e-15 * abs(row.high) <= high <= row.high + slack


@pytest.mark.few(24)
@pytest.mark.parametrize("row", ALL, ids=case_id)
def test_slopes_of_pairs_of_the_model_lie_in_the_range(row, captured):
    module, network = captured(row)
    low, high = slope_range(network)
    generator = torch.Generator().manual_seed(5)
    x = grid()
    for step in (1e-3, 0.3, 5.0):
        y = x + step * torch.randn(len(x), generator=generator, dtype=torch.float64)
        a, b = on_module(module, x), on_module(module, y)
        fine = torch.isfinite(a) & torch.isfinite(b) & (x != y)
        a, b, u, v = a[fine], b[fine], x[fine], y[fine]
        slope = (a - b) / (u - v)
        size = 1 + a.abs() + b.abs() + u.abs() + v.abs()
        # torch's softplus switches to the identity at 20
        error = 1e-14 * size / (u - v).abs() + (
            3e-9 / (u - v).abs() if "softplus" in row.name or "mish" in row.name else 0
        )
        assert bool((slope <= high + error).all()), float((slope - high).max())
        assert bool((slope >= low - error).all()), float((slope - low).min())


@pytest.mark.few(13)
@pytest.mark.parametrize("row", ALL, ids=case_id)
def test_slopes_of_pairs_lie_between_those_of_their_interval(row, captured):
    """``network/slopes.py`` for every registered op and pattern; test_slopes.py has every kind to 50 digits."""
    function = the_activation(captured(row)[1])
    assert type(function) in PARTS
    generator = torch.Generator().manual_seed(2)
    x = grid()[::9]
    for step in (1e-3, 0.3, 5.0):
        y = x + step * (0.1 + torch.rand(len(x), generator=generator, dtype=torch.float64))
        ends = (t.reshape(-1, 1, 1, 1).expand(-1, 1, *SHAPE) for t in (x, y))
        low, high = (s.reshape(len(x), -1)[:, 0] for s in slopes(function, *ends))
        a, b = evaluate(function, x), evaluate(function, y)
        fine = torch.isfinite(a) & torch.isfinite(b)
        error = 1e-13 * (1 + a.abs() + b.abs() + function.greatest_slope * (x.abs() + y.abs())) / (y - x)
        quotient = ((b - a) / (y - x))[fine]
        assert bool((quotient <= (high + error)[fine]).all())
        assert bool((quotient >= (low - error)[fine]).all())


@pytest.mark.few(18)
@pytest.mark.parametrize("row", ALL, ids=case_id)
def test_derivative_of_the_model_attains_both_ends(row, captured):
    module, _ = captured(row)
    points = torch.tensor(row.at, dtype=torch.float64)
    slopes = derivative(lambda x: on_module(module, x), points)
    tolerance = 1e-7 if "hardsigmoid" in row.name else 1e-11  # torch's derivative of hardsigmoid uses a float32 1/6
    assert slopes.tolist() == pytest.approx([row.low, row.high], rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("row", ALL, ids=case_id)
def test_network_computes_the_model(row, captured):
    module, network = captured(row)
    x = grid()[::7]
    expected, actual = on_module(module, x), evaluate(network.forward, x)
    fine = torch.isfinite(expected)
    assert bool(torch.isfinite(actual).all())
    assert torch.allclose(actual[fine], expected[fine], rtol=1e-11, atol=4e-9)


# -- (d): kinks, smoothing, and what the attack needs ----------------------------------------------------


@pytest.mark.parametrize("row", ALL, ids=case_id)
def test_kinks_are_the_jumps_of_the_derivative(row, captured):
    _, network = captured(row)
    function = the_activation(network)
    kinks = [
        (
            float(torch.as_tensor(k.position, dtype=torch.float64).reshape(-1)[0]),
            float(torch.as_tensor(k.jump, dtype=torch.float64).reshape(-1)[0]),
        )
        for k in function.kinks
    ]
    for position, jump in kinks:
        sides = torch.tensor([position - 1e-7, position + 1e-7], dtype=torch.float64)
        left, right = derivative(lambda x: evaluate(function, x), sides).tolist()
        assert right - left == pytest.approx(jump, abs=1e-5)
    x = torch.linspace(-9, 9, 36001, dtype=torch.float64) + 1.1e-5
    slopes = derivative(lambda x: evaluate(function, x), x)
    jumps = (slopes[1:] - slopes[:-1]).abs() > 2e-2
    for place in x[:-1][jumps].tolist():
        assert any(abs(place - position) < 1e-3 for position, _ in kinks), f"undeclared kink near {place}"


@pytest.mark.few(58)
@pytest.mark.parametrize("row", ALL, ids=case_id)
def test_smoothed_is_smooth_and_close(row, captured):
    function = the_activation(captured(row)[1])
    x = torch.linspace(-9, 9, 18001, dtype=torch.float64) + 3e-5
    smooth = evaluate(lambda v: function.smoothed(v, 50.0), x)
    jumps = sum(float(torch.as_tensor(k.jump, dtype=torch.float64).abs().max()) for k in function.kinks)
    assert float((smooth - evaluate(function, x)).abs().max()) <= jumps * math.log(2) / 50 + 1e-12
    slopes = derivative(lambda x: evaluate(lambda v: function.smoothed(v, 50.0), x), x)
    assert float((slopes[1:] - slopes[:-1]).abs().max()) <= 2e-2 * max(1.0, 2 * jumps)


@pytest.mark.parametrize("row", ALL, ids=case_id)
def test_tangents_can_be_differentiated_and_dtype_is_kept(row, captured):
    function = the_activation(captured(row)[1])
    x = torch.randn(2, 1, *SHAPE, dtype=torch.float64, requires_grad=True)
    _, tangent = torch.func.jvp(function, (x,), (torch.ones_like(x),))
    assert tangent.shape == x.shape
    if tangent.requires_grad:
        torch.autograd.grad(tangent.sum(), x, allow_unused=True)
    single = function.to(torch.float32, "cpu")
    assert single(torch.zeros(2, 1, *SHAPE, dtype=torch.float32)).dtype == torch.float32


# -- the hard-coded constants, to 50 digits --------------------------------------------------------------


@pytest.mark.parametrize("name", SMOOTH)
def test_constants_of_smooth_activations(name):
    """Rounded outward from the stationary value by less than two units in the last place."""
    slope, _, _ = SMOOTH[name]
    (x_low, low), (x_high, high) = ENDS[name]
    function = getattr(known, name)
    assert mp.mpf(function.lower) <= low
    assert mp.mpf(function.upper) >= high
    assert mp.mpf(math.nextafter(math.nextafter(function.lower, 1), 1)) > low
    assert mp.mpf(math.nextafter(math.nextafter(function.upper, 0), 0)) < high
    # One peak and one dip on a grid of step 1/32 over [−8, 8]; beyond, the slope is within 5e-3 of 0 or 1.
    values = [slope(mp.mpf(k) / 32) for k in range(-256, 257)]
    peaks = [k for k in range(1, 512) if values[k - 1] < values[k] >= values[k + 1]]
    dips = [k for k in range(1, 512) if values[k - 1] > values[k] <= values[k + 1]]
    assert [abs(x_high - mp.mpf(k - 256) / 32) < 1 / 32 for k in peaks] == [True]
    assert [abs(x_low - mp.mpf(k - 256) / 32) < 1 / 32 for k in dips] == [True]
    assert abs(values[0]) < 5e-3
    assert abs(values[-1] - 1) < 5e-3


def test_other_constants():
    erf = mp.mpf(known.ERF_SLOPE)
    assert erf >= TWO_BY_ROOT_PI
    assert mp.mpf(math.nextafter(known.ERF_SLOPE, 0)) < TWO_BY_ROOT_PI
    doubles = Fraction(SELU_SCALE) * Fraction(SELU_ALPHA)
    selu = mp.mpf(known.SELU_SLOPE)
    assert selu >= SELU
    assert Fraction(known.SELU_SLOPE) >= doubles
    assert float(SELU) * (1 + 4e-16) > known.SELU_SLOPE
    assert Fraction(known.HARDSIGMOID.upper) >= Fraction(1, 6)


def test_published_digits():
    assert pytest.approx((-0.128904145185155, 1.128904145185155), abs=1e-15) == known.GELU_SLOPES
    assert pytest.approx((-0.128993068658772, 1.128993068658772), abs=1e-15) == known.GELU_TANH_SLOPES
    assert pytest.approx((-0.099839320128867, 1.099839320128867), abs=1e-15) == known.SILU_SLOPES
    assert pytest.approx((-0.112526122389463, 1.088498161251728), abs=1e-15) == known.MISH_SLOPES


def test_tanh_gelu_range_holds_for_other_cubics():
    """The widening 5|r − r₀| of ``tanh_gelu`` against the true extremes for coefficients nearby."""
    for shift in (-9e-4, -1e-6, 0.0, 1e-6, 9e-4):
        r = mp.mpf(0.0702381577526338) + shift
        function = known.tanh_gelu(exactly(1), exactly(Fraction(float(r))))

        def slope(t, r=r):
            u = t + r * t**3
            return (1 + mp.tanh(u)) / 2 + t * mp.sech(u) ** 2 * (1 + 3 * r * t * t) / 2

        peak = mp.findroot(lambda t: mp.diff(slope, t), 1.13)
        assert function.upper >= slope(peak)
        assert function.lower <= slope(-peak)
    assert known.tanh_gelu(exactly(1), exactly(0.08)) is None
    assert known.tanh_gelu(exactly(1), exactly(-0.0702)) is None


# -- PReLU per channel -----------------------------------------------------------------------------------


def test_prelu_per_channel():
    layer = nn.PReLU(3)
    layer.weight.data = torch.tensor([0.5, -2.0, 3.0])
    network = capture(nn.Sequential(nn.Conv1d(2, 3, 1), layer), torch.randn(2, 2, 5))
    function = the_activation(network)
    low, high = function.slope_range((1, 3, 5))
    assert low[0, :, 0].tolist() == [0.5, -2.0, 1.0]
    assert high[0, :, 4].tolist() == [1.0, 1.0, 3.0]
    assert function.greatest_slope == 3.0


def test_prelu_slopes_from_arithmetic_are_widened():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor([0.3, 3.0]))

        def forward(self, x):
            return nn.functional.prelu(x, self.a * 0.7)

    function = the_activation(capture(Model().eval(), torch.randn(2, 2)))
    exact = [Fraction(float(torch.tensor(a))) * Fraction(0.7) for a in (0.3, 3.0)]
    assert Fraction(float(function.lower.min())) < exact[0]
    assert Fraction(float(function.upper.max())) > exact[1]
    assert float(function.upper.max()) == pytest.approx(2.1, rel=1e-7)


def test_clamp_by_tensors_with_open_and_crossed_ends():
    low = torch.tensor([-1.0, -math.inf, 2.0])
    high = torch.tensor([1.0, 0.0, 1.0])

    class Model(nn.Module):
        def forward(self, x):
            return torch.clamp(x, low.to(x.dtype), high.to(x.dtype))

    function = the_activation(capture(Model().eval(), torch.randn(2, 3)))
    x = torch.linspace(-3, 3, 61, dtype=torch.float64).reshape(-1, 1, 1).expand(-1, 1, 3)
    assert torch.equal(function(x), torch.clamp(x, low.double(), high.double()))
    smooth = function.smoothed(x, 1e4)
    assert bool(torch.isfinite(smooth).all())
    assert float((smooth - function(x)).abs().max()) < 1e-3


# -- (e): what is refused ---------------------------------------------------------------------------------

REFUSED = {
    "sign": lambda x: torch.sign(x),
    "floor": lambda x: torch.floor(x),
    "ceil": lambda x: torch.ceil(x),
    "round": lambda x: torch.round(x),
    "trunc": lambda x: torch.trunc(x),
    "fix": lambda x: torch.ops.aten.fix(x),
    "frac": lambda x: torch.frac(x),
    "sgn": lambda x: torch.sgn(x),
    "signbit": lambda x: torch.signbit(x).to(x.dtype),
    "heaviside": lambda x: torch.heaviside(x, torch.zeros(1, dtype=x.dtype)),
    "remainder": lambda x: x % 2,
    "fmod": lambda x: torch.fmod(x, 2.0),
    "floor_divide": lambda x: x // 2,
    "div": lambda x: torch.div(x, 2, rounding_mode="trunc"),
    "gt": lambda x: (x > 0).to(x.dtype),
    "ge": lambda x: torch.where(x >= 1, 2 * x, x),
    "lt": lambda x: torch.where(x < 0, torch.exp(x), x),
    "le": lambda x: torch.where(x.abs() <= 0.5, 0, x),
    "eq": lambda x: (x == 0).to(x.dtype),
    "ne": lambda x: (x != 0).to(x.dtype),
    "logical_not": lambda x: torch.logical_not(x).to(x.dtype),
    "threshold": lambda x: nn.functional.threshold(x, 0.5, 0.0),
    "softplus": lambda x: nn.functional.softplus(x, 1.0, 5.0),
    "celu": lambda x: nn.functional.celu(x, -1.0),
    "elu": lambda x: torch.ops.aten.elu(x, 1.0, 1.0, -1.0),
    "exp": lambda x: torch.exp(x),
    "exp2": lambda x: torch.exp2(x),
    "expm1": lambda x: torch.expm1(x),
    "sinh": lambda x: torch.sinh(x),
    "cosh": lambda x: torch.cosh(x),
    "tan": lambda x: torch.tan(x),
    "log": lambda x: torch.log(x.abs()),
    "log1p": lambda x: torch.log1p(x),
    "log2": lambda x: torch.log2(x.abs()),
    "log10": lambda x: torch.log10(x.abs()),
    "sqrt": lambda x: torch.sqrt(x.abs()),
    "rsqrt": lambda x: torch.rsqrt(x.abs()),
    "reciprocal": lambda x: 1 / x,
    "pow": lambda x: x**3,
    "square": lambda x: x.square(),
    "mul": lambda x: (x + 1) * torch.sigmoid(x),
    "asin": lambda x: torch.asin(x),
    "acos": lambda x: torch.acos(x),
    "acosh": lambda x: torch.acosh(x.abs() + 1),
    "atanh": lambda x: torch.atanh(x),
    "logit": lambda x: torch.logit(x),
    "erfinv": lambda x: torch.erfinv(x),
    "lgamma": lambda x: torch.lgamma(x),
    "digamma": lambda x: torch.digamma(x),
    "atan2": lambda x: torch.atan2(x, 1 + x),
    "glu": lambda x: nn.functional.glu(x),
}  # fmt: skip


class Refused(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.few(17)
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_op_and_line(name):
    function = REFUSED[name]
    with pytest.raises(NotLipschitzError) as caught:
        Problem(capture(Refused(function), torch.rand(2, 4) + 0.1))
    text = str(caught.value)
    assert f"aten.{name} at " in text
    assert f"test_activations.py:{Refused.forward.__code__.co_firstlineno + 1} in forward" in text


def test_hardshrink_module_is_refused():
    with pytest.raises(NotLipschitzError, match="Hardshrink"):
        Problem(capture(nn.Sequential(nn.Linear(3, 3), nn.Hardshrink()), torch.randn(2, 3)))


def test_rrelu_in_training_mode_is_refused():
    with pytest.raises(TrainModeError):
        Problem(capture(nn.RReLU().train(), torch.randn(2, 3)))


def test_nan_in_prelu_is_refused():
    layer = nn.PReLU()
    layer.weight.data.fill_(math.nan)
    with pytest.raises(CaptureError, match="NaN"):
        Problem(capture(layer, torch.randn(2, 3)))


def test_unknown_op_is_named():
    with pytest.raises(UnsupportedOpError, match=r"aten\.special_i0e at .*test_activations"):
        Problem(capture(Refused(lambda x: torch.special.i0e(x)), torch.randn(2, 3)))


# -- registry ---------------------------------------------------------------------------------------------

FAMILIES = {"activations", "unbounded", "powers", "branches", "pairs"}
#: Names that torch decomposes or renames before a rule sees them in this version; kept for others.
ALIASES = {
    "greater", "greater_equal", "less", "less_equal", "where.Scalar", "not_equal", "div.Tensor_mode",
    "div.Scalar_mode", "arcsin", "arccos", "arccosh", "arctanh", "special_logit", "special_erfinv",
    "empty_like", "arctan2",
    "hardshrink",
}  # fmt: skip


def test_every_registered_name_has_a_case():
    covered = {name for row in ALL for name in row.covers.split()} | set(REFUSED) | ALIASES
    names = {info.name for info in supported_ops() if info.family in FAMILIES}
    assert names - covered == set()
    assert covered - names - {"div", "mul"} == set()


def test_every_rule_says_its_constant():
    for info in supported_ops():
        if info.family in FAMILIES:
            assert info.summary, info.name


# -- exact arithmetic of pattern rules --------------------------------------------------------------------


def test_rounding_of_rationals():
    third = Fraction(1, 3)
    assert Fraction(below(third)) < third < Fraction(above(third))
    assert above(third) == math.nextafter(below(third), 1)
    assert below(Fraction(1, 4)) == above(Fraction(1, 4)) == 0.25
    assert Fraction(below(-third)) < -third


def test_reals_enclose():
    tenth = Real.of(1 / 3, 1.0)
    assert tenth.low < Fraction(1, 3) < tenth.high
    product = tenth * Real.of(-3.0)
    assert product.low < -1 < product.high
    assert product.sign == -1
    assert (product + exactly(1)).sign == 0
    assert Real.of(math.inf) is None
    assert Real.of(1.0, math.inf) is None


def test_scalings_are_read_only_from_multiplications():
    """An op map with one constant that is not a multiplication is never taken for a scaling."""
    from lipcert.ops.recognise.scalings import is_diagonal, scalar_of

    fake = OpMap("mul", lambda v, c: v.flip(-1) * c, (1, 4), (1, 4), (torch.tensor(2.0),), "", 1.0)
    assert scalar_of(fake) is None
    assert not is_diagonal(compose(Identity((1, 4), 2.0), fake))
