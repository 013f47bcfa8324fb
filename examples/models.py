"""The networks of the demo, the tests and the benchmarks, written out in plain torch.

Every factory seeds torch's default initialisation without disturbing the caller's random state and
returns the model in eval mode. ``load_lenet5`` and ``load_paper_cnn`` fill in the weights that
``train_mnist.py`` made, ``load("mlp_128x2")`` and so on those of ``train_zoo.py``. The MNIST networks take
1×28×28 images in [0, 1], ``resnet`` the same padded to 32×32 and repeated in three channels.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

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


def mnist_mlp(*hidden: int, seed: int = 0) -> nn.Module:
    """A ReLU network 784-hidden-…-10 on flattened 1×28×28 images."""

    def build() -> nn.Module:
        sizes = [784, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))

    return _seeded(build, seed)


def eclipse_recipe(layers: int, width: int) -> nn.Module:
    """The random ReLU networks of the ECLipsE paper: 4-width-…-width-1 in float64, no biases.

    Numpy's legacy generator, seed 7·width + 13·layers; per layer a spectral norm drawn from [0.4, 1.8]. ``layers``
    counts weight matrices.
    """
    rng = np.random.RandomState(7 * width + 13 * layers)
    modules: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([4] + [width] * (layers - 1) + [1]):
        norm = rng.uniform(0.4, 1.8)
        weight = rng.randn(fan_out, fan_in)
        weight *= norm / np.linalg.norm(weight, 2)
        layer = nn.Linear(fan_in, fan_out, bias=False, dtype=torch.float64)
        layer.weight = nn.Parameter(torch.from_numpy(weight))
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval()


class Residual(nn.Module):
    """relu(skip(x) + inner(x))."""

    def __init__(self, inner: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.inner, self.skip = inner, skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, …)."""
        return F.relu(self.skip(x) + self.inner(x))


def residual_mlp(seed: int = 0, width: int = 64, blocks: int = 8) -> nn.Module:
    """Fully connected residual network on 1×28×28 images, 2·blocks + 2 = 18 linear layers."""

    def block() -> nn.Module:
        inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        return Residual(inner, nn.Identity())

    return _seeded(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, width), nn.ReLU(), *(block() for _ in range(blocks)), nn.Linear(width, 10)
        ),
        seed,
    )


def residual_cnn(seed: int = 0, channels: int = 16, blocks: int = 8) -> nn.Module:
    """Convolutional residual network with max-pooling on 1×28×28 images, 18 layers, 72 128 neurons once expanded."""

    def conv(fan_in: int) -> nn.Module:
        return nn.Conv2d(fan_in, channels, kernel_size=3, padding=1)

    def block() -> nn.Module:
        return Residual(nn.Sequential(conv(channels), nn.ReLU(), conv(channels)), nn.Identity())

    return _seeded(
        lambda: nn.Sequential(
            conv(1),  # channels × 28 × 28
            nn.ReLU(),
            nn.MaxPool2d(2),  # channels × 14 × 14
            *(block() for _ in range(blocks)),
            nn.AvgPool2d(7),  # channels × 2 × 2
            nn.Flatten(),
            nn.Linear(4 * channels, 10),
        ),
        seed,
    )


def resnet(seed: int = 0, widths: tuple[int, ...] = (16, 16, 32, 64)) -> nn.Module:
    """ResNet-18 layout (8 blocks, batch norm, strides, 1×1 downsampling skips), slim, 3×32×32 → 10."""

    def conv(fan_in: int, fan_out: int, stride: int, kernel: int = 3) -> list[nn.Module]:
        layer = nn.Conv2d(fan_in, fan_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        return [layer, nn.BatchNorm2d(fan_out)]

    def block(fan_in: int, fan_out: int, stride: int) -> nn.Module:
        plain = stride == 1 and fan_in == fan_out
        skip = nn.Identity() if plain else nn.Sequential(*conv(fan_in, fan_out, stride, kernel=1))
        return Residual(nn.Sequential(*conv(fan_in, fan_out, stride), nn.ReLU(), *conv(fan_out, fan_out, 1)), skip)

    def build() -> nn.Module:
        layers = [*conv(3, widths[0], 1), nn.ReLU()]
        fan_in = widths[0]
        for stage, width in enumerate(widths):
            layers += [block(fan_in, width, 1 if stage == 0 else 2), block(width, width, 1)]
            fan_in = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, 10))

    return _seeded(build, seed)


#: The networks of ``train_zoo.py``: name of the checkpoint → factory.
TRAINED: dict[str, Callable[..., nn.Module]] = {
    "mlp_128x2": partial(mnist_mlp, 128, 128),
    "mlp_256x3": partial(mnist_mlp, 256, 256, 256),
    "residual_mlp": residual_mlp,
    "residual_cnn": residual_cnn,
    "resnet": resnet,
}


def load(name: str) -> nn.Module:
    """One of ``TRAINED`` with the committed weights."""
    return _load(TRAINED[name](), name)


def load_lenet5() -> nn.Module:
    """``lenet5`` with the committed weights."""
    return _load(lenet5(), "lenet5")


def load_paper_cnn() -> nn.Module:
    """``paper_cnn`` with the committed weights."""
    return _load(paper_cnn(), "paper_cnn")


def _load(model: nn.Module, name: str) -> nn.Module:
    model.load_state_dict(load_file(CHECKPOINTS / f"{name}.safetensors"))
    return model.eval()
