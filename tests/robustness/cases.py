"""Classifiers whose robustness is known, and small ones that are not."""

import torch
from torch import Tensor, nn

WEIGHTS = [[3.0, 0.0, 1.0], [0.0, 4.0, -1.0], [-1.0, 1.0, 0.5]]
OFFSETS = [0.25, -0.5, 0.0]


def linear() -> nn.Module:
    """Scores W x + b of three classes: the distance to another class is margin / ‖w_y − w_k‖ in the dual norm."""
    layer = nn.Linear(3, 3)
    layer.weight.data.copy_(torch.tensor(WEIGHTS))
    layer.bias.data.copy_(torch.tensor(OFFSETS))
    return layer.eval()


def distances(x: Tensor, label: int, dual: float) -> Tensor:
    """To each other class of ``linear``, (2,), float64."""
    rows, offsets = torch.tensor(WEIGHTS, dtype=torch.float64), torch.tensor(OFFSETS, dtype=torch.float64)
    scores = rows @ x.double() + offsets
    others = [k for k in range(3) if k != label]
    return torch.stack([(scores[label] - scores[k]) / (rows[label] - rows[k]).norm(p=dual) for k in others])


def points(count: int = 12, seed: int = 0, size: tuple[int, ...] = (3,)) -> Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed))


def mlp(seed: int = 0, width: int = 8, inputs: int = 6, classes: int = 4) -> nn.Module:
    """A ReLU network with norms near 1, so that some inputs are decided each way."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * 1.2 / max(p.shape) ** 0.5)
    return model.eval()


def right_labels(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs).flatten(1).argmax(1)
