"""``lipcert certify``: tables, JSON, exit codes."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from lipcert.cli.main import app
from tests.robustness.cases import linear, points, right_labels


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and twenty points, of which two have a wrong label."""
    monkeypatch.chdir(tmp_path)
    model, x = linear(), points(20)
    y = right_labels(model, x)
    y[:2] = (y[:2] + 1) % 3
    torch.export.save(torch.export.export(model, (x[:1],)), "m.pt2")
    np.savez("d.npz", inputs=x.numpy(), labels=y.numpy())
    return tmp_path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["certify", *map(str, arguments)])


def test_a_table(here: Path) -> None:
    result = run("m.pt2", "d.npz", "--radius", 0.001, "--clip", 0, 1, "--rows", 3, "--save", "run.robust")
    assert result.exit_code == 0, result.output
    assert "90.0 %" in result.output
    assert "within [0, 1]" in result.output
    assert "run.robust" in result.output
    checked = CliRunner().invoke(app, ["verify", "run.robust", "m.pt2"])
    assert checked.exit_code == 0, checked.output
    assert "verified" in checked.output
    other = linear()
    other.bias.data[0] += 1.0
    torch.export.save(torch.export.export(other, (torch.zeros(1, 3),)), "other.pt2")
    refused = CliRunner().invoke(app, ["verify", "run.robust", "other.pt2"])
    assert refused.exit_code == 2
    assert "another model" in refused.output


def test_json_is_nothing_but_json(here: Path) -> None:
    result = CliRunner().invoke(app, ["certify", "m.pt2", "d.npz", "--radii", "0.001,0.01", "--norm", "inf", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["clean_accuracy"] == 0.9
    assert [r["radius"] for r in found["radii"]] == [0.001, 0.01]
    assert len(found["rows"]) == 20
    assert {"index", "label", "predicted", "status", "certified_radius", "attacked_radius", "margin", "method",
            "guarantee", "seconds"} == set(found["rows"][0])  # fmt: skip
    assert found["threat"]["norm"] == "inf"


@pytest.mark.parametrize(("least", "code"), [(0.9, 0), (0.91, 1), (0.0, 0), (1.0, 1)])
def test_a_share_that_guards(here: Path, least: float, code: int) -> None:
    result = run("m.pt2", "d.npz", "--radius", 0.0001, "--at-least", least)
    assert result.exit_code == code
    assert ("is below" in result.output) == bool(code)


def test_a_run_goes_on(here: Path) -> None:
    first = run("m.pt2", "d.npz", "--radius", 0.01, "--resume", "r.sqlite")
    again = run("m.pt2", "d.npz", "--radius", 0.01, "--resume", "r.sqlite")
    assert first.exit_code == again.exit_code == 0
    other = run("m.pt2", "d.npz", "--radius", 0.02, "--resume", "r.sqlite")
    assert other.exit_code == 2
    assert "radii" in other.output


def test_a_scale_and_a_count(here: Path) -> None:
    result = run("m.pt2", "d.npz", "--radius", 0.01, "--mean", "0.1,0.2,0.3", "--std", 0.5, "--count", 5)
    assert result.exit_code == 0, result.output
    assert "5 examples" in result.output
    assert "the model sees" in result.output


def test_the_largest_radius(here: Path) -> None:
    result = run("m.pt2", "d.npz", "--count", 6)
    assert result.exit_code == 0, result.output
    assert "median certified radius" in result.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["m.pt2", "none.npz"], "no file or folder"),
        (["none.pt2", "d.npz"], "no file none.pt2"),
        (["m.pt2", "d.npz", "--radius", "0"], "above 0"),
        (["m.pt2", "d.npz", "--radius", "0.1", "--norm", "7"], "1, 2 or inf"),
        (["m.pt2", "d.npz", "--radii", "0.2,0.1"], "ascend"),
        (["m.pt2", "d.npz", "--radii", "a"], "--radii must be numbers"),
        (["m.pt2", "d.npz", "--at-least", "0.6"], "needs --radius"),
        (["m.pt2", "d.npz", "--radius", "0.1", "--at-least", "60"], "share from 0 to 1"),
        (["m.pt2", "d.npz", "--radius", "0.1", "--at-least", "nan"], "share from 0 to 1"),
        (["m.pt2", "d.npz", "--count", "0"], "--count"),
        (["m.pt2", "d.npz", "--radius", "0.1", "--clip", "0.4", "0.6"], "outside clip"),
        (["m.pt2", "d.npz", "--radius", "0.1", "--engine", "abacus"], "engine"),
        (["m.pt2", "d.npz", "--radius", "0.1", "--rows", "-1"], "--rows"),
        (["m.pt2", "d.npz", "--radius", "0.1", "--labels", "l.npy"], "no file l.npy"),
        (["m.pt2", "d.npz", "--radius", "0.1", "--save", "no/where"], "--save: there is no folder"),
        (["m.pt2", "d.npz", "--radius", "0.1", "--save", "."], "is a folder"),
    ],
)
def test_errors_end_with_two(here: Path, arguments: list[str], text: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert text in result.output
    as_json = CliRunner().invoke(app, ["certify", *arguments, "--json"])
    assert as_json.exit_code == 2
    assert text in json.loads(as_json.stdout)["message"]


def test_a_factory_needs_no_shape(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])
    Path("certify_models.py").write_text("from tests.robustness.cases import linear\n")
    result = run("certify_models:linear", "d.npz", "--radius", 0.001)
    assert result.exit_code == 0, result.output


def test_units_that_seem_wrong_are_told(here: Path) -> None:
    x = points(20)
    np.savez("bytes.npz", inputs=(x * 255).numpy(), labels=right_labels(linear(), x).numpy())
    result = run("m.pt2", "bytes.npz", "--radius", 0.1)
    assert result.exit_code == 0
    assert "warning: the clean accuracy is" in result.output
