"""The networks of the demo, the tests and the benchmarks, written out in plain torch.

Every factory seeds torch's default initialisation without disturbing the caller's random state and
returns the model in eval mode. ``load_lenet5`` and ``load_paper_cnn`` fill in the weights that
``train_mnist.py`` made. The two MNIST networks take 1×28×28 images in [0, 1].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def lenet5(seed: int = 0) -> nn.Module:
    """LeNet-5 with ReLU and max-pooling: 1×28×28 → 10, 61 706 parameters."""
    return _seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=5, padding=2),  # 6 × 28 × 28
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5),  # 16 × 10 × 10
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),  # 400
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        ),
        seed,
    )


def paper_cnn(seed: int = 0) -> nn.Module:
    """The MNIST network of Scaman & Virmaux (2018): 1×28×28 → 10, 98 314 parameters."""
    return _seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=5, stride=2),  # 32 × 12 × 12
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, stride=2),  # 64 × 5 × 5
            nn.ReLU(),
            nn.Conv2d(64, 128, kernel_size=3, stride=2),  # 128 × 2 × 2
            nn.ReLU(),
            nn.Conv2d(128, 10, kernel_size=2),  # 10 × 1 × 1
            nn.Flatten(),
        ),
        seed,
    )


def alexnet(seed: int = 0) -> nn.Module:
    """AlexNet in torchvision's form and with its parameter names: 3×224×224 → 1000, 61 100 840 parameters."""

    def build() -> nn.Module:
        features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),  # 64 × 55 × 55
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # 64 × 27 × 27
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # 192 × 13 × 13
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # 256 × 6 × 6
        )
        classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 1000),
        )
        return nn.Sequential(
            OrderedDict(
                features=features,
                avgpool=nn.AdaptiveAvgPool2d((6, 6)),
                flatten=nn.Flatten(),
                classifier=classifier,
            )
        )

    return _seeded(build, seed)


def load_lenet5() -> nn.Module:
    """``lenet5`` with the committed weights."""
    return _load(lenet5(), "lenet5")


def load_paper_cnn() -> nn.Module:
    """``paper_cnn`` with the committed weights."""
    return _load(paper_cnn(), "paper_cnn")


def _load(model: nn.Module, name: str) -> nn.Module:
    model.load_state_dict(load_file(CHECKPOINTS / f"{name}.safetensors"))
    return model.eval()
