"""Certify what smooth networks put out on boxes of states: a controller's limits and signs, an airfoil's coefficients.

python examples/output_ranges.py build/ranges

Three questions, each answered box by box: a box whose bounds do not settle it is halved along its longer side. Every
box that counts has a certificate, and all of these are verified from their files in the end.

1. The tanh controller of ``tanh_controller.py``: is |u(x)| ≤ u_max in every state?
2. Does its torque fall with the angle, and with the rate, wherever both are small? Its partial derivatives, written as
   a network of their own, are negative there.
3. Neuralfoil's smallest network: lift and drag over the operating range, in boxes on which the lift varies by no more
   than a stated width, beside the ranges sampled there, which no true bounds can be narrower than.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

import lipcert
from examples.neuralfoil import HIGH as OPERATING_HIGH
from examples.neuralfoil import LOW as OPERATING_LOW
from examples.neuralfoil import OUTPUTS, load_airfoil
from examples.neuralfoil import folder as neuralfoil_folder
from examples.tanh_controller import HIGH, train

#: Where the signs of slopes are asked for: angles (rad) and rates (rad/s) up to these.
SMALL = torch.tensor([0.4, 0.6], dtype=torch.float64)
SAMPLES = 33  # along each side of a box, its ends included
console = Console()


class Slopes(nn.Module):
    """(B, 2) → (B, 2): the partial derivatives of an nn.Sequential of linear layers and tanh with one output.

    Forward mode by hand: with v the values before a tanh and s their derivatives, tanh has (1 − tanh² v) s.
    """

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.layers = copy.deepcopy(model)

    def forward(self, states: Tensor) -> Tensor:
        """The derivatives by each of the two coordinates."""
        partial = []
        for direction in torch.eye(2, dtype=states.dtype):
            value, slope = states, direction.expand(1, 2)
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    value, slope = layer(value), slope @ layer.weight.T
                else:
                    value = torch.tanh(value)
                    slope = (1.0 - value * value) * slope
            partial.append(slope)
        return torch.cat(partial, dim=1)


@dataclass
class Tiling:
    """The boxes a question was settled on, with their bounds, and those left open."""

    model: nn.Module
    settled: list[lipcert.OutputBound] = field(default_factory=list)
    left: list[lipcert.Box] = field(default_factory=list)

    def verified(self, folder: Path, name: str) -> int:
        """Save every certificate and verify it from its file; how many there are."""
        for number, bound in enumerate(self.settled):
            path = folder / f"{name}_{number:03}.lipcert"
            bound.save(path)
            lipcert.verify(path, self.model, torch.zeros(1, 2))
        return len(self.settled)


def halves(box: lipcert.Box, unit: Tensor) -> list[lipcert.Box]:
    """Both halves along the side that is longest in these units; they share their middle."""
    low, high = box.lower, box.upper
    side = int(((high - low) / unit).argmax())
    left, right = high.clone(), low.clone()
    left[side] = right[side] = 0.5 * (low[side] + high[side])
    return [lipcert.Box(low, left), lipcert.Box(right, high)]


def grid(box: lipcert.Box, parts: Sequence[int]) -> list[lipcert.Box]:
    """Equal boxes; neighbours share their ends exactly, so that none of the box is left out."""
    sides = zip(box.lower.tolist(), box.upper.tolist(), parts, strict=True)
    ends = [torch.tensor([a, *(a + (b - a) * k / n for k in range(1, n)), b], dtype=torch.float64) for a, b, n in sides]
    corners = [torch.cartesian_prod(*(e[part] for e in ends)) for part in (slice(None, -1), slice(1, None))]
    return [lipcert.Box(low, high) for low, high in zip(*corners, strict=True)]


def tile(
    model: nn.Module, box: lipcert.Box, settles: Callable[[lipcert.OutputBound], bool], most: int, budget: float,
    parts: Sequence[int] = (1, 1), select: Tensor | None = None,
) -> Tiling:  # fmt: skip
    """Bounds on boxes that cover the box, each of which settles the question; ``most`` boxes are bounded."""
    found = Tiling(model, left=grid(box, parts))
    unit = (box.upper - box.lower) / torch.tensor(parts)
    for _ in range(most):
        if not found.left:
            break
        here = found.left.pop(0)
        bound = lipcert.output_bounds(model, torch.zeros(1, 2), here, select=select, budget=budget)
        if settles(bound):
            found.settled.append(bound)
        else:
            found.left += halves(here, unit)
    return found


def sampled(model: nn.Module, box: lipcert.Box) -> tuple[Tensor, Tensor]:
    """(least, greatest) outputs at a grid of points of a box: what its bounds are held against."""
    ends = zip(box.lower.reshape(-1), box.upper.reshape(-1), strict=True)
    sides = [torch.linspace(float(a), float(b), SAMPLES, dtype=torch.float64) for a, b in ends]
    with torch.no_grad():
        y = copy.deepcopy(model).double()(torch.cartesian_prod(*sides))
    return y.amin(dim=0), y.amax(dim=0)


def report(question: str, tiling: Tiling, folder: Path, name: str, began: float) -> None:
    """One line: how many boxes settled it, how many certificates were verified, what is open."""
    count = tiling.verified(folder, name)
    answer = "proved" if not tiling.left else f"open on {len(tiling.left)} boxes"
    console.print(
        f"{question}: {answer}; {count} boxes with certificates, all verified; {time.perf_counter() - began:.1f} s",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def airfoil_ratios(tiling: Tiling, box: lipcert.Box) -> Tensor:
    """Certified over sampled width, (2, outputs): the mean of all boxes, and of the range over all of them together."""
    names = [(bound, sampled(tiling.model, bound.domain)) for bound in tiling.settled]
    of_boxes = [(bound.upper - bound.lower) / (high - low)[: len(bound.lower)] for bound, (low, high) in names]
    least = torch.stack([bound.lower for bound in tiling.settled]).amin(dim=0)
    greatest = torch.stack([bound.upper for bound in tiling.settled]).amax(dim=0)
    low, high = sampled(tiling.model, box)
    for k, name in enumerate(OUTPUTS[: len(least)]):
        console.print(
            f"  {name} in [{least[k]:.3f}, {greatest[k]:.3f}], sampled [{low[k]:.3f}, {high[k]:.3f}]", highlight=False
        )
    whole = (greatest - least) / (high - low)[: len(least)]
    return torch.stack([torch.stack(of_boxes).mean(dim=0), whole])


def draw(tiling: Tiling, folder: Path) -> Path | None:
    """The airfoil's boxes, coloured by the greatest lift certified on them; None where there is no matplotlib."""
    try:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError:
        return None
    tops = [float(bound.upper[0]) for bound in tiling.settled]
    colours = ScalarMappable(Normalize(min(tops), max(tops)), colormaps["viridis"])
    figure = Figure(figsize=(7, 4), layout="constrained")
    plot = figure.subplots()
    for bound, top in zip(tiling.settled, tops, strict=True):
        (a, b), (c, d) = bound.domain.lower.reshape(-1).tolist(), bound.domain.upper.reshape(-1).tolist()
        plot.add_patch(Rectangle((a, b), c - a, d - b, facecolor=colours.to_rgba(top), edgecolor="white"))
    (a, b), (c, d) = OPERATING_LOW.tolist(), OPERATING_HIGH.tolist()
    plot.set(xlabel="angle of attack (degrees)", ylabel="log10 of the Reynolds number", xlim=(a, c), ylim=(b, d))
    figure.colorbar(colours, ax=plot, label="greatest CL, certified")
    figure.savefig(folder / "airfoil.png", dpi=130)
    return folder / "airfoil.png"


