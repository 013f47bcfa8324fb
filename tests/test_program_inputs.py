"""``.pt2`` files of several inputs: which vary, what the others are fixed at, and what is refused."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import lipcert
from lipcert.capture.adapter import adapted
from lipcert.capture.load import load_model
from lipcert.capture.program_inputs import with_values
from lipcert.capture.torch_export import capture
from lipcert.cli.common import app
from lipcert.cli.load import parse_fixed
from lipcert.errors import InputError, LipcertError
from tests.test_program_files import Evil, _bytes, _programs

#: Eighths, so that the products of fixed inputs that forward computes in float32 are exact.
W, V = ((8 * torch.randn(4, n, generator=torch.Generator().manual_seed(n))).round() / 8 for n in (3, 2))


class Scaled(nn.Module):
    """y = scale · (W x) ∘ (V h) and a count: linear in x, and in h."""

    def forward(
        self, obs: dict[str, Tensor], scale: Tensor, count: Tensor, power: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        y = power * scale * (obs["x"] @ W.T) * (obs["h"] @ V.T)
        return y, y * count.sum()


def exported(batch: int = 1) -> bytes:
    """As a file; of a batch of any length if it is not 1."""
    obs = {"x": torch.full((batch, 3), 0.5), "h": torch.full((batch, 2), 0.25)}
    free = {0: torch.export.Dim("b")} if batch > 1 else {}
    shapes = ({"x": free, "h": free}, {}, {}, None)
    example = (obs, torch.tensor(2.0), torch.tensor([3, 4]), 1.5)
    return _bytes(torch.export.export(Scaled().eval(), example, dynamic_shapes=shapes))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "m.pt2"
    path.write_bytes(exported())
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "m.pt2"
    path.write_bytes(exported(2))
    return path


def norm(h: Any, scale: float = 2.0) -> float:
    """Of the derivative in x."""
    return float(torch.linalg.matrix_norm(1.5 * scale * (V.double() @ torch.tensor(h).double())[:, None] * W, 2))


def test_values_that_are_given_take_the_place_of_those_saved(one: Path, many: Path, tmp_path: Path) -> None:
    h = np.array([[1.0, -2.0]])
    np.save(tmp_path / "h.npy", h)
    for path, fixed, wrt, expected in (
        (one, {"h": h}, None, norm([1.0, -2.0])), (one, {"obs.h": 0.5, "scale": -3}, None, norm([0.5, 0.5], 3.0)),
        (one, {"scale": 4.0}, "x", norm([0.25, 0.25], 4.0)), (many, {"h": h}, "x", norm([1.0, -2.0])),
        (many, {"h": -1}, ["obs.x"], norm([1.0, 1.0])),
    ):  # fmt: skip
        model, x = with_values(load_model(path), fixed, wrt, 0)
        assert x.shape == (1, 3)
        found = lipcert.bound(model, x, method="autolip")
        assert expected <= found.value <= expected * (1 + 1e-6)
    # the same network as in Python, with the command line's certificate
    command = [str(one), "--wrt", "x", "--output", "0", "--fix", f"h={tmp_path / 'h.npy'}", "--json"]
    saved = str(tmp_path / "c.lipcert")
    assert CliRunner().invoke(app, ["bound", *command, "--method", "autolip", "--save", saved]).exit_code == 0
    given = ({"x": torch.zeros(1, 3), "h": h.astype(np.float32)}, torch.tensor(2.0), torch.tensor([3, 4]), 1.5)
    assert lipcert.verify(saved, one, given, wrt="x", output=0).value >= norm([1.0, -2.0])
    assert CliRunner().invoke(app, ["verify", saved, *command]).exit_code == 0
    for other in (["--fix", "scale=2.0000002"], ["--fix", "scale=2", "--input-shape", "3"]):
        done = CliRunner().invoke(app, ["verify", saved, *command, *other])
        assert done.exit_code == (0 if len(other) > 2 else 2)
    again = ["bound", *command[:-3], "--json", "--method", "autolip"]  # as saved
    assert json.loads(CliRunner().invoke(app, again).stdout)["bound"] == pytest.approx(norm([0.25, 0.25]), rel=1e-6)


@pytest.mark.slow
def test_reports_and_certifications_of_a_file_with_fixed_inputs(many: Path, tmp_path: Path) -> None:
    def run(*arguments: Any) -> int:
        return CliRunner().invoke(app, [str(one) for one in arguments]).exit_code

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", inputs=rng.normal(size=(6, 3)).astype(np.float32), labels=np.arange(6) % 4)
    fixed, robust, page = ("--fix", "h=0.5"), tmp_path / "r.robust", tmp_path / "r.html"
    options = ("--radius", 0.001, "--save", robust, "--output", 0)
    assert run("certify", many, tmp_path / "d.npz", *options, *fixed) == 0
    assert run("verify", robust, many, "--output", 0, *fixed) == 0
    assert run("verify", robust, many, "--output", 0, "--fix", "h=0.25") == 2
    short = ("--quick", "--budget", 2, "--lower-budget", 0.5, "--model-output", 0)
    assert run("report", many, "-o", page, "--wrt", "x", *fixed, *short) == 0
    assert "--wrt x --output 0 --fix h=0.5" in page.read_text()
    assert "Fixed at the values given: obs.h, scale, count." in page.read_text()


@pytest.mark.few(8)
@pytest.mark.parametrize(
    ("fixed", "wrt", "message"),
    [
        ({"z": 1}, None, "no input 'z'; it has obs.x, obs.h, scale, count"), ({"[red]": 1}, None, r"'\[red\]'"),
        ({"obs": 1}, None, "holds obs.x, obs.h: give each"), ({"power": 2.0}, None, "'power' .* is the constant 1.5"),
        ({"h": 1, "obs.h": 1}, None, "given two values"), ({"h": 1, "x": 1}, None, "nothing varies"),
        ({"h": 1}, "obs", "'obs.h' .* has a value and cannot vary"), ({"h": np.zeros((2, 2))}, "x", r"shape \(2, 2\)"),
        ({"h": np.zeros((1, 3))}, "x", r"'obs.h' \(float32, 1×2\) has shape \(1, 3\)"), ({"h": "a"}, "x", "is a str"),
        ({"h": np.zeros(2)}, "x", r"shape \(2,\)"), ({"scale": np.zeros(1)}, "x", r"a number\) has shape \(1,\)"),
        ({"h": float("nan")}, "x", "not a number of that type"), ({"h": 1e300}, "x", "not a number of that type"),
        ({"count": 0.5}, "x", "not a number of that type"), ({"count": float("inf")}, "x", "not a number of that"),
        ({"h": np.array([["a", "b"]])}, "x", "no array of real"), ({"h": np.ones((1, 2), complex)}, "x", "no array of"),
        ({"h": np.array([[{}, None]])}, "x", "no array of real"), ({"h": [[1], [2, 3]]}, "x", "is no array"),
        ({"h": np.broadcast_to(0.0, (1 << 20, 1 << 20))}, "x", "more than 268435456 entries"),
        ({"h": torch.ones(1, 2, dtype=torch.cfloat)}, "x", "no dense tensor"),
        ({"h": 1 << 80}, "x", "no array of real"),
        ({"h": torch.ones(1, 2).to_sparse()}, "x", "no dense tensor"),
    ],
    ids=str,
)  # fmt: skip
def test_values_that_do_not_fit_are_refused(fixed: dict[str, Any], wrt: Any, message: str, one: Path) -> None:
    with pytest.raises(InputError, match=message):
        with_values(_PROGRAMS.setdefault(one, load_model(one)), fixed, wrt, 0)


_PROGRAMS: dict[Path, Any] = {}


def test_a_batch_of_the_export_is_one_example_where_the_others_have_values(many: Path) -> None:
    program = load_model(many)
    with pytest.raises(InputError, match=r"obs.x has shape \(2, 3\), 2 examples, and obs.h.* --fix obs.h=VALUE"):
        with_values(program, {"scale": 1.0}, "x", 0)
    with pytest.raises(InputError, match="Guard failed"):  # the program itself: two rows beside one
        with_values(program, {"h": np.zeros((2, 2))}, "x", 0)
    assert with_values(program, {"scale": 1.0}, None, 0)[1].shape == (1, 5)
    model, x = with_values(program, {}, None, 1, None)
    assert model(x).shape == (1, 4)
    with pytest.raises(InputError, match=r"2 inputs of the .* file vary"):
        with_values(program, {}, None, 0, torch.zeros(1, 3))


def test_files_of_values_are_read_as_numbers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    held = io.BytesIO()
    np.save(held, np.array([Evil()], dtype=object), allow_pickle=True)
    torch.save((Evil(),), "torch.npy")
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846976,), }"
    for name, content in (
        ("pickle.npy", held.getvalue()), ("short.npy", held.getvalue()[:9]), ("none.npy", b""),
        ("huge.npy", header.ljust(127) + b"\n"), ("text.npy", b"__import__('os').mkdir('ran')"),
    ):  # fmt: skip
        Path(name).write_bytes(content)
    np.savez("z.npz", a=1)
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in (*before, "nothing.npy", "", ".", "/dev/null", "\x00", "0:", "0:-1", "0:a", "1:" + "1," * 99, "0x1"):
        with pytest.raises(InputError, match="--"):
            parse_fixed([f"h={name}"])
    for text in ("h", "=1", "", "h=0:1000000,1000000"):
        with pytest.raises(InputError, match="--fix"):
            parse_fixed([text])
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 1500), marks=pytest.mark.slow)], ids=len)
def test_mutated_programs_of_several_inputs(seeds: range, many: Path, tmp_path: Path) -> None:
    path, read = tmp_path / "m.pt2", 0
    for _, data in _programs(many.read_bytes(), seeds):
        path.write_bytes(data)
        with contextlib.suppress(LipcertError):
            model, x = with_values(load_model(path), {"h": 0.5, "scale": 2.0}, "x", 0)
            read += lipcert.bound(model, x, method="autolip").value >= 0.0
        assert [p.name for p in tmp_path.iterdir()] == ["m.pt2"]
    assert read


class Tokens(nn.Module):
    """Ids behind an embedding, a block called twice and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(torch.tanh(self.block(self.embed(ids)))).mean(1))


