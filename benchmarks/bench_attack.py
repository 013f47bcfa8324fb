"""The attack on networks where the truth, or a better value, is known by another route.

python benchmarks/bench_attack.py [name ...]

Prints per network: the lower bound, the value it is measured against, wall and processor seconds, and the load of
the machine (timings on a busy machine are upper limits).
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import lipcert

#: name → (build, shape of one example, reference, what the reference is, budget)
Row = tuple[Callable[[], nn.Module], tuple[int, ...], float, str, float]


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
    """A convolutional critic with instance norms: steepest where the normalised maps are constant."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 4, 2, 1), nn.InstanceNorm2d(16),
        nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), nn.InstanceNorm2d(32), nn.LeakyReLU(0.2), nn.Flatten(),
        nn.Linear(32 * 9, 1),
    ).eval()  # fmt: skip


def at_a_constant(model: nn.Module, shape: tuple[int, ...]) -> float:
    """‖J‖ at a nearly constant image, by autograd in float64."""
    import copy

    exact = copy.deepcopy(model).double()
    torch.manual_seed(0)
    points = [level + 1e-5 * torch.randn(1, *shape, dtype=torch.float64) for level in (0.0, 0.5, 1.0)]
    jacobians = [torch.autograd.functional.jacobian(exact, x).reshape(-1, x.numel()) for x in points]
    return max(float(torch.linalg.matrix_norm(j, 2)) for j in jacobians)


def enumerated(model: nn.Sequential, shape: tuple[int, ...]) -> float:
    """The certified maximum over all activation patterns (branch and bound): at or above the truth."""
    return lipcert.bound(model, torch.zeros(1, *shape, dtype=torch.float64), "branch_and_bound", budget=20).value


ROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[..., float], str]] = {
    "iris 4-6-6-3": (lambda: tabular("iris", 6, 6), (4,), enumerated, "branch and bound, ≥ truth"),
    "diabetes 10-12-12-1": (lambda: tabular("diabetes", 12, 12), (10,), enumerated, "branch and bound, ≥ truth"),
    "wine 13-20-16-8-3": (lambda: tabular("wine", 20, 16, 8), (13,), enumerated, "branch and bound, ≥ truth"),
    "instance-norm critic 28²": (critic, (1, 28, 28), at_a_constant, "at nearly constant images"),
}


def main() -> None:
    """Print one line per network."""
    wanted = sys.argv[1:]
    print(f"{torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, budget 20 s")
    print(f"{'network':<26}{'lower bound':>14}{'reference':>14}{'ratio':>8}{'wall s':>8}{'cpu s':>8}  reference is")
    for name, (build, shape, reference, what) in ROWS.items():
        if wanted and not any(w in name for w in wanted):
            continue
        model = build()
        dtype = next(model.parameters()).dtype
        wall, cpu = time.perf_counter(), time.process_time()
        lower = lipcert.lower_bound(model, torch.zeros(1, *shape, dtype=dtype), budget=20)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        known = reference(model, shape)
        ratio = lower.value / known if known else math.nan
        print(f"{name:<26}{lower.value:>14.7g}{known:>14.7g}{ratio:>8.4f}{wall:>8.1f}{cpu:>8.1f}  {what}", flush=True)


if __name__ == "__main__":
    main()
