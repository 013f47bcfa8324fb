"""A report says what was found, shows it as text whoever wrote it, and is there whole or not at all."""

from __future__ import annotations

import hashlib
import html
import importlib
import json
import math
import re
import shlex
import sys
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import lipcert
from lipcert.cli.main import app
from lipcert.digits import at_least, at_most
from lipcert.markup import tag
from lipcert.report import Findings, Wanted, gather, page
from tests.zoo import mlp

NAME = '<script>alert("1")</script>'


class Hostile(nn.Module):
    """A residual block, a tanh, and a submodule named like a script."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.last = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), nn.Linear(4, 2)
        self.add_module(NAME, nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self._modules[NAME](x + self.inner(x)))


class Reader(HTMLParser):
    """Every element is closed, in order; collects ids, links and words."""

    EMPTY = ("meta", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        if name not in self.EMPTY:
            self.open.append(name)
        self.tags.append(name)
        for key, value in attributes:
            assert not key.startswith("on"), key
            if key == "id":
                self.ids.append(str(value))
            if key in ("href", "src"):
                self.links.append(str(value))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def findings() -> Findings:
    return gather(Hostile().eval(), torch.zeros(1, 4), Wanted(budget=1, lower_budget=0.5, methods=False))


def test_the_page_is_closed_in_itself(findings: Findings) -> None:
    text = page(findings)
    read = Reader(text)
    assert not read.open
    assert len(read.ids) == len(set(read.ids))
    assert all(link == "data:," or link[1:] in read.ids for link in read.links), read.links
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import", text)
    assert read.tags.count("script") == 1


def test_names_of_a_model_are_text(findings: Findings) -> None:
    read = Reader(page(findings))
    assert NAME in read.words
    assert read.tags.count("script") == 1  # the page's own


def test_it_says_what_was_found(findings: Findings) -> None:
    words = Reader(page(findings)).words
    assert findings.lower is not None
    assert at_most(findings.bound.value) in words
    assert at_least(findings.lower.value) in words
    assert findings.bound.guarantee in words
    assert "inner.0" in words


def test_losses_make_up_the_whole(findings: Findings) -> None:
    """Σ of the layers' parts is log(product / witness), and no part is negative: norms are norms."""
    table = findings.table
    assert table is not None
    assert findings.lower is not None
    assert table.lower == pytest.approx(findings.lower.value, rel=1e-9)
    shares = [layer.share for layer in table.layers if layer.share is not None]
    assert math.fsum(shares) == pytest.approx(1.0)
    assert min(shares) > -1e-9
    slacks = [layer.slack for layer in table.layers if layer.slack is not None]
    assert len(slacks) == 2
    assert min(slacks) > -1e-9  # λ(v² − w²) ≥ 0 at every increment of the network
    assert table.form is not None
    assert table.form > -1e-6  # the form is not negative


def test_the_hash_is_that_of_the_saved_certificate(findings: Findings, tmp_path: Path) -> None:
    findings.bound.save(tmp_path / "b.lipcert")
    assert hashlib.sha256((tmp_path / "b.lipcert").read_bytes()).hexdigest() in page(findings)
    lipcert.verify(tmp_path / "b.lipcert", Hostile().eval(), torch.zeros(1, 4))


def test_a_bound_alone_has_a_page(tmp_path: Path) -> None:
    bound = lipcert.bound(mlp([3, 4, 2]), torch.zeros(1, 3), method="autolip")
    bound.report(tmp_path / "r.html")
    assert at_most(bound.value) in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_a_place_that_cannot_be_written_is_named_before_the_work(tmp_path: Path) -> None:
    bound = lipcert.bound(mlp([3, 4, 2]), torch.zeros(1, 3), method="autolip")
    for place in (tmp_path, tmp_path / "none" / "r.html", "a\0b", 3):
        with pytest.raises(lipcert.InputError, match="report"):
            bound.report(place)  # type: ignore[arg-type]
    with pytest.raises(lipcert.InputError, match="example_input"):
        bound.report(tmp_path / "r.html", mlp([3, 4, 2]))
    assert not list(tmp_path.iterdir())


