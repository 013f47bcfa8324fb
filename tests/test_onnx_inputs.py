"""ONNX files of several inputs: which vary, which are fixed, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from typer.testing import CliRunner

import lipcert
from lipcert.cli.common import app
from lipcert.errors import CaptureError, InputError
from tests.onnx_files import V, W, constant, graph, saved, state_space

RNG = np.random.default_rng(7)
N = helper.make_node


class StateSpace(nn.Module):
    """The same in torch."""

    def forward(self, x: Tensor, h: Tensor, scale: float) -> Tensor:
        return scale * torch.tanh(x @ torch.from_numpy(W)) + h @ torch.from_numpy(V)


def norm(matrix: Any) -> float:
    return float(np.linalg.norm(np.asarray(matrix, np.float64), 2))


def test_a_file_of_several_inputs_is_the_torch_model_of_them(tmp_path: Path) -> None:
    path = saved(state_space(), tmp_path)
    example = {"x": torch.zeros(1, 3), "h": np.zeros((1, 2), np.float32), "which": 16, "scale": 2.0}
    given = (torch.zeros(1, 3), torch.zeros(1, 2), 2.0)
    both = lipcert.bound(path, example, method="lipsdp", budget=5)
    assert norm(np.vstack([2 * W, V])) <= both.value <= 1.001 * norm(np.vstack([2 * W, V]))
    both.save(tmp_path / "b.lipcert")
    assert lipcert.verify(tmp_path / "b.lipcert", path, example).value == both.value
    assert lipcert.bound(StateSpace(), given, method="autolip").value == pytest.approx(
        lipcert.bound(path, example, method="autolip").value, rel=1e-9
    )
    for wrt, matrix in (("x", 2 * W), ("h", V), (["h", "x"], np.vstack([V, 2 * W]))):
        found = lipcert.bound(path, example, wrt=wrt, method="autolip")
        assert norm(matrix) <= found.value
        if wrt != ["h", "x"]:
            assert found.value <= norm(matrix) * (1 + 1e-6)
    other = lipcert.bound(path, {**example, "which": 8}, method="autolip")  # the other branch reads no state
    assert norm(2 * W) <= other.value <= norm(2 * W) * (1 + 1e-6)
    with pytest.raises(lipcert.CertificateError, match="another model"):
        lipcert.verify(tmp_path / "b.lipcert", path, {**example, "scale": 2.0000002})
    module = lipcert.load_onnx(path, {"x": (3,), "h": (2,)}, wrt=["h", "x"], fixed={"which": 16, "scale": 2})
    x, h = torch.randn(1, 3), torch.randn(1, 2)
    assert torch.allclose(module(torch.cat([h, x], 1)), StateSpace()(x, h, 2.0), atol=1e-6)


def test_the_command_line_fixes_inputs(tmp_path: Path) -> None:
    path = str(saved(state_space(), tmp_path))

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = CliRunner().invoke(app, ["bound", path, "--method", "autolip", "--json", *arguments])
        return done.exit_code, json.loads(done.stdout)

    np.save(tmp_path / "h.npy", np.ones((1, 2)))
    one = ["--wrt", "x", "--fix", "which=16", "--fix", "scale=2"]
    for state in ("0", "0:1,2", str(tmp_path / "h.npy")):
        code, found = run(*one, "--fix", f"h={state}")
        assert code == 0
        assert norm(2 * W) <= found["bound"] <= norm(2 * W) * (1 + 1e-6)
    assert run(*one[2:], "--input-shape", "x=3;h=2")[1]["input_shape"] == [5]
    code, found = run(*one)
    assert code == 2
    assert "also reads 'h' (float32, ?×2): what does not vary needs a value" in found["message"]
    for wrong in (["--fix", "h"], ["--fix", "h=none.npy"], ["--fix", "h=0:a"], ["--fix", "h=0", "--fix", "h=1"]):
        assert run(*one, *wrong)[0] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrt": "x"}, r"also reads 'h' .*'which' \(int64, a number\), 'scale'"), ({"wrt": "z"}, "no input 'z'"),
        ({"fixed": {"z": 0}}, "no input 'z'"), ({"fixed": {"w": W}}, "no input 'w'"),
        ({"wrt": "which"}, "'which' holds int64 numbers"), ({"wrt": ["x", "x"]}, "named twice"),
        ({"wrt": "x", "fixed": {"x": 0}}, "named twice, or has a value"),
        ({"wrt": "x", "fixed": {"which": 16.5}}, "not a number of that type"),
        ({"wrt": "x", "fixed": {"scale": float("nan")}}, "not a number of that type"),
        ({"wrt": "x", "fixed": {"h": np.zeros((2, 1))}}, r"shape \(2, 1\)"),
        ({"wrt": "x", "fixed": {"h": "zero"}}, "is a str"), ({"fixed": {"which": 16, "scale": 1}}, "2 inputs .* vary"),
        ({"fixed": {"x": 0, "h": 0, "which": 16, "scale": 1}}, "nothing varies"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        lipcert.load_onnx(saved(state_space(), tmp_path), (3,), **options)


def test_token_ids_are_bounded_behind_their_embedding(tmp_path: Path) -> None:
    """A value inside the graph is the input, and one inside is the output."""
    table, head = RNG.normal(size=(9, 3)), RNG.normal(size=(12, 2))
    nodes = [
        N("Gather", ["table", "x"], ["e"]), N("Cast", ["x"], ["f"], to=1), N("Clip", ["f", "zero", "one"], ["m"]),
        N("Unsqueeze", ["m", "axis"], ["mask"]), N("Mul", ["e", "mask"], ["k"]), N("Flatten", ["k"], ["g"]),
        N("MatMul", ["g", "head"], ["z"]), N("Softmax", ["z"], ["y"]),
    ]  # fmt: skip
    held = [
        constant("table", table), constant("head", head), constant("zero", 0.0), constant("one", 1.0),
        constant("axis", [-1], np.int64),
    ]  # fmt: skip
    path = saved(graph(nodes, (1, 4), held, kind=TensorProto.INT64), tmp_path)
    module = lipcert.load_onnx(path, (4, 3), "z", "e", {"x": np.array([[5, 0, 2, 1]])})
    kept = head.astype(np.float32).reshape(4, 3, 2)[[0, 2, 3]].reshape(9, 2)
    found = lipcert.bound(module, torch.zeros(1, 4, 3), method="autolip").value
    assert norm(kept) <= found <= norm(kept) * (1 + 1e-9)
    with pytest.raises(InputError, match="also reads 'x'"):
        lipcert.load_onnx(path, (4, 3), "z", "e")


def test_two_examples_are_read_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file for a batch of two, beside each alone: an axis is a batch, or it is refused."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fixed = {"which": 16, "scale": 2.0, "h": np.ones((1, 2))}
    with pytest.warns(UserWarning, match="onnxruntime is not installed"):
        lipcert.load_onnx(saved(state_space(), tmp_path), (3,), wrt="x", fixed=fixed)
    model = state_space()
    model.graph.node.append(N("ReduceSum", ["y", "first"], ["total"], keepdims=1))
    model.graph.initializer.append(constant("first", [0], np.int64))
    model.graph.node.append(N("Sub", ["y", "total"], ["out"]))
    with pytest.raises(CaptureError, match="other examples of its batch"):
        lipcert.load_onnx(saved(model, tmp_path), (3,), output="out", wrt="x", fixed=fixed)


def test_messages_along_edges(tmp_path: Path) -> None:
    """Gathered, scaled and added up at constant places: a matrix."""
    nodes = [
        N("Gather", ["x", "from"], ["m"], axis=1), N("Mul", ["m", "two"], ["k"]),
        N("ScatterElements", ["zero", "to", "k"], ["y"], axis=1, reduction="add"),
    ]  # fmt: skip
    to = np.broadcast_to(np.array([[[1], [1], [0]]]), (1, 3, 2))
    held = [
        constant("from", [0, 2, 2], np.int64), constant("two", 2.0), constant("zero", np.zeros((1, 4, 2))),
        constant("to", to, np.int64),
    ]  # fmt: skip
    module = lipcert.load_onnx(saved(graph(nodes, (1, 4, 2), held, 18), tmp_path))
    edges = np.zeros((4, 4))
    edges[1, 0] = edges[1, 2] = edges[0, 2] = 2.0
    found = lipcert.bound(module, torch.zeros(1, 4, 2), method="autolip").value
    assert norm(edges) <= found <= norm(edges) * (1 + 1e-9)
