"""Going back from the output: a lower bound of linear functions of it over a domain, rounding included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.bases import Basis
from lipcert.certificates.cost_to_go.cells import FLOOR, LARGEST, Cell, least
from lipcert.certificates.cost_to_go.facts import Facts
from lipcert.certificates.cost_to_go.floors import Floor, below, least_of
from lipcert.certificates.cost_to_go.inputs import least_on
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.orders import require_order
from lipcert.certificates.cost_to_go.windows import WindowCell
from lipcert.certificates.cost_to_go.windows import least as least_over_windows
from lipcert.certificates.cost_to_go.windows_in_bases import BasisCell
from lipcert.certificates.cost_to_go.windows_in_bases import least as least_in_basis
from lipcert.domain import Domain
from lipcert.errors import NumericsError
from lipcert.guarantee import Guarantee, weakest
from lipcert.network.graph import AffineNode, Node
from lipcert.network.images import image
from lipcert.network.joint import Planes
from lipcert.network.linear import size
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import TINY, UNIT, UP, Range
from lipcert.ranges.build import applied, cut_bounds, maximum
from lipcert.ranges.functions import Samples
from lipcert.ranges.linear_bounds import LinearBounds

if TYPE_CHECKING:
    from lipcert.network.nonlinearity import MaxSelection

#: Parts that the range of a curved activation is cut into.
PARTS = 192
#: Entries of a network up to which linear bounds tighten the ranges of every part of a domain.
SMALL = 4_000


@dataclass(frozen=True, eq=False)
class Cost:
    """c·z − ½ Σ T (z − z̃)², of one node's value z, for every function; (P, *shape) each."""

    linear: Tensor
    weight: Tensor
    centre: Tensor


class Setting:
    """A network on a domain: the boxes of its nodes, and what activations do on them.

    Args:
        facts: the network's.
        domain: of its input.
        linear: whether linear bounds tighten the boxes.
        bounds: on a part of the domain that is meant instead; None: on all of it.
        until: when (perf_counter) linear bounds must be done.

    Raises:
        NotProved: they were not.
    """

    def __init__(
        self, facts: Facts, domain: Domain, linear: bool, bounds: LinearBounds | None = None, until: float = math.inf
    ) -> None:
        self.facts, self.network, self.domain, self.linear = facts, facts.network, domain, linear
        self.bounds = facts.bounds(domain, linear, until) if bounds is None else bounds
        self.boxes: Sequence[Interval] = self.bounds.boxes
        self._samples: dict[int, Samples] = {}

    def part(self, position: int, box: Interval) -> Setting:
        """Where, besides, the value of one node lies in a box within its own.

        Linear bounds are worked out anew only where they cost little: there are many such parts.
        """
        anew = self.linear and sum(size(node.shape) for node in self.network.nodes) <= SMALL
        bounds = cut_bounds(self.bounds, position, box, "undecided" if anew else "none")
        return Setting(self.facts, self.domain, self.linear, bounds)

    def samples(self, position: int) -> Samples:
        """Of an activation on the box of its parent."""
        if position not in self._samples:
            node = self.network.nodes[position]
            function = applied(node)
            assert function is not None
            box = self.boxes[node.parents[0]].reshaped(node.shape)
            self._samples[position] = Samples.of(function, box.low, box.high, PARTS)
        return self._samples[position]

    @property
    def planes(self) -> Mapping[int, Planes | AffineNode]:
        """Linear bounds of nodes that have no cost of their own; on a part they may be those of the whole."""
        return {k: own for k, own in self.bounds.planes.items() if isinstance(own, (Planes, AffineNode))}

    def reach(self, position: int, place: int, node: AffineNode) -> tuple[Tensor, float]:
        """What the rounding of a transposed map may cost; see ``LinearBounds.reach``."""
        return self.bounds.reach(position, place, node.maps[place], node.parents[place])

    def plain(self, rows: Tensor) -> Tensor:
        """Lower bounds of rows·f(x), (P,), by the output's box and, where they were asked for, linear bounds alone."""
        last = len(self.network.nodes) - 1
        by_lines = -self.bounds.upper(last, -rows.reshape(len(rows), *self.network.nodes[last].shape))
        box = self.boxes[last].reshaped((1, size(self.network.nodes[last].shape)))
        parts = torch.where(rows == 0, 0.0, torch.where(rows > 0, rows * box.low, rows * box.high))
        slack = ((parts.shape[1] + 4.0) * UNIT * parts.abs().sum(dim=1) + (parts.shape[1] + 1.0) * TINY) * UP
        by_box = parts.sum(dim=1) - slack
        return torch.where(by_box > by_lines, by_box, by_lines)  # what is no number is not chosen

    def elementwise(self, node: Node) -> bool:
        """Whether the node is a function of the one entry of its parent, and not only of some of them."""
        return applied(node) is not None and size(self.network.nodes[node.parents[0]].shape) == size(node.shape)


