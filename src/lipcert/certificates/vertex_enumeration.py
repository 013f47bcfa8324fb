"""Exact constant of a pair of layers: every vertex of the box of slopes is looked at, rounding included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.norms.written_map import EnclosedMatrix, written
from lipcert.errors import CertificateError, MethodError, NotProved, NumericsError, UnsupportedNormError
from lipcert.guarantee import BreakdownRow, Guarantee
from lipcert.increments import EntryCell, Linear
from lipcert.network.linear import LinearMap, size
from lipcert.numerics.magnitude import Magnitude
from lipcert.numerics.psd import square_sum_up
from lipcert.numerics.rounding import add_up, gamma, mul_up, sqrt_up
from lipcert.numerics.spectral import sigma_max_upper

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem


#: More neurons than this are never enumerated.
MAX_NEURONS = 26

#: Entries of one batch of matrices.
_BATCH = 1 << 18


@certificate("vertex_enumeration")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """max over σ in {α, β}^n of ‖P diag(σ) Q‖ for x ↦ P φ(Q x) with n neurons between; l2 → l2.

    ``witness.settings["value"]`` claims the maximum; the check proves it, or refuses.

    Why this is an upper bound: ‖P diag(σ) Q‖ is convex in σ, so its maximum over [α, β]^n is at a vertex, and every
    increment of φ is diag(σ) with σ in [α, β]^n. In units where every M(σ) has Frobenius norm at most 1, the matrices
    M(σ) = Σ_j σ_j p_j q_jᵀ are summed, and their Gram matrices G multiplied, with errors below ε (``Pair.slack``).
    For each vertex one of these is seen: ‖G‖_F ≤ t, ‖G²‖_F ≤ t², ‖G⁴‖_F ≤ t⁴ (rounding included: ``survivors``), or
    a Cholesky factor L with ‖t I − G − LLᵀ‖_F ≤ r computed, so t I − G ⪰ −r I; hence ‖M‖² ≤ t + r + ε.
    """
    if problem.norm != (2.0, 2.0):
        raise UnsupportedNormError("vertices are enumerated for l2 → l2 only.")
    claim = witness.settings.get("value")
    if isinstance(claim, bool) or not isinstance(claim, (int, float)) or not 0.0 <= claim < math.inf:
        raise CertificateError(f"the certificate's value must be a finite number ≥ 0, not {claim!r}.")
    pair = Pair.of(problem)
    if pair.count > MAX_NEURONS:
        raise CertificateError(f"{pair.count} neurons are too many to enumerate (at most {MAX_NEURONS}).")
    square = pair.proved_square(pair.to_units(float(claim)))
    value = pair.from_units(sqrt_up(square))
    remark = f"2^{pair.count} vertices"
    guarantee: Guarantee = "rigorous" if pair.known else "numerical"
    return Proof(
        value, guarantee, (BreakdownRow("vertices", "enumeration", float(value), float(value), guarantee, remark),)
    )


def layers(problem: Problem) -> tuple[LinearMap, EntryCell, LinearMap]:
    """Q, φ and P of a network x ↦ P φ(Q x).

    Raises:
        MethodError: the network is not of that form.
    """
    relations = problem.increments.relations
    if len(relations) == 4:
        _, first, middle, last = relations
        if isinstance(first, Linear) and isinstance(middle, EntryCell) and isinstance(last, Linear):
            (q,), (p,) = first.maps, last.maps
            return q, middle, p
    raise MethodError(
        "vertices are enumerated between two linear layers with one elementwise activation only; "
        "use pairs=CertifiedPairs() where a pool stands between layers."
    )


def free_neurons(problem: Problem) -> int:
    """How many neurons of x ↦ P φ(Q x) have to be enumerated."""
    q, middle, p = layers(problem)
    low, high = middle.lower.reshape(-1), middle.upper.reshape(-1)
    if int((low < high).sum()) > 4096 or size(middle.shape) * max(q.in_size, p.out_size) > 1 << 27:
        return int((low < high).sum())
    return Pair.of(problem).count


@dataclass(eq=False)
class Pair:
    """M(σ) = P diag(σ) Q in units where ‖M(σ)‖_F ≤ 1, short sides first.

    Attributes:
        p, q: (m, n) and (n, k) float matrices, at most n rows and columns where that is shorter.
        low, high: (n,) slopes; neurons with low = high, or without weights on a side, are not enumerated.
        exponent: the units are 2^exponent.
        outer: bound of the norms of what an orthogonal reduction left outside.
        error: what rounding of the maps and the reduction may add to a norm, in units.
        known: whether the rounding of the maps is known.
    """

    p: Tensor
    q: Tensor
    low: Tensor
    high: Tensor
    exponent: int
    outer: float
    error: float
    known: bool

    @classmethod
    def of(cls, problem: Problem) -> Pair:
        """Read a network x ↦ P φ(Q x)."""
        q_map, middle, p_map = layers(problem)
        low, high = middle.lower.reshape(-1).clone(), middle.upper.reshape(-1).clone()
        q_written, p_written = written(q_map, 2.0), written(p_map, 2.0)
        q, p = q_written.block, p_written.block
        greatest = torch.maximum(low.abs(), high.abs())
        reach = float(greatest.max()) if greatest.numel() else 0.0
        idle = ~(q.matrix.any(dim=1) & p.matrix.any(dim=0))
        low, high, greatest = low[~idle], high[~idle], greatest[~idle]
        q_matrix, q_outer, q_error = _reduced(q.matrix[~idle].T)
        p_matrix, p_outer, p_error = _reduced(p.matrix[:, ~idle])
        q_matrix = q_matrix.T.contiguous()
        # ‖P'DQ' − PDQ‖ with ‖P' − outer·P‖ ≤ error and so on, every factor bounded in the Frobenius norm
        p_wrong, q_wrong = add_up(p.error, p_error), add_up(q.error, q_error)
        p_size, q_size = _frobenius(p), _frobenius(q)
        error = mul_up(
            reach, add_up(mul_up(p_wrong, add_up(q_size, q_wrong)), mul_up(add_up(p_size, p_wrong), q_wrong))
        )
        absolute = (p_matrix.abs() * greatest) @ q_matrix.abs()
        bound = float(absolute.norm()) if absolute.numel() else 0.0
        shift = -math.frexp(bound * 1.0001)[1] if 0.0 < bound < math.inf else 0
        if not bound < math.inf or abs(shift) > 900:
            raise NumericsError("a pair of layers overflows or vanishes in float64; rescale the weights.")
        return cls(
            p_matrix * 2.0**shift, q_matrix, low, high, p.exponent + q.exponent - shift, mul_up(p_outer, q_outer),
            mul_up(error, 2.0**shift), q_written.known and p_written.known,
        )  # fmt: skip

    @property
    def free(self) -> Tensor:
        """Neurons that are enumerated."""
        return torch.nonzero(self.low < self.high).reshape(-1)

    @property
    def count(self) -> int:
        """Number of neurons that are enumerated."""
        return int(self.free.numel())

    @property
    def slack(self) -> float:
        """ε: 16 γ_k with k above the number of roundings in any entry of M, G, G², G⁴ or in their norms."""
        (m, n), k = self.p.shape, self.q.shape[1]
        short = min(m, k)
        return mul_up(16.0, gamma(float(n + m + k + short * short + 64)))

    def to_units(self, value: float) -> float:
        """A claim in units of M, a little widened so that the proof has room."""
        return math.ldexp(value, -self.exponent) * (1.0 + 1e-11) + 4.0 * self.slack

    def from_units(self, value: float) -> Magnitude:
        """A bound of every ‖M(σ)‖ as one of the pair: rounding of M, the reduction and the maps included."""
        inside = mul_up(add_up(value, self.slack), self.outer)
        return Magnitude.of(add_up(inside, self.error)).times_power(self.exponent)

    def grams(self) -> Iterator[Tensor]:
        """Batches of M Mᵀ (or MᵀM, whichever is smaller) over all vertices: (b, d, d).

        With M = L + H, L of some neurons and H of the others: LLᵀ is made once, LHᵀ is one product for all L.
        If high = −low throughout, M(−σ) = −M(σ), and half of the vertices is enough.
        """
        p, q = (self.p, self.q) if self.p.shape[0] <= self.q.shape[1] else (self.q.T, self.p.T)
        m, k = p.shape[0], q.shape[1]
        if m * k == 0:
            return
        free = self.free
        pieces = (p.T[:, :, None] * q[:, None, :]).reshape(p.shape[1], m * k)
        fixed = (self.low == self.high).nonzero().reshape(-1)
        start = (self.low[fixed, None] * pieces[fixed]).sum(dim=0)
        if free.numel() and not fixed.numel() and bool((self.low == -self.high).all()):
            start, free = start + self.high[free[-1]] * pieces[free[-1]], free[:-1]
        bits = min(free.numel(), max(0, int(math.log2(max(1, _BATCH // (m * k))))))
        inner, outer = free[:bits], free[bits:]
        table = (self._slopes(inner) @ pieces[inner]).reshape(-1, m, k)
        own = table @ table.mT
        flat = table.reshape(-1, k)
        for number in range(1 << outer.numel()):
            offset = (start + (self._slopes(outer, number) @ pieces[outer]).reshape(-1)).reshape(m, k)
            cross = (flat @ offset.T).reshape(-1, m, m)
            yield (own + offset @ offset.T).add_(cross).add_(cross.mT)

    def _slopes(self, neurons: Tensor, number: int | None = None) -> Tensor:
        """Slopes of the given neurons at one vertex or at all of them, one row each."""
        numbers = torch.arange(1 << neurons.numel()) if number is None else torch.tensor([number])
        on = (numbers[:, None] >> torch.arange(neurons.numel())) & 1
        return torch.where(on.bool(), self.high[neurons], self.low[neurons])

    def survivors(self, gram: Tensor, square: float) -> Tensor:
        """Those G whose norm is not seen to be at most ``square`` (1 + 1e-11) by Frobenius norms of G, G² and G⁴.

        ‖MMᵀ‖ ≤ ‖G‖ + ε, ‖G‖² ≤ ‖fl(G²)‖ + ε‖G‖_F², and so on; ε covers all roundings but the few of the last lines.
        """
        epsilon = self.slack
        goal = square * (1.0 + 1e-12)
        one = gram.square().sum(dim=(1, 2)).sqrt()
        left = ~(one * (1.0 + epsilon) + epsilon <= goal)  # NaN stays
        gram, one = gram[left], one[left]
        if not len(gram):
            return gram
        second = gram @ gram
        two = second.square().sum(dim=(1, 2)).sqrt()
        left = ~((two * (1.0 + epsilon) + epsilon * one.square()).sqrt() + epsilon <= goal)
        gram, one, two, second = gram[left], one[left], two[left], second[left]
        if not len(gram):
            return gram
        four = (second @ second).square().sum(dim=(1, 2)).sqrt()
        inner = (four * (1.0 + epsilon) + epsilon * two.square()).sqrt()
        return gram[~((inner + epsilon * one.square()).sqrt() + epsilon <= goal)]

    def proved_square(self, goal: float) -> float:
        """A bound of every ‖M(σ)‖², about goal².

        Raises:
            CertificateError: some vertex lies above the goal.
        """
        square, worst = goal * goal, 0.0
        for batch in self.grams():
            gram = self.survivors(batch, square)
            if len(gram):
                worst = max(worst, _cholesky_residual(gram, square))
        return max(mul_up(square, 1.0 + 1e-11), add_up(square, worst, self.slack))


def _cholesky_residual(gram: Tensor, square: float) -> float:
    """r with square·I − G ⪰ −r I for every G of a batch."""
    n = gram.shape[1]
    shifted = square * torch.eye(n, dtype=torch.float64) - gram
    shifted = (shifted + shifted.mT) / 2
    factor, info = torch.linalg.cholesky_ex(shifted)
    if bool(info.any()):
        raise NotProved("the claimed value is not the maximum: some vertex lies above it.")
    residual = shifted - factor @ factor.mT
    length = float(residual.square().sum(dim=(1, 2)).sqrt().max())
    spread = float((factor.square().sum(dim=(1, 2)) + shifted.square().sum(dim=(1, 2)).sqrt()).max())
    if not math.isfinite(length) or not math.isfinite(spread):
        raise NotProved("a vertex of the pair is not a finite matrix.")
    rounding = mul_up(8.0 * gamma(float(n * n + 2 * n + 16)), add_up(spread, square, 1.0))
    return add_up(mul_up(length, 1.0 + 1e-9), rounding)


def _frobenius(block: EnclosedMatrix) -> float:
    return sqrt_up(square_sum_up(block.matrix)) if block.matrix.numel() else 0.0


def _reduced(matrix: Tensor) -> tuple[Tensor, float, float]:
    """(R, s, e): the given (m, n) matrix is Q R + E with ‖Q‖ ≤ s, ‖E‖ ≤ e, and R has at most n rows."""
    m, n = matrix.shape
    if m <= n or n == 0:
        return matrix.contiguous(), 1.0, 0.0
    q, r = torch.linalg.qr(matrix)
    missing = matrix - q @ r
    rounding = mul_up(gamma(float(n + 4)), sqrt_up(square_sum_up(q)), sqrt_up(square_sum_up(r)))
    rounding = add_up(rounding, mul_up(gamma(4.0), sqrt_up(square_sum_up(matrix))), 1e-290)
    return r.contiguous(), sigma_max_upper(q), add_up(sigma_max_upper(missing), rounding)
