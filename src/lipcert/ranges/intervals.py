"""Interval bounds: a box for every node from those of its parents, rounded outward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.network.expanded import SmoothBlock
from lipcert.network.graph import (
    ActivationNode,
    AffineNode,
    GainNode,
    HeadNode,
    Node,
    OpenNode,
    PartNode,
    SelectionNode,
)
from lipcert.network.images import image
from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Shape, Sum
from lipcert.network.nonlinearity import GainFunction, MaxSelection
from lipcert.network.touched import touched
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import Range, lengths
from lipcert.numerics.rounding import mul_up
from lipcert.ranges.enclosure import Enclosure
from lipcert.ranges.functions import image_of


def through(node: Node, inputs: Sequence[Interval]) -> Interval:
    """The box of a node's values from those of its parents."""
    if isinstance(node, AffineNode):
        return _affine(node, inputs)
    if isinstance(node, ActivationNode):
        low, high = image_of(node.function, *_ends(inputs[0], node.shape))
        return Interval(low.expand(node.shape), high.expand(node.shape))
    if isinstance(node, SelectionNode):
        return _selected(node, inputs[0])
    if isinstance(node, GainNode):
        return _block(node.function, inputs[0], node.shape)
    if isinstance(node, PartNode):
        if node.which:
            return Interval.point(torch.zeros(node.shape, dtype=torch.float64))
        if isinstance(node.function, SmoothBlock):
            return _block(node.function.block, inputs[0], node.shape)
        return node.function.image(inputs)
    if isinstance(node, HeadNode):
        return inputs[0]
    assert isinstance(node, OpenNode)
    if node.block is not None:
        return _block(node.block, inputs[0], node.shape)
    return _open(node, inputs)


def _ends(box: Interval, shape: Shape) -> tuple[Tensor, Tensor]:
    return box.low.expand(shape), box.high.expand(shape)


# -- linear maps --------------------------------------------------------------------------------------------


def _affine(node: AffineNode, inputs: Sequence[Interval]) -> Interval:
    low = torch.zeros(node.shape, dtype=torch.float64)
    total = Interval.point(low)
    for linear, box in zip(node.maps, inputs, strict=True):
        total = _sum(total, mapped(linear, box))
    offset = node.known_offset
    if offset is not None:
        total = _sum(total, Interval(_sane(offset.low, -math.inf), _sane(offset.high, math.inf)))
    return total


def mapped(linear: LinearMap, box: Interval) -> Interval:
    """The box of W z for z in a box.

    Finite ends: ``image`` of midpoint and radius. Where an entry that reaches to infinity enters, the result
    does, too: upwards where it is multiplied by a positive number, or a negative one and reaches downwards, and so on.
    """
    if isinstance(linear, Composition):
        for part in linear.maps:
            box = mapped(part, box)
        return box
    if isinstance(linear, Sum):
        total = mapped(linear.maps[0], box)
        for part in linear.maps[1:]:
            total = _sum(total, mapped(part, box))
        return total
    near = [torch.where(end.isfinite(), end, 0.0) for end in _hull_with_zero(box)]
    ends = _moved(linear, *near)
    if ends is None:
        try:
            value = image(linear, Range.between(*near).map(lambda t: t[None]))
        except NumericsError:
            return Interval.whole(linear.out_shape)
        ends = value.low[0], value.high[0]
    low, high = (_sane(e, f) for e, f in zip(ends, (-math.inf, math.inf), strict=True))
    if not bool(box.finite.all()):
        upwards, downwards = _unbounded(linear, box.high == math.inf, box.low == -math.inf)
        low, high = torch.where(downwards, -math.inf, low), torch.where(upwards, math.inf, high)
    return Interval(low, high)


def _moved(linear: LinearMap, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor] | None:
    """The ends of W z where W scales by one number or only moves entries; None of another map.

    A midpoint and a radius lose what is small beside the larger end: of [0, 1e10] + 1e-6 that it is above 0.

    Why these are ends: entries that are moved do not change (``move_key`` tells such maps by what they do), and a
    product that is rounded is off by less than the next float, which 0 is not.
    """
    if isinstance(linear, Identity):
        scale = linear.scale
        if abs(scale) == 1.0:
            return (low, high) if scale > 0 else (-high, -low)
        first, last = (low, high) if scale > 0 else (high, low)
        outward = (
            torch.nextafter(scale * end, torch.full_like(end, way))
            for end, way in ((first, -math.inf), (last, math.inf))
        )
        below, above = (
            torch.where(end == 0.0, 0.0, found) for end, found in zip((first, last), outward, strict=True)
        )  # fmt: skip
        return below, above
    if isinstance(linear, OpMap) and not linear.constants and linear.attributes.startswith("entries "):
        return linear.apply(low[None])[0], linear.apply(high[None])[0]
    return None


def _hull_with_zero(box: Interval) -> tuple[Tensor, Tensor]:
    """The box; where it is not finite, from 0 to the other end, if that is finite."""
    low = torch.where(box.finite, box.low, box.low.clamp(max=0.0))
    high = torch.where(box.finite, box.high, box.high.clamp(min=0.0))
    return low, high


