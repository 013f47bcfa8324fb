"""Capture: the Network is the model, whatever way the model is written; and nothing else is ever bounded."""

import copy
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import lipcert
from lipcert.capture.duplicates import originals
from lipcert.capture.lowering import lower
from lipcert.capture.sequential import read_sequential
from lipcert.capture.torch_export import capture
from lipcert.errors import CaptureError, InputError
from lipcert.network.graph import ActivationNode, AffineNode, Network
from lipcert.network.transform import expand, fuse
from tests.zoo import ZOO, Apply, Residual, Twice, mlp, random_network, zoo_case


def same(network: Network, model: Any, *shape: int, seed: int = 0, tolerance: float = 1e-9) -> None:
    """Network and model agree in float64 on random points."""
    double = copy.deepcopy(model).double()
    x = 2 * torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        expected = torch.cat([double(row[None].clone()) for row in x])
        actual = network.forward(x[:, None])[:, 0]
    scale = float(expected.abs().max()) or 1.0
    assert float((expected - actual).abs().max()) <= tolerance * scale


def captured(model: nn.Module, *shape: int) -> Network:
    network = capture(model.eval(), torch.zeros(2, *shape))
    same(network, model, *shape)
    return network


@pytest.mark.few(7)
@pytest.mark.parametrize("name", [row[0] for row in ZOO])
def test_every_view_of_a_network_is_the_same_function(name: str) -> None:
    """As captured, fused, with selections expanded, in float32."""
    case = zoo_case(name)
    shape = tuple(case.example.shape[1:])
    network = capture(case.model, case.example)
    for view in (network, fuse(network), expand(network), fuse(expand(network)), fuse(fuse(network))):
        same(view, case.model, *shape)
    x = torch.randn(3, *network.in_shape)
    assert torch.allclose(network.to(torch.float32, "cpu").forward(x).double(), network.forward(x.double()), atol=1e-4)


@pytest.mark.parametrize("seed", range(3000, 3006))
def test_random_networks_and_their_views(seed: int) -> None:
    case = random_network(seed)
    network = capture(case.model, case.example)
    for view in (network, fuse(network), fuse(expand(network))):
        same(view, case.model, *case.example.shape[1:], tolerance=1e-7)


# -- exported programs --------------------------------------------------------------------------------------------


def exported(model: nn.Module, batch: int, dynamic: bool, *shape: int) -> ExportedProgram:
    shapes = ({0: Dim("batch")},) if dynamic else None
    return torch.export.export(model.eval(), (torch.zeros(batch, *shape),), dynamic_shapes=shapes)


@pytest.mark.few(2)
@pytest.mark.parametrize(("batch", "dynamic"), [(1, False), (4, True)])
@pytest.mark.parametrize("saved", [False, True])
def test_exported_programs(batch: int, dynamic: bool, saved: bool, tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    program = exported(model, batch, dynamic, 1, 6, 6)
    expected = lipcert.bound(model, torch.zeros(1, 1, 6, 6), method="autolip")
    if saved:
        torch.export.save(program, tmp_path / "m.pt2")
    source: Any = tmp_path / "m.pt2" if saved else program
    for example in (torch.zeros(1, 1, 6, 6), torch.zeros(3, 1, 6, 6)):
        found = lipcert.bound(source, example, method="autolip")
        assert found.value == expected.value
        assert found.certificate.fingerprint == expected.certificate.fingerprint  # type: ignore[union-attr]
    expected.save(tmp_path / "m.lipcert")
    assert lipcert.verify(tmp_path / "m.lipcert", source, torch.zeros(1, 1, 6, 6)).value == expected.value


def test_a_program_with_a_fixed_larger_batch_is_refused() -> None:
    """Exported with batch 4: it does not run on one example, and a wrong guess would couple four."""
    with pytest.raises((InputError, CaptureError)):
        lipcert.bound(exported(mlp((3, 2), 0).float(), 4, False, 3), torch.zeros(4, 3), method="autolip")


def test_a_program_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    program = torch.export.export(model.train(), (torch.zeros(1, 3),))
    with pytest.raises(lipcert.TrainModeError):
        lipcert.bound(program, torch.zeros(1, 3), method="autolip")


# -- ways of writing a model --------------------------------------------------------------------------------------


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        y = self.a(x)
        y.add_(1.0).clamp_(min=0.0)
        z = y.clone()
        z[:, 0] = 0.0
        z[:, 1:3] = x[:, :1]
        z += self.b(y)
        F.relu(z, inplace=True)
        return z


class Ordered(nn.Module):
    """Declared last to first, with a dead layer that is never used and one only used at construction."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1000, 1000)
        self.c = nn.Linear(4, 2)
        self.b = nn.Linear(5, 4)
        self.a = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        _ = x.exp() * x  # computed, and not needed
        return self.c(torch.tanh(self.b(torch.relu(self.a(x)))))


class Written(nn.Module):
    """No modules: parameters, loops, branches on shapes and settings, keyword arguments, einsum and matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(3, 3)) for _ in range(3)])
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x: Tensor, depth: int = 3, negate: bool = True) -> Tensor:
        for i, w in enumerate(self.w):
            if i >= depth:
                break
            x = torch.einsum("bi,oi->bo", x, w) if i % 2 else x @ w.T + self.shift
            x = F.leaky_relu(x, negative_slope=0.2)
        if x.shape[1] == 3 and negate:
            x = -x
        return torch.stack([x, x.roll(1, dims=1)], dim=1).sum(dim=1).reshape(len(x), -1)


