"""Regions of the whole space where some neurons lie on a known side of their kink: proofs that there is no point.

Nothing is bounded here, so linear bounds, whose roundings count with the size of x, say nothing. Instead 0 is bounded,
node by node backwards, by linear functions of the nodes before, and at the end by r·x + c. The rounded r is never
exactly 0; what is left of it is taken away by a change of the coefficients in the first layer, which is not computed
but proved to exist.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.network.graph import AffineNode, Network
from lipcert.network.images import image
from lipcert.network.linear import Dense, LinearMap, size
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import TINY, UNIT, UP, Range
from lipcert.numerics.psd import is_positive_definite_scaled
from lipcert.numerics.rounding import add_up, mul_up, sqrt_up
from lipcert.ranges.build import Ranges, applied
from lipcert.ranges.functions import value_at
from lipcert.ranges.regions import Neurons

#: Networks whose maps, and the units that they are written from, have more entries have no regions here.
MOST_ENTRIES = 1 << 24
#: How often a square of the share of its room that a change may take is tried, and by which factor it then grows.
_TRIES, _GROWTH = 4, 1e4


@dataclass(frozen=True, eq=False)
class Sum:
    """Values Σ W_i z_i + b: ``maps`` are enclosures of (size, size of parent i) matrices, ``offset`` of b."""

    parents: tuple[int, ...]
    maps: tuple[Range, ...]
    offset: Range


@dataclass(frozen=True, eq=False)
class Pieces:
    """Values φ_j(v_j), of two lines that meet at a kink wherever ``numbers`` ≥ 0; else only that they lie in a box.

    Attributes:
        parent: where v is.
        numbers: the neuron's number.
        left, right: slopes of the two lines.
        kink, value: where they meet: argument and an enclosure of the value there.
        low, high: the box.
    """

    parent: int
    numbers: Tensor
    left: Tensor
    right: Tensor
    kink: Tensor
    value: Range
    low: Tensor
    high: Tensor

    @property
    def two(self) -> Tensor:
        """Where there are two lines."""
        return self.numbers >= 0


Step = Sum | Pieces


@dataclass(frozen=True, eq=False)
class _First:
    """Neurons of the first layer for one fixing: λ's room to move, and v − kink = rows·x + ends."""

    coefficients: Tensor
    room: Tensor
    rows: Range
    ends: Range


