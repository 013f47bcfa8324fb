"""Attacks on bounds and ranges on domains: those that once broke something, and the best of those that did not."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates import file as certificate_file
from lipcert.increments import Increments
from lipcert.increments.reduction import reduced
from lipcert.network.relations import EntryCell, Linear, Start
from lipcert.problem import Problem
from tests.zoo import Apply, mlp, random_network

INF = math.inf


def layer(weight: Any, bias: float = 0.0) -> nn.Linear:
    matrix = torch.as_tensor(weight, dtype=torch.float64)
    result = nn.Linear(matrix.shape[1], matrix.shape[0]).double()
    with torch.no_grad():
        result.weight.copy_(matrix)
        result.bias.fill_(bias)
    return result


def example(n: int) -> Tensor:
    return torch.zeros(1, n, dtype=torch.float64)


# -- what once was false --------------------------------------------------------------------------------------


def test_coefficients_that_overflow_to_no_number_bound_nothing() -> None:
    # 1e200·1e200 − 1e200·0.5e200 is inf − inf; the value at 1e-300 is 0.5e100 − 1e99 > 0
    first, second = layer([[1e200], [-0.5e200]]), layer([[1e200, 1e200]], -1e99)
    model = nn.Sequential(first, nn.Hardtanh(), second, nn.ReLU(), layer([[1e-200]]))
    box = lipcert.Box([-1e-300], [1e-300])
    assert float(lipcert.ranges(model, example(1), box)["2"][1]) >= 3.9e99
    assert lipcert.bound(model, example(1), domain=box).value >= 0.4999e200


def test_the_length_of_small_coefficients_does_not_underflow() -> None:
    model = nn.Sequential(layer([[1e-170] * 2] * 2, -1e-3), nn.ReLU(), layer((torch.eye(2) * 1.0).double() * 1e170))
    ball = lipcert.Ball([0.0, 0.0], 1e170, 2)
    assert float(lipcert.ranges(model, example(2), ball)["0"][1].min()) >= 1.41
    assert lipcert.bound(model, example(2), domain=ball).value >= 2.0


def test_the_radius_around_a_block_does_not_underflow() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    norm = nn.LayerNorm(2, eps=1e-5).double()
    model = nn.Sequential(layer(eye * 1e-170), norm, layer(eye * 1e170, -1.0), nn.ReLU())
    box = lipcert.Box([-1.0, -1.0], [1.0, 1.0])
    with torch.no_grad():
        seen = model(torch.tensor([[1.0, -1.0]], dtype=torch.float64))[0, 0]
    assert float(seen) > 300.0
    assert float(list(lipcert.ranges(model, example(2), box).values())[-1][1][0]) >= float(seen)
    assert lipcert.bound(model, example(2), domain=box).value >= 315.0


@pytest.mark.parametrize("method", ["auto", "autolip", "liplt"])
def test_a_product_of_small_maps_after_an_unbounded_maximum_does_not_vanish(method: str) -> None:
    small = [layer([[1e-200]]), layer([[1e-200]]), layer([[1e-200]], -1e-251)]
    after = nn.Sequential(*small, nn.ReLU(), layer([[1e200]]), layer([[1e200]]))
    pool = Apply(lambda s, x: s.after(s.first(x).amax(1, keepdim=True)), first=layer([[1e200], [-1e200]]), after=after)
    assert lipcert.bound(pool, example(1), domain=lipcert.Box([-1e150], [1e150]), method=method).value >= 1.0 - 1e-9


@pytest.mark.parametrize("method", ["auto", "autolip", "branch_and_bound", "lipsdp"])
def test_whole_numbers_that_do_not_add_exactly_cancel_nothing(method: str) -> None:
    # relu(a + x) − a = x for x < 0, a = −2^60 x; in floats (2^60 + 1) − 2^60 = 0
    prelu = nn.PReLU(2).double()
    with torch.no_grad():
        prelu.weight.copy_(torch.tensor([-(2.0**60), -(2.0**61)]))
    model = Apply(lambda s, x: torch.relu(s.prelu(x) + x) - s.prelu(x), prelu=prelu)
    box = lipcert.Box([-2.0, -2.0], [-1.0, -1.0])
    assert lipcert.bound(model, example(2), domain=box, method=method).value >= 1.0


# -- what once was an error -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [(INF, 1), (2, 1), (INF, 2), (2, 2), (2, INF)])
def test_a_wide_input_that_nothing_reads(norm: tuple[float, float]) -> None:
    model = nn.Sequential(layer(torch.ones(3, 5), -100.0), nn.ReLU(), layer(torch.ones(2, 3)))
    assert 0.0 <= lipcert.bound(model, example(5), norm=norm, domain=lipcert.Box([-0.1] * 5, [0.1] * 5)).value < 1e-50


@pytest.mark.parametrize("norm", [(2, 2), (INF, INF)])
def test_nothing_reads_the_input_and_no_time_is_left(norm: tuple[float, float]) -> None:
    model = nn.Sequential(layer(torch.ones(3, 5), -100.0), nn.ReLU(), layer(torch.ones(2, 3)))
    box = lipcert.Box([-0.1] * 5, [0.1] * 5)
    assert 0.0 <= lipcert.bound(model, example(5), norm=norm, domain=box, budget=1e-3).value < 1e-50


def test_an_anchor_given_as_numbers_is_these_numbers() -> None:
    bound = lipcert.bound(mlp((1, 3, 1)), example(1), domain=lipcert.Box([0.1], [0.2]), anchor=[0.2])  # type: ignore[arg-type]
    assert bound.anchor is not None
    assert float(bound.anchor) == 0.2


@pytest.mark.few(3)
@pytest.mark.parametrize("function", [torch.exp, torch.square, torch.cosh, lambda x: x * x, lambda x: 1 / (x + 3)])
def test_steep_functions_have_lower_bounds(function: Any) -> None:
    model = Apply(lambda s, x: s.b(function(s.a(x))), a=layer([[0.5, 1.0], [-1.0, 0.3]]), b=layer([[1.0, 2.0]]))
    ball = lipcert.Ball([0.1, 0.2], 0.5, 2)
    lower = lipcert.lower_bound(model, example(2), domain=ball, budget=0.2)
    assert 0.0 < lower.value <= lipcert.bound(model, example(2), domain=ball).value <= 2.0 * lower.value


def test_examples_whose_squares_vanish_contradict_no_gain() -> None:
    model = Apply(lambda _, x: x.amax(1, keepdim=True))
    assert lipcert.bound(model, torch.full((1, 3), 1e-200, dtype=torch.float64)).value == 1.0


# -- what has held so far -------------------------------------------------------------------------------------


def _random_piecewise(rnd: random.Random) -> tuple[nn.Module, Any, int]:
    """A chain of extreme scale as a module, and as a function of exact numbers."""
    generator = torch.Generator().manual_seed(rnd.randrange(10**6))
    n = width = rnd.randint(1, 3)
    parts: list[tuple[str, Any]] = []
    size = rnd.choice([1, 60, 150])
    for _ in range(rnd.randint(2, 6)):
        kind = rnd.choice(["linear", "linear", "relu", "abs", "clamp", "sort", "twice"])
        if kind == "linear":
            m, scale = rnd.randint(1, 3), 10.0 ** rnd.uniform(-size, size)
            weight = torch.randn(m, n, generator=generator, dtype=torch.float64) * scale
            parts.append((kind, layer(weight, rnd.gauss(0, 1) * 10.0 ** rnd.uniform(-size, size))))
            n = m
        else:
            parts.append((kind, abs(rnd.gauss(0, 1)) * 10.0 ** rnd.uniform(-size, size)))

    def forward(s: Any, x: Tensor) -> Tensor:
        for place, (kind, value) in enumerate(parts):
            x = {
                "linear": lambda x, p=place: getattr(s, f"l{p}")(x), "relu": lambda x: torch.relu(x), "abs": torch.abs,
                "clamp": lambda x, v=value: x.clamp(-v, v), "sort": lambda x: x.sort(1).values,
                "twice": lambda x: torch.cat([x, x.flip(1)], 1)[:, : x.shape[1]] - 2.0 * x.relu(),
            }[kind](x)  # fmt: skip
        return x

    def exactly(x: list[Fraction]) -> list[Fraction]:
        for kind, value in parts:
            if kind == "linear":
                rows, offsets = value.weight.tolist(), value.bias.tolist()
                x = [
                    sum((Fraction(w) * v for w, v in zip(row, x, strict=True)), Fraction(b))
                    for row, b in zip(rows, offsets, strict=True)
                ]
            elif kind == "sort":
                x = sorted(x)
            else:
                top = Fraction(value)
                x = [
                    {"relu": max(v, Fraction(0)), "abs": abs(v), "clamp": min(max(v, -top), top)}.get(
                        kind, v - 2 * max(v, Fraction(0))
                    )
                    for v in x
                ]
        return x

    modules = {f"l{place}": value for place, (kind, value) in enumerate(parts) if kind == "linear"}
    return Apply(forward, **modules), exactly, width


@pytest.mark.few(4)
@pytest.mark.parametrize("seed", range(25))
def test_ranges_and_bounds_of_extreme_networks_in_exact_numbers(seed: int) -> None:
    rnd = random.Random(seed)
    model, exactly, n = _random_piecewise(rnd)
    center = [rnd.gauss(0, 1) * 10.0 ** rnd.uniform(-40, 40) for _ in range(n)]
    radius = max(map(abs, center)) * 10.0 ** rnd.uniform(-16, 3)
    ball = lipcert.Ball(center, radius, INF)
    low, high = (e.tolist() for e in ball.bounds())
    ends = list(zip(low, high, center, strict=True))
    points = [[rnd.choice([a, b, c, rnd.uniform(a, b)]) for a, b, c in ends] for _ in range(8)]
    points = [p for p in points if ball.contains(torch.tensor(p, dtype=torch.float64))]
    values = [exactly([Fraction(v) for v in p]) for p in points]
    lower, upper = list(lipcert.ranges(model, example(n), ball).values())[-1]
    for value in values:
        for v, a, b in zip(value, lower.tolist(), upper.tolist(), strict=True):
            assert a == -INF or Fraction(a) <= v
            assert b == INF or v <= Fraction(b)
    try:
        bound = lipcert.bound(model, example(n), norm=(INF, INF), domain=ball, method="autolip")
    except lipcert.NumericsError:  # norms beyond 2^±700
        return
    for p, fp in zip(points, values, strict=True):
        for q, fq in zip(points, values, strict=True):
            apart = max(abs(Fraction(a) - Fraction(b)) for a, b in zip(p, q, strict=True))
            rose = max(abs(a - b) for a, b in zip(fp, fq, strict=True))
            assert bound.value == INF or rose <= Fraction(bound.value) * apart


@pytest.mark.few(4)
@pytest.mark.parametrize("seed", range(12))
def test_reduced_increments_are_the_same(seed: int) -> None:
    case = random_network(seed)
    network = capture(case.model, case.example)
    center = torch.randn(network.in_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ball = lipcert.Ball(center, 10.0 ** (seed % 5 - 3), INF)
    whole = Problem(network, (INF, INF), ball).increments
    x = torch.randn(1, *network.in_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def image(increments: Increments) -> Tensor | None:
        generator, values = torch.Generator().manual_seed(2), []
        for relation in increments.relations:
            if isinstance(relation, Start):
                values.append(x)
            elif isinstance(relation, Linear):
                terms = [m.apply(values[p]) for p, m in zip(relation.parents, relation.maps, strict=True)]
                values.append(sum(terms, torch.zeros(1, *relation.shape, dtype=torch.float64)))
            elif isinstance(relation, EntryCell):
                low, high = relation.lower.reshape(-1), relation.upper.reshape(-1)
                slopes = low.clone()
                share = torch.rand(int((low < high).sum()), generator=generator, dtype=torch.float64)
                slopes[low < high] += share * (high - low)[low < high]
                values.append(values[relation.parent].reshape(1, *relation.shape) * slopes.reshape(relation.shape))
            else:
                return None
        return values[-1]

    a, b = image(whole), image(reduced(whole))
    if a is None or b is None:
        assert any(cell.block for cell in whole.cells)
        return
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(a.abs().max()))


@pytest.mark.parametrize("method", ["autolip", "lipsdp", "liplt"])
def test_forged_files_verify_nothing_false(method: str, tmp_path: Path) -> None:
    first = layer([[1.0, 0, 0], [0, 5.0, 0], [0, 0, 5.0]], -3.0)  # near the centre the first unit alone is alive
    with torch.no_grad():
        first.bias[0] = 1.0
    model = nn.Sequential(first, nn.ReLU(), layer(torch.eye(3)))
    center = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    ball = lipcert.Ball(center, 0.05, 2)
    bound = lipcert.bound(model, example(3), domain=ball, anchor=center, method=method, budget=1.0)
    bound.save(tmp_path / "true.lipcert")
    assert bound.value < 1.01
    content = (tmp_path / "true.lipcert").read_bytes()
    header, arrays = certificate_file._header(content), certificate_file.load(content)
    del header["sha256"]
    described = header["domain"]
    forgeries: list[tuple[dict[str, Any], dict[str, Tensor | None]]] = [
        ({"domain": None}, {"domain.center": None}), ({"domain": None}, {"domain.center": None, "anchor": None}),
        *(({"domain": {**described, "radius": r}}, {}) for r in (100.0, 1e308, INF, math.nan, -1.0, True, "1")),
        *(({}, {"anchor": a}) for a in (center + 5, center * math.nan, center.float(), center[:1], center[0])),
        *(({}, {"domain.center": c}) for c in (center * math.nan, center.float(), center[:2], center[0])),
        ({"value": bound.value / 2, "log10": None}, {}), ({"value": 0.0, "log10": None}, {}),
        ({"value": "nan", "log10": None}, {}), ({"domain": {**described, "p": True}}, {}),
        ({"domain": {"type": "box"}}, {"domain.center": None, "domain.lower": center - 9, "domain.upper": center + 9}),
    ]  # fmt: skip
    for changes, replaced in forgeries:
        held = {k: v for k, v in {**arrays, **replaced}.items() if v is not None}
        held = {k: v.clone() for k, v in held.items()}
        (tmp_path / "forged.lipcert").write_bytes(certificate_file._to_bytes({**header, **changes}, held))
        with pytest.raises(lipcert.CertificateError):
            lipcert.verify(tmp_path / "forged.lipcert", model, example(3))
