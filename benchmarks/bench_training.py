"""What a step of training costs with penalties and losses, beside the plain step: ``benchmarks/training.md``.

    python benchmarks/bench_training.py [--steps 40]

The steps of all variants take turns, and what counts is their CPU time, so that whatever else the machine does meets
them alike; the table has the medians and their ratio to the plain step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from nets import models
from torch import nn

from lipcert.training import LipschitzRegularizer, MarginLoss

BATCH = 128
#: Variant → extra time that it may take, as a share of the plain step.
GOALS = {"AutoLip": 0.15, "LipLT": 0.30, "LipSDP, 8 columns": 0.60}


def steps() -> dict[str, Callable[[], None]]:
    """One step of training of each variant, each with a model of its own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 1, 28, 28, generator=generator)
    y = torch.randint(0, 10, (BATCH,), generator=generator)

    def made(loss: Callable[[nn.Module], Callable[[], torch.Tensor]]) -> Callable[[], None]:
        model = models.load_paper_cnn().train()
        value, optimiser = loss(model), torch.optim.Adam(model.parameters(), lr=1e-4)

        def step() -> None:
            optimiser.zero_grad()
            value().backward()
            optimiser.step()

        return step

    def penalised(method: str) -> Callable[[nn.Module], Callable[[], torch.Tensor]]:
        def of(model: nn.Module) -> Callable[[], torch.Tensor]:
            reg = LipschitzRegularizer(model, x[:1], method=method, columns=8, penalty="log")
            return lambda: F.cross_entropy(model(x), y) + 0.01 * reg()

        return of

    def margin(kind: str) -> Callable[[nn.Module], Callable[[], torch.Tensor]]:
        def of(model: nn.Module) -> Callable[[], torch.Tensor]:
            loss = MarginLoss(model, x[:1], kind, radius=0.3)
            return lambda: loss(x, y)

        return of

    return {
        "plain": made(lambda model: lambda: F.cross_entropy(model(x), y)),
        "AutoLip": made(penalised("autolip")),
        "LipLT": made(penalised("liplt")),
        "LipSDP, 8 columns": made(penalised("lipsdp")),
        "margin loss, gloro": made(margin("gloro")),
        "margin loss, crm": made(margin("crm")),
        "margin loss, mixed (4 attack steps)": made(margin("mixed")),
    }


def table(seconds: dict[str, list[float]]) -> str:
    """Medians, and the ratio to the plain step of the same round."""
    rows = ["| step | ms | of the plain step | goal |", "|---|---|---|---|"]
    for name, own in seconds.items():
        ratio = statistics.median(t / plain for t, plain in zip(own, seconds["plain"], strict=True))
        goal = f"≤ {1 + GOALS[name]:.2f}" if name in GOALS else ""
        rows.append(f"| {name} | {1000 * statistics.median(own):.1f} | {ratio:.2f} | {goal} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    count = parser.parse_args().steps
    variants = steps()
    for step in variants.values():  # the first calls settle
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(count):
        for name, step in variants.items():
            started = time.process_time()
            step()
            seconds[name].append(time.process_time() - started)
    text = (
        "# Training: what a step costs\n\n"
        f"MNIST CNN of Scaman & Virmaux (98 314 parameters), batch {BATCH}, Adam, float32, torch {torch.__version__} "
        f"with {torch.get_num_threads()} thread(s); medians of CPU time over {count} rounds in which the variants "
        "take turns. `python benchmarks/bench_training.py`.\n\n" + table(seconds) + "\n"
    )
    print(text)
    (Path(__file__).parent / "training.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
