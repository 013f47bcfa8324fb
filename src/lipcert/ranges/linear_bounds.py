"""Linear bounds (CROWN): nodes bounded by linear functions of the input, going back through lines around activations.

Source: Zhang, Weng, Chen, Hsieh & Daniel 2018, *Efficient neural network robustness certification with general
activation functions*. Here every rounding is paid for: going back through v = Wz + b the computed coefficients differ
from the exact ones by at most γ|Λ||W|, which costs γ|Λ||W| max|z|, and max|z| is known from z's own box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.domain import Domain
from lipcert.network.graph import ActivationNode, AffineNode, Network, OpenNode
from lipcert.network.images import touched
from lipcert.network.linear import LinearMap, size
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.slopes import slopes
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import TINY, UNIT, UP, lengths
from lipcert.ranges.functions import Samples, lines_off

#: Entries of the coefficients of a chunk of rows, over all nodes.
CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class Lines:
    """lower_slope·z + lower_offset ≤ φ(z) ≤ upper_slope·z + upper_offset on the parent's box, entry by entry."""

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor

    @classmethod
    def around(cls, function: Nonlinearity, box: Interval, own: Interval) -> Lines:
        """For each side the best, at the middle of the box, of a few slopes: chord, middle, ends; else constants.

        Any slope is right: the offset is the outward-rounded extreme of φ(z) − slope·z.
        """
        finite = box.finite
        low, high = torch.where(finite, box.low, 0.0), torch.where(finite, box.high, 0.0)
        middle = 0.5 * low + 0.5 * high
        ends = [function_mid(function, end) for end in (low, high)]
        chord = (ends[1] - ends[0]) / (high - low)
        candidates = [chord]
        for point in (middle, low, high):
            alpha, beta = slopes(function, point, point)
            candidates.append(0.5 * alpha + 0.5 * beta)
        best: list[Tensor] | None = None
        samples = Samples.of(function, low, high)
        for slope in candidates:
            slope = torch.where(slope.isfinite(), slope, 0.0)
            least, greatest = lines_off(samples, slope)
            new = [slope, least, slope, greatest]
            if best is None:
                best = new
                continue
            above = slope * middle + least > best[0] * middle + best[1]
            below = slope * middle + greatest < best[2] * middle + best[3]
            best = [torch.where(w, n, b) for w, n, b in zip((above, above, below, below), new, best, strict=True)]
        assert best is not None
        known = finite & best[1].isfinite() & best[3].isfinite()
        zero = torch.zeros_like(low)
        return cls(
            torch.where(known, best[0], zero), torch.where(known, best[1], own.low),
            torch.where(known, best[2], zero), torch.where(known, best[3], own.high),
        )  # fmt: skip


def function_mid(function: Nonlinearity, x: Tensor) -> Tensor:
    """φ at doubles in plain floating point: for proposals of slopes."""
    result = function.value(x)
    return torch.as_tensor(result, dtype=torch.float64).expand(x.shape)


#: Position, rows (R, *shape) and, unless it is 0, the shift (*shape) of one term Σ rows[r]·(z − shift) of a sum.
Term = tuple[int, Tensor, Tensor | None]


