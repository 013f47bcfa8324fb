"""Models as people have them: wrapped, sliced, compiled, quantised, of odd outputs: an answer or a named error."""

import collections
import contextlib
import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import lipcert
from lipcert.errors import CaptureError, InputError, LipcertError, NotLipschitzError, TrainModeError
from tests.zoo import Apply

X = torch.zeros(1, 3)


def bound(model: Any, example: Any = X, **options: Any) -> lipcert.Bound:
    options.setdefault("method", "autolip")
    return lipcert.bound(model.eval() if isinstance(model, nn.Module) else model, example, **options)


def function(f: Callable[..., Any], **parts: Any) -> nn.Module:
    return Apply(lambda s, x: f(s, x), **parts)


def layer(n: int = 3, m: int = 3) -> nn.Linear:
    torch.manual_seed(7)
    return nn.Linear(n, m)


TRUTH = float(torch.linalg.matrix_norm(layer().weight.detach().double(), 2))


def relu_layer() -> nn.Sequential:
    return nn.Sequential(layer(), nn.ReLU())


# -- outputs -----------------------------------------------------------------------------------------------------


class Named(NamedTuple):
    logits: Tensor
    hidden: Tensor | None = None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y,), lambda y: [y], lambda y: {"logits": y}, Named, lambda y: (y, None),
        lambda y: {"a": [(y,)], "b": []},
        lambda y: collections.OrderedDict(a=y, b=None),
    ],
)  # fmt: skip
def test_one_tensor_in_a_container_is_an_output(wrap: Callable[[Tensor], Any]) -> None:
    assert bound(function(lambda s, x: wrap(s.l(x)), l=layer())).value == pytest.approx(TRUTH, rel=1e-6)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda s, x: (x, 2 * x), "2 outputs.*output="),
        (lambda s, x: {"a": x, "b": x + 1}, "2 outputs.*torch.cat"),
        (lambda s, x: None, "does not return a tensor"),
        (lambda s, x: "text", "does not return a tensor"),
        (lambda s, x: (y for y in [x]), "does not return a tensor but a generator"),
        (lambda s, x: collections.Counter, "does not return a tensor"),
    ],
)
def test_outputs_that_are_not_one_tensor(f: Callable[..., Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        bound(function(f))


def test_empty_and_scalar_outputs() -> None:
    assert bound(function(lambda s, x: x[:, :0])).value == 0.0
    with pytest.raises(CaptureError, match=r"shape \(\), which has no leading batch dimension"):
        bound(function(lambda s, x: x.sum()))
    model = nn.Sequential(layer(), nn.ReLU(), layer())
    for norm in ((2, 2), (2, math.inf)):
        with pytest.raises(InputError, match="no rows"):
            bound(model, select=torch.zeros(0, 3), norm=norm, method="lipsdp")


# -- assignment, in place ----------------------------------------------------------------------------------------


def scaled_even(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, ::2] *= 4
    return y


def last_two(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, -2:] = 3 * x[:, :2]
    return y


def beyond_the_ends(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 5:] = 1
    y[:, -9:2] *= 3
    y[:, 100:200:7] = 0
    return y


def backwards(x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 9, dtype=x.dtype)
    y[:, 1:6:2] = x.flip(1)[:, :3]
    y[:, -1] = 2 * x[:, 0]
    y[..., 0] += 1
    return y


@pytest.mark.few(2)
@pytest.mark.parametrize("f", [scaled_even, last_two, beyond_the_ends, backwards])
def test_assignment_to_slices(f: Callable[[Tensor], Tensor]) -> None:
    example = torch.zeros(1, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: f(z[None])[0], torch.ones(5, dtype=torch.float64))
    found = bound(function(lambda s, x: f(x)), example, method="lipsdp", budget=1.0)
    truth = float(torch.linalg.matrix_norm(jacobian, 2))
    assert truth * (1 - 1e-12) <= found.value <= truth * (1 + 1e-5)


def test_a_model_that_writes_over_itself_does_not_run() -> None:
    """torch.export rewrites the overlapping copy, the model itself raises: there is no function to bound."""

    def overlaps(s: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 1:].copy_(y[:, :-1])
        return y

    with pytest.raises(InputError, match=r"does not run on example_input.*single memory location"):
        bound(function(overlaps))


# -- wrappers, hooks, parameters -----------------------------------------------------------------------------------


def with_compiled_part() -> nn.Module:
    return nn.Sequential(torch.compile(layer()), nn.ReLU())


def compiled_in_place() -> nn.Module:
    model = relu_layer()
    model.compile()
    return model


def transposed_weight() -> nn.Module:
    model = relu_layer()
    model[0].weight = nn.Parameter(model[0].weight.detach().T.contiguous().T)  # type: ignore[union-attr]
    return model


def with_backward_hook() -> nn.Module:
    model = relu_layer()
    model.register_full_backward_hook(lambda *_: None)
    return model


@pytest.mark.few(6)
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.compile(relu_layer(), backend="eager"),
        with_compiled_part, compiled_in_place, lambda: nn.DataParallel(relu_layer()),
        lambda: nn.DataParallel(torch.compile(relu_layer())), lambda: torch.fx.symbolic_trace(relu_layer()),
        lambda: torch.export.export(relu_layer().eval(), (X,)), transposed_weight, with_backward_hook,
        lambda: function(lambda s, x: torch.vmap(s.l)(x), l=relu_layer()),
        lambda: function(lambda s, x: s.l(x).detach(), l=relu_layer()),
    ],
)  # fmt: skip
def test_wrappers_are_seen_through(make: Callable[[], Any]) -> None:
    model = make()
    before = {k: type(v) for k, v in model.named_modules()} if isinstance(model, nn.Module) else None
    assert bound(model).value == pytest.approx(TRUTH, rel=1e-6)
    if before is not None:
        assert {k: type(v) for k, v in model.named_modules()} == before


