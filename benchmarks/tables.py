"""Rows of the benchmark as CSV, as a Markdown table with its ratios, and as a plot of value against time."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import nets

FIELDS = (
    "net", "method", "status", "value", "primal", "guarantee", "seconds", "cpu_seconds", "solver_seconds", "passes",
    "peak_mb", "remark", "threads", "load", "limit", "machine", "version", "date",
)  # fmt: skip
NUMBERS = {"value", "primal", "seconds", "cpu_seconds", "solver_seconds", "passes", "peak_mb", "load", "limit"}
Row = dict[str, Any]


def machine() -> str:
    """Processor and cores, in words."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


def version() -> str:
    """The commit that was measured, ``-dirty`` with uncommitted changes; ``BENCH_VERSION`` overrides it."""
    if label := os.environ.get("BENCH_VERSION"):
        return label
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


class Results:
    """The CSV file: one row per network and method, the latest run of each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, str], Row] = {}
        self._read()

    def _read(self) -> None:
        if self.path.exists():
            with self.path.open(newline="") as file:
                for row in csv.DictReader(file):
                    self.rows[row["net"], row["method"]] = {
                        k: float(v) if k in NUMBERS else v for k, v in row.items() if v != ""
                    }

    def put(self, row: Row) -> None:
        """Add or replace a row and write the file (atomically); rows that another run wrote meanwhile are kept."""
        self._read()
        self.rows[row["net"], row["method"]] = row
        partial = self.path.with_suffix(".tmp")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            for net in nets.NETS:
                writer.writerows(self.by_net(net.name))
        partial.replace(self.path)

    def by_net(self, name: str) -> list[Row]:
        """Rows of one network, in the order of ``nets.py``."""
        order = [m.removeprefix("slow ") for m in nets.find(name).methods]
        return [self.rows[name, m] for m in order if (name, m) in self.rows]


def brief(row: Row) -> str:
    """One line for the terminal."""
    if row["status"] != "ok":
        return f"{row['status']}: {row.get('remark', '')}"
    return f"{number(row['value'])}  {row['seconds']:.3g} s  {row['guarantee']}  {row.get('remark', '')}"


def number(value: float | None, digits: int = 8) -> str:
    """A number for the table, or a dash."""
    return "–" if value is None else f"{value:.{digits}g}"


def excess(value: float | None, base: float | None) -> str:
    """value / base: in per cent above it when close, else as a factor."""
    if value is None or base is None or base <= 0:
        return "–"
    ratio = value / base
    return f"{100 * (ratio - 1):+.4f} %" if abs(ratio - 1) < 0.1 else f"×{ratio:.4g}"


def base_of(net: nets.Net, results: Results) -> tuple[float | None, str]:
    """What values are measured against: the reference optimum, else lipsdp's primal value."""
    if net.reference is not None:
        return net.reference, "reference optimum"
    primal = results.rows.get((net.name, "lipsdp"), {}).get("primal")
    return primal, "primal value of lipsdp (below the optimum)"


def alarms(results: Results) -> tuple[list[str], list[str]]:
    """Upper values that cannot be right, lipcert's and the peers': below the attack or what ``lipsdp`` can reach."""
    ours: list[str] = []
    peers: list[str] = []
    for net in nets.NETS:
        rows = [r for r in results.by_net(net.name) if r["status"] == "ok" and r.get("value") is not None]
        lower = next((r["value"] for r in rows if r["method"] == "attack"), 0.0)
        primal = max((r["primal"] for r in rows if r.get("primal") and r["method"] != "lipsdp_layer"), default=0.0)
        for row in rows:
            if row["method"] == "attack":
                continue
            for what, floor in (("reference", net.reference or 0.0), ("primal value", primal), ("attack", lower)):
                if row["value"] < floor * (1 - 1e-7):
                    found = peers if row["guarantee"] == "none" else ours
                    found.append(f"{net.name}, {row['method']}: {row['value']:.10g} < {what} {floor:.10g}")
    return ours, peers


