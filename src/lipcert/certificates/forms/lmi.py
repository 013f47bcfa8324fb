"""One segment of a quadratic form as a statement about stored matrices, and its proof, rounding included."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lipcert.certificates.forms.block_rows import Block, Tracked, congruence, transposed
from lipcert.certificates.forms.elimination import Segment, SegmentMatrices
from lipcert.errors import NotProved
from lipcert.increments import Cell
from lipcert.numerics.psd import is_positive_definite_scaled
from lipcert.numerics.rounding import UNDERFLOW, gamma
from lipcert.numerics.spectral import estimate_lambda_max

#: Least ρ worth proving; a network whose ρ is below counts as having this one.
FLOOR = 1e-250

#: Where the terms of a curvature cancel, as those of b in b + relu(a − b) with the ReLU fixed at slope 1, what is left
#: is their rounding. CLEAR is the least curvature, relative to its terms, that a form or a multiplier is given, and
#: SHARE the least share of them by which a proof scales an entry.
CLEAR, SHARE = 1e-9, 1e-4

#: Factor by which the room of a form grows from attempt to attempt; a search, which does not prove, takes the second.
CAUTION = 16.0


def multiplier_pair(cell: Cell, multiplier: Tensor, v_size: int) -> tuple[Tensor, Tensor]:
    """λ on w and λ on v as vectors; a neuron with d = 0 has no w and needs no multiplier."""
    if cell.block:
        own = multiplier.to(torch.float64)
        on_w, on_v = (own.repeat_interleave(count // cell.groups) for count in (cell.size, v_size))
        return on_w, on_v
    idle = cell.d.reshape(-1) == 0
    return torch.where(idle, torch.ones_like(multiplier), multiplier), torch.where(
        idle, torch.zeros_like(multiplier), multiplier
    )


def least_lift(side: int) -> float:
    """Relative lift of a form's diagonal that covers the rounding of a proof of this size.

    Not in proportion to the margin p: a form may have an eigenvalue of order 1/p, and a lift of order p of its
    diagonal would then cost a constant.
    """
    return 2e-13 * side


def magnitudes(v: Tracked, form: Block, places: list[slice], side: int) -> Tensor:
    """About how large the terms are that meet on the diagonal of VᵀM̂V: (Σ_r |V_ri| √M̂_rr)²."""
    root = (form if form.dim() == 1 else form.diagonal()).clamp(min=0.0).sqrt()
    result = torch.zeros(side, dtype=torch.float64)
    for i, part in v.absolute.items():
        result[places[i]] = _apply(transposed(part), root).square()
    return result


def room(diagonal: Tensor, magnitude: Tensor, lift: Tensor | float, caution: float) -> Tensor:
    """What is added to the diagonal of a computed form so that a proof has room: (..., n) like both arguments.

    ``lift`` in proportion; what keeps it clear of the rounding of its terms; and for entries without any curvature a
    little, next to the least that has some.
    """
    clear = torch.maximum(diagonal, CLEAR * caution * magnitude).clamp(min=0.0)
    if not clear.shape[-1]:
        return clear
    least = torch.where(clear > 0, clear, torch.inf).amin(dim=-1, keepdim=True)
    floor = torch.where(torch.isfinite(least), 1e-12 * caution * least, 0.0).clamp(min=FLOOR)
    return (clear - diagonal) + lift * clear + floor


class Radius:
    """An entrywise error bound E of the forms VᵀM̂V of a segment, kept as code: only products E d are ever needed.

    With A the matrix that dominates V, f its floor (both of ``Tracked``) and Ā = A + f, a computed VᵀM̂V differs from
    the exact one by at most γ Āᵀ|M̂|Ā + Āᵀ|M̂| f + f |M̂|Ā in relative and inherited errors, and the product itself
    loses to underflow at most μ in each entry of M̂V, which Āᵀ carries on, and μ in each entry of the result. μ, four
    (rows + 1) times the least normal number, covers the products and sums of one entry, also with flushed subnormals.
    """

    def __init__(self, relation: SegmentMatrices) -> None:
        self.places, self.side = relation.places, relation.side
        self.terms: list[tuple[Tracked, Block, float]] = []
        self.diagonal = torch.zeros(self.side, dtype=torch.float64)

    def include(self, v: Tracked, form: Block, terms: float = 0.0) -> None:
        """Add the error of ``congruence(v.parts, form)`` against the exact VᵀM̂V."""
        factor = 4.0 * gamma(2.0 * v.rounding + 2.0 * v.rows + terms + 8.0)
        self.terms.append((v, form.abs(), factor))

    def times(self, d: Tensor) -> Tensor:
        """An upper bound of E d for d ≥ 0; the factor 1 + 1e-9 and ``lost`` are more than these sums may lose."""
        total = self.diagonal * d
        length = float(d.sum())
        for v, form, factor in self.terms:
            lost = 4.0 * (max(v.rows, self.side) + 1) * UNDERFLOW
            image = torch.full((v.rows,), v.floor * length + lost, dtype=torch.float64)
            for i, part in v.absolute.items():
                image = image + _apply(part, d[self.places[i]])
            reach = _apply(form, image) + lost
            inherited = _apply(form, torch.full_like(image, v.floor * length))
            inner = factor * reach + inherited + lost * (1.0 + length)
            everywhere = v.floor * (inner.sum() + reach.sum()) + lost * (1.0 + length)
            for i, part in v.absolute.items():
                total[self.places[i]] += _apply(transposed(part), inner) + everywhere
        return (total + UNDERFLOW * self.side) * (1.0 + 1e-9)


def _apply(block: Block, vector: Tensor) -> Tensor:
    return block * vector if block.dim() == 1 else block @ vector


class Statement:
    """One segment: blkdiag(M_start, Λ) − V_stopᵀ M̂ V_stop − Σ V_cellᵀ Λ V_cell ⪰ 0, with M_start still open."""

    def __init__(self, matrix: Tensor, radius: Radius, entry: int, magnitude: Tensor) -> None:
        self.matrix, self.radius, self.entry, self.magnitude = matrix, radius, entry, magnitude

    @classmethod
    def build(
        cls,
        segment: Segment,
        relation: SegmentMatrices,
        form: Block,
        multipliers: Mapping[int, Tensor],
    ) -> Statement:
        """blkdiag(0, Λ) − V_stopᵀ M̂ V_stop − Σ V_cellᵀ Λ V_cell, with an entrywise error bound."""
        radius = Radius(relation)
        matrix = congruence(relation.output.parts, form, relation.places, relation.side).neg_()
        magnitude = magnitudes(relation.output, form, relation.places, relation.side)
        radius.include(relation.output, form, 2.0 * len(segment.cells))
        on_w = [torch.zeros(relation.entry, dtype=torch.float64)]
        for cell, v in zip(segment.cells, relation.preactivations, strict=True):
            lam_w, lam_v = multiplier_pair(cell, multipliers[cell.node], v.rows)
            on_w.append(lam_w)
            matrix -= congruence(v.parts, lam_v, relation.places, relation.side)
            magnitude += magnitudes(v, lam_v, relation.places, relation.side)
            radius.include(v, lam_v, 2.0 * len(segment.cells))
        diagonal = torch.cat(on_w)
        matrix.diagonal().add_(diagonal)
        radius.diagonal = diagonal * (4.0 * gamma(2.0 * len(segment.cells) + 4.0))
        return cls(matrix, radius, relation.entry, magnitude)

    def schur(self, shift: float = 0.0) -> Tensor:
        """The float matrix that M_start has to exceed: B C⁻¹ Bᵀ − A for the blocks of the statement.

        With ``shift``, C has its diagonal lowered by this relative amount. That leaves the whole statement a margin on
        the neurons, at a cost only where C is nearly singular; lifting the start by as much would not do: there the
        start's own share of the null vectors is as small as C's least eigenvalue.
        """
        n = self.entry
        a, b, c = self.matrix[:n, :n], self.matrix[:n, n:], self.matrix[n:, n:]
        factor, info = torch.linalg.cholesky_ex(c - torch.diag(shift * c.diagonal()))
        if int(info):
            raise NotProved("the multipliers do not make the form positive on a layer's neurons.")
        half = torch.linalg.solve_triangular(factor, b.T, upper=False)
        result = half.T @ half - a
        return (result + result.T) / 2

    def proves(self, start: Tensor) -> bool:
        """Whether blkdiag(start, ·) makes the statement true, rounding included."""
        n, radius = self.entry, self.radius
        matrix = self.matrix.clone()
        matrix[:n, :n] += start
        added = (start.abs() + matrix[:n, :n].abs()) * gamma(4.0)

        def errors(d: Tensor) -> Tensor:
            total = radius.times(d)
            total[:n] += (added @ d[:n]) * (1.0 + 1e-9) + UNDERFLOW * (n + d[:n].sum())
            return total

        # The block at the start is a small difference; errors are those of its terms, so these set the scale.
        scale = torch.cat([start.diagonal(), matrix.diagonal()[n:]])
        scale = torch.maximum(scale, SHARE * self.magnitude)
        return is_positive_definite_scaled(matrix, errors, scale) or is_positive_definite_scaled(matrix, errors)

    def lifted(self, slack: float) -> Tensor:
        """A stored M̂_start that is proved to work: the Schur complement with its diagonal lifted a little."""
        least = least_lift(self.matrix.shape[0])
        for attempt in range(6):
            shift = least * CAUTION**attempt
            schur, lift = self.schur(shift), max(slack, shift)
            added = room(schur.diagonal(), self.magnitude[: self.entry], lift, CAUTION**attempt)
            start = schur + torch.diag(added)
            if self.proves(start):
                return start
        raise NotProved("a segment's form is not provably non-negative at these multipliers.")

    def least_rho(self, start: Tensor, claim: float) -> float:
        """The claim if it can be proved, else the least ρ that can, with M_start = ρ diag(start)."""
        weights = torch.diag(start)
        if math.isfinite(claim) and self.proves(claim * weights):
            return claim
        rho = greatest_ratio(self.schur(least_lift(self.matrix.shape[0])), start)
        lift = 1e-10
        while lift < 1e-2:
            candidate = rho * (1.0 + lift) + FLOOR
            if self.proves(candidate * weights):
                return candidate
            lift *= 10.0
        raise NotProved("no ρ near the computed one is provable at these multipliers.")


def greatest_eigenvalue(form: Tensor) -> float:
    """λ_max in plain floating point.

    Raises:
        NotProved: the form overflowed.
    """
    if not bool(torch.isfinite(form).all()):
        raise NotProved("the form overflows at these multipliers.")
    scale = float(form.abs().max()) if form.numel() else 0.0
    if scale == 0.0:
        return 0.0
    if form.shape[0] <= 300:
        return max(float(torch.linalg.eigvalsh(form)[-1]), 0.0)
    return scale * estimate_lambda_max(form / scale)


def greatest_ratio(form: Tensor, weights: Tensor) -> float:
    """The largest eigenvalue of diag(weights)^{-1/2} form diag(weights)^{-1/2}, in floating point."""
    scale = weights.rsqrt()
    return greatest_eigenvalue(form * scale[:, None] * scale)
