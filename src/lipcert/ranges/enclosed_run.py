"""A run of a network on enclosures: value and derivative of every node, with all roundings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import NumericsError
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
from lipcert.network.nonlinearity import MaxSelection, SortSelection
from lipcert.numerics.midrad import Range, choose
from lipcert.ranges import enclosure_rules as _rules  # noqa: F401  registers what enclosures can do
from lipcert.ranges.enclosure import Enclosure, add

#: Entries of the (groups, K, K) comparison of a sort that are formed at a time.
_COMPARED = 1 << 24


def run(network: Network, start: Enclosure) -> Enclosure:
    """f and what its derivative may be, from a batch (1, *in_shape) of values and tangents.

    For all x that ``start.value`` holds and all directions v that ``start.tangent`` holds, ``value`` of the result
    holds f(x), and ``tangent`` every limit of f'(x'; v) for x' → x.
    """
    known: dict[int, Enclosure] = {}
    last_use = [max(c, default=len(network.nodes)) for c in network.consumers]
    result = start
    for position, node in enumerate(network.nodes):
        inputs = [known[p] for p in node.parents]
        if not isinstance(node, InputNode):
            result = _through(node, inputs)
        known[position] = result
        for parent in node.parents:
            if last_use[parent] == position:
                known.pop(parent, None)
    return result


def derivative(network: Network, x: Tensor, v: Tensor, digits: int = 0) -> Range:
    """An enclosure of the limits of f'(x'; v) for x' → x; x and v are batches (1, *in_shape).

    ``digits`` more doubles are carried through sums, choices and linear maps of stored constants.
    """
    return enclosed(network, x, v, digits).tangent


def enclosed(network: Network, x: Tensor, v: Tensor, digits: int = 0) -> Enclosure:
    """f(x) with the same derivative; x and v are batches (1, *in_shape)."""
    return run(network, Enclosure(Range.exact(x), Range.exact(v)).to_digits(digits))


def _through(node: Node, inputs: list[Enclosure]) -> Enclosure:
    if isinstance(node, AffineNode):
        return _affine(node, inputs)
    if isinstance(node, (ActivationNode, GainNode)):
        result = node.function.value(inputs[0][0])  # type: ignore[arg-type]
        if not isinstance(result, Enclosure):  # a constant
            return _still(torch.as_tensor(result, dtype=torch.float64).expand(node.shape)[None])
        return result.map(lambda t: t.expand(node.shape)[None])
    if isinstance(node, OpenNode):
        return _open(node, inputs)
    if isinstance(node, PartNode):
        if node.which:
            return _still(torch.zeros(1, *node.shape, dtype=torch.float64))
        result = node.function.value([x.map(lambda t: t[0]) for x in inputs])
        return result.map(lambda t: t.expand(node.shape)[None])
    assert isinstance(node, SelectionNode)
    selection = node.function
    return _largest(selection, inputs[0]) if isinstance(selection, MaxSelection) else _sorted(selection, inputs[0])


def _open(node: OpenNode, inputs: list[Enclosure]) -> Enclosure:
    """An op by what it computes entry by entry, or by its own code.

    Raises:
        NumericsError: that code does something to which no rule belongs.
    """
    examples = [x.map(lambda t: t[0]) for x in inputs]
    if node.steep is not None:
        result: Any = node.steep.value(examples[0])  # type: ignore[arg-type]
    elif node.function is not None:
        try:
            result = node.function(examples, node.constants)  # type: ignore[arg-type]
        except (AttributeError, TypeError, RuntimeError) as problem:
            raise NumericsError(
                f"the derivative of {node.name} at the witness cannot be enclosed: {problem}"
            ) from problem
    else:
        raise node.error
    if not isinstance(result, Enclosure):
        return _still(torch.as_tensor(result, dtype=torch.float64).expand(node.shape)[None])
    return result.map(lambda t: t.expand(node.shape)[None])


def _still(value: Tensor) -> Enclosure:
    return Enclosure(Range.literal(value), Range.exact(torch.zeros_like(value)))


def _affine(node: AffineNode, inputs: list[Enclosure]) -> Enclosure:
    total = _still(torch.zeros(1, *node.shape, dtype=torch.float64))
    for linear, x in zip(node.maps, inputs, strict=True):
        total = add(total, x.through(linear))
    offset = node.known_offset
    if offset is not None:
        total = Enclosure(total.value + offset.map(lambda t: t[None]), total.tangent)
    return total


def _largest(selection: MaxSelection, x: Enclosure) -> Enclosure:
    """max over windows: of the tangents, those of every entry that can be the largest."""
    windows = x.map(lambda t: t.reshape(-1)[selection.index])
    low, high = windows.value.low, windows.value.high
    bottom, top = low.amax(-1, keepdim=True), high.amax(-1, keepdim=True)
    can = ~(high < bottom)
    winner = can.double().argmax(-1, keepdim=True)
    alone = windows.map(lambda t: t.gather(-1, winner)[..., 0])
    sure = can.sum(-1) == 1
    value = choose(sure, alone.value, Range.between(bottom[..., 0], top[..., 0]))
    tangent = choose(sure, alone.tangent, _spanned(windows.tangent, can))
    return Enclosure(value, tangent).map(lambda t: t.reshape(1, *selection.out_shape))


def _sorted(selection: SortSelection, x: Enclosure) -> Enclosure:
    """The k-th value lies between the k-th lower and the k-th upper end; entries that reach there are candidates."""
    flat = x.map(lambda t: t.reshape(-1))
    groups = flat.map(lambda t: t[selection.index])
    low, high = (e.sort(-1, descending=selection.descending).values for e in (groups.value.low, groups.value.high))
    rows = max(1, _COMPARED // max(1, selection.index.shape[1] ** 2))
    mids, rads = [], []
    for start in range(0, len(low), rows):
        part = groups.map(lambda t, s=start: t[s : s + rows])  # type: ignore[misc]
        first, last = low[start : start + rows], high[start : start + rows]
        can = ~(part.value.high[:, None, :] < first[:, :, None]) & ~(part.value.low[:, None, :] > last[:, :, None])
        spanned = _spanned(part.tangent.map(lambda t: t[:, None, :].expand(can.shape)), can)  # noqa: B023
        mids.append(spanned.mid)
        rads.append(spanned.rad)
    chosen = Enclosure(Range.between(low, high), Range(torch.cat(mids), torch.cat(rads)) if mids else groups.tangent)

    def put(original: Tensor, ordered: Tensor) -> Tensor:
        result = original.clone()
        result[selection.index.reshape(-1)] = ordered.reshape(-1)
        return result.reshape(1, *selection.in_shape)

    flat = flat.to_digits(0)
    value = Range(put(flat.value.mid, chosen.value.mid), put(flat.value.rad, chosen.value.rad))
    tangent = Range(put(flat.tangent.mid, chosen.tangent.mid), put(flat.tangent.rad, chosen.tangent.rad))
    return Enclosure(value, tangent)


def _spanned(tangents: Range, candidates: Tensor) -> Range:
    """Over the last axis: from the least lower to the greatest upper end of the candidates."""
    low = torch.where(candidates, tangents.low, math.inf).amin(-1)
    high = torch.where(candidates, tangents.high, -math.inf).amax(-1)
    return Range.between(low, high)