def test_a_bound_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "square.py").write_text(
        "from torch import nn\nclass Square(nn.Module):\n    def forward(self, x):\n        return x * x\n"
        "model = Square().eval()\n"
    )
    call = ["report", "square:model", "--input-shape", "3", "-o", "r.html", "--quick"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 2, done.output
    assert "NotLipschitzError" in done.output
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["square.py"]


def test_every_result_shows_itself_in_a_notebook(findings: Findings) -> None:
    x, box = torch.zeros(1, 3), lipcert.Box(-1.0, 1.0)
    model = mlp([3, 4, 2]).float()
    results = [
        findings.bound, findings.lower, lipcert.estimate(model, x, method="power_iteration"),
        lipcert.compare(model, x, methods=["autolip"], lower_budget=0.1), lipcert.derivative_signs(model, x, box),
        lipcert.output_bounds(model, x, box, budget=0.1), lipcert.execution_error(model, x, box),
        lipcert.inverse_lipschitz_bound(model, x),
    ]  # fmt: skip
    for result in results:
        shown = Reader(result._repr_html_())  # type: ignore[union-attr]
        assert not shown.open
        assert shown.words


@settings(max_examples=30)
@given(st.floats(allow_nan=False))
def test_printed_digits_hold_of_what_is_claimed(value: float) -> None:
    if math.isfinite(value):
        for digits in (4, 7):
            assert Fraction(at_least(value, digits)) <= Fraction(value) <= Fraction(at_most(value, digits))
    else:
        assert at_most(value) == f"{value:g}"


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    model, x, place = mlp([3, 4, 2]), torch.zeros(1, 3), tmp_path / "r.html"
    ball, select = lipcert.Ball(torch.zeros(3), 0.1), torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    bound = lipcert.bound(model, x, method="autolip", domain=ball, select=select)
    everywhere = lipcert.lower_bound(model, x, budget=0.2)
    with pytest.raises(lipcert.InputError, match="another or larger domain"):
        bound.report(place, lower=everywhere)
    with pytest.raises(lipcert.InputError, match="another or larger domain"):
        bound.report(place, lower=lipcert.lower_bound(model, x, domain=lipcert.Ball(torch.ones(3), 0.1), budget=0.2))
    with pytest.raises(lipcert.NumericsError, match="lies above"):
        replace(bound, value=1e-3, domain=None).report(place, lower=everywhere)
    with pytest.raises(lipcert.InputError, match="of network"):
        bound.report(place, mlp([3, 4, 2], seed=1), x, lower_budget=0.1)
    lipcert.bound(model, x, method="autolip").save(tmp_path / "other.lipcert")
    with pytest.raises(lipcert.InputError, match="not this bound's"):
        bound.report(place, certificate=tmp_path / "other.lipcert")
    assert not place.exists()
    bound.report(place, model, x, lower_budget=0.1, budget=1)  # its domain and its outputs are those of the bound
    assert "linf ball" in place.read_text(encoding="utf-8")


@pytest.mark.few(1)
@pytest.mark.parametrize(("scale", "shown"), [(1e40, "10^"), (1e-40, "10^"), (0.0, "L ≤0")])
def test_what_leaves_the_floats_has_a_page(scale: float, shown: str) -> None:
    layers = [nn.Linear(3, 3, bias=False, dtype=torch.float64) for _ in range(12)]
    for layer in layers:
        layer.weight.data = scale * torch.eye(3, dtype=torch.float64)
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).eval()
    wanted = Wanted(budget=0.5, lower_budget=0.1, methods=False)
    assert shown in Reader(page(gather(model, torch.zeros(1, 3), wanted))).words


def test_text_that_hides_is_shown_by_number() -> None:
    assert tag("b", "a\x00\u202eb<\ud800") == "<b>a\\u0000\\u202eb&lt;\\ud800</b>"


def test_the_command_with_radii_and_a_certification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report_cli_model.py").write_text(
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\nmodel = nn.Sequential(nn.Linear(2, 2)).eval()\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    model = importlib.import_module("report_cli_model").model
    inputs = torch.randn(4, 2)
    lipcert.certify(model, inputs, model(inputs).argmax(1), radii=(0.01, 0.1), budget=1).save("run.robust")
    call = ["report", "report_cli_model:model", "--input-shape", "2", "-o", "r.html", "--quick", "--budget", "1"]
    call += ["--lower-budget", "0.1", "--radii", "0.1,1", "--json"]
    done = CliRunner().invoke(app, [*call, "--certification", "run.robust"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["lower_bound"] <= told["bound"]
    read = Reader(Path("r.html").read_text(encoding="utf-8"))
    assert {"radius", "robustness"} <= set(read.ids)
    assert "lipcert verify r.lipcert report_cli_model:model --input-shape 2" in read.words
    lipcert.verify(told["certificate"], model, torch.zeros(1, 2))
    refused = CliRunner().invoke(app, [*call[:-3], "--radii", "1,0.1"])
    assert refused.exit_code == 2
    assert "--radii" in refused.output


class Policy(nn.Module):
    """Several inputs and outputs, one of which has a name like a tag."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(5, 2)

    def forward(self, obs: dict[str, torch.Tensor], scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"<b>": scale * self.body(torch.cat([obs["pos"], obs["vel"]], 1)), "scale": scale}


def test_which_inputs_vary_is_told(tmp_path: Path) -> None:
    """In Python, and from a .pt2 file on the command line, with the command that verifies the certificate."""
    example = ({"pos": torch.zeros(1, 2), "vel": torch.zeros(1, 3)}, torch.tensor(2.0))
    found = lipcert.bound(Policy().eval(), example, output="<b>", method="autolip")
    found.report(
        tmp_path / "a.html", Policy().eval(), example, output="<b>", budget=0.2, lower_budget=0.1
    )  # fmt: skip
    text = (tmp_path / "a.html").read_text()
    assert "x is these inputs, side by side: obs.pos (2), obs.vel (3). Fixed at the values given: scale." in text
    assert "f is the output &lt;b&gt;." in text
    torch.export.save(torch.export.export(Policy().eval(), example), tmp_path / "p.pt2")
    report, model = str(tmp_path / "b.html"), str(tmp_path / "p.pt2")
    options = ["--wrt", "vel", "--budget", "0.2", "--lower-budget", "0.1", "--quick"]
    done = CliRunner().invoke(app, ["report", model, "-o", report, "--model-output", "<b>", *options])
    assert done.exit_code == 0, done.stderr
    text = html.unescape(Path(report).read_text())
    assert "x is obs.vel (3). Fixed at the values given: obs.pos, scale. f is the output <b>." in text
    command = re.search(r"lipcert (verify [^<\n]*'<b>')", text)
    assert command is not None
    assert CliRunner().invoke(app, shlex.split(command[1])).exit_code == 0
