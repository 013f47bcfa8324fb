"""ONNX files: the same network as from torch, what the file computes, certificates that verify with the file."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from typer.testing import CliRunner

import lipcert
from lipcert.capture.onnx.file import Tensors
from lipcert.capture.onnx.node import translated_ops
from lipcert.capture.onnx.shapes import readings
from lipcert.capture.torch_export import capture
from lipcert.cli.common import app
from lipcert.errors import CaptureError, InputError, UnsupportedOpError
from tests.onnx_files import constant, convolutional, graph, mlp, recurrent, saved

N = helper.make_node
X = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))


def torch_mlp(model: Any) -> nn.Sequential:
    held = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)).to(held["w"].dtype).eval()
    net.load_state_dict({"0.weight": held["w"], "0.bias": held["b"], "2.weight": held["v"].t()})
    return net


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_the_same_weights_are_the_same_network(kind: int, tmp_path: Path) -> None:
    model = mlp(kind=kind)
    module, net = lipcert.load_onnx(saved(model, tmp_path)), torch_mlp(model)
    assert capture(module, X).fingerprint == capture(net, X).fingerprint


def test_a_certificate_verifies_with_the_file_and_with_the_torch_model(tmp_path: Path) -> None:
    model = mlp(shape=("batch", "n"))
    path, net = saved(model, tmp_path), torch_mlp(model)
    found = lipcert.bound(path, X, method="lipsdp")
    found.save(tmp_path / "c.lipcert")
    assert lipcert.verify(tmp_path / "c.lipcert", path, X).value == found.value
    assert lipcert.verify(tmp_path / "c.lipcert", net, X).value == found.value
    other = torch_mlp(model)
    other[0].bias.data += 1.0
    saved(mlp(shape=(1, 4), kind=TensorProto.DOUBLE), tmp_path, "other.onnx")
    for changed in (other, tmp_path / "other.onnx"):
        with pytest.raises(lipcert.CertificateError, match="another model"):
            lipcert.verify(tmp_path / "c.lipcert", changed, X)


def test_the_command_line_takes_a_file_with_dynamic_axes(tmp_path: Path) -> None:
    path = str(saved(mlp(shape=("batch", "n")), tmp_path))
    run = CliRunner().invoke(app, ["bound", path, "--method", "autolip", "--json", "--input-shape", "4"])
    assert run.exit_code == 0
    value = json.loads(run.stdout)["bound"]
    assert value == lipcert.bound(torch_mlp(mlp()), X, method="autolip").value
    run = CliRunner().invoke(app, ["bound", path, "--method", "autolip", "--json"])
    assert run.exit_code == 2
    assert "--input-shape" in json.loads(run.stdout)["message"]


def test_networks_of_vnn_comp_as_they_are(tmp_path: Path) -> None:
    """Leading normalisation, a 1×1×1×5 input, MatMul and Add, a box from a .vnnlib file: the Jacobian is below."""
    rng = np.random.default_rng(3)
    w, v = rng.normal(size=(5, 6)).astype(np.float32), rng.normal(size=(6, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"]), helper.make_node("Div", ["a", "range"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"], axis=1), helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("Add", ["d", "bias"], ["e"]), helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]  # fmt: skip
    scale = np.array([0.5, 2.0, 1.0, 4.0, 8.0], np.float32)
    held = [constant("mean", rng.normal(size=(1, 1, 1, 5))), constant("range", scale.reshape(1, 1, 1, 5))]
    held += [constant("w", w), constant("v", v), constant("bias", rng.normal(size=6))]
    path = saved(graph(nodes, (1, 1, 1, 5), held, opset=9), tmp_path)
    (tmp_path / "p.vnnlib").write_text(
        "; a property\n" + "".join(f"(declare-const X_{k} Real)\n" for k in range(5)) + "(declare-const Y_0 Real)\n"
        + "".join(f"(assert (<= X_{k} 0.6))(assert (>= X_{k} -0.1))\n" for k in range(5))
        + "(assert (or (and (<= Y_0 3.99)) (and (>= Y_0 5.0))))\n"
    )  # fmt: skip
    box = lipcert.read_vnnlib(tmp_path / "p.vnnlib", (1, 1, 5))
    module = lipcert.load_onnx(path)
    assert module.meta["input_shape"] == (1, 1, 5)
    bound = lipcert.bound(path, torch.zeros(1, 1, 1, 5), domain=box, method="lipsdp").value
    points = box.lower + torch.rand(50, 1, 1, 5, generator=torch.Generator().manual_seed(0)) * (box.upper - box.lower)
    jacobians = [torch.autograd.functional.jacobian(module, p[None].float()).reshape(5, 5) for p in points]
    low = max(float(torch.linalg.matrix_norm(j, 2)) for j in jacobians)
    # On the whole space the activations that are all on are a network, too.
    assert low <= bound <= np.linalg.norm(w / scale[:, None], 2) * np.linalg.norm(v, 2) * 1.0001
    command = ["bound", str(path), "--method", "lipsdp", "--json", "--box", *[str(tmp_path / "p.vnnlib")] * 2]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["bound"] == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize(
    "model", [convolutional(), pytest.param(recurrent(), marks=pytest.mark.slow)], ids=["convolutional", "recurrent"]
)
def test_bounds_are_above_what_onnxruntime_shows(model: Any, tmp_path: Path) -> None:
    import onnxruntime

    path = saved(model, tmp_path)
    module = lipcert.load_onnx(path)
    shape = module.meta["input_shape"]
    bound = lipcert.bound(path, torch.zeros(1, *shape), method="autolip").value
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    declared = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(4)
    for _ in range(100):
        a = rng.normal(size=declared).astype(np.float32)
        b = a + 0.1 * rng.normal(size=declared).astype(np.float32)
        fa, fb = (session.run(None, {"x": one})[0].astype(float) for one in (a, b))
        assert np.linalg.norm(fa - fb) <= bound * np.linalg.norm(a.astype(float) - b) * (1 + 1e-4)


def test_readings() -> None:
    assert readings([1, 3, 4], None)[0].example == (3, 4)
    assert readings([None, 3, 4], None)[0].declared == (1, 3, 4)
    assert readings([0, 5], None)[0].example == (5,)  # 0 is how some exporters write a dynamic axis
    assert readings([7], None)[0] == readings([7], (7,))[0]
    assert readings([784, 1], None)[0].doubtful
    assert not readings([784, 1], (784, 1))[0].doubtful
    assert [r.declared for r in readings(None, (2,))] == [(1, 2), (2,)]
    for declared, shape in (([4, 3], (3,)), ([None, None], None), (None, None), ([], None), ([1, 3], (4,))):
        with pytest.raises(InputError, match=r"input_shape|--input-shape|without axes"):
            readings(declared, shape)


def test_an_input_without_a_batch_axis_is_one_example_and_a_batch_is_not(tmp_path: Path) -> None:
    flat = [helper.make_node("Reshape", ["x", "one"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    held = [constant("one", [1, -1], np.int64), constant("w", np.eye(6, 2))]
    module = lipcert.load_onnx(saved(graph(flat, (6, 1), held), tmp_path))
    assert module.meta["input_shape"] == (6, 1)
    assert module(torch.arange(6.0).reshape(1, 6, 1)).tolist() == [[0.0, 1.0]]
    path = saved(graph([helper.make_node("Relu", ["x"], ["y"])], (6, 3)), tmp_path)
    with pytest.raises(InputError, match="batch of 6"):
        lipcert.load_onnx(path)
    assert lipcert.load_onnx(path, (6, 3)).meta["input_shape"] == (6, 3)
    with pytest.raises(InputError, match="read for an input of shape"):
        module(torch.zeros(2, 6, 1))


def test_a_coupled_batch_is_told(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])]
    with pytest.raises(CaptureError, match="other examples of its batch"):
        lipcert.load_onnx(saved(graph(nodes, ("b", 3)), tmp_path))


def test_names_of_tensors_are_free(tmp_path: Path) -> None:
    names = ["graph", "class", "forward", "meta", "0", "a.b", "a_b", "precision", "training", "code", "é", "\x00", " "]
    held = [constant(name, np.full(3, 2.0**k)) for k, name in enumerate(names)]
    module = lipcert.load_onnx(saved(graph([N("Sum", ["x", *names], ["y"])], (1, 3), held), tmp_path))
    assert module(torch.zeros(1, 3))[0, 0] == 2.0 ** len(names) - 1
    assert lipcert.bound(module, torch.zeros(1, 3), method="autolip").value == pytest.approx(1.0)


def test_one_of_several_outputs(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("ArgMax", ["x"], ["z"], axis=1)]
    path = saved(graph(nodes, (1, 3), outputs=("y", "z")), tmp_path)
    with pytest.raises(InputError, match=r"outputs 'y', 'z'; name one"):
        lipcert.load_onnx(path)
    module = lipcert.load_onnx(path, output="y")
    assert lipcert.bound(module, torch.zeros(1, 3), method="autolip").value == 1.0


def test_what_jumps_is_refused_by_the_name_of_its_node(tmp_path: Path) -> None:
    path = saved(graph([helper.make_node("Sign", ["x"], ["y"], name="here")], (1, 3)), tmp_path)
    with pytest.raises(lipcert.NotLipschitzError, match="'here' \\(Sign\\)"):
        lipcert.bound(path, torch.zeros(1, 3))
    for node, words in (
        (helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], name="q"), "'q' .*rounds"),
        (helper.make_node("Unique", ["x"], ["y"], name="u"), "'u' .*not translated"),
        (helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft"), "com.microsoft"),
        (helper.make_node("Relu", ["x"], ["y"], slope=1), "'slope' is not known"),
    ):
        model = graph([node], (1, 3), [constant("s", 1.0), constant("z", 0, np.uint8)])
        with pytest.raises(UnsupportedOpError, match=words):
            lipcert.load_onnx(saved(model, tmp_path))


def test_without_onnxruntime_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.warns(UserWarning, match="not compared with onnxruntime: onnxruntime is not installed"):
        lipcert.load_onnx(saved(mlp(), tmp_path))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"lipcert\[onnx\]"):
        lipcert.load_onnx(saved(mlp(), tmp_path))


def test_external_data_of_its_own_folder_and_of_no_other(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    model = mlp()
    weight = model.graph.initializer[0]
    raw = weight.raw_data
    for place in (home / "sub" / "w.bin", tmp_path / "w.bin"):
        place.write_bytes(b"1234" + raw)
    (home / "link.bin").symlink_to(tmp_path / "w.bin")
    (home / "inner.bin").symlink_to(home / "sub" / "w.bin")

    def at(location: str, offset: int = 4, length: int | None = None) -> Path:
        weight.ClearField("raw_data")
        del weight.external_data[:]
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length or len(raw))):
            weight.external_data.add(key=key, value=str(value))
        return saved(model, home)

    expected = capture(torch_mlp(mlp()), X).fingerprint
    for location in ("sub/w.bin", "./sub/w.bin", "inner.bin"):
        assert capture(lipcert.load_onnx(at(location)), X).fingerprint == expected
    outside = ("../w.bin", str(tmp_path / "w.bin"), "link.bin", "sub/../../w.bin", "", "..\\w.bin", "sub", "C:w.bin")
    for location in outside:
        with pytest.raises(CaptureError, match="Nothing outside that folder is read"):
            lipcert.load_onnx(at(location))
    with pytest.raises(CaptureError, match="not there"):
        lipcert.load_onnx(at("none.bin"))
    for offset, length in ((5, None), (-1, None), (4, 8), (1 << 62, None)):
        with pytest.raises(CaptureError, match=r"do not lie in w\.bin"):
            lipcert.load_onnx(at("sub/w.bin", offset, length))
    os.remove(home / "sub" / "w.bin")
    os.mkfifo(home / "sub" / "w.bin")  # never opened
    with pytest.raises(CaptureError, match="or no file"):
        lipcert.load_onnx(at("sub/w.bin"))


def _attention(model: Any) -> Any:
    """A graph that calls a function of the file, which calls Attention, in a branch that a constant chooses."""
    inner = helper.make_node("Attention", ["q", "k", "k"], ["z"], is_causal=1)
    inner.attribute.add(name="scale", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    imports = [helper.make_opsetid("", 23)]
    model.functions.append(helper.make_function("own", "Attend", ["q", "k"], ["z"], [inner], imports, ["factor"]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def test_functions_and_branches_are_written_out(tmp_path: Path) -> None:
    out = [helper.make_tensor_value_info("b", 1, None)]
    call = helper.make_node("Attend", ["x", "x"], ["b"], domain="own", factor=0.5)
    branches = [helper.make_graph([one], name, [], out) for one, name in ((call, "t"), (call, "e"))]
    branches[1].node[0].op_type = "Loop"
    branch = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    model = _attention(graph([branch], (1, 2, 3, 4), [constant("c", True, np.bool_)], opset=23))
    with pytest.warns(UserWarning, match="onnxruntime does not take the file"):  # the other branch is a broken loop
        module = lipcert.load_onnx(saved(model, tmp_path))
    x = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.5)
    assert torch.allclose(module(x), expected, atol=1e-6)
    box = lipcert.Box(-0.1 * torch.ones(2, 3, 4), 0.1 * torch.ones(2, 3, 4))
    bound = lipcert.bound(module, x, domain=box, method="autolip").value
    jacobian = torch.autograd.functional.jacobian(module, 0.1 * x.clamp(-1, 1)).reshape(24, 24)
    assert float(torch.linalg.matrix_norm(jacobian, 2)) <= bound < np.inf
    model.functions[0].node[0].CopyFrom(helper.make_node("Attend", ["q", "k"], ["z"], domain="own"))
    with pytest.raises(CaptureError, match="more than 32 deep"):
        lipcert.load_onnx(saved(model, tmp_path))


FOUR = [constant(name, [1.0, 2.0, 0.5, 3.0]) for name in ("s", "b", "m", "v")]


@pytest.mark.parametrize(
    ("opset", "nodes", "held"),
    [
        (8, [N("Clip", ["x"], ["y"], min=-0.5, max=0.25)], []),
        (8, [N("Clip", ["x"], ["y"], max=0.25)], []),
        (8, [N("Slice", ["x"], ["y"], starts=[0, -3], ends=[9, 9], axes=[2, 3])], []),
        (8, [N("Pad", ["x"], ["y"], pads=[0, 0, 1, 2, 0, 0, -1, 0], value=2.0)], []),
        (8, [N("Pad", ["x"], ["y"], pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="reflect")], []),
        (8, [N("Softmax", ["x"], ["y"], axis=2)], []),
        (8, [N("LogSoftmax", ["x"], ["y"])], []),
        (8, [N("TopK", ["x"], ["y", "i"], k=2, axis=1)], []),
        (8, [N("Dropout", ["x"], ["y"], ratio=0.5)], []),
        (8, [N("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=0.1)], FOUR),
        (9, [N("Split", ["x"], ["y", "z"], axis=1, split=[1, 3])], []),
        (8, [N("Split", ["x"], ["z", "y"], axis=3)], []),
        (8, [N("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 1.5])], []),
        (9, [N("Upsample", ["x", "k"], ["y"])], [constant("k", [1, 1, 3, 2])]),
        (10, [N("Resize", ["x", "k"], ["y"])], [constant("k", [1, 1, 0.5, 2])]),
        (11, [N("ReduceSum", ["x"], ["y"], axes=[1, -1], keepdims=0)], []),
        (8, [N("ReduceMax", ["x"], ["r"], axes=[0]), N("Unsqueeze", ["r"], ["q"], axes=[0, 2]),
             N("Squeeze", ["q"], ["y"], axes=[2])], []),
        (8, [N("Squeeze", ["x"], ["q"]), N("Transpose", ["q"], ["y"])], []),
        (8, [N("Flatten", ["x"], ["y"], axis=3)], []),
        (8, [N("PRelu", ["x", "k"], ["y"])], [constant("k", [[[0.25]], [[0.5]], [[2.0]], [[-1.0]]])]),
        (8, [N("PRelu", ["x", "k"], ["y"])], [constant("k", [0.25, 0.5, 2.0, -1.0])]),
        (8, [N("MaxPool", ["x"], ["y"], kernel_shape=[2, 3], pads=[0, 1, 1, 2], strides=[1, 2])], []),
        (8, [N("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2])], []),
        (8, [N("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], auto_pad="SAME_LOWER")], []),
        (10, [N("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1)], []),
        (8, [N("LRN", ["x"], ["y"], size=3, alpha=0.5, beta=0.5, bias=2.0)], []),
        (8, [N("HardSigmoid", ["x"], ["y"], alpha=0.5), ], []), (8, [N("Selu", ["x"], ["y"])], []),
        (8, [N("Gemm", ["f", "k", "c"], ["y"], alpha=0.5, beta=2.0, transA=1)],
         [constant("k", [[1.0, 2.0]]), constant("c", [[3.0]])]),
        (12, [N("Einsum", ["x", "k"], ["y"], equation="nchw,cd->ndhw")], [constant("k", np.eye(4, 2))]),
        (11, [N("ConvTranspose", ["x", "k"], ["y"], strides=[2, 2], pads=[0, 1, 1, 0], output_padding=[1, 0])],
         [constant("k", np.arange(72.0).reshape(4, 2, 3, 3))]),
        (11, [N("Conv", ["x", "k"], ["y"], auto_pad="SAME_LOWER", group=2)],
         [constant("k", np.arange(32.0).reshape(4, 2, 2, 2))]),
        (11, [N("CumSum", ["x", "k"], ["y"], exclusive=1, reverse=1)], [constant("k", 1, np.int64)]),
        (11, [N("ScatterND", ["x", "k", "u"], ["y"])],
         [constant("k", [[0, 1], [0, -1]], np.int64), constant("u", np.ones((2, 4, 4)))]),
        (13, [N("DequantizeLinear", ["k", "u", "z"], ["w"], axis=0), N("Mul", ["x", "w"], ["y"])],
         [constant("k", [[-3], [4], [0], [7]], np.int8), constant("u", [0.5, 2.0, 1.0, 0.1]),
          constant("z", [1, 0, 0, -2], np.int8)]),
    ],
    ids=lambda p: p[0].op_type if isinstance(p, list) and p and hasattr(p[0], "op_type") else str(p)[:2],
)  # fmt: skip
def test_forms_of_every_operator_set(opset: int, nodes: list[Any], held: list[Any], tmp_path: Path) -> None:
    """onnxruntime is the judge: a difference is an error, no comparison a warning."""
    if any("f" in node.input for node in nodes):
        nodes = [N("Flatten", ["x"], ["f"]), *nodes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lipcert.load_onnx(saved(graph(nodes, (1, 4, 4, 4), held, opset), tmp_path))


def test_tensors_of_every_type_in_every_form(tmp_path: Path) -> None:
    """Raw bytes, typed fields and external bytes give the same numbers."""
    reader = Tensors(tmp_path)
    for number in (1, 2, 3, 5, 6, 7, 9, 10, 11, 16):
        dtype = helper.tensor_dtype_to_np_dtype(number)
        values = np.array([[1, 0, 3], [100, 1, 0]]).astype(dtype)
        raw = onnx.numpy_helper.from_array(values, "t")
        typed = helper.make_tensor("t", number, (2, 3), values.reshape(-1).tolist())
        (tmp_path / f"{number}.bin").write_bytes(raw.raw_data)
        outside = TensorProto(name="t", data_type=number, dims=[2, 3], data_location=TensorProto.EXTERNAL)
        outside.external_data.add(key="location", value=f"{number}.bin")
        for proto in (raw, typed, outside):
            found = reader.tensor(proto, "a tensor")
            assert found.shape == (2, 3)
            assert found.double().tolist() == values.astype(float).tolist(), number
    for number in (0, 4, 8, 12, 13, 14, 17, 21, 99):
        with pytest.raises(CaptureError, match="which lipcert does not read"):
            reader.tensor(TensorProto(data_type=number), "a tensor")


# -- slow: exporters, and the specification's own cases ----------------------------------------------------------


class Residual(nn.Module):
    """Layer normalisation and a skip, with numbers that float32 holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.LayerNorm(6, eps=2.0**-17), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(x + self.b(self.a(x))))


