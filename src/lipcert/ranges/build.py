"""Ranges: a box for every node of a network on a domain, by intervals and linear bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lipcert.domain import Box, Domain
from lipcert.network.expanded import Expanded, SmoothBlock
from lipcert.network.expansion import Expansion
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
from lipcert.network.joint import Planes
from lipcert.network.linear import LinearMap, Shape, add, size
from lipcert.network.nonlinearity import MaxSelection, Nonlinearity
from lipcert.network.parts import block_of
from lipcert.network.radial import Radial
from lipcert.network.relations import Local, LocalGains, LocalSlopes
from lipcert.network.slopes import slopes
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import Range
from lipcert.ranges.away import distances
from lipcert.ranges.functions import chords
from lipcert.ranges.intervals import through
from lipcert.ranges.lengths import gains_beyond, groups_of, lengths_around
from lipcert.ranges.linear_bounds import LinearBounds
from lipcert.ranges.lines import Lines
from lipcert.ranges.maxima import WindowLines

Tighten = Literal["none", "undecided", "all"]

#: Linear bounds are worked out where rows times entries of the network, over all nodes, stay below this.
MOST_WORK = 3e9
#: Entries of the rows that bound how long a normalisation's groups are.
MOST_ROWS = 1 << 26


@dataclass(frozen=True, eq=False)
class Ranges:
    """For every x of the domain the value of node k lies in ``boxes[k]``, entry by entry.

    Attributes:
        boxes: one per node, of the node's shape; infinite where nothing is known.
        local: position → what that makes of an activation, or of a normalisation.
    """

    boxes: tuple[Interval, ...]
    local: Mapping[int, Local]

    @classmethod
    def of(
        cls,
        network: Network,
        domain: Domain,
        anchor: Tensor | None = None,
        tighten: Tighten = "undecided",
        known: Mapping[int, Interval] | None = None,
    ) -> Ranges:
        """By intervals; on a bounded domain by linear bounds too.

        Args:
            network: the nodes.
            domain: what x lies in; None for the whole space.
            anchor: a point of the domain: slopes are then those of chords from its values.
            tighten: for which entries linear bounds are worked out: ``undecided``, those of which an activation's
                slopes depend; ``all``; or ``none``.
            known: position → a box in which the node's values are known to lie.
        """
        bounds = bounds_of(network, domain, tighten, known)
        boxes = bounds.boxes
        anchored = None
        if anchor is not None:
            point = anchor.detach().to("cpu", torch.float64).reshape(network.in_shape)
            anchored = boxes_of(network, Box(point, point), "none")
        least = _least_lengths(bounds)
        local: dict[int, Local] = dict(_gains(network, boxes, least))
        parts: dict[tuple[int, ...], tuple[Local, ...]] = {}
        for k, node in enumerate(network.nodes):
            if isinstance(node, PartNode):
                key = (id(node.function), *node.arguments)
                if key not in parts:
                    at = None if anchored is None else [anchored[p] for p in node.arguments]
                    parts[key] = _obeyed(node, [boxes[p] for p in node.arguments], at, least.get(k))
                local[k] = parts[key][node.which]
            function = applied(node)
            if function is None:
                continue
            box = boxes[node.parents[0]].expanded(node.shape)
            if anchored is None:
                lower, upper = slopes(function, box.low, box.high)
            else:
                lower, upper = chords(function, box, anchored[node.parents[0]].expanded(node.shape))
            local[k] = LocalSlopes(lower.expand(node.shape), upper.expand(node.shape), box)
        return cls(tuple(boxes), local)


def boxes_of(
    network: Network, domain: Domain, tighten: Tighten, known: Mapping[int, Interval] | None = None
) -> list[Interval]:
    """A box for every node; arguments as for ``Ranges.of``."""
    return list(bounds_of(network, domain, tighten, known).boxes)


def bounds_of(
    network: Network, domain: Domain, tighten: Tighten, known: Mapping[int, Interval] | None = None,
    until: float = math.inf,
) -> LinearBounds:  # fmt: skip
    """A box for every node, and lines around activations where linear bounds are wanted; see ``Ranges.of``.

    Raises:
        NotProved: linear bounds were not done ``until`` then (perf_counter).
    """
    return _filled(network, domain, [], {}, {}, tighten, known or {}, until)


def cut_bounds(before: LinearBounds, position: int, box: Interval, tighten: Tighten) -> LinearBounds:
    """Boxes, lines and planes that hold where, besides, the value of one node lies in a box.

    Why these hold there: the boxes before do, being those of a larger set, and every step from boxes of parents to the
    box of a node, or to lines around it, is true of any set on which the parents' boxes are.

    Args:
        before: on the domain, or on such a part of it.
        position: the node; 0: the input.
        box: for its value, within its box before.
        tighten: as for ``Ranges.of``, for the nodes behind it.
    """
    boxes = [*before.boxes[:position], box]
    lines = {k: own for k, own in before.lines.items() if k < position}
    planes = {k: own for k, own in before.planes.items() if k < position or tighten == "none"}
    return _filled(before.network, before.domain, boxes, lines, planes, tighten, dict(enumerate(before.boxes)))


def _filled(
    network: Network, domain: Domain, boxes: list[Interval], lines: dict[int, Lines],
    planes: dict[int, Planes | WindowLines | AffineNode], tighten: Tighten, known: Mapping[int, Interval],
    until: float = math.inf,
) -> LinearBounds:  # fmt: skip
    """The boxes of the nodes that have none yet, and what is around them."""
    back = LinearBounds(network, domain, boxes, lines, planes, until)
    work = 0.0
    together: dict[int, Interval] = {}  # of affine nodes that were bounded with an earlier one

    def met(k: int) -> Interval:
        box = through(network.nodes[k], [boxes[p] for p in network.nodes[k].parents])
        return known[k].meet(box) if k in known else box

    with torch.no_grad():
        for k, node in enumerate(network.nodes):
            if k < len(boxes):
                continue
            if isinstance(node, InputNode):
                boxes.append(input_box(domain, node.shape))
                continue
            linear = tighten != "none" and bool(boxes[0].finite.all())
            if linear and isinstance(node, AffineNode) and k not in together:
                asked: list[tuple[int, Tensor]] = []
                for j in (j for j in _siblings(network, k) if j not in together):
                    together[j] = met(j)
                    entries = _undecided(network, j, together[j]) if tighten == "undecided" else _all(together[j])
                    work += 2.0 * len(entries) * sum(size(n.shape) for n in network.nodes[: j + 1])
                    asked += [(j, entries)] if len(entries) and work <= MOST_WORK else []
                for (j, entries), ends in zip(asked, back.boxes_of(asked), strict=True):
                    together[j] = _tightened(together[j], entries, *ends)
            boxes.append(together.pop(k) if k in together else met(k))
            own = around(node, boxes, boxes[k]) if linear else None
            if own is not None:
                planes[k] = own
            if own is not None and not _only_summed(network, k):
                entries = _undecided(network, k, boxes[k]) if tighten == "undecided" else _all(boxes[k])
                work += 2.0 * len(entries) * sum(size(n.shape) for n in network.nodes[: k + 1])
                if len(entries) and work <= MOST_WORK:
                    boxes[k] = _tightened(boxes[k], entries, *back.box(k, entries))
            function = applied(node)
            if linear and function is not None:
                parent = boxes[node.parents[0]]
                at = Interval(parent.low.expand(node.shape), parent.high.expand(node.shape))
                lines[k] = Lines.around(function, at, boxes[k])
    back.until = math.inf
    return back


def work_of(bounds: LinearBounds) -> float:
    """Rows times entries that linear bounds of what these boxes leave undecided would take.

    They take less as they go: what tighter boxes decide is not asked for. First layers are left out: their rows are at
    hand.
    """
    network = bounds.network
    entries, work = 0, 0.0
    for k, node in enumerate(network.nodes):
        entries += size(node.shape)
        if isinstance(node, AffineNode) and node.parents != (0,):
            work += 2.0 * len(_undecided(network, k, bounds.boxes[k])) * entries
    return work


def _siblings(network: Network, k: int) -> list[int]:
    """Affine node k, and later ones that read one of its parents and nothing that comes after these.

    Such are the gates of one step of a recurrent layer: one pass back to the input is enough for all of them.
    """
    nodes = network.nodes
    readers = {j for p in nodes[k].parents for j in network.consumers[p] if j > k}
    return [k, *(j for j in sorted(readers) if isinstance(nodes[j], AffineNode) and max(nodes[j].parents) < k)]


def _only_summed(network: Network, position: int) -> bool:
    """Whether a part is read by linear maps alone, whose own bounds are then worked out."""
    return all(isinstance(network.nodes[reader], AffineNode) for reader in network.consumers[position])


def around(node: Node, boxes: Sequence[Interval], own: Interval) -> Planes | WindowLines | AffineNode | None:
    """Linear bounds of a maximum, a part or a block from boxes of its arguments; by its own box where none is known."""
    windows = maximum(node)
    if windows is not None:
        return WindowLines.around(windows, boxes[node.parents[0]], own)
    block = block_of(node)
    if block is not None:
        found = block.expansion(boxes[node.parents[0]])
        return None if found is None else _as_affine(node, node.parents[:1], found, own)
    if not isinstance(node, PartNode) or node.which:
        return None
    arguments = [boxes[p] for p in node.arguments]
    if isinstance(node.function, Expanded):
        found = node.function.expansion(arguments)
        return None if found is None else _as_affine(node, node.arguments, found, own)
    planes = node.function.planes(arguments)
    if planes is None:
        return None
    unknown = ~(planes.least.isfinite() & planes.greatest.isfinite())
    return Planes(
        planes.slopes, torch.where(unknown, own.low, planes.least), torch.where(unknown, own.high, planes.greatest)
    )


def _as_affine(node: Node, arguments: Sequence[int], found: Expansion, own: Interval) -> AffineNode | None:
    """The maps of an expansion, and its offset with what is not linear as an error."""
    terms: dict[int, LinearMap] = {}
    for parent, linear in zip(arguments, found.maps, strict=True):
        if linear is not None:
            terms[parent] = add(terms[parent], linear) if parent in terms else linear
    if not terms:
        return None
    known, box = found.offset.rad.isfinite(), Range.between(own.low, own.high)
    offset, error = torch.where(known, found.offset.mid, box.mid), torch.where(known, found.offset.rad, box.rad)
    return AffineNode(
        parents=tuple(terms), shape=node.shape, name=node.name, maps=tuple(terms.values()), offset=offset,
        offset_error=error,
    )  # fmt: skip


def _obeyed(
    node: PartNode, boxes: Sequence[Interval], anchored: Sequence[Interval] | None, least: Tensor | None
) -> tuple[Local, ...]:
    """What the parts of a node's function obey; of a normalisation also by the least lengths of its groups."""
    function = node.function
    if not isinstance(function, SmoothBlock) or not isinstance(function.block, Radial) or least is None:
        return function.obeyed(boxes, anchored)
    found = function.expansion(boxes, least)
    if found is not None:
        return function.by(found)
    return function.bounded(gains_beyond(function.block, boxes[0].low.shape, least[0]), tuple(boxes[0].low.shape))


