"""Losses against constant classes, and reductions of losses."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipcert.network.builder import Var
from lipcert.network.moves import gather
from lipcert.ops.arithmetic import div, multiply_by
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.enclosure import exact, plus
from lipcert.ops.registry import rule
from lipcert.ops.structure import mean, sum_

#: PyTorch's numbers of the reductions of a loss.
NONE, MEAN, SUM = 0, 1, 2


def reduced(ctx: Context, loss: Var, reduction: int) -> Var:
    """The loss of each entry, their mean or their sum."""
    if reduction not in (NONE, MEAN, SUM):
        raise ctx.unsupported(f"its reduction {reduction!r} is none of 'none', 'mean' and 'sum'.")
    return loss if reduction == NONE else mean(ctx, loss) if reduction == MEAN else sum_(ctx, loss)


@rule("nll_loss", "nll_loss2d", kind="linear")
def nll_loss(
    ctx: Context, x: Any, target: Any, weight: Any = None, reduction: int = MEAN, ignore_index: int = -100
) -> Var:
    """Negative log-likelihood −w_y x_y of constant classes y, 0 for ignored ones; their sum, or mean by weight.

    After log-softmax, as in ``cross_entropy``, each is a log-sum-exp of differences: √2 in l2, 2 in l∞ (``hull``).
    """
    x = ctx.variable(x)
    classes = ctx.constant(target, "target").value
    axis = 0 if len(x.shape) == 1 else 1
    count = x.shape[axis] if x.shape else 0
    if classes.is_floating_point() or tuple(classes.shape) != (*x.shape[:axis], *x.shape[axis + 1 :]):
        raise ctx.unsupported(f"classes of shape {tuple(classes.shape)} for values of shape {x.shape}.")
    kept = classes != ignore_index
    if bool((kept & ((classes < 0) | (classes >= count))).any()):
        raise ctx.unsupported(f"a class lies outside 0 … {count - 1}.")
    chosen = torch.where(kept, classes, 0).long()
    places = torch.arange(math.prod(x.shape)).reshape(x.shape).gather(axis, chosen.unsqueeze(axis)).squeeze(axis)
    own = ctx.constant(torch.ones(count, dtype=torch.float64) if weight is None else weight, "weight")
    weights = own.map(lambda w: w.reshape(-1)[chosen])
    if not bool(kept.all()):
        weights = Constant.within(weights.floating.map(lambda w: w * kept))
    shape = tuple(classes.shape)
    loss = ctx.affine([(x, gather(places, x.shape, shape, -1.0))], shape)
    ball = weights.floating
    if reduction == MEAN and kept.numel() == 1 and bool((ball.middle > ball.spread).all()):
        return sum_(ctx, loss)  # the weight cancels
    if weight is not None or not bool(kept.all()):
        loss = multiply_by(ctx, loss, weights)
    if reduction != MEAN:
        return reduced(ctx, loss, reduction)
    if not bool(kept.any()):
        raise ctx.unsupported("every class is ignored: their mean is 0/0.")
    total = exact(torch.zeros((), dtype=torch.float64))
    for k in range(ball.middle.numel()):
        total = plus(total, ball.map(lambda w, k=k: w.reshape(-1)[k]))  # type: ignore[misc]
    return div(ctx, sum_(ctx, loss), Constant.within(total))