class Pooled(nn.Module):
    """Convolutions, pools and activations that exporters take apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Recurrent(nn.Module):
    """An LSTM or GRU in both directions."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cells, self.last = kind(3, 4, batch_first=True, bidirectional=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(x)[0][:, -1])


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(
    ("model", "shape", "same"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.125), nn.Linear(8, 3)), (4,), True),
        (Residual(), (6,), True), (Pooled(), (1, 16, 16), True), (Recurrent(nn.LSTM), (3, 3), False),
        (Recurrent(nn.GRU), (3, 3), False),
    ],
    ids=["sequential", "residual", "pooled", "lstm", "gru"],
)  # fmt: skip
def test_what_torch_exports_is_what_torch_is(
    model: nn.Module, shape: tuple[int, ...], same: bool, dynamo: bool, tmp_path: Path
) -> None:
    x, path = torch.zeros(1, *shape), tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), str(path), dynamo=dynamo, verbose=False)
    module = lipcert.load_onnx(path)
    if same:
        assert capture(module, x).fingerprint == capture(model, x).fingerprint
    for norm in ((2, 2), (np.inf, np.inf)):
        box = lipcert.Box(-torch.ones(shape), torch.ones(shape))
        found = [lipcert.bound(m, x, method="autolip", norm=norm, domain=box).value for m in (module, model)]
        assert found[0] == pytest.approx(found[1], rel=1e-9)


