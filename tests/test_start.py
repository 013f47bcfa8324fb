"""The package comes in late: help without torch, names that are functions and packages, an installed wheel."""

import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import lipcert
import lipcert.api

HELP = """
import sys
from lipcert.cli.main import app, main
sys.argv[1:] = {arguments}
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "numpy", "scipy", "lipcert.api"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.few(1)
@pytest.mark.parametrize("arguments", [["--help"], ["bound", "--help"], ["--version"]])
def test_help_waits_for_no_torch(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(arguments=arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "lipcert" in done.stdout or "Usage" in done.stdout


def test_names_that_are_functions_and_packages() -> None:
    packages = {found.name for found in pkgutil.iter_modules(lipcert.__path__)}
    assert packages & set(lipcert.__all__) == {"methods", "ranges"}  # those that lipcert._Package keeps functions
    assert not any(isinstance(getattr(lipcert, name), ModuleType) for name in lipcert.__all__)
    assert set(lipcert.__all__) <= set(dir(lipcert))
    assert lipcert.errors.InputError is lipcert.InputError
    with pytest.raises(AttributeError, match="nothing"):
        _ = lipcert.nothing
    with pytest.raises(ImportError):
        from lipcert import nothing  # noqa: F401


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        "import lipcert.methods.auto, lipcert.ranges.build, lipcert\nassert lipcert.methods()[0].name == 'auto'",
        "from lipcert import *\nassert bound and methods()",
        "import lipcert\nfrom lipcert.methods.base import make\nassert make('lipsdp') == lipcert.LipSDP()",
        "from lipcert.training import LipschitzRegularizer as R\nimport torch\nm = torch.nn.Linear(2, 2)\n"
        "R(m, torch.zeros(1, 2), method='liplt', target=1.0).certify()",
    ],
)
def test_whatever_is_imported_first(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_installed_wheel(tmp_path: Path) -> None:
    """Built from the sdist, installed without the repository, it bounds a file and verifies its certificate."""
    root = Path(__file__).parent.parent
    built, place = tmp_path / "built", tmp_path / "venv"
    built.mkdir()

    def run(*command: str | Path, at: Path = tmp_path) -> str:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        text = [str(c) for c in command]
        done = subprocess.run(text, capture_output=True, text=True, timeout=300, cwd=at, env=clean)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    make = "import sys, setuptools.build_meta as b; b.build_{}(sys.argv[1])"
    source = tmp_path / "source"
    shutil.copytree(root / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    run(sys.executable, "-c", make.format("sdist"), built, at=source)
    run("tar", "xf", next(built.glob("*.tar.gz")), at=tmp_path)
    run(sys.executable, "-c", make.format("wheel"), built, at=next(tmp_path.glob("lipcert-*")))
    run(sys.executable, "-m", "venv", "--without-pip", place)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "-q", "--no-deps", "--no-index", next(built.glob("*.whl")))
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "dependencies.pth").write_text(str(Path(torch.__file__).parent.parent))  # torch is large: not again

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3),)), tmp_path / "m.pt2")
    command = place / "bin" / "lipcert"
    assert run(python, "-c", "import lipcert; print(lipcert.__file__)").strip().startswith(str(place))
    assert "py.typed" in run(python, "-c", "import lipcert, os; print(os.listdir(lipcert.__path__[0]))")
    assert run(command, "--version") == run(python, "-m", "lipcert", "--version")
    assert "Lipschitz constant ≤" in run(command, "bound", "m.pt2", "--budget", "2", "--save", "m.lipcert")
    assert "verified" in run(command, "verify", "m.lipcert", "m.pt2")