class Parts(nn.Module):
    """Split, chunk, unbind, slices, cat, transposes, pads."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([2, 4], dim=1)
        c, d = b.chunk(2, dim=1)
        e = torch.cat([c, torch.relu(d), a[:, ::2]], dim=1)
        f = F.pad(e.unsqueeze(1), (1, 2), value=0.5).squeeze(1)
        first, *rest = f.reshape(-1, 2, 4).unbind(dim=1)
        return first + 0.5 * rest[0].flip(1) - x.mean(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (InPlace(), (3,)),
        (Ordered(), (3,)),
        (Written(), (3,)),
        (Parts(), (6,)),
        (Twice(nn.Linear(4, 4), nn.SELU()), (4,)),
        (Residual(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))), (4,)),
        (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), (4,)),
        (nn.Sequential(nn.Conv1d(2, 3, 3, padding="same", padding_mode="reflect"), nn.Flatten()), (2, 6)),
        (nn.Sequential(nn.ConvTranspose2d(1, 2, 3, stride=2, output_padding=1), nn.PixelShuffle(1)), (1, 3, 3)),
        (nn.Sequential(nn.Unflatten(1, (2, 3)), nn.AdaptiveMaxPool1d(2), nn.Flatten()), (6,)),
        (Apply(lambda s, x: s.layer(x.unsqueeze(1)).squeeze(1), layer=nn.Linear(3, 3)), (3,)),
    ],
)
def test_ways_of_writing(model: nn.Module, shape: tuple[int, ...]) -> None:
    network = captured(model, *shape)
    same(fuse(network), model, *shape)


def test_a_shared_layer_is_there_twice() -> None:
    network = captured(Twice(nn.Linear(4, 4), nn.Tanh()), 4)
    maps = [node for node in network.nodes if isinstance(node, AffineNode)]
    assert len(maps) == 2
    assert len([node for node in network.nodes if isinstance(node, ActivationNode)]) == 1


def rms_written_twice(s: Any, x: Tensor) -> Tensor:
    return x * s.scale.exp() / torch.sqrt(((x * s.scale.exp()) ** 2).mean(-1, keepdim=True) + 0.25)


def test_an_expression_written_twice_is_one_value() -> None:
    model = Apply(rms_written_twice).eval()
    model.scale = nn.Parameter(torch.ones(()))
    assert lipcert.bound(model, torch.zeros(1, 4)).value == pytest.approx(2 * math.e, rel=1e-6)


@pytest.mark.parametrize(
    ("function", "activations"),
    [
        (lambda s, x: torch.relu(s.inner(x)) - 0.5 * torch.relu(s.inner(x)), 1),
        (lambda s, x: torch.relu(x.chunk(2, -1)[0]) + torch.relu(x.chunk(2, -1)[0]), 1),
        (lambda s, x: torch.relu(x.chunk(2, -1)[0]) + torch.relu(x.chunk(2, -1)[1]), 2),
        (lambda s, x: torch.relu(x.cumsum(-1)) + torch.relu(x.cumsum(-2)), 2),
        (lambda s, x: F.leaky_relu(x, 0.1) + F.leaky_relu(x, negative_slope=0.2), 2),
        (lambda s, x: torch.relu(x.add_(1.0)) + torch.relu(x.add_(1.0)), 2),
    ],
)
def test_what_counts_as_written_twice(function: Callable[..., Tensor], activations: int) -> None:
    network = captured(Apply(function, inner=nn.Linear(4, 4)), 3, 4)
    assert sum(isinstance(node, ActivationNode) for node in network.nodes) == activations


def test_settings_that_python_takes_for_equal_stay_apart() -> None:
    graph, aten = torch.fx.Graph(), torch.ops.aten
    x = graph.placeholder("x")
    for scale in (1, 1.0, True, 0.0, -0.0, 1):
        graph.call_function(aten.mul.Tensor, (x, scale))
    drawn = [graph.call_function(aten.rand_like.default, (x,)) for _ in range(2)]
    first = originals(graph)
    assert len({first[node] for node in graph.nodes if node.target is aten.mul.Tensor}) == 5
    assert first[drawn[0]] is not first[drawn[1]]
    graph.call_function(aten.add_.Tensor, (x, 1))
    assert all(first is node for node, first in originals(graph).items())


def test_a_module_whose_forward_takes_more_arguments() -> None:
    """Keyword arguments with defaults are settings; the captured function is the call with one tensor."""
    network = captured(Written(), 3)
    shallow = Apply(lambda s, x: s.inner(x, depth=1, negate=False), inner=Written()).eval()
    assert capture(shallow, torch.zeros(1, 3)).fingerprint != network.fingerprint


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrised_weights_are_folded(wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer = wrap(nn.Linear(4, 4).double())
    layer(torch.randn(2, 4, dtype=torch.float64))
    model = nn.Sequential(layer, nn.ReLU()).eval()
    model(torch.randn(2, 4, dtype=torch.float64))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = lipcert.bound(model, torch.zeros(1, 4, dtype=torch.float64), method="autolip")
    weight = layer.weight.detach()  # type: ignore[union-attr, operator]
    assert found.value >= float(torch.linalg.matrix_norm(weight, 2)) * (1 - 1e-12)
    assert found.value <= float(torch.linalg.matrix_norm(weight, 2)) * (1 + 1e-6)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class CustomParametrization(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return torch.sigmoid(w) * 3.0


def test_a_parametrisation_of_ones_own() -> None:
    layer = nn.Linear(3, 3, bias=False)
    nn.utils.parametrize.register_parametrization(layer, "weight", CustomParametrization())
    found = lipcert.bound(layer.eval(), torch.zeros(1, 3), method="autolip")
    truth = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    assert found.value == pytest.approx(truth, rel=1e-6)
    assert found.guarantee in ("numerical", "rigorous")


# -- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_parameters_of_any_precision_are_taken_exactly(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype).eval()
    network = capture(model, torch.zeros(1, 3))
    same(network, model, 3)
    weights = [node.maps[0].leaves()[0].constants[0] for node in network.nodes if isinstance(node, AffineNode)]  # type: ignore[attr-defined]
    for weight, layer in zip(weights, (model[0], model[2]), strict=True):
        assert weight.dtype == torch.float64
        assert torch.equal(weight, layer.weight.detach().double())  # type: ignore[union-attr, operator]


def test_mixed_precision_inside() -> None:
    """A model that casts by itself is compared in its own precision, not refused."""

    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x).float()).to(self.b.weight.dtype)).float()

    found = lipcert.bound(Casts().eval(), torch.zeros(1, 3), method="autolip")
    assert found.value > 0


# -- the self-check -----------------------------------------------------------------------------------------------


class Counter(nn.Module):
    """Not a fixed function: each call adds one more."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return self.layer(x) * float(self.calls[0])


