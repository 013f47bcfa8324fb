"""Linear bounds (CROWN): nodes bounded by linear functions of the input, going back through lines around activations.

Source: Zhang, Weng, Chen, Hsieh & Daniel 2018, *Efficient neural network robustness certification with general
activation functions*. Here every rounding is paid for: going back through v = Wz + b the computed coefficients differ
from the exact ones by at most γ|Λ||W|, which costs γ|Λ||W| max|z|, and max|z| is known from z's own box.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lipcert.domain import Domain
from lipcert.errors import NotProved
from lipcert.network.graph import ActivationNode, AffineNode, Network, OpenNode
from lipcert.network.joint import Planes
from lipcert.network.linear import Identity, LinearMap, size
from lipcert.network.touched import touched
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import TINY, UNIT, UP
from lipcert.ranges.cut_ball import CutBall
from lipcert.ranges.input_rows import DUAL, FirstLayer, Rows
from lipcert.ranges.lines import Lines
from lipcert.ranges.maxima import WindowLines

#: Entries of the coefficients of a chunk of rows: what a cache holds. Of wide nodes some rows more, up to ``MOST``.
CHUNK, MOST, ROWS = 1 << 19, 1 << 24, 32
#: Entries of a map of the input up to which it is written down, once for all domains.
MOST_WRITTEN = 1 << 25
#: Entries of coefficients of the input up to which the part of a ball that a box leaves is used.
MOST_CUT = 1 << 22


#: Position, rows (R, *shape) and, unless it is 0, the shift (*shape) of one term Σ rows[r]·(z − shift) of a sum.
Term = tuple[int, Tensor, Tensor | None]


class LinearBounds:
    """Upper bounds of linear functions of nodes, by going back to the input.

    ``boxes``, ``lines`` and ``planes``, of functions of several values, are those of the nodes so far; they may grow
    between calls. Planes may also be a sum of maps with an offset that is known to an error, or those of windows. Lines
    may be other ones for each row, with a leading axis. ``box`` and ``boxes_of`` raise NotProved after ``until``
    (perf_counter).
    """

    def __init__(
        self,
        network: Network,
        domain: Domain,
        boxes: Sequence[Interval],
        lines: Mapping[int, Lines],
        planes: Mapping[int, Planes | WindowLines | AffineNode] | None = None,
        until: float = math.inf,
    ) -> None:
        self.network, self.domain, self.boxes, self.lines, self.until = network, domain, boxes, lines, until
        self.planes = {} if planes is None else planes
        self._entries = float(sum(size(node.shape) for node in network.nodes))
        self._reaches: dict[tuple[int, int], tuple[Tensor, float]] = {}

    def along(self, lines: Mapping[int, Lines]) -> LinearBounds:
        """With other lines."""
        other = LinearBounds(self.network, self.domain, self.boxes, lines, self.planes)
        other._reaches = self._reaches
        return other

    def box(self, position: int, entries: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high) of some entries (flat indices) of a node."""
        return self.boxes_of([(position, entries)])[0]

    def boxes_of(self, asked: Sequence[tuple[int, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """(low, high) of some entries (flat indices) of each of some nodes, which go back to the input together."""
        found = {position: first.box(entries) for position, entries in asked if (first := self._first(position))}
        rest = [(position, entries) for position, entries in asked if position not in found]
        if rest:
            places = torch.cat([torch.full_like(entries, position) for position, entries in rest])
            flat = torch.cat([entries for _, entries in rest])
            width = max(size(node.shape) for node in self.network.nodes[: int(places.max()) + 1])
            chunk = max(1, CHUNK // (2 * width), min(ROWS, MOST // (2 * width))) if width else len(flat) + 1
            pairs = zip(places.split(chunk), flat.split(chunk), strict=True)
            lows, highs = zip(*(self._ends(*self._in_time(pair)) for pair in pairs), strict=True)
            counts = [len(entries) for _, entries in rest]
            ends = (torch.cat(side).split(counts) for side in (lows, highs))
            found |= dict(zip([position for position, _ in rest], zip(*ends, strict=True), strict=True))
        return [found[position] for position, _ in asked]

    def _in_time(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if time.perf_counter() > self.until:
            raise NotProved("the time ended before linear bounds of all nodes were worked out.")
        return pair

    def _ends(self, places: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high) of one entry of each of these nodes."""
        count, terms = len(entries), []
        for position in places.unique().tolist():
            shape = self.network.nodes[position].shape
            own = torch.nonzero(places == position).reshape(-1)
            rows = torch.zeros(2 * count, size(shape), dtype=torch.float64)
            rows[own, entries[own]] = 1.0
            rows[count + own, entries[own]] = -1.0
            terms.append((position, rows.reshape(-1, *shape), None))
        top = self.upper_of_sum(terms)
        return -top[count:], top[:count]

    def most(self, position: int, rows: Tensor) -> Tensor:
        """``upper`` in chunks of rows."""
        width = max(size(node.shape) for node in self.network.nodes[: position + 1])
        chunk = max(1, CHUNK // max(1, width))
        return torch.cat([self.upper(position, part) for part in rows.split(chunk)])

    def _first(self, position: int) -> FirstLayer | None:
        """The node as a map of the input alone, where that is small enough to be written down."""
        node = self.network.nodes[position]
        if not isinstance(node, AffineNode) or node.parents != (0,) or isinstance(node.maps[0], Identity):
            return None
        if node.maps[0].in_size * node.maps[0].out_size > MOST_WRITTEN:
            return None
        return FirstLayer(self, position, node, Rows.of(node.maps[0]))

    def upper(self, position: int, rows: Tensor) -> Tensor:
        """Upper bounds of Σ rows[r]·z over the domain, z being the node's values: (R, *shape) → (R,)."""
        return self.upper_of_sum([(position, rows, None)])

    def upper_of_sum(self, terms: Sequence[Term]) -> Tensor:
        """Upper bounds of Σ_k rows_k[r]·(z_k − shift_k) over the domain, (R,); see ``Term``."""
        coefficients, constant, error = self.back(terms)
        return self.topped(*self.support(Rows(coefficients.flatten(1)), constant, error))

    def topped(self, constant: Tensor, error: Tensor) -> Tensor:
        """Constant and error as one number, rounded up."""
        total = constant + error * (1.0 + 2.0**-40 + 8.0 * UNIT * self._entries)  # sums of sizes round, too
        total = total + 4.0 * UNIT * total.abs() + TINY
        return torch.where(total > -math.inf, total, math.inf)  # NaN says nothing, nor would −∞

    def back(self, terms: Sequence[Term]) -> tuple[Tensor, Tensor, Tensor]:
        """(c, b, e) with Σ_k rows_k[r]·(z_k − shift_k) ≤ c[r]·x + b[r] + e[r] on the domain; e is not rounded up."""
        count = len(terms[0][1])
        pending: dict[int, Tensor] = {}
        constant = torch.zeros(count, dtype=torch.float64)
        error = torch.zeros(count, dtype=torch.float64)

        def weigh(sizes: Tensor, weights: Tensor) -> Tensor:
            """Σ sizes·weights for numbers ≥ 0, 0·∞ being 0; not rounded up."""
            sizes, w = sizes.reshape(count, -1), weights.reshape(-1)
            if bool(w.isfinite().all()):
                return sizes @ w
            return torch.where(sizes == 0, 0.0, sizes * w).sum(dim=1)

        def spend(coefficients: Tensor, offsets: Tensor, sign: float = 0.0) -> None:
            """Add Σ coefficients·offsets, and what its rounding may lose; ``sign``: of all coefficients, if known."""
            nonlocal constant, error
            flat = coefficients.reshape(len(coefficients), -1)
            n = flat.shape[1]
            o = offsets.reshape(count if offsets.dim() == coefficients.dim() else 1, n)  # one row for all, or for each
            if not bool(o.any()):
                return
            if len(o) == 1 and bool(o.isfinite().all()):
                total = flat @ o[0]
                if sign and bool((o >= 0).all() if sign > 0 else (o <= 0).all()):
                    sizes = total
                else:
                    sizes = (flat.abs() if not sign else sign * flat) @ o[0].abs()
            else:
                product = torch.where(flat == 0, 0.0, flat * o)
                total, sizes = product.sum(dim=1), product.abs().sum(dim=1)
            constant = constant + total
            error = error + ((n + 2.0) * UNIT * sizes * UP + UNIT * constant.abs() + (n + 1.0) * TINY)

        def hand_through(parent: int, coefficients: Tensor) -> None:
            """Hand on products of coefficients and slopes, which are rounded."""
            nonlocal error
            shape = self.network.nodes[parent].shape
            greatest = self.boxes[parent].greatest.expand(shape)
            # where it is infinite, slopes are 0
            lost = float(torch.where(greatest.isfinite(), greatest, 0.0).sum()) * 2.0 * TINY
            error = error + (2.0 * UNIT * weigh(coefficients.abs(), greatest) + lost) * UP
            hand(parent, coefficients.reshape(count, *shape))

        def hand(parent: int, coefficients: Tensor) -> None:
            nonlocal error
            if parent in pending:
                coefficients = pending[parent] + coefficients
                error = error + 2.0 * UNIT * weigh(coefficients.abs(), self.boxes[parent].greatest)
            pending[parent] = coefficients

        for position, rows, shift in terms:
            hand(position, rows)
            if shift is not None:
                spend(rows, -shift)
        for k in range(max(position for position, _, _ in terms), 0, -1):
            coefficients = pending.pop(k, None)
            if coefficients is None:
                continue
            planes = self.planes.get(k)
            node = planes if isinstance(planes, AffineNode) else self.network.nodes[k]
            if isinstance(node, AffineNode):
                offset = node.known_offset
                if offset is not None:
                    spend(coefficients, offset.mid)
                sizes = coefficients.abs()
                if offset is not None and bool(offset.rad.any()):
                    error = error + weigh(sizes, offset.rad) * UP
                flat = sizes.reshape(count, -1)
                largest = flat.amax(dim=1) if flat.shape[1] else torch.zeros_like(error)
                for place, (parent, linear) in enumerate(zip(node.parents, node.maps, strict=True)):
                    reach, floor = self.reach(k, place, linear, parent)
                    error = error + (weigh(sizes, reach) + floor * (1.0 + largest)) * UP
                    hand(parent, linear.transpose(coefficients).detach())
            elif isinstance(node, (ActivationNode, OpenNode)) and k in self.lines:
                lines, parent = self.lines[k], node.parents[0]  # a product with itself names it twice
                positive, negative = coefficients.clamp(min=0.0), coefficients.clamp(max=0.0)
                spend(positive, lines.upper_offset, 1.0)
                spend(negative, lines.lower_offset, -1.0)
                hand_through(parent, positive * lines.upper_slope + negative * lines.lower_slope)
            elif isinstance(planes, Planes):
                spend(coefficients.clamp(min=0.0), planes.greatest, 1.0)
                spend(coefficients.clamp(max=0.0), planes.least, -1.0)
                for parent, slope in zip(node.parents, planes.slopes, strict=True):
                    hand_through(parent, coefficients * slope)
            elif isinstance(planes, WindowLines):
                parent = node.parents[0]
                positive, negative = coefficients.clamp(min=0.0), coefficients.clamp(max=0.0)
                spend(positive, planes.greatest, 1.0)
                spend(negative, planes.least, -1.0)
                entries = size(self.network.nodes[parent].shape)
                own, sizes = planes.back(positive.flatten(1), negative.flatten(1), entries)
                greatest = self.boxes[parent].greatest.reshape(-1)
                lost = float(torch.where(greatest.isfinite(), greatest, 0.0).sum()) * planes.overlap * 2.0 * TINY
                error = error + ((planes.overlap + 2.0) * UNIT * weigh(sizes, greatest) + lost) * UP
                hand(parent, own.reshape(count, *self.network.nodes[parent].shape))
            else:
                box = self.boxes[k]
                spend(coefficients.clamp(min=0.0), box.high, 1.0)
                spend(coefficients.clamp(max=0.0), box.low, -1.0)
        shape = self.network.nodes[0].shape
        return pending.get(0, torch.zeros(count, *shape, dtype=torch.float64)), constant, error

    def reach(self, k: int, place: int, linear: LinearMap, parent: int) -> tuple[Tensor, float]:
        """γ|W| max|z| of a map, by which the rounding of its transpose counts, and what underflow may add."""
        if (k, place) not in self._reaches:
            greatest = self.boxes[parent].greatest
            g = linear.rounding + 2.0
            gamma = g * UNIT / (1.0 - g * UNIT) if g < 2.0**40 else math.inf
            if linear.rounding == 0.0:
                self._reaches[k, place] = torch.zeros(linear.out_shape, dtype=torch.float64), 0.0
                return self._reaches[k, place]
            finite = torch.where(greatest.isfinite(), greatest, 0.0)
            sizes = linear.absolute().apply(finite[None])[0].detach()
            beyond = touched(linear, ~greatest.isfinite()[None])[0].detach()
            sizes = torch.where(beyond, math.inf, sizes * gamma * (1.0 + 4.0 * gamma) * UP)
            numbers, factor = 0.0, 1.0
            for leaf in linear.leaves():
                numbers += leaf.in_size + leaf.out_size
                for constant in getattr(leaf, "constants", ()):
                    factor *= max(1.0, float(constant.abs().max()) if constant.numel() else 1.0)
                factor *= max(1.0, abs(getattr(leaf, "scale", 1.0)))
            floor = TINY * factor * numbers**2 * max(1.0, float(finite.max()) if finite.numel() else 1.0)
            self._reaches[k, place] = torch.where(sizes.isnan(), math.inf, sizes), floor
        return self._reaches[k, place]

    def support(self, rows: Rows, constant: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Add the greatest value of rows·x on the domain: over its box, its ball or what both share, the least."""
        n = rows.matrix.shape[1]
        gamma = (n + 4.0) * UNIT * UP
        best, slack = rows.over_box(self.boxes[0])
        for ball in () if self.domain is None else self.domain.balls():
            centre = ball.center.detach().to("cpu", torch.float64).reshape(-1)
            reach = rows.lengths(DUAL[float(ball.p)]) * ball.radius
            found = [(reach, reach)]
            if rows.matrix.numel() <= MOST_CUT and (cut := CutBall(ball, self.boxes[0])).cuts:
                found.append(cut.greatest(rows.matrix))
            middle, size = rows.matrix @ centre, rows.sizes @ centre.abs()
            for reach, reach_size in found:
                own = middle + reach
                own_slack = (size + reach_size) * 2.0 * gamma + (n + 1.0) * TINY * (1.0 + ball.radius)
                better = own + own_slack < best + slack
                better |= (best + slack).isnan()
                best, slack = torch.where(better, own, best), torch.where(better, own_slack, slack)
        total = constant + best
        return total, error + slack + UNIT * total.abs()
