"""execution_error against float64 runs of the same float32 models: never below, and how far above."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import lipcert
from lipcert import Ball, Box, InputError, NumericsError, UnsupportedOpError
from lipcert.capture.torch_export import capture, capture_steps
from lipcert.execution.walk import errors, margin_errors
from tests.execution.running import differences, holds, points
from tests.zoo import ZOO, Apply, Case, networks, zoo_case

inf = math.inf


def linear(n: int, m: int, seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(n, m)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


#: name → model, shape of one example, largest ratio of bound to observed that is tolerated.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "linear": (lambda: nn.Linear(20, 5), (20,), 60),
    "ReLU MLP": (lambda: nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 10)), (20,), 400),
    "tanh MLP": (lambda: nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 10)), (20,), 300),
    "conv, batch norm, pools": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 6, 3, groups=2, padding=1, padding_mode="reflect"), nn.SiLU(), nn.AvgPool2d(2, padding=1),
            nn.Flatten(), nn.Linear(54, 4),
        ),
        (2, 8, 8), 2000,
    ),
    "conv transpose": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2, output_padding=1), nn.GELU(), nn.Flatten()),
        (4, 4, 4), 200,
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ELU(), nn.MaxPool1d(2), nn.Flatten()), (3, 8), 60),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten()), (1, 4, 4, 4), 200),
    "residual": (lambda: Apply(lambda s, x: x + s.b(F.relu(s.a(x))), a=linear(8, 16), b=linear(16, 8)), (8,), 200),
    "concatenation": (lambda: Apply(lambda s, x: torch.cat([x, s.a(x), x], 1), a=linear(8, 4)), (8,), 60),
    "halves": (lambda: Apply(lambda s, x: torch.cat(s.a(x).chunk(2, 1)[::-1], 1), a=linear(8, 4)), (8,), 60),
    "x sigmoid(x)": (lambda: Apply(lambda s, x: s.a(x) * torch.sigmoid(s.a(x)), a=linear(8, 3)), (8,), 200),
    "square": (lambda: Apply(lambda s, x: s.a(x) * s.a(x), a=linear(8, 3)), (8,), 200),
    "1 − x/3": (lambda: Apply(lambda s, x: 1 - s.a(x) / 3, a=linear(8, 3)), (8,), 60),
    "decimal scales": (lambda: Apply(lambda s, x: s.a((x / 255 - 0.1307) / 0.3081) * 0.1, a=linear(8, 3)), (8,), 60),
    "softmax": (lambda: nn.Sequential(nn.Linear(8, 10), nn.Softmax(-1)), (8,), 300),
    "log-softmax, large": (lambda: Apply(lambda s, x: F.log_softmax(100 * s.a(x), 1), a=linear(8, 10)), (8,), 100),
    "logsumexp": (lambda: Apply(lambda s, x: torch.logsumexp(s.a(x), 1, keepdim=True), a=linear(8, 4)), (8,), 200),
    "maxima": (lambda: Apply(lambda s, x: s.a(x).reshape(-1, 2, 2).amax(2), a=linear(8, 4)), (8,), 60),
    "largest and its place": (lambda: Apply(lambda s, x: s.a(x).max(1, keepdim=True)[0], a=linear(8, 4)), (8,), 60),
    "length": (
        lambda: Apply(lambda s, x: torch.linalg.vector_norm(s.a(x), dim=1, keepdim=True), a=linear(8, 9)), (8,), 400
    ),
    "mean": (lambda: Apply(lambda s, x: s.a(x).mean(1, keepdim=True), a=linear(8, 30)), (8,), 400),
    "sin of large": (lambda: Apply(lambda s, x: torch.sin(30 * s.a(x)), a=linear(8, 3)), (8,), 60),
    "logarithm, exp": (lambda: Apply(lambda s, x: torch.log(1 + torch.exp(s.a(x))), a=linear(8, 3)), (8,), 200),
}  # fmt: skip


@pytest.mark.few(6)
@pytest.mark.parametrize("name", MODELS)
def test_never_below_and_not_far_above(name: str) -> None:
    make, shape, most = MODELS[name]
    model = seeded(make)
    centre = seeded(lambda: nn.Linear(math.prod(shape), 1)).weight.detach().reshape(shape) * 2
    assert holds(model, Ball(centre, 0.05), shape) <= most
    assert holds(model, Ball(centre, 0.0), shape) >= 1.0
    holds(model, Ball(centre, 0.3, p=2), shape)


#: Normalisation: the variance of a row is known badly on a box, and the count of its roundings is a worst case.
NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.Linear(64, 4)), (8,)),
    "layer, 3 entries": (lambda: nn.LayerNorm(3), (3,)),
    "layer, large mean": (lambda: Apply(lambda s, x: s.n(s.a(x) + 100), a=linear(8, 64), n=nn.LayerNorm(64)), (8,)),
    "layer of tokens": (lambda: nn.LayerNorm((4, 6), eps=0.01), (3, 4, 6)),
    "RMS": (lambda: nn.Sequential(nn.Linear(8, 64), nn.RMSNorm(64), nn.Linear(64, 4)), (8,)),
    "group": (lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()), (2, 6, 6)),
    "batch, small variance": (lambda: _batch_norm(1e4, 1e-6), (8,)),
    "batch, large variance": (lambda: _batch_norm(-3.0, 1e8), (8,)),
}


def _batch_norm(mean: float, variance: float) -> nn.Module:
    norm = nn.BatchNorm1d(8)
    norm.load_state_dict(
        norm.state_dict() | {"running_mean": torch.full((8,), mean), "running_var": torch.full((8,), variance)}
    )
    return nn.Sequential(linear(8, 8), norm, nn.ReLU(), linear(8, 3))


@pytest.mark.parametrize("name", NORMS)
def test_normalisation(name: str) -> None:
    make, shape = NORMS[name]
    model = seeded(make)
    centre = torch.linspace(-1.0, 1.5, math.prod(shape)).sin().reshape(shape)
    for radius in (0.0, 1e-3, 0.02):
        holds(model, Ball(centre, radius), shape)


def test_an_offset_in_front_of_a_norm_is_paid_for() -> None:
    # the mean of 64 numbers near 1e4 is off by 1e-4 or more, and the variance is 1e-2
    model = Apply(lambda s, x: s.n(0.1 * x + 1e4), n=nn.LayerNorm(64))
    point = torch.linspace(-1, 1, 64)
    with pytest.raises(UnsupportedOpError, match="variance"):
        lipcert.execution_error(model.eval(), point[None], Ball(point, 0.0))
    model = Apply(lambda s, x: s.n(0.1 * x + 10), n=nn.LayerNorm(64))
    assert holds(model, Ball(point, 0.0), (64,)) > 1.0


@pytest.mark.few(8)
@pytest.mark.parametrize("name", [name for name, _, _ in ZOO])
def test_zoo(name: str) -> None:
    case = zoo_case(name)
    _try(case, seed=1)


def _try(case: Case, seed: int) -> None:
    shape = tuple(case.example.shape[1:])
    model = case.model.float()
    for radius in (0.1,) if seed == 2 else (0.0, 0.1):
        try:
            holds(model, Ball(torch.zeros(shape) + 0.25, radius), shape, seed)
        except (UnsupportedOpError, NumericsError, lipcert.NotLipschitzError):
            return


@given(networks())
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
def test_what_hypothesis_draws(case: Case) -> None:
    _try(case, seed=2)


@pytest.mark.slow
@given(networks())
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_three_hundred_networks(case: Case) -> None:
    _try(case, seed=3)


def test_threads_and_batches_have_kernels_of_their_own() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 10))).requires_grad_(False)
    domain = Box(0.0, 1.0)
    bounds = lipcert.execution_error(model, torch.zeros(1, 300), domain).bounds
    x = points(domain, (300,), 256)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for difference in differences(model, x, (1, 2, 7, 256)):
                assert bool((difference <= bounds).all())
    finally:
        torch.set_num_threads(before)


@contextmanager
def libraries(mkldnn: bool, nnpack: bool) -> Iterator[None]:
    """Which library torch gives convolutions to."""
    before = torch._C._get_mkldnn_enabled(), torch._C._get_nnpack_enabled()
    torch.backends.mkldnn.set_flags(mkldnn)
    torch.backends.nnpack.set_flags(nnpack)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before[0])
        torch.backends.nnpack.set_flags(before[1])


def test_convolutions_of_either_covered_library() -> None:
    """Large entries beside small ones: an algorithm that transforms tiles smears the rounding of the large ones."""
    model = nn.Sequential(seeded(lambda: nn.Conv2d(4, 8, 3, padding=1))).requires_grad_(False)
    x = 1e-3 * torch.randn(32, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    x[:, :, ::6, ::6] = 1e4
    bounds = lipcert.execution_error(model, x[:1], Box(x.amin(0), x.amax(0))).bounds
    real = nn.Sequential(seeded(lambda: nn.Conv2d(4, 8, 3, padding=1))).double()(x.double())
    for mkldnn, nnpack in ((True, True), (True, False), (False, False)):
        with libraries(mkldnn, nnpack):
            for run in (model(x), torch.cat([model(row[None]) for row in x])):
                assert bool(((run.double() - real).abs() <= bounds).all())
    with libraries(False, True), pytest.raises(InputError, match=r"nnpack.set_flags\(False\)"):
        lipcert.execution_error(model, x[:1], Box(0.0, 1.0))


def test_reduced_precisions_are_refused() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(InputError, match="highest"):
            lipcert.execution_error(nn.Linear(3, 2), torch.zeros(1, 3), Box(0.0, 1.0))
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("terms", [1, 2, 3, 100, 3000])
def test_any_order_of_summation(terms: int) -> None:
    """Sums from left to right, sorted, in pairs, with products rounded or not: worse orders than any kernel's."""
    layer = linear(terms, 1).requires_grad_(False)
    x = points(Box(0.0, 1.0), (terms,), 1)[0]
    bound = float(lipcert.execution_error(nn.Sequential(layer), x[None], Ball(x, 0.0)).bounds)
    exact = float((layer.weight.double()[0] * x.double()).sum() + layer.bias.double())
    fused = layer.weight.double()[0] * x.double()  # as fused multiply-adds take them: unrounded
    rounded = layer.weight[0] * x
    for products in (fused, rounded.double()):
        for order in (torch.arange(terms), products.argsort(), products.abs().argsort(descending=True)):
            total = torch.zeros((), dtype=torch.float32)
            for product in [*products[order].tolist(), float(layer.bias)]:
                total = (total.double() + product).float()
            assert abs(float(total) - exact) <= bound
    assert bound <= (terms + 8) * 2.0**-24 * float(fused.abs().sum() + layer.bias.abs()) + 1e-30


