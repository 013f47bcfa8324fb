"""Linear maps whose transpose autograd may go through, too."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from lipcert.network.linear import Dense, Identity, LinearMap


class BothWays:
    """A linear map and its transpose as differentiable functions of batches.

    The gradient of Az is Aᵀ, that of Aᵀy is A: neither way is ever derived from the other's graph. A map given as code
    gets its transpose from one graph per size of batch, which is kept: a linear map's does not depend on where it is.
    """

    def __init__(self, linear: LinearMap) -> None:
        self.linear = linear
        self._graph: tuple[Tensor, Tensor] | None = None

    def apply(self, z: Tensor) -> Tensor:
        """(B, *in_shape) → (B, *out_shape)."""
        return cast(Tensor, _Forward.apply(z, self))

    def transpose(self, y: Tensor) -> Tensor:
        """(B, *out_shape) → (B, *in_shape)."""
        return cast(Tensor, _Backward.apply(y, self))

    def plain(self, z: Tensor) -> Tensor:
        """A z without a graph."""
        with torch.no_grad():
            return self.linear.apply(z)

    def plain_transpose(self, y: Tensor) -> Tensor:
        """Aᵀ y without a graph."""
        if isinstance(self.linear, (Dense, Identity)):
            with torch.no_grad():
                return self.linear.transpose(y)
        if self._graph is None or len(self._graph[0]) != len(y):
            with torch.enable_grad():
                x = torch.zeros(len(y), *self.linear.in_shape, dtype=y.dtype, device=y.device, requires_grad=True)
                self._graph = x, self.linear.apply(x)
        x, image = self._graph
        return torch.autograd.grad(image, x, y, retain_graph=True, materialize_grads=True)[0]


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, both: BothWays) -> Tensor:
        ctx.both = both
        return both.plain(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.both.plain_transpose(gradient), None


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, both: BothWays) -> Tensor:
        ctx.both = both
        return both.plain_transpose(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.both.plain(gradient), None
