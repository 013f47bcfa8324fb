"""The command line: exit codes that can guard a model in CI, and JSON that is nothing but JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import lipcert
from lipcert.cli.main import app
from tests.zoo import mlp

SHAPE = ["--input-shape", "3"]
MODULE = '''
"""Factories for the tests of the command line."""
import torch
from torch import nn

print("imported")

def good():
    print("built")
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    return nn.Sequential(layer, nn.ReLU()).eval()

ready = good()

def other():
    return nn.Linear(3, 2).eval()

def training():
    return nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

def square():
    class Square(nn.Module):
        def forward(self, x):
            return x * x
    return Square().eval()

def fails():
    raise RuntimeError("no weights [/here]")

def number():
    return 3
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of factories in it; its name is new, because imports are cached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cli_models", raising=False)
    (tmp_path / "cli_models.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("cli_models", None)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def run_json(*arguments: object) -> Any:
    """Standard output must be one JSON value, strictly: no NaN, no Infinity, nothing around it."""
    result = run(*arguments, "--json")

    def refuse(text: str) -> Any:
        raise AssertionError(f"{text} is no JSON")

    return result.exit_code, json.loads(result.stdout, parse_constant=refuse)


AUTO = ["--method", "autolip"]


def test_bound(here: Path) -> None:
    result = run("bound", "cli_models:good", *SHAPE, *AUTO)
    assert result.exit_code == 0, result.output
    assert "Lipschitz constant ≤ 3" in result.stdout
    assert "linear" in result.stdout  # the breakdown
    code, value = run_json("bound", "cli_models:good", *SHAPE, *AUTO)
    assert code == 0
    assert value["bound"] == pytest.approx(3.0)
    assert (value["guarantee"], value["method"], value["norm"]) == ("rigorous", "autolip", [2, 2])
    assert value["input_shape"] == [3]
    assert value["certificate"] is None


def test_a_module_object_instead_of_a_factory(here: Path) -> None:
    assert run_json("bound", "cli_models:ready", *SHAPE, *AUTO)[1]["bound"] == pytest.approx(3.0)


@pytest.mark.parametrize(("norm", "expected"), [("1,1", 3.0), ("inf,inf", 3.0), ("2,2", 3.0)])
def test_norms(norm: str, expected: float, here: Path) -> None:
    assert run_json("bound", "cli_models:good", *SHAPE, *AUTO, "--norm", norm)[1]["bound"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("limit", "code"), [("3.1", 0), ("2.9", 1), ("0", 1), ("-1", 1), ("inf", 0), ("nan", 2), ("x", 2)]
)
def test_max_guards_a_model(limit: str, code: int, here: Path) -> None:
    assert run("bound", "cli_models:good", *SHAPE, *AUTO, "--max", limit).exit_code == code
    if limit != "x":
        found, value = run_json("bound", "cli_models:good", *SHAPE, *AUTO, "--max", limit)
        assert found == code
        assert ("error" in value) is (code == 2)


def domains(here: Path) -> list[tuple[list[object], str]]:
    np.save(here / "center.npy", np.array([0.5, 0.5, 0.5]))
    np.save(here / "low.npy", np.array([[-1, 0, -2]]))
    return [
        (["--ball", "center.npy", "--radius", 0.25, "--p", 2], "l2 ball of radius 0.25"),
        (["--ball", 0, "--radius", "1e-1"], "linf ball of radius 0.1"),
        (["--box", -1, 1], "box [-1, 1]"),
        (["--box", "low.npy", "inf"], "box"),
        (
            ["--box", 0, 1, "--ball", -0.25, "--radius", 0.5, "--p", "inf"],
            "linf ball of radius 0.5 within the box [0, 1]",
        ),
    ]


def test_domains(here: Path) -> None:
    for options, text in domains(here):
        code, value = run_json("bound", "cli_models:good", *SHAPE, *AUTO, *options)
        assert (code, value["domain"]) == (0, text)
        assert f"on the {text};" in run("bound", "cli_models:good", *SHAPE, *AUTO, *options).stdout
        code, value = run_json("lower", "cli_models:good", *SHAPE, "--budget", 0.1, *options)
        assert (code, value["domain"]) == (0, text)
    options, text = domains(here)[-1]
    few = ["--budget", 0.1, "--lower-budget", 0.1]
    code, value = run_json("compare", "cli_models:good", *SHAPE, "--norm", "1,2", *few, *options)
    assert (code, value["domain"]) == (0, text)
    assert run_json("bound", "cli_models:good", *SHAPE, *AUTO)[1]["domain"] is None


def test_a_certificate_on_a_domain(here: Path) -> None:
    options, text = domains(here)[-1]
    assert run("bound", "cli_models:good", *SHAPE, *AUTO, *options, "--save", "c.lipcert").exit_code == 0
    code, value = run_json("verify", "c.lipcert", "cli_models:good", *SHAPE)
    assert (code, value["domain"]) == (0, text)


@pytest.mark.few(24)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--radius", 1], "--ball CENTER.npy"),
        (["--p", 2], "--ball CENTER.npy"),
        (["--ball", 0], "--ball needs --radius"),
        (["--ball", "none.npy", "--radius", 1], "there is no such file"),
        (["--ball", "cli_models.py", "--radius", 1], "cannot read cli_models.py as a .npy file"),
        (["--ball", "objects.npy", "--radius", 1], "cannot read objects.npy"),
        (["--ball", "both.npz", "--radius", 1], "several arrays"),
        (["--ball", "wide.npy", "--radius", 1], r"shape (4,), one example of the model's input has (3,)"),
        (["--ball", 0, "--radius", -1], "finite radius"),
        (["--ball", 0, "--radius", "nan"], "finite radius"),
        (["--ball", 0, "--radius", 1, "--p", 3], "p in {1, 2, inf}"),
        (["--ball", 0, "--radius", 1, "--p", "two"], "--p must be 1, 2 or inf"),
        (["--ball", "nan", "--radius", 1], "NaN"),
        (["--box", 1, 0], "lower ≤ upper"),
        (["--box", 0, "high"], "'high' is no number"),
        (["--box", 0, 1, "--ball", 3, "--radius", 1], "no point in common"),
    ],
)
@pytest.mark.parametrize("command", ["bound", "lower", "compare"])
def test_unusable_domains(command: str, options: list[object], words: str, here: Path) -> None:
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("wide.npy", np.zeros(4))
    np.savez("both.npz", a=np.zeros(3), b=np.zeros(3))
    code, value = run_json(command, "cli_models:good", *SHAPE, *options)
    assert code == 2
    assert value["error"] == "InputError"
    assert words in value["message"]


def test_lower(here: Path) -> None:
    result = run("lower", "cli_models:good", *SHAPE, "--budget", 0.2)
    assert result.exit_code == 0, result.output
    assert "Lipschitz constant ≥" in result.stdout
    code, value = run_json("lower", "cli_models:good", *SHAPE, "--budget", 0.2, "--norm", "inf,inf")
    assert code == 0
    assert value["lower_bound"] == pytest.approx(3.0, rel=1e-6)
    assert (value["norm"], value["input_shape"]) == (["inf", "inf"], [3])
    assert len(value["point"]) == len(value["direction"]) == 3


def test_anchored(here: Path) -> None:
    ball = ["--ball", 0.5, "--radius", 0.5, "--anchored"]
    code, value = run_json("lower", "cli_models:good", *SHAPE, "--budget", 0.2, *ball)
    assert (code, value["anchored"], value["anchor"]) == (0, True, [0.5] * 3)
    assert len(value["point"]) == 3
    assert value["lower_bound"] == pytest.approx(3.0, rel=1e-6)
    few = ["--budget", 0.1, "--lower-budget", 0.2]
    code, value = run_json("compare", "cli_models:good", *SHAPE, "--norm", "1,1", *few, *ball)
    assert (code, value["anchored"]) == (0, True)
    assert all(row["ratio"] >= 1.0 for row in value["rows"] if row["ratio"] is not None)
    assert run_json("lower", "cli_models:good", *SHAPE, "--anchored")[1]["error"] == "InputError"


def test_estimate(here: Path) -> None:
    result = run("estimate", "cli_models:good", *SHAPE)
    assert result.exit_code == 0, result.output
    assert "not a bound" in result.stdout
    code, value = run_json("estimate", "cli_models:good", *SHAPE, "--method", "power_iteration")
    assert code == 0
    assert value["estimate"] == pytest.approx(3.0, rel=1e-6)
    assert run("estimate", "cli_models:good", *SHAPE, "--method", "lipsdp").exit_code == 2
    assert run("estimate", "cli_models:good", *SHAPE, "--pools", "through").exit_code == 0
    assert run("estimate", "cli_models:good", *SHAPE, "--pools", "no").exit_code == 2


def test_save_and_verify(here: Path) -> None:
    path = here / "m.lipcert"
    code, value = run_json("bound", "cli_models:good", *SHAPE, *AUTO, "--save", path)
    assert (code, value["certificate"]) == (0, str(path))
    assert run("verify", path, "cli_models:good", *SHAPE).exit_code == 0
    code, again = run_json("verify", path, "cli_models:good", *SHAPE)
    assert (code, again["verified"], again["bound"]) == (0, True, value["bound"])
    code, wrong = run_json("verify", path, "cli_models:other", *SHAPE)
    assert (code, wrong["error"]) == (2, "CertificateError")
    path.write_bytes(path.read_bytes()[:-1])
    assert run("verify", path, "cli_models:good", *SHAPE).exit_code == 2


def test_outputs(here: Path) -> None:
    """ReLU of (3 x₀, x₁) on the box [-1, 1]³ is exactly [0, 3] × [0, 1]."""
    quick = ["--budget", 0.1]
    result = run("outputs", "cli_models:good", *SHAPE, "--box", -1, 1, *quick)
    assert result.exit_code == 0, result.output
    assert "2 outputs" in result.stdout
    assert "output 1" in result.stdout
    code, value = run_json("outputs", "cli_models:good", *SHAPE, "--box", -1, 1, *quick)
    assert code == 0
    assert value["lower"] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert value["upper"] == pytest.approx([3.0, 1.0], abs=1e-6)
    assert (value["domain"], value["input_shape"], value["label"]) == ("box [-1, 1]", [3], None)
    assert (value["proved"], value["certificate"], value["guarantee"]) == (None, None, "rigorous")


def test_outputs_that_are_selected(here: Path) -> None:
    np.save("rows.npy", np.array([[1, 0], [-1, 2]]))
    np.save("row.npy", np.array([0.0, -1.0], dtype=np.float32))
    options = ["--ball", 2, "--radius", 0.5, "--p", "inf", "--budget", 0.1]
    code, value = run_json("outputs", "cli_models:good", *SHAPE, *options, "--select", "rows.npy")
    assert code == 0
    assert value["lower"] == pytest.approx([4.5, -7.5 + 3.0], abs=1e-6)
    assert value["upper"] == pytest.approx([7.5, -4.5 + 5.0], abs=1e-6)
    code, value = run_json("outputs", "cli_models:good", *SHAPE, *options, "--select", "row.npy")
    assert (code, value["lower"], value["upper"]) == (0, pytest.approx([-2.5]), pytest.approx([-1.5]))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--below", 3.1], 0), (["--below", 2.9], 1), (["--below", "inf"], 0), (["--above", "-0.1"], 0),
        (["--above", 0.1], 1), (["--above", -1, "--below", 4], 0), (["--above", -1, "--below", 2], 1),
        (["--above", "nan"], 2), (["--below", "nan"], 2), (["--below", "x"], 2),
    ],
)  # fmt: skip
def test_outputs_guard_a_model(options: list[object], code: int, here: Path) -> None:
    arguments = ["outputs", "cli_models:good", *SHAPE, "--box", -1, 1, "--budget", 0.1, *options]
    result = run(*arguments)
    assert result.exit_code == code
    assert ("not proved" in result.stderr) is (code == 1)
    if "x" not in options:
        found, value = run_json(*arguments)
        assert found == code
        assert ("error" in value) is (code == 2)
        if code < 2:
            assert value["proved"] is (code == 0)


def test_a_limit_that_is_reached_exactly_is_not_proved(here: Path) -> None:
    """The ReLU reaches 0 and 3: neither > 0 nor < 3 is true."""
    arguments = ["outputs", "cli_models:good", *SHAPE, "--box", -1, 1, "--budget", 0.1]
    assert run(*arguments, "--above", 0).exit_code == 1
    assert run(*arguments, "--below", 3).exit_code == 1


def test_margins(here: Path) -> None:
    """On the ball 3 x₀ ≥ 4.5 and x₁ ≤ 2.5."""
    arguments = ["outputs", "cli_models:good", *SHAPE, "--ball", 2, "--radius", 0.5, "--budget", 0.1]
    code, value = run_json(*arguments, "--label", 0, "--above", 0)
    assert (code, value["label"], value["proved"], value["upper"]) == (0, 0, True, ["inf"])
    assert value["lower"] == pytest.approx([2.0], abs=1e-6)
    result = run(*arguments, "--label", 1, "--above", 0)
    assert result.exit_code == 1
    assert "output 1 − output 0 > 0 (known: ≥ -6" in result.stderr


def test_an_output_certificate(here: Path) -> None:
    code, value = run_json(
        "outputs", "cli_models:good", *SHAPE, "--box", -1, 1, "--budget", 0.1, "--below", 4, "--save", "o.lipcert"
    )
    assert (code, value["certificate"]) == (0, "o.lipcert")
    code, again = run_json("verify", "o.lipcert", "cli_models:good", *SHAPE)
    assert (code, again["verified"], again["upper"]) == (0, True, value["upper"])
    assert run_json("verify", "o.lipcert", "cli_models:other", *SHAPE)[1]["error"] == "CertificateError"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give --ball"),
        (["--box", 0, 1, "--label", 2], "label 2"),
        (["--box", 0, 1, "--label", -1], "label -1"),
        (["--box", 0, 1, "--label", 0, "--select", "wide.npy"], "give one of them"),
        (["--box", 0, 1, "--label", 0, "--below", 1], "--label goes with --above"),
        (["--box", 0, 1, "--select", "none.npy"], "no file 'none.npy'"),
        (["--box", 0, 1, "--select", "3"], "no file '3'"),
        (["--box", 0, 1, "--select", "cli_models.py"], "cannot read cli_models.py"),
        (["--box", 0, 1, "--select", "objects.npy"], "cannot read objects.npy"),
        (["--box", 0, 1, "--select", "both.npz"], "several arrays"),
        (["--box", 0, 1, "--select", "complex.npy"], "real numbers"),
        (["--box", 0, 1, "--select", "large.npy"], "float64 can hold"),
        (["--box", 0, 1, "--select", "nan.npy"], "NaN"),
        (["--box", 0, 1, "--select", "wide.npy"], "(k, 2) matrix"),
        (["--box", 0, 1, "--select", "none_of_them.npy"], "no rows"),
        (["--box", 0, 1, "--budget", 0], "budget"),
        (["--box", 0, 1, "--seed", -1], "seed"),
        (["--box", 0, 1, "--budget", 0.1, "--save", "no/such/place.lipcert"], "cannot write"),
        (["--box", 1, 0], "lower ≤ upper"),
    ],
)
def test_outputs_that_cannot_be_bounded(options: list[object], words: str, here: Path) -> None:
    arrays = {
        "objects": np.array([{}], dtype=object), "complex": np.zeros((1, 2), dtype=complex), "wide": np.zeros((1, 3)),
        "large": np.array([[2**53 + 1, 0]]), "nan": np.array([[np.nan, 0.0]]), "none_of_them": np.zeros((0, 2)),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(f"{name}.npy", array, allow_pickle=True)
    np.savez("both.npz", a=np.zeros(3), b=np.zeros(3))
    code, value = run_json("outputs", "cli_models:good", *SHAPE, *options)
    assert code == 2
    assert set(value) == {"error", "message"}
    assert words in value["message"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bound", "cli_models:nothing", *SHAPE], "no attribute"),
        (["bound", "no_such_module:x", *SHAPE], "cannot import"),
        (["bound", "cli_models", *SHAPE], "package.module:factory"),
        (["bound", ":x", *SHAPE], ""),
        (["bound", "cli_models:good"], "--input-shape is needed"),
        (["bound", "cli_models:good", "--input-shape", "3,x"], "positive integers"),
        (["bound", "cli_models:good", "--input-shape", "0"], "positive integers"),
        (["bound", "cli_models:good", "--input-shape", "4"], "does not run"),
        (["bound", "cli_models:good", *SHAPE, "--norm", "2"], "--norm must be"),
        (["bound", "cli_models:good", *SHAPE, "--norm", "3,3"], "1, 2 and inf"),
        (["bound", "cli_models:good", *SHAPE, "--norm", "1,2", "--method", "autolip"], "cannot bound"),
        (["bound", "cli_models:good", *SHAPE, "--method", "magic"], "unknown method"),
        (["bound", "cli_models:good", *SHAPE, "--budget", "0"], "budget"),
        (["bound", "cli_models:good", *SHAPE, "--seed", "-1"], "seed"),
        (["bound", "cli_models:good", *SHAPE, "--save", "no/such/place.lipcert"], "cannot write"),
        (["bound", "cli_models:training", *SHAPE], "model.eval()"),
        (["bound", "cli_models:square", *SHAPE], "aten.mul"),
        (["bound", "cli_models:fails", *SHAPE], "no weights [/here]"),
        (["bound", "cli_models:number", *SHAPE], "not a torch.nn.Module"),
        (["bound", "none.pt2"], "no file none.pt2"),
        (["bound", "[/red].pt2"], "no file [/red].pt2"),
        (["lower", "cli_models:square", *SHAPE, "--budget", "0.1"], "aten.mul"),
        (["verify", "none.lipcert", "cli_models:good", *SHAPE], "cannot read"),
    ],
)
def test_errors_end_with_exit_code_2_and_a_name(arguments: list[str], words: str, here: Path) -> None:
    extra = AUTO if arguments[0] == "bound" and "--method" not in arguments else []
    result = run(*arguments, *extra)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert "built" not in result.stdout
    code, value = run_json(*arguments, *extra)
    assert code == 2
    assert set(value) == {"error", "message"}
    assert words in value["message"]


def test_an_error_nobody_foresaw_is_no_verdict(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1 means that the bound exceeds --max; a crash must not end with it."""

    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError("[bug]")

    monkeypatch.setattr(lipcert, "bound", crash)
    result = run("bound", "cli_models:good", *SHAPE, *AUTO, "--max", 10)
    assert result.exit_code == 2
    assert "ZeroDivisionError" in result.stderr
    assert run_json("bound", "cli_models:good", *SHAPE, *AUTO)[1]["error"] == "ZeroDivisionError"