@pytest.mark.parametrize("size", [5e6, 1e20, 1e37])
def test_planted_biases_that_cancel(size: float) -> None:
    first, last = linear(8, 16), linear(16, 3)
    with torch.no_grad():
        first.bias.fill_(size)
        last.weight[:, 8:] = -last.weight[:, :8]
    model = nn.Sequential(first, nn.ReLU(), last)
    domain = Ball(torch.zeros(8) + 0.5, 0.05)
    holds(model, domain, (8,))
    bounds = lipcert.execution_error(model, torch.zeros(1, 8), domain).bounds
    assert float(bounds.min()) >= 0.1 * size * 2.0**-24  # half a unit in the last place of the hidden values


def test_a_bias_added_and_taken_away_hides_the_input() -> None:
    model = Apply(lambda s, x: (x + 5e6) - 5e6)
    domain = Ball(torch.full((4,), 0.3), 0.1)
    bounds = lipcert.execution_error(model, torch.zeros(1, 4), domain).bounds
    assert float(bounds.min()) >= 0.25  # float32 numbers near 5e6 are 1/2 apart
    holds(model, domain, (4,))


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.a(x * 1e38) * 1e-38, lambda s, x: torch.exp(100 * x), lambda s, x: (x * 1e30) * (x * 1e30),
        lambda s, x: (1e38 * torch.ones(1, 8) * x).sum(1, keepdim=True) * 1e-38, lambda s, x: (s.a(x) + 1e20) ** 2,
    ],
)  # fmt: skip
def test_overflow_is_refused(function: Callable[[nn.Module, Tensor], Tensor]) -> None:
    layer = linear(8, 3)
    with torch.no_grad():
        layer.weight.fill_(4.0)
    model = Apply(function, a=layer).eval()
    assert not bool(torch.isfinite(model(torch.ones(1, 8))).all())
    with pytest.raises(NumericsError, match="overflow"):
        lipcert.execution_error(model, torch.full((1, 8), 1e-3), Box(0.0, 1.0))


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38, 1e-30])
@pytest.mark.parametrize("flush", [False, True])
def test_subnormal_numbers(scale: float, flush: bool) -> None:
    first, last = linear(8, 16), linear(16, 3)
    with torch.no_grad():
        first.weight.mul_(scale)
        first.bias.mul_(scale)
        last.bias.zero_()
    model = nn.Sequential(first, nn.ReLU(), last).requires_grad_(False)
    domain = Ball(torch.zeros(8) + 0.5, 0.1)
    bounds = lipcert.execution_error(model, torch.zeros(1, 8), domain).bounds
    x = points(domain, (8,), 40)
    real = nn.Sequential(first, nn.ReLU(), last).double()(x.double())
    model.float()
    try:
        assert torch.set_flush_denormal(flush)
        run = model(x)
    finally:
        torch.set_flush_denormal(False)
    assert bool(((run.double() - real).abs() <= bounds).all())


