"""How a transformer encoder's local Lipschitz constant grows with the radius: bound and what is found from below.

    .venv/bin/python benchmarks/bench_radii.py [--budget S] [--from-below S]

Writes ``radii.md`` and ``radii.png``. ``nn.TransformerEncoder`` of two GELU layers on 17 tokens of width 32, 4 heads,
as PyTorch starts it, on l2 balls around a random point, l2 → l2.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tables import machine, version
from torch import Tensor, nn

import lipcert

HERE = Path(__file__).resolve().parent
RADII = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 2e-1, 3e-1, 5e-1, 1.0)


def encoder() -> tuple[nn.Module, Tensor]:
    """The network and the point."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    return model, torch.randn(1, 17, 32)


def jacobian_norm(model: nn.Module, x: Tensor) -> float:
    """Spectral norm of the Jacobian at the point, float64, as torch computes it."""
    jacobian = torch.autograd.functional.jacobian(model.double(), x.double()).reshape(x.numel(), x.numel())
    model.float()
    return float(torch.linalg.matrix_norm(jacobian, 2))


def main() -> None:
    """A row per radius, the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for a bound")
    parser.add_argument("--from-below", type=float, default=10.0, help="seconds for a lower bound")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, x = encoder()
    norm = jacobian_norm(model, x)
    rows = []
    for radius in RADII:
        ball, clock = lipcert.Ball(x[0], radius, p=2), time.process_time()
        bound = lipcert.bound(model, x, domain=ball, budget=args.budget)
        spent = time.process_time() - clock
        below = lipcert.lower_bound(model, x, domain=ball, budget=args.from_below)
        rows.append((radius, bound, below, spent))
        print(f"{radius:g}: ≤ {bound.value:.5g} ({bound.method}, {bound.guarantee}), ≥ {below.value:.5g}", flush=True)
    write(norm, rows)


def write(norm: float, rows: list[tuple[float, lipcert.Bound, lipcert.LowerBound, float]]) -> None:
    """``radii.md`` and ``radii.png``."""
    lines = [
        "# Bound against radius",
        "",
        "Made by `bench_radii.py`, which says what the network is. The norm of the Jacobian at the centre is "
        f"{norm:.4f}. CPU seconds of one thread.",
        "",
        f"Machine: {machine()}; load average {os.getloadavg()[0]:.1f}; commit {version()}.",
        "",
        "| radius | bound | method | guarantee | s | from below | bound / from below |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for radius, bound, below, spent in rows:
        cells = [
            f"{radius:g}", f"{bound.value:.5g}", bound.method, bound.guarantee, f"{spent:.1f}", f"{below.value:.5g}",
            f"{bound.value / below.value:.4g}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "![bound and what is found from below against the radius](radii.png)", ""]
    (HERE / "radii.md").write_text("\n".join(lines))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    radii = [row[0] for row in rows]
    axes.loglog(radii, [row[1].value for row in rows], "o-", label="bound")
    axes.loglog(radii, [row[2].value for row in rows], "s-", label="from below")
    axes.axhline(norm, color="0.6", linestyle="--", label="norm of the Jacobian at the centre")
    axes.set(xlabel="radius (l2)", ylabel="Lipschitz constant", ylim=(1.0, 1e4))
    axes.legend()
    figure.savefig(HERE / "radii.png", dpi=120)


if __name__ == "__main__":
    main()
