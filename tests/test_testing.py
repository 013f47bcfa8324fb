"""``assert_lipschitz``, and the page on CI: its JSON schema, and defaults from pyproject.toml."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import lipcert
from lipcert.cli.main import app

X = torch.zeros(1, 2)


def double() -> nn.Module:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.diag(torch.tensor([2.0, 1.0]))
    return nn.Sequential(layer, nn.ReLU()).eval()


def test_a_bound_that_is_small_enough_is_returned() -> None:
    found = lipcert.testing.assert_lipschitz(double(), X, at_most=2.001, method="autolip")
    assert isinstance(found, lipcert.Bound)
    assert found.value == pytest.approx(2.0)
    lipcert.testing.assert_lipschitz(lambda x: {"y": 3 * x}, X, 3.001, output="y", norm=(1, 1), method="autolip")


def test_a_failure_says_whether_the_constant_itself_is_larger() -> None:
    with pytest.raises(AssertionError, match=r"≤ 1\.5, and the constant itself is larger(.|\n)*≤ 2(.|\n)*≥ "):
        lipcert.testing.assert_lipschitz(double(), X, at_most=1.5, lower_budget=0.3)
    relus = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    product = lipcert.bound(relus, X, method="autolip").value
    with pytest.raises(AssertionError, match=r"may be smaller: it is not proved"):
        lipcert.testing.assert_lipschitz(relus, X, 0.999 * product, method="autolip", lower_budget=0.3)


@pytest.mark.parametrize("limit", [float("nan"), "2", None])
def test_limits_that_are_no_numbers(limit: object) -> None:
    with pytest.raises(lipcert.InputError, match="at_most must be a number"):
        lipcert.testing.assert_lipschitz(double(), X, at_most=limit)  # type: ignore[arg-type]
    with pytest.raises(lipcert.InputError, match="one domain"):
        lipcert.testing.assert_lipschitz(double(), X, at_most=2, domain=[None])


def valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """JSON Schema, as far as docs/schema.json uses it; a keyword that is not known here fails."""
    for key, wanted in schema.items():
        if key in ("$schema", "$defs", "title", "description", "required", "additionalProperties"):
            continue
        if key == "$ref":
            if not valid(value, root["$defs"][wanted.removeprefix("#/$defs/")], root):
                return False
        elif key == "oneOf":
            if sum(valid(value, one, root) for one in wanted) != 1:
                return False
        elif key == "enum":
            if not any(type(value) is type(one) and value == one for one in wanted):
                return False
        elif key == "type":
            kinds = {"number": (int, float), "integer": int, "string": str, "boolean": bool, "null": type(None)}
            kinds |= {"object": dict, "array": list}
            if not isinstance(value, kinds[wanted]) or (isinstance(value, bool) and wanted != "boolean"):
                return False
        elif key == "properties":
            if not set(schema["required"]) <= set(value) <= set(wanted):
                return False
            if not all(valid(value[name], one, root) for name, one in wanted.items() if name in value):
                return False
        elif key == "items":
            if not all(valid(one, wanted, root) for one in value):
                return False
        elif key in ("minItems", "maxItems"):
            if (len(value) < wanted) if key == "minItems" else (len(value) > wanted):
                return False
        else:
            raise AssertionError(key)
    return True


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a model of two inputs and two outputs in it."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": self.first(x) + self.second(y), "x": self.first(x)}

    program = torch.export.export(Two().eval(), (X, torch.zeros(1, 3)))
    torch.export.save(program, tmp_path / "two.pt2")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> tuple[int, Any]:
    done = CliRunner().invoke(app, ["bound", "two.pt2", "--method", "autolip", "--json", *arguments])
    return done.exit_code, json.loads(done.stdout) if done.stdout.startswith("{") else done.output


def test_the_command_prints_what_the_schema_says(folder: Path) -> None:
    schema = json.loads((Path(__file__).parent.parent / "docs" / "schema.json").read_text(encoding="utf-8"))
    found = []
    for code, arguments in (
        (0, ["--output", "sum"]),
        (1, ["--output", "sum", "--wrt", "y", "--max", "0.1", "--norm", "1,inf", "--method", "auto", "--budget", "1"]),
        (0, ["--output", "x", "--wrt", "y", "--box", "0", "1", "--max", "inf", "--save", "b.lipcert"]),
        (2, []),
        (2, ["--output", "sum", "--wrt", "z"]),
    ):
        done, value = command(*arguments)
        assert done == code, value
        assert valid(value, schema, schema), value
        found.append(value)
    assert found[0]["input_shape"] == [5]
    assert found[1]["bound"] > 0.1
    assert found[2]["bound"] == 0.0
    assert not valid({**found[0], "bound": "1.0"}, schema, schema)
    assert not valid({**found[0], "more": 1}, schema, schema)
    assert not valid({k: v for k, v in found[0].items() if k != "via"}, schema, schema)


def test_defaults_of_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = '[tool.lipcert.bound]\nbox = [0, 1]\nwrt = ["x", "y"]'
    (folder / "pyproject.toml").write_text(f'[tool.lipcert]\noutput = "sum"\nnorm = [1, 1]\nsplit = true\n{own}')
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / "inner")
    shutil.copy(folder / "two.pt2", "two.pt2")
    code, value = command()
    assert (code, value["norm"], value["domain"], value["input_shape"]) == (0, [1, 1], "box [0, 1]", [5])
    assert command("--norm", "inf,inf", "--wrt", "y")[1]["norm"] == ["inf", "inf"]
    assert command("--norm", "inf,inf", "--wrt", "y")[1]["input_shape"] == [3]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[tool.lipcert]\nouptut = "sum"', "'ouptut', which is no option of any"),
        ("[tool.lipcert.bound]\nk = 3", "'k', which is no option of that"),
        ("[tool.lipcert.bond]\nmax = 3", "no such command"),
        ("[tool.lipcert", "cannot read"),
        ("[tool]\nlipcert = 3", "must be a table"),
    ],
)
def test_defaults_that_cannot_be(text: str, message: str, folder: Path) -> None:
    (folder / "pyproject.toml").write_text(text)
    done = CliRunner().invoke(app, ["bound", "two.pt2"])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
