"""Steep functions: their slopes on intervals and their values, against 50 digits."""

import itertools
import math
import random

import mpmath as mp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slope_cases import tensor

from lipcert.network.activations import steep
from lipcert.network.activations.smooth import HALF_PI
from lipcert.network.slopes import slopes
from lipcert.numerics.midrad import Range
from lipcert.ranges.enclosure import Enclosure
from lipcert.ranges.functions import image_of

mp.mp.dps = 50
INF = math.inf


def pow_(p, c=1.0):
    p, c = mp.mpf(p), mp.mpf(c)
    return lambda x: c * mp.power(x, p), lambda x: c * p * mp.power(x, p - 1)


#: kind → (φ, φ', turning points of φ')
PLAIN = {
    steep.Exp: (mp.exp, mp.exp, ()),
    steep.Expm1: (mp.expm1, mp.exp, ()),
    steep.Exp2: (lambda x: mp.power(2, x), lambda x: mp.log(2) * mp.power(2, x), ()),
    steep.Sinh: (mp.sinh, mp.cosh, (0,)),
    steep.Cosh: (mp.cosh, mp.sinh, ()),
    steep.Log: (mp.log, lambda x: 1 / x, ()),
    steep.Log1p: (mp.log1p, lambda x: 1 / (1 + x), ()),
    steep.Log2: (lambda x: mp.log(x) / mp.log(2), lambda x: 1 / x / mp.log(2), ()),
    steep.Log10: (lambda x: mp.log(x) / mp.log(10), lambda x: 1 / x / mp.log(10), ()),
    steep.Asin: (mp.asin, lambda x: 1 / mp.sqrt((1 - x) * (1 + x)), (0,)),
    steep.Acos: (mp.acos, lambda x: -1 / mp.sqrt((1 - x) * (1 + x)), (0,)),
    steep.Acosh: (mp.acosh, lambda x: 1 / mp.sqrt((x - 1) * (x + 1)), ()),
    steep.Atanh: (mp.atanh, lambda x: 1 / ((1 - x) * (1 + x)), (0,)),
    steep.Logit: (lambda x: mp.log(x) - mp.log1p(-x), lambda x: 1 / (x * (1 - x)), (0.5,)),
}
POWERS = [
    (2,), (3,), (4,), (7,), (10,), (65,), (0.5,), (-0.5,), (1.5,), (0.3,), (2.5,), (-1.2,), (1.0000001,), (31.7,),
    (-1,), (-2,), (-3,), (-8,), (-1, 3.0), (-1, -0.1), (-1, 1e-300), (-1, 1e300), (2, -2.0), (3, -0.3), (0.5, -7.0),
]  # fmt: skip
CASES = [(steep.steep(kind, "x"), *row) for kind, row in PLAIN.items()]
CASES += [(steep.power(*row), *pow_(*row), (0,) if row[0] == 3 or row[0] in (7, 65) else ()) for row in POWERS]
#: Places where something happens, and sizes of steps from them.
MARKS = [0.0, 1.0, -1.0, 0.5]
SIZES = [1e-310, 1e-200, 1e-30, 1e-15, 1e-8, 1e-3, 0.1, 0.4, 1.0, 3.0, 50.0, 600.0, 1e5, 1e30, 1e200, 1e307]

every_case = pytest.mark.parametrize(
    ("function", "phi", "prime", "turns"), CASES, ids=[repr(case[0])[:40] for case in CASES]
)


def test_every_kind_has_a_case():
    kinds = set(steep.Steep.__subclasses__())
    assert kinds == {type(case[0]) for case in CASES}


def defined(function, low, high):
    return bool(function.defined(tensor(low), tensor(high)))


def true_slopes(function, prime, turns, low, high):
    """Least and greatest derivative on [low, high], None for a pole or infinity at an end."""
    values = []
    for x in (low, high, *(t for t in turns if low < t < high)):
        try:
            values.append(prime(mp.mpf(x)) if math.isfinite(x) else None)
        except (ZeroDivisionError, ValueError):
            values.append(None)
    return values


