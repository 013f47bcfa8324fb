"""Certified beside attacked accuracy: public networks and published figures, own networks with and without penalty.

    .venv/bin/python benchmarks/bench_robustness.py [--weights FOLDER] [--only NAME] [--images N] [--effort E]
        [--budget S] [--table]

``robustness_networks.py`` says what a folder of weights holds; without one the public networks are left out. Own
networks are trained at the first run and kept in ``benchmarks/.cache``. A row is written to ``robustness.csv`` as soon
as it is finished, and ``robustness.md`` anew; ``--table`` only writes the latter.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from breaking import EFFORT
from robustness_networks import own, public
from robustness_run import largest, run
from robustness_table import Results, brief, write
from tables import machine, version

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the chosen networks, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of the public networks' weights and images")
    parser.add_argument("--only", help="public, moderate, plain, largest, or part of NETWORK@RADIUS")
    parser.add_argument("--images", type=int, help="so many of each network, as far as there are")
    parser.add_argument("--effort", type=float, default=EFFORT, help="of the attack on certified images; 0: none")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds per image at most")
    parser.add_argument("--table", action="store_true", help="write robustness.md from what was measured before")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(HERE / "robustness.csv")
    cases = [*(public(args.weights) if args.weights else []), *own()]
    for case in cases if not args.table else ():
        for radius in case.radii:
            if args.only not in (None, case.group) and args.only not in f"{case.name}@{radius.label}":
                continue
            for row in run(case, radius, args.images or case.images, args.effort, args.budget):
                about = {"load": round(os.getloadavg()[0], 1), "machine": machine(), "version": version()}
                results.put(row | about)
                print(brief(row), flush=True)
                write(results, HERE)
        if case.median and args.only in (None, "largest", case.name):
            row = largest(case, args.images or case.median, args.budget)
            results.put(row | {"load": round(os.getloadavg()[0], 1), "machine": machine(), "version": version()})
            print(f"{case.name}: median {row['radius']:.4f}, {row['certify_seconds']:.1f} s", flush=True)
            write(results, HERE)
    write(results, HERE)


if __name__ == "__main__":
    main()