def lower_bounds(setting: Setting, rows: Tensor, multipliers: Multipliers) -> tuple[Tensor, Guarantee]:
    """(P,) lower bounds of rows·f(x) over the domain, −∞ where nothing was proved, and how sure they are.

    Why this is a lower bound: going back from the output, ``cost`` says of every node whose readers were done: for
    every x of the domain rows·f(x) ≥ constant + Σ_nodes (c·z − ½ Σ T (z − z̃)²). It starts with rows at the output.

    * *Activation* z = φ(v): c φ(v) − ½ T (φ(v) − z̃)² − g v + ½ D (v − ṽ)² is at least its minimum over the range of v,
      entry by entry; what was subtracted is the parent's new cost.
    * *Maximum* over windows: likewise, window by window; an entry of several windows gets the sum of their shares.
      With a basis B of the windows (``bases``) its quadratic cost is ½ Σ D (u − ũ)² of u = B v, and goes to the node
      of that value, which is affine as well. A ReLU of it that hands on nothing of its own (``floors``) leaves its cost
      to the maximum, in which max(0, m), or m itself where it is known to be more, is one more entry's number.
    * *Affine* v = Σ A_i z_i + b with ṽ = Σ A_i z̃_i + b: g·v = Σ (A_iᵀ g)·z_i + g·b, and ‖v − ṽ‖²_D =
      ‖Σ A_i (z_i − z̃_i)‖²_D ≤ Σ ‖z_i − z̃_i‖²_{T_i} whenever blockdiag(T_i) ⪰ AᵀDA (proved by ``require_order``), in
      particular for T_i = max(D) N_i Σ_j N_j with N_i ≥ ‖A_i‖₂, by Cauchy and Schwarz.
    * *Any other node*: its cost less g·z is concave in z, hence least at an end of z's range; g·z is replaced by what
      linear bounds of z make of it, where there are any, else g is 0 and the parents get nothing.
    * *Input*: ``least_on``.

    A cost that is centred elsewhere than at ṽ is, exactly, one that is centred there plus a linear one. What is
    computed differs from these real numbers by rounding: a linear cost that is off by e costs at most e·max|z|, with
    max|z| known from z's range; a centre that is off by e costs D e (max|v − ṽ| + e/2); T is rounded up. A quadratic
    cost of values, or with entries, beyond ``LARGEST`` proves nothing: within, what underflows is less than ``FLOOR``.

    Source: the sum over layers is the Lagrange dual of min rows·f with linear and diagonal quadratic multipliers on the
    links between layers; with T = 0 it is CROWN (Zhang et al. 2018), with one D per layer and ṽ the centre's values it
    is SDP-CROWN (Chiu et al. 2025).

    Raises:
        CertificateError: the multipliers do not fit the network.
        NotProved: they prove nothing.
    """
    walk = _Walk(setting, rows, multipliers)
    return walk.run(), weakest(walk.guarantees)


