"""What bad input gets: a named error that says what, where and what to do; and a model left exactly as it was."""

import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.errors import (
    CaptureError,
    CertificateError,
    InputError,
    LipcertError,
    NotLipschitzError,
    TrainModeError,
    UnsupportedNormError,
)
from tests.zoo import Apply, Twice

X = torch.zeros(2, 3)


def bound(model: Any, example: Any = X, **options: Any) -> lipcert.Bound:
    options.setdefault("method", "autolip")
    return lipcert.bound(model, example, **options)


def function(f: Callable[[Tensor], Any]) -> nn.Module:
    return Apply(lambda _, x: f(x)).eval()


def linear(n: int = 3, m: int = 2) -> nn.Module:
    return nn.Linear(n, m).eval()


# -- models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)), (2, 1, 4, 4)),
        (nn.BatchNorm1d(3), (2, 3)),
        (nn.BatchNorm1d(3), (1, 3)),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), (2, 3)),
        (nn.Sequential(nn.Linear(3, 3), nn.RReLU()), (2, 3)),
        (nn.AlphaDropout(0.2), (2, 3)),
        (nn.Dropout2d(0.2), (2, 1, 4, 4)),
    ],
)
def test_train_mode(model: nn.Module, shape: tuple[int, ...]) -> None:
    model.train()
    with pytest.raises(TrainModeError, match=r"model\.eval\(\)"):
        bound(model, torch.zeros(*shape))


@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (2, 3, 4)])
def test_batch_norm_without_running_statistics(shape: tuple[int, ...]) -> None:
    norm = nn.BatchNorm1d(3, track_running_stats=False).eval()
    with pytest.raises(TrainModeError, match="running stat"):
        bound(norm, torch.zeros(*shape))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.GroupNorm(3, 3), (1, 3)), (nn.InstanceNorm1d(3), (1, 3, 1)), (nn.InstanceNorm2d(3), (1, 3, 1, 1))],
)
def test_norm_over_one_value_is_not_training_mode(layer: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"groups of one value"):
        bound(layer.eval(), torch.zeros(shape))


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(3, track_running_stats=False), nn.InstanceNorm1d(3, track_running_stats=True).train()]
)
def test_batch_statistics_of_one_value(layer: nn.Module) -> None:
    with pytest.raises(TrainModeError, match=r"statistics of the batch.*model\.eval\(\)"):
        bound(layer, torch.zeros(1, 3, 1))


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5, training=True)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_functional_dropout_that_ignores_the_mode() -> None:
    with pytest.raises(TrainModeError, match=r"dropout at .*test_bad_input\.py:\d+ in forward"):
        bound(FunctionalDropout().eval())


def test_an_error_names_the_line_and_the_module() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Square())).eval()
    with pytest.raises(
        NotLipschitzError, match=r"aten\.mul at .*test_bad_input\.py:\d+ in forward, module '1\.0' \(Square\)"
    ):
        bound(model)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(1, 3),
        lambda: torch.rand(3) * 1e-12,
        lambda: torch.bernoulli(torch.full((3,), 0.5)),
    ],
)
def test_random_numbers_in_forward(draw: Callable[[], Tensor]) -> None:
    with pytest.raises(TrainModeError, match="random numbers"):
        bound(function(lambda x: x + draw()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["weight", "bias"])
def test_weights_that_are_not_numbers(bad: float, place: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        getattr(model[2], place)[0] = bad
    with pytest.raises(CaptureError, match=r"module '2' \(Linear\).*NaN or infinity.*[Rr]epair or reload"):
        bound(model)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_empty_weights_and_zero_layers_give_zero(p: float) -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2)).eval()
    assert bound(empty, norm=(p, p)).value == 0.0
    zero = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    nn.init.zeros_(zero[0].weight)  # type: ignore[arg-type]
    assert bound(zero, norm=(p, p)).value == 0.0
    assert lipcert.lower_bound(zero, X, norm=(p, p), budget=0.1).value == 0.0


