"""LipLT (Fazlyab et al., NeurIPS 2023): the loop-transformed network's maps, one norm per pair of layers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from lipcert.certificates.base import Witness
from lipcert.certificates.loop_transform import is_dense, views
from lipcert.errors import InputError
from lipcert.methods.base import EQUAL_NORMS, Method, Run, method
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

    def solve(self, problem: Problem, run: Run) -> Witness:
        """Choose how far sums reach back; the check finds every norm itself."""
        self.require_norm(problem.norm)
        if self.window is not None:
            return Witness("loop_transform", {}, {"window": self.window})
        wide = [network for network in views(problem) if not is_dense(network)]
        if not wide:
            return Witness("loop_transform")
        return Witness("loop_transform", {}, {"window": min(_affordable(network, run.left) for network in wide)})


def _affordable(network: Network, seconds: float) -> int:
    """The largest window whose probabilistic norms fit in about the time left."""
    affine = sum(isinstance(node, AffineNode) for node in network.nodes)
    nonlinear = sum(isinstance(node, (ActivationNode, GainNode)) for node in network.nodes)
    here = network.to(torch.float64, "cpu")
    x = torch.zeros(1, *network.in_shape, dtype=torch.float64)
    started = time.perf_counter()
    with torch.no_grad():
        here.forward(x)
    per_layer = (time.perf_counter() - started) / max(1, affine)
    window = 1
    while window < nonlinear:
        reach = (window + 2) ** 2 / 2.0  # layers crossed by the maps from all sources to one node
        if affine * reach * per_layer * _PASSES > 0.8 * seconds:
            break
        window += 1
    return window
