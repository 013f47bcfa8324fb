"""Scaled dot-product attention, as the products, the softmax and the masks that it is made of."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipcert.errors import TrainModeError
from lipcert.network.builder import Var
from lipcert.network.source import Fixed
from lipcert.ops.arithmetic import add, multiply_by
from lipcert.ops.branches import where
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.enclosure import exact, over, root
from lipcert.ops.folding import fold
from lipcert.ops.linear import matmul
from lipcert.ops.registry import rule
from lipcert.ops.softmax import probabilities
from lipcert.ops.terms import moved

_ATEN = torch.ops.aten


@rule("scaled_dot_product_attention", kind="product")
def attention(
    ctx: Context,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(Q Kᵀ/√d + mask) V: on a domain; with constant keys and values a softmax between linear maps.

    An entry that a mask of −∞, a false one or a causal one leaves out is none of its row's; a row without any gives 0.
    """
    if dropout_p > 0.0:
        raise TrainModeError(f"the attention at {ctx.where} drops entries at random; call model.eval() first.")
    if enable_gqa:
        heads = query.shape[-3]
        key, value = (_repeated(ctx, x, heads) for x in (key, value))
    scores = _product(ctx, query, _moved(ctx, key, lambda t: t.transpose(-1, -2)))
    scores = _scaled(ctx, scores, scale, query.shape[-1])
    shape = (query.shape[-2], key.shape[-2])
    if is_causal:
        earlier = torch.ones(shape, dtype=torch.bool).tril()
        scores = _chosen(ctx, Constant.exactly(earlier, source=Fixed(earlier)), scores)
    if attn_mask is not None:
        scores = _masked(ctx, scores, attn_mask)
    if isinstance(scores, Constant):
        weights = fold(_ATEN._safe_softmax.default, "_safe_softmax", (scores, -1), {})
    else:
        weights = probabilities(ctx, scores, -1)
    return _product(ctx, weights, value)


@rule("_scaled_dot_product_flash_attention_for_cpu", kind="product")
def flash_attention(
    ctx: Context,
    query: Any,
    key: Any,
    value: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    attn_mask: Any = None,
    scale: float | None = None,
) -> tuple[Any, Var]:
    """The same as one kernel of PyTorch's; the logarithms of the sums that it also returns are refused."""
    result = attention(ctx, query, key, value, attn_mask, dropout_p, is_causal, scale)
    parents = [x for x in (query, key, value) if isinstance(x, Var)]
    error = ctx.unsupported("the logarithms of sums that it also returns have no rule.")
    return result, ctx.unresolved(parents, tuple(query.shape[:-1]), error)


def _moved(ctx: Context, x: Any, move: Any) -> Any:
    return moved(ctx, x, move) if isinstance(x, Var) else ctx.constant(x).map(move)


def _repeated(ctx: Context, x: Any, heads: int) -> Any:
    """Keys or values of fewer heads, each for several heads of the queries."""
    own = x.shape[-3]
    if own == heads:
        return x
    if own == 0 or heads % own:
        raise ctx.unsupported(f"{heads} heads of queries do not divide among {own} heads of keys.")
    return _moved(ctx, x, lambda t: t.repeat_interleave(heads // own, -3))


def _product(ctx: Context, a: Any, b: Any) -> Any:
    if isinstance(a, Var) or isinstance(b, Var):
        return matmul(ctx, a, b)
    return fold(_ATEN.matmul.default, "matmul", (a, b), {})


def _scaled(ctx: Context, scores: Any, scale: float | None, entries: int) -> Any:
    """Times the scale; 1/√d is meant exactly."""
    if scale is None:
        if not entries:
            raise ctx.unsupported("queries without entries have no 1/√d.")
        side = math.isqrt(entries)
        square = exact(float(side)) if side * side == entries else root(exact(float(entries)))
        factor = Constant.within(over(exact(1.0), square))
    else:
        factor = Constant.exactly(torch.tensor(float(scale), dtype=torch.float64))
    if isinstance(scores, Var):
        return multiply_by(ctx, scores, factor)
    return fold(_ATEN.mul.Tensor, "mul", (scores, factor), {})


def _masked(ctx: Context, scores: Any, mask: Any) -> Any:
    if isinstance(mask, Var):
        if mask.position in ctx.whole:
            raise ctx.not_lipschitz("which entries its mask leaves out depends on the input: the attention jumps.")
        return add(ctx, scores, mask) if isinstance(scores, Var) else add(ctx, mask, scores)
    mask = ctx.constant(mask, "mask")
    if mask.value.dtype == torch.bool:
        return _chosen(ctx, mask, scores)
    return add(ctx, scores, mask) if isinstance(scores, Var) else fold(_ATEN.add.Tensor, "add", (scores, mask), {})


def _chosen(ctx: Context, mask: Constant, scores: Any) -> Any:
    """The scores where the mask is true, −∞ elsewhere."""
    if isinstance(scores, Var):
        return where(ctx, mask, scores, -math.inf)
    nothing = torch.tensor(-math.inf, dtype=torch.float64)
    return fold(_ATEN.where.self, "where", (mask, scores, Constant.exactly(nothing)), {})
