"""Bound a small tanh controller on a box of states, cell by cell, with smaller cells where the bound is loose.

python examples/tanh_controller.py build/controller

A network of two states (a pendulum's angle and its rate) imitates a linear feedback that saturates. Each cell of a grid
gets a bound of how fast the torque can change within it. A segment between two states of the box is made of pieces
that lie in one cell each, so the greatest of these bounds holds for the whole box, where it is far below the bound of
the box taken at once. Cells whose bound is far above the steepest slope sampled in them are cut into four, those
with the highest bounds first.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lipcert

HIGH = torch.tensor([math.pi, 4.0], dtype=torch.float64)  # angle in rad, rate in rad/s; the box is [-HIGH, HIGH]
GAINS, LIMIT = torch.tensor([6.0, 2.0]), 5.0
SAMPLES = 17  # along each side of a cell, its ends included
console = Console()


@dataclass(frozen=True)
class Cell:
    """A box of states with the bound of the controller's slope on it and the steepest slope sampled in it."""

    box: lipcert.Box
    bound: lipcert.Bound
    sampled: float

    @property
    def gap(self) -> float:
        """How far the bound lies above what was sampled."""
        return self.bound.value - self.sampled


def feedback(states: Tensor) -> Tensor:
    """−K x, cut off at ± LIMIT."""
    return -(states @ GAINS[:, None]).clamp(-LIMIT, LIMIT)


