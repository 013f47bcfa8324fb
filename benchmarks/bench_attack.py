"""The attack on networks where the truth, or a better value, is known by another route.

python benchmarks/bench_attack.py [name ...]

Prints per network: the lower bound, the value it is measured against, wall and processor seconds, and the load of
the machine (timings on a busy machine are upper limits).
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import lipcert
from lipcert.attack import search

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))


def fitted(widths: tuple[int, ...], inputs: Tensor, targets: Tensor, steps: int = 600) -> nn.Sequential:
    """A ReLU MLP fitted by Adam to (inputs, targets); the same on every run."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).double()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimiser.step()
    return model.eval()


def tabular(which: str, *hidden: int) -> nn.Sequential:
    """Regression of standardised targets on scikit-learn's iris, wine or diabetes data."""
    from sklearn import datasets

    data = getattr(datasets, f"load_{which}")()
    x = torch.from_numpy(data.data).double()
    x = (x - x.mean(0)) / x.std(0)
    y = torch.from_numpy(data.target)
    t = torch.nn.functional.one_hot(y.long()).double() if which != "diabetes" else (y.double()[:, None] - 150) / 77
    return fitted((x.shape[1], *hidden, t.shape[1]), x, t)


def critic() -> nn.Module:
    """A convolutional critic with instance norms and no padding: steepest where the normalised maps are constant."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 3, 2), nn.InstanceNorm2d(16),
        nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 2, 2), nn.InstanceNorm2d(32), nn.LeakyReLU(0.2), nn.Flatten(),
        nn.Linear(32 * 9, 1),
    ).eval()  # fmt: skip


def at_zero(model: nn.Module, shape: tuple[int, ...]) -> float:
    """Largest ‖J‖ at and near the zero image, by autograd in float64."""
    exact = copy.deepcopy(model).double()
    torch.manual_seed(0)
    points = [noise * torch.randn(1, *shape, dtype=torch.float64) for noise in (0.0, 1e-6, 1e-5, 1e-4)]
    jacobians = [torch.autograd.functional.jacobian(exact, x).reshape(-1, x.numel()) for x in points]
    return max(float(torch.linalg.matrix_norm(j, 2)) for j in jacobians)


def enumerated(model: nn.Sequential, shape: tuple[int, ...]) -> float:
    """The certified maximum over all activation patterns (branch and bound): at or above the truth."""
    return lipcert.bound(model, torch.zeros(1, *shape, dtype=torch.float64), "branch_and_bound", budget=20).value


def noise_regression() -> nn.Sequential:
    """Raw wine data (13 features of very different size) fitted to noise of deviation 100: 13-20-16-8-3, steep."""
    from sklearn import datasets

    x = torch.from_numpy(datasets.load_wine().data).double()
    mean, deviation = x.mean(0), x.std(0)
    targets = 100 * torch.randn(len(x), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = fitted((13, 20, 16, 8, 3), (x - mean) / deviation, targets, steps=5000)
    first = model[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():  # the standardisation becomes part of the first layer
        first.weight /= deviation
        first.bias -= first.weight @ mean
    return model


@functools.cache
def trained_residual_cnn() -> nn.Module:
    """An 18-layer residual CNN with a 7 x 7 stem, trained on 4 000 MNIST images; 97 % of 1 000 others are right."""
    from default_networks import stem_residual_cnn

    from mnist import mnist_split
    from train_mnist import accuracy, train

    images, labels, others, truth = mnist_split()
    torch.manual_seed(0)
    model = stem_residual_cnn()
    train(model, images, labels, epochs=8, weight_decay=1e-3, seed=0)
    print(f"    (trained: {accuracy(model, others, truth):.1%} of the test images are right)")
    return model


def at_data(model: nn.Module, shape: tuple[int, ...]) -> float:
    """Largest ‖J‖ at the first hundred test images, by autograd in float64."""
    from mnist import mnist_split

    exact = copy.deepcopy(model).double()
    points = mnist_split()[2][:100].double()
    jacobians = (torch.autograd.functional.jacobian(exact, x[None]).reshape(-1, math.prod(shape)) for x in points)
    return max(float(torch.linalg.matrix_norm(j, 2)) for j in jacobians)


def without_walk(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The attack by ascent alone, with the same 80 s."""
    walk, search.walk = search.walk, lambda *_: False
    try:
        return lipcert.lower_bound(model, torch.zeros(1, *shape, dtype=torch.float64), budget=80).value
    finally:
        search.walk = walk


BUDGETS = {"residual CNN, trained": 90.0, "noise 13-20-16-8-3, ascent": 80.0, "noise 13-20-16-8-3, exact": 80.0}
ROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[..., float], str]] = {
    "iris 4-6-6-3": (lambda: tabular("iris", 6, 6), (4,), enumerated, "branch and bound, ≥ truth"),
    "diabetes 10-12-12-1": (lambda: tabular("diabetes", 12, 12), (10,), enumerated, "branch and bound, ≥ truth"),
    "wine 13-20-16-8-3": (lambda: tabular("wine", 20, 16, 8), (13,), enumerated, "branch and bound, ≥ truth"),
    "noise 13-20-16-8-3, ascent": (noise_regression, (13,), without_walk, "the attack without the walk over regions"),
    "noise 13-20-16-8-3, exact": (noise_regression, (13,), enumerated, "branch and bound, ≥ truth"),
    "residual CNN, trained": (trained_residual_cnn, (1, 28, 28), at_data, "Jacobians at 100 test images"),
    "instance-norm critic 28²": (critic, (1, 28, 28), at_zero, "at nearly zero images"),
}


def main() -> None:
    """Print one line per network."""
    wanted = sys.argv[1:]
    print(
        f"{torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, 20 s or as said"
    )
    print(f"{'network':<28}{'lower bound':>14}{'reference':>14}{'ratio':>8}{'wall s':>8}{'cpu s':>8}  reference is")
    for name, (build, shape, reference, what) in ROWS.items():
        if wanted and not any(w in name for w in wanted):
            continue
        model = build()
        dtype = next(model.parameters()).dtype
        wall, cpu = time.perf_counter(), time.process_time()
        lower = lipcert.lower_bound(model, torch.zeros(1, *shape, dtype=dtype), budget=BUDGETS.get(name, 20.0))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        known = reference(model, shape)
        ratio = lower.value / known if known else math.nan
        print(f"{name:<28}{lower.value:>14.7g}{known:>14.7g}{ratio:>8.4f}{wall:>8.1f}{cpu:>8.1f}  {what}", flush=True)


if __name__ == "__main__":
    main()
