"""The default call on what people load: value, guarantee and seconds at several budgets, beside single methods.

    .venv/bin/python benchmarks/bench_default.py [--budgets 10 60 300] [--only NAME …] [--large] [--cpu]

Every row runs in a process of its own, one thread, memory as it comes. With ``--cpu`` seconds and budgets are CPU
seconds of the process: on a machine that others use too, they are what an idle one would need. ``default.csv`` is
rewritten as rows finish and ``default.md`` made from it; rows that a run does not repeat stay.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIELDS = ("network", "method", "budget", "value", "guarantee", "found_by", "seconds", "clock", "load", "remark")


def worker(name: str, method: str, budget: float, cpu: bool) -> dict:
    """One row, in this process."""
    if cpu:
        time.perf_counter = time.process_time
    import default_networks
    import torch

    import lipcert

    torch.set_num_threads(1)
    network = default_networks.find(name)
    model, x = network.model(), torch.zeros(1, *network.shape)
    tiny = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Softplus()).eval()
    lipcert.bound(tiny, torch.zeros(1, 2), method="autolip")  # imports much of torch
    began = time.perf_counter()
    bound = lipcert.bound(model, x, method=method, budget=budget)
    seconds = time.perf_counter() - began
    return {"value": bound.value, "guarantee": bound.guarantee, "found_by": bound.method, "seconds": seconds}


def measure(name: str, method: str, budget: float, cpu: bool) -> dict:
    """One row in a process of its own."""
    row = {"network": name, "method": method, "budget": budget, "clock": "CPU" if cpu else "wall"}
    row["load"] = round(os.getloadavg()[0], 1)
    command = [sys.executable, str(Path(__file__).resolve()), "--row", name, method, str(budget)] + ["--cpu"] * cpu
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        return row | {"remark": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return row | json.loads(done.stdout.strip().splitlines()[-1])


def key(row: dict) -> tuple[str, str, float]:
    """What identifies a row."""
    return row["network"], row["method"], float(row["budget"])


def read(path: Path) -> dict[tuple[str, str, float], dict]:
    """The rows of an earlier run."""
    if not path.exists():
        return {}
    with path.open() as file:
        return {key(row): row for row in csv.DictReader(file)}


def write(rows: dict[tuple[str, str, float], dict], folder: Path) -> None:
    """``default.csv`` and ``default.md``."""
    with (folder / "default.csv").open("w", newline="") as file:
        out = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
        out.writeheader()
        out.writerows(rows.values())
    (folder / "default.md").write_text(page(rows))


def page(rows: dict[tuple[str, str, float], dict]) -> str:
    """The table: a line per network and budget, with the best of all single methods, at any budget, beside it."""
    lines = [
        "# The default call",
        "",
        "`lipcert.bound(model, x, budget=…)` beside the best value that any single method gave at any budget of this",
        "table. Seconds include the capture of the model, which the budget does not. Made by `bench_default.py`; one",
        "thread; *clock* says whether budgets and seconds are CPU or wall seconds, *load* how busy the machine was:",
        "rows of a load of 8 and more ran beside 14 others on 16 cores of another machine (`--jobs 15`).",
        "",
        "| network | budget | value | of best | guarantee, by | seconds | clock, load | best single |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        if row["method"] != "auto":
            continue
        single = [
            r for r in rows.values() if r["network"] == row["network"] and r["method"] != "auto" and r.get("value")
        ]
        best = min(single, key=lambda r: float(r["value"]), default=None)
        beside = "" if best is None else f"{float(best['value']):.5g}, {best['method']}, {float(best['seconds']):.0f} s"
        if not row.get("value"):
            lines.append(
                f"| {row['network']} | {float(row['budget']):g} | — | | {row.get('remark', '')} | | | {beside} |"
            )
            continue
        value = float(row["value"])
        ratio = "" if best is None else f"{value / float(best['value']):.3f}"
        lines.append(
            f"| {row['network']} | {float(row['budget']):g} | {value:.5g} | {ratio} | {row['guarantee']}, "
            f"{row['found_by']} | {float(row['seconds']):.1f} | {row['clock']}, {row['load']} | {beside} |"
        )
    return "\n".join(lines) + "\n"


def rows_wanted(args: argparse.Namespace) -> list[tuple[str, str, float]]:
    """(network, method, budget) of every row, the longest first."""
    import default_networks

    wanted = []
    for network in default_networks.NETWORKS:
        if network.name not in args.only if args.only else network.group == "large" and not args.large:
            continue
        wanted += [(network.name, "auto", budget) for budget in args.budgets]
        wanted += [(network.name, method, budget) for method in network.rivals for budget in args.single_budgets]
    wanted = [row for row in wanted if args.methods is None or row[1] in args.methods]
    return sorted(wanted, key=lambda row: -row[2])


def main() -> None:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs=3, metavar=("NETWORK", "METHOD", "BUDGET"))
    parser.add_argument("--budgets", nargs="*", type=float, default=[10.0, 60.0, 300.0])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--methods", nargs="*", help="auto and the single methods to run; default: auto and all rivals")
    parser.add_argument("--single-budgets", nargs="*", type=float, default=[60.0])
    parser.add_argument("--large", action="store_true", help="the large networks too")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time; leave a core for each")
    parser.add_argument("--to", type=Path, default=HERE, help="folder of default.csv and default.md")
    args = parser.parse_args()
    if args.row:
        row = worker(args.row[0], args.row[1], float(args.row[2]), args.cpu)
        print(json.dumps({k: (v if not isinstance(v, float) or math.isfinite(v) else str(v)) for k, v in row.items()}))
        return
    rows = read(args.to / "default.csv")
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in as_completed([pool.submit(measure, *row, args.cpu) for row in rows_wanted(args)]):
            rows[key(done.result())] = done.result()
            write(dict(sorted(rows.items())), args.to)


if __name__ == "__main__":
    main()
