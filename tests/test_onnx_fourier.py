"""DFT and STFT nodes: what the reference evaluator computes, bounds against dense matrices, faults by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import lipcert
from lipcert.errors import CaptureError, LipcertError, UnsupportedOpError
from tests.onnx_files import constant, graph, saved

DOUBLE = TensorProto.DOUBLE


def model(
    opset: int, shape: Any, length: Any = None, axis: int | None = None, kind: int = DOUBLE, op: str = "DFT",
    window: Any = None, **attributes: int,
) -> Any:  # fmt: skip
    """y = the transform of x; the axis where the operator set has it."""
    held, inputs = [], ["x"]
    given = [("n", length, np.int64), ("a", axis if opset >= 20 else None, np.int64)]
    if op == "STFT":
        given = [("s", axis, np.int64), ("w", window, np.float64), ("n", length, np.int64)]
    elif axis is not None and opset < 20:
        attributes["axis"] = axis
    for name, value, dtype in given:
        inputs.append("" if value is None else name)
        held += [] if value is None else [constant(name, value, dtype)]
    while inputs[-1] == "":
        inputs.pop()
    return graph([helper.make_node(op, inputs, ["y"], name="wave", **attributes)], shape, held, opset, kind)


def matrix(made: Any, shape: tuple[int, ...]) -> Any:
    """Of a linear map, by the reference evaluator."""
    run, size = ReferenceEvaluator(made), int(np.prod(shape))
    columns = [run.run(None, {"x": e.reshape(shape)})[0].reshape(-1) for e in np.eye(size)]
    return np.stack(columns, axis=1)


FORMS = [
    *((17, (1, 6, 1), k) for k in ({}, {"onesided": 1}, {"inverse": 1}, {"length": 4}, {"length": 9, "onesided": 1})),
    *((17, (1, 5, 2), k) for k in ({}, {"inverse": 1}, {"length": 3, "inverse": 1}, {"length": 8}, {"axis": -2})),
    *((17, (1, 4, 2), k) for k in ({"onesided": 1, "inverse": 1}, {"onesided": 1, "inverse": 1, "length": 7})),
    (17, (1, 1, 2), {"onesided": 1, "inverse": 1, "length": 1}), (17, (1, 3, 4, 2), {"axis": 2}),
    (19, (1, 4, 2), {"axis": 0}),
    (17, (1, 2), {"axis": 0}), (20, (1, 3, 4, 1), {}), (20, (1, 3, 4, 2), {"axis": 1, "length": 5}),
    (20, (1, 3, 4, 2), {"axis": -3, "inverse": 1}), (20, (1, 7, 1), {"axis": 1, "onesided": 1}),
    (26, (1, 5, 2), {"inverse": 1, "onesided": 1}), (20, (1, 1, 1), {"onesided": 1}),
    *((17, (1, 12, 1), {"op": "STFT", **k}) for k in (
        {"axis": 4, "length": 6}, {"axis": 5, "length": 5, "onesided": 0}, {"axis": 1},
        {"axis": 3, "window": [0.5, 1.0, -2.0, 0.25]},
    )),
    (20, (1, 8, 2), {"op": "STFT", "axis": 2, "length": 4, "window": [1.0, 2.0, 2.0, 1.0], "onesided": 0}),
]  # fmt: skip


@pytest.mark.few(4)
@pytest.mark.parametrize(("opset", "shape", "options"), FORMS, ids=str)
def test_transforms_have_their_own_constant(opset: int, shape: Any, options: Any, tmp_path: Path) -> None:
    made = model(opset, shape, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime knows neither the way back to real numbers nor every set
        module = lipcert.load_onnx(saved(made, tmp_path), shape[1:])
    x = np.random.default_rng(0).normal(size=shape)
    truth = ReferenceEvaluator(made).run(None, {"x": x})[0]
    found = module(torch.from_numpy(x)).numpy()
    assert np.abs(found.reshape(truth.shape) - truth).max() <= 1e-12
    steepest = np.linalg.norm(matrix(made, shape), 2)
    bound = lipcert.bound(module, torch.zeros(shape), method="autolip").value
    assert steepest * (1 - 1e-12) <= bound <= steepest * (1 + 1e-6)


def test_a_spectral_filter_of_the_file_is_enclosed(tmp_path: Path) -> None:
    """x ∗ k by transforms, the filter's own computed from its numbers: the circulant matrix of k."""
    n, kernel = 6, np.random.default_rng(1).normal(size=(1, 6, 1))
    node = helper.make_node
    nodes = [
        node("DFT", ["x"], ["f"], onesided=1), node("DFT", ["k"], ["g"], onesided=1),
        *(node("Slice", [v, s, e, "last"], [f"{v}{i}"]) for v in "fg" for i, (s, e) in enumerate(("01", "12"))),
        node("Mul", ["f0", "g0"], ["rr"]), node("Mul", ["f1", "g1"], ["ii"]), node("Sub", ["rr", "ii"], ["re"]),
        node("Mul", ["f0", "g1"], ["ri"]), node("Mul", ["f1", "g0"], ["ir"]), node("Add", ["ri", "ir"], ["im"]),
        node("Concat", ["re", "im"], ["h"], axis=2), node("DFT", ["h"], ["y"], inverse=1, onesided=1),
    ]  # fmt: skip
    held = [constant(c, [int(c)], np.int64) for c in "012"]
    held += [constant("last", [2], np.int64), constant("k", kernel, np.float64)]
    module = lipcert.load_onnx(saved(graph(nodes, (1, n, 1), held, kind=DOUBLE), tmp_path))
    circulant = np.stack([np.roll(kernel.reshape(-1), k) for k in range(n)], axis=1)
    x = np.random.default_rng(2).normal(size=(1, n, 1))
    assert np.allclose(module(torch.from_numpy(x)).numpy().reshape(-1), circulant @ x.reshape(-1), atol=1e-12)
    found = lipcert.bound(module, torch.zeros(1, n, 1), method="autolip")
    truth = np.linalg.norm(circulant, 2)
    assert found.guarantee == "rigorous"
    assert truth * (1 - 1e-13) <= found.value <= truth * 2  # real and imaginary parts are filtered each on its own