def _unbounded(linear: LinearMap, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Where W z is unbounded above, and below, for entries z that are unbounded above (``up``) or below (``down``).

    A map of one constant is Σ c_k N_k with non-negative N_k (``OpMap`` dominates itself in absolute value), so its
    positive part is that of the positive c_k; one without a constant has no negative part. Counted with zeros and
    ones, which no rounding loses.
    """
    parts = _signed_patterns(linear)
    if parts is None:
        either = touched(linear, (up | down)[None])[0]
        return either, either
    positive, negative = parts
    up, down = up.to(torch.float64)[None], down.to(torch.float64)[None]

    def reached(pattern: LinearMap | None, mask: Tensor) -> Tensor:
        if pattern is None:
            return torch.zeros(linear.out_shape, dtype=torch.bool)
        return pattern.apply(mask)[0] > 0

    return reached(positive, up) | reached(negative, down), reached(positive, down) | reached(negative, up)


def _signed_patterns(linear: LinearMap) -> tuple[LinearMap | None, LinearMap | None] | None:
    """Maps whose images of ones are positive just where the map's positive and negative parts are; None: unknown."""
    if isinstance(linear, Identity):
        one = Identity(linear.in_shape)
        return (one, None) if linear.scale > 0 else (None, one) if linear.scale < 0 else (None, None)
    if not isinstance(linear, (OpMap, Dense)) or not linear.relative:
        return None
    if not linear.constants:
        return linear, None
    if len(linear.constants) > 1:
        return None
    c = linear.constants[0]
    changes: list[Any] = [{"constants": ((sign * c > 0).to(torch.float64),)} for sign in (1, -1)]
    positive, negative = (replace(linear, **change) for change in changes)
    return positive, negative


# -- everything else ----------------------------------------------------------------------------------------


def _selected(node: SelectionNode, box: Interval) -> Interval:
    """The largest of the ends; the k-th largest lies between the k-th largest ends."""
    selection = node.function
    windows = [end.reshape(-1)[selection.index] for end in (box.low, box.high)]
    if isinstance(selection, MaxSelection):
        low, high = (w.amax(-1).reshape(selection.out_shape) for w in windows)
        return Interval(low, high)
    result = []
    for end, window in zip((box.low, box.high), windows, strict=True):
        flat = end.reshape(-1).clone()
        flat[selection.index.reshape(-1)] = window.sort(-1, descending=selection.descending).values.reshape(-1)
        result.append(flat.reshape(selection.in_shape))
    return Interval(*result)


def _block(function: GainFunction, box: Interval, shape: Shape) -> Interval:
    """By interval arithmetic through the block's code, and by its gain around the middle; what lies in both."""
    floor, ceiling = (torch.as_tensor(end, dtype=torch.float64).expand(shape) for end in function.image)
    known = Interval(floor.clone(), ceiling.clone())
    if not bool(box.finite.all()):
        return known
    value = _evaluated(lambda x: function.value(x), box, shape)
    middle = Range.between(box.low, box.high)
    centre = _evaluated(lambda x: function.value(x), Interval.point(middle.mid), shape)
    reach = math.inf
    for p, gain in function.gains.items():
        reach = min(reach, mul_up(gain, float(lengths(middle.reach.reshape(1, -1), p))))
    around = Interval(_sane(centre.low - reach, -math.inf), _sane(centre.high + reach, math.inf))
    around = Interval(
        torch.nextafter(around.low, torch.full_like(around.low, -math.inf)),
        torch.nextafter(around.high, torch.full_like(around.high, math.inf)),
    )
    return value.meet(around).meet(known)


def _open(node: OpenNode, inputs: Sequence[Interval]) -> Interval:
    """By the facts of the one function it is, or by interval arithmetic through the op's own code."""
    if node.steep is not None:
        low, high = image_of(node.steep, *_ends(inputs[0], node.shape))
        return Interval(low.expand(node.shape), high.expand(node.shape))
    if node.function is None or not all(bool(box.finite.all()) for box in inputs):
        return Interval.whole(node.shape)
    function, constants = node.function, node.constants
    values = [Enclosure(Range.between(b.low, b.high), Range.exact(torch.zeros_like(b.low))) for b in inputs]
    try:
        return _interval(function(values, constants), node.shape)  # type: ignore[arg-type]
    except (NumericsError, AttributeError, TypeError, RuntimeError, ValueError):  # no rule for something it does
        return Interval.whole(node.shape)


def _evaluated(function: Any, box: Interval, shape: Shape) -> Interval:
    value = Enclosure(Range.between(box.low, box.high), Range.exact(torch.zeros_like(box.low)))
    try:
        return _interval(function(value), shape)
    except NumericsError:
        return Interval.whole(shape)


def _interval(result: Any, shape: Shape) -> Interval:
    value = result.value if isinstance(result, Enclosure) else Range.literal(result)
    low, high = value.low.expand(shape), value.high.expand(shape)
    return Interval(_sane(low, -math.inf), _sane(high, math.inf))


def _sum(a: Interval, b: Interval) -> Interval:
    """Ends added and rounded outward; exact where one is zero."""

    def end(x: Tensor, y: Tensor, direction: float) -> Tensor:
        total = x + y
        outward = torch.nextafter(total, torch.full_like(total, direction))
        return _sane(torch.where((x == 0) | (y == 0), total, outward), direction)

    return Interval(end(a.low, b.low, -math.inf), end(a.high, b.high, math.inf))


def _sane(end: Tensor, otherwise: float) -> Tensor:
    """Nothing is known where arithmetic gave no number."""
    return torch.where(end.isnan(), otherwise, end)