def test_pruned_and_expanded_and_shared_weights() -> None:
    model = nn.Sequential(layer())
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    weight = model[0].weight.detach().double()
    assert bound(model).value == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=1e-6)
    one = layer()
    one.weight = nn.Parameter(torch.ones(1, 3).expand(3, 3))
    assert bound(one).value == pytest.approx(3.0)
    shared = nn.Sequential(layer(), layer())
    shared[1].weight = shared[0].weight
    assert bound(shared).value == pytest.approx(TRUTH**2, rel=0.5)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_weights_are_numbers(dtype: torch.dtype) -> None:
    model = nn.Sequential(layer(), nn.GELU()).to(dtype)
    weight = model[0].weight.detach().double()  # type: ignore[union-attr, operator]
    least = float(torch.linalg.matrix_norm(weight, 2))
    assert least <= bound(model).value <= 1.2 * least
    assert bound(layer(), X.to(dtype)).value == pytest.approx(TRUTH, rel=1e-6)


class Moved(nn.Module):
    """Writes into its input and into an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = layer(), 0

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        self.seen += 1
        return self.layer(x)


def test_a_model_that_writes_into_its_input() -> None:
    model, example = Moved(), torch.ones(2, 3)
    assert bound(model, example).value == pytest.approx(2 * TRUTH, rel=1e-6)
    assert torch.equal(example, torch.ones(2, 3))
    assert model.seen == 0


def test_examples_of_every_make() -> None:
    leaf = torch.zeros(1, 3, requires_grad=True)
    for example in (
        leaf, 2 * leaf, nn.Parameter(X.clone()), torch.zeros(1, 1).expand(5, 3), torch.zeros(500_000, 3),
        torch.zeros(3, 2).T, X.half(), X.double(),
    ):  # fmt: skip
        assert bound(layer(), example).value == pytest.approx(TRUTH, rel=1e-6)
    assert leaf.grad is None


# -- what has no numbers, and what is no network ----------------------------------------------------------------------


def quantised() -> Tensor:
    return torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nn.LazyLinear(3), InputError, "'weight' is lazy.*run the model once"),
        (lambda: nn.Linear(3, 3, device="meta"), InputError, "'weight' is on the meta device.*load its weights"),
        (lambda: nn.Sequential(layer(), nn.Linear(3, 3, device="meta")), InputError, r"'1\.weight' is on the meta"),
        (lambda: function(lambda s, x: x + s.w.dequantize(), w=quantised()), CaptureError, "quantised"),
        (lambda: torch.jit.script(relu_layer()), InputError, "TorchScript.*nn.Module"),
        (lambda: torch.jit.trace(relu_layer(), X), InputError, "TorchScript.*nn.Module"),
        (lambda: nn.Sequential(torch.jit.script(layer()), nn.ReLU()), InputError, "its part '0' is TorchScript"),
        (lambda: function(lambda s, x: 1 / 0), InputError, "does not run on example_input.*ZeroDivisionError"),
        (lambda: nn.ModuleList([layer()]), InputError, "does not run"),
        (lambda: relu_layer().state_dict(), InputError, "weights without the network"),
        (lambda: nn.Linear, InputError, "torch.nn.Module"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_models_without_numbers(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bound(make())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sparse", [Tensor.to_sparse, Tensor.to_sparse_csr], ids=["coo", "csr"])
def test_sparse_parameters_are_dense_ones(sparse: Callable[[Tensor], Tensor]) -> None:
    matrix = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    found = bound(function(lambda s, x: (s.w @ x.T).T, w=sparse(matrix)))
    assert found.value == pytest.approx(3.0, rel=1e-9)
    found = bound(function(lambda s, x: torch.sparse.mm(s.w, x.T).T, w=sparse(matrix)))
    assert found.value == pytest.approx(3.0, rel=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_a_dynamically_quantised_model() -> None:
    with pytest.raises(CaptureError, match=r"is quantised.*float model"):
        bound(torch.ao.quantization.quantize_dynamic(relu_layer()))


@pytest.mark.parametrize(
    "example",
    [
        X.to_sparse(), X.to("meta"), X.to_mkldnn(), torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]),
        torch.zeros(1, 3, dtype=torch.complex32), torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
    ],
    ids=str,
)  # fmt: skip
def test_examples_without_plain_numbers(example: Tensor) -> None:
    with pytest.raises(InputError, match="example_input"):
        bound(layer(), example)


@pytest.mark.parametrize("make", [lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: t.to(torch.float8_e5m2)])
def test_other_arguments_without_plain_numbers(make: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(InputError, match="select"):
        bound(layer(), select=make(torch.eye(3)))
    with pytest.raises(InputError, match="inputs"):
        lipcert.lower_bound(layer(), X, inputs=make(torch.eye(3)), budget=0.1)
    with pytest.raises(InputError, match="centre of a ball"):
        lipcert.Ball(make(torch.eye(3))[0] if not make(X).is_sparse else make(torch.ones(3)), 1.0)


# -- why a model cannot be traced ----------------------------------------------------------------------------------


def sampled(s: Any, x: Tensor) -> Tensor:
    mean = s.l(x)
    return torch.distributions.Normal(mean, mean.exp()).rsample()


def branch_on_data(s: Any, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def branch_on_parameter(s: Any, x: Tensor) -> Tensor:
    return s.l(x) if s.l.weight.sum() > 0 else -s.l(x)


def through_data(s: Any, x: Tensor) -> Tensor:
    return x @ s.l.weight.data


@pytest.mark.parametrize("folder", ["lipcert", "torch", "site-packages"])
def test_code_in_a_folder_of_any_name_is_the_users(tmp_path: Path, folder: str) -> None:
    """A clone of lipcert is a folder ``lipcert``: what lies in it was taken for the library itself."""
    place = tmp_path / folder / "models.py"
    place.parent.mkdir()
    place.write_text(
        "import torch\n"
        "class Branch(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
        "class Power(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.exp(x)\n"
    )
    spec = importlib.util.spec_from_file_location("models_of_a_user", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(CaptureError, match=rf"{folder}/models.py:4 in forward"):
        bound(module.Branch().eval())
    with pytest.raises(NotLipschitzError, match=rf"{folder}/models.py:7 in forward"):
        bound(module.Power().eval())


@pytest.mark.parametrize(
    ("f", "error", "words"),
    [
        (sampled, TrainModeError, r"aten\.normal.*draws random numbers|draws random numbers \(aten\.normal"),
        (branch_on_data, CaptureError, r"depends on the data.*test_odd_models\.py:\d+ in branch_on_data"),
        (branch_on_parameter, CaptureError, r"test_odd_models\.py:\d+ in branch_on_parameter.*parameters only"),
        (through_data, CaptureError, r"\.data"),
    ],
)
def test_the_reason_is_true_and_alone(
    f: Callable[..., Any], error: type[Exception], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = function(f, l=layer())
    with pytest.raises(error, match=words) as caught:
        bound(model)
    if f is not branch_on_data:
        assert "depends on the data" not in str(caught.value)
    assert "def forward" not in capfd.readouterr().err


def test_numbers_made_of_parameters() -> None:
    """max(1, ‖b‖) as a Python number: read through Python's bytecode, where torch.export's plain trace fails."""

    def divided(s: Any, x: Tensor) -> Tensor:
        return s.l(x) / max(0.25, float(s.l.bias.detach().abs().max()))

    model = function(divided, l=layer())
    largest = max(0.25, float(model.l.bias.detach().abs().max()))  # type: ignore[union-attr, operator]
    assert bound(model).value == pytest.approx(TRUTH / largest, rel=1e-6)


def cayley(s: Any, x: Tensor) -> Tensor:
    skew, one = s.l.weight - s.l.weight.T, torch.eye(3, dtype=x.dtype)
    return x @ torch.linalg.solve(one + skew, one - skew)


@pytest.mark.parametrize(
    "f",
    [
        cayley,
        lambda s, x: x @ torch.linalg.inv(s.l.weight @ s.l.weight.T + torch.eye(3, dtype=x.dtype)),
        lambda s, x: x @ torch.inverse(s.l.weight @ s.l.weight.T + torch.eye(3, dtype=x.dtype)),
        lambda s, x: x @ torch.linalg.cholesky(s.l.weight @ s.l.weight.T + torch.eye(3, dtype=x.dtype)),
        lambda s, x: x @ torch.linalg.qr(s.l.weight)[0],
    ],
)
def test_linear_algebra_of_parameters_is_folded(f: Callable[..., Any]) -> None:
    model = function(f, l=layer()).double()
    matrix = f(model, torch.eye(3, dtype=torch.float64)).detach()
    found = bound(model, X.double())
    assert found.value == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-9)
    assert found.guarantee == "numerical"


def test_a_singular_constant_is_named() -> None:
    with pytest.raises(LipcertError, match=r"singular|does not run"):
        bound(function(lambda s, x: x @ torch.linalg.inv(s.w), w=torch.ones(3, 3)))


def test_a_bug_in_a_rule_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipcert.ops import registry

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(registry._RULES, "tanh", broken)
    with pytest.raises(CaptureError, match=r"tanh at .*ZeroDivisionError: oops.*bug in lipcert"):
        bound(nn.Sequential(layer(), nn.Tanh()))


# -- deep and anisotropic networks ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_deep_networks_do_not_exhaust_the_stack() -> None:
    layers = [m for _ in range(350) for m in (nn.Linear(1, 1), nn.LayerNorm(1, eps=1.0))]
    model = nn.Sequential(*layers, nn.Linear(1, 1)).double()
    limit = sys.getrecursionlimit()
    assert bound(model, torch.zeros(1, 1, dtype=torch.float64), method="seqlip", budget=1.0).value >= 0.0
    assert sys.getrecursionlimit() == limit


def test_scales_that_lie_too_far_apart_end_in_a_named_error_or_a_bound() -> None:
    small = 1e-80
    layers: list[nn.Module] = []
    for diagonal in ((1.0, small), (1.0, small), (small, 1 / small), (small, 1 / small)):
        one = nn.Linear(2, 2, bias=False).double()
        with torch.no_grad():
            one.weight.copy_(torch.diag(torch.tensor(diagonal, dtype=torch.float64)))
        layers += [one, nn.ReLU()]
    model, example = nn.Sequential(*layers[:-1]), torch.zeros(1, 2, dtype=torch.float64)
    for method in ("lipsdp", "lipsdp_layer"):
        with contextlib.suppress(LipcertError):
            assert bound(model, example, method=method, budget=1.0).value >= 1.0 - 1e-9


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_files_that_people_have(tmp_path: Path) -> None:
    net = relu_layer().eval()
    torch.save(net.state_dict(), tmp_path / "state.pth")
    torch.save(net.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(net, tmp_path / "whole.pt")
    torch.jit.trace(net, X).save(str(tmp_path / "script.pt"))
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x12\x07pytorch:\x00")
    (tmp_path / "weights.safetensors").write_bytes(b"\0" * 16)
    for name, words in (
        ("state.pth", "pickle of torch.save.*load_state_dict"), ("old.pt", "pickle of torch.save"),
        ("whole.pt", "pickle of torch.save.*source you trust"),
        ("script.pt", "TorchScript archive.*Export the nn.Module"),
        ("net.onnx", "no ONNX model, or truncated"), ("weights.safetensors", "weights without the network"),
        ("none.pt2", "no such file"),
    ):  # fmt: skip
        for path in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(CaptureError, match=rf"cannot load .*{name}.*{words}"):
                bound(path)


@pytest.mark.parametrize("name", ["net.onnx", "state.pth"])
def test_nothing_but_the_error_is_printed(name: str, tmp_path: Path) -> None:
    torch.save(relu_layer().state_dict(), tmp_path / "state.pth")
    (tmp_path / "net.onnx").write_bytes(b"\x08")
    done = subprocess.run(
        [sys.executable, "-c", "from lipcert.cli import main; main()", "bound", str(tmp_path / name)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("CaptureError: cannot load")
    assert done.stderr.count("\n") == 1
