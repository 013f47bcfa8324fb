"""The networks on which the default call is measured: what people load, from 4 inputs to 224 × 224 pixels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import efficientnet  # noqa: E402
import models  # noqa: E402


class Residual(nn.Module):
    """relu(skip(x) + inner(x))."""

    def __init__(self, inner: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.skip = inner, nn.Identity() if skip is None else skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, …)."""
        return F.relu(self.skip(x) + self.inner(x))


def nature_cnn() -> nn.Module:
    """Four Atari frames of 84 × 84 with values to 255, six actions (Mnih et al. 2015)."""

    class Pixels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 255.0

    return nn.Sequential(
        Pixels(), nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1),
        nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6),
    )  # fmt: skip


def resnet18() -> nn.Module:
    """ResNet-18 with a 3 × 3 stem, as on CIFAR-10 (He et al. 2016); any image size."""

    def block(fan_in: int, fan_out: int, stride: int) -> nn.Module:
        inner = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU(),
            nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False), nn.BatchNorm2d(fan_out),
        )  # fmt: skip
        if stride == 1 and fan_in == fan_out:
            return Residual(inner)
        skip = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out))
        return Residual(inner, skip)

    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for stage, fan_out in enumerate((64, 128, 256, 512)):
        layers += [block(width, fan_out, 1 if stage == 0 else 2), block(fan_out, fan_out, 1)]
        width = fan_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def stem_residual_cnn(gain: float = 1.0) -> nn.Module:
    """1 × 28 × 28: 7 × 7 stem with max-pool, eight residual blocks of 16 channels at 14 × 14, a linear head.

    Args:
        gain: factor of every block's second convolution, for a network as steep as a trained one.
    """

    def block() -> nn.Module:
        first, second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        with torch.no_grad():
            second.weight.mul_(gain)
        return Residual(nn.Sequential(first, nn.ReLU(), second))

    return nn.Sequential(
        nn.Conv2d(1, 16, 7, padding=3), nn.ReLU(), nn.MaxPool2d(2), *(block() for _ in range(8)), nn.Flatten(),
        nn.Linear(16 * 14 * 14, 10),
    )  # fmt: skip


class UNet(nn.Module):
    """A small U-Net denoiser, 1 × 32 × 32 → the same: two levels, skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()

        def double(fan_in: int, fan_out: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(fan_out, fan_out, 3, padding=1),
                nn.ReLU(),
            )

        self.down1, self.down2, self.middle = double(1, 8), double(8, 16), double(16, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge2, self.merge1, self.out = double(32, 16), double(16, 8), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, h, w) → (B, 1, h, w), h and w divisible by 4."""
        fine = self.down1(x)
        coarse = self.down2(F.max_pool2d(fine, 2))
        bottom = self.middle(F.max_pool2d(coarse, 2))
        up = self.merge2(torch.cat([self.up2(bottom), coarse], dim=1))
        up = self.merge1(torch.cat([self.up1(up), fine], dim=1))
        return x + self.out(up)


def resnet3d() -> nn.Module:
    """A 3-D ResNet on volumes of 24³, four blocks, two classes."""

    def conv(fan_in: int, fan_out: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv3d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm3d(fan_out)]

    def block(fan_in: int, fan_out: int, stride: int) -> nn.Module:
        inner = nn.Sequential(*conv(fan_in, fan_out, stride), nn.ReLU(), *conv(fan_out, fan_out))
        return Residual(inner, None if stride == 1 else nn.Conv3d(fan_in, fan_out, 1, stride, bias=False))

    return nn.Sequential(
        *conv(1, 8), nn.ReLU(), block(8, 8, 1), block(8, 16, 2), block(16, 16, 1), block(16, 32, 2),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip


class MixerBlock(nn.Module):
    """Mixing over tokens, then over channels, each with a skip; batch-norm-free and without LayerNorm."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, channels) → the same."""
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


class Mixer(nn.Module):
    """An MLP-Mixer (Tolstikhin et al. 2021) on 1 × 28 × 28 images: 16 patches of 7 × 7, 32 channels, four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 7, stride=7)
        self.blocks = nn.Sequential(*(MixerBlock(16, 32) for _ in range(4)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 28, 28) → (B, 10)."""
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(tokens).mean(dim=1))


class Recurrent(nn.Module):
    """h ← tanh(W h + U x_t), unrolled; the last state to 3 outputs, PyTorch's own initialisation."""

    def __init__(self, steps: int, width: int = 64) -> None:
        super().__init__()
        self.steps, self.width = steps, width
        self.enter, self.go, self.out = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, steps, 8) → (B, 3)."""
        h = torch.tanh(self.enter(x[:, 0]))
        for t in range(1, self.steps):
            h = torch.tanh(self.enter(x[:, t]) + self.go(h))
        return self.out(h)


def deep_mlp() -> nn.Module:
    """50 layers of 200 neurons."""
    hidden = [layer for _ in range(49) for layer in (nn.Linear(200, 200), nn.ReLU())]
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), *hidden, nn.Linear(200, 10))


@dataclass(frozen=True)
class Network:
    """One row: a name, how to build the model, one example's shape, and methods that may give the best value."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rivals: tuple[str, ...] = ("autolip", "liplt", "lipsdp")
    group: str = "small"

    def model(self) -> nn.Module:
        """The model with seed 0, in eval mode."""
        torch.manual_seed(0)
        return self.build().eval()


IMAGE = (1, 28, 28)
ALL = ("autolip", "liplt", "eclipse_fast", "lipsdp", "branch_and_bound")
NETWORKS: tuple[Network, ...] = (
    Network("lenet5", models.load_lenet5, IMAGE),
    Network("paper_cnn", models.load_paper_cnn, IMAGE),
    Network("mlp_128x2", partial(models.load, "mlp_128x2"), IMAGE, ALL),
    Network("rnn_20", partial(Recurrent, 20), (20, 8)),
    Network("stem_residual_cnn", stem_residual_cnn, IMAGE),
    Network("stem_residual_cnn_steep", partial(stem_residual_cnn, 3.0), IMAGE),
    Network("residual_cnn_trained", partial(models.load, "residual_cnn"), IMAGE),
    Network("nature_cnn", nature_cnn, (4, 84, 84)),
    Network("unet", UNet, (1, 32, 32)),
    Network("resnet3d", resnet3d, (1, 24, 24, 24)),
    Network("mixer", Mixer, IMAGE),
    Network("mlp_50x200", deep_mlp, (784,), ALL),
    Network("resnet18_32", resnet18, (3, 32, 32), group="large"),
    Network("resnet18_64", resnet18, (3, 64, 64), group="large"),
    Network("alexnet", models.alexnet, (3, 224, 224), group="large"),
    Network("efficientnet_lite0", efficientnet.efficientnet_lite0, (3, 224, 224), group="large"),
)


def find(name: str) -> Network:
    """The network of this name."""
    return next(n for n in NETWORKS if n.name == name)
