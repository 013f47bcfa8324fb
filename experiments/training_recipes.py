"""The recipes that the training experiment compares, and the networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipcert.training import LipschitzRegularizer, MarginLoss

#: (model, one input, calls over which the radius grows) → loss of (inputs, labels).
Made = Callable[[nn.Module, Tensor, int], Callable[[Tensor, Tensor], Tensor]]


def convsmall() -> nn.Module:
    """The 2C2F network of the literature: 1×28×28 → 10, 166 406 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def four_c_three_f() -> nn.Module:
    """The 4C3F network of the literature: 1×28×28 → 10, 1 974 762 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 64, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


NETS: Mapping[str, Callable[[], nn.Module]] = {"convsmall": convsmall, "4c3f": four_c_three_f}


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        title: for the table.
        made: its loss.
        radius: l2, that it trains for; None where it knows of none.
        decay: weight decay of Adam.
        spectral: whether each layer carries torch's spectral-norm parametrisation.
        orthogonal: whether it starts from layers that are nearly orthogonal.
        after: the recipe whose network it goes on from, from half of its rate, at the full radius at once.
        further: steps of this; None: a quarter of all before.
        order: added to the seed of the order of images, which else is that of the recipe before.
    """

    title: str
    made: Made
    radius: float | None = None
    decay: float = 0.0
    spectral: bool = False
    orthogonal: bool = False
    after: str | None = None
    further: int | None = None
    order: int = 0

    def model(self, net: str, seed: int) -> nn.Module:
        """A fresh network with the weights of a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = NETS[net]()
            if self.orthogonal:
                orthogonal_(model)
            if self.spectral:
                for k, part in enumerate(model):
                    if isinstance(part, nn.Linear | nn.Conv2d):
                        model[k] = parametrizations.spectral_norm(part)
            return model


@torch.no_grad()
def orthogonal_(model: nn.Module) -> None:
    """Weights of each layer orthogonal, of convolutions with noise of a tenth, so the product of norms is small.

    A convolution is so through the middle of its kernel: a stride apart, the pixels that it reads do not overlap.
    """
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.orthogonal_(part.weight)
        elif isinstance(part, nn.Conv2d):
            outputs, _, *size = part.weight.shape
            middle = [slice((k - s) // 2, (k - s) // 2 + s) for k, s in zip(size, part.stride, strict=True)]
            block = part.weight[:, :, *middle]
            chosen = nn.init.orthogonal_(torch.empty(outputs, block[0].numel())).reshape(block.shape)
            part.weight.normal_(std=0.1 / part.weight[0].numel() ** 0.5)
            part.weight[:, :, *middle] += chosen
        else:
            continue
        part.bias.zero_()


def _plain(model: nn.Module, _: Tensor, __: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: F.cross_entropy(model(x), y)


def _margin(kind: str, radius: float, strength: float | None = None, attack_steps: int = 4) -> Made:
    def made(model: nn.Module, example: Tensor, warm_up: int) -> Callable[[Tensor, Tensor], Tensor]:
        return MarginLoss(
            model,
            example,
            kind,
            radius=radius,
            strength=strength,
            warm_up=warm_up,
            attack_steps=attack_steps,  # type: ignore[arg-type]
        )

    return made


def _lipsdp(radius: float) -> Made:
    """Cross-entropy of f_j + ε √2 L for j ≠ y: LipSDP's constant L of the whole output, for every pair alike."""

    def made(model: nn.Module, example: Tensor, warm_up: int) -> Callable[[Tensor, Tensor], Tensor]:
        reg, calls = LipschitzRegularizer(model, example, method="lipsdp", penalty="value"), 0

        def loss(x: Tensor, y: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            reach = radius * min(1.0, calls / max(warm_up, 1)) * math.sqrt(2.0) * reg()
            return F.cross_entropy(model(x) + reach * (1.0 - F.one_hot(y, 10)), y)

        return loss

    return made


def _with_radius(name: str, title: str, radii: tuple[float, ...], made: Callable[[float], Made]) -> dict[str, Recipe]:
    return {f"{name}_{r:g}": Recipe(f"{title}, ε = {r:g}", made(r), r) for r in radii}


#: What is compared.
RECIPES: Mapping[str, Recipe] = {
    "plain": Recipe("plain", _plain),
    "weight_decay": Recipe("weight decay 5e-4", _plain, decay=5e-4),
    "spectral_norm": Recipe("torch's spectral_norm on each layer", _plain, spectral=True),
    **_with_radius("pgd", "adversarial (PGD)", (0.3, 1.58), lambda r: _margin("mixed", r, 0.0)),
    **_with_radius("gloro", "GloRo, product constants", (0.3, 1.58), lambda r: _margin("gloro", r)),
    **_with_radius("crm", "CRM, product constants", (1.58,), lambda r: _margin("crm", r)),
    **_with_radius("lipsdp", "GloRo-like, LipSDP's constant", (0.3, 1.58), _lipsdp),
    **_with_radius("mixed", "PGD + 0.35 × pair constants", (0.3, 1.0, 1.58), lambda r: _margin("mixed", r)),
}


def _strength(radius: float, strength: float, attack_steps: int = 4) -> Recipe:
    fewer = {1: ", one attack step", 2: ", two attack steps"}.get(attack_steps, "")
    title = f"PGD + {strength:g} × pair constants, ε = {radius:g}{fewer}"
    return Recipe(title, _margin("mixed", radius, strength, attack_steps), radius)


def _started(recipe: Recipe) -> Recipe:
    return replace(recipe, title=f"{recipe.title}, orthogonal start", orthogonal=True)


def _stages(*shares: float) -> str:
    """The name of a recipe with these shares of the pair constants, one after another."""
    return f"mixed_1.58_{'_'.join(f'r{r:g}' for r in shares)}_orthogonal"


def _lowered(*shares: float, further: int | None = None, order: int = 0) -> Recipe:
    """Constants are held low first, and then less."""
    recipe = _strength(1.58, shares[-1], 2)
    title = recipe.title.replace("PGD + ", f"PGD + {', then '.join(f'{r:g}' for r in shares[:-1])}, then ")
    after, title = _stages(*shares[:-1]), f"{title}, orthogonal start"
    return replace(recipe, title=title, orthogonal=True, after=after, further=further, order=order)


#: The share of the pair constants in ``mixed``: only where they are asked for by name.
STRENGTHS: Mapping[str, Recipe] = {
    f"mixed_{radius:g}_r{r:g}": _strength(radius, r)
    for radius in (0.3, 1.0, 1.58) for r in (0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.5, 0.7)
} | {
    f"mixed_1.58_r{r:g}_{name}": _strength(1.58, r, steps)
    for name, steps in (("one", 1), ("two", 2)) for r in (0.35, 0.5)
} | {_stages(r): _started(_strength(1.58, r, 2)) for r in (0.3, 0.35, 0.4, 0.45, 0.5)} | {
    _stages(0.4, *later): _lowered(0.4, *later)
    for later in ((0.1,), (0.15,), (0.2,), (0.25,), (0.3,), (0.3, 0.25), (0.3, 0.3))
} | {
    _stages(0.4, 0.3, 0.3, 0.3): _lowered(0.4, 0.3, 0.3, 0.3, further=12_000, order=7)
}  # fmt: skip
ALL: Mapping[str, Recipe] = {**RECIPES, **STRENGTHS}
