"""A CNN trained on MNIST plainly, and with its Lipschitz constant held down: accuracy and certified constants.

    python examples/training.py [--epochs 4]

See docs/training.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.training import LipschitzRegularizer
from mnist import mnist_split


def cnn() -> nn.Module:
    """1×28×28 → 10, the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
        )  # fmt: skip


def train(model: nn.Module, penalty: Callable[[], Tensor] | None, epochs: int) -> None:
    """Cross-entropy with Adam, plus a penalty."""
    images, labels, _, _ = mnist_split()
    order = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=order).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            if penalty is not None:
                loss = loss + 0.05 * penalty()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def main() -> None:
    """Train both, print what is certified."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    epochs = parser.parse_args().epochs
    _, _, images, labels = mnist_split()
    for name in ("plain", "regularised"):
        model = cnn()
        reg = LipschitzRegularizer(model, images[:1], method="lipsdp", penalty="hinge", target=3.0)
        train(model, None if name == "plain" else reg, epochs)
        model.eval()
        with torch.no_grad():
            accuracy = float((model(images).argmax(1) == labels).float().mean())
        reg()
        print(f"{name}: {100 * accuracy:.1f} % of {len(images)} test images right")
        print(" ", reg.estimate)
        print(" ", reg.certify(budget=10.0))


if __name__ == "__main__":
    main()
