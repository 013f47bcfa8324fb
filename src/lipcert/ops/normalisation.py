"""Batch-norm in eval mode (an affine map) and, by their global gain, the norm layers."""

from __future__ import annotations

from typing import Any

import torch

from lipcert.errors import TrainModeError
from lipcert.network.builder import Var
from lipcert.ops.context import Constant, Context
from lipcert.ops.registry import rule


def _batch_norm(ctx: Context, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Var:
    x = ctx.variable(x)
    if mean is None or var is None:
        raise TrainModeError(f"batch norm at {ctx.where} has no running statistics and would couple the batch.")
    mean, var = ctx.constant(mean), ctx.constant(var)
    channel = (-1, *([1] * (len(x.shape) - 2)))
    gamma = torch.ones_like(var.value) if weight is None else ctx.constant(weight).value
    scale = gamma / torch.sqrt(var.value + eps)
    shift = -mean.value * scale + (0.0 if bias is None else ctx.constant(bias).value)
    ctx.require_finite(scale)
    ctx.require_finite(shift)
    # var + eps, sqrt and division: at most 2.5 roundings, one more for the product with x.
    constant = Constant(scale.reshape(channel), 3.0 + (0.0 if weight is None else ctx.constant(weight).rounding))
    return ctx.linear(x, lambda v, s: v * s, (constant,), 1.0, shift.reshape(channel))


@rule("batch_norm", kind="linear")
def batch_norm(
    ctx: Context,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> Var:
    """Batch norm in eval mode: max |γ|/√(var + ε) in every norm."""
    if training:
        raise TrainModeError(f"batch norm at {ctx.where} is in training mode; call model.eval() first.")
    return _batch_norm(ctx, x, weight, bias, mean, var, eps)


@rule("_native_batch_norm_legit_no_training", kind="linear")
def batch_norm_eval(
    ctx: Context, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> tuple[Var, None, None]:
    """Batch norm in eval mode: max |γ|/√(var + ε) in every norm."""
    return _batch_norm(ctx, x, weight, bias, mean, var, eps), None, None
