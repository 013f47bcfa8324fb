"""The quadratic form of a network, segment by segment: the least ρ that given multipliers prove."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lipcert.certificates.blocks import Block, Tracked, congruence, dense, times
from lipcert.certificates.segments import Segment, SegmentMatrices, Written, cheapest_segments, matrices
from lipcert.certificates.statement import (
    CAUTION,
    CLEAR,
    FLOOR,
    Radius,
    Statement,
    greatest_eigenvalue,
    greatest_ratio,
    least_lift,
    magnitudes,
    multiplier_pair,
    room,
)
from lipcert.errors import NotProved
from lipcert.increments import ScaledIncrements
from lipcert.numerics.psd import is_positive_definite_scaled
from lipcert.numerics.rounding import UNDERFLOW, add_up, div_up, gamma, ldexp_up, mul_up, sqrt_up
from lipcert.numerics.spectral import sigma_max_upper
from lipcert.problem import Norm

#: Multiplier, relative to the curvatures of its layer, of a neuron whose v depends on nothing: it costs nothing.
BLIND = 1e8


@dataclass(frozen=True, eq=False)
class Weights:
    """ρ Σ input_i x_i² on the input and Σ output_i y_i² on the output.

    For the input norm 2 ``input`` is all ones; for ∞ any weights do, since Σ input_i x_i² ≤ ‖x‖_∞² Σ input_i. For the
    output norm 2 ``output`` is all ones; for 1, ‖y‖_1² ≤ (Σ 1/output_i)(Σ output_i y_i²); for ∞ it is one-hot, one form
    per output.
    """

    input: Tensor
    output: Tensor

    def factor(self, norm: Norm) -> float:
        """What ρ is multiplied by to bound the squared constant, rounded up."""
        result = 1.0
        if norm[0] == math.inf:
            result = mul_up(result, add_up(*self.input.tolist()))
        if norm[1] == 1:
            result = mul_up(result, add_up(*(div_up(1.0, e) for e in self.output.tolist())))
        return result


class DenseForm:
    """The quadratic form of a network cut into factorable segments; the segments' matrices are made once.

    Raises:
        NotProved: a layer is too wide to factor.
    """

    def __init__(self, transformed: ScaledIncrements) -> None:
        segments = cheapest_segments(transformed)
        if segments is None:
            raise NotProved("a layer is too wide to factor; the certificate needs the matrix-free route.")
        self.transformed = transformed
        self.segments = segments
        self._written: dict[tuple[int, int], Written] = {}
        self.relations = [matrices(transformed, segment, self._written) for segment in segments]

    def fixing(self, fixed: Mapping[int, Tensor]) -> DenseForm:
        """The form of the network with these slopes fixed; what does not depend on them is shared.

        Args:
            fixed: position of a cell → slopes, NaN where a neuron stays free.
        """
        result = copy(self)
        result.transformed = self.transformed.fixing(fixed)
        cell_at = result.transformed.cell_at
        result.segments = [replace(s, cells=tuple(cell_at[c.node] for c in s.cells)) for s in self.segments]
        result.relations = [
            matrices(result.transformed, segment, self._written)
            if any(cell.node in fixed for cell in segment.cells)
            else known
            for segment, known in zip(result.segments, self.relations, strict=True)
        ]
        return result

    def repaired(
        self, multipliers: Mapping[int, Tensor], margin: float, weights: Weights
    ) -> tuple[dict[int, Tensor], float]:
        """Multipliers made feasible where that is a matter of single neurons, and their ρ in plain floating point.

        With Q_jj = d_j² M_jj the curvature that the rest of the network puts on w_j, λ_j > Q_jj is necessary, and
        λ_j = Q_jj (1 + |c_j|/d_j) costs least; multipliers at or below (1 + margin/2) Q_jj are set to that (half,
        as λ_j = Q_jj may be optimal, and lifted by the margin it is fine). A negative multiplier marks a neuron whose
        v is zero: its λ is free and made large. For searches.

        Raises:
            NotProved: still infeasible.
        """
        chosen = dict(multipliers)
        rho = self.least_rho(chosen, 0.0, weights, prove=False, repair=(chosen, margin))
        return chosen, rho

    def least_rho(
        self,
        multipliers: Mapping[int, Tensor],
        slack: float,
        weights: Weights,
        claim: float = math.inf,
        prove: bool = True,
        repair: tuple[dict[int, Tensor], float] | None = None,
    ) -> float:
        """ρ for given multipliers, every step proved (``prove``) or in plain floating point (for searches).

        Raises:
            NotProved: no ρ is provable at these multipliers.
        """
        form: Block = weights.output
        start = weights.input
        for segment, relation in zip(reversed(self.segments), reversed(self.relations), strict=True):
            first = segment.start == 0
            if segment.cells:
                if repair is not None:
                    _repair(segment, relation, form, *repair, self.transformed.increments.unreached)
                statement = Statement.build(segment, relation, form, multipliers, prove)
                if first:
                    if prove:
                        return statement.least_rho(start, claim)
                    return greatest_ratio(statement.schur(), start)
                if prove:
                    form = statement.lifted(slack)
                else:
                    form = statement.schur(least_lift(relation.side))
                    lift = max(slack, least_lift(relation.side))
                    magnitude = statement.magnitude[: statement.entry]
                    form = form + torch.diag(room(form.diagonal(), magnitude, lift, CAUTION))
            elif first and relation.entry > form.shape[0]:
                value = _wide_input(relation.output, dense(form), start, prove)
                return claim if value <= claim < math.inf else value
            else:
                product = congruence(relation.output.parts, form, relation.places, relation.entry)
                if prove:
                    radius = Radius(relation)
                    radius.include(relation.output, form)
                    product.diagonal().add_(radius.times(torch.ones(relation.side, dtype=torch.float64)))
                form = product
        return _largest_ratio(dense(form), start, claim) if prove else greatest_ratio(dense(form), start)


def _repair(
    segment: Segment,
    relation: SegmentMatrices,
    form: Block,
    multipliers: dict[int, Tensor],
    margin: float,
    blind: Mapping[int, Tensor],
) -> None:
    """Raise the multipliers of a segment's cells where a single neuron's curvature demands it, last cell first.

    Where the terms of a curvature cancel, the multiplier has to be clear of their rounding as well.
    """
    for number in range(len(segment.cells) - 1, -1, -1):
        cell = segment.cells[number]
        curvature = _curvature(relation.output.parts.get(number + 1), form, cell.size)
        terms = magnitudes(relation.output, form, relation.places, relation.side)
        for later in range(number + 1, len(segment.cells)):
            v = relation.preactivations[later]
            _, on_v = multiplier_pair(segment.cells[later], multipliers[segment.cells[later].node], v.rows)
            curvature = curvature + _curvature(v.parts.get(number + 1), on_v, cell.size)
            terms = terms + magnitudes(v, on_v, relation.places, relation.side)
        error = CLEAR * terms[relation.places[number + 1]]
        current = multipliers[cell.node]
        dead = current < 0
        current = current.clamp(min=0.0)
        if cell.block:
            least = float((curvature + error).max()) if curvature.numel() else 0.0
            if bool(dead):
                multipliers[cell.node] = torch.full_like(current, max(1e4 * least, 1e-250))
            elif float(current) <= least * (1.0 + 0.5 * margin):
                multipliers[cell.node] = current.clamp(min=max(2.0 * least, 1e-250))
            else:
                multipliers[cell.node] = current
            continue
        c, d = cell.c.reshape(-1).abs(), cell.d.reshape(-1)
        floor = (1e-30 * curvature.max() if current.numel() else curvature.sum()).clamp(min=1e-250) + error
        best = curvature * (1.0 + c / d.clamp(min=1e-300)).clamp(min=1.0 + 2.0 * margin, max=4.0) + floor
        low = current <= curvature * (1.0 + 0.5 * margin) + floor
        chosen = torch.where(low, torch.maximum(best, current), current)
        chosen = torch.where(dead, 1e4 * torch.maximum(curvature, floor), chosen)
        free = BLIND * max(float(curvature.max()) if curvature.numel() else 0.0, 1e-250)
        multipliers[cell.node] = torch.where(blind[cell.node], free, chosen)


def _curvature(part: Block | None, form: Block, width: int) -> Tensor:
    """The diagonal of partᵀ · form · part."""
    if part is None:
        return torch.zeros(width, dtype=torch.float64)
    if part.dim() == 1:
        return part.square() * (form if form.dim() == 1 else form.diagonal())
    return (part * times(form, part)).sum(dim=0)


def _largest_ratio(form: Tensor, weights: Tensor, claim: float) -> float:
    """The claim, or the least ρ found, with ρ diag(weights) ⪰ form proved by a verified Cholesky factorisation."""
    estimate = greatest_ratio(form, weights)
    candidates = [claim] if math.isfinite(claim) else []
    candidates += [estimate * (1.0 + 10.0**-e) + FLOOR for e in range(12, 2, -1)]
    for rho in candidates:
        matrix = torch.diag(rho * weights) - form
        rounding = torch.diag((rho * weights + form.diagonal().abs()) * (4.0 * gamma(4.0)) + UNDERFLOW)
        if is_positive_definite_scaled(matrix, rounding):
            return rho
    raise NotProved("the largest eigenvalue of the last form cannot be enclosed.")


def _wide_input(v: Tracked, form: Tensor, weights: Tensor, prove: bool) -> float:
    """λ_max(DVᵀM̂VD) = ‖LᵀVD‖² for M̂ = LLᵀ, D = weights^{-1/2}, on V's shorter side; residuals are added."""
    scale = weights.rsqrt()
    diagonal = form.diagonal().clamp(min=0.0)
    lifted = form + torch.diag(1e-13 * diagonal + max(1e-15 * float(diagonal.max()), FLOOR))
    factor, info = torch.linalg.cholesky_ex(lifted)
    if int(info):
        raise NotProved("the form on the first layer is not positive.")
    image = dense(times(times(factor.T, v.parts[0]), scale))
    if not prove:
        return greatest_eigenvalue(image @ image.T)
    n, columns = form.shape[0], len(scale)
    lost = 8.0 * (n + 1) * UNDERFLOW  # by underflow in an entry of a product
    bound = factor.abs() @ factor.abs().T + form.abs()
    residual = (factor @ factor.T - form).abs() + bound * (4.0 * gamma(n + 8.0)) + lost
    left = mul_up(float(torch.maximum(residual, residual.T).sum(dim=1).max()), 1.0 + 4.0 * gamma(n + 4.0))
    absolute = times(v.absolute[0], scale)
    wide = dense(times(factor.abs().T, absolute))
    root, spread = sqrt_up(float(n)), _length(scale)  # ‖1‖ on either side
    around = mul_up(add_up(mul_up(2.0, _length(factor), v.floor, root), mul_up(lost, root)), spread)
    error = add_up(mul_up(4.0 * gamma(v.rounding + n + 16.0), _length(wide)), around, mul_up(lost, root, columns))
    sigma = sigma_max_upper(image, error)
    plain = add_up(_length(absolute), mul_up(2.0 * v.floor + lost, root, spread), mul_up(lost, root, columns))
    return add_up(mul_up(sigma, sigma), mul_up(left, plain, plain))


def _length(x: Tensor) -> float:
    """The Frobenius norm, rounded up; a power of two is taken out, so that no square vanishes.

    Raises:
        NotProved: it overflows.
    """
    greatest = float(x.abs().max()) if x.numel() else 0.0
    if not math.isfinite(greatest):
        raise NotProved("the form on the first layer overflows.")
    power = math.frexp(greatest)[1]
    unit = torch.from_numpy(np.ldexp(x.numpy(), -power))
    return ldexp_up(mul_up(1.0 + 1e-9, float(unit.norm()) + 1e-100), power)
