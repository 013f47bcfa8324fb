"""Cost of one vector-neuron pass against the network's own forward and backward pass, in depth and in width.

    .venv/bin/python benchmarks/bench_scaling.py [--quick]

One pass of the iteration is compared with a plain forward pass, and with a forward and backward pass, of the same
network on a batch of as many columns in the same dtype: CPU seconds on one thread, least of several calls. Also the
whole of ``lipsdp`` (search and rigorous check) against depth. Writes ``scaling.md`` and ``scaling.png``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tables
import torch
from torch import nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.problem import Problem
from lipcert.search.passes import Passes
from lipcert.search.vector_neuron import VectorNeuron

HERE = Path(__file__).resolve().parent
COLUMNS = 16
DEPTHS = (5, 10, 20, 35, 50, 75, 100)
WIDTHS = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Cost:
    """Seconds of one network: a forward pass, a forward and backward pass, a pass of the iteration, all of lipsdp."""

    depth: int
    width: int
    forward: float
    backward: float
    iteration: float
    total: float | None = None
    over: float | None = None


def network(depth: int, width: int) -> nn.Module:
    """A random float64 ReLU network width-…-width-10 with ``depth`` linear layers on ``width`` inputs."""
    rng = np.random.RandomState(1000 * depth + width)
    modules: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([width] * depth + [10]):
        layer = nn.Linear(fan_in, fan_out, dtype=torch.float64)
        layer.weight = nn.Parameter(torch.from_numpy(rng.randn(fan_out, fan_in) * math.sqrt(2.0 / fan_in)))
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval()


def least(action: Callable[[], object], seconds: float = 0.6) -> float:
    """Least CPU time of a call, repeated for about that long.

    On one thread CPU time is wall time on an idle machine; on a busy one it leaves out the time given to others.
    """
    action()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return min(times)


def measure(depth: int, width: int, whole: bool) -> Cost:
    """Time one network."""
    model = network(depth, width)
    x = torch.randn(COLUMNS, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = Problem(capture(model, x[:1]))
    increments = problem.expanded_increments
    transformed = ScaledIncrements(increments, natural_exponents(increments))
    search = VectorNeuron(Passes(transformed), (2.0, 2.0), COLUMNS, torch.Generator().manual_seed(0))
    parameters = list(model.parameters())
    for p in parameters:
        p.requires_grad_(False)
    x.requires_grad_(True)

    def both() -> None:
        y = model(x)
        torch.autograd.grad(0.5 * y.square().sum(), x)

    with torch.no_grad():
        forward = least(lambda: model(x))
    total = over = None
    if whole:
        began = time.process_time()
        bound = lipcert.bound(model, x[:1].detach(), method="lipsdp", budget=300.0)
        total = time.process_time() - began
        witness = bound.certificate.witness  # type: ignore[union-attr]
        primal = witness.settings["dual_value"] * 2.0 ** int(witness.arrays["exponents"][-1])
        over = bound.value / primal - 1.0
    return Cost(depth, width, forward, least(both), least(search.step), total, over)


def slope(costs: Sequence[Cost], along: str, what: str) -> float:
    """Least-squares exponent of ``what`` against ``along`` in log-log."""
    pairs = [(getattr(c, along), getattr(c, what)) for c in costs if getattr(c, what) is not None]
    x, y = np.log(np.array(pairs, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def rows(costs: Sequence[Cost]) -> list[str]:
    """Markdown table of one sweep."""
    lines = [
        "| depth | width | forward, ms | forward and backward, ms | pass of the iteration, ms | pass / forward "
        "| pass / (forward and backward) | all of lipsdp, s | over its primal value |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in costs:
        total = "–" if c.total is None else f"{c.total:.2f}"
        over = "–" if c.over is None else f"{100 * c.over:.3f} %"
        lines.append(
            f"| {c.depth} | {c.width} | {1e3 * c.forward:.3f} | {1e3 * c.backward:.3f} | {1e3 * c.iteration:.3f} | "
            f"{c.iteration / c.forward:.1f} | {c.iteration / c.backward:.1f} | {total} | {over} |"
        )
    return lines


def plot(deep: Sequence[Cost], wide: Sequence[Cost], path: Path) -> None:
    """Two panels: milliseconds against depth and against width."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    series = (
        ("forward", "forward pass"),
        ("backward", "forward and backward pass"),
        ("iteration", "iteration, one pass"),
    )
    for axes, costs, along, title in (
        (panels[0], deep, "depth", f"width {deep[0].width}"),
        (panels[1], wide, "width", f"depth {wide[0].depth}"),
    ):
        for (what, label), marker in zip(series, "o^s", strict=True):
            x = [getattr(c, along) for c in costs]
            y = [1e3 * getattr(c, what) for c in costs]
            axes.loglog(x, y, marker=marker, label=f"{label}: exponent {slope(costs, along, what):.2f}")
        axes.set_xlabel(along)
        axes.set_ylabel("milliseconds")
        axes.set_xticks(x, [str(v) for v in x])
        axes.minorticks_off()
        axes.set_title(f"{title}, {COLUMNS} columns, float64", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the whole of lipsdp")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    deep, wide = [], []
    for depth in DEPTHS:
        deep.append(measure(depth, 64, whole=not args.quick))
        print(deep[-1], flush=True)
    for width in WIDTHS:
        wide.append(measure(4, width, whole=False))
        print(wide[-1], flush=True)
    whole = "" if args.quick else f", all of lipsdp {slope(deep, 'depth', 'total'):.2f}"
    lines = [
        "# Cost of a pass",
        "",
        f"Made by `benchmarks/bench_scaling.py`. {tables.machine()}; one thread; load average at the "
        f"start {load:.1f}; {time.strftime('%Y-%m-%d')}. "
        f"Both sides run {COLUMNS} columns in float64; CPU time, the least of repeated calls.",
        "",
        "## In depth",
        "",
        f"Exponents in log-log: forward {slope(deep, 'depth', 'forward'):.2f}, forward and backward "
        f"{slope(deep, 'depth', 'backward'):.2f}, pass "
        f"of the iteration {slope(deep, 'depth', 'iteration'):.2f}{whole}.",
        "",
        *rows(deep),
        "",
        "## In width",
        "",
        f"Exponents in log-log: forward {slope(wide, 'width', 'forward'):.2f}, forward and backward "
        f"{slope(wide, 'width', 'backward'):.2f}, pass of the iteration {slope(wide, 'width', 'iteration'):.2f}.",
        "",
        *rows(wide),
        "",
    ]
    (HERE / "scaling.md").write_text("\n".join(lines))
    plot(deep, wide, HERE / "scaling.png")


if __name__ == "__main__":
    main()
