"""Linear maps whose transpose autograd may go through, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lipcert.network.linear import LinearMap


@dataclass(frozen=True, eq=False)
class BothWays:
    """A linear map and its transpose as differentiable functions of batches: of each the gradient is the other."""

    linear: LinearMap

    def apply(self, z: Tensor) -> Tensor:
        """(B, *in_shape) → (B, *out_shape)."""
        return cast(Tensor, _Image.apply(z, self, False))

    def transpose(self, y: Tensor) -> Tensor:
        """(B, *out_shape) → (B, *in_shape)."""
        return cast(Tensor, _Image.apply(y, self, True))

    def plain(self, x: Tensor, back: bool = False) -> Tensor:
        """A x, or Aᵀ x, without a graph."""
        with torch.no_grad():
            return self.linear.transpose(x).detach() if back else self.linear.apply(x)


class _Image(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, both: BothWays, back: bool) -> Tensor:
        ctx.both, ctx.back = both, back
        return both.plain(x, back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.both.plain(gradient, not ctx.back), None, None