def test_a_model_that_changes_from_call_to_call_is_refused() -> None:
    model = Counter().eval()
    with pytest.raises(CaptureError, match=r"self-check failed.*not a fixed function"):
        capture(model, torch.ones(1, 3))
    assert model.calls == [0]


def test_a_wrong_rule_cannot_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a rule gets wrong, the network must reproduce the model first."""
    from lipcert.ops import registry

    relu = registry._RULES["relu"]
    monkeypatch.setitem(registry._RULES, "tanh", relu)
    with pytest.raises(CaptureError, match="self-check failed"):
        capture(nn.Sequential(nn.Linear(3, 3), nn.Tanh()).eval(), torch.ones(1, 3))


@pytest.mark.filterwarnings("ignore")
def test_a_buffer_changed_in_forward_is_refused() -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.mean.mul_(0.9)  # type: ignore[operator, union-attr]
            return x - self.mean

    model = Moving().eval()
    with pytest.raises(CaptureError, match="fixed function"):
        capture(model, torch.zeros(1, 3))
    assert torch.equal(model.mean, torch.zeros(3))  # type: ignore[arg-type]


# -- models that cannot be copied, and hooks ----------------------------------------------------------------------


class NotCopyable(nn.Module):
    """Holds a lock; writes attributes in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.layer = nn.Linear(3, 3)
        self.seen: Tensor | None = None
        self.extra = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.relu(self.layer(x))
        return self.seen