def test_margins_are_bounded_together() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 10))).requires_grad_(False)
    centre = torch.linspace(-1, 1, 20)
    domain = Ball(centre, 0.02, p=2)
    steps = capture_steps(model, centre[None])
    each = errors(steps, domain.fitted((1, 20)))[0]
    margins = margin_errors(steps, domain.fitted((1, 20)), 3)
    assert margins[3] == 0.0
    assert bool((margins <= (each + each[3]) * (1 + 1e-12)).all())
    select = torch.eye(10, dtype=torch.float64)[3] - torch.eye(10, dtype=torch.float64)
    stated = lipcert.execution_error(model, centre[None], domain, select=select)
    assert torch.equal(stated.bounds, margins)
    x = points(domain, (20,), 400)
    run, real = model(x).double(), model.double()(x.double())
    assert bool((((run - real) @ select.T).abs() <= margins).all())


def test_a_small_domain_has_a_smaller_error_than_a_large_one() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 2)))
    found = lipcert.execution_error(model, torch.zeros(1, 20), [Ball(torch.ones(20), r) for r in (0.0, 0.01, 0.1, 1.0)])
    values = [one.norm(inf) for one in found]
    assert values == sorted(values)
    assert values[0] < 0.1 * values[-1]
    assert found[0].norm(1) >= found[0].norm(2) >= found[0].norm(inf) == float(found[0].bounds.max())
    assert "float32" in str(found[0])
    assert "ball of radius 0.1" in str(found[2])