def moderate(function, *ends):
    """Where underflow and overflow are far; beyond, results are wide."""
    sizes = [abs(x) for x in ends if x and math.isfinite(x)]
    return all(1e-280 < s < 1e280 for s in sizes) and 1e-50 < abs(getattr(function, "factor", 1.0)) < 1e50


def draw(choose, function):
    def end():
        kind = choose.random()
        if kind < 0.1:
            return choose.choice([0.0, -0.0, 1.0, -1.0, INF, -INF, 0.5])
        x = choose.choice(MARKS) + choose.choice([-1, 1]) * choose.choice(SIZES) * choose.choice([1.0, choose.random()])
        return x if kind < 0.8 else math.nextafter(x, choose.choice([-INF, INF]))

    while True:
        a, b = sorted((end(), end()))
        if choose.random() < 0.2:
            b = a
        start, stop = function.valid
        if choose.random() < 0.9:  # mostly inside
            a, b = (min(max(x, start), stop) for x in (a, b))
            if not defined(function, a, b) and choose.random() < 0.9:
                continue
        return a, b


@pytest.mark.few(13)
@every_case
def test_slopes_are_never_too_narrow_and_tight(function, phi, prime, turns):
    choose = random.Random(repr(function))
    pairs = [draw(choose, function) for _ in range(500)]
    lows, highs = slopes(function, tensor([a for a, _ in pairs]), tensor([b for _, b in pairs]))
    compared = 0
    for (a, b), low, high in zip(pairs, lows.tolist(), highs.tolist(), strict=True):
        assert low <= high, (a, b)
        assert low < INF
        assert high > -INF
        if not defined(function, a, b):
            assert (low, high) == (-INF, INF), (a, b)
            continue
        values = true_slopes(function, prime, turns, a, b)
        known = [v for v in values if v is not None]
        for v in known:
            assert low <= v <= high, (a, b, low, mp.nstr(v, 20), high)
        if None in values:
            assert a == b or max(abs(low), high) >= 1e280 or min(abs(low), abs(high)) <= 1e-280, (a, b, low, high)
            continue
        for found, true in ((low, min(known)), (high, max(known))):
            if 1e-280 < abs(true) < 1e280 and moderate(function, a, b):
                compared += 1
                assert abs(found - true) <= mp.mpf(2e-12) * abs(true), (a, b, found, mp.nstr(true, 20))
            elif abs(true) <= 1e-280 and moderate(function, a, b):
                assert abs(found) < 1e-279
    assert compared > 40 or not moderate(function)


@pytest.mark.few(5)
@every_case
def test_difference_quotients_lie_between_the_slopes(function, phi, prime, turns):
    """Whatever is believed of derivatives and turning points."""
    choose = random.Random(1)
    checked = 0
    while checked < 150:
        a, b = draw(choose, function)
        if not (math.isfinite(a) and math.isfinite(b) and a < b and defined(function, a, b)):
            continue
        low, high = (float(s) for s in slopes(function, a, b))
        ends = [mp.mpf(a) + mp.mpf(choose.random()) * (mp.mpf(b) - mp.mpf(a)) for _ in range(4)]
        with mp.workdps(700):
            for x, y in itertools.pairwise(ends):
                if x == y or max(abs(x), abs(y)) > 1e5:
                    continue
                quotient = (phi(x) - phi(y)) / (x - y)
                assert low * (1 - mp.sign(low) * mp.mpf(1e-40)) <= quotient, (a, b)
                assert quotient <= high * (1 + mp.sign(high) * mp.mpf(1e-40)), (a, b)
                checked += 1


