"""Slopes on intervals, of every kind of activation, against its derivative in 50 digits."""

import dataclasses
import math
import random
from fractions import Fraction

import mpmath as mp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slope_cases import INF, INSTANCES, LOOSE, PARTS, tensor, true_range

import lipcert.methods.all  # noqa: F401
from lipcert.network.activations import profiles
from lipcert.network.activations.smooth import Smooth
from lipcert.network.activations.steep import Steep
from lipcert.network.nonlinearity import AnySlope, Nonlinearity
from lipcert.network.slopes import slopes
from lipcert.numerics.midrad import Near
from lipcert.ops import nonlinearities as known
from lipcert.ops.rational import exactly
from lipcert.ranges.composite import Composite

SCALES = [1e-200, 1e-12, 1e-5, 1e-2, 1.0, 1.0, 1.0, 10.0, 300.0, 1e5, 1e12, 1e150]
#: Below this mpmath's own exponentials of huge arguments have no digits.
TINY = 1e-300
#: Waves are compared while their turning points are listed.
FARTHEST = {known.SIN: 3000.0, known.COS: 3000.0}


def instance_id(function):
    return repr(function)[:60]


def every_instance(test):
    return pytest.mark.parametrize("function", INSTANCES, ids=instance_id)(test)


def parts_of(function):
    return PARTS[type(function)](function)


def places(function, parts):
    marks = [0.0, *(k.position for k in function.kinks)]
    turns = [t for part in parts for t in part.turns if abs(t) < 100]
    return [float(m) for m in (*marks, *turns)]


def intervals(function, parts, count, seed=0):
    """Ends around kinks and turning points and anywhere, of all sizes, degenerate and infinite too."""
    choose = random.Random(repr(function) + str(seed))
    marks, far = places(function, parts), FARTHEST.get(function, math.inf)
    result = [(-math.inf, math.inf)]
    while len(result) < count:
        centre = choose.choice(marks) if choose.random() < 0.6 else choose.gauss(0, 1) * choose.choice(SCALES)
        a, b = (centre + choose.choice([0, -1, 1, choose.gauss(0, 1)]) * choose.choice(SCALES) for _ in range(2))
        kind = choose.random()
        if kind < 0.15:
            b = a
        elif kind < 0.3:
            a, b = choose.choice([(-math.inf, b), (a, math.inf)])
        if not math.isinf(far) and max(abs(a), abs(b)) > far:
            continue
        result.append((min(a, b), max(a, b)))
    return result


def evaluate(function, pairs):
    low, high = slopes(function, tensor([a for a, _ in pairs]), tensor([b for _, b in pairs]))
    return low.tolist(), high.tolist()


def test_every_kind_has_a_case():
    def kinds(parent):
        for kind in parent.__subclasses__():
            yield kind
            yield from kinds(kind)

    ours = {k for k in kinds(Nonlinearity) if k.__module__.startswith("lipcert.")} - {Smooth, AnySlope}
    ours -= {Steep, *kinds(Steep), Composite, *kinds(Composite)}  # test_steep.py; tests/ranges: composite, normal_form
    assert ours - set(PARTS) == set()
    assert ours - {type(f) for f in INSTANCES} - {known.Root} == set()


@every_instance
def test_exact_to_nine_digits_and_never_inside(function):
    parts = parts_of(function)
    pairs = intervals(function, parts, 60)
    rounding = 1e-14 * function.greatest_slope
    for (a, b), low, high in zip(pairs, *evaluate(function, pairs), strict=True):
        if (a, b) == (-math.inf, math.inf):
            assert (low, high) == (float(function.lower), float(function.upper))
            continue
        least, greatest = true_range(parts, a, b)
        assert low <= least, (a, b, low, least)
        assert high >= greatest, (a, b, high, greatest)
        if not all(part.left in (-INF, float(part.left)) for part in parts):
            # A kink between two doubles: an end next to it may count both sides.
            least, greatest = true_range(parts, a - 1e-15 * abs(a), b + 1e-15 * abs(b))
        granted = mp.mpf(1e-9) * max(abs(least), abs(greatest)) + rounding
        assert least - low <= granted, (a, b, low, mp.nstr(least, 20))
        assert high - greatest <= granted, (a, b, high, mp.nstr(greatest, 20))


