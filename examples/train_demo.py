"""A CNN trained on 4 000 MNIST images plainly and for certified accuracy: a table, and a plot if matplotlib is there.

    python examples/train_demo.py [--epochs 6] [--count 50] [--plot build/train_demo.png]

Under five minutes on one core. ``training.py`` beside it is the loop with a penalty alone; see docs/training.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from lipcert.robustness.certification import Certification
from lipcert.training import LipschitzRegularizer, MarginLoss
from mnist import mnist_split
from training import cnn

RADII = (0.1, 0.3, 0.5)
BATCH = 64

Loss = Callable[[Tensor, Tensor], Tensor]


def plain(model: nn.Module, example: Tensor, steps: int) -> Loss:
    """Cross-entropy."""
    return lambda x, y: F.cross_entropy(model(x), y)


def penalised(model: nn.Module, example: Tensor, steps: int) -> Loss:
    """Cross-entropy and a penalty on LipSDP's constant."""
    reg = LipschitzRegularizer(model, example, method="lipsdp", penalty="hinge", target=3.0)
    return lambda x, y: F.cross_entropy(model(x), y) + 0.05 * reg()


def margins(model: nn.Module, example: Tensor, steps: int) -> Loss:
    """Adversarial training with the constants of pairs against the margins."""
    return MarginLoss(model, example, radius=0.5, warm_up=steps // 3)


RECIPES: dict[str, Callable[[nn.Module, Tensor, int], Loss]] = {
    "plain": plain, "LipschitzRegularizer": penalised, "MarginLoss": margins,
}  # fmt: skip


def train(recipe: Callable[[nn.Module, Tensor, int], Loss], epochs: int) -> nn.Module:
    """The same network from the same start, the same batches in the same order."""
    images, labels, _, _ = mnist_split()
    model, order = cnn().train(), torch.Generator().manual_seed(0)
    steps = epochs * -(-len(images) // BATCH)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0 - step / steps)
    loss = recipe(model, images[:1], steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=order).split(BATCH):
            value = loss(images[batch], labels[batch])
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            falling.step()
    return model.eval()


def plot(found: dict[str, Certification], path: Path) -> bool:
    """Certified and attacked accuracy by radius; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, result in found.items():
        shares = [[100 * of(r) for r in RADII] for of in (result.certified_accuracy, result.attacked_accuracy)]
        (line,) = axes.plot(RADII, shares[0], marker="o", label=f"{name}: certified")
        axes.plot(RADII, shares[1], linestyle=":", color=line.get_color(), label=f"{name}: left by the attack")
    axes.set(xlabel="l2 radius", ylabel="% of test images", ylim=(0, 100))
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def main(arguments: Sequence[str] | None = None) -> dict[str, Certification]:
    """Train, certify, print and plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--count", type=int, default=50, help="test images that are certified")
    parser.add_argument("--budget", type=float, default=0.2, help="seconds of certification per image")
    parser.add_argument("--plot", type=Path, default=Path("build/train_demo.png"))
    given = parser.parse_args(arguments)
    _, _, images, labels = mnist_split()
    heads = "".join(f"{f'certified {r:g}':>15}" for r in RADII)
    print(f"{'trained':<22}{'clean':>8}{heads}{'constant':>20}{'training':>11}")
    found = {}
    for name, recipe in RECIPES.items():
        started = time.perf_counter()
        model = train(recipe, given.epochs)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            clean = float((model(images).argmax(1) == labels).float().mean())
        result = lipcert.certify(model, images[: given.count], labels[: given.count], radii=RADII, budget=given.budget)
        upper = lipcert.bound(model, images[:1], method="autolip")
        lower = lipcert.lower_bound(model, images[:1], inputs=images[:50], budget=1.0)
        shares = "".join(f"{100 * result.certified_accuracy(r):>13.1f} %" for r in RADII)
        print(
            f"{name:<22}{100 * clean:>6.1f} %{shares}{f'{lower.value:.3g} to {upper.value:.3g}':>20}{seconds:>9.1f} s",
            flush=True,
        )
        found[name] = result
    print(f"clean: of {len(images)} test images; certified: of the first {given.count}, by lipcert.certify")
    print(f"plot: {given.plot}" if plot(found, given.plot) else "no plot: pip install 'lipcert[report]'")
    return found


if __name__ == "__main__":
    main()