def train(steps: int, seed: int = 0) -> nn.Module:
    """A tanh network that imitates the feedback on the box; the random state of the process stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-5)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            states = (2.0 * torch.rand(256, 2) - 1.0) * HIGH.float()
            loss = (model(states) - feedback(states)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    console.print(
        f"trained in {steps} steps: root mean square error {loss.item() ** 0.5:.3f} of torques up to {LIMIT:g}"
    )
    return model.eval()


def grid(low: Tensor, high: Tensor, parts: int) -> list[lipcert.Box]:
    """parts × parts boxes; neighbours share their ends exactly, so that none of the box is left out."""
    ends = torch.stack(
        [torch.linspace(float(a), float(b), parts + 1, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    )
    ends[:, 0], ends[:, -1] = low, high
    return [lipcert.Box(ends[[0, 1], [i, j]], ends[[0, 1], [i + 1, j + 1]]) for j in range(parts) for i in range(parts)]


def steepest(model: nn.Module, box: lipcert.Box) -> float:
    """The greatest norm of the gradient at a grid of points of the box: what its bound is held against, no bound."""
    ends = zip(box.lower, box.upper, strict=True)
    sides = [torch.linspace(float(a), float(b), SAMPLES, dtype=torch.float64) for a, b in ends]
    states = torch.cartesian_prod(*sides).requires_grad_()
    (gradient,) = torch.autograd.grad(copy.deepcopy(model).double()(states).sum(), states)
    return float(gradient.norm(dim=1).max())


def bounded(model: nn.Module, boxes: list[lipcert.Box]) -> list[Cell]:
    """All boxes in one call, which captures the model once."""
    bounds = lipcert.bound(model, torch.zeros(1, 2), "lipsdp", domain=boxes)
    return [Cell(box, bound, steepest(model, box)) for box, bound in zip(boxes, bounds, strict=True)]


def refine(model: nn.Module, parts: int, most: int, share: float) -> list[Cell]:
    """Bounds on a grid of cells, of which the loose ones are cut into four, a third at a time, up to ``most``.

    A cell is loose if its bound exceeds the steepest slope sampled in it by a ``share`` of the steepest of all cells.
    """
    table = Table("round", "cells", "cut", "greatest bound", "steepest sampled", "loose", "seconds")
    table.title, table.title_justify = "cell by cell, l2 → l2", "left"
    began = time.perf_counter()
    cells: list[Cell] = []
    cut: list[Cell] = []
    new = grid(-HIGH, HIGH, parts)
    while new:
        cells = [cell for cell in cells if cell not in cut] + bounded(model, new)
        limit = share * max(cell.sampled for cell in cells)
        loose = sorted((cell for cell in cells if cell.gap > limit), key=lambda cell: -cell.bound.value)
        table.add_row(
            str(len(table.rows)), str(len(cells)), str(len(cut)), f"{max(c.bound.value for c in cells):.3f}",
            f"{max(c.sampled for c in cells):.3f}", str(len(loose)), f"{time.perf_counter() - began:.1f}",
        )  # fmt: skip
        cut = loose[: min(math.ceil(len(loose) / 3), max(0, most - len(cells)) // 3)]
        new = [part for cell in cut for part in grid(cell.box.lower, cell.box.upper, 2)]
    console.print(table)
    return cells


def text_map(cells: Sequence[Cell], columns: int = 64, lines: int = 24) -> str:
    """A digit per place: the bound there in tenths of the greatest, rounded up; the angle grows to the right."""
    greatest = max(cell.bound.value for cell in cells)
    across, up = (
        high * (2.0 * (torch.arange(count) + 0.5) / count - 1.0)
        for high, count in zip(HIGH, (columns, lines), strict=True)
    )
    values = torch.zeros(lines, columns, dtype=torch.float64)
    for cell in cells:
        (a, b), (c, d) = cell.box.lower, cell.box.upper
        inside = ((b <= up) & (up <= d))[:, None] & ((a <= across) & (across <= c))
        values = torch.where(inside, values.clamp(min=cell.bound.value), values)
    digits = ((10.0 * values / greatest).ceil() - 1.0).clamp(0, 9).int().flip(0).tolist()
    return "\n".join("".join(map(str, row)) for row in digits) + f"\n0 … 9: tenths of {greatest:.3f}\n"


def draw(cells: Sequence[Cell], folder: Path) -> Path:
    """The cells, coloured by their bounds and by the slopes sampled in them; as text where there is no matplotlib."""
    try:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError:
        path = folder / "cells.txt"
        path.write_text(text_map(cells), encoding="utf-8")
        return path
    path = folder / "cells.png"
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    colours = ScalarMappable(Normalize(0.0, max(cell.bound.value for cell in cells)), colormaps["viridis"])
    both = (("certified bound", lambda c: c.bound.value), ("steepest sampled slope", lambda c: c.sampled))
    right, top = HIGH.tolist()
    plots = figure.subplots(1, 2, sharey=True)
    for plot, (title, value) in zip(plots, both, strict=True):
        for cell in cells:
            (a, b), (width, height) = cell.box.lower.tolist(), (cell.box.upper - cell.box.lower).tolist()
            face = colours.to_rgba(value(cell))
            plot.add_patch(Rectangle((a, b), width, height, facecolor=face, edgecolor="white", linewidth=0.3))
        plot.set(title=title, xlabel="angle (rad)", xlim=(-right, right), ylim=(-top, top))
    plots[0].set_ylabel("rate (rad/s)")
    figure.colorbar(colours, ax=plots, label="torque per unit of state")
    figure.savefig(path, dpi=130)
    return path


def main(arguments: Sequence[str] | None = None) -> list[Cell]:
    """Train, bound, refine, draw; returns the cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the picture and the steepest cell's certificate go")
    parser.add_argument("--grid", type=int, default=8, help="cells along each side at first")
    parser.add_argument("--cells", type=int, default=300, help="the most cells there may be in the end")
    parser.add_argument("--loose", type=float, default=0.2, help="how much of the steepest slope a gap may be")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    model, example = train(chosen.steps), torch.zeros(1, 2)
    for domain in (None, lipcert.Box(-HIGH, HIGH)):
        console.print(str(lipcert.bound(model, example, "lipsdp", domain=domain)), highlight=False)
    cells = refine(model, chosen.grid, chosen.cells, chosen.loose)
    worst = max(cells, key=lambda cell: cell.bound.value)
    worst.bound.save(chosen.folder / "steepest_cell.lipcert")
    ends = ", ".join(f"[{a:.3f}, {b:.3f}]" for a, b in zip(worst.box.lower, worst.box.upper, strict=True))
    console.print(
        f"on the whole box the slope is at most {worst.bound.value:.3f}, by the cell {ends} "
        f"(its certificate: {chosen.folder / 'steepest_cell.lipcert'})",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(f"picture: {draw(cells, chosen.folder)}; {time.perf_counter() - start:.0f} s in all", highlight=False)
    return cells


if __name__ == "__main__":
    main()