def _gains(network: Network, boxes: Sequence[Interval], least: Mapping[int, Tensor]) -> dict[int, LocalGains]:
    """What is known of blocks: of normalisations gains that follow from how long their groups are at least."""
    gains: dict[int, LocalGains] = {}
    for k, node in enumerate(network.nodes):
        block, box = normalising(node), boxes[node.parents[0]] if node.parents else None
        if block is not None and not isinstance(node, PartNode):
            gains[k] = gains_beyond(block, torch.Size(network.nodes[node.parents[0]].shape), least[k][0])
        elif isinstance(node, GainNode) and box is not None:
            own = node.function.gains_on(box)
            if own is not node.function.gains:
                gains[k] = LocalGains({p: min(own.get(p, math.inf), g) for p, g in node.function.gains.items()})
    return gains


def _least_lengths(bounds: LinearBounds) -> dict[int, Tensor]:
    """How long the groups of normalisations are at least, see ``lengths_around``: the middle may be in no image."""
    found: dict[int, Tensor] = {}
    nodes, work = bounds.network.nodes, 0.0
    with torch.no_grad():
        for k, node in enumerate(nodes):
            block = normalising(node)
            if block is None:
                continue
            parent = node.parents[0]
            box = bounds.boxes[parent]
            rows, n = groups_of(block, box.low.shape).shape
            cost = 4.0 * rows * sum(size(other.shape) for other in nodes[: parent + 1])
            affordable = bool(bounds.boxes[0].finite.all()) and work + cost <= MOST_WORK and rows**2 * n <= MOST_ROWS
            work += cost if affordable else 0.0
            found[k] = lengths_around(block, box, partial(bounds.most, parent) if affordable else None)
            away = distances(bounds.network, parent, block)
            if away is not None:
                found[k] = torch.stack([torch.maximum(found[k][0], away), found[k][1]])
    return found


