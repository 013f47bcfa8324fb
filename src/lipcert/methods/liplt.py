"""LipLT (Fazlyab et al., NeurIPS 2023): the loop-transformed network's maps, one norm per pair of layers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from lipcert.certificates.base import Witness
from lipcert.certificates.loop_transform import is_dense, operations, views
from lipcert.errors import InputError
from lipcert.methods.base import EQUAL_NORMS, Found, Method, Run, method
from lipcert.methods.cost import operations_per_second
from lipcert.methods.norm_effort import maps_of, seconds_at_best
from lipcert.network.graph import ActivationNode, AffineNode, GainNode, Network
from lipcert.problem import Norm, Problem

#: Lanczos steps, forward and backward, of one probabilistic norm.
_PASSES = 2.0 * 120.0


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
        wide = [network for network in views(problem) if not is_dense(network)]
        if not wide:
            return Found(Witness("loop_transform"))
        window = min(_affordable(network, run.left) for network in wide)
        return Found(Witness("loop_transform", {}, {"window": window}))

    def obstacle(self, problem: Problem, run: Run) -> str | None:
        """Is there time for the matrices, or, without them, for the least of the norms: a few hundred passes each?"""
        needed = sum(_least_seconds(network, problem.norm[0]) for network in views(problem))
        if needed > run.left:
            return f"it would take about {needed:.0f} s; raise budget= or ask for method='liplt'"
        if run.rigorous and not all(is_dense(network) for network in views(problem)):
            return "its norms here are probabilistic"
        return None


def _least_seconds(network: Network, p: float) -> float:
    """About what LipLT takes: every matrix, or the norms over two layers and those of the product rule."""
    if is_dense(network):
        return 2.0 * operations(network) / operations_per_second()
    passes = _seconds_per_layer(network) * _layers_crossed(network, 1) * _PASSES
    return passes + (seconds_at_best(maps_of(network)) if p == 2 else 0.0)


def _layers_crossed(network: Network, window: int) -> float:
    """About how many layers the maps from all sources to all nodes cross."""
    affine = sum(isinstance(node, AffineNode) for node in network.nodes)
    return affine * (window + 1) ** 2 / 2.0


def _seconds_per_layer(network: Network) -> float:
    here = network.to(torch.float64, "cpu")
    x = torch.zeros(1, *network.in_shape, dtype=torch.float64)
    started = time.perf_counter()
    with torch.no_grad():
        here.forward(x)
    return (time.perf_counter() - started) / max(1, sum(isinstance(node, AffineNode) for node in network.nodes))


def _affordable(network: Network, seconds: float) -> int:
    """The largest window whose probabilistic norms fit in about the time left."""
    nonlinear = sum(isinstance(node, (ActivationNode, GainNode)) for node in network.nodes)
    per_layer = _seconds_per_layer(network)
    window = 1
    while window < nonlinear and _layers_crossed(network, window + 1) * per_layer * _PASSES <= 0.8 * seconds:
        window += 1
    return window