def test_a_model_that_cannot_be_copied() -> None:
    model = NotCopyable().eval()
    with pytest.raises(TypeError):
        copy.deepcopy(model)
    before = {k: (v.clone(), v.data_ptr()) for k, v in model.state_dict().items()}
    network = capture(model, torch.zeros(1, 3))
    assert isinstance(network.nodes[-1], ActivationNode)
    assert model.seen is None
    assert list(model.layer._parameters) == ["weight", "bias"]
    assert model.layer is dict(model.named_children())["layer"]
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k][0])
        assert v.data_ptr() == before[k][1]
    assert model(torch.ones(2, 3)).shape == (2, 3)


def test_forward_hooks_that_change_the_output_are_part_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    plain = lipcert.bound(model, torch.zeros(1, 3), method="autolip").value
    handle = model[0].register_forward_hook(lambda module, inputs, output: 10.0 * output)
    assert lipcert.bound(model, torch.zeros(1, 3), method="autolip").value == pytest.approx(10.0 * plain, rel=1e-9)
    handle.remove()
    assert lipcert.bound(model, torch.zeros(1, 3), method="autolip").value == plain


def test_gradient_mode_does_not_matter() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    values = set()
    for mode in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        with mode:
            values.add(lipcert.bound(model, torch.zeros(1, 3), method="autolip").value)
    assert len(values) == 1


def test_the_default_dtype_does_not_matter() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Hardswish()).eval()
    single = lipcert.bound(model, torch.zeros(1, 3), method="autolip").value
    torch.set_default_dtype(torch.float64)
    try:
        assert lipcert.bound(model, torch.zeros(1, 3), method="autolip").value == single
    finally:
        torch.set_default_dtype(torch.float32)


