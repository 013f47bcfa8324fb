"""A model in float32 beside the real-valued network, on points of a domain."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import lipcert


def points(domain: lipcert.Ball | lipcert.Box, shape: tuple[int, ...], rows: int, seed: int = 0) -> Tensor:
    """Float32 points of a ball or box of finite ends: at random, at corners, in the middle."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (t.reshape(1, *shape) for t in domain.fitted((1, *shape)).bounds())
    share = torch.rand(rows, *shape, generator=generator, dtype=torch.float64)
    share[::3] = share[::3].round()
    share[1::5] = 0.5
    x = (low + share * (high - low)).to(torch.float32)
    x = torch.where(x.double() < low, torch.nextafter(x, torch.full_like(x, torch.inf)), x)
    x = torch.where(x.double() > high, torch.nextafter(x, torch.full_like(x, -torch.inf)), x)
    kept = [row for row in x if domain.fitted((1, *shape)).contains(row[None].double())]
    return torch.stack(kept)


def differences(model: nn.Module, x: Tensor, sizes: tuple[int, ...] = (1, 3, 16, 64)) -> Iterator[Tensor]:
    """|f̂ − f| for batches of several sizes, which have kernels of their own; f in float64 on the same parameters."""
    real = copy.deepcopy(model).double()
    with torch.no_grad():
        for size in sizes:
            for batch in x.split(size)[: max(1, 48 // size)]:
                yield (model(batch.clone()).double() - real(batch.double())).abs()


def holds(model: nn.Module, domain: lipcert.Ball | lipcert.Box, shape: tuple[int, ...], seed: int = 0) -> float:
    """The least bound over observed difference; asserts that no bound is below an observed one.

    The real network is run in float64, whose own rounding is 2^-29 of what is looked for: bounds may be missed by that.
    """
    model = model.eval().requires_grad_(False)
    bounds = lipcert.execution_error(model, torch.zeros(1, *shape), domain).bounds
    worst = torch.zeros_like(bounds)
    for difference in differences(model, points(domain, shape, 96, seed)):
        worst = torch.maximum(worst, difference.reshape(-1, *bounds.shape).amax(0))
    assert bool((worst <= bounds).all()), f"{float((worst - bounds).max()):.3g} above the bound"
    seen = worst > 0
    return float((bounds[seen] / worst[seen]).min()) if bool(seen.any()) else torch.inf
