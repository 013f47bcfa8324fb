"""Regions of a domain where some neurons lie on a known side of their kink: bounds that prove a region empty."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.domain import Domain
from lipcert.network.graph import Network
from lipcert.network.linear import size
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.relations import EntryCell
from lipcert.network.slopes import slopes
from lipcert.numerics.interval import Interval
from lipcert.ranges.build import Ranges, applied
from lipcert.ranges.functions import extremes
from lipcert.ranges.linear_bounds import CHUNK, LinearBounds, Term
from lipcert.ranges.lines import Lines


@dataclass(frozen=True, eq=False)
class Halves:
    """Entries of an activation that are two linear pieces on their boxes, of slopes α and β, with a kink between.

    Attributes:
        side: 1 where the piece of slope β is to the right of the kink, −1 where it is to its left, 0 where the
            activation is not two such pieces: nothing else is meant there. Of the node's shape, as ``kink``.
        kink: where the pieces meet.
        slope, least, greatest: (2, *shape), for α and for β: the slope, and bounds of φ(v) − slope·v on its piece.
    """

    side: Tensor
    kink: Tensor
    slope: Tensor
    least: Tensor
    greatest: Tensor

    @classmethod
    def of(cls, function: Nonlinearity, box: Interval, alpha: Tensor, beta: Tensor) -> Halves:
        """By the slopes on both sides of each kink: where there is one slope only, φ is linear."""
        side, kink = torch.zeros_like(alpha), torch.zeros_like(alpha)
        ends = torch.stack([alpha, beta])
        least, greatest = torch.zeros_like(ends), torch.zeros_like(ends)
        known = alpha < beta
        low, high = torch.where(known, box.low, 0.0), torch.where(known, box.high, 0.0)
        for jump in function.kinks:
            at = torch.as_tensor(jump.position, dtype=torch.float64).expand(alpha.shape)
            inside = known & (low < at) & (at < high)
            at = torch.where(inside, at, torch.zeros_like(low).clamp(low, high))
            left, right = slopes(function, low, at), slopes(function, at, high)
            linear = inside & (left[0] == left[1]) & (right[0] == right[1])
            rising = linear & (left[0] == alpha) & (right[0] == beta)
            falling = linear & (left[0] == beta) & (right[0] == alpha)
            # on a line from the kink on, φ(v) − slope·v is what it is at the kink
            before = extremes(function, torch.where(linear, left[0], 0.0), torch.where(low.isfinite(), low, at), at)
            after = extremes(function, torch.where(linear, right[0], 0.0), at, torch.where(high.isfinite(), high, at))
            found = rising | falling
            for bound in (*before, *after):
                found = found & bound.isfinite()
            side = torch.where(found, torch.where(rising, 1.0, -1.0), side)
            kink = torch.where(found, at, kink)
            low_ends, high_ends = (
                torch.stack([torch.where(rising, b, a), torch.where(rising, a, b)])
                for b, a in zip(before, after, strict=True)
            )
            least, greatest = torch.where(found, low_ends, least), torch.where(found, high_ends, greatest)
        return cls(side, kink, ends, least, greatest)


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of a network whose slope is open, in order, with those of two linear pieces told apart.

    Neurons are the entries with α < β of all activations, node by node, as they remain in reduced increments. A
    *fixing* is a row of numbers: 0 where a neuron has slope α, 1 where β, −1 where it is free. The *region* of a fixing
    is the set of those points at which every fixed neuron of two pieces has its argument on its piece, the kink
    included; a fixed neuron of another kind restricts nothing.

    Attributes:
        lower, upper: α and β of every neuron.
        side: of every neuron, as ``Halves.side``.
        network, halves, places: where they are: node → its pieces, and node → its neurons' numbers and entries.
    """

    lower: Tensor
    upper: Tensor
    side: Tensor
    network: Network
    halves: Mapping[int, Halves]
    places: Mapping[int, tuple[slice, Tensor]]

    @classmethod
    def among(cls, network: Network, ranges: Ranges | None, nodes: Collection[int]) -> Neurons:
        """Those of these nodes, with the slopes that ranges leave open; on the whole line where there are none."""
        halves: dict[int, Halves] = {}
        places: dict[int, tuple[slice, Tensor]] = {}
        count = 0
        numbers: list[Tensor] = [torch.zeros(3, 0, dtype=torch.float64)]
        for k, node in enumerate(network.nodes):
            relation = node.relation(k, ranges.local.get(k) if ranges else None)
            if k not in nodes or not isinstance(relation, EntryCell) or not bool(relation.free.any()):
                continue
            alpha, beta, side = relation.lower, relation.upper, torch.zeros_like(relation.lower)
            function = applied(node)
            if function is not None and size(network.nodes[node.parents[0]].shape) == relation.size:
                box = ranges.boxes[node.parents[0]].expanded(node.shape) if ranges else Interval.whole(node.shape)
                halves[k] = Halves.of(function, box, alpha, beta)
                side = halves[k].side
            entries = relation.free.nonzero().reshape(-1)
            places[k] = slice(count, count + len(entries)), entries
            count += len(entries)
            numbers.append(torch.stack([t.expand(node.shape).reshape(-1)[entries] for t in (alpha, beta, side)]))
        lower, upper, sides = torch.cat(numbers, dim=1)
        return cls(lower, upper, sides, network, halves, places)

    @property
    def count(self) -> int:
        """Number of neurons."""
        return len(self.side)

    def empty(self, fixings: Tensor, proofs: Tensor) -> Tensor:
        """Truth per row: the numbers prove that no point, or almost none, is in the region of the fixing.

        Args:
            fixings: (R, count).
            proofs: (R, count) finite numbers.
        """
        raise NotImplementedError

    def at(self, x: Tensor) -> Tensor:
        """For points (B, *in_shape) a fixing (B, count) of all neurons of two pieces, whose region has the point."""
        result = torch.full((len(x), self.count), -1, dtype=torch.int8)
        wanted = {self.network.nodes[k].parents[0]: [] for k in self.halves}  # type: ignore[var-annotated]
        for k in self.halves:
            wanted[self.network.nodes[k].parents[0]].append(k)
        for position, value in self.network.values(x):
            for k in wanted.get(position, ()):
                (place, entries), halves = self.places[k], self.halves[k]
                right = value.reshape(len(x), -1)[:, entries] > halves.kink.reshape(-1)[entries]
                side = halves.side.reshape(-1)[entries]
                own = torch.where(side > 0, right, ~right).to(torch.int8)
                result[:, place] = torch.where(side == 0, -1, own)
        return result


