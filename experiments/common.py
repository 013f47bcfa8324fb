"""What the experiments share: rows of results, the order that they must obey, and CSV and Markdown files."""

from __future__ import annotations

import csv
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import lipcert
from lipcert.methods.base import Method

RESULTS = Path(__file__).resolve().parent / "results"

Kind = Literal["lower", "estimate", "upper"]


@dataclass(frozen=True)
class Row:
    """One number about one network.

    Attributes:
        net: the network.
        method: what made the number.
        kind: ``lower`` (with a witness), ``upper`` (a bound) or ``estimate`` (neither).
        value: the number; None if the method gave none.
        guarantee: of an upper bound; ``witness`` of a lower one; ``none`` of an estimate.
        seconds: wall time.
        remark: anything else; why there is no value.
    """

    net: str
    method: str
    kind: Kind
    value: float | None
    guarantee: str = "none"
    seconds: float | None = None
    remark: str = ""


def upper(
    net: str, model: nn.Module, x: Tensor, method: str | Method, label: str | None = None, budget: float = 60.0
) -> Row:
    """The row of one certified bound; a method that cannot do the network leaves its reason."""
    name = label or (method if isinstance(method, str) else method.name)
    try:
        found = lipcert.bound(model, x, method, budget=budget)
    except lipcert.LipcertError as problem:
        return Row(net, name, "upper", None, remark=str(problem).splitlines()[0])
    return Row(net, name, "upper", found.value, found.guarantee, found.seconds)


def lower(net: str, model: nn.Module, x: Tensor, inputs: Tensor | None = None, budget: float = 5.0) -> Row:
    """The row of the attack."""
    found = lipcert.lower_bound(model, x, inputs=inputs, budget=budget)
    return Row(net, "attack", "lower", found.value, "witness", found.seconds)


def estimate(net: str, model: nn.Module, x: Tensor, method: str, label: str | None = None, **options: object) -> Row:
    """The row of one of the 2018 paper's numbers."""
    try:
        found = lipcert.estimate(model, x, method, **options)  # type: ignore[arg-type]
    except lipcert.LipcertError as problem:
        return Row(net, label or method, "estimate", None, remark=str(problem).splitlines()[0])
    return Row(net, label or method, "estimate", found.value, "none", found.seconds)


def disorder(rows: Iterable[Row], tolerance: float = 1e-9) -> list[str]:
    """Upper bounds that lie below a lower bound of the same network: each one would be a bug of lipcert."""
    known = [row for row in rows if row.value is not None]
    found = []
    for low in (row for row in known if row.kind == "lower"):
        for high in (row for row in known if row.kind == "upper" and row.net == low.net):
            if high.value < low.value * (1.0 - tolerance):  # type: ignore[operator]
                found.append(f"{low.net}: {high.method} {high.value!r} < {low.method} {low.value!r}")
    return found


def verdict(rows: Sequence[Row]) -> str:
    """The line of a results page that says whether any bound was below a lower bound."""
    return f"Bounds below a lower bound: {'; '.join(disorder(rows)) or 'none'}."


def value_of(rows: Iterable[Row], net: str, method: str) -> float | None:
    """The value in the row of that network and method; None without one."""
    return next((row.value for row in rows if (row.net, row.method) == (net, method)), None)


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """All rows, in one file that is replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    partial.replace(path)


def number(value: float | None, digits: int = 5) -> str:
    """A number for a table, or a dash."""
    return "–" if value is None else f"{value:.{digits}g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def plain_table(rows: Iterable[Row]) -> list[str]:
    """A Markdown table with one line per row, without the network."""
    return table(
        ["number", "kind", "value", "guarantee", "s", "remark"],
        ([r.method, r.kind, number(r.value, 7), r.guarantee, number(r.seconds, 3), r.remark] for r in rows),
    )


def write_page(path: Path, title: str, lines: Sequence[str]) -> None:
    """A Markdown page of results, with the command that wrote it (the page has the script's name) and the machine."""
    command = shlex.join(["python", "-m", f"experiments.{path.stem}", *sys.argv[1:]])
    made = f"Written by `{command}` (lipcert {lipcert.__version__}, torch {torch.__version__}, {machine()})."
    path.write_text("\n".join([f"# {title}", "", made, "", *lines]) + "\n")


def machine() -> str:
    """Processor, its cores and the threads in use, in words."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"


def figure_axes(width: float = 7.5, height: float = 4.8):  # type: ignore[no-untyped-def]
    """A matplotlib figure and its axes, for files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")