def normalising(node: object) -> Radial | None:
    """The block of a node whose gains depend on how long its argument is."""
    block: object = node.function if isinstance(node, GainNode) else node.block if isinstance(node, OpenNode) else None
    if isinstance(node, PartNode) and not node.which and isinstance(node.function, SmoothBlock):
        block = node.function.block
    return block if isinstance(block, Radial) else None


def applied(node: object) -> Nonlinearity | None:
    """The one function that a node applies to every entry of its parent, of its own shape; None if there is none."""
    if isinstance(node, ActivationNode):
        return node.function
    return node.steep if isinstance(node, OpenNode) else None


def maximum(node: object) -> MaxSelection | None:
    """The windows of which a node is the maxima, if it is that."""
    return node.function if isinstance(node, SelectionNode) and isinstance(node.function, MaxSelection) else None


def input_box(domain: Domain, shape: Shape) -> Interval:
    """The box around a domain, rounded outward."""
    if domain is None:
        return Interval.whole(shape)
    low, high = domain.bounds()
    return Interval(low.reshape(shape), high.reshape(shape))


def _all(box: Interval) -> Tensor:
    return torch.arange(box.low.numel())


def _undecided(network: Network, position: int, box: Interval) -> Tensor:
    """Flat indices of the entries whose range decides a slope of an activation that reads the node."""
    needed = torch.zeros(size(box.low.shape), dtype=torch.bool)
    for reader in network.consumers[position]:
        node = network.nodes[reader]
        function, windows = applied(node), maximum(node)
        if windows is not None:
            needed |= _contending(network, reader, windows, box)
        elif function is None or size(node.shape) != needed.numel():
            needed |= True  # a block or a product: tighter is better
        else:
            alpha, beta = slopes(function, box.low.reshape(node.shape), box.high.reshape(node.shape))
            needed |= (alpha < beta).reshape(-1)
    if position == len(network.nodes) - 1:
        needed |= True
    return needed.nonzero().reshape(-1)


