"""What all pictures share: matplotlib where it is installed, and a file where one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lipcert.errors import InputError


def new_figure(width: float = 6.0, height: float = 4.0) -> tuple[Any, Any]:
    """A figure, of no window, and its axes; inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("pictures need matplotlib: pip install 'lipcert[report]'.") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def saved(figure: Any, path: str | Path | None) -> Any:
    """The figure, written to ``path`` unless that is None.

    Raises:
        InputError: it cannot be written.
    """
    if path is not None:
        try:
            figure.savefig(path)
        except (OSError, ValueError) as problem:
            raise InputError(f"cannot write the picture {path}: {problem}") from problem
    return figure