@pytest.mark.few(15)
@every_instance
def test_derivatives_between_the_ends_lie_in_the_range(function):
    """Points all over the interval, whatever is believed of kinks and turning points."""
    parts = parts_of(function)
    choose = random.Random(7)
    pairs = [p for p in intervals(function, parts, 40, 1) if math.isfinite(p[0] + p[1])]
    for (a, b), low, high in zip(pairs, *evaluate(function, pairs), strict=True):
        for _ in range(6):
            x = mp.mpf(a) + mp.mpf(choose.random()) * (mp.mpf(b) - mp.mpf(a))
            least, greatest = true_range(parts, x, x)
            if a < b:
                # At a kink hit by chance one of its sides may lie outside.
                assert least >= low - TINY or greatest <= high + TINY, (a, b, x)
            assert low <= greatest + TINY, (a, b, x)
            assert high >= least - TINY, (a, b, x)


@every_instance
def test_saturated_tails_are_tight(function):
    """Far out, where the slope is 1e-100 of its greatest, it is known to nine digits of its own."""
    parts = parts_of(function)
    for x in (-25.0, -17.0, 17.0, 25.0):
        (low,), (high,) = evaluate(function, [(x, x)])
        least, greatest = true_range(parts, x, x)
        if 1e-280 < abs(least) < 1e-8 and least == greatest and not isinstance(function, known.TanhGELU):
            assert high - low <= 1e-9 * abs(float(least)), (x, low, high)


@every_instance
def test_smaller_intervals_have_fewer_slopes(function):
    choose = random.Random(3)
    pairs = [p for p in intervals(function, parts_of(function), 60, 2) if p[0] < p[1]]
    inner = []
    for a, b in pairs:
        a, b = max(a, -1e300), min(b, 1e300)
        c, d = sorted(a + choose.random() * (b - a) for _ in range(2))
        inner.append((c, d) if a <= c < d <= b else (a, b))
    slack = 1e-13 * function.greatest_slope
    low, high, inner_low, inner_high = map(tensor, (*evaluate(function, pairs), *evaluate(function, inner)))
    assert bool((low <= inner_low + slack).all())
    assert bool((inner_high <= high + slack).all())


@every_instance
def test_quotients_lie_between_the_slopes(function):
    """What the slopes are for, on the code that evaluates the activation."""
    generator = torch.Generator().manual_seed(0)
    a = 4 * torch.randn(4000, generator=generator, dtype=torch.float64)
    b = a + 0.01 + 3 * torch.rand(4000, generator=generator, dtype=torch.float64)
    low, high = slopes(function, a, b)
    fa, fb = function(a), function(b)
    quotient = (fb - fa) / (b - a)
    error = 1e-12 * (1 + fa.abs() + fb.abs() + function.greatest_slope * (a.abs() + b.abs())) / (b - a)
    error = error + 4e-16 * 1e6 * isinstance(function, known.Softplus)
    assert bool((quotient >= low - error).all()), float((low - quotient).max())
    assert bool((quotient <= high + error).all()), float((quotient - high).max())


@given(
    st.sampled_from(INSTANCES), st.floats(allow_nan=False), st.floats(allow_nan=False), st.floats(0, 1)
)  # fmt: skip
def test_any_interval(function, a, b, share):
    a, b = min(a, b), max(a, b)
    (low,), (high,) = evaluate(function, [(a, b)])
    assert float(function.lower) <= low <= high <= float(function.upper)
    x = min(max(a + share * (b - a), a), b) if math.isfinite(b - a) else (a if math.isfinite(a) else b)
    if abs(x) < FARTHEST.get(function, 1e100) or math.isinf(x):
        least, greatest = true_range(parts_of(function), x, x)
        assert low <= greatest + TINY
        assert high >= least - TINY


