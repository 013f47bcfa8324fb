"""What a process, a thread or a library has set must not change a bound: the same value, or a named error."""

import ctypes
import ctypes.util
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lipcert
from lipcert.attack.witness import evaluate
from lipcert.capture.torch_export import capture
from lipcert.errors import NumericsError
from lipcert.numerics.process_state import ordinary, subnormals_survive
from lipcert.problem import Problem
from lipcert.result import LowerWitness

INF = (float("inf"), float("inf"))


class Doubled(TorchFunctionMode):
    """Doubles every linear layer and every product."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return 2 * result if func in (torch.nn.functional.linear, torch.matmul) else result


class Zeroed(TorchDispatchMode):
    """Zeroes what every addition and every product gives."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 0 if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) else result


@contextmanager
def switched(switch: Callable[[Any], Any], on: Any, off: Any) -> Iterator[None]:
    switch(on)
    try:
        yield
    finally:
        switch(off)


@contextmanager
def flushing_pool() -> Iterator[None]:
    """Worker threads that began under flush-to-zero, in a process that has switched it off again."""
    threads = torch.get_num_threads()
    torch.set_flush_denormal(True)
    torch.set_num_threads(3)
    torch.ones(1 << 18) * 2.0
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def strict_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def low_precision() -> Iterator[None]:
    place = torch.backends.mkldnn
    before = place.fp32_precision
    place.fp32_precision = "bf16"
    try:
        yield
    finally:
        place.fp32_precision = before


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return switched(torch.set_default_dtype, dtype, torch.float32)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "flush to zero": lambda: switched(torch.set_flush_denormal, True, False),
    "flush to zero in the pool": flushing_pool,
    "default device": lambda: switched(torch.set_default_device, "meta", None),
    "device context": lambda: torch.device("meta"),
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "matmul precision": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "deterministic": deterministic,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "inference mode": lambda: torch.inference_mode(),
    "no grad": lambda: torch.no_grad(),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "saved tensors in half precision": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.half() if t.is_floating_point() else t, lambda t: t.double() if t.is_floating_point() else t
    ),
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings are errors": strict_warnings,
    "a function mode": Doubled,
    "a dispatch mode": Zeroed,
    "all at once": lambda: _all(
        "flush to zero", "default device", "bfloat16 by default", "deterministic", "inference mode", "autocast",
        "numpy raises", "warnings are errors", "a function mode",
    ),
}  # fmt: skip
if hasattr(torch.backends.mkldnn, "fp32_precision"):
    STATES["bfloat16 in mkldnn"] = low_precision


@contextmanager
def _all(*names: str) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(STATES[name]())
        yield


def fingers() -> tuple[Any, ...]:
    """What a caller can see of the settings."""
    return (
        subnormals_survive(), torch.get_default_dtype(), str(torch.get_default_device()),
        torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
        torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"),
        torch.is_anomaly_enabled(), np.geterr(), torch.get_num_threads(), list(warnings.filters),
        getattr(torch.backends.mkldnn, "fp32_precision", None), torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(), torch._C._autograd._top_saved_tensors_default_hooks(True) is None,
    )  # fmt: skip


def tiny() -> nn.Module:
    """Weights 1e-40 (subnormal in float32) and 1e38: the constant is about 1e-2 in every norm, and 0 once flushed."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(2) * 1e-40)
        second.weight.copy_(torch.eye(2) * 1e38)
    return nn.Sequential(first, nn.ReLU(), second).eval()


def mixed() -> nn.Module:
    """Through torch.export: convolution, batch norm, pooling, activations, layer norm."""
    generator = torch.Generator().manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Hardswish(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(12, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 2),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator) + 0.3 * (parameter.dim() == 1))
    return model.eval()


class Gated(nn.Module):
    """Has a constant on domains only, by ranges that are worked out when the problem is posed."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.layers = nn.ModuleList(nn.Linear(3, 4) for _ in range(2))
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(self.layers[0](x).cumsum(1) * torch.sigmoid(self.layers[1](x)), (4,))


GATED, GATED_INPUT, BALL = Gated().eval(), torch.ones(1, 3), lipcert.Ball(torch.ones(3), 0.1)
TINY, TINY_INPUT = tiny(), torch.zeros(1, 2)
MIXED, MIXED_INPUT = mixed(), torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def values(folder: Path) -> list[Any]:
    """Bounds, proofs from a file, and a lower bound at a fixed witness."""
    tiny = [lipcert.bound(TINY, TINY_INPUT, method=m, norm=n) for m, n in (("autolip", INF), ("liplt", (2, 2)))]
    mixed = lipcert.bound(MIXED, MIXED_INPUT, method="autolip")
    gated = lipcert.bound(GATED, GATED_INPUT, method="autolip", domain=BALL)
    again = [
        lipcert.verify(folder / "tiny.lipcert", TINY, TINY_INPUT),
        lipcert.verify(folder / "mixed.lipcert", MIXED, MIXED_INPUT),
    ]
    lower = evaluate(PROBLEM, LowerWitness(POINT, DIRECTION))
    return [*((b.value, b.guarantee) for b in (*tiny, mixed, gated, *again)), lower]


