"""Run the examples of the pages, every ``pycon`` block, one page after another: ``make docs`` runs this.

``...`` in an expected output stands for anything; a page has one namespace, and an empty folder to write to.
"""

from __future__ import annotations

import contextlib
import doctest
import re
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).parent
BLOCK = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def run(path: Path) -> tuple[int, int]:
    """(failed, tried) of one page."""
    text = path.read_text(encoding="utf-8")
    # blank lines for all else, so that a failure names the page's own line
    lines = [""] * (text.count("\n") + 1)
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        lines[first : first + block.group(1).count("\n")] = block.group(1).splitlines()
    test = doctest.DocTestParser().get_doctest("\n".join(lines), {}, path.name, str(path), 0)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        runner.run(test)
    return runner.failures, runner.tries


def main() -> int:
    """Run all pages; 1 if an example gives something else than the page says."""
    failed = 0
    for path in sorted(DOCS.glob("*.md")):
        started = time.perf_counter()
        wrong, tried = run(path)
        failed += wrong
        if tried:
            print(f"{path.name}: {tried - wrong} of {tried} examples, {time.perf_counter() - started:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