@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_programs(dynamic: bool, here: Path) -> None:
    model = mlp((3, 4, 2), 1).float()
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(model, (torch.zeros(5 if dynamic else 1, 3),), dynamic_shapes=shapes)
    torch.export.save(program, here / "m.pt2")
    expected = lipcert.bound(model, torch.zeros(1, 3), method="autolip").value
    for extra in ([], SHAPE):
        code, value = run_json("bound", here / "m.pt2", *AUTO, *extra, "--save", here / "m.lipcert")
        assert code == 0, value
        assert value["bound"] == pytest.approx(expected, rel=1e-9)
        assert run("verify", here / "m.lipcert", here / "m.pt2", *extra).exit_code == 0
    assert run("lower", here / "m.pt2", "--budget", 0.1).exit_code == 0
    (here / "bad.pt2").write_bytes(b"nothing")
    code, value = run_json("bound", here / "bad.pt2", *AUTO)
    assert (code, value["error"]) == (2, "CaptureError")


def test_values_that_json_cannot_hold(here: Path) -> None:
    (here / "cli_models.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def huge():\n"
        "    layers = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(60)]\n"
        "    for layer in layers: layer.weight.data.fill_(1e6)\n"
        "    return nn.Sequential(*(m for layer in layers for m in (layer, nn.Hardtanh()))).eval()\n"
    )
    code, value = run_json("bound", "cli_models:huge", "--input-shape", 1, *AUTO, "--max", 1e300)
    assert (code, value["bound"]) == (1, "inf")
    assert value["log10"] == pytest.approx(360.0)