def test_an_axis_that_is_left_out_by_name(tmp_path: Path) -> None:
    """onnxruntime crashes on it: it is asked without the name, also inside functions and branches."""
    node, out = helper.make_node("DFT", ["x", "", ""], ["y"]), helper.make_tensor_value_info("y", 1, None)
    inside = helper.make_function("own", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 20)])
    branch = helper.make_graph([helper.make_node("DFT", ["x", "", ""], ["y"])], "b", [], [out])
    outer = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    for one in (node, helper.make_node("F", ["x"], ["y"], domain="own"), outer):
        made = graph([one], (1, 6, 1), [constant("c", True, np.bool_)], opset=20)
        if one.domain:
            made.functions.append(inside)
            made.opset_import.append(helper.make_opsetid("own", 1))
        module = lipcert.load_onnx(saved(made, tmp_path))
        assert module(torch.ones(1, 6, 1))[0, 0, 0] == 6.0


def test_half_precision_transforms_in_float32(tmp_path: Path) -> None:
    module = lipcert.load_onnx(saved(model(17, (1, 8, 1), kind=TensorProto.FLOAT16), tmp_path))
    found = lipcert.bound(module, torch.zeros(1, 8, 1), method="autolip").value
    assert np.sqrt(8) <= found <= np.sqrt(8) * (1 + 1e-6)


FAULTS = [
    ({"length": 0}, "a Fourier transform of 0 entries"), ({"length": -1}, "a Fourier transform of -1 entries"),
    ({"length": 1 << 40}, "up to 4096 are covered"), ({"length": -(1 << 63)}, "of -9223372036854775808 entries"),
    ({"length": 4097}, "4097 entries; up to 4096"), ({"length": [4, 4]}, "dft_length is 2 numbers"),
    ({"length": []}, "dft_length is 0 numbers"), ({"axis": 2}, "its axis is the last one"),
    ({"axis": -1}, "its axis is the last one"), ({"axis": 3}, "axis 3 of a value with 3 axes"),
    ({"axis": -4}, "axis -4 of"), ({"axis": 1 << 62}, "axis 4611686018427387904"),
    ({"axis": -4, "opset": 20}, "axis -4 of"), ({"axis": [1, 1], "opset": 20}, "axis is 2 numbers"),
    ({"inverse": 2}, "its inverse is 2"), ({"onesided": -1}, "its onesided is -1"),
    ({"opset": 16}, "set 16 has no such"),
    ({"onesided": 1, "inverse": 1}, "back of real numbers"), ({"shape": (1, 6, 3)}, "no last axis of 1 or 2"),
    ({"onesided": 1, "shape": (1, 6, 2)}, "of complex numbers"),
    ({"onesided": 1, "inverse": 1, "length": 4, "shape": (1, 6, 2)}, "6 frequencies for 4 real numbers"),
    ({"onesided": 1, "inverse": 1, "shape": (1, 1, 2)}, "transform of 0 entries"), ({"norm": 1}, "'norm' is not known"),
    ({"op": "STFT", "axis": 0, "length": 2}, "frames of 2 entries, 0 apart"),
    ({"op": "STFT", "axis": 1, "length": 7}, "of a signal of 6"),
    ({"op": "STFT", "length": 2}, "its frame_step is missing"),
    ({"op": "STFT", "axis": 1, "length": 2, "window": [1.0]}, "its window has shape"),
    ({"op": "STFT", "axis": 1, "length": 2, "shape": (1, 6, 2)}, "of complex numbers"),
    ({"op": "STFT", "axis": 1, "length": 2, "shape": (1, 3, 6, 1)}, "not that of a batch of signals"),
]  # fmt: skip


