"""What anchored LipSDP certifies beside ``lipcert.certify``, on the networks of the robustness benchmark.

    .venv/bin/python benchmarks/bench_anchored.py [--weights FOLDER] [--only NETWORK@RADIUS,…] [--images N]

Anchored LipSDP: an image keeps its class within r where for each other class the margin at the image exceeds r times
the constant of that difference of outputs, sup |d(x') − d(x)|/‖x' − x‖ over the ball. The table is ``anchored.md``.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import date
from pathlib import Path

import torch
from robustness_networks import Case, Radius, own, public
from tables import machine, version
from torch import Tensor, nn

import lipcert

HERE = Path(__file__).resolve().parent
HEAD = """# Anchored LipSDP beside `certify`

Made by `bench_anchored.py`: the first images of each network; *LipSDP alone*: images that anchored LipSDP certifies and
`certify` does not. CPU seconds of one thread for the images that the attack leaves.

"""


def keeps(model: nn.Module, x: Tensor, label: int, radius: float, budget: float) -> bool:
    """Whether anchored LipSDP proves every margin of an image (1, *shape) on the ball."""
    with torch.no_grad():
        scores = model(x)[0].double()
    domain = lipcert.Ball(x[0], radius)
    for other in range(len(scores)):
        if other == label:
            continue
        row = torch.zeros(1, len(scores), dtype=torch.float64)
        row[0, label], row[0, other] = 1.0, -1.0
        found = lipcert.bound(model, x, "lipsdp", domain=domain, anchor="center", select=row, budget=budget)
        if not float(scores[label] - scores[other]) > radius * found.value:
            return False
    return True


def row(case: Case, radius: Radius, count: int, budget: float) -> str:
    """One line of the table."""
    assert radius.value is not None
    model, images, labels = case.load()
    images, labels = images[:count], labels[:count]
    began = time.process_time()
    ours = lipcert.certify(model, images, labels, radius=radius.value, budget=5.0)
    middle = time.process_time()
    left = [i for i, found in enumerate(ours) if found.status in ("certified", "open")]
    theirs = {i for i in left if keeps(model, images[i : i + 1], int(labels[i]), radius.value, budget)}
    certified = {i for i in left if ours[i].status == "certified"}
    seconds = f"{middle - began:.1f} | {time.process_time() - middle:.1f}"
    counts = f"{len(images)} | {len(left)} | {len(theirs)} | **{len(certified)}** | {len(theirs - certified)}"
    return f"| {case.title} | l2, {radius.label} | {counts} | {seconds} |"


def main() -> None:
    """One row per network and radius."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of the public networks' weights and images")
    parser.add_argument("--only", default="", help="NETWORK@RADIUS, with commas between")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of LipSDP for each pair of classes")
    args = parser.parse_args()
    wanted = [name for name in args.only.split(",") if name]
    head = ["network", "ball", "images", "attack leaves", "anchored LipSDP", "`certify`", "LipSDP alone"]
    names = [*head, "s: `certify`", "LipSDP"]
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for case in [*(public(args.weights) if args.weights else []), *own()]:
        for radius in case.radii:
            if radius.p != 2.0 or radius.value is None or (wanted and f"{case.name}@{radius.label}" not in wanted):
                continue
            lines.append(row(case, radius, args.images, args.budget))
            print(lines[-1], flush=True)
            made = (
                f"Machine: {machine()}; load {os.getloadavg()[0]:.1f}; {date.today().isoformat()}; commit {version()}."
            )
            (HERE / "anchored.md").write_text(HEAD + made + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