@dataclass(frozen=True, eq=False)
class Regions(Neurons):
    """The neurons on a bounded convex domain, and bounds that hold where some are fixed."""

    bounds: LinearBounds

    @classmethod
    def of(cls, network: Network, domain: Domain, ranges: Ranges, nodes: Collection[int]) -> Regions | None:
        """For ranges without an anchor, of the neurons of these nodes; None where the domain is not bounded."""
        if domain is None or not bool(ranges.boxes[0].finite.all()):
            return None
        lines: dict[int, Lines] = {}
        for k, node in enumerate(network.nodes):
            function = applied(node)
            if function is not None:
                box = ranges.boxes[node.parents[0]].expanded(node.shape)
                lines[k] = Lines.around(function, box, ranges.boxes[k])
        neurons = Neurons.among(network, ranges, nodes)
        return cls(**vars(neurons), bounds=LinearBounds(network, domain, ranges.boxes, lines))

    def empty(self, fixings: Tensor, proofs: Tensor) -> Tensor:
        """Where ``greatest`` is below 0 with these as weights; not where one of them is negative."""
        return (self.greatest(fixings, proofs) < 0) & (proofs >= 0).all(dim=1)

    def greatest(self, fixings: Tensor, weights: Tensor) -> Tensor:
        """Upper bounds of Σ_j μ_j s_j (v_j − kink_j) over the region of each fixing, (R,).

        The sum is over the fixed neurons of two pieces, and those with μ_j > 0; v_j is the neuron's argument, s_j = 1
        where it is fixed to its right piece and −1 where to its left. No term is negative in the region, so where the
        bound is below 0 the region is empty.

        Why this is an upper bound: it is one of linear bounds, in which a fixed neuron of two pieces is bounded by the
        line of its piece, which holds in the region; other activations by lines that hold on the whole domain.

        Args:
            fixings: (R, count).
            weights: (R, count) μ.
        """
        step = max(1, CHUNK // max(1, sum(size(node.shape) for node in self.network.nodes)))
        tops = [
            self._along(some).upper_of_sum(terms) if (terms := self._terms(some, mu)) else mu.new_zeros(len(mu))
            for some, mu in zip(fixings.split(step), weights.split(step), strict=True)
        ]
        return torch.cat([fixings.new_zeros(0, dtype=torch.float64), *tops])

    def forms(self, fixings: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(c, b) with the sum that ``greatest`` bounds at most c·x + b in the region, roundings not counted."""
        terms = self._terms(fixings, weights)
        if not terms:
            return weights.new_zeros(len(weights), size(self.network.in_shape)), weights.new_zeros(len(weights))
        coefficients, constant, _ = self._along(fixings).back(terms)
        return coefficients.reshape(len(weights), -1), constant

    def _terms(self, fixings: Tensor, weights: Tensor) -> list[Term]:
        terms: list[Term] = []
        for k, halves in self.halves.items():
            place, entries = self.places[k]
            own, side = fixings[:, place], halves.side.reshape(-1)[entries]
            used = (own >= 0) & (side != 0) & (weights[:, place] > 0)
            if not bool(used.any()):
                continue
            parent = self.network.nodes[k].parents[0]
            shape = self.network.nodes[parent].shape
            rows = weights.new_zeros(len(weights), halves.side.numel())
            rows[:, entries] = torch.where(used, weights[:, place] * torch.where(own == 1, side, -side), 0.0)
            terms.append((parent, rows.reshape(-1, *shape), halves.kink.reshape(shape)))
        return terms

    def _along(self, fixings: Tensor) -> LinearBounds:
        """The bounds with the lines of each row's region."""
        lines = dict(self.bounds.lines)
        for k, halves in self.halves.items():
            place, entries = self.places[k]
            own, side = fixings[:, place], halves.side.reshape(-1)[entries]
            fixed = (own >= 0) & (side != 0)
            if not bool(fixed.any()):
                continue
            shape = self.network.nodes[k].shape

            def put(
                old: Tensor, new: Tensor, own: Tensor = own, fixed: Tensor = fixed, entries: Tensor = entries
            ) -> Tensor:
                low, high = new.reshape(2, -1)[:, entries]
                rows = old.reshape(1, -1).repeat(len(own), 1)
                rows[:, entries] = torch.where(fixed, torch.where(own == 1, high, low), rows[:, entries])
                return rows

            free = lines[k]
            rows = (
                put(free.lower_slope, halves.slope), put(free.lower_offset, halves.least),
                put(free.upper_slope, halves.slope), put(free.upper_offset, halves.greatest),
            )  # fmt: skip
            lines[k] = Lines(*(row.reshape(-1, *shape) for row in rows))
        return self.bounds.along(lines)