#: Operators whose cases in the specification's tests have no floating input, or output.
_WITHOUT_CASES = frozenset(
    "And ArgMax ArgMin BatchNormalization Cast CastLike Constant ConstantOfShape Equal GRU Greater GreaterOrEqual If "  # noqa: SIM905
    "IsNaN Less LessOrEqual NonZero Not Or Range Shape Size Trilu Xor Upsample".split()
)


@pytest.mark.slow
def test_every_operator_computes_what_the_specification_says(tmp_path: Path) -> None:
    """The cases of onnx itself, with their first floating input as the input; refused by name, or right."""
    from onnx.backend.test.case.node import collect_testcases

    known, right, captured = set(translated_ops()), set(), 0
    made = {s.name for s in onnx.defs.get_all_schemas() if s.has_function or s.has_context_dependent_function}
    for case in collect_testcases(None):
        model = case.model
        if model is None or not {n.op_type for n in model.graph.node} <= known | made or "expanded" in case.name:
            continue
        inputs, outputs = case.data_sets[0]
        if any(not isinstance(i, (np.ndarray, np.generic)) for i in (*inputs, *outputs)):
            continue
        arrays = [np.asarray(i) for i in inputs]
        floats = [k for k, a in enumerate(arrays) if a.dtype.kind == "f" and a.size and a.ndim]
        if not floats:
            continue
        path = saved(_of_one_input(model, arrays, floats[0]), tmp_path)
        x = torch.from_numpy(arrays[floats[0]].copy())
        for output, expected in zip(model.graph.output, outputs, strict=True):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    module = lipcert.load_onnx(path, tuple(x.shape), output.name)
            except InputError:
                module = lipcert.load_onnx(path, tuple(x.shape[1:]), output.name)
            except CaptureError:  # UnsupportedOpError is one
                continue
            example = x.reshape(1, *module.meta["input_shape"])
            found = module(example).double().numpy().reshape(expected.shape)
            half = np.float16 in (expected.dtype, arrays[floats[0]].dtype)
            rough = 1e-2 if half else 1e-3
            close = np.allclose(found, expected.astype(float), rtol=rough, atol=1e-5, equal_nan=True)
            assert close or case.name == "test_l2normalization_axis_0", case.name  # 0/0 there is 0, at one point
            right |= {n.op_type for n in model.graph.node}
            if bool(torch.isfinite(example).all()) and captured < 200:
                try:
                    capture(module, example)
                except (lipcert.NotLipschitzError, UnsupportedOpError):
                    continue
                captured += 1
    assert (known | {"Attention", "RotaryEmbedding", "MeanVarianceNormalization"}) - right - _WITHOUT_CASES == set()
    assert captured == 200


def _of_one_input(model: Any, arrays: list[Any], place: int) -> Any:
    new = onnx.ModelProto()
    new.CopyFrom(model)
    kept = new.graph.input[place]
    for info, array in zip(model.graph.input, arrays, strict=True):
        if info.name != kept.name:
            new.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    one = onnx.ValueInfoProto()
    one.CopyFrom(kept)
    del new.graph.input[:]
    new.graph.input.append(one)
    return new