# -- kinks, tensors, numbers known up to rounding ---------------------------------------------------------


def test_kinks_count_from_inside():
    pairs = [(-1, 0), (0, 1), (-1, 1), (0, 0), (1, 2), (-math.inf, 0), (0, math.inf), (-math.inf, -math.inf)]
    low, high = evaluate(known.RELU, pairs)
    assert low == [0, 1, 0, 0, 1, 0, 1, 0]
    assert high == [0, 1, 1, 1, 1, 0, 1, 0]


def test_a_nonempty_interval_is_asked_for():
    for a, b in ((1.0, 0.0), (math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match="interval"):
            slopes(known.TANH, a, b)


def test_tensors_of_settings_and_ends_broadcast():
    a = tensor([0.5, -2.0, 3.0])
    prelu = known.prelu(a, a, a)
    low, high = slopes(prelu, tensor([[-1.0], [1.0]]), tensor([[2.0], [2.0]]))
    assert low.tolist() == [[0.5, -2.0, 1.0], [1.0, 1.0, 1.0]]
    assert high.tolist() == [[1.0, 1.0, 3.0], [1.0, 1.0, 1.0]]
    clamp = known.clamp_between(tensor([-1.0, -math.inf, 2.0]), tensor([1.0, 0.0, 1.0]), None, None)
    assert [s.tolist() for s in slopes(clamp, -0.5, 0.5)] == [[1, 0, 0], [1, 1, 0]]
    swish = known.swish(tensor([0.0, 2.0, -2.0]))
    low, high = slopes(swish, 0.25, math.inf)
    for i, rate in enumerate((0.0, 2.0, -2.0)):
        least, greatest = true_range(PARTS[known.Swish](known.swish(rate)), 0.25, INF)
        assert float(low[i]) == pytest.approx(float(least), rel=1e-12)
        assert float(high[i]) == pytest.approx(float(greatest), rel=1e-12)
    assert slopes(known.TANH, tensor([]), tensor([]))[0].shape == (0,)


def test_numbers_known_up_to_rounding_count_at_both_ends():
    """The settings stand for a third, give or take 1e-9: the slopes hold for each, kinks on either side."""
    zero, one = exactly(0), exactly(1)
    third = Fraction(1, 3)
    cases = [
        (known.two_slopes((zero, zero), (LOOSE, -(LOOSE * LOOSE)), third, "x"), lambda n: [(third, 0), (INF, n)]),
        (known.extreme_line(True, (zero, one), (LOOSE.middle, 0.0)), lambda n: [(n, 0), (INF, 1)]),
        (known.extreme_line(False, (one, zero), (0.0, LOOSE.middle)), lambda n: [(n, 1), (INF, 0)]),
        (known.times_clamp(one, LOOSE, -1.0, 1.0), None),
        (known.elu(LOOSE, LOOSE, LOOSE), None),
        (known.swish(LOOSE.middle), None),
        (known.erf_gelu(LOOSE.middle), None),
        (known.root(LOOSE, LOOSE, LOOSE), None),
        (known.gaussian(LOOSE, LOOSE, -LOOSE), None),
        (known.inverse_root(LOOSE, LOOSE), None),
    ]
    pairs = [(1 / 3 - 1e-12, 1 / 3 + 1e-12), (1 / 3, 1.0), (0.0, 1 / 3), (-0.9, -0.2), (1.3, 2.0), (-1.0, 1 / 3)]
    for function, steps in cases:
        for pair, low, high in zip(pairs, *evaluate(function, pairs), strict=True):
            for n in (LOOSE.low, third, LOOSE.high):
                if steps is None:
                    exact = _with(function, n)
                    least, greatest = true_range(PARTS[type(exact)](exact), *pair)
                else:
                    values, start = [], -INF
                    for end, value in steps(n):
                        if pair[1] > start and pair[0] < end:
                            values.append(value)
                        start = end
                    least, greatest = min(values), max(values)
                slack = 1e-15
                assert low <= least + slack, (function, pair)
                assert high >= greatest - slack, (function, pair)
                assert least - low < 1e-7 or steps is not None
                assert high - greatest < 1e-7 or steps is not None


def _with(function, n):
    """The activation with every loose setting replaced by a double next to ``n`` (within 1e-16)."""
    loose = {f.name: float(n) for f in dataclasses.fields(function) if isinstance(getattr(function, f.name), Near)}
    if isinstance(function, known.Gaussian):
        loose["square"] = float(n)
    return dataclasses.replace(function, **loose)


def test_a_tensor_of_offsets_known_up_to_rounding():
    function = known.extreme_line(
        True, (exactly(0), exactly(1)), (tensor([1.0, 1.0]), tensor([0.0, 0.0])), tensor([0, 0.1])
    )
    low, high = slopes(function, 1.05, 2.0)
    assert low.tolist() == [1.0, 0.0]
    assert high.tolist() == [1.0, 1.0]
    unknown = dataclasses.replace(function, spread=tensor([math.inf, 0.0]))
    assert [s.tolist() for s in slopes(unknown, 1.5, 2.0)] == [[0.0, 1.0], [1.0, 1.0]]


# -- turning points, hash and repr ------------------------------------------------------------------------


@pytest.mark.parametrize("function", [known.SILU, known.MISH, known.GELU, known.GELU_TANH, *INSTANCES[-1:]])
def test_turning_points_lie_where_they_are_said_to(function):
    piece = function.pieces[0]
    parts = parts_of(function)
    rate = mp.mpf(float(getattr(piece.rate, "mid", piece.rate)))
    shift = mp.mpf(float(getattr(piece.shift, "mid", piece.shift)))
    true = sorted(rate * (t - shift) for t in parts[0].turns)
    assert len(true) == len(piece.profile.turns) == 2
    for turn, position in zip(piece.profile.turns, true, strict=True):
        assert turn.start < position < turn.end
    steepest = 3 * mp.sqrt(3) / 8
    assert profiles.LORENTZIAN_SLOPE >= steepest > math.nextafter(profiles.LORENTZIAN_SLOPE, 0)
    assert abs(profiles.LORENTZIAN_TURN - 1 / mp.sqrt(3)) < 1e-15
    assert profiles.ROOT_E >= mp.exp(mp.mpf(-0.5)) > math.nextafter(profiles.ROOT_E, 0)


def fingerprint(function):
    import hashlib

    digest = hashlib.sha256()
    function.update_hash(digest)
    return digest.hexdigest()


def test_hash_and_repr_are_of_kind_and_settings():
    prints = [fingerprint(f) for f in INSTANCES]
    assert len(set(prints)) == len(prints)
    assert fingerprint(known.clamp(0.0, 6.0, "relu6")) == fingerprint(known.clamp(0.0, 6.0))
    assert fingerprint(known.clamp(0.0, None)) == fingerprint(known.RELU)
    exact, loose = known.swish(1 / 3), known.swish(Near(1 / 3, 1e-9))
    assert fingerprint(exact) != fingerprint(loose)
    assert fingerprint(known.softplus(2.0)) != fingerprint(known.softplus(3.0))
    a = tensor([0.5])
    assert fingerprint(known.prelu(a, a, a)) != fingerprint(known.prelu(2 * a, a, a))
    assert repr(known.clamp(-1.0, 2.0)) == "Clamp(low=-1.0, high=2.0)"
    assert repr(known.prelu(a, a, a)) == "PReLU(slopes=<(1,)>, spread=None)"
    assert repr(known.TANH) == "Tanh()"
