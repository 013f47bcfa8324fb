"""A value and a tangent carried through a network together, exactly or with every kink rounded off."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.network.graph import (
    ActivationNode,
    AffineNode,
    GainNode,
    InputNode,
    Network,
    Node,
    OpenNode,
    PartNode,
    SelectionNode,
)
from lipcert.network.nonlinearity import MaxSelection, Selection, SortSelection

Pair = tuple[Tensor, Tensor]
Hook = Callable[[int, Node, list[Pair], Pair], Pair]


def push(
    network: Network,
    x: Tensor,
    v: Tensor,
    sharpness: list[float] | None = None,
    hook: Hook | None = None,
) -> Pair:
    """(f(x), Df(x)v) on batches x, v of shape (B, *in_shape).

    Chain rule node by node: an affine node maps the tangent by its linear part, an activation multiplies it
    by φ'(z), a selection passes on the tangent of the entry it selects, a gain block applies its own
    derivative.

    Args:
        network: what is differentiated, in the dtype and on the device of x.
        x: points.
        v: directions.
        sharpness: per node, how sharp the rounded-off kinks are (softplus); None differentiates f itself.
        hook: called as hook(position, node, the parents' pairs, the node's pair) after every node but the
            input;
            what it returns takes the place of the node's pair.

    Returns:
        Output and tangent, of shape (B, *out_shape). The graph is kept if gradients are enabled.
    """
    pairs: dict[int, Pair] = {}
    last_use = [max(c, default=len(network.nodes)) for c in network.consumers]
    result: Pair = (x, v)
    for position, node in enumerate(network.nodes):
        inputs = [pairs[p] for p in node.parents]
        if isinstance(node, InputNode):
            result = (x, v)
        elif isinstance(node, AffineNode):
            result = _affine(node, inputs, x)
        elif isinstance(node, (OpenNode, PartNode)):
            result = _open(node, inputs)
        else:
            result = _nonlinear(node, inputs[0], None if sharpness is None else sharpness[position])
        if hook is not None and not isinstance(node, InputNode):
            result = hook(position, node, inputs, result)
        pairs[position] = result
        for parent in node.parents:
            if last_use[parent] == position:
                pairs.pop(parent, None)
    return result


def _affine(node: AffineNode, inputs: list[Pair], like: Tensor) -> Pair:
    total: Tensor | None = None
    for linear, (value, tangent) in zip(node.maps, inputs, strict=True):
        image = linear.apply(torch.cat([value, tangent]))
        total = image if total is None else total + image
    if total is None:
        total = torch.zeros(2 * len(like), *node.shape, dtype=like.dtype, device=like.device)
    value, tangent = total.chunk(2)
    return (value if node.offset is None else value + node.offset), tangent


def _open(node: OpenNode | PartNode, inputs: list[Pair]) -> Pair:
    """An op without a constant of its own (exp, a product): by its own code."""
    if isinstance(node, PartNode) and node.which:
        zero = inputs[0][0].new_zeros(len(inputs[0][0]), *node.shape)
        return zero, zero
    values, tangents = (tuple(pair[i] for pair in inputs) for i in (0, 1))
    both = torch.func.jvp(lambda *z: node.value(z, z[0]), values, tangents)
    return both[0], both[1]


def _nonlinear(node: Node, before: Pair, sharpness: float | None) -> Pair:
    z, t = before
    if isinstance(node, ActivationNode):
        function = node.function

        def apply(a: Tensor) -> Tensor:
            return function(a) if sharpness is None else function.smoothed(a, sharpness)

        value, slope = slopes(apply, z)
        return value, slope * t
    if isinstance(node, SelectionNode):
        return select(node.function, z, t, sharpness)
    if isinstance(node, GainNode):
        both = torch.func.jvp(node.function, (z,), (t,))
        return both[0], both[1]
    raise TypeError(f"node of unknown kind {type(node).__name__}")


def slopes(apply: Callable[[Tensor], Tensor], z: Tensor) -> Pair:
    """(φ(z), φ'(z)) of an elementwise function by a backward pass; differentiable if gradients are on."""
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        inner = z if outer and z.requires_grad else z.detach().requires_grad_(True)
        value = apply(inner)
        if not value.requires_grad:  # a constant function
            return value, torch.zeros_like(z)
        (slope,) = torch.autograd.grad(value.sum(), inner, create_graph=outer and z.requires_grad)
    return (value, slope) if outer else (value.detach(), slope.detach())


def select(selection: Selection, z: Tensor, t: Tensor, sharpness: float | None = None) -> Pair:
    """A maximum or sort of z, and the same entries of t.

    Smoothed, max(a) becomes logsumexp(s·a)/s, whose derivative is the softmax average of the tangents, and a
    sorted pair its smooth maximum and the rest of the sum; wider sorts are left as they are.
    """
    batch = len(z)
    index = selection.index.to(z.device)
    values, tangents = z.reshape(batch, -1)[:, index], t.reshape(batch, -1)[:, index]
    if isinstance(selection, MaxSelection):
        if sharpness is None:
            place = values.argmax(-1, keepdim=True)
            top, image = values.gather(-1, place)[..., 0], tangents.gather(-1, place)[..., 0]
        else:
            top, image = _soft_max(values, tangents, sharpness)
        return top.reshape(batch, *selection.out_shape), image.reshape(batch, *selection.out_shape)
    assert isinstance(selection, SortSelection)
    if sharpness is not None and index.shape[1] == 2:
        top, image = _soft_max(values, tangents, sharpness)
        high, low = torch.stack([top, image]), torch.stack([values.sum(-1) - top, tangents.sum(-1) - image])
        ordered = torch.stack([high, low] if selection.descending else [low, high], dim=-1)
        values, tangents = ordered[0], ordered[1]
    else:
        order = values.argsort(dim=-1, descending=selection.descending)
        values, tangents = values.gather(-1, order), tangents.gather(-1, order)
    places = index.reshape(-1).argsort()
    return (
        values.reshape(batch, -1)[:, places].reshape(z.shape),
        tangents.reshape(batch, -1)[:, places].reshape(t.shape),
    )


def _soft_max(values: Tensor, tangents: Tensor, sharpness: float) -> Pair:
    weights = torch.softmax(sharpness * values, -1)
    return torch.logsumexp(sharpness * values, -1) / sharpness, (weights * tangents).sum(-1)