@pytest.mark.few(15)
@pytest.mark.parametrize(("options", "message"), FAULTS, ids=str)
def test_faults_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    made = model(**{"opset": 17, "shape": (1, 6, 1), **options})
    with pytest.raises(CaptureError, match=message) as caught:
        lipcert.load_onnx(saved(made, tmp_path))
    assert "'wave'" in str(caught.value)


def test_lengths_and_axes_are_constants(tmp_path: Path) -> None:
    for inputs, what in ((["x", "i"], "dft_length"), (["x", "", "i"], "axis")):
        nodes = [
            helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0), helper.make_node("Cast", ["m"], ["i"], to=7),
            helper.make_node("DFT", inputs, ["y"]),
        ]  # fmt: skip
        with pytest.raises(UnsupportedOpError, match=f"its {what} depends on the values of the input"):
            lipcert.load_onnx(saved(graph(nodes, (1, 6, 1), opset=20), tmp_path))
    nodes = [helper.make_node("DFT", ["x", "n"], ["y"])]
    with pytest.raises(CaptureError, match="dft_length is no list of whole numbers"):
        lipcert.load_onnx(saved(graph(nodes, (1, 6, 1), [constant("n", 4.0)]), tmp_path))


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 1500), marks=pytest.mark.slow)], ids=len)
def test_transforms_of_any_setting_are_right_or_refused(seeds: range, tmp_path: Path) -> None:
    read, bugs = 0, []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        shape = (1, *rng.integers(1, 7, size=rng.integers(0, 4)).tolist(), int(rng.choice([1, 1, 2, 2, 2, 3])))
        options: dict[str, Any] = {"opset": int(rng.choice([16, 17, 17, 19, 20, 20, 23, 26])), "shape": shape}
        for name, values in (
            ("length", [-3, 0, 1, 2, 3, 5, 8, 1 << 33]), ("axis", [-9, -3, -2, -1, 0, 1, 2, 7]),
            ("inverse", [0, 1, 1, 5]), ("onesided", [0, 1, 1, -1]), ("op", ["DFT", "DFT", "STFT"]),
            ("window", [[1.0, 0.5], [2.0, 0.5, -1.0]]),
        ):  # fmt: skip
            if rng.random() < 0.5:
                options[name] = values[rng.integers(len(values))]  # type: ignore[index]
        made = model(**options)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                module = lipcert.load_onnx(saved(made, tmp_path), shape[1:] or (1,))
        except LipcertError as problem:
            bugs += [seed] * ("bug in lipcert" in str(problem))
            continue
        x = rng.normal(size=shape)
        truth = ReferenceEvaluator(made).run(None, {"x": x})[0]
        found = module(torch.from_numpy(x).reshape(1, *module.meta["input_shape"])).numpy()
        assert np.abs(found.reshape(truth.shape) - truth).max() <= 1e-10, seed
        read += 1
    assert read
    assert not bugs


class Waves(nn.Module):
    """A filter between two transforms, and the sizes of a short-time one."""

    def forward(self, x: Tensor) -> Tensor:
        near = torch.fft.irfft(torch.fft.rfft(torch.tanh(x)) * torch.arange(9.0), n=16)
        window = torch.tensor([0.0, 0.25, 0.5, 1.0, 1.0, 0.5, 0.25, 0.0])  # float32 numbers: the file holds the same
        return torch.stft(near, 8, 4, window=window, center=False, return_complex=True).abs().flatten(1)


@pytest.mark.slow
def test_what_torch_exports_has_the_bound_of_the_torch_model(tmp_path: Path) -> None:
    box = lipcert.Box(-torch.ones(16), torch.ones(16))
    for wave in (Waves(), nn.Sequential(nn.Linear(16, 8), nn.Tanh(), Parts())):
        x, path = torch.full((1, 16), 0.1), tmp_path / "net.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(wave.eval(), (x,), str(path), dynamo=True, verbose=False)
        found = [lipcert.bound(one, x, method="autolip", domain=box).value for one in (path, wave)]
        assert found[0] == pytest.approx(found[1], rel=1e-9)


class Parts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.fft2(x.reshape(len(x), 2, 4))).flatten(1)
