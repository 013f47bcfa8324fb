"""How many terms a linear op adds up: found by running it (and its transpose) on ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.linear import Shape
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
    return ctx.affine([(x, linear)], linear.out_shape, offset)
