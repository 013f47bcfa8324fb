"""Matrix products of two values that both depend on the input: open values, which have relations on a domain."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.ops.context import Context
from lipcert.ops.terms import moved

_REASON = (
    "a product of two values that both depend on the input (attention, for one) has no Lipschitz constant on the whole "
    "space. Give a domain: on a ball or a box it has one."
)


def matrix_product(ctx: Context, a: Var, b: Var) -> Var:
    """a b as ``torch.matmul`` has it, batches broadcast."""
    first, second = (v.shape for v in (a, b))
    if not first or not second:
        raise ctx.unsupported("a matrix product of a scalar.")
    row, column = len(first) == 1, len(second) == 1
    a = _moved(ctx, a, (1, *first)) if row else a
    b = _moved(ctx, b, (*second, 1)) if column else b
    batch = tuple(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    a, b = (_expanded(ctx, v, (*batch, *v.shape[-2:])) for v in (a, b))
    shape = (*batch, a.shape[-2], b.shape[-1])
    error = ctx.not_lipschitz(_REASON)
    whole = ctx.unresolved((a, b), shape, error, function=torch.matmul, combines="matmul")
    kept = tuple(n for n, left_out in zip(shape[-2:], (row, column), strict=True) if not left_out)
    return whole if len(kept) == 2 else _moved(ctx, whole, (*batch, *kept))


def contraction(ctx: Context, equation: str, a: Var, b: Var) -> Var:
    """An einsum of two values, as a matrix product between moves.

    Raises:
        UnsupportedOpError: an ellipsis, or a diagonal.
    """
    left, right, out = _labels(ctx, equation)
    sizes: dict[str, int] = {}
    for labels, var in ((left, a), (right, b)):
        for label, n in zip(labels, var.shape, strict=True):
            sizes[label] = n if sizes.get(label, 1) == 1 else sizes[label]
    shared = [k for k in left if k in right]
    batch, summed = [k for k in shared if k in out], [k for k in shared if k not in out]
    rows, columns = [k for k in left if k not in right and k in out], [k for k in right if k not in left and k in out]

    def size(labels: list[str]) -> int:
        return math.prod(sizes[k] for k in labels)

    def arranged(labels: str, order: list[str], shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        alone = [axis for axis, k in enumerate(labels) if k not in order]
        kept = [k for k in labels if k in order]
        wide = [sizes[k] for k in labels]

        def move(x: Tensor) -> Tensor:
            x = x.expand(wide)
            x = x.sum(alone) if alone else x
            return x.permute([kept.index(k) for k in order]).reshape(shape)

        return move

    m, n, k, groups = size(rows), size(columns), size(summed), size(batch)
    key = f"einsum {equation} {sizes}"  # the sizes of the other tell how one is repeated
    first = moved(ctx, a, arranged(left, [*batch, *rows, *summed], (groups, m, k)), key=f"{key} left")
    second = moved(ctx, b, arranged(right, [*batch, *summed, *columns], (groups, k, n)), key=f"{key} right")
    product = matrix_product(ctx, first, second)
    made = [*batch, *rows, *columns]
    made_sizes = [sizes[label] for label in made]
    return moved(ctx, product, lambda x: x.reshape(made_sizes).permute([made.index(label) for label in out]))


def _labels(ctx: Context, equation: str) -> tuple[str, str, str]:
    text = equation.replace(" ", "")
    terms, arrow, out = text.partition("->")
    left, _, right = terms.partition(",")
    if not arrow:
        out = "".join(sorted(k for k in set(left + right) if (left + right).count(k) == 1))
    if "." in text or "," in right or any(len(set(labels)) < len(labels) for labels in (left, right, out)):
        raise ctx.unsupported(f"the contraction {equation!r} of two values that depend on the input; use torch.matmul.")
    return left, right, out


def _moved(ctx: Context, x: Var, shape: tuple[int, ...]) -> Var:
    return moved(ctx, x, lambda t: t.reshape(shape))


def _expanded(ctx: Context, x: Var, shape: tuple[int, ...]) -> Var:
    return x if x.shape == shape else moved(ctx, x, lambda t: t.expand(shape), key=f"expand {shape}")
