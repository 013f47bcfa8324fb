"""Losses against constant targets: of classes, and Huber's."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch

from lipcert.network.builder import Var
from lipcert.network.moves import gather
from lipcert.ops import nonlinearities as known
from lipcert.ops.arithmetic import div, multiply_by, sub
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context, is_number, number
from lipcert.ops.enclosure import exact, plus
from lipcert.ops.rational import exactly
from lipcert.ops.registry import rule
from lipcert.ops.structure import mean, sum_

#: PyTorch's numbers of the reductions of a loss.
NONE, MEAN, SUM = 0, 1, 2


def reduced(ctx: Context, loss: Var, reduction: int) -> Var:
    """The loss of each entry, their mean or their sum."""
    if reduction not in (NONE, MEAN, SUM):
        raise ctx.unsupported(f"its reduction {reduction!r} is none of 'none', 'mean' and 'sum'.")
    return loss if reduction == NONE else mean(ctx, loss) if reduction == MEAN else sum_(ctx, loss)


# -- Huber --------------------------------------------------------------------------------------------------


def _huber(ctx: Context, x: Any, target: Any, reduction: int, limit: Any, smooth: bool) -> Var:
    """Of x − target: z²/2 for |z| ≤ t and t(|z| − t/2) beyond, over t if ``smooth``."""
    if not is_number(limit) or not math.isfinite(number(limit)) or number(limit) < 0.0 or (not smooth and not limit):
        raise ctx.unsupported("its threshold is not a positive number.")
    difference = ctx.variable(sub(ctx, x, target))
    t = Fraction(number(limit))
    if t == 0:
        return reduced(ctx, ctx.activation(difference, known.ABS), reduction)
    unit = t if smooth else Fraction(1)
    numbers = (1 / (2 * unit), Fraction(0), t / unit, -t * t / (2 * unit))
    function = known.huber(exactly(t), *(exactly(n) for n in numbers))
    return reduced(ctx, ctx.activation(difference, function), reduction)


@rule("smooth_l1_loss", kind="activation")
def smooth_l1_loss(ctx: Context, x: Any, target: Any, reduction: int = MEAN, beta: float = 1.0) -> Var:
    """Smooth l1 loss of each entry: slopes [−1, 1]; their mean or sum."""
    return _huber(ctx, x, target, reduction, beta, True)


@rule("huber_loss", kind="activation")
def huber_loss(ctx: Context, x: Any, target: Any, reduction: int = MEAN, delta: float = 1.0) -> Var:
    """Huber's loss of each entry: slopes [−δ, δ]; their mean or sum."""
    return _huber(ctx, x, target, reduction, delta, False)


# -- classes ------------------------------------------------------------------------------------------------


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