def write(results: Results, folder: Path) -> None:
    """``results.md``, network by network."""
    lines = [
        "# LipSDP side by side",
        "",
        "Made by `make bench` (`benchmarks/bench_lipsdp.py`) from `results.csv`. Global, l2 → l2. `over base` compares",
        "a value with the base under the network's title: the reference optimum of LipSDP-Neuron by an independent",
        "interior point where there is one, else lipsdp's own primal value, which lies below the optimum. `/ lower`:",
        "value over the attack's lower bound. `vs CLARABEL`: CLARABEL's own solve time, without cvxpy's compilation,",
        "over this row's seconds. Peers' values carry no guarantee: they hold up to the solver's tolerance.",
        "",
    ]
    setups = sorted({f"{r['machine']}; {r['threads']} thread(s)" for r in results.rows.values()})
    dates = sorted({r["date"] for r in results.rows.values()})
    versions = sorted({r.get("version", "").removesuffix("-dirty") for r in results.rows.values()})
    loads = [r["load"] for r in results.rows.values() if "load" in r]
    if loads:
        lines += [
            f"Machine: {' / '.join(setups)}; {' / '.join(dates)}; commits {', '.join(versions)}, each row's own in the "
            f"CSV. Load average when a row began: {min(loads):g} to {max(loads):g} "
            "(column `load`; above the number of cores seconds are too long, CPU seconds less so).",
            "",
        ]
    ours, peers = alarms(results)
    lines += [
        f"**Bounds of lipcert below the optimum, its primal value or the attack:** {'; '.join(ours) or 'none'}.",
        "",
    ]
    lines += [f"Peers' values below these (by more than 1e-7): {'; '.join(peers) or 'none'}.", ""]
    for net in nets.NETS:
        if rows := results.by_net(net.name):
            lines += [*_section(net, rows, results), ""]
    (folder / "results.md").write_text("\n".join(lines))


def _section(net: nets.Net, rows: list[Row], results: Results) -> list[str]:
    base, meaning = base_of(net, results)
    lower = results.rows.get((net.name, "attack"), {}).get("value")
    clarabel = results.rows.get((net.name, "cvxpy CLARABEL"), {}).get("solver_seconds")
    lines = [
        f"## {net.title} (`{net.name}`)",
        "",
        f"base: {number(base, 10)}, {meaning}" if base is not None else "base: none",
        "",
        "| method | value | over base | / lower | guarantee | s | CPU s | vs CLARABEL | peak MB | load | remark |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        remark = row.get("remark", "")
        if row["status"] != "ok":
            lines.append(
                f"| {row['method']} | – | – | – | {row['status']} | – | – | – | – | {row['load']:g} | {remark} |"
            )
            continue
        if row.get("passes"):
            remark = f"{row['passes']:g} passes, primal value {number(row['primal'])}"
        speed = f"×{clarabel / row['seconds']:.3g}" if clarabel and row["method"] != "attack" else "–"
        over = excess(row.get("value"), base) if row["method"] != "attack" else "–"
        ratio = f"{row['value'] / lower:.4g}" if row.get("value") is not None and lower else "–"
        lines.append(
            f"| {row['method']} | {number(row.get('value'))} | {over} | {ratio} | {row['guarantee']} | "
            f"{row['seconds']:.3g} | {number(row.get('cpu_seconds'), 3)} | {speed} | {number(row.get('peak_mb'))} | "
            f"{row['load']:g} | {remark} |"
        )
    return lines


def plot(results: Results, path: Path) -> None:
    """Value over base against seconds, one marker per method, one point per network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    methods = list(dict.fromkeys(r["method"] for net in nets.NETS for r in results.by_net(net.name)))
    colours = plt.get_cmap("tab10")
    for index, method in enumerate(m for m in methods if m != "attack"):
        points = []
        for net in nets.NETS:
            row = results.rows.get((net.name, method))
            base, _ = base_of(net, results)
            if row and row["status"] == "ok" and row.get("value") and base:
                points.append((row["seconds"], max(row["value"] / base - 1.0, 1e-8)))
        if points:
            seconds, over = zip(*points, strict=True)
            marker = "os^vDP*X<>"[index % 10]
            axes.scatter(seconds, over, 45, color=colours(index % 10), marker=marker, label=method, alpha=0.85)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("value / base − 1")
    axes.axhline(1e-3, color="grey", linewidth=0.8, linestyle="--")
    axes.text(axes.get_xlim()[0], 1e-3, " 0.1 %", color="grey", va="bottom", fontsize=8)
    axes.set_title(
        "Excess over the LipSDP optimum (or lipsdp's primal value) against time, one point per network", fontsize=10
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
