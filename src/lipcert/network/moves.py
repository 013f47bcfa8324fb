"""Linear maps that move entries."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.network.hashing import index_key
from lipcert.network.linear import Identity, LinearMap, OpMap, Shape, compose, size


def gather(index: Tensor, in_shape: Shape, out_shape: Shape, sign: float = 1.0) -> LinearMap:
    """The map x ↦ sign · x.flatten()[index].reshape(out_shape)."""
    index = index.reshape(-1)

    def function(x: Tensor) -> Tensor:
        return x.reshape(-1)[index.to(x.device)].reshape(out_shape)

    repeats = int(torch.bincount(index, minlength=1).max()) if index.numel() else 0
    count = float(repeats - 1 if repeats else 0)
    chosen: LinearMap = OpMap("gather", function, in_shape, out_shape, (), index_key(index + 1), count)
    return chosen if sign == 1.0 else compose(chosen, Identity(out_shape, sign))


def scatter(index: Tensor, in_shape: Shape, out_shape: Shape) -> LinearMap:
    """The map that puts entry i of its input at flat place index[i] (all distinct) of a zero tensor."""
    source = torch.full((size(out_shape),), -1, dtype=torch.int64)
    source[index.reshape(-1)] = torch.arange(index.numel())

    def function(x: Tensor) -> Tensor:
        padded = torch.cat([x.reshape(-1), x.new_zeros(1)])
        return padded[source.to(x.device)].reshape(out_shape)

    return OpMap("scatter", function, in_shape, out_shape, (), index_key(source + 1), 0.0)
