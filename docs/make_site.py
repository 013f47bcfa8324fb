"""Lay out what the site is built of in build/pages, with links as they are in the repository: ``make docs`` runs this.

The site shows README, docs, benchmarks and experiments where they lie, so a link that is right on one is right on the
other. The page of methods is made from the registry here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from docs import make_constants, make_methods

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "build" / "pages"
#: What is shown, by folder: patterns of names.
SHOWN = {
    ".": ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    "docs": ("*.md", "api/*.md", "*.css", "*.json", "trusted.txt"),
    "benchmarks": ("*.md", "*.png"),
    "experiments/results": ("*.md", "*.png"),
    "experiments": ("training.md", "training.py"),
    "examples": ("*.py", "*.ipynb"),
}


def lay_out() -> None:
    """Copy what is shown; what is no longer there goes."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for folder, patterns in SHOWN.items():
        for path in (found for pattern in patterns for found in sorted((ROOT / folder).glob(pattern))):
            target = PAGES / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    (PAGES / "docs" / "constants.md").write_text(make_constants.page(), encoding="utf-8")
    (PAGES / "docs" / "methods.md").write_text(make_methods.page(), encoding="utf-8")


if __name__ == "__main__":
    lay_out()
    print(f"laid out {PAGES}")
