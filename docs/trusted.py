"""Print, for every kind of certificate, the files that its check imports and how long they are (``make trusted``).

The closure is the static one: every ``import`` in a file counts, also inside functions, but not under TYPE_CHECKING.
Capture is not in it: what f is, is another question. ``trusted.txt`` holds the most lines that a kind may have;
``python docs/trusted.py --check`` fails when one has more.
"""

from __future__ import annotations

import ast
import sys
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


def imports(path: Path) -> set[str]:
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
    return found


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


def length(path: Path) -> int:
    """Lines of a file, docstrings and comments included: all of it has to be read."""
    return len(path.read_text(encoding="utf-8").splitlines())


def lines() -> dict[str, int]:
    """Kind → lines of the closure of its check."""
    return {kind: sum(length(path) for path in closure(start)) for kind, start in kinds().items()}


def limits() -> dict[str, int]:
    """Kind → the most lines it may have."""
    rows = (row.split() for row in LIMITS.read_text(encoding="utf-8").splitlines() if row.strip())
    return {kind: int(most) for kind, most in rows}


def main(arguments: list[str]) -> int:
    """Print the lists, with ``--check`` their lengths only; compare with the limits."""
    allowed, known = limits(), lines()
    for kind, start in kinds().items():
        print(f"{kind}: {known[kind]} lines (at most {allowed.get(kind, 0)})")
        for path in closure(start) if "--check" not in arguments else ():
            print(f"  {length(path):5d}  {path.relative_to(SOURCE)}")
    wrong = [kind for kind, count in known.items() if count > allowed.get(kind, 0)]
    for kind in wrong:
        print(
            f"the check of {kind} has grown to {known[kind]} lines, more than {allowed.get(kind, 0)}", file=sys.stderr
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