def test_the_steps_are_those_of_the_network_that_bounds_are_about() -> None:
    for model in (MODELS["ReLU MLP"][0](), MODELS["residual"][0](), MODELS["conv, batch norm, pools"][0]()):
        example = torch.zeros(1, *next(shape for make, shape, _ in MODELS.values() if type(make()) is type(model)))
        if type(model) is nn.Sequential and isinstance(model[0], nn.Conv2d):
            example = torch.zeros(1, 2, 8, 8)
        assert capture_steps(model.eval(), example).network.fingerprint == capture(model, example).fingerprint


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "error", "words"),
    [
        (nn.Linear(3, 2).double(), (3,), InputError, "float64.*model.float"),
        (nn.Linear(3, 2).bfloat16(), (3,), InputError, "bfloat16"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), (3,), UnsupportedOpError, "_weight_norm.*Bake"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)), (3,), UnsupportedOpError, "Bake"),
        (Apply(lambda s, x: s.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2, batch_first=True)), (3, 4),
         UnsupportedOpError, "fused"),
        (Apply(lambda s, x: F.interpolate(x, scale_factor=2, mode="bilinear")), (1, 3, 3), UnsupportedOpError,
         "upsample_bilinear2d"),
        (Apply(lambda s, x: x.to(torch.float64).sin().float()), (3,), UnsupportedOpError, "float64"),
        (Apply(lambda s, x: torch.nn.functional.linear(x.bfloat16(), torch.ones(2, 3).bfloat16()).float()), (3,),
         UnsupportedOpError, "bfloat16"),
        (Apply(lambda s, x: x.sort(1)[0]), (3,), UnsupportedOpError, "sort"),
    ],
)  # fmt: skip
def test_refusals(model: nn.Module, shape: tuple[int, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        lipcert.execution_error(model.eval(), torch.zeros(1, *shape), Box(0.0, 1.0))


def test_bad_arguments() -> None:
    model, x = nn.Linear(3, 2), torch.zeros(1, 3)
    with pytest.raises(InputError, match="Ball, Box or Intersection"):
        lipcert.execution_error(model, x, None)
    with pytest.raises(InputError, match="TF32"):
        lipcert.execution_error(model, x, Box(0.0, 1.0), "tf32")  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"\(k, 2\) matrix"):
        lipcert.execution_error(model, x, Box(0.0, 1.0), select=torch.ones(1, 3))
