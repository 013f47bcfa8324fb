"""The network prepared for a search: fused, small maps dense, in the search's dtype; exact Jacobians."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lipcert.attack.norms import best_directions, dual, lengths, maximiser
from lipcert.attack.pushforward import push
from lipcert.attack.witness import movable
from lipcert.network.graph import ActivationNode, AffineNode, Network, SelectionNode
from lipcert.network.linear import Dense, Identity, LinearMap, size
from lipcert.problem import Norm, Problem
from lipcert.search.power import dual_power_method

#: A linear map with at most this many entries is used as a dense matrix.
_DENSE = 1_000_000
#: Exact Jacobians are formed when their passes touch at most this many scalars, in chunks of about _CHUNK,
#: and decomposed when the cubes of their shorter sides add up to at most _DECOMPOSITION.
_WORK = 30_000_000
_DECOMPOSITION = 200_000_000
_CHUNK = 10_000_000


@dataclass(eq=False)
class SearchNetwork:
    """What the search differentiates. All points and directions are batches (B, *in_shape).

    Attributes:
        network: fused network in the search's dtype and on its device.
        norm: (p, q).
        mask: 1 for the input coordinates along which the domain extends, else 0.
        scales: per node, the typical size of a nonlinear node's input: sharpness is measured against it.
    """

    network: Network
    norm: Norm
    mask: Tensor
    scales: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, problem: Problem, dtype: torch.dtype, device: torch.device | str) -> SearchNetwork:
        """Prepare ``problem.network``."""
        nodes = tuple(
            replace(node, maps=tuple(_densified(m) for m in node.maps)) if isinstance(node, AffineNode) else node
            for node in problem.network.nodes
        )
        mask = movable(problem.domain, problem.network.in_shape).to(dtype=dtype, device=device)
        return cls(Network(nodes).to(dtype, device), problem.norm, mask)

    @cached_property
    def work(self) -> int:
        """Cost of one pass of one example, in scalars touched; 16 products of a dense map count as one."""
        entries = sum(
            linear.in_size * linear.out_size
            for node in self.network.nodes
            if isinstance(node, AffineNode)
            for linear in node.maps
            if isinstance(linear, Dense)
        )
        return sum(size(node.shape) for node in self.network.nodes) + entries // 16

    @property
    def exact_batch(self) -> int:
        """How many points may have their exact Jacobians formed together; 0 where not even one may."""
        side = max(1, min(size(self.network.in_shape), size(self.network.out_shape)))
        return min(_WORK // (side * max(1, self.work)), _DECOMPOSITION // side**3)

    @property
    def kinked(self) -> bool:
        """Whether smoothing changes anything."""
        return any(
            isinstance(node, SelectionNode) or (isinstance(node, ActivationNode) and bool(node.function.kinks))
            for node in self.network.nodes
        )

    @property
    def linear(self) -> bool:
        """Whether the Jacobian is the same everywhere."""
        return all(isinstance(node, AffineNode) for node in self.network.nodes[1:])

    def measure(self, x: Tensor) -> None:
        """Set ``scales`` from the inputs of nonlinear nodes at x: the root mean square."""
        self.scales = [1.0] * len(self.network.nodes)
        kept: dict[int, float] = {}
        with torch.no_grad():
            for position, value in self.network.values(x):
                kept[position] = float(value.double().square().mean().sqrt()) if value.numel() else 1.0
        for position, node in enumerate(self.network.nodes):
            if isinstance(node, (ActivationNode, SelectionNode)):
                scale = kept[node.parents[0]]
                self.scales[position] = scale if 0.0 < scale < float("inf") else 1.0

    def smooth(self, x: Tensor, v: Tensor, beta: float) -> Tensor:
        """(B, m) tangents J_β(x)v of the network with kinks rounded off at sharpness β / scale."""
        _, image = push(self.network, x, v * self.mask, [beta / scale for scale in self.scales])
        return image.reshape(len(x), -1)

    def gains(self, x: Tensor, v: Tensor, iterations: int = 3) -> tuple[Tensor, Tensor]:
        """‖J(x)‖_{p→q} of the network itself, from below, and directions (B, *in_shape) that attain it.

        From exact Jacobians where they are affordable, else by the power method started at v.
        """
        p, q = self.norm
        if len(x) <= self.exact_batch:
            values, v_flat = best_directions(self.jacobian(x), p, q)
            return values, v_flat.reshape(x.shape)
        mask = self.mask.reshape(-1)

        def pull(direction: Tensor) -> tuple[Tensor, Tensor]:
            image, pulled = self.normal(x, direction.reshape(x.shape))
            return lengths(image, q) / lengths(direction * mask, p), pulled.reshape(len(x), -1)

        start = v.reshape(len(x), -1)
        values, best = dual_power_method(pull, lambda g: maximiser(g, p) * mask, start, iterations)
        return values, best.reshape(x.shape)

    def normal(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Jv of shape (B, m), and Jᵀw of x's shape with w the dual vector of Jv in l_q."""
        with torch.enable_grad():
            v = v.detach().requires_grad_(True)
            _, image = push(self.network, x.detach(), v * self.mask)
            image = image.reshape(len(x), -1)
            if not image.requires_grad:
                return image, torch.zeros_like(v)
            (pulled,) = torch.autograd.grad(image, v, dual(image.detach(), self.norm[1]))
        return image.detach(), pulled

    def jacobian(self, x: Tensor) -> Tensor:
        """(B, m, n) Jacobians at x, row by row or column by column; columns outside the mask are 0."""
        m, n = size(self.network.out_shape), size(self.network.in_shape)
        short = min(m, n)
        rows = max(1, _CHUNK // max(1, self.work))
        units = torch.eye(short, dtype=x.dtype, device=x.device)
        pieces = []
        places = torch.arange(len(x) * short, device=x.device)
        for block in places.split(rows):
            points, unit = x[block // short], units[block % short]
            if m <= n:
                pieces.append(self._row(points, unit))
            else:
                with torch.no_grad():
                    _, image = push(self.network, points, unit.reshape(points.shape) * self.mask)
                pieces.append(image.reshape(len(block), -1))
        rows_or_columns = torch.cat(pieces).reshape(len(x), short, -1)
        return rows_or_columns if m <= n else rows_or_columns.mT

    def _row(self, x: Tensor, w: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = self.network.forward(x)
            if not value.requires_grad:
                return torch.zeros(len(x), x[0].numel()).to(x)
            (gradient,) = torch.autograd.grad(value, x, w.reshape(value.shape))
        return (gradient * self.mask).reshape(len(x), -1)


def _densified(linear: LinearMap) -> LinearMap:
    if isinstance(linear, (Dense, Identity)) or linear.in_size * linear.out_size > _DENSE:
        return linear
    return Dense((linear.matrix(),), linear.in_shape, linear.out_shape, math.inf)
