"""Print, for every kind of certificate, the files that its check imports and how long they are (``make trusted``).

The closure is the static one: every ``import`` in a file counts, also inside functions, but not under TYPE_CHECKING.
A check is about increments and norms. What its closure leaves out is trusted all the same and listed behind the kinds
(``PARTS``): that a network's increments are these, that a network is the model, that a Bound says what was proved.
``trusted.txt`` holds the most lines that each may have; ``python docs/trusted.py --check`` fails when one has more.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "lipcert"
LIMITS = Path(__file__).parent / "trusted.txt"


def module_path(name: str) -> Path | None:
    """The file of a module or package of lipcert; None for others, and for lipcert itself, which imports the API."""
    if not name.startswith("lipcert."):
        return None
    place = SOURCE.joinpath(*name.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def imports(path: Path) -> frozenset[str]:
    """Names of the modules that a file imports; a name that is imported may be a module, too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return frozenset(found)


def closure(start: Path) -> list[Path]:
    """A file and all it imports, packages included."""
    seen: list[Path] = []
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.append(path)
        names = imports(path)
        packages = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
        waiting += [found for name in sorted(names | packages) if (found := module_path(name)) is not None]
    return sorted(seen)


def kinds() -> dict[str, Path]:
    """Kind of certificate → the file of its check."""
    result: dict[str, Path] = {}
    for path in sorted((SOURCE / "certificates").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "certificate":
                        result[str(ast.literal_eval(mark.args[0]))] = path
    return dict(sorted(result.items()))


def parts() -> dict[str, list[Path]]:
    """What every bound rests on beside the check of its kind → files; some are in a kind's closure, too."""
    read = [path for folder in ("capture", "ops") for path in sorted((SOURCE / folder).rglob("*.py"))]
    model = {found for path in read for found in closure(path)}
    problem = closure(SOURCE / "problem.py")
    files = {*(SOURCE / "capture" / "onnx").glob("*.py"), SOURCE / "capture" / "vnnlib.py"}
    proofs = {found for start in kinds().values() for found in closure(start)}
    return {
        "problem": problem,
        "capture": sorted(model - set(problem) - files),
        "onnx": sorted(files),
        "verify": sorted(
            set(closure(SOURCE / "certificates" / "verify.py")) - proofs - set(problem)
            | {SOURCE / "certificates" / "verify_file.py"}
        ),
        "outputs": sorted(set(closure(SOURCE / "certificates" / "outputs.py")) - proofs - set(problem)),
        "rows": sorted(
            set(closure(SOURCE / "robustness" / "checks.py"))
            - proofs
            - set(problem)
            - model
            - set(closure(SOURCE / "certificates" / "outputs.py"))
        ),
        "variation": sorted({*(SOURCE / "variation").glob("*.py"), SOURCE / "numerics" / "least_gain.py"}),
        "lower_witness": sorted(set(closure(SOURCE / "certificates" / "lower_witness.py")) - set(problem)),
        "counter_example": sorted(set(closure(SOURCE / "certificates" / "counter_example.py")) - set(problem)),
    }


#: What the parts are about.
PARTS = {
    "problem": "how a network with a domain and norms becomes increments",
    "capture": "how a model becomes a network, beyond that",
    "onnx": "how an ONNX file becomes a model, and a VNN-LIB file a box",
    "verify": "how a file is read and a Bound is made of a proof, beyond the checks and that",
    "outputs": "how bounds of outputs are proved, beyond the checks of norms and what f is",
    "rows": "how the rows of a certification are proved, beyond bounds of outputs and what f is",
    "variation": "how inverse and one-sided constants and signs of derivatives follow from Bounds and boxes",
    "lower_witness": "how a lower bound is proved, beyond what f is",
    "counter_example": "how a low output at a point is proved, beyond what f is",
}


def length(path: Path) -> int:
    """Lines of a file, docstrings and comments included: all of it has to be read."""
    return len(path.read_text(encoding="utf-8").splitlines())


def lines() -> dict[str, int]:
    """Kind or part → lines of its files."""
    files = {kind: closure(start) for kind, start in kinds().items()} | parts()
    return {name: sum(length(path) for path in found) for name, found in files.items()}


def limits() -> dict[str, int]:
    """Kind or part → the most lines it may have."""
    rows = (row.split() for row in LIMITS.read_text(encoding="utf-8").splitlines() if row.strip())
    return {name: int(most) for name, most in rows}


def show(files: list[Path]) -> None:
    """Lengths and names."""
    for path in files:
        print(f"  {length(path):5d}  {path.relative_to(SOURCE)}")


def main(arguments: list[str]) -> int:
    """Print the lists, with ``--check`` their lengths only; compare with the limits."""
    allowed, known = limits(), lines()
    for kind, start in kinds().items():
        print(f"{kind}: {known[kind]} lines (at most {allowed.get(kind, 0)})")
        show(closure(start) if "--check" not in arguments else [])
    for part, found in parts().items():
        print(f"{part}, {PARTS[part]}: {known[part]} lines (at most {allowed.get(part, 0)})")
        show(found if "--check" not in arguments else [])
    wrong = [kind for kind, count in known.items() if count > allowed.get(kind, 0)]
    for kind in wrong:
        print(f"{kind} has grown to {known[kind]} lines, more than {allowed.get(kind, 0)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