@given(st.sampled_from(CASES), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_any_interval(case, a, b):
    function, _, prime, _ = case
    a, b = min(a, b), max(a, b)
    low, high = (float(s) for s in slopes(function, a, b))
    assert low <= high
    if not defined(function, a, b):
        assert (low, high) == (-INF, INF)
        return
    for x in (a, b):
        if math.isfinite(x) and not (isinstance(function, (steep.Exp, steep.Exp2)) and abs(x) > 1e9):
            try:
                value = prime(mp.mpf(x)) if abs(x) < 1e9 or isinstance(function, steep.Power) else None
            except (ZeroDivisionError, ValueError):
                value = None
            assert value is None or low <= value <= high


@pytest.mark.parametrize(
    ("function", "low", "high", "expected"),
    [
        (steep.power(2), 0.0, 0.0, (0.0, 0.0)),
        (steep.power(2), -1.0, 3.0, (-2.0, 6.0)),
        (steep.power(3), -1.0, 2.0, (0.0, 12.0)),
        (steep.power(2), -INF, INF, (-INF, INF)),
        (steep.steep(steep.Exp, "exp"), -INF, 0.0, (0.0, 1.0)),
        (steep.steep(steep.Exp, "exp"), 0.0, INF, (1.0, INF)),
        (steep.steep(steep.Exp, "exp"), 800.0, INF, (math.exp(709.0), INF)),
        (steep.steep(steep.Sinh, "sinh"), -1.0, INF, (1.0, INF)),
        (steep.steep(steep.Log, "log"), 0.5, INF, (0.0, 2.0)),
        (steep.steep(steep.Log, "log"), 0.0, 2.0, (0.5, INF)),
        (steep.steep(steep.Log, "log"), -1e-300, 2.0, (-INF, INF)),
        (steep.power(0.5), 0.0, 1.0, (0.5, INF)),
        (steep.power(0.5), -1.0, 1.0, (-INF, INF)),
        (steep.power(-1), 0.0, 1.0, (-INF, INF)),
        (steep.power(-1), -1.0, 1.0, (-INF, INF)),
        (steep.power(-1), -1.0, -0.5, (-4.0, -1.0)),
        (steep.power(-2), 1.0, INF, (-2.0, 0.0)),
        (steep.steep(steep.Asin, "asin"), -1.0, 1.0, (1.0, INF)),
        (steep.steep(steep.Asin, "asin"), -1.0, 1.5, (-INF, INF)),
        (steep.steep(steep.Logit, "logit"), 0.0, 1.0, (4.0, INF)),
    ],
)
def test_slopes_one_can_name(function, low, high, expected):
    found = [float(s) for s in slopes(function, low, high)]
    assert found == pytest.approx(expected, rel=1e-14, abs=1e-300)
    assert found[0] <= expected[0]
    assert found[1] >= expected[1]


@pytest.mark.few(7)
@every_case
def test_values_are_enclosed_and_in_the_image(function, phi, prime, turns):
    choose = random.Random(3)
    x = []
    while len(x) < 400:
        a, _ = draw(choose, function)
        if math.isfinite(a) and defined(function, a, a):
            x.append(a)
    points = tensor(x)
    value, enclosed = function(points), function.enclosed(Range.exact(points))
    single = torch.stack([function(p) for p in points])  # not the library's vectorised code
    chained = function.value(Enclosure(Range.exact(points), Range.exact(torch.ones_like(points))))
    lower, upper = slopes(function, points, points)
    least, greatest = (float(end) for end in function.image)
    for i, a in enumerate(x):
        try:
            true = phi(mp.mpf(a))
        except (ZeroDivisionError, ValueError):
            true = mp.inf
        if not abs(true) < 1e300:
            continue
        assert least <= true <= greatest
        if not moderate(function, a):
            mid = float(enclosed.mid[i])
            assert not math.isfinite(mid) or float(enclosed.low[i]) <= true <= float(enclosed.high[i]), a
            continue
        for computed in (float(value[i]), float(single[i])):
            assert abs(computed - true) <= 1e-14 * abs(true) + 1e-15 * isinstance(function, steep.Logit) + 1e-300
        mid, rad = enclosed.mid[i], enclosed.rad[i]
        if not math.isfinite(float(mid)):
            assert abs(true) > 1e280 or a == 0, a
            continue
        assert float(enclosed.low[i]) <= true <= float(enclosed.high[i]), a
        assert float(rad) <= 2e-12 * abs(true) + 1e-300 + 3e-15 * isinstance(function, steep.Logit), a
        assert torch.equal(chained.value.mid[i], mid)
        tangent = Range(chained.tangent.mid[i], chained.tangent.rad[i])
        if math.isfinite(float(tangent.rad)):
            assert float(tangent.low) <= float(lower[i])
            assert float(tangent.high) >= float(upper[i])
        else:
            assert not math.isfinite(float(upper[i] - lower[i]))


@pytest.mark.few(10)
@every_case
def test_enclosures_of_wide_ranges(function, phi, prime, turns):
    choose = random.Random(4)
    for _ in range(100):
        a, b = draw(choose, function)
        if not (math.isfinite(a) and math.isfinite(b)):
            continue
        wide = Range.between(tensor(a), tensor(b))
        result = function.enclosed(wide)
        if not math.isfinite(float(result.mid)):
            continue
        assert defined(function, a, b)
        for share in (0.0, 0.3, 1.0):
            with mp.workdps(400):
                x = mp.mpf(a) + mp.mpf(share) * (mp.mpf(b) - mp.mpf(a))
                true = phi(x)
            assert float(result.low) <= true <= float(result.high), (a, b, share)
    nothing = function.enclosed(Range(tensor(math.nan), tensor(INF)))
    assert math.isnan(float(nothing.mid))
    assert float(nothing.rad) == INF


def test_ends_of_images_are_limits():
    assert mp.mpf(2 * HALF_PI) > mp.pi
    images = {type(f): f.image for f, *_ in CASES if not isinstance(f, steep.Power)}
    assert images[steep.Acos] == (0.0, 2 * HALF_PI)
    assert images[steep.Cosh] == (1.0, INF)
    assert images[steep.Expm1] == (-1.0, INF)
    assert images[steep.Log] == (-INF, INF)
    rows = {2: (0.0, INF), 3: (-INF, INF), 0.5: (0.0, INF), -1: (-INF, INF), -2: (0.0, INF), -1.5: (0.0, INF)}
    for p, image in rows.items():
        assert steep.power(p).image == image
    assert steep.power(2, -1.0).image == (-INF, 0.0)


@pytest.mark.few(10)
@every_case
def test_ranges_of_values_on_intervals(function, phi, prime, turns):
    """What the facts are for: ``ranges`` encloses the values on any interval, closely on a small one."""
    choose = random.Random(5)
    pairs = [draw(choose, function) for _ in range(150)]
    lows, highs = image_of(function, tensor([a for a, _ in pairs]), tensor([b for _, b in pairs]))
    assert not bool(lows.isnan().any() | highs.isnan().any())
    for (a, b), low, high in zip(pairs, lows.tolist(), highs.tolist(), strict=True):
        assert low <= high
        a, b = max(a, -1e5), min(b, 1e5)
        for share in (0.0, 0.37, 1.0):
            with mp.workdps(700):
                x = mp.mpf(a) + mp.mpf(share) * (mp.mpf(b) - mp.mpf(a))
                if a > b or not defined(function, float(x), float(x)):
                    continue
                try:
                    true = phi(x)
                except (ZeroDivisionError, ValueError):
                    continue
            assert mp.isinf(true) or low <= true <= high, (a, b, share)
    start = {0.0: 0.25, 1.0: 1.25}.get(function.valid[0], 0.25)
    low, high = (float(end) for end in image_of(function, tensor(start), tensor(start + 1e-3)))
    ends = sorted(phi(mp.mpf(t)) for t in (start, start + 1e-3))
    assert high - low <= 1.01 * float(ends[1] - ends[0]) + 1e-13
