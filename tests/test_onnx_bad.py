"""Damaged and malicious ONNX and VNN-LIB files: a named error, little memory, nothing read outside, nothing written."""

import itertools
import random
import resource
import time
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

import lipcert
from lipcert.capture.onnx import limits
from lipcert.cli.common import app
from lipcert.errors import CaptureError, InputError, LipcertError
from tests.onnx_files import (
    changed,
    constant,
    convolutional,
    damaged,
    graph,
    mlp,
    recurrent,
    saved,
    spectral,
    state_space,
)

RELU = helper.make_node("Relu", ["x"], ["y"])
#: Bytes of memory that reading one of these small files may take beyond what the process has.
MEMORY = 1 << 30


def test_truncated_files(tmp_path: Path) -> None:
    content = mlp().SerializeToString()
    for length in (0, 1, 10, len(content) // 2, len(content) - 1):
        (tmp_path / "net.onnx").write_bytes(content[:length])
        with pytest.raises(CaptureError, match="no ONNX model, or truncated"):
            lipcert.load_onnx(tmp_path / "net.onnx")
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(CaptureError, match="cannot load"):
            lipcert.load_onnx(path)
    with pytest.raises(CaptureError, match="no such file"):
        lipcert.bound(tmp_path / "none.onnx", torch.zeros(1, 3))


def test_the_command_line_prints_one_line_and_writes_nothing(tmp_path: Path) -> None:
    model = graph([helper.make_node("No[red]pe\x1b[31m", ["x"], ["y"], name="[bold]n\x07\n")], (1, 3))
    path, out = saved(model, tmp_path), tmp_path / "out.lipcert"
    run = CliRunner().invoke(app, ["bound", str(path), "--save", str(out)])
    assert run.exit_code == 2
    assert run.stderr.startswith("CaptureError: ONNX node '[bold]n??' (No[red]pe?[31m)")
    assert run.stderr.count("\n") == 1
    assert not out.exists()


def _named(message: str, nodes: Any = (RELU,), *held: Any, opset: int = 17, shape: Any = (1, 3)) -> Any:
    return pytest.param(graph(nodes, shape, held, opset), message, id=message[:40])


def _doubled(copies: int) -> list[Any]:
    nodes, last = [], "x"
    for k in range(copies):
        nodes.append(helper.make_node("Concat", [last, last], [f"d{k}"], axis=1))
        last = f"d{k}"
    return [*nodes, helper.make_node("Relu", [last], ["y"])]


BOMB = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
MANY = [
    *(helper.make_node("ConstantOfShape", ["s"], [f"c{k}"]) for k in range(40)),
    helper.make_node("Sum", ["x", *(f"c{k}" for k in range(40))], ["y"]),
]
WIDE = [helper.make_node("Expand", ["one", "s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
TILED = [helper.make_node("Tile", ["x", "s"], ["y"])]
BROKEN = constant("w", np.zeros((2, 3)))
BROKEN.dims[:] = [1 << 40, 1 << 20]
CYCLE = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
TWICE = [RELU, helper.make_node("Tanh", ["x"], ["y"])]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        _named("shape (1000000, 1000000)", BOMB, constant("s", [10**6, 10**6], np.int64)),
        _named("shape (100000, 100000)", WIDE, constant("s", [10**5, 10**5], np.int64), constant("one", [[1.0]])),
        _named("too large", TILED, constant("s", [1, 10**9], np.int64)),
        _named("too large", _doubled(30)),
        _named("too large", shape=(1, 1 << 40)),
        _named("holds 6 entries", [helper.make_node("Add", ["x", "w"], ["y"])], BROKEN),
        _named("reads 'b', which nothing before it makes", [*CYCLE, helper.make_node("Relu", ["b"], ["y"])]),
        _named("reads 'nothing'", [helper.make_node("Add", ["x", "nothing"], ["y"])]),
        _named("makes 'y', which exists", TWICE),
        _named("two ONNX initializers are named 'w'", [RELU], constant("w", 1.0), constant("w", 2.0)),
        _named("nothing makes the ONNX output 'y'", [helper.make_node("Relu", ["x"], ["z"])]),
        _named("operator set 7", opset=7),
        _named("operator set 11 has no such operator", [helper.make_node("Gelu", ["x"], ["y"])], opset=11),
        _named("operator set 99", opset=99),
        _named("inputs, or lacks one", [helper.make_node("Add", ["x"], ["y"])]),
        _named("inputs, or lacks one", [helper.make_node("Relu", ["x", "x"], ["y"])]),
        _named("'axis' is missing", [helper.make_node("Concat", ["x", "x"], ["y"])]),
        _named("axis 7", [helper.make_node("Concat", ["x", "x"], ["y"], axis=7)]),
        _named("'alpha' is of another type", [helper.make_node("Elu", ["x"], ["y"], alpha=1)]),
        _named("is no number", [helper.make_node("Clip", ["x", "n"], ["y"])], constant("n", float("nan"))),
        _named("it clips to", [helper.make_node("Clip", ["x", "n"], ["y"])], constant("n", float("inf"))),
        _named("'alpha' is inf", [helper.make_node("Elu", ["x"], ["y"], alpha=float("inf"))]),
        _named("depends on the values of the input", [
            helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64), helper.make_node("Tile", ["x", "i"], ["y"]),
        ]),
        _named("loops are not unrolled", [helper.make_node("Loop", ["", "", "x"], ["y"])]),
        _named("draws random numbers", [helper.make_node("RandomNormalLike", ["x"], ["y"])]),
        _named("training mode", [helper.make_node("Dropout", ["x", "", "t"], ["y"])], constant("t", True, np.bool_)),
    ],
)  # fmt: skip
def test_every_fault_is_named(model: Any, message: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CaptureError) as caught:
        lipcert.load_onnx(saved(model, tmp_path))
    assert message in str(caught.value)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def test_many_constants_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMPUTED_BYTES", 1 << 22)
    path = saved(graph(MANY, (1, 3), [constant("s", [10**5, 3], np.int64)]), tmp_path)
    with pytest.raises(CaptureError, match="over 4 MiB"):
        lipcert.load_onnx(path)


def test_inputs_that_are_no_floating_tensor(tmp_path: Path) -> None:
    model = graph([RELU], (1, 3), kind=TensorProto.INT64)
    with pytest.raises(InputError, match=r"holds int64 numbers.*wrt="):
        lipcert.load_onnx(saved(model, tmp_path))
    model = graph([RELU], (1, 3))
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    with pytest.raises(InputError, match="a sequence"):
        lipcert.load_onnx(saved(model, tmp_path))


def test_tensors_in_one_file_may_be_the_same_but_not_overlap(tmp_path: Path) -> None:
    """Many tensors over the same bytes would fill any memory from a small file."""
    (tmp_path / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    nodes = [helper.make_node("Sum", ["x", *(f"w{k}" for k in range(5))], ["y"])]

    def model(offsets: list[int]) -> Path:
        held = []
        for k, offset in enumerate(offsets):
            tensor = TensorProto(name=f"w{k}", data_type=1, dims=[1, 8], data_location=TensorProto.EXTERNAL)
            for key, value in (("location", "w.bin"), ("offset", offset)):
                tensor.external_data.add(key=key, value=str(value))
            held.append(tensor)
        return saved(graph(nodes, (1, 8), held), tmp_path)

    module = lipcert.load_onnx(model([32] * 5))
    assert module(torch.zeros(1, 8))[0, 0] == 40.0
    with pytest.raises(CaptureError, match="overlap"):
        lipcert.load_onnx(model([0, 4, 8, 12, 16]))


# -- mutations --------------------------------------------------------------------------------------------------


#: Values for the file of several inputs; others have no such inputs, and are refused by name.
GIVEN = {"wrt": "x", "fixed": {"h": 0.5, "which": 16, "scale": 2.0}}


def _mutations(seeds: range) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    bases = [mlp(), convolutional(), recurrent(), mlp(shape=("b", 4)), spectral(), state_space()]
    for seed in seeds:
        rng = random.Random(seed)
        base = rng.choice(bases)
        options = GIVEN if base is bases[-1] and rng.random() < 0.9 else {}
        if rng.random() < 0.6:
            yield seed, damaged(base.SerializeToString(), rng), options
            continue
        for _ in range(rng.choice((1, 1, 2, 3))):
            base = changed(base, rng)
        yield seed, base.SerializeToString(), options


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 10_000), marks=pytest.mark.slow)], ids=len)
def test_mutated_files_are_read_or_refused_by_name(seeds: range, tmp_path: Path) -> None:
    path, read, bugs = tmp_path / "net.onnx", 0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed, content, options in _mutations(seeds):
        path.write_bytes(content)
        started = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                lipcert.load_onnx(path, **options)
            read += 1
        except LipcertError as problem:
            bugs += [seed] * ("bug in lipcert and not" in str(problem))
        assert time.monotonic() - started < 120.0, seed
    assert read
    assert not bugs
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.slow
def test_mutated_files_that_are_read_are_what_onnxruntime_runs(tmp_path: Path) -> None:
    """What still loads is captured, or refused by name."""
    captured, bugs = 0, []
    for seed, content, options in _mutations(range(20_000, 20_600)):
        path = tmp_path / "net.onnx"
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                module = lipcert.load_onnx(path, **options)
            lipcert.bound(module, torch.zeros(1, *module.meta["input_shape"]), method="autolip")
            captured += 1
        except LipcertError as problem:
            bugs += [seed] * ("bug in lipcert and not" in str(problem))
    assert captured > 30
    assert not bugs


