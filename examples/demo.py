"""Bound two MNIST networks, with certificates, and certify that 200 test images keep their class.

make demo
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lipcert
from lipcert.result import LowerWitness
from mnist import mnist_split
from models import load_lenet5, load_paper_cnn

OUT = Path("build/demo")
NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "lenet5": ("LeNet-5, max-pooling (test accuracy 96.6 %)", load_lenet5),
    "paper_cnn": ("MNIST CNN of Scaman & Virmaux 2018 (test accuracy 95.9 %)", load_paper_cnn),
}
RADII = (0.02, 0.04, 0.06)
console = Console()


def gain(model: nn.Module, witness: LowerWitness) -> float:
    """Evaluate a witness without lipcert: the directional derivative of the model itself, in float64."""
    exact = copy.deepcopy(model).double()
    point, direction = (t.reshape(1, 1, 28, 28) for t in (witness.point, witness.direction))
    _, change = torch.func.jvp(exact, (point,), (direction,))
    return (change.norm() / direction.norm()).item()


def show(name: str, title: str, model: nn.Module, images: Tensor) -> None:
    """Bound one model and print its tables."""
    example = images[:1]
    product = lipcert.bound(model, example, "autolip")
    upper = lipcert.bound(model, example, lipcert.LipSDP(tolerance=1e-3), budget=8)
    lower = lipcert.lower_bound(model, example, inputs=images[:200], budget=3)

    table = Table("", "method", "value", "guarantee", "seconds", title=title, title_justify="left")
    table.add_row("upper bound", product.method, f"{product.value:.6g}", product.guarantee, f"{product.seconds:.1f}")
    table.add_row("best upper bound", upper.method, f"{upper.value:.6g}", upper.guarantee, f"{upper.seconds:.1f}")
    table.add_row("lower bound", "attack", f"{lower.value:.6g}", "witness", f"{lower.seconds:.1f}")
    console.print(table)
    console.print(f"upper / lower = {upper.value / lower.value:.3f}: the constant lies between the two.")

    rows = Table("layer", "kind", "constant", "so far", "guarantee", title="AutoLip, layer by layer")
    rows.title_justify = "left"
    for row in product.breakdown:
        rows.add_row(row.name, row.kind, f"{row.constant:.6g}", f"{row.cumulative:.6g}", row.guarantee)
    console.print(rows)
    console.print(
        f"witness of the lower bound, in plain torch: ‖J(x)v‖ / ‖v‖ = {gain(model, lower.witness):.6g} "
        f"at a point x with pixels in [{lower.witness.point.min():.2g}, {lower.witness.point.max():.2g}]"
    )

    path = OUT / f"{name}.lipcert"
    upper.save(path)
    start = time.perf_counter()
    checked = lipcert.verify(path, model, example)
    console.print(
        f"certificate: {path} ({path.stat().st_size / 1e3:.0f} kB); "
        f"verified in {time.perf_counter() - start:.1f} s: L ≤ {checked.value:.6g}, {checked.guarantee}\n"
    )


def certify(images: Tensor, labels: Tensor) -> None:
    """Which of 200 test images keep their class, with a certificate for each in one file."""
    result = lipcert.certify(load_paper_cnn(), images[:200], labels[:200], norm=2, radii=RADII)
    console.print("[italic]MNIST CNN: test images that keep their class[/italic]")
    console.print(result.table(rows=4), highlight=False, markup=False, soft_wrap=True)
    path = OUT / "paper_cnn.robust"
    result.save(path)
    console.print(f"certificates: {path} ({path.stat().st_size / 1e6:.1f} MB)\n")


def main() -> None:
    """Show every network."""
    start = time.perf_counter()
    OUT.mkdir(parents=True, exist_ok=True)
    _, _, images, labels = mnist_split()
    for name, (title, load) in NETWORKS.items():
        show(name, title, load(), images)
    certify(images, labels)
    console.print(f"{time.perf_counter() - start:.0f} s in all; l2 → l2, for all inputs in R^784.")


if __name__ == "__main__":
    main()
