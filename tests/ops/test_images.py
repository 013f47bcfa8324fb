"""Images of activations and blocks: no value lies outside, and each end is attained or a limit."""

import dataclasses
import math
from fractions import Fraction

import mpmath as mp
import pytest
import torch
from cases import GAIN
from common import captured
from slope_cases import INSTANCES, LOOSE, tensor

from lipcert.capture.torch_export import capture
from lipcert.network.activations import profiles, smooth
from lipcert.network.graph import GainNode, Network
from lipcert.network.nonlinearity import AnySlope
from lipcert.numerics.midrad import Near
from lipcert.ops import nonlinearities as known
from lipcert.ops.rational import exactly
from tests.zoo import Apply


def ends(function):
    return tuple(float(end) for end in function.image)


def samples(function):
    """A grid of all sizes, then finer ones around its least and its greatest value."""
    size = torch.logspace(-12, 200, 40001, dtype=torch.float64)
    kinks = [torch.as_tensor(k.position, dtype=torch.float64).reshape(1) for k in function.kinks]
    x = torch.cat([-size.flip(0), torch.linspace(-40, 40, 40001, dtype=torch.float64), size, *kinks]).sort().values
    for _ in range(3):
        y = function(x).nan_to_num(0.0)
        around = [int(y.argmin()), int(y.argmax())]
        finer = [
            torch.linspace(float(x[max(0, i - 1)]), float(x[min(len(x) - 1, i + 1)]), 2001, dtype=torch.float64)
            for i in around
        ]
        x = torch.cat([x, *finer]).sort().values
    return x


@pytest.mark.few(19)
@pytest.mark.parametrize("function", INSTANCES, ids=lambda f: repr(f)[:60])
def test_values_lie_in_the_image_and_reach_its_ends(function):
    least, greatest = ends(function)
    y = function(samples(function))
    y = y[y.isfinite()]
    rounding = 1e-14 * (y.abs() + 1)
    assert bool((y >= least - rounding).all()), (float(y.min()), least)
    assert bool((y <= greatest + rounding).all()), (float(y.max()), greatest)
    for reached, end in ((float(y.min()), least), (float(y.max()), greatest)):
        if math.isinf(end):
            assert abs(reached) > 100
        else:
            assert reached == pytest.approx(end, rel=1e-9, abs=1e-9)


def test_hard_coded_least_values_are_rounded_down():
    def least(f, start):
        return f(mp.findroot(lambda t: mp.diff(f, t), start))

    k = mp.sqrt(2 / mp.pi)
    cubic = mp.mpf("0.044715")
    rows = [
        (profiles.SILU_LEAST, lambda t: t / (1 + mp.exp(-t)), -1.3),
        (profiles.MISH_LEAST, lambda t: t * mp.tanh(mp.log1p(mp.exp(t))), -1.2),
        (profiles.GELU_LEAST, lambda t: t * mp.erfc(-t / mp.sqrt(2)) / 2, -0.75),
        (profiles.GELU_TANH_LEAST, lambda t: t * (1 + mp.tanh(k * (t + cubic * t**3))) / 2, -0.75),
        (profiles.CUBIC_LEAST, lambda t: t * (1 + mp.tanh(t + cubic * mp.pi / 2 * t**3)) / 2, -0.6),
        (profiles.CUBIC_LEAST, lambda t: t * (1 + mp.tanh(t + mp.mpf(profiles.CUBIC) * t**3)) / 2, -0.6),
    ]
    for stated, function, start in rows:
        assert stated <= least(function, start) < math.nextafter(stated, 0)
    assert smooth.HALF_PI > mp.pi / 2 > math.nextafter(smooth.HALF_PI, 0)


def test_a_rate_that_may_have_either_sign_says_nothing():
    for rate in (Near(1e-9, 1e-8), tensor([0.0])):
        assert tuple(float(end) for end in known.swish(rate).image) == (-math.inf, math.inf)
    loose = dataclasses.replace(known.softplus(1.0), beta=Near(1e-9, 1e-8))
    assert ends(loose) == (-math.inf, math.inf)
    assert AnySlope("any", 0.0, 1.0).image == (-math.inf, math.inf)


def test_settings_known_up_to_rounding_count_at_both_ends():
    one, zero, n = exactly(1), exactly(0), LOOSE
    functions = [
        known.two_slopes((-n, n), (one, zero), Fraction(1, 4), "x"),
        known.elu(one, n, n),
        known.swish(n.middle),
        known.swish((-n).middle),
        known.scaled_mish(n.middle),
        known.erf_gelu(n.middle),
        known.times_clamp(n, n, -1.0, 1.0),
        known.times_clamp(-n, n, -1.0, 1.0),
        known.root(n, n, n),
        known.gaussian(n, n, -n),
        known.inverse_root(n, n),
        known.ratio_softsign(Fraction(1, 3), n),
        known.extreme_line(True, (-n, one), (n.middle, 0.0)),
        known.extreme_line(False, (-n, one), (n.middle, 0.0)),
    ]
    for function in functions:
        names = [f.name for f in dataclasses.fields(function) if isinstance(getattr(function, f.name), Near)]
        least, greatest = ends(function)
        assert math.isfinite(least) or math.isfinite(greatest), function
        for sign in (-1, 1):
            exact = dataclasses.replace(
                function,
                **{name: float(getattr(function, name)) + sign * getattr(function, name).radius for name in names},
            )
            a, b = ends(exact)
            assert least <= a + 1e-15
            assert greatest >= b - 1e-15
            assert least == a or a - least < 1e-7
            assert greatest == b or greatest - b < 1e-7