# -- VNN-LIB ----------------------------------------------------------------------------------------------------

DECLARED = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)\n"
FIRST = DECLARED + "(assert (<= X_0 1))(assert (>= X_0 -1.5e-1))"


def test_a_box_is_rounded_outward(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(
        DECLARED + "(assert (and (<= X_0 0.1) (>= X_0 0.1) (<= X_0 7)))\n(assert (>= 1e-4000 X_1)) ; a remark )(\n"
        "(assert (or (and (<= -.5 X_1))))\n(assert (or (<= Y_0 1) (>= Y_0 2)))(assert (= Y_0 3))"
    )  # fmt: skip
    with pytest.raises(InputError, match="no bound of one by a number"):
        lipcert.read_vnnlib(path)  # exponents of four digits are not taken
    path.write_text(path.read_text().replace("1e-4000", "1e-400"))
    box = lipcert.read_vnnlib(str(path), (1, 2))
    low, high = box.lower.reshape(-1).tolist(), box.upper.reshape(-1).tolist()
    assert Fraction(low[0]) < Fraction("0.1") < Fraction(high[0])
    assert low[0] == np.nextafter(high[0], 0)
    assert low[1] == -0.5
    assert high[1] == 5e-324
    assert box.lower.shape == (1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FIRST, "X_1 no bound"), (DECLARED.replace("X", "Z"), "no inputs"), ("", "no inputs"),
        (FIRST + "(assert (<= X_1 1)", "bracket is not closed"), (FIRST + ") x", "outside any expression"),
        (FIRST + "(assert (<= X_7 1))", "does not declare"), (FIRST + "(assert (<= X_0 X_1))", "no bound"),
        (FIRST + "(assert (<= (+ X_0 X_1) 1))", "no bound"), (FIRST + "(assert (<= X_0 Y_0))", "no bound"),
        (FIRST + "(assert (or (<= X_1 0) (>= X_1 1)))", "one of 2 sets"), (FIRST + "(check-sat)", "no VNN-LIB"),
        (FIRST + "(assert (<= X_1 1))(assert (>= X_1 2))", "lower ≤ upper"), (FIRST + "(assert (not X_0))", "no bound"),
        (FIRST + "(assert (<= X_1 nan))", "no bound of"), ("(declare-const X_99999999999 Real)", "number of"),
        ("(" * 50_000 + ")" * 50_000, "no VNN-LIB"), ("é", "cannot read"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_other_properties_are_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        lipcert.read_vnnlib(path)


def test_the_shape_of_a_box_must_fit(tmp_path: Path) -> None:
    (tmp_path / "p.vnnlib").write_text(FIRST + "(assert (<= X_1 1))(assert (>= X_1 0))")
    with pytest.raises(InputError, match="2 inputs, input_shape"):
        lipcert.read_vnnlib(tmp_path / "p.vnnlib", (3,))
    with pytest.raises(InputError, match="cannot read"):
        lipcert.read_vnnlib(tmp_path / "none.vnnlib")
