"""What LipLT and AutoLip cannot be below, by a few passes: whether there is use in running them. Proves nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.increments import Cell, Increments, Linear
from lipcert.network.linear import LinearMap
from lipcert.search.power import power_method

#: Power steps of each norm.
STEPS = 3


def hopeless(value: float, increments: Increments) -> bool:
    """Whether both the loop transformation and the product of norms, all from below, exceed ``value`` in l2 → l2."""
    try:
        return value < min(product(increments), loop(increments))
    except (ValueError, OverflowError):  # a power method that overflows
        return False


def product(increments: Increments) -> float:
    """AutoLip with every norm from below, and of a sum of maps the greatest term alone."""

    def norm(linear: LinearMap) -> float:
        if linear.is_zero:
            return 0.0
        start = torch.ones(linear.in_size, dtype=torch.float64)
        here = linear.to(torch.float64, "cpu")
        return power_method(lambda x: here.gram(x.reshape(1, *linear.in_shape)).reshape(-1), start, STEPS)[0]

    def of(_: int, relation: Linear, before: list[float]) -> float:
        return max((norm(m) * b for m, b in zip(relation.maps, before, strict=True)), default=0.0)

    return increments.walk(lambda *_: 1.0, of, lambda _, cell, before: before * cell.gain(2.0))[-1]


def loop(increments: Increments) -> float:
    """‖A_y x‖ + Σ_i ‖(A_{y←i} diag(d_i))ᵀu‖ ‖A_i x‖, the terms of LipLT's sum along one x and one u = A_y x/‖A_y x‖."""
    x = torch.randn(1, *increments.in_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = 0.0
    for _ in range(STEPS):
        values = _forward(increments, x / x.norm())
        length = float(values[-1].norm())
        if not 0.0 < length < math.inf:
            return 0.0
        pending = {len(values) - 1: values[-1] / length}
        total = length
        for k in range(len(values) - 1, 0, -1):
            relation, g = increments.relations[k], pending.pop(k, None)
            if g is None:
                continue
            if isinstance(relation, Cell):
                v = values[relation.parent]
                total += float((relation.d * g).norm() * v.norm())
                parts = [relation.c * g] if v.shape == g.shape else []
            else:
                assert isinstance(relation, Linear)
                parts = [m.transpose(g) for m in relation.maps]
            for parent, part in zip(relation.parents, parts, strict=False):
                pending[parent] = pending[parent] + part if parent in pending else part
        x = pending.get(0, torch.zeros_like(x))
        if not 0.0 < float(x.norm()) < math.inf:
            break
    return total if math.isfinite(total) else 0.0


def _forward(increments: Increments, x: Tensor) -> list[Tensor]:
    """Values of all nodes where every slope is the middle one."""

    def linear(_: int, relation: Linear, before: list[Tensor]) -> Tensor:
        images = [m.apply(value) for m, value in zip(relation.maps, before, strict=True)]
        return sum(images[1:], images[0]) if images else x.new_zeros(1, *relation.shape)

    def cell(_: int, relation: Cell, v: Tensor) -> Tensor:
        return relation.c * v if tuple(v.shape[1:]) == relation.shape else x.new_zeros(1, *relation.shape)

    with torch.no_grad():
        return increments.walk(lambda *_: x, linear, cell)
