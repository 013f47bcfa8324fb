"""Values of open nodes: the traced op itself, run on the values of its variable arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lipcert.errors import NotLipschitzError
from lipcert.network.builder import Var
from lipcert.network.nodes import OpenNode
from lipcert.network.nodes.open import Evaluation
from lipcert.network.source import Op
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context


def give_values(ctx: Context, start: int, target: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Give the open nodes that a rule returns their values.

    A node without parents gets none: its error is to come before those of the values that it is made of.

    Args:
        ctx: of the call.
        start: number of nodes before the call.
        target, args, kwargs: the op and its arguments: Vars, Constants and plain values.
        result: what the rule returned, a Var or a tuple of them.
    """
    for place, var in enumerate(tree_leaves(result)):
        node = ctx.builder.node(var) if isinstance(var, Var) and var.position >= start else None
        if isinstance(node, OpenNode) and node.function is None and node.parents:
            _give_value(ctx, var, target, args, kwargs, place if isinstance(result, (tuple, list)) else None)


def refused(ctx: Context, error: NotLipschitzError, parents: Sequence[Var], shapes: Any) -> Any:
    """Open nodes for all outputs of the call that a rule refuses.

    Patterns do not see them: the rule knows no expression with a constant that they are part of.

    Args:
        ctx: of the call.
        error: the refusal.
        parents: the variable arguments.
        shapes: of the outputs: a shape, or a tuple of them.
    """
    error = error.with_traceback(None)

    def open_node(shape: torch.Size) -> Var:
        return ctx.builder.unresolved(parents, tuple(shape), "", error, (), ctx.where, ctx.op)

    return open_node(shapes) if isinstance(shapes, torch.Size) else tuple(open_node(shape) for shape in shapes)


def _give_value(ctx: Context, var: Var, target: Any, args: Any, kwargs: Any, place: int | None) -> None:
    leaves = tree_leaves((args, kwargs))
    variables = [leaf for leaf in leaves if isinstance(leaf, Var)]
    own = ctx.builder.node(var).parents  # in the order that patterns know
    if set(own) == {v.position for v in variables}:
        parents = [Var(p, ctx.builder.nodes[p].shape) for p in own]
    else:
        parents = list({v.position: v for v in variables}.values())
    constants = [leaf.value for leaf in leaves if isinstance(leaf, Constant)]
    order = [p.position for p in parents]
    function = _call(target, args, kwargs, order, dict(ctx.whole), place)
    ctx.builder.evaluated(var, parents, function, constants, f"{ctx.signature} {place}")


def _call(
    target: Any, args: Any, kwargs: Any, order: Sequence[int], whole: Mapping[int, torch.dtype], place: int | None
) -> Evaluation:
    """``target`` as a function of its variable arguments, given in ``order``, and of its constant ones.

    Values are floats in a network; those in ``whole``, by position, are whole numbers or truth values to the op.
    """
    op = Op(target)

    def function(values: Sequence[Tensor], constants: Sequence[Tensor]) -> Tensor:
        given = {p: v.to(whole[p]) if p in whole else v for p, v in zip(order, values, strict=True)}
        remaining = iter(constants)
        floating, device = values[0].dtype, values[0].device

        def argument(leaf: Any) -> Any:
            if isinstance(leaf, Var):
                return given[leaf.position]
            if isinstance(leaf, Constant):
                return next(remaining)
            if isinstance(leaf, torch.dtype) and leaf.is_floating_point:
                return floating
            return device if isinstance(leaf, torch.device) else leaf

        plain, named = tree_map(argument, (args, kwargs))
        result = op(*plain, **named)
        return (result if place is None else result[place]).to(floating)

    return function