def test_tensors_of_settings():
    slopes = tensor([0.5, -2.0, 0.0])
    assert known.prelu(slopes, slopes, slopes).image[0].tolist() == [-math.inf, 0.0, 0.0]
    loose = known.prelu(slopes, slopes, slopes, tensor([0.0, 0.0, 0.1]))
    assert loose.image[0].tolist() == [-math.inf, 0.0, -math.inf]
    clamp = known.clamp_between(tensor([-1.0, -math.inf, 2.0]), tensor([1.0, 0.0, 1.0]), tensor([0.5, 0, 0]), None)
    low, high = clamp.image
    assert low.tolist() == [pytest.approx(-1.5), -math.inf, 1.0]
    assert high.tolist() == [1.0, 0.0, 1.0]
    assert float(low[0]) <= -1.5
    lines = known.extreme_line(
        True, (exactly(-1), exactly(1)), (tensor([1.0, 1.0]), tensor([0.0, 3.0])), tensor([0.25, math.inf])
    )
    assert lines.image[0].tolist() == [pytest.approx(0.25), -math.inf]
    low, high = known.swish(tensor([0.5, -0.5])).image
    assert low.tolist() == [pytest.approx(2 * profiles.SILU_LEAST), -math.inf]
    assert high.tolist() == [math.inf, pytest.approx(-2 * profiles.SILU_LEAST)]


# -- blocks ------------------------------------------------------------------------------------------------


def blocks(network: Network):
    for node in network.nodes:
        if isinstance(node, GainNode):
            yield node, network.nodes[node.parents[0]].shape


def wide_inputs(shape, generator):
    """Of all sizes, of few large entries, and near constant ones."""
    size = 10.0 ** torch.randint(-6, 7, (600, *[1] * len(shape)), generator=generator)
    x = torch.randn(600, *shape, generator=generator, dtype=torch.float64) * size
    one = (torch.rand(600, math.prod(shape), generator=generator).argsort(1) == 0).reshape(600, *shape)
    return torch.cat([x, torch.where(one, 1e6, 1e-3) * x.sign(), 5.0 + 1e-3 * x, torch.zeros(1, *shape)])


@pytest.mark.parametrize("case", GAIN, ids=lambda case: case.name)
def test_values_of_blocks_lie_in_the_image(case):
    generator = torch.Generator().manual_seed(0)
    for node, shape in blocks(captured(case.name)[2]):
        least, greatest = (float(end) for end in node.function.image)
        y = node.function(wide_inputs(shape, generator))
        assert bool((y >= least - 1e-12 * abs(least)).all()), float(y.min())
        assert bool((y <= greatest + 1e-12 * abs(greatest)).all()), float(y.max())


ATTAINED = [
    (torch.nn.Softmax(-1), (6,), 0.0, 1.0),
    (torch.nn.LogSoftmax(-1), (6,), -math.inf, 0.0),
    (torch.nn.LayerNorm(5, eps=1e-9), (5,), -2.0, 2.0),
    (torch.nn.LayerNorm((2, 3), eps=1e-9, elementwise_affine=False), (2, 3), -math.sqrt(5), math.sqrt(5)),
    (torch.nn.LayerNorm(1), (4, 1), 0.0, 0.0),
    (torch.nn.GroupNorm(2, 4, eps=1e-9), (4, 3), -math.sqrt(5), math.sqrt(5)),
    (torch.nn.InstanceNorm1d(2, eps=1e-9), (2, 10), -3.0, 3.0),
    (torch.nn.RMSNorm(9, eps=1e-9), (9,), -3.0, 3.0),
    (torch.nn.RMSNorm((2, 4), eps=1e-9), (3, 2, 4), -math.sqrt(8), math.sqrt(8)),
    (Apply(lambda _, x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-9)), (9,), -3.0, 3.0),
    (Apply(lambda _, x: torch.nn.functional.normalize(x, dim=1)), (6,), -1.0, 1.0),
    (Apply(lambda _, x: x / (0.3 * x.norm(dim=1, keepdim=True) + 1e-9)), (6,), -1 / 0.3, 1 / 0.3),
    (Apply(lambda _, x: x.norm(dim=1, keepdim=True)), (6,), 0.0, math.inf),
    (Apply(lambda _, x: torch.sqrt((x * x).sum(1, keepdim=True) + 1e-9)), (6,), 0.0, math.inf),
    (Apply(lambda _, x: torch.logsumexp(x, 1, True)), (6,), -math.inf, math.inf),
]


@pytest.mark.parametrize(("model", "shape", "least", "greatest"), ATTAINED)
def test_images_of_blocks_are_attained(model, shape, least, greatest):
    network = capture(model.double().eval(), torch.ones(1, *shape, dtype=torch.float64))
    ((node, inner),) = blocks(network)
    ends = [float(end) for end in node.function.image]
    assert ends == pytest.approx([least, greatest], rel=1e-14)
    y = node.function(wide_inputs(inner, torch.Generator().manual_seed(0)))
    for reached, end in ((float(y.min()), ends[0]), (float(y.max()), ends[1])):
        assert abs(reached) > 100 if math.isinf(end) else reached == pytest.approx(end, rel=1e-4, abs=1e-4)