POINT = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 4, 4)
DIRECTION = torch.linspace(1, 2, 16, dtype=torch.float64).reshape(1, 4, 4)
PROBLEM = Problem(capture(MIXED, MIXED_INPUT))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("certificates")
    lipcert.bound(TINY, TINY_INPUT, method="autolip", norm=INF).save(folder / "tiny.lipcert")
    lipcert.bound(MIXED, MIXED_INPUT, method="lipsdp", budget=0.5).save(folder / "mixed.lipcert")
    found = values(folder)
    truth = Fraction(float(TINY[0].weight[0, 0])) * Fraction(float(TINY[2].weight[0, 0]))  # type: ignore[arg-type]
    assert truth <= Fraction(found[0][0]) <= truth * (1 + Fraction(1, 10**9))
    return folder, found


@pytest.mark.few(2)
@pytest.mark.parametrize("name", STATES)
def test_no_state_changes_a_bound(name: str, reference: tuple[Path, list[Any]]) -> None:
    folder, expected = reference
    with STATES[name]():
        before = fingers()
        assert values(folder) == expected
        assert fingers() == before


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ["flush to zero", "inference mode", "default device", "autocast", "numpy raises"])
def test_nor_in_another_thread(name: str, reference: tuple[Path, list[Any]]) -> None:
    """These are settings of one thread: here they are on in the worker alone."""
    folder, expected = reference
    found: list[Any] = []

    def work() -> None:
        with STATES[name]():
            before = fingers()
            found.extend(values(folder))
            found.append(fingers() == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [*expected, True]


def test_cached_parametrisations() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2).double()).eval()
    example = torch.zeros(1, 3, dtype=torch.float64)
    expected = lipcert.bound(layer, example, method="autolip").value
    with nn.utils.parametrize.cached():
        layer(example)
        assert lipcert.bound(layer, example, method="autolip").value == expected


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
        select, example = torch.eye(2, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    copied = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    copied.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    for method in ("autolip", "lipsdp"):
        made = lipcert.bound(model, example, method=method, select=select, budget=1)
        assert made.value == lipcert.bound(copied, example, method=method, select=torch.eye(2), budget=1).value
    assert lipcert.lower_bound(model, example, budget=0.3).value > 0


# -- what cannot be put in order is refused --------------------------------------------------------------------------


@contextmanager
def rounding(mode: int) -> Iterator[None]:
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    before = library.fegetround()
    library.fesetround(mode)
    try:
        yield
    finally:
        library.fesetround(before)


@pytest.mark.skipif(sys.platform != "linux", reason="the numbers of the modes are those of glibc on x86")
@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00])
def test_other_rounding_modes_are_refused(mode: int) -> None:
    with rounding(mode), pytest.raises(NumericsError, match=r"round to nearest.*fesetround") as caught:
        lipcert.bound(TINY, TINY_INPUT, method="autolip")
    assert caught.value is not None
    assert lipcert.bound(TINY, TINY_INPUT, method="autolip").value > 0


def test_transforms_are_refused() -> None:
    def inside(x: Tensor) -> Tensor:
        with pytest.raises(NumericsError, match=r"torch\.func"):
            lipcert.bound(TINY, TINY_INPUT, method="autolip")
        return x.sum()

    torch.vmap(inside)(torch.ones(2, 3))
    torch.func.grad(inside)(torch.ones(3))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NumericsError, match="forward-mode"):
        lipcert.bound(TINY, TINY_INPUT, method="autolip")


def test_a_model_that_changes_the_arithmetic_is_refused() -> None:
    class Flushes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.set_flush_denormal(True)
            return 2.0 * x

    with pytest.raises(NumericsError, match="after the model ran"):
        lipcert.bound(Flushes().eval(), TINY_INPUT, method="autolip")
    assert subnormals_survive()


def test_the_model_keeps_the_callers_default_dtype() -> None:
    """A constant that forward makes is part of the model: 0.7 in float64, and 2e-8 less in float32."""

    class Makes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.full((2, 2), 0.7)

    example = torch.zeros(1, 2)
    single = lipcert.bound(Makes().eval(), example, method="autolip").value
    with default_dtype(torch.float64):
        double = lipcert.bound(Makes().eval(), example.double(), method="autolip").value
    assert single == pytest.approx(2 * float(torch.tensor(0.7)), rel=1e-11)
    assert double == pytest.approx(1.4, rel=1e-11)
    assert double >= 1.4


def test_filters_about_lipcert_itself_stay() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lipcert")
        with ordinary(), pytest.raises(DeprecationWarning):
            warnings.warn_explicit("old", DeprecationWarning, "x.py", 1, module="lipcert.x")


def test_errors_leave_everything_as_it_was() -> None:
    before = fingers()
    with pytest.raises(RuntimeError, match="inside"), nullcontext(), ordinary():
        raise RuntimeError("inside")
    assert fingers() == before