def _doubled(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return 2.0 * output


class _OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3.0 * super().forward(x)


def _chain(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(5)
    inner = nn.Sequential(nn.Linear(6, 5, bias=False), nn.LeakyReLU(0.2), nn.Identity())
    shared = nn.Tanh()
    layers = [nn.Flatten(), nn.Linear(4, 6), shared, inner, *extra, shared, nn.Linear(5, 5), nn.SiLU(), nn.Sigmoid()]
    return nn.Sequential(*layers).eval()


def test_a_plain_sequential_is_read_as_torch_export_sees_it() -> None:
    """Same nodes, places and maps, so the same fingerprint; a module used twice is there twice."""
    model, x = _chain(nn.ReLU()), torch.randn(2, 2, 2)
    direct = read_sequential(model, x[:1])
    assert direct is not None
    exported = lower(torch.export.export(model, (x[:1],), strict=False))
    assert direct.fingerprint == exported.fingerprint
    assert [node.where for node in direct.nodes] == [node.where for node in exported.nodes]
    assert read_sequential(_chain(nn.ReLU(inplace=True)), x[:1]) is not None


def _with_hook() -> nn.Module:
    model = _chain()
    model[3][0].register_forward_hook(_doubled)
    return model


def _with_hook_on_the_inner_chain() -> nn.Module:
    model = _chain()
    model[3].register_forward_hook(_doubled)
    return model


def _with_own_forward() -> nn.Module:
    model = _chain()
    layer = model[1]
    layer.forward = lambda x: 2.0 * nn.Linear.forward(layer, x)
    return model


def _pruned() -> nn.Module:
    model = _chain()
    nn.utils.prune.l1_unstructured(model[1], "weight", 0.5)
    return model


@pytest.mark.parametrize(
    "model",
    [
        _with_hook(),
        _with_hook_on_the_inner_chain(),
        _with_own_forward(),
        _pruned(),
        _chain(_OwnLinear(5, 5)),
        _chain(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5)).eval()),
        _chain(nn.Softplus()),
    ],
)
def test_anything_but_plain_layers_is_left_to_torch_export(model: nn.Module) -> None:
    x = torch.randn(3, 2, 2)
    assert read_sequential(model, x[:1]) is None
    network = capture(model, x)
    assert torch.allclose(network.forward(x[:1].double()[None])[0], model.double()(x[:1].double()))


def test_hooks_on_all_modules_are_seen() -> None:
    model, x = _chain(), torch.randn(1, 2, 2)
    plain = capture(model, x).forward(x.double()[None])
    handle = nn.modules.module.register_module_forward_hook(_doubled)
    try:
        assert read_sequential(model, x) is None
    finally:
        handle.remove()
    assert torch.equal(capture(model, x).forward(x.double()[None]), plain)


class SelfInitialising(nn.Module):
    """Scales itself in its first call, as ActNorm does, and notes that it did in one way or another."""

    def __init__(self, note: str, copyable: bool, kind: str) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.done, self.notes, self.kind, self.note = False, {"done": False}, kind, note
        if not copyable:
            self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        if not (self.done if self.note == "attribute" else self.notes["done"]):
            self.done = self.notes["done"] = True
            if self.kind == "data":
                self.scale.data.mul_(50.0)
            elif self.kind == "replaced":
                self.scale = nn.Parameter(torch.full((3,), 50.0))
            else:
                self.factor = 50.0
        return x * self.scale * getattr(self, "factor", 1.0)


@pytest.mark.parametrize("note", ["attribute", "entry"])
@pytest.mark.parametrize("copyable", [True, False])
@pytest.mark.parametrize("kind", ["data", "replaced", "number"])
def test_a_first_call_that_changes_the_model_is_not_lost_in_the_trace(note: str, copyable: bool, kind: str) -> None:
    """Every later call multiplies by 50, the first one too: a bound near 1 would be about no model at all."""
    try:
        found = lipcert.bound(SelfInitialising(note, copyable, kind).eval(), torch.ones(1, 3), method="autolip")
    except CaptureError:
        return
    assert found.value >= 50.0


def test_a_module_that_fills_a_cache_while_it_is_traced() -> None:
    class Cached(nn.Module):
        mask: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.mask is None:
                self.mask = torch.arange(3.0)
            return x * self.mask

    model = Cached().eval()
    assert lipcert.bound(model, torch.ones(1, 3), method="autolip").value == pytest.approx(2.0)
    assert model.mask is None


def test_writing_past_the_trace_is_refused_without_a_crash() -> None:
    """torch.export keeps a tensor without storage for it; evaluating that one ends the process."""

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.layer.weight.data.mul_(1.5)
            return self.layer(x)

    with pytest.raises(CaptureError, match="data"):
        lipcert.bound(Growing().eval(), torch.ones(1, 3), method="autolip")
