"""LipLT (Fazlyab et al., NeurIPS 2023): the loop-transformed network's maps, one norm per pair of layers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from lipcert.certificates.base import Witness
from lipcert.certificates.loop_transform import is_dense, is_sparse, operations, sparse_operations, views
from lipcert.errors import InputError
from lipcert.increments import BlockCell, Increments, ScaledIncrements
from lipcert.methods.base import EQUAL_NORMS, Found, Method, Run, method
from lipcert.methods.cost import operations_per_second
from lipcert.methods.joint_cost import PATIENCE, alone, seconds_of_joint, work_of
from lipcert.methods.norm_effort import maps_of, seconds_at_best
from lipcert.problem import Norm, Problem

#: Lanczos steps, forward and backward, of one probabilistic norm.
_PASSES = 2.0 * 120.0
#: What the norm of one small matrix takes, whatever its size.
_PAIR_SECONDS = 2e-3


@method
@dataclass(frozen=True, kw_only=True)
class LipLT(Method):
    """Norms of the maps between all pairs of layers: tighter than AutoLip, cost quadratic in depth.

    ℓ_j ≤ ‖A_{j←0}‖ + Σ_{i<j} ‖A_{j←i} diag(d_i)‖ ℓ_i, and never more than the product rule at any node. Source:
    Fazlyab et al., *Certified robustness via dynamic margin maximization and improved Lipschitz regularization* (2023).

    Attributes:
        window: on networks too wide for matrices, how many nonlinear nodes a sum reaches back (None: as many as the
            budget allows); 1 or more.
    """

    name: ClassVar[str] = "liplt"
    norms: ClassVar[tuple[Norm, ...]] = EQUAL_NORMS
    summary: ClassVar[str] = "norms between all pairs of layers (loop transformation); any network, never above autolip"

    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and (not isinstance(self.window, int) or self.window < 1):
            raise InputError(f"window must be a positive integer or None, not {self.window!r}.")

    def solve(self, problem: Problem, run: Run) -> Found:
        """Choose how far sums reach back; the check finds every norm itself."""
        self.require_norm(problem.norm)
        if self.window is not None:
            return Found(Witness("loop_transform", {}, {"window": self.window}))
        work = work_of(problem)
        if alone(problem):
            own = {} if work == "matrices" else {"work": work, **({"rigorous": True} if run.rigorous else {})}
            return Found(Witness("joint_transform", {}, {"alone": True, **own}))
        kind = "loop_transform" if work is None else "joint_transform"
        wide = [increments for increments in views(problem) if not is_dense(increments)]
        if not wide:
            return Found(Witness(kind))
        if _sparse(problem, wide):
            return Found(Witness(kind, {}, {"sparse": True}))
        window = min(_affordable(increments, run.left) for increments in wide)
        return Found(Witness(kind, {}, {"window": window}))

    def obstacle(self, problem: Problem, run: Run) -> str | None:
        """Is there time for the matrices, or, without them, for the least of the norms: a few hundred passes each?"""
        if self.window is None and alone(problem):
            needed = seconds_of_joint(problem)
            if needed > PATIENCE * run.left:
                return f"it would take about {needed:.0f} s; raise budget= or ask for method='liplt'"
            return None
        sparse = _sparse(problem, [increments for increments in views(problem) if not is_dense(increments)])
        needed = sum(_least_seconds(increments, problem.norm[0], sparse) for increments in views(problem))
        needed += seconds_of_joint(problem)
        if needed > run.left:
            return f"it would take about {needed:.0f} s; raise budget= or ask for method='liplt'"
        if run.rigorous and not sparse and not all(is_dense(increments) for increments in views(problem)):
            return "its norms here are probabilistic"
        return None


def _sparse(problem: Problem, wide: Sequence[Increments]) -> bool:
    """Whether networks too wide for matrices are better done by passes: nearly linear ones on small domains."""
    blocks = any(isinstance(cell, BlockCell) for increments in wide for cell in increments.cells)
    return problem.domain is not None and blocks and all(is_sparse(increments) for increments in wide)


def _least_seconds(increments: Increments, p: float, sparse: bool) -> float:
    """About what LipLT takes: every matrix, or the norms over two layers and those of the product rule."""
    if is_dense(increments):
        return 2.0 * operations(increments) / operations_per_second() + _pairs(increments) * _PAIR_SECONDS
    if sparse:
        return 2.0 * sparse_operations(increments) / operations_per_second() + _pairs(increments) * _PAIR_SECONDS
    passes = _seconds_per_layer(increments) * _layers_crossed(increments, 1) * _PASSES
    return passes + (seconds_at_best(maps_of(increments)) if p == 2 else 0.0)


def _pairs(increments: Increments) -> int:
    """Pairs of a linear relation and a cell before it, of which the dense recursion works out a norm each."""
    return sum(sum(cell.node < k for cell in increments.cells) for k in increments.linears)


def _layers_crossed(increments: Increments, window: int) -> float:
    """About how many layers the maps from all sources to all nodes cross."""
    return len(increments.linears) * (window + 1) ** 2 / 2.0


def _seconds_per_layer(increments: Increments) -> float:
    scaled = ScaledIncrements(increments, (0,) * len(increments.relations))
    x = torch.zeros(1, *increments.in_shape, dtype=torch.float64)
    started = time.perf_counter()
    with torch.no_grad():
        scaled.run(x, lambda cell, v: v.new_zeros(1, *cell.shape))
    return (time.perf_counter() - started) / max(1, len(increments.linears))


def _affordable(increments: Increments, seconds: float) -> int:
    """The largest window whose probabilistic norms fit in about the time left."""
    per_layer = _seconds_per_layer(increments)
    window = 1
    while (
        window < len(increments.cells)
        and _layers_crossed(increments, window + 1) * per_layer * _PASSES <= 0.8 * seconds
    ):
        window += 1
    return window
