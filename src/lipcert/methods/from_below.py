"""What LipLT and AutoLip cannot be below, by a few passes: whether there is use in running them. Proves nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.certificates.norms.conversion import cost
from lipcert.increments import Cell, Increments, Linear
from lipcert.network.linear import LinearMap
from lipcert.problem import Norm, Problem
from lipcert.search.power import power_method

#: Power steps of each norm.
STEPS = 5
#: A map from the input through all middle slopes is written down where no node has more entries in all columns.
MOST_ENTRIES = 2_000_000


def hopeless(value: float, increments: Increments) -> bool:
    """Whether both the loop transformation and the product of norms, all from below, exceed ``value`` in l2 → l2."""
    try:
        return value < min(product(increments), loop(increments))
    except (ValueError, OverflowError):  # a power method that overflows
        return False


def may_be_below(value: float, problem: Problem, via: Norm | None) -> bool:
    """Whether a bound between ``via`` may say less than ``value`` of the problem's norms.

    It is at least the norm of the linear map that all middle slopes make. Not worked out, and denied, where that map is
    large.
    """
    increments = problem.increments
    n, m = increments.relations[0].size, increments.relations[-1].size
    if via is None or n * max(r.size for r in increments.relations) > MOST_ENTRIES:
        return False
    units = torch.eye(n, dtype=torch.float64).reshape(n, *increments.in_shape)
    columns = _forward(increments, units)[-1].reshape(n, -1).T
    p, q = via
    if p == q == 2.0:
        size = float(torch.linalg.matrix_norm(columns, 2)) if columns.numel() else 0.0
    elif p == 1.0:
        size = float(columns.norm(p=q, dim=0).max()) if columns.numel() else 0.0
    else:
        size = float(columns.norm(p=1.0, dim=1).max()) if columns.numel() else 0.0
    return not size * float(cost(problem.norm, via, n, m)) >= value


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
    """‖A_y x‖ + Σ_i ‖(A_{y←i} diag(d_i))ᵀu‖ ‖A_i x_i‖: LipLT's sum with each norm along some x, u = A_y x/‖A_y x‖."""
    x, last = _start(increments), len(increments.relations) - 1
    total = 0.0
    for _ in range(STEPS):
        values = _forward(increments, x)
        length = float(values[-1].norm())
        if not 0.0 < length < math.inf:
            return 0.0
        seen = _back(increments, last, values[-1] / length)
        total = length
        for cell in increments.cells:
            if cell.node in seen:
                total += float((cell.d * seen[cell.node]).norm()) * _reached(increments, cell, x)
        x = seen.get(0, torch.zeros_like(x))
        if not 0.0 < float(x.norm()) < math.inf:
            break
        x = x / x.norm()
    return total if math.isfinite(total) else 0.0


def _reached(increments: Increments, cell: Cell, x: Tensor) -> float:
    """The norm of the map from the input to what a cell reads, by power steps from x."""
    length = 0.0
    for _ in range(STEPS):
        v = _forward(increments, x, cell.parent)[-1]
        length = float(v.norm())
        if not 0.0 < length < math.inf:
            break
        x = _back(increments, cell.parent, v / length).get(0, torch.zeros_like(x))
        if not 0.0 < float(x.norm()) < math.inf:
            break
        x = x / x.norm()
    return length


def _start(increments: Increments) -> Tensor:
    x = torch.randn(1, *increments.in_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x / x.norm()


def _back(increments: Increments, position: int, gradient: Tensor) -> dict[int, Tensor]:
    """Position of cells, and of the input → gradient there of a function of the node at ``position``."""
    pending, seen = {position: gradient}, {}
    for k in range(position, 0, -1):
        relation, g = increments.relations[k], pending.pop(k, None)
        if g is None:
            continue
        if isinstance(relation, Cell):
            seen[k] = g
            plain = increments.relations[relation.parent].shape == relation.shape
            parts = [relation.c * g] if plain else []
        else:
            assert isinstance(relation, Linear)
            parts = [m.transpose(g) for m in relation.maps]
        for parent, part in zip(relation.parents, parts, strict=False):
            pending[parent] = pending[parent] + part if parent in pending else part
    return seen | pending


def _forward(increments: Increments, x: Tensor, stop: int | None = None) -> list[Tensor]:
    """Values of all nodes, or of those up to ``stop``, where every slope is the middle one."""

    def linear(_: int, relation: Linear, before: list[Tensor]) -> Tensor:
        images = [m.apply(value) for m, value in zip(relation.maps, before, strict=True)]
        return sum(images[1:], images[0]) if images else x.new_zeros(len(x), *relation.shape)

    def cell(_: int, relation: Cell, v: Tensor) -> Tensor:
        return relation.c * v if tuple(v.shape[1:]) == relation.shape else x.new_zeros(len(x), *relation.shape)

    part = increments if stop is None else Increments(increments.relations[: stop + 1])
    with torch.no_grad():
        return part.walk(lambda *_: x, linear, cell)
