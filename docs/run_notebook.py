"""Run examples/tour.ipynb from the first cell to the last, in a process of its own; an error in a cell fails."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "examples" / "tour.ipynb"


def main() -> None:
    """Run it; what it shows is not kept."""
    started = time.perf_counter()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    print(f"{NOTEBOOK.name}: {len(notebook.cells)} cells, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