def test_the_output_of_a_submodule_of_a_program_is_the_input(tmp_path: Path) -> None:
    """As it is of the module: the same network, so that a certificate of one holds for the other."""
    model, ids = Tokens().eval(), torch.tensor([[1, 2, 3]])
    torch.export.save(torch.export.export(model, (ids,)), tmp_path / "m.pt2")
    program = load_model(tmp_path / "m.pt2")
    for name in ("embed", "head"):
        prints = {capture(*adapted(one, ids, name)).fingerprint for one in (model, program)}
        assert len(prints) == 1
    for name, message in (("block", "2 times"), ("other", "no submodule")):
        with pytest.raises(InputError, match=f"wrt='{name}'.*{message}"):
            lipcert.bound(program, ids, wrt=name)
    found = CliRunner().invoke(app, ["bound", str(tmp_path / "m.pt2"), "--wrt", "embed", "--json"])
    assert json.loads(found.stdout)["bound"] == pytest.approx(lipcert.bound(model, ids, wrt="embed").value, rel=1e-3)


class Switched(nn.Module):
    """A submodule whose two calls differ, so that the program has two of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.inner.forward = lambda x, bent=False: torch.tanh(x @ W[:3].T) if bent else x @ W[:3].T  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x, bent=True))


def test_a_submodule_that_a_program_has_twice_is_not_one_input() -> None:
    x = torch.ones(1, 3)
    program = torch.export.export(Switched().eval(), (x,))
    with pytest.raises(InputError, match=r"wrt='inner'.*more than once"):
        lipcert.bound(program, x, wrt="inner")


class Rest(nn.Module):
    """Ids behind an embedding, and a second input."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.embed, self.bend, self.head = nn.Embedding(9, 4), nn.ReLU(inplace), nn.Linear(4, 2)

    def forward(self, ids: Tensor, y: Tensor) -> Tensor:
        h = self.embed(ids).sum(1)
        return self.head(self.bend(h) + h) + y


def test_a_submodule_beside_an_input_of_a_program() -> None:
    model, call = Rest().eval(), (torch.tensor([[1, 2]]), torch.zeros(1, 2))
    program = torch.export.export(model, call)
    for wanted in (["embed", "y"], ["y", "embed"], ["bend", "y"]):
        here, there = (lipcert.bound(one, call, wrt=wanted, method="autolip").value for one in (model, program))
        assert here == there


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_submodule_that_changes_its_input_is_no_input(exported: bool, sign: float) -> None:
    """The model sees such an output twice, where its input is used again; at positive values no output tells."""
    model, call = Rest(inplace=True).eval(), (torch.tensor([[1, 2]]), torch.zeros(1, 2))
    with torch.no_grad():
        model.embed.weight.copy_(sign * model.embed.weight.abs())
    given = torch.export.export(model, call) if exported else model
    with pytest.raises(InputError, match=r"wrt='bend': .* in place"):
        lipcert.bound(given, call, wrt="bend")