def main(arguments: Sequence[str] | None = None) -> dict[str, Tiling]:
    """Answer the three questions; the tilings by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where certificates and the picture go")
    parser.add_argument("--torque", type=float, default=5.5, help="u_max")
    parser.add_argument(
        "--grid", type=int, nargs=2, default=(7, 2), help="the airfoil's boxes along each side at first"
    )
    parser.add_argument("--lift", type=float, default=0.45, help="by how much CL may vary on a box")
    parser.add_argument("--boxes", type=int, default=24, help="the most boxes that are bounded for each question")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds of search for each box")
    parser.add_argument("--steps", type=int, default=1500, help="of the controller's training")
    chosen = parser.parse_args(arguments)
    folder, boxes, budget = chosen.folder, chosen.boxes, chosen.budget
    folder.mkdir(parents=True, exist_ok=True)
    controller = train(chosen.steps)
    found = {}

    def limited(bound: lipcert.OutputBound) -> bool:
        return bool((bound.upper <= chosen.torque).all() and (bound.lower >= -chosen.torque).all())

    began = time.perf_counter()
    found["torque"] = tile(controller, lipcert.Box(-HIGH, HIGH), limited, boxes, budget)
    report(f"|u| ≤ {chosen.torque:g} in every state", found["torque"], folder, "torque", began)

    began = time.perf_counter()
    slopes = Slopes(controller).eval()
    found["slopes"] = tile(slopes, lipcert.Box(-SMALL, SMALL), lambda b: bool((b.upper < 0.0).all()), boxes, budget)
    report("u falls with the angle and the rate near 0", found["slopes"], folder, "slopes", began)

    if neuralfoil_folder() is None:
        console.print("no airfoil: its weights come with pip install --no-deps neuralfoil", highlight=False)
        return found
    began = time.perf_counter()
    operating = lipcert.Box(OPERATING_LOW, OPERATING_HIGH)
    found["airfoil"] = tile(
        load_airfoil(), operating, lambda b: float(b.upper[0] - b.lower[0]) <= chosen.lift, boxes, budget,
        chosen.grid, torch.eye(3)[:2],
    )  # fmt: skip
    report(f"CL varies by at most {chosen.lift:g} on each box", found["airfoil"], folder, "airfoil", began)
    if found["airfoil"].settled:
        ratios = airfoil_ratios(found["airfoil"], operating)
        for where, row in zip(("mean over the boxes", "over all boxes together"), ratios, strict=True):
            shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in zip(OUTPUTS, row.tolist(), strict=False))
            console.print(f"  certified over sampled width, {where}: {shown}", highlight=False)
        console.print(f"  picture: {draw(found['airfoil'], folder)}", highlight=False)
    return found


if __name__ == "__main__":
    main()