def _contending(network: Network, position: int, windows: MaxSelection, box: Interval) -> Tensor:
    """Of a box's entries those that may be a window's maximum, where which of them it is, or its range, matters.

    It does not where one entry is above all others, or activations that read the maximum are constant on its range;
    nor in the first case, where these are linear there.
    """
    index, counts = windows.index, windows.first
    lows, highs = (torch.where(counts, end.reshape(-1)[index], -torch.inf) for end in (box.low, box.high))
    low, high = lows.amax(-1), highs.amax(-1)
    able = counts & ~(highs <= low[:, None])
    several = able.sum(-1) > 1
    matters = torch.zeros_like(several)
    for reader in network.consumers[position]:
        function, shape = applied(network.nodes[reader]), network.nodes[reader].shape
        if function is None or size(shape) != low.numel():
            matters |= several
            continue
        alpha, beta = (
            slope.expand(shape).reshape(-1) for slope in slopes(function, low.reshape(shape), high.reshape(shape))
        )
        matters |= (alpha < beta) | (several & ~((alpha == 0) & (beta == 0)))
    found = torch.zeros(box.low.numel(), dtype=torch.bool)
    found[index[able & matters[:, None]]] = True
    return found


def _tightened(box: Interval, entries: Tensor, low: Tensor, high: Tensor) -> Interval:
    lows, highs = box.low.reshape(-1).clone(), box.high.reshape(-1).clone()
    met = Interval(lows[entries], highs[entries]).meet(Interval(low, high))
    lows[entries], highs[entries] = met.low, met.high
    return Interval(lows.reshape(box.low.shape), highs.reshape(box.high.shape))