class _Walk:
    def __init__(self, setting: Setting, rows: Tensor, multipliers: Multipliers) -> None:
        self.setting, self.network, self.boxes = setting, setting.network, setting.boxes
        self.count, self.multipliers = len(rows), multipliers
        self.guarantees: list[Guarantee] = []
        self.constant = torch.zeros(self.count, dtype=torch.float64)
        self.error = torch.zeros(self.count, dtype=torch.float64)
        self.costs: dict[int, Cost] = {}
        self.floored: dict[int, float] = {}
        multipliers.require(self.network, self.count)
        self.centres = self._centres()
        last = len(self.network.nodes) - 1
        start = rows.reshape(self.count, *self.network.nodes[last].shape)
        self._hand(last, start, torch.zeros_like(start), self.centre(last))

    def run(self) -> Tensor:
        for k in range(len(self.network.nodes) - 1, 0, -1):
            cost = self.costs.pop(k, None)
            if cost is None:
                continue
            node = self.network.nodes[k]
            floor = self._floor(k)
            if isinstance(node, AffineNode):
                self._affine(k, node, cost)
            elif floor is not None:
                self.floored[floor.maximum] = floor.level
                self._hand(floor.maximum, cost.linear, cost.weight, cost.centre)
            elif self.setting.elementwise(node):
                self._activation(k, node, cost)
            elif maximum(node) is not None:
                self._maximum(k, node, cost)
            else:
                self._cut(k, node, cost)
        if 0 in self.costs:
            c = self.costs[0]
            self._add(least_on(self.setting.domain, self.boxes[0], c.linear, c.weight, c.centre))
        entries = float(sum(size(node.shape) for node in self.network.nodes))
        error = self.error * (1.0 + 2.0**-40 + 8.0 * UNIT * entries)  # sums of errors round, too
        value = self.constant - error
        value = value - (4.0 * UNIT * value.abs() + TINY)
        return torch.where(value.isnan(), -math.inf, value)

    # -- steps -----------------------------------------------------------------------------------------------

    def _floor(self, k: int) -> Floor | None:
        """Of a node that leaves its cost to the maximum before it."""
        own = k in self.multipliers.slope or k in self.multipliers.curvature
        return None if own else self.setting.facts.floors.get(k)

    def _activation(self, k: int, node: Node, cost: Cost) -> None:
        parent = node.parents[0]
        shape = self.network.nodes[parent].shape
        self._refuse_beyond(parent, cost.weight)
        zero = torch.zeros_like(cost.linear)
        slope = self.multipliers.slope.get(k, zero)
        curvature = self.multipliers.curvature.get(k, zero).expand_as(zero)
        centre = self.multipliers.anchor.get((k, 0), self.centre(parent)).reshape(zero.shape)
        if isinstance(self.network.nodes[parent], AffineNode):
            centre = self.centre(parent).reshape(zero.shape)
        parts = least(self.setting.samples(k), Cell(cost.linear, cost.weight, cost.centre, slope, curvature, centre))
        self._add_all(parts)
        self._hand(parent, *(t.reshape(self.count, *shape) for t in (slope, curvature, centre)))

    def _maximum(self, k: int, node: Node, cost: Cost) -> None:
        windows, basis = maximum(node), self.setting.facts.bases.get(k)
        assert windows is not None
        parent, index = node.parents[0], windows.index
        self._refuse_beyond(parent, cost.weight)
        zero = cost.linear.new_zeros(self.count, *index.shape)
        slope = self.multipliers.slope.get(k, zero)
        curvature = self.multipliers.curvature.get(k, zero).expand_as(zero)
        if basis is not None:
            self._in_basis(k, windows, basis, cost, slope, curvature)
            return
        centre = self.centre(parent)
        if not isinstance(self.network.nodes[parent], AffineNode):
            centre = self.multipliers.anchor.get((k, 0), centre)
        centre = centre.expand(self.count, *self.network.nodes[parent].shape)
        low, high, number = self._ends(k, parent, index)
        weight = cost.weight.expand_as(cost.linear)
        cell = WindowCell(
            cost.linear.flatten(1), weight.flatten(1), cost.centre.flatten(1), slope, curvature,
            centre.flatten(1)[:, index], low, high, windows.first,
        )  # fmt: skip
        self._add_all(least_over_windows(cell if number is None else cell.with_number(number)))
        self._hand_windows(parent, windows, slope, curvature, centre)

    def _in_basis(
        self, k: int, windows: MaxSelection, basis: Basis, cost: Cost, slope: Tensor, curvature: Tensor
    ) -> None:
        """A maximum that hands linear costs to its entries, and quadratic ones to these in a basis."""
        parent, centre = self.network.nodes[k].parents[0], self.centre(basis.position)
        low, high, number = self._ends(k, parent, windows.index)
        weight = cost.weight.expand_as(cost.linear)
        cell = BasisCell(
            cost.linear.flatten(1), weight.flatten(1), cost.centre.flatten(1), slope, curvature,
            centre.expand_as(slope), low, high, windows.first, basis.matrix, basis.inverse,
        )  # fmt: skip
        self._add_all(least_in_basis(cell if number is None else cell.with_number(number)))
        self._hand_windows(parent, windows, slope, torch.zeros_like(slope), self.centre(parent))
        self._hand(basis.position, torch.zeros_like(slope), curvature, centre)

    def _ends(self, k: int, parent: int, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of the entries of a maximum's windows, (O, K) twice; and what it counts as at least, (O,), under a floor."""
        low, high = (end.reshape(-1)[index] for end in (self.boxes[parent].low, self.boxes[parent].high))
        if k not in self.floored:
            return low, high, None
        own = self.boxes[k]
        return low, below(high, low, own.high.reshape(-1)), least_of(self.floored[k], own.low.reshape(-1))

    def _hand_windows(
        self, parent: int, windows: MaxSelection, slope: Tensor, curvature: Tensor, centre: Tensor
    ) -> None:
        """Costs of the entries of windows."""
        shape = self.network.nodes[parent].shape

        def summed(shares: Tensor) -> Tensor:
            flat = torch.where(windows.first, shares, 0.0).flatten(1)
            total = flat.new_zeros(len(flat), size(shape)).index_add(1, windows.index.reshape(-1), flat)
            return total.reshape(len(flat), *shape)

        rounding = 2.0 * windows.overlap * UNIT
        self._lose(self._weigh(summed(slope.abs()), self.boxes[parent].greatest) * rounding)
        self._hand(parent, summed(slope), summed(curvature) * (1.0 + rounding), centre)

    def _affine(self, k: int, node: AffineNode, cost: Cost) -> None:
        centre = self.centre(k)
        box = self.boxes[k]
        linear = cost.linear
        if bool(cost.weight.any()):
            linear = self._recentred(k, linear, cost.weight, cost.centre, centre)
            off = self.centres[k].reach
            if bool((off > 0).any()):
                away = torch.maximum((box.low - centre).abs(), (box.high - centre).abs()) + off
                self._lose(self._weigh(cost.weight, (off * away).nan_to_num(math.inf)))
            for parent in node.parents:
                self._refuse_beyond(parent, cost.weight)
            self._lose(torch.full_like(self.error, FLOOR))
        offset = node.known_offset
        if offset is not None:
            self._spend(linear, offset.mid)
            self._lose(self._weigh(linear, offset.rad))
        weights = self._weights(k, node, cost.weight)
        self._hand_through(k, node, linear, weights)

    def _weights(self, k: int, node: AffineNode, curvature: Tensor) -> list[Tensor]:
        """T of every parent for the quadratic cost D of the node's value."""
        shapes = [self.network.nodes[p].shape for p in node.parents]
        if not shapes or not bool(curvature.any()):
            return [curvature.new_zeros(self.count, *shape) for shape in shapes]
        stored = [self.multipliers.weight.get((k, place)) for place in range(len(shapes))]
        weights = [
            curvature.new_zeros(self.count, *shape) if w is None else w.expand(self.count, *shape)
            for w, shape in zip(stored, shapes, strict=True)
        ]
        own = torch.stack([w.flatten(1).any(dim=1) for w in weights]).any(dim=0)
        own &= torch.tensor(all(w is not None for w in stored))
        if bool(own.any()):
            require_order(self.setting.facts, k, curvature[own], [w[own] for w in weights])
        most = torch.where(own, 0.0, curvature.flatten(1).amax(dim=1))
        if not bool(most.any()):
            return weights
        norms = self.setting.facts.norms(k)
        self.guarantees += [norm.guarantee for norm in norms]
        total = sum(norm.value for norm in norms)
        result = []
        for weight, norm in zip(weights, norms, strict=True):
            row = (len(own), *[1] * (weight.dim() - 1))
            by_norm = torch.where(most == 0, 0.0, most * (norm.value * total * (1.0 + (len(norms) + 4.0) * UNIT)) * UP)
            result.append(torch.where(own.reshape(row), weight, by_norm.reshape(row)))
        return result

    def _cut(self, k: int, node: Node, cost: Cost) -> None:
        box = self.boxes[k]
        slope, planes = self.multipliers.slope.get(k), self.setting.planes.get(k)
        if slope is not None and planes is not None:
            slope = slope.expand_as(cost.linear)
            rest = cost.linear - slope
            self._lose(2.0 * UNIT * self._weigh(rest, box.greatest))
            cost = Cost(rest, cost.weight, cost.centre)
            self._relax(k, node, planes, slope)
        ends = []
        for end in (box.low, box.high):
            away = end - cost.centre
            value = cost.linear * end - 0.5 * cost.weight * away.square()
            sizes = cost.linear.abs() * end.abs() + cost.weight * (end.abs() + cost.centre.abs()).square()
            ends.append(value - (16.0 * UNIT * sizes + TINY))
        least_end = torch.minimum(*ends)
        none = (cost.linear == 0) & (cost.weight == 0)
        self._add_all(torch.where(none, 0.0, torch.where(least_end.isnan(), -math.inf, least_end)))

    def _relax(self, k: int, node: Node, planes: Planes | AffineNode, slope: Tensor) -> None:
        """Replace slope·z by what linear bounds of z make of it."""
        if isinstance(planes, AffineNode):
            offset = planes.known_offset
            if offset is not None:
                self._spend(slope, offset.mid)
                self._lose(self._weigh(slope, offset.rad))
            self._hand_through(k, planes, slope, [torch.zeros_like(self.centre(p)) for p in planes.parents])
            return
        self._spend(slope.clamp(min=0.0), planes.least)
        self._spend(slope.clamp(max=0.0), planes.greatest)
        for parent, own in zip(node.parents, planes.slopes, strict=True):
            greatest, centre = self.boxes[parent].greatest, self.centre(parent)
            linear = (slope * own).reshape(centre.shape)
            lost = float(torch.where(greatest.isfinite(), greatest, 0.0).sum()) * 2.0 * TINY
            self._lose(2.0 * UNIT * self._weigh(linear, greatest) + lost)
            self._hand(parent, linear, torch.zeros_like(centre), centre)

    def _hand_through(self, k: int, node: AffineNode, linear: Tensor, weights: Sequence[Tensor]) -> None:
        """Hand a linear cost to the parents of a sum of maps, with quadratic ones."""
        for place, (parent, map_) in enumerate(zip(node.parents, node.maps, strict=True)):
            reach, floor = self.setting.reach(k, place, node)
            largest = linear.abs().flatten(1).amax(dim=1) if linear[0].numel() else self.constant * 0.0
            self._lose(self._weigh(linear, reach) + floor * (1.0 + largest))
            self._hand(parent, map_.transpose(linear).detach(), weights[place], self._anchor(k, place, parent))

    # -- sums ------------------------------------------------------------------------------------------------

    def _hand(self, parent: int, linear: Tensor, weight: Tensor, centre: Tensor) -> None:
        """Add a cost to what a node's other readers ask."""
        before = self.costs.get(parent)
        if before is not None:
            share = (weight / (weight + before.weight)).nan_to_num(0.0)
            middle = before.centre + share * (centre - before.centre)
            one = self._recentred(parent, before.linear, before.weight, before.centre, middle)
            two = self._recentred(parent, linear, weight, centre, middle)
            linear, weight, centre = one + two, (before.weight + weight) * (1.0 + 2.0 * UNIT), middle
            self._lose(2.0 * UNIT * self._weigh(linear, self.boxes[parent].greatest))
        self._refuse_beyond(parent, weight)
        self.costs[parent] = Cost(linear, weight, centre.expand_as(linear))

    def _refuse_beyond(self, k: int, weight: Tensor) -> None:
        """Nothing is proved of a function with a quadratic cost where that or the node's values are too large."""
        far = bool((self.boxes[k].greatest > LARGEST).any())
        refused = weight.flatten(1).any(dim=1) if far else (weight > LARGEST).flatten(1).any(dim=1)
        self._lose(torch.where(refused, math.inf, 0.0))

    def _recentred(self, k: int, linear: Tensor, weight: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """c' with c·z − ½ Σ T (z − old)² = constant + c'·z − ½ Σ T (z − new)²; the constant is added."""
        if not bool(weight.any()) or torch.equal(old.expand_as(linear), new.expand_as(linear)):
            return linear
        shift = old - new
        tilt = weight * shift
        size_ = weight * (old.abs() + new.abs())
        self._add_all(-0.5 * tilt * (old + new), 8.0 * UNIT * size_ * (old.abs() + new.abs()))
        result = linear + tilt
        self._lose(self._weigh(4.0 * UNIT * (size_ + result.abs()), self.boxes[k].greatest))
        return result

    def _add(self, value: Tensor) -> None:
        self.constant = self.constant + value
        self.error = self.error + UNIT * self.constant.abs() * UP

    def _add_all(self, parts: Tensor, error: Tensor | None = None) -> None:
        flat = parts.flatten(1)
        n = flat.shape[1]
        self._lose((n + 1.0) * UNIT * flat.abs().sum(dim=1) * UP + n * TINY)
        if error is not None:
            self._lose(error.flatten(1).sum(dim=1) * UP)
        self._add(flat.sum(dim=1))

    def _spend(self, linear: Tensor, offset: Tensor) -> None:
        product = torch.where(linear == 0, 0.0, linear * offset)
        self._add_all(product, 2.0 * UNIT * product.abs())

    def _lose(self, error: Tensor) -> None:
        self.error = self.error + error * UP

    def _weigh(self, linear: Tensor, weights: Tensor) -> Tensor:
        """Σ |linear|·weights, 0·∞ being 0."""
        return torch.where(linear == 0, 0.0, linear.abs() * weights).flatten(1).sum(dim=1)

    # -- centres ---------------------------------------------------------------------------------------------

    def _centres(self) -> dict[int, Range]:
        """ṽ of every affine node, with what its computation may be off."""
        found: dict[int, Range] = {}
        self.centres = found
        for k, node in enumerate(self.network.nodes):
            if not isinstance(node, AffineNode):
                continue
            total = Range.exact(torch.zeros(self.count, *node.shape, dtype=torch.float64))
            try:
                for place, (parent, linear) in enumerate(zip(node.parents, node.maps, strict=True)):
                    total = total + image(linear, found.get(parent) or Range.exact(self._anchor(k, place, parent)))
            except NumericsError:  # a map of whose constants nothing is known
                total = total.widened(torch.full_like(total.mid, math.inf))
            offset = node.known_offset
            total = total if offset is None else total + offset
            sound = total.mid.abs() <= LARGEST
            found[k] = Range(torch.where(sound, total.mid, 0.0), torch.where(sound, total.reach, math.inf))
        return found

    def _anchor(self, k: int, place: int, parent: int) -> Tensor:
        """z̃ at an edge."""
        if parent in self.centres:
            return self.centres[parent].mid
        return self.multipliers.anchor.get((k, place), self.centre(parent))

    def centre(self, k: int) -> Tensor:
        """ṽ of an affine node, the middle of any other's range."""
        if k in self.centres:
            return self.centres[k].mid
        box = self.boxes[k]
        middle = (0.5 * box.low + 0.5 * box.high).nan_to_num(0.0, 0.0, 0.0).clamp(-LARGEST, LARGEST)
        return middle.expand(self.count, *middle.shape)