@dataclass(frozen=True, eq=False)
class SpaceRegions(Neurons):
    """The neurons of a network on the whole space, and regions of fixings, as ``Regions`` has them on a domain.

    Attributes:
        steps: the network's nodes, in order, the input first as ``None``.
    """

    steps: tuple[Step | None, ...]

    @classmethod
    def of(cls, network: Network, ranges: Ranges | None, nodes: Collection[int]) -> SpaceRegions | None:
        """Of the neurons of these nodes; None where maps are too large, or have constants without an error bound."""
        entries = sum(
            linear.in_size * (linear.in_size + linear.out_size)
            for node in network.nodes
            if isinstance(node, AffineNode)
            for linear in node.maps
        )
        if entries > MOST_ENTRIES:
            return None
        neurons = Neurons.among(network, ranges, nodes)
        boxes = (ranges or Ranges.of(network, None, None, "none")).boxes
        try:
            steps = tuple(_step(neurons, boxes[k], k) for k in range(len(network.nodes)))
        except NumericsError:
            return None
        return cls(**vars(neurons), steps=steps)

    def empty(self, fixings: Tensor, coefficients: Tensor) -> Tensor:
        """Truth per row: proved is that almost no point x has all fixed neurons of two pieces on their pieces.

        Why this is a proof. Let x be a point of the region. Going backwards from the last node, 0 ≤ Σ_k Λ_k·z_k + c
        is kept, with z_k the values of nodes that are still to be taken apart, beginning with 0 ≤ 0. (1) A sum z =
        Σ W_i z_i + b is put in. (2) A neuron of two pieces, z = φ(v), has Λ z ≤ λ v + Λ φ(κ) − λ κ, κ its kink, for
        every λ with Λ·right ≤ λ unless x has it on the left, and λ ≤ Λ·left unless on the right: on either line
        Λ z − λ v is then greatest at κ. ``coefficients`` says which λ is taken, moved to where this holds. (3) Anything
        else has Λ z at most its greatest value on the node's own box, if that is finite. (4) At the end 0 ≤ r·x + c.
        Λ, r and c are enclosures, with every rounding. Where r is exactly 0 and c < 0 there is no such x.

        If r is not exactly 0: let the neurons of the first layer (v = w·x + b) have λ_j with room s_j > 0, that is
        (2) holds for all numbers within s_j of λ_j. λ_j + δ_j in place of λ_j gives r + Σ δ_j w_j, and c +
        Σ δ_j (b_j − κ_j). Let the rows of V be s_j w_j. If [[t, rᵀ], [r, VᵀV]] is positive definite, rᵀ(VᵀV)⁻¹r < t:
        η = −V(VᵀV)⁻¹r has Vᵀη = −r and ‖η‖² < t. So δ = s∘η has |δ_j| < s_j √t and makes r vanish, exactly; it costs
        at most √t ‖s∘(b − κ)‖. Nobody has to know δ. Where all of V's column is 0, r must be.

        If c ≤ 0 only, and a neuron of the first layer with w ≠ 0 has room left, (2) is strict for it unless v = κ:
        x lies on the hyperplane v = κ, and almost no x does.

        Args:
            fixings: (R, count): 0 where a neuron has slope α, 1 where β, −1 where it is free.
            coefficients: (R, count) λ, of any sign.
        """
        greatest, strict = self.greatest(fixings, coefficients)
        return (greatest < 0) | ((greatest <= 0) & strict)

    def greatest(self, fixings: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """(upper bounds of c, ``inf`` where nothing is proved; whether c = 0 would do), each (R,)."""
        count = len(fixings)
        pending: dict[int, Range] = {}
        constant = _zeros(count)
        possible = torch.ones(count, dtype=torch.bool)
        firsts: list[_First] = []

        def hand(position: int, own: Range) -> None:
            pending[position] = pending[position] + own if position in pending else own

        for k in range(len(self.steps) - 1, 0, -1):
            step = self.steps[k]
            assert step is not None
            if isinstance(step, Sum):
                if k in pending:
                    own = pending.pop(k)
                    constant = constant + _total(own * step.offset.map(lambda t: t[None]))
                    for parent, matrix in zip(step.parents, step.maps, strict=True):
                        hand(parent, _product(own, matrix))
                continue
            own = pending.pop(k, _zeros(count, len(step.numbers)))
            taken, room, fits = _moved(step, own, fixings, coefficients)
            possible &= fits
            at_kink = own * step.value.map(lambda t: t[None])
            kinks = Range.exact(taken) * Range.exact(step.kink)
            boxed = torch.where(step.two, 0.0, _greatest(own, step.low, step.high))
            constant = constant + _total(_where(step.two, at_kink - kinks)) + _total(Range.exact(boxed))
            if bool(step.two.any()):
                hand(step.parent, Range.exact(taken))
                first = self._first(step, taken, room)
                firsts += [first] if first is not None else []
        n = size(self.network.in_shape)
        left = pending.get(0, _zeros(count, n))
        costs, strict = torch.full((count,), math.inf, dtype=torch.float64), torch.zeros(count, dtype=torch.bool)
        for row in torch.nonzero(possible).reshape(-1).tolist():
            costs[row], strict[row] = _absorbed(Range(left.mid[row], left.rad[row]), firsts, row)
        top = (constant + Range.exact(costs)).high
        return torch.where(top.isnan(), math.inf, top), strict

    def _first(self, step: Pieces, taken: Tensor, room: Tensor) -> _First | None:
        """The neurons of a step that read the input through at most one sum, and nothing else."""
        n = size(self.network.in_shape)
        if step.parent == 0:
            rows, offset = Range.exact(torch.eye(n, dtype=torch.float64)), Range.exact(torch.zeros(n).double())
        else:
            before = self.steps[step.parent]
            if not isinstance(before, Sum) or before.parents != (0,):
                return None
            rows, offset = before.maps[0], before.offset
        return _First(taken, room, rows, offset - Range.exact(step.kink))


def _step(neurons: Neurons, box: Interval, k: int) -> Step | None:
    node = neurons.network.nodes[k]
    if isinstance(node, AffineNode):
        offset = node.known_offset or Range.exact(torch.zeros(node.shape, dtype=torch.float64))
        return Sum(node.parents, tuple(_matrix(m) for m in node.maps), offset.map(lambda t: t.reshape(-1)))
    if not node.parents:
        return None
    count = size(node.shape)
    numbers = torch.full((count,), -1)
    low, high = box.low.reshape(-1), box.high.reshape(-1)
    zero = torch.zeros(count, dtype=torch.float64)
    halves, function = neurons.halves.get(k), applied(node)
    if halves is None or function is None:
        return Pieces(node.parents[0], numbers, zero, zero, zero, Range.exact(zero), low, high)
    place, entries = neurons.places[k]
    side, kink = halves.side.reshape(-1), halves.kink.reshape(-1)
    numbers[entries] = torch.arange(place.start, place.stop)
    numbers = torch.where(side == 0, -1, numbers)
    alpha, beta = halves.slope.reshape(2, -1)
    value = value_at(function, halves.kink).map(lambda t: t.expand(node.shape).reshape(-1))
    return Pieces(
        node.parents[0], numbers, torch.where(side > 0, alpha, beta), torch.where(side > 0, beta, alpha), kink,
        Range(torch.where(side == 0, 0.0, value.mid), torch.where(side == 0, 0.0, value.reach)), low, high,
    )  # fmt: skip


def _matrix(linear: LinearMap) -> Range:
    """An enclosure of the (out, in) matrix."""
    if isinstance(linear, Dense) and linear.stored:
        return Range.exact(linear.constants[0])
    units = torch.eye(linear.in_size, dtype=torch.float64).reshape(linear.in_size, *linear.in_shape)
    own = image(linear, Range.exact(units)).plain
    return own.map(lambda t: t.reshape(linear.in_size, linear.out_size).T.detach())


def _moved(step: Pieces, own: Range, fixings: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """λ where (2) of ``SpaceRegions.empty`` holds for every neuron, the room around it, and which rows have such λ."""
    number = step.numbers.clamp(min=0)
    fixed, side = fixings[:, number], torch.where(step.right >= step.left, 1, 0)  # 1: slope β is that of the right line
    may_right = step.two & ((fixed < 0) | (fixed == side))
    may_left = step.two & ((fixed < 0) | (fixed != side))
    least = torch.where(may_right, (own * Range.exact(step.right)).high, -math.inf)
    most = torch.where(may_left, (own * Range.exact(step.left)).low, math.inf)
    wanted = torch.where(step.two, coefficients[:, number], 0.0)
    taken = torch.minimum(torch.maximum(wanted, least), most)
    fits = ((least <= taken) & (taken <= most) & taken.isfinite()) | ~step.two
    taken = torch.where(fits & step.two, taken, 0.0)
    room = torch.minimum(_below(taken - least), _below(most - taken))
    return taken, torch.where(step.two & fits, room, 0.0).clamp(min=0.0), fits.all(dim=1)


def _greatest(own: Range, low: Tensor, high: Tensor) -> Tensor:
    """Upper bounds of Λ z for z in [low, high]; 0 where Λ is exactly 0."""
    ends = torch.stack([a * b for a in (own.low, own.high) for b in (low, high)])
    top = torch.where(ends.isnan(), 0.0, ends).amax(dim=0)  # 0·∞: the other products with ∞ decide
    top = torch.nextafter(top, torch.full_like(top, math.inf)) + TINY
    return torch.where(own.is_zero, 0.0, torch.where(own.mid.isfinite() & own.rad.isfinite(), top, math.inf))


def _absorbed(left: Range, firsts: list[_First], row: int) -> tuple[float, bool]:
    """What it costs at most to make r = ``left`` vanish, and whether a neuron of the first layer has room then."""
    room = torch.cat([first.room[row] for first in firsts] or [left.mid[:0]])
    used = room > 0
    rows = _cat([first.rows for first in firsts], left.mid.new_zeros(0, len(left.mid)))
    moving = used & ((rows.mid != 0) & (rows.rad < rows.mid.abs())).any(dim=1)
    if bool(left.is_zero.all()):
        return 0.0, bool(moving.any())
    used &= torch.cat([first.coefficients[row] for first in firsts] or [left.mid[:0]]) != 0
    inside = room[used].clamp(max=2.0**500)
    step = 0.5 * inside / torch.frexp(inside)[0]  # the power of two below: products with it are exact
    rows = rows.map(lambda t: t[used])
    met = (rows.mid != 0) | (rows.rad != 0)
    touched = met.any(dim=0)
    shifted = Range(step[:, None] * rows.mid, torch.where(met, step[:, None] * rows.rad * UP + TINY, 0.0))
    if not bool((touched | left.is_zero).all()):
        return math.inf, False
    share = _share(shifted.map(lambda t: t[:, touched]), left.map(lambda t: t[touched]))
    ends = _cat([first.ends for first in firsts], room[:0]).mag[used]
    parts = torch.where(ends == 0, 0.0, _above(step * ends) + TINY).nan_to_num(math.inf, math.inf).tolist()
    return mul_up(share, sqrt_up(add_up(*[mul_up(x, x) for x in parts]))), bool(moving.any())


def _share(rows: Range, left: Range) -> float:
    """√t < 1 with [[t, rᵀ], [r, VᵀV]] positive definite for r = ``left`` and V = ``rows``; ``inf`` if none is found."""
    n = len(left.mid)
    gram = _product(rows.map(lambda t: t.mT), rows)
    middle, radius = (gram.mid + gram.mid.mT) / 2, torch.maximum(gram.rad, gram.rad.mT)
    radius = radius + (gram.mid - gram.mid.mT).abs()
    factor, info = torch.linalg.cholesky_ex(middle)
    if int(info) != 0 or not bool(middle.isfinite().all() & radius.isfinite().all() & left.mag.isfinite().all()):
        return math.inf
    right = torch.cat([left.mid[:, None], torch.diag(left.rad)], dim=1)
    solved = torch.linalg.solve_triangular(factor, right, upper=False)
    t = 4.0 * float(solved[:, 0].square().sum()) + 4.0 * n * float(solved[:, 1:].square().sum()) + 1e-40
    for _ in range(_TRIES):
        if not t < 0.25:
            break
        matrix, error = torch.zeros(n + 1, n + 1).double(), torch.zeros(n + 1, n + 1).double()
        matrix[0, 0], matrix[0, 1:], matrix[1:, 0], matrix[1:, 1:] = t, left.mid, left.mid, middle
        error[0, 1:], error[1:, 0], error[1:, 1:] = left.rad, left.rad, radius
        if is_positive_definite_scaled(matrix, error):
            return sqrt_up(t)
        t *= _GROWTH
    return math.inf


def _product(a: Range, b: Range) -> Range:
    """The matrix product: γ_n of rounding, and what underflow may take where a product is not exactly 0."""
    n = a.mid.shape[-1]
    gamma = (n + 2.0) * UNIT * (1.0 + 2.0 * (n + 2.0) * UNIT)
    sizes = b.mid.abs()
    rad = a.mid.abs() @ (b.rad + gamma * sizes) + a.rad @ (sizes + b.rad)
    met = ((a.mid != 0) | (a.rad != 0)).double() @ ((b.mid != 0) | (b.rad != 0)).double() > 0
    mid = a.mid @ b.mid
    rad = torch.where(met, rad * (UP + 4.0 * gamma) + (n + 1.0) * TINY, 0.0)
    return Range(mid, torch.where(mid.isfinite(), rad, math.inf))


def _total(x: Range) -> Range:
    """The sum of every row."""
    return x.sum((1,), False)


def _zeros(*shape: int) -> Range:
    return Range.exact(torch.zeros(*shape, dtype=torch.float64))


def _where(condition: Tensor, x: Range) -> Range:
    return x.map(lambda t: torch.where(condition, t, 0.0))


def _cat(parts: list[Range], nothing: Tensor) -> Range:
    return Range(torch.cat([p.mid for p in parts] or [nothing]), torch.cat([p.rad for p in parts] or [nothing]))


def _below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _above(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))
