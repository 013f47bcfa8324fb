"""The sections of the page; one that has nothing to show is None."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lipcert.digits import at_least, at_most
from lipcert.markup import Markup, joined, table, tag
from lipcert.report.charts import Axis, bar, chart, dots, frame, level, line, scrolled, spark
from lipcert.report.findings import Findings, Layer
from lipcert.result import Attempt, Bound

#: Rows of the table of layers, and the column of what LipSDP gives away.
LAYERS, GIVEN = 400, 6


def methods(findings: Findings) -> Markup | None:
    """Every method's bound against its time."""
    rows: Sequence[Attempt] = findings.bound.tried if findings.comparison is None else findings.comparison.rows
    if not rows:
        return None
    lower = None if findings.lower is None else findings.lower.value
    cells = [[
        row.method, "none" if row.value is None else at_most(row.value), ratio(row.value, lower), f"{row.seconds:.2f}",
        row.guarantee or "", row.remark,
    ] for row in rows]  # fmt: skip
    caption = "Bounds by method" + ("." if lower is None else f", beside the lower bound {at_least(lower)}.")
    head = ("method", "bound", "bound / lower", "seconds", "guarantee", "remark")
    listed = scrolled(table(caption, head, cells, data_sortable=True))
    points = [
        (max(row.seconds, 1e-3), row.value, row.method)
        for row in rows
        if row.value is not None and 0 < row.value < math.inf
    ]
    if not points:
        return listed
    floor = lower is not None and lower > 0
    x = Axis.of("seconds", [point[0] for point in points], log=True)
    y = Axis.of("bound", [*(point[1] for point in points), *([lower] if floor and lower is not None else [])], log=True)
    shown = [frame(x, y), dots(x, y, points)]
    if floor and lower is not None:
        shown.append(level(y, lower, "lower bound"))
    about = (
        "Each point is a method: its time to the right, its bound upwards; lower is tighter. The table has the numbers."
    )
    return joined([chart("methods", "Bounds against time", about, *shown), listed])


def ratio(value: float | None, lower: float | None) -> str:
    """value / lower bound, where both say something."""
    return f"{value / lower:.4g}" if value is not None and lower is not None and lower > 0 else ""


def layers(findings: Findings) -> Markup | None:
    """Where the looseness comes from."""
    found = findings.table
    if found is None or not found.layers:
        return None
    several = any(layer.share is not None for layer in found.layers)
    words = [f"The product of the layers' own constants is {at_most(found.product)}."]
    if several and found.lower is not None:
        words.append(
            f"The lower bound's witness is stretched by {found.lower:.6g} in all. "
            "“Lost” says which part of log(product / witness) a layer adds: the parts make up 100 %; what is lost "
            "inside a branch is told where the branch ends."
        )
    if found.sdp is not None:
        words.append(f"Multipliers are those of LipSDP's bound {at_most(found.sdp)}.")
    given = any(abs(layer.slack or 0.0) > 1e-3 for layer in found.layers)  # at a ReLU's slopes nothing is, ever
    if found.form is not None and given:
        words.append(
            "“Given away” says which part of bound² − witness² LipSDP's inequality of the layer leaves unused at the "
            f"witness; {100 * found.form:.1f} % belong to no layer: another direction would be worse for the form."
        )
    head: tuple[str, ...] = (
        "layer",
        "kind",
        "factor",
        "stretch of witness",
        "lost",
        "multipliers",
        "given away",
        "singular values",
    )
    rows = [_layer(layer) for layer in found.layers[:LAYERS]]
    filled = [k for k, _ in enumerate(head) if any(row[k] != "" for row in rows) and (k != GIVEN or given)]
    head, rows = tuple(head[k] for k in filled), [[row[k] for k in filled] for row in rows]
    more = "" if len(found.layers) <= LAYERS else f" The first {LAYERS} of {len(found.layers)} layers."
    caption = "Layer by layer, by the names of the model's modules; singular values are estimates." + more
    return joined([
        tag("p", " ".join(words)),
        scrolled(table(caption, head, rows, data_sortable=True)),
    ])  # fmt: skip


def _layer(layer: Layer) -> list[object]:
    spread = layer.multipliers
    values = layer.spectrum
    return [
        layer.label,
        layer.kind,
        at_most(layer.constant, 6),
        "" if layer.stretch is None else f"{layer.stretch:.6g}",
        _share(layer.share),
        "" if spread is None else f"{spread[0]:.3g} … {spread[1]:.3g} … {spread[2]:.3g}",
        _share(layer.slack),
        joined([spark(values), _listed(values, layer.complete)]) if values else "",
    ]


def _share(share: float | None) -> object:
    return "" if share is None else joined([bar(share), f"{100 * share:.1f} %"])


def _listed(values: Sequence[float], complete: bool) -> str:
    few = ", ".join(f"{v:.4g}" for v in values[:3])
    return few if complete and len(values) <= 3 else few + ", …"


def curve(findings: Findings) -> Markup | None:
    """Bound against radius."""
    found = findings.curve
    if not found:
        return None
    everywhere = findings.bound if findings.bound.domain is None else None
    rows = [[f"{radius:.6g}", at_most(b.value), b.guarantee, b.method, f"{b.seconds:.2f}"] for radius, b in found]
    head = ("radius", "bound", "guarantee", "method", "seconds")
    listed = scrolled(table("Bounds on balls around one point.", head, rows))
    points = [(radius, b.value) for radius, b in found if math.isfinite(b.value)]
    if len(points) < 2:
        return listed
    values = [point[1] for point in points]
    limit = everywhere.value if everywhere is not None and math.isfinite(everywhere.value) else None
    x = Axis.of("radius", [point[0] for point in points], zero=True)
    y = Axis.of("bound", values if limit is None else [*values, limit], zero=True)
    shown = [frame(x, y), line(x, y, points, "bound")]
    if limit is not None:
        shown.append(level(y, limit, "everywhere"))
    return joined([chart("curve", "Bound against radius", "The table has the numbers.", *shown), listed])


def robustness(findings: Findings) -> Markup | None:
    """Certified accuracy against the radius."""
    run = findings.certification
    if run is None:
        return None
    radii, certified, attacked = run.drawn_curve()
    x = Axis.of(f"radius (l{run.threat.norm:g})", radii, zero=True)
    y = Axis("examples, %", 0.0, 100.0)
    proved = [(r, 100 * a) for r, a in zip(radii, certified, strict=True)]
    left = [(r, 100 * a) for r, a in zip(radii, attacked, strict=True)]
    about = "Certified accuracy, and what the attack leaves; the truth lies between. The text below has the numbers."
    shown = [
        frame(x, y),
        line(x, y, left, "attack leaves", "orange", True),
        line(x, y, proved, "certified", "blue", True),
    ]
    return joined([chart("robustness", "Certified accuracy", about, *shown), tag("pre", run.table())])


def breakdown(bound: Bound) -> Markup | None:
    """The steps of the headline's own proof."""
    if not bound.breakdown:
        return None
    rows = [
        [row.label, row.kind, at_most(row.constant, 6), at_most(row.cumulative), row.guarantee, row.remark]
        for row in bound.breakdown[:LAYERS]
    ]
    head = ("step", "kind", "constant", "so far", "guarantee", "remark")
    return scrolled(table("Steps of the proof, as the check took them.", head, rows))