class LinearBounds:
    """Upper bounds of linear functions of nodes, by going back to the input.

    ``boxes`` and ``lines`` are those of the nodes so far; they may grow between calls. Lines may be other ones for each
    row, with a leading axis.
    """

    def __init__(self, network: Network, domain: Domain, boxes: Sequence[Interval], lines: Mapping[int, Lines]) -> None:
        self.network, self.domain, self.boxes, self.lines = network, domain, boxes, lines
        self._entries = float(sum(size(node.shape) for node in network.nodes))
        self._reaches: dict[tuple[int, int], tuple[Tensor, float]] = {}

    def along(self, lines: Mapping[int, Lines]) -> LinearBounds:
        """With other lines."""
        other = LinearBounds(self.network, self.domain, self.boxes, lines)
        other._reaches = self._reaches
        return other

    def box(self, position: int, entries: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high) of some entries (flat indices) of a node."""
        shape = self.network.nodes[position].shape
        n = size(shape)
        width = max(size(node.shape) for node in self.network.nodes[: position + 1])
        chunk = max(1, CHUNK // max(1, 2 * width))
        lows, highs = [], []
        for part in entries.split(chunk):
            rows = torch.zeros(2 * len(part), n, dtype=torch.float64)
            rows[torch.arange(len(part)), part] = 1.0
            rows[torch.arange(len(part), 2 * len(part)), part] = -1.0
            top = self.upper(position, rows.reshape(-1, *shape))
            highs.append(top[: len(part)])
            lows.append(-top[len(part) :])
        return torch.cat(lows), torch.cat(highs)

    def upper(self, position: int, rows: Tensor) -> Tensor:
        """Upper bounds of Σ rows[r]·z over the domain, z being the node's values: (R, *shape) → (R,)."""
        return self.upper_of_sum([(position, rows, None)])

    def upper_of_sum(self, terms: Sequence[Term]) -> Tensor:
        """Upper bounds of Σ_k rows_k[r]·(z_k − shift_k) over the domain, (R,); see ``Term``."""
        coefficients, constant, error = self.back(terms)
        constant, error = self._support(coefficients, constant, error)
        total = constant + error * (1.0 + 2.0**-40 + 8.0 * UNIT * self._entries)  # sums of sizes round, too
        total = total + 4.0 * UNIT * total.abs() + TINY
        return torch.where(total.isnan(), math.inf, total)

    def back(self, terms: Sequence[Term]) -> tuple[Tensor, Tensor, Tensor]:
        """(c, b, e) with Σ_k rows_k[r]·(z_k − shift_k) ≤ c[r]·x + b[r] + e[r] on the domain; e is not rounded up."""
        count = len(terms[0][1])
        pending: dict[int, Tensor] = {}
        constant = torch.zeros(count, dtype=torch.float64)
        error = torch.zeros(count, dtype=torch.float64)

        def weigh(coefficients: Tensor, weights: Tensor) -> Tensor:
            """Σ |coefficients|·weights for weights ≥ 0, 0·∞ being 0; not rounded up."""
            sizes, w = coefficients.abs().reshape(count, -1), weights.reshape(-1)
            if bool(w.isfinite().all()):
                return sizes @ w
            return torch.where(sizes == 0, 0.0, sizes * w).sum(dim=1)

        def spend(coefficients: Tensor, offsets: Tensor) -> None:
            """Add Σ coefficients·offsets, and what its rounding may lose."""
            nonlocal constant, error
            flat = coefficients.flatten(1)
            n = flat.shape[1]
            o = offsets.reshape(count if offsets.dim() == coefficients.dim() else 1, n)  # one row for all, or for each
            if not bool(o.any()):
                return
            if len(o) == 1 and bool(o.isfinite().all()):
                total, sizes = flat @ o[0], flat.abs() @ o[0].abs()
            else:
                product = torch.where(flat == 0, 0.0, flat * o)
                total, sizes = product.sum(dim=1), product.abs().sum(dim=1)
            constant = constant + total
            error = error + ((n + 2.0) * UNIT * sizes * UP + UNIT * constant.abs() + (n + 1.0) * TINY)

        def hand(parent: int, coefficients: Tensor) -> None:
            nonlocal error
            if parent in pending:
                coefficients = pending[parent] + coefficients
                error = error + 2.0 * UNIT * weigh(coefficients, self.boxes[parent].greatest)
            pending[parent] = coefficients

        for position, rows, shift in terms:
            hand(position, rows)
            if shift is not None:
                spend(rows, -shift)
        for k in range(max(position for position, _, _ in terms), 0, -1):
            coefficients = pending.pop(k, None)
            if coefficients is None:
                continue
            node = self.network.nodes[k]
            if isinstance(node, AffineNode):
                offset = node.known_offset
                if offset is not None:
                    spend(coefficients, offset.mid)
                    error = error + weigh(coefficients, offset.rad) * UP
                for place, (parent, linear) in enumerate(zip(node.parents, node.maps, strict=True)):
                    reach, floor = self.reach(k, place, linear, parent)
                    sizes = coefficients.abs().flatten(1)
                    largest = sizes.amax(dim=1) if sizes.shape[1] else torch.zeros_like(error)
                    error = error + (weigh(coefficients, reach) + floor * (1.0 + largest)) * UP
                    hand(parent, linear.transpose(coefficients).detach())
            elif isinstance(node, (ActivationNode, OpenNode)) and k in self.lines:
                lines, parent = self.lines[k], node.parents[0]  # a product with itself names it twice
                shape = self.network.nodes[parent].shape
                positive, negative = coefficients.clamp(min=0.0), coefficients.clamp(max=0.0)
                spend(positive, lines.upper_offset)
                spend(negative, lines.lower_offset)
                back = positive * lines.upper_slope + negative * lines.lower_slope
                greatest = self.boxes[parent].greatest.expand(shape)
                lost = (
                    float(torch.where(greatest.isfinite(), greatest, 0.0).sum()) * 2.0 * TINY
                )  # slopes are 0 elsewhere
                error = error + (2.0 * UNIT * weigh(back, greatest) + lost) * UP
                hand(parent, back.reshape(count, *shape))
            else:
                box = self.boxes[k]
                spend(coefficients.clamp(min=0.0), box.high)
                spend(coefficients.clamp(max=0.0), box.low)
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

    def _support(self, rows: Tensor, constant: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Add the greatest value of rows·x on the domain: over its box or its ball, whichever is less."""
        flat = rows.reshape(len(rows), -1)
        n = flat.shape[1]
        gamma = (n + 4.0) * UNIT * UP
        box = self.boxes[0]
        low, high = box.low.reshape(-1), box.high.reshape(-1)
        parts = torch.where(flat == 0, 0.0, torch.where(flat > 0, flat * high, flat * low))  # no number stays none
        best, slack = parts.sum(dim=1), parts.abs().sum(dim=1) * gamma + n * TINY
        for ball in () if self.domain is None else self.domain.balls():
            centre = ball.center.detach().to("cpu", torch.float64).reshape(-1)
            dual = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[float(ball.p)]
            reach = lengths(flat, dual) * ball.radius
            middle = flat @ centre
            own = middle + reach
            own_slack = ((flat.abs() @ centre.abs()) + reach) * 2.0 * gamma + (n + 1.0) * TINY * (1.0 + ball.radius)
            better = own + own_slack < best + slack
            better |= (best + slack).isnan()
            best, slack = torch.where(better, own, best), torch.where(better, own_slack, slack)
        total = constant + best
        return total, error + slack + UNIT * total.abs()
