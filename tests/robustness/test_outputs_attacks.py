"""Attempts to get a false output bound, or an ugly error, out of ``output_bounds`` and its certificates."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness
from lipcert.certificates.file import domain_from_json
from lipcert.certificates.outputs import FORMAT, OutputCertificate, Subject, prove_outputs, verify_outputs
from lipcert.errors import CertificateError, InputError, LipcertError
from lipcert.network.graph import ActivationNode, Network
from lipcert.search.cost_to_go.weights import excess
from tests.certificates.forging import SETTINGS, spoilt_arrays, with_array, with_setting
from tests.zoo import mlp

DOUBLE = torch.float64


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), dtype=DOUBLE)
    layer.weight.data, layer.bias.data = torch.tensor(weight, dtype=DOUBLE), torch.tensor(bias, dtype=DOUBLE)
    return layer


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=DOUBLE)


def forged(model: nn.Module, domain: lipcert.Box | lipcert.Ball, row: list[float], curvature: list[float]) -> float:
    """What any multipliers make the check believe of row·f: slope 0, these curvatures of the activations in order."""
    n = domain.bounds()[0].numel()
    network = capture(model.eval(), torch.zeros(1, n, dtype=DOUBLE))
    subject = Subject(network)
    nodes = subject.network.nodes
    places = [k for k, node in enumerate(nodes) if isinstance(node, ActivationNode)]
    arrays = {}
    for k, size in zip(places, curvature, strict=True):
        arrays[f"slope.{k}"] = torch.zeros(1, *nodes[k].shape, dtype=DOUBLE)
        arrays[f"curvature.{k}"] = torch.full((1, *nodes[k].shape), size, dtype=DOUBLE)
    witness = Witness("cost_to_go", arrays, {"linear": True})
    with torch.no_grad():
        proof = prove_outputs(subject, domain.fitted(network.in_shape), vector(*row)[None], witness)
    return float(proof.lower)


@pytest.mark.few(3)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("bias", [1e59, 1e61, 1e100, -1e61])
def test_centres_that_are_cut_off_are_not_taken_for_the_centres(activation: type[nn.Module], bias: float) -> None:
    """A centre beyond 1e60 was replaced by 1e60, and ½ D (1e61 − 1e60)² believed: 4e121 for tanh."""
    model = nn.Sequential(linear([[1.0]], [bias]), activation(), linear([[1.0]], [0.0]))
    truth = math.tanh(bias) if activation is nn.Tanh else max(bias, 0.0)
    for size in (1e-60, 1e-30, 1.0, 1e60):
        assert forged(model, lipcert.Box(vector(0.0), vector(1.0)), [1.0], [size]) <= truth


@pytest.mark.few(2)
@pytest.mark.parametrize("exponent", [-140, -155, -165, -180])
@pytest.mark.parametrize("p", [0, 1, 2])
def test_norms_whose_squares_vanish(exponent: int, p: int) -> None:
    """T = D N² was 0 where N² underflows: −relu(w x) ≥ −1/(2D) was believed where it is −1e-15."""
    w, x = 10.0**exponent, 1e-15 / 10.0**exponent
    model = nn.Sequential(linear([[w]], [0.0]), nn.ReLU(), linear([[1.0]], [0.0]))
    domain = lipcert.Ball(vector(0.0), x, p) if p else lipcert.Box(vector(-x), vector(x))
    for size in (1e14, 1e15, 1e16, 1e17, 1e18, 1e30):
        assert forged(model, domain, [-1.0], [size]) <= -w * x * (1.0 - 1e-12)


@pytest.mark.few(2)
@pytest.mark.parametrize("exponent", [-80, -140, -165, -300])
def test_slopes_whose_squares_vanish(exponent: int) -> None:
    slope, x = 10.0**exponent, min(1e300, 1e-15 / 10.0**exponent)
    model = nn.Sequential(
        linear([[-1.0]], [0.0]), nn.LeakyReLU(slope), linear([[-1.0]], [0.0]), nn.ReLU(), linear([[1.0]], [0.0])
    )
    for size in (1e-60, 1.0, 1e15, 1e17, 1e60):
        value = forged(model, lipcert.Box(vector(0.0), vector(x)), [-1.0], [0.0, size])
        assert value <= -slope * x * (1.0 - 1e-12)


@pytest.mark.few(2)
@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("radius", [0.0, 5e-324, 1e-200, 1e-20, 1e8, 1e155, 1e200, 1e300])
def test_radii_of_every_size(p: float, radius: float) -> None:
    """The square of a radius overflowed in the least value over l1 balls."""
    model = nn.Sequential(linear([[1.0, 2.0], [3.0, 4.0]], [0.0, 1.0]), nn.ReLU(), linear([[1.0, -1.0]], [0.5]))
    bound = lipcert.output_bounds(
        model.eval(), torch.zeros(1, 2, dtype=DOUBLE), lipcert.Ball(vector(0.0, 0.0), radius, p), budget=0.1
    )
    corner = radius * vector(1.0, 1.0) / {1: 2.0, 2: 2.0**0.5 * (1.0 + 1e-15), math.inf: 1.0}[p]
    with torch.no_grad():
        y = torch.stack([model(t * corner) for t in (-1.0, 0.0, 1.0)]).reshape(-1)
    assert bool((bound.lower <= y).all())
    assert bool((bound.upper >= y).all())
    assert float(bound.upper - bound.lower) <= 30.0 * radius + 1e-9


@pytest.mark.few(2)
@pytest.mark.parametrize("scale", [1e-160, 1e-30, 1e-9, 1e6, 1e30, 1e100])
def test_weights_of_every_size_without_an_alarm(scale: float) -> None:
    """The search works in float32; where that holds no such numbers it said that lipcert had a bug."""
    model = mlp([3, 4, 4, 2]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    x = 2.0 * torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE) - 1.0
    with torch.no_grad():
        y = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound = lipcert.output_bounds(model, torch.zeros(1, 3, dtype=DOUBLE), lipcert.Box(-1.0, 1.0), budget=0.1)
    slack = torch.where(y.isfinite(), y.abs(), 0.0).amax() * 1e-9
    known = y.isfinite().all(dim=1)
    assert bool((bound.lower - slack <= y[known]).all())
    assert bool((bound.upper + slack >= y[known]).all())


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def dense(n: int, m: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(n, m)


ONE = lipcert.Box(-1.0, 1.0)
#: name → model and box.
MODELS: dict[str, tuple[Callable[[], nn.Module], lipcert.Box]] = {
    "one input": (lambda: mlp([1, 5, 1]), ONE),
    "one weight": (lambda: nn.Linear(1, 1), ONE),
    "no activation": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), ONE),
    "identity": (nn.Identity, ONE),
    "an activation alone": (nn.Sigmoid, ONE),
    "an activation last": (lambda: nn.Sequential(dense(3, 4), nn.Tanh()), ONE),
    "activations in a row": (lambda: nn.Sequential(nn.Tanh(), nn.ReLU(), nn.ELU(), dense(3, 2), nn.Softplus()), ONE),
    "constant": (lambda: Function(lambda x: x * 0.0 + 3.0), ONE),
    "zero weights": (lambda: nn.Sequential(linear([[0.0] * 3] * 2, [0.0] * 2), nn.ReLU()), ONE),
    "softmax": (lambda: nn.Sequential(dense(3, 4), nn.Softmax(-1)), ONE),
    "log softmax": (lambda: nn.Sequential(dense(3, 4), nn.LogSoftmax(-1)), ONE),
    "layer norm": (lambda: nn.Sequential(dense(3, 4), nn.LayerNorm(4), nn.ReLU(), dense(4, 2)), ONE),
    "sort": (lambda: Function(lambda x, a: a(torch.sort(x, -1).values), dense(3, 2)), ONE),
    "greatest": (lambda: Function(lambda x, a: a(x).amax(-1, keepdim=True), dense(3, 5)), ONE),
    "product": (lambda: Function(lambda x, a, b: a(x) * b(x), dense(3, 2), dense(3, 2, 1)), ONE),
    "square": (lambda: Function(lambda x: x * x), ONE),
    "log at 0": (lambda: Function(lambda x, a: a(torch.log(x)), dense(3, 2)), lipcert.Box(0.0, 1.0)),
    "root at 0": (lambda: Function(torch.sqrt), lipcert.Box(0.0, 1.0)),
    "1/x at 0": (lambda: Function(lambda x: 1.0 / x), lipcert.Box(0.0, 1.0)),
    "0/0": (lambda: Function(lambda x: x / x), lipcert.Box(0.0, 1.0)),
    "exp that overflows": (lambda: Function(lambda x: torch.exp(x) - torch.exp(x)), lipcert.Box(-1e3, 1e3)),
    "an infinite side": (lambda: nn.Sequential(dense(3, 4), nn.Sigmoid(), dense(4, 2)), lipcert.Box(0.0, math.inf)),
    "all of space": (lambda: nn.Sequential(dense(3, 4), nn.Tanh(), dense(4, 2)), lipcert.Box(-math.inf, math.inf)),
    "relu on half a space": (lambda: nn.Sequential(dense(3, 4), nn.ReLU(), dense(4, 2)), lipcert.Box(0.0, math.inf)),
    "flat": (lambda: mlp([3, 6, 2]), lipcert.Box(vector(-1.0, 0.5, 0.0), vector(1.0, 0.5, 0.0))),
    "a point": (lambda: mlp([3, 6, 2]), lipcert.Box(vector(0.1, 0.5, 0.0), vector(0.1, 0.5, 0.0))),
    "neighbouring numbers": (lambda: mlp([3, 6, 2]), lipcert.Box(1.0, math.nextafter(1.0, 2.0))),
    "1 − tanh²": (lambda: Function(lambda x, a: 1.0 - torch.tanh(a(x)) ** 2, dense(3, 2)), ONE),
    "a branch that is cut": (
        lambda: Function(lambda x, a, b, c: c(torch.sigmoid(a(x)) * b(x)), dense(3, 4), dense(3, 4, 1), dense(4, 2)),
        ONE,
    ),
    "an empty layer": (
        lambda: nn.Sequential(Function(lambda x: x[:, :0]), nn.ReLU(), linear([[]] * 2, [1.0] * 2)), ONE,
    ),
}  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("name", MODELS)
def test_odd_models(name: str) -> None:
    make, box = MODELS[name]
    model = make().double().eval()
    n = 1 if name.startswith("one") else 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound = lipcert.output_bounds(model, torch.zeros(1, n, dtype=DOUBLE), box, budget=0.1)
    low, high = (t.double().clamp(-50.0, 50.0) for t in box.fitted((1, n)).bounds())
    u = torch.rand(600, n, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    u[:200] = u[:200].round()
    with torch.no_grad():
        y = model(low.reshape(n) + (high - low).reshape(n) * u)
    y = y[y.isfinite().all(dim=1)]
    slack = 1e-12 * (1.0 + y.abs().amax()) if len(y) else 0.0
    assert bool((bound.lower - slack <= y).all())
    assert bool((bound.upper + slack >= y).all())
    assert not bool((bound.lower.isnan() | bound.upper.isnan()).any())


def test_the_output_s_own_box_counts() -> None:
    """A ReLU at the end: its lower line through half the slope, going back, gave −1.5 where the box says 0."""
    model = nn.Sequential(linear([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0.0, 0.0]), nn.ReLU()).eval()
    bound = lipcert.output_bounds(model, torch.zeros(1, 3, dtype=DOUBLE), ONE, budget=0.1)
    assert bound.lower.tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert bound.upper.tolist() == pytest.approx([3.0, 1.0], abs=1e-9)
    ranges = list(lipcert.ranges(model, torch.zeros(1, 3, dtype=DOUBLE), ONE).values())[-1]
    assert bool((bound.lower >= ranges[0] - 1e-9).all())
    assert bool((bound.upper <= ranges[1] + 1e-9).all())


def test_maps_of_separate_parts_are_proved() -> None:
    """The power method had turned into one part, and the weights of the other were too small: nothing was proved."""
    model = nn.Sequential(linear([[3.0, 0.0], [0.0, 1.0]], [0.1, 0.1]), nn.ReLU(), linear([[-1.0, -1.0]], [0.0])).eval()
    bound = lipcert.output_bounds(
        model, torch.zeros(1, 2, dtype=DOUBLE), lipcert.Ball(vector(0.0, 0.0), 1.0, 2), budget=1
    )
    assert bound.method == "cost_to_go"
    assert float(bound.lower) == pytest.approx(-0.2 - math.sqrt(10.0), rel=1e-2)


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_models_of_every_precision(dtype: torch.dtype) -> None:
    """The claim is about the stored numbers, read exactly."""
    model = mlp([3, 6, 2]).to(dtype)
    bound = lipcert.output_bounds(model, torch.zeros(1, 3, dtype=dtype), ONE, budget=0.1)
    x = 2.0 * torch.rand(800, 3, dtype=DOUBLE) - 1.0
    with torch.no_grad():
        y = copy.deepcopy(model).double()(x)
    assert bool((bound.lower <= y).all())
    assert bool((bound.upper >= y).all())


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "select",
    [
        torch.tensor([[1, -1, 0], [0, 0, 0]]), torch.tensor([[True, False, True]]),
        torch.tensor([[1.0, 0.5, 0.1]]).half(),
        torch.tensor([[1e300, -1e300, 1e-300]], dtype=DOUBLE), torch.tensor([[5e-324, 0.0, 0.0]], dtype=DOUBLE),
        torch.ones(4, 3).double().requires_grad_(), torch.tensor([[1, 2, 3]], dtype=torch.uint8),
    ],
)  # fmt: skip
def test_selections_of_every_kind(select: Tensor) -> None:
    model = mlp([3, 6, 3]).double()
    bound = lipcert.output_bounds(model, torch.zeros(1, 3, dtype=DOUBLE), ONE, select=select, budget=0.1)
    with torch.no_grad():
        y = model(2.0 * torch.rand(800, 3, dtype=DOUBLE) - 1.0) @ select.detach().double().T
    assert bool((bound.lower <= y).all())
    assert bool((bound.upper >= y).all())


def test_a_selection_that_is_changed_afterwards() -> None:
    model, select = mlp([3, 6, 2]).double(), torch.eye(2, dtype=DOUBLE)
    bound = lipcert.output_bounds(model, torch.zeros(1, 3, dtype=DOUBLE), ONE, select=select, budget=0.1)
    select.mul_(-100.0)
    assert torch.equal(bound.select, torch.eye(2, dtype=DOUBLE))
    assert torch.equal(bound.certificate.select, torch.eye(2, dtype=DOUBLE))


def test_a_model_without_outputs() -> None:
    with pytest.raises(InputError, match="no numbers"):
        lipcert.output_bounds(Function(lambda x: x[:, :0]).eval(), torch.zeros(1, 3), ONE)


@pytest.mark.slow
def test_many_outputs() -> None:
    model = mlp([3, 6, 1000]).double()
    bound = lipcert.output_bounds(model, torch.zeros(1, 3, dtype=DOUBLE), ONE, budget=0.1)
    with torch.no_grad():
        y = model(2.0 * torch.rand(500, 3, dtype=DOUBLE) - 1.0)
    assert bool((bound.lower <= y).all())
    assert bool((bound.upper >= y).all())


# -- the state of the process ------------------------------------------------------------------------------------


@functools.cache
def _model() -> nn.Module:
    return mlp([3, 6, 2], activation=nn.Tanh).double()


def _bounds() -> tuple[list[float], list[float]]:
    model = _model()
    bound = lipcert.output_bounds(model, torch.zeros(1, 3, dtype=DOUBLE), ONE, budget=1e-6)
    return bound.lower.tolist(), bound.upper.tolist()


@pytest.mark.few(2)
@pytest.mark.parametrize("state", ["double", "inference", "deterministic", "flush", "no grad", "anomaly"])
def test_states_of_the_process_change_nothing(state: str) -> None:
    expected = _bounds()
    try:
        if state == "double":
            torch.set_default_dtype(torch.float64)
        if state == "deterministic":
            torch.use_deterministic_algorithms(True)
        if state == "flush":
            torch.set_flush_denormal(True)
        modes = {"inference": torch.inference_mode, "no grad": torch.no_grad, "anomaly": torch.autograd.detect_anomaly}
        with modes.get(state, torch.enable_grad)():
            found = _bounds()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        torch.set_flush_denormal(False)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1] == pytest.approx(expected[1], rel=1e-6)


# -- forged certificates -----------------------------------------------------------------------------------------


@functools.cache
def genuine(kind: str) -> tuple[OutputCertificate, Network, Tensor, Tensor]:
    """A certificate, its network, and (least, greatest) selected outputs seen on the domain: no proof can pass them."""
    model = mlp([2, 5, 4, 2], activation=nn.Tanh if kind == "tanh" else nn.ReLU).double()
    select = torch.tensor([[1.0, -1.0]], dtype=DOUBLE)
    ball = lipcert.Ball(vector(0.3, -0.2), 0.5, 2)
    bound = lipcert.output_bounds(model, torch.zeros(1, 2, dtype=DOUBLE), ball, select=select, budget=0.5)
    assert isinstance(bound.certificate, OutputCertificate)
    assert bound.certificate.kind == "cost_to_go"
    angle = torch.linspace(0.0, 2.0 * math.pi, 400, dtype=DOUBLE)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    x = torch.cat([ball.center + r * circle for r in torch.linspace(0.0, 0.4999999, 30, dtype=DOUBLE)])
    with torch.no_grad():
        y = model(x) @ select.T
    return bound.certificate, capture(model, torch.zeros(1, 2, dtype=DOUBLE)), y.amin(dim=0), y.amax(dim=0)


def must_refuse(record: OutputCertificate, network: Network) -> None:
    with pytest.raises(CertificateError):
        verify_outputs(record, subject_of(network))


@functools.cache
def subject_of(network: Network) -> Subject:
    return Subject(network)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["relu", "tanh"])
@pytest.mark.parametrize("side", ["lower", "upper"])
def test_no_array_makes_a_false_claim_true(kind: str, side: str) -> None:
    """The claim is a value that the outputs pass; every array of the witness is spoilt in every way in turn."""
    record, network, least, greatest = genuine(kind)
    claim = {"lower": least + 1e-9} if side == "lower" else {"upper": greatest - 1e-9}
    record = replace(record, **claim)
    must_refuse(record, network)
    for key, array in record.witness.arrays.items():
        for spoilt in spoilt_arrays(array):
            must_refuse(replace(record, witness=with_array(record.witness, key, spoilt)), network)


@pytest.mark.slow
def test_no_setting_kind_or_field_makes_a_false_claim_true() -> None:
    record, network, least, _ = genuine("relu")
    record = replace(record, lower=least + 1e-9)
    for key, value in itertools.product(("linear", "upper", "other"), SETTINGS):
        must_refuse(replace(record, witness=with_setting(record.witness, key, value)), network)
    for kind in ("ranges", "quadratic", "", "cost_to_go "):
        must_refuse(replace(record, witness=replace(record.witness, kind=kind)), network)
    must_refuse(replace(record, fingerprint="0" * 64), network)
    for array in ("slope.99", "slope.-1", "slope.1.0", "weight.1", "other.2", "slope.٣", "anchor.1.7", "curvature"):
        extra = torch.zeros(2, 1, 2, dtype=DOUBLE)
        must_refuse(replace(record, witness=with_array(record.witness, array, extra)), network)


@pytest.mark.few(6)
@pytest.mark.parametrize(
    "change",
    [
        {"lower": vector(math.nan)}, {"upper": vector(math.nan)}, {"lower": vector(math.inf)},
        {"upper": vector(-math.inf)}, {"lower": vector(-9.0, -9.0), "upper": vector(9.0, 9.0)},
        {"lower": torch.zeros(0, dtype=DOUBLE), "upper": torch.zeros(0, dtype=DOUBLE)},
        {"lower": torch.tensor(-9.0, dtype=DOUBLE)}, {"select": torch.full((1, 2), math.nan, dtype=DOUBLE)},
        {"select": torch.full((1, 2), math.inf, dtype=DOUBLE)}, {"select": torch.zeros(1, 3, dtype=DOUBLE)},
        {"select": torch.zeros(0, 2, dtype=DOUBLE)}, {"select": None},
        {"domain": lipcert.Ball(vector(0.3, -0.2), 0.6, 2)}, {"domain": lipcert.Ball(vector(0.3, -0.2), 0.5)},
        {"domain": lipcert.Box(-1.0, 1.0)}, {"domain": None}, {"domain": lipcert.Ball(vector(0.3, -0.2, 0.0), 0.5, 2)},
    ],
)  # fmt: skip
def test_a_certificate_is_of_one_claim(change: dict) -> None:
    """Another claim, selection or domain, with the multipliers and the value of the first, is refused."""
    record, network, *_ = genuine("relu")
    verify_outputs(record, Subject(network))
    must_refuse(replace(record, **change), network)


def test_a_weaker_claim_is_still_true() -> None:
    record, network, *_ = genuine("relu")
    weaker = replace(record, lower=record.lower - 1.0, upper=torch.full_like(record.upper, math.inf))
    assert torch.equal(verify_outputs(weaker, Subject(network)).lower, weaker.lower)


@pytest.mark.slow
def test_every_field_of_the_header(tmp_path: Path) -> None:
    """Read back from spoilt headers there is a CertificateError, or a record that claims no more than is proved."""
    record, network, least, _ = genuine("relu")
    header, arrays = replace(record, lower=least + 1e-9).parts()
    assert header["format"] == FORMAT
    for key, value in itertools.product(header, (*SETTINGS, "rigorous", "ranges", {"type": "box"})):
        if key in ("format", "method", "version", "guarantee") and value == header[key]:
            continue
        try:  # the reader of files turns other errors into this one
            changed = OutputCertificate.of_parts({**header, key: value}, arrays)
        except (LipcertError, TypeError, ValueError, KeyError, AttributeError):
            continue
        if key not in ("method", "version"):  # names, which claim nothing, beside a claim that is false already
            must_refuse(changed, network)
    for key in header:
        with pytest.raises(KeyError):
            OutputCertificate.of_parts({k: v for k, v in header.items() if k != key}, arrays)
    assert domain_from_json(header["domain"], arrays) is not None


def test_every_byte_of_the_file_counts(tmp_path: Path) -> None:
    model = mlp([2, 5, 4, 2]).double()
    example = torch.zeros(1, 2, dtype=DOUBLE)
    path = tmp_path / "o.lipcert"
    lipcert.output_bounds(model, example, ONE, budget=0.1).save(path)
    content = path.read_bytes()
    lipcert.verify(path, model, example)
    for place in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CertificateError):
            lipcert.verify(path, model, example)
    for cut in (0, 7, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(CertificateError):
            lipcert.verify(path, model, example)


def test_lanczos_sees_parts_that_the_power_method_left_out() -> None:
    """``excess`` from a vector that lies in one of two separate parts finds the other's eigenvalue."""

    class Diagonal:
        def plain(self, x: Tensor, back: bool = False) -> Tensor:
            return x * torch.tensor([1.0, 2.0])

    class Plan:
        def __init__(self) -> None:
            self.maps = {1: [Diagonal()]}
            self.network = SimpleNamespace(nodes={1: SimpleNamespace(shape=(2,))})

        def parent_shape(self, edge: tuple[int, int]) -> tuple[int, ...]:
            return (2,)

        def smaller_side(self, k: int) -> int:
            return 2

    directions = {1: torch.tensor([[[1.0, 0.0]]])}
    value = excess(Plan(), 1, torch.ones(1, 2), {0: torch.ones(1, 2)}, directions, 2)  # type: ignore[arg-type]
    assert float(value) == pytest.approx(4.0, rel=1e-5)