def test_methods_and_ops() -> None:
    assert "autolip" in run("methods").stdout
    assert "relu" in run("ops").stdout
    code, rows = run_json("methods")
    assert code == 0
    assert {row["name"] for row in rows} == {m.name for m in lipcert.methods()}
    code, rows = run_json("ops")
    assert {row["name"] for row in rows} == {op.name for op in lipcert.supported_ops()}


def test_a_module_that_sets_defaults_when_imported(here: Path) -> None:
    name = "cli_defaults"
    (here / f"{name}.py").write_text(
        "import torch\nfrom torch import nn\nnet = nn.Linear(3, 2).eval()\n"
        "torch.set_default_device('meta')\ntorch.set_default_dtype(torch.bfloat16)\n"
    )
    try:
        code, value = run_json("bound", f"{name}:net", *SHAPE, *AUTO)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
        sys.modules.pop(name, None)
    assert code == 0, value
    assert value["bound"] > 0


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"lipcert {lipcert.__version__}")


def test_norms_of_methods_are_numbers() -> None:
    rows = {row["name"]: row["norms"] for row in run_json("methods")[1]}
    assert [1, 1] in rows["autolip"]
    assert ["inf", "inf"] in rows["autolip"]


def test_no_arguments_show_the_help() -> None:
    assert "bound" in run().output
    assert run("bound").exit_code == 2
    assert run("nonsense").exit_code == 2


def test_as_a_process(here: Path) -> None:
    """The installed entry point, with everything torch prints on the side."""
    done = subprocess.run(
        [sys.executable, "-c", "from lipcert.cli import main; main()", "bound", "cli_models:good", *SHAPE, *AUTO,
         "--json", "--max", "1"],
        capture_output=True, text=True, timeout=300, check=False, cwd=here,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["bound"] == pytest.approx(3.0)
    assert "exceeds --max" in done.stderr


def test_parts_of_names_are_not_taken_for_markup(here: Path) -> None:
    path = here / "[bold]x.lipcert"
    result = run("bound", "cli_models:good", *SHAPE, *AUTO, "--save", path)
    assert result.exit_code == 0, result.output
    assert "[bold]x.lipcert" in result.stdout