def test_one_neuron_layers() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).eval()
    truth = abs(float(model[0].weight.detach()) * float(model[2].weight.detach()))  # type: ignore[operator, union-attr]
    assert bound(model, torch.zeros(1, 1)).value == pytest.approx(truth, rel=1e-6)
    assert lipcert.lower_bound(model, torch.zeros(1, 1), budget=0.2).value == pytest.approx(truth, rel=1e-5)


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (Two(), InputError, r"does not run on example_input.*argument"),
        (function(lambda x: (x, 2 * x)), InputError, "2 outputs.*output="),
        (function(lambda x: {"a": x, "b": 2 * x}), InputError, "2 outputs.*one tensor"),
        (function(lambda x: None), InputError, "does not return a tensor"),
        (function(lambda x: x if x.sum() > 0 else 2 * x), CaptureError, "[Cc]ontrol flow that depends on the data"),
        (function(lambda x: x * float(x.max())), CaptureError, "depends on the data|could not trace"),
        (function(lambda x: x[x > 0].reshape(1, -1)), LipcertError, "."),
        (function(lambda x: torch.where(x.sum(1, True) > 0, x, 2 * x)), LipcertError, "supported|discontinuous"),
        (function(lambda x: torch.fft.fft(x).angle()), CaptureError, "no rule covers it for complex numbers"),
        (Square(), NotLipschitzError, r"aten\.mul.*test_bad_input\.py:\d+ in forward"),
        (function(lambda x: x / (1 + x.sum(1, keepdim=True))), NotLipschitzError, r"aten\.div"),
        (function(lambda x: (x * x).reshape(1, -1)), CaptureError, "a batch of 2 gives an output of shape"),
        (function(lambda x: torch.exp(x)), NotLipschitzError, r"aten\.exp"),
        (function(lambda x: x.sqrt()), NotLipschitzError, r"aten\.sqrt"),
        (function(lambda x: x.sign()), NotLipschitzError, r"aten\.sign"),
        (function(lambda x: x.round()), NotLipschitzError, r"aten\.round"),
        (nn.Hardshrink().eval(), NotLipschitzError, "discontinuous"),
        (function(lambda x: x.to(torch.int64).to(torch.float32)), NotLipschitzError, "discontinuous"),
        (function(lambda x: torch.linalg.inv(x.reshape(-1, 3, 1) * torch.ones(3) + torch.eye(3)).flatten(1)),
         LipcertError, "."),
    ],
)  # fmt: skip
def test_models_without_a_bound(model: nn.Module, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bound(model)


@pytest.mark.parametrize(
    "couple",
    [
        lambda x: x - x.mean(0),
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x.softmax(0),
        lambda x: x.sum(0),
        lambda x: x.sum(),
        lambda x: x.flip(0) * 1.0,
        lambda x: x.cumsum(0),
        lambda x: x.reshape(1, -1)[:, :3],
        lambda x: x @ (x.T @ torch.ones(len(x), 3)) / 3,
        lambda x: x.max(0, keepdim=True).values + 0 * x,
        lambda x: x.roll(1, 0),
        lambda x: torch.cat([x, x]),
    ],
)
def test_batch_coupled_operations(couple: Callable[[Tensor], Tensor]) -> None:
    for example in (torch.zeros(1, 3), torch.ones(4, 3)):
        with pytest.raises(LipcertError, match=r"batch|two values|product|supported"):
            bound(function(couple), example)


def test_batch_coupling_on_one_feature() -> None:
    """A sum over a batch of one scalar looks like a batch of one output."""
    with pytest.raises(CaptureError, match="batch"):
        bound(function(lambda x: x.sum(0)), torch.zeros(1, 1))


@pytest.mark.parametrize("model", [3, None, "nothing.pt2", Path("nothing.pt2"), nn.Linear])
def test_things_that_are_no_model(model: Any) -> None:
    with pytest.raises((InputError, CaptureError), match=r"torch\.nn\.Module|cannot load"):
        bound(model)


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    for content in (b"", b"not a zip file", b"PK\x03\x04" + b"\0" * 100):
        (tmp_path / "x.pt2").write_bytes(content)
        with pytest.raises(CaptureError, match=r"cannot load .*x\.pt2.*torch\.export\.save"):
            bound(tmp_path / "x.pt2")


def test_complex_and_half_complex_models() -> None:
    model = linear()
    model.register_buffer("phase", torch.ones(1, dtype=torch.complex64))
    assert bound(model).value > 0  # that no output depends on
    with pytest.raises(InputError, match="returns complex numbers"):
        bound(function(lambda x: x * torch.ones(3, dtype=torch.complex64)))


# -- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), "floating-point"),
        (torch.zeros(2, 3, dtype=torch.bool), "floating-point"),
        (torch.zeros(2, 3, dtype=torch.complex64), "real floating-point"),
        (torch.zeros(3), "leading batch dimension"),
        (torch.zeros(()), "leading batch dimension"),
        (torch.zeros(0, 3), "no empty axis"),
        (torch.zeros(2, 0), "no empty axis"),
        (torch.full((1, 3), math.nan), "NaN"),
        (torch.full((1, 3), math.inf), "infinity"),
        (torch.zeros(2, 4), r"shape \(1, 4\).*shape the model takes"),
        (torch.zeros(2, 3, 5), r"shape \(1, 3, 5\).*shape the model takes"),
        ([[0.0, 0.0, 0.0]], "must be a tensor"),
        (np.zeros((1, 3), dtype=np.int64), "floating-point"),
        (np.array([["a"]]), "must be a tensor"),
        ((torch.zeros(1, 3), torch.zeros(1, 3)), "does not run on the arguments given"),
        (None, "must be a tensor"),
    ],
)
def test_unusable_examples(example: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        bound(linear(), example)
    with pytest.raises(InputError, match=words):
        lipcert.lower_bound(linear(), example, budget=0.1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"norm": (3, 3)}, InputError, "1, 2 and inf"),
        ({"norm": 2}, InputError, "pair"),
        ({"norm": (2,)}, InputError, "pair"),
        ({"norm": (2, 2, 2)}, InputError, "pair"),
        ({"norm": ("a", 2)}, InputError, "pair"),
        ({"norm": (math.nan, math.nan)}, InputError, "1, 2 and inf"),
        ({"norm": None}, InputError, "pair"),
        ({"norm": (1, 2)}, UnsupportedNormError, "cannot bound l1 → l2"),
        ({"norm": (2, math.inf)}, UnsupportedNormError, "cannot bound l2 → linf"),
        ({"method": "no such method"}, InputError, "unknown method.*autolip"),
        ({"method": ["autolip"]}, InputError, "unknown method"),
        ({"method": None}, InputError, "unknown method"),
        ({"method": lipcert.AutoLip}, InputError, "unknown method"),
        ({"select": torch.ones(1, 5)}, InputError, r"\(k, 2\) matrix"),
        ({"select": torch.ones(2)}, InputError, r"\(k, 2\) matrix"),
        ({"select": torch.full((1, 2), math.nan)}, InputError, "NaN"),
        ({"select": [[1.0, 0.0]]}, InputError, "tensor"),
        ({"select": torch.ones(1, 2, dtype=torch.complex64)}, InputError, "real"),
        ({"domain": (0, 1)}, InputError, "lipcert.Ball, a lipcert.Box or"),
        ({"domain": lipcert.Ball(torch.zeros(4), 1.0)}, InputError, r"shape \(4,\), one example .* \(3,\)"),
        ({"domain": lipcert.Box(torch.zeros(2), torch.ones(2))}, InputError, r"shape \(2,\), one example .* \(3,\)"),
        ({"budget": 0}, InputError, "positive number of seconds"),
        ({"budget": -1.0}, InputError, "positive number of seconds"),
        ({"budget": math.nan}, InputError, "positive number of seconds"),
        ({"budget": "long"}, InputError, "positive number of seconds"),
        ({"seed": "x"}, InputError, "seed must be"),
        ({"seed": -1}, InputError, "seed must be"),
        ({"seed": 2**70}, InputError, "seed must be"),
        ({"device": "nowhere"}, InputError, "cannot be used"),
        ({"device": "meta"}, InputError, "cannot be used"),
    ],
)
def test_unusable_arguments(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bound(linear(), **options)
    if "method" not in options and error is InputError:
        with pytest.raises(error, match=words):
            lipcert.lower_bound(linear(), X, **{"budget": 0.1, **options})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lipcert.Ball(torch.zeros(3), -1.0), "finite radius"),
        (lambda: lipcert.Ball(torch.zeros(3), math.inf), "finite radius"),
        (lambda: lipcert.Ball(torch.zeros(3), math.nan), "finite radius"),
        (lambda: lipcert.Ball(torch.zeros(3), "1"), "finite radius"),
        (lambda: lipcert.Ball(torch.zeros(3), 1.0, p=3), "p in"),
        (lambda: lipcert.Ball(torch.full((3,), math.nan), 1.0), "NaN"),
        (lambda: lipcert.Box(torch.ones(3), torch.zeros(3)), "lower ≤ upper"),
        (lambda: lipcert.Box(torch.zeros(3), torch.zeros(2)), "one shape"),
        (lambda: lipcert.Box(torch.full((3,), math.nan), torch.zeros(3)), "NaN"),
    ],
)
def test_unusable_domains(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("inputs", [torch.zeros(2, 4), [[0.0] * 3], torch.full((2, 3), math.nan), torch.zeros(3)])
def test_unusable_attack_data(inputs: Any) -> None:
    with pytest.raises(InputError):
        lipcert.lower_bound(linear(), X, inputs=inputs, budget=0.1)


# -- certificates -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    path = tmp_path_factory.mktemp("certificates") / "good.lipcert"
    bound(model, select=torch.eye(2), domain=lipcert.Ball(torch.zeros(3), 1.0)).save(path)
    return path, model


def test_missing_certificates(tmp_path: Path) -> None:
    for path in (tmp_path / "none.lipcert", tmp_path, "", "a\0b"):
        with pytest.raises(CertificateError, match="cannot read"):
            lipcert.verify(path, linear(), X)


def test_files_that_are_no_certificate(tmp_path: Path) -> None:
    path = tmp_path / "x.lipcert"
    for content in (
        b"",
        b"\0" * 8,
        b"{}",
        b"\xff" * 64,
        (2**62).to_bytes(8, "little") + b"{}",
        b"PK\x03\x04",
    ):
        path.write_bytes(content)
        with pytest.raises(CertificateError, match=r"x\.lipcert"):
            lipcert.verify(path, linear(), X)


def test_truncated_and_extended_certificates(certificate: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, model = certificate
    content = path.read_bytes()
    broken = tmp_path / "b.lipcert"
    for changed in (
        content[:-1],
        content[: len(content) // 2],
        content[:7],
        content + b"\0",
        content + content,
    ):
        broken.write_bytes(changed)
        with pytest.raises(CertificateError):
            lipcert.verify(broken, model, X)


def test_every_byte_counts(certificate: tuple[Path, nn.Module], tmp_path: Path) -> None:
    """Each byte of the file changed in two ways: length field, safetensors header, our header, arrays."""
    from lipcert.certificates.file import read

    path, _ = certificate
    content = path.read_bytes()
    broken = tmp_path / "b.lipcert"
    source = random.Random(0)
    for place in range(len(content)):
        for bit in (1, source.choice([2, 4, 8, 16, 32, 64, 128])):
            changed = bytearray(content)
            changed[place] ^= bit
            broken.write_bytes(bytes(changed))
            with pytest.raises(CertificateError):
                read(broken)


def test_certificate_of_another_model(certificate: tuple[Path, nn.Module]) -> None:
    path, model = certificate
    with pytest.raises(CertificateError, match="another model"):
        lipcert.verify(path, linear(), X)
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[0, 0] = torch.nextafter(other[0].weight[0, 0], torch.tensor(9.0))  # type: ignore[index, union-attr]
    with pytest.raises(CertificateError, match="another model"):
        lipcert.verify(path, other, X)
    assert lipcert.verify(path, copy.deepcopy(model), torch.ones(5, 3)).value > 0


def test_unwritable_places(tmp_path: Path) -> None:
    found = bound(linear())
    (tmp_path / "folder").mkdir()
    blocker = tmp_path / "file"
    blocker.write_text("kept")
    for path in (
        tmp_path / "no" / "such" / "x.lipcert",
        tmp_path / "folder",
        blocker / "x.lipcert",
        "/proc/x.lipcert",
    ):
        with pytest.raises(CertificateError, match="cannot write"):
            found.save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]  # nothing half-written is left
    assert not list((tmp_path / "folder").iterdir())
    assert blocker.read_text() == "kept"


def test_a_failed_write_keeps_the_old_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.lipcert"
    model = linear()
    bound(model).save(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CertificateError, match="No space left"):
        bound(model).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.lipcert"]


def test_saved_certificates_can_be_read_by_others(tmp_path: Path) -> None:
    bound(linear()).save(tmp_path / "m.lipcert")
    assert (tmp_path / "m.lipcert").stat().st_mode & 0o044 == 0o044


# -- the model is left as it was --------------------------------------------------------------------------------


class Careless(nn.Module):
    """Caches, counts and appends in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(3)
        self.cache: Tensor | None = None
        self.calls = 0
        self.list: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.list.append(self.calls)
        self.cache = self.norm(self.drop(self.layer(x)))
        return torch.relu(self.cache)


def state(model: nn.Module) -> Any:
    return (
        [m.training for m in model.modules()],
        {k: (v.dtype, v.numpy().tobytes(), v.data_ptr()) for k, v in model.state_dict().items()},
        [(id(p), p.requires_grad, None if p.grad is None else p.grad.clone().tolist()) for p in model.parameters()],
        [sorted(m.__dict__) for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
    )


@pytest.mark.parametrize("what", ["bound", "lower", "verify", "error"])
def test_the_model_is_left_as_it_was(what: str, tmp_path: Path) -> None:
    model = Careless()
    model(torch.randn(4, 3)).sum().backward()
    model.eval()
    model.norm.train()  # overruled below: an odd mix of modes must survive too
    model.norm.eval()
    model.drop.train()
    model.drop.eval()
    model.layer.bias.requires_grad_(False)
    calls: list[int] = []
    model.layer.register_forward_hook(lambda *_: calls.append(1))
    model.cache = None
    model.calls, model.list = 7, [1, 2]
    if what == "verify":
        bound(model).save(tmp_path / "m.lipcert")
    before, random_before = state(model), torch.get_rng_state()
    threads, default, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    example = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    kept = example.detach().clone()
    if what == "bound":
        bound(model, example)
    elif what == "lower":
        lipcert.lower_bound(model, example, budget=0.1)
    elif what == "verify":
        lipcert.verify(tmp_path / "m.lipcert", model, example)
    else:
        with pytest.raises(InputError):
            bound(model, torch.zeros(1, 9))
    assert state(model) == before
    assert (model.cache, model.calls, model.list) == (None, 7, [1, 2])
    assert torch.equal(torch.get_rng_state(), random_before)
    assert (threads, default, grad) == (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )
    assert torch.equal(example, kept)
    assert example.grad is None
    calls.clear()
    model(example)
    assert calls == [1]  # the hook fires once per call, as before


def test_python_and_numpy_random_states_are_left() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    bound(Twice(nn.Linear(3, 3), nn.ReLU()).eval())
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[union-attr]


def test_verify_takes_a_path_only() -> None:
    with pytest.raises(InputError, match=r"not Bound; a bound writes one with \.save"):
        lipcert.verify(bound(linear()), linear(), X)  # type: ignore[arg-type]
