"""The graph: a picture whose boxes lead to the rows of the table below it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lipcert.markup import Markup, joined, table, tag
from lipcert.report.charts import scrolled
from lipcert.report.digits import at_least, at_most
from lipcert.report.findings import Part

#: Nodes up to which there is a picture, and rows of the table.
DRAWN, LISTED = 120, 600
#: Characters that fit into a box.
FIT = 30
ROW, WIDE, TALL, EDGE = 46, 240, 30, 60


def graph(nodes: Sequence[Part]) -> Markup:
    """Picture and table."""
    shown = nodes[:LISTED]
    rows = [[
        tag("b", node.label), node.kind, "×".join(map(str, node.shape[1:] or node.shape)),
        ", ".join(str(p) for p in node.parents), "" if node.constant is None else at_most(node.constant, 6),
        between(node.low, node.high), node.rule or node.line,
    ] for node in shown]  # fmt: skip
    head = ("node", "kind", "shape", "reads", "constant", "value lies in", "rule")
    left_out = f" The first {LISTED} of {len(nodes)} nodes." if len(nodes) > LISTED else ""
    caption = "Nodes in the order in which they are computed; ranges are proved, rounding included." + left_out
    numbered = [[tag("span", k, id=f"node-{k}"), *row] for k, row in enumerate(rows)]
    listed = scrolled(table(caption, ("no.", *head), numbered, id="nodes"))
    picture = _picture(nodes) if 1 < len(nodes) <= DRAWN else None
    return joined(part for part in (picture, listed) if part is not None)


def between(low: float, high: float) -> str:
    """An interval, in words where nothing is known."""
    if low == -math.inf and high == math.inf:
        return "unbounded"
    return f"{at_least(low, 4)} … {at_most(high, 4)}"


def _picture(nodes: Sequence[Part]) -> Markup:
    height = ROW * len(nodes) + 8
    edges, boxes = [], []
    for k, node in enumerate(nodes):
        for parent in node.parents:
            edges.append(tag("path", class_="edge", d=_edge(parent, k)))
        top = ROW * k + 8
        label = node.label if len(node.label) <= FIT else node.label[: FIT // 2 - 1] + "…" + node.label[-FIT // 2 :]
        boxes.append(tag(
            "a", tag("title", f"node {k}: {node.label}"),
            tag("rect", class_="box", x=EDGE, y=top, width=WIDE, height=TALL, rx=4),
            tag("text", label, x=EDGE + 8, y=top + 19), href=f"#node-{k}", aria_label=f"node {k}: {node.label}",
        ))  # fmt: skip
    return tag("svg", tag("title", "The network's graph; every box leads to its row in the table."), *edges, *boxes,
               class_="tree", viewBox=f"0 0 {EDGE + WIDE + 8} {height}", role="group",
               aria_label="The network's graph")  # fmt: skip


def _edge(parent: int, child: int) -> str:
    """Straight to the next node, around the left of what lies between."""
    start, end = ROW * parent + 8 + TALL, ROW * child + 8
    if child == parent + 1:
        return f"M{EDGE + 30} {start}V{end}"
    reach, start, end = max(4, EDGE - 8 * (child - parent)), start - TALL // 2, end + TALL // 2
    return f"M{EDGE} {start}C{reach} {start} {reach} {end} {EDGE} {end}"
