"""How many terms a linear op adds up: found by running it (and its transpose) on ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.linear import OpMap, Shape, size
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.keys import move_key


def longest_sum(function: Callable[..., Tensor], in_shape: Shape, shapes: Sequence[Shape] = ()) -> float:
    """Most terms in one sum of ``function(x, *constants)`` or of its transpose, by the constants' shapes.

    With every constant equal to 1 such a map has whole non-negative entries; its greatest row sum and its
    greatest column sum count the terms (exactly, below 2^53), whatever the op does with strides, padding or
    broadcasting.
    """
    ones = [torch.ones(shape, dtype=torch.float64) for shape in shapes]
    with torch.enable_grad():
        x = torch.ones(in_shape, dtype=torch.float64, requires_grad=True)
        image = function(x, *ones)
        if image.numel() == 0 or x.numel() == 0:
            return 0.0
        (column_sums,) = torch.autograd.grad(image.sum(), x)
    return float(max(image.detach().max().item(), column_sums.max().item()))


def moved(
    ctx: Context,
    x: Var,
    function: Callable[..., Tensor],
    offset: Constant | None = None,
    key: str | None = None,
) -> Var:
    """A map whose entries are 0 and 1 (or small whole numbers): moves, repeats, drops and adds up entries.

    ``key`` goes into the network's hash of a map that adds (see ``Context.map``); one that only moves entries needs
    none.
    """
    key = move_key(function, x.shape) or key
    linear = ctx.map(x.shape, function, (), longest_sum(function, x.shape), key or ctx.call)
    if key is not None and key.startswith("entries") and isinstance(linear, OpMap):
        linear = replace(linear, transposed=_transposed(function, x.shape))
    return ctx.affine([(x, linear)], linear.out_shape, offset)


def _transposed(function: Callable[..., Tensor], shape: Shape) -> Callable[..., Tensor]:
    """The transpose of a map that only moves, repeats and drops entries, which takes no pass forward."""
    n = size(shape)
    with torch.no_grad():
        places = function(torch.arange(1, n + 1, dtype=torch.float64).reshape(shape)).reshape(-1).to(torch.int64)
    if torch.equal(places, torch.arange(1, n + 1)):
        return lambda y: y.reshape(len(y), *shape)
    if torch.equal(places.sort().values, torch.arange(1, n + 1)):
        inverse = torch.argsort(places)
        return lambda y: y.reshape(len(y), n)[:, inverse.to(y.device)].reshape(len(y), *shape)
    taken = (places > 0).nonzero().reshape(-1)
    whence = places[taken] - 1

    def transposed(y: Tensor) -> Tensor:
        result = y.new_zeros(len(y), n)
        chosen = y.reshape(len(y), -1)[:, taken.to(y.device)]
        return result.index_add_(1, whence.to(y.device), chosen).reshape(len(y), *shape)

    return transposed
