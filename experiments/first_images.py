"""How hard the first thousand test images are beside all ten thousand: what an attack leaves of a trained network.

    python -m experiments.first_images --net 4c3f --only mixed_1.58_r0.4_r0.3_orthogonal

Published figures are of all test images, those of ``training.md`` of the first thousand. The attack is short, ten steps
of gradients of the margin from the image itself: it serves to compare images, not to judge a network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.mnist_data import FOLDER, Mnist
from experiments.training import HERE
from experiments.training_recipes import ALL, NETS

STEPS, BATCH = 10, 100


def kept(model: nn.Module, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Which images keep their class on the way of the attack within an l2 ball, (N,)."""
    moved, right = torch.zeros_like(x), torch.ones_like(y, dtype=torch.bool)
    own = F.one_hot(y, 10).bool()
    for step in range(STEPS + 1):
        moved.requires_grad_(True)
        scores = model(x + moved)
        margin = scores.masked_fill(own, -torch.inf).amax(1) - scores[own]
        right &= margin < 0.0
        (gradient,) = torch.autograd.grad(margin.sum(), moved)
        moved = moved.detach() + radius * (1.0 - step / STEPS) * _unit(gradient)
        moved = moved * (radius / _length(moved)).clamp(max=1.0)
    return right


def _length(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, *[1] * (x.dim() - 1))


def _unit(x: Tensor) -> Tensor:
    return x / _length(x)


def main(arguments: Sequence[str] | None = None) -> None:
    """A line per thousand images, then all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="4c3f", choices=list(NETS))
    parser.add_argument("--only", default="mixed_1.58_r0.4_r0.3_orthogonal", choices=list(ALL), metavar="RECIPE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "training", help="its weights")
    given = parser.parse_args(arguments)
    recipe, data = ALL[given.only], Mnist.load(given.data)
    path = given.work / f"{given.net}-{given.only}-{given.seed}.pt"
    if recipe.radius is None or not path.exists():
        parser.error(
            f"there is no {path}, or it is of no radius: python -m experiments.training --stage train makes it"
        )
    model = recipe.model(given.net, given.seed)
    model.load_state_dict(torch.load(path, weights_only=True)["state"])
    model.eval()
    shares = []
    for start in range(0, len(data.test_images), 1000):
        parts = zip(
            data.test_images[start : start + 1000].split(BATCH), data.test_labels[start : start + 1000].split(BATCH),
            strict=True,
        )  # fmt: skip
        shares.append(torch.cat([kept(model, x, y, recipe.radius) for x, y in parts]).double().mean().item())
        print(f"{start:>5} to {start + 999:>4}: {100 * shares[-1]:.1f} %", flush=True)
    print(f"all {len(data.test_images)}: {100 * sum(shares) / len(shares):.1f} %")


if __name__ == "__main__":
    main()
