"""Pictures of results, by matplotlib (``pip install 'lipcert[report]'``); ``from lipcert import plot``.

Every function takes a ``path=`` to save the picture to, returns the ``matplotlib`` figure, which a notebook shows, and
raises InputError where matplotlib is missing or the file cannot be written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipcert.errors import InputError
from lipcert.figures import new_figure, saved
from lipcert.report.findings import LayerTable
from lipcert.result import Bound, Comparison
from lipcert.robustness.certification import Certification

Place = str | Path | None


def methods(result: Comparison | Bound, path: Place = None) -> Any:
    """Every method's bound against its seconds, with the lower bound; of a Bound what ``method="auto"`` tried."""
    rows = result.rows if isinstance(result, Comparison) else result.tried
    points = [(max(r.seconds, 1e-3), r.value, r.method) for r in rows if r.value is not None and 0 < r.value < math.inf]
    if not points:
        raise InputError("there is nothing to draw: no method gave a bound that is positive and finite.")
    figure, axes = new_figure()
    for seconds, value, name in points:
        axes.plot(seconds, value, "o", color="tab:blue")
        axes.annotate(name, (seconds, value), xytext=(5, 3), textcoords="offset points", fontsize="small")
    if isinstance(result, Comparison) and result.lower.value > 0:
        axes.axhline(result.lower.value, color="tab:orange", linestyle="--", label="lower bound")
        axes.legend()
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="bound")
    return saved(figure, path)


def radii(radii: Sequence[float], bounds: Sequence[Bound], everywhere: Bound | None = None, path: Place = None) -> Any:
    """Bounds on balls against their radius.

    Args:
        radii: of the balls.
        bounds: as many, of ``lipcert.bound(..., domain=[Ball(x, r) for r in radii])``.
        everywhere: the bound on the whole space, as a line.
        path: where to save the picture, if anywhere.
    """
    if not radii or len(radii) != len(bounds):
        raise InputError(f"one bound for each radius is drawn; given are {len(radii)} radii and {len(bounds)} bounds.")
    figure, axes = new_figure()
    axes.plot(list(radii), [bound.value for bound in bounds], "o-", color="tab:blue", label="on the ball")
    if everywhere is not None:
        axes.axhline(everywhere.value, color="tab:orange", linestyle="--", label="everywhere")
    axes.set(xlabel="radius", ylabel="bound", xlim=(0, None), ylim=(0, None))
    axes.legend()
    return saved(figure, path)


def certified_accuracy(run: Certification, path: Place = None) -> Any:
    """Certified accuracy, and what the attack leaves, against the radius (``Certification.plot``)."""
    return run.plot(path)


def spectra(table: LayerTable, path: Place = None) -> Any:
    """Leading singular values of every linear map, estimates, over the largest of each."""
    found = [layer for layer in table.layers if layer.spectrum and layer.spectrum[0] > 0]
    if not found:
        raise InputError("there is nothing to draw: no layer of this table has singular values.")
    figure, axes = new_figure()
    for layer in found:
        shares = [value / layer.spectrum[0] for value in layer.spectrum]
        axes.plot(range(1, len(shares) + 1), shares, ".-", label=f"{layer.label} ({layer.spectrum[0]:.3g})")
    axes.set(xlabel="number", ylabel="singular value / largest", ylim=(0, 1.05))
    axes.legend(fontsize="small")
    return saved(figure, path)


def looseness(table: LayerTable, path: Place = None) -> Any:
    """Which part of log(product of layer constants / lower bound) each layer adds; see ``LayerTable``."""
    found = [layer for layer in table.layers if layer.share is not None]
    if not found:
        raise InputError("there is nothing to draw: this table has no lower bound that layers are measured against.")
    figure, axes = new_figure(6.0, 1.0 + 0.25 * len(found))
    axes.barh(
        [f"{k}  {v.label}" for k, v in enumerate(found)], [100 * (v.share or 0.0) for v in found], color="tab:blue"
    )
    axes.invert_yaxis()
    axes.set(xlabel=f"% of log({table.product:.4g} / {table.lower:.4g})")
    return saved(figure, path)
