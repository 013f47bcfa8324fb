"""Models made to give bounds that are too small: settings, wrapping numbers, functions, axes that are no batch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import lipcert
from tests.onnx_files import constant, graph, saved

HALF = TensorProto.FLOAT16
node = helper.make_node


def bounded(model: Any, folder: Path, *shape: int, dtype: torch.dtype = torch.float32) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lipcert.bound(saved(model, folder), torch.zeros(1, *shape, dtype=dtype), budget=2.0).value


@pytest.mark.parametrize("alpha", [0.1, 1e-8])
def test_settings_are_not_rounded_to_half_precision(alpha: float, tmp_path: Path) -> None:
    model = graph(
        [node("Gemm", ["x", "w"], ["y"], alpha=alpha)], (1, 2), [constant("w", np.eye(2), np.float16)], kind=HALF
    )
    assert bounded(model, tmp_path, 2, dtype=torch.float16) >= float(np.float32(alpha))
    hard = graph([node("HardSigmoid", ["x"], ["y"], alpha=alpha)], (1, 2), kind=HALF)
    assert bounded(hard, tmp_path, 2, dtype=torch.float16) >= float(np.float32(alpha))


def test_whole_numbers_are_scaled_without_rounding_or_refused(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", ["a", "s"], ["e"]), node("Mul", ["x", "e"], ["y"])]
    tensors = [constant("a", [32784], np.int32), constant("s", 1.0009765625, np.float16)]
    with pytest.raises(lipcert.UnsupportedOpError, match="rounded before they are scaled"):
        bounded(graph(nodes, (1, 1), tensors, opset=19, kind=HALF), tmp_path, 1, dtype=torch.float16)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_numbers_that_wrap_are_refused(kind: Any, tmp_path: Path) -> None:
    nodes = [
        node("Sub", ["a", "b"], ["d"]), node("Cast", ["d"], ["e"], to=TensorProto.FLOAT), node("Mul", ["x", "e"], ["y"])
    ]  # fmt: skip
    tensors = [constant("a", [3], kind), constant("b", [5], kind)]
    with pytest.raises(lipcert.CaptureError, match="which lipcert does not read"):
        bounded(graph(nodes, (1, 1), tensors), tmp_path, 1)


def function(domain: str, name: str, factor: float, **more: Any) -> Any:
    value = constant("", factor)
    body = [node("Constant", [], ["c"], value=value), node("Mul", ["a", "c"], ["b"])]
    return helper.make_function(domain, name, ["a"], ["b"], body, [helper.make_opsetid("", 17)], **more)


def test_functions_that_hide_others_are_refused(tmp_path: Path) -> None:
    hiding = graph([node("Relu", ["x"], ["y"])], (1, 2))
    hiding.functions.append(function("", "Relu", 0.01))
    overloads = graph([node("f", ["x"], ["y"], domain="d", overload="big")], (1, 2))
    overloads.opset_import.append(helper.make_opsetid("d", 1))
    overloads.functions.extend([function("d", "f", 100.0, overload="big"), function("d", "f", 1.0, overload="small")])
    for model in (hiding, overloads):
        with pytest.raises(lipcert.UnsupportedOpError, match="overload"):
            bounded(model, tmp_path, 2)


def test_functions_of_a_file_are_compared_too(tmp_path: Path) -> None:
    model = graph([node("f", ["x"], ["t"], domain="d"), node("Softmax", ["t"], ["y"], axis=0)], ("N", 4))
    model.opset_import.append(helper.make_opsetid("d", 1))
    model.functions.append(function("d", "f", 3.0))
    with pytest.raises(lipcert.CaptureError, match="other examples of its batch"):
        bounded(model, tmp_path, 4)


def test_a_first_axis_that_is_no_batch_is_refused(tmp_path: Path) -> None:
    total = graph([node("ReduceSum", ["x", "a"], ["y"], keepdims=0)], ("N", 4), [constant("a", [0], np.int64)])
    with pytest.raises(lipcert.CaptureError, match="it is no batch"):
        bounded(total, tmp_path, 4)
    tensors = [constant("a", [0], np.int64), constant("c", 0.009)]
    nodes = [
        node("ReduceSum", ["x", "a"], ["s"], keepdims=1), node("Mul", ["s", "c"], ["t"]), node("Add", ["t", "x"], ["y"])
    ]  # fmt: skip
    with pytest.raises(lipcert.CaptureError, match="other examples of its batch"):
        bounded(graph(nodes, ("N", 4), tensors), tmp_path, 4)


def test_a_submodule_with_hooks_is_no_input() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    model[0].register_forward_hook(lambda module, inputs, output: 0.01 * output)
    with pytest.raises(lipcert.InputError, match="forward hooks"):
        lipcert.bound(model, (torch.tensor([[1, 2, 3]]),), wrt="0", budget=2.0)


def test_a_constant_that_only_overflows_is_not_infinite() -> None:
    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Parameter(torch.tensor([-1e200], dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.maximum(x, self.c * 1e200 * 1e-200 + 5e200) * (x.flip(1) * 1e-200)

    with pytest.raises(lipcert.CaptureError):
        lipcert.bound(Overflow(), torch.ones(1, 2, dtype=torch.float64), domain=lipcert.Box(-1.0, 1.0), budget=2.0)


def test_a_single_half_precision_number_is_not_scaled_by_a_rounded_setting(tmp_path: Path) -> None:
    nodes = [node("ReduceSum", ["x"], ["s"], keepdims=0), node("HardSigmoid", ["s"], ["y"], alpha=0.1)]
    with pytest.raises(lipcert.UnsupportedOpError, match="export it in float32"):
        bounded(graph(nodes, (1, 2), kind=HALF), tmp_path, 2, dtype=torch.float16)


def test_an_axis_that_nothing_can_judge_is_refused(tmp_path: Path) -> None:
    """onnxruntime has no bfloat16 on a CPU; the file itself may be read for two examples."""
    model = graph([node("Softmax", ["x"], ["y"], axis=0)], ("N", 4), kind=TensorProto.BFLOAT16)
    with pytest.raises(lipcert.CaptureError, match="other examples of its batch"):
        bounded(model, tmp_path, 4, dtype=torch.bfloat16)
    nodes = [node("Reshape", ["x", "one"], ["f"]), node("Softmax", ["f"], ["y"], axis=0)]
    fixed = graph(nodes, ("N", 4), [constant("one", [1, 4], np.int64)], kind=TensorProto.BFLOAT16)
    with pytest.raises(lipcert.CaptureError, match="nothing tells whether it is a batch"):
        bounded(fixed, tmp_path, 4, dtype=torch.bfloat16)
