"""The quadratic form of a network, segment by segment: the least ρ that given multipliers prove."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lipcert.certificates.forms.block_rows import Block, Tracked, congruence, dense, times
from lipcert.certificates.forms.elimination import MapBlock, cheapest_segments, matrices
from lipcert.certificates.forms.lmi import (
    FLOOR,
    Radius,
    Statement,
    greatest_ratio,
)
from lipcert.errors import NotProved
from lipcert.increments import ScaledIncrements
from lipcert.numerics.psd import is_positive_definite_scaled
from lipcert.numerics.rounding import UNDERFLOW, add_up, div_up, gamma, ldexp_up, mul_up, sqrt_up
from lipcert.numerics.spectral import sigma_max_upper

if TYPE_CHECKING:
    from lipcert.problem import Norm


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
        self._written: dict[tuple[int, int], MapBlock] = {}
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

    def least_rho(
        self, multipliers: Mapping[int, Tensor], slack: float, weights: Weights, claim: float = math.inf
    ) -> float:
        """ρ for given multipliers, every step proved: the claim, if it can be, or the least ρ found.

        Args:
            multipliers: position of a cell → λ, one per neuron, or one for a block.
            slack: relative lift of the intermediate forms.
            weights: on input and output.
            claim: a value of ρ to try first.

        Raises:
            NotProved: no ρ is provable at these multipliers.
        """
        form: Block = weights.output
        for segment, relation in zip(reversed(self.segments), reversed(self.relations), strict=True):
            first = segment.start == 0
            if segment.cells:
                statement = Statement.build(segment, relation, form, multipliers)
                if first:
                    return statement.least_rho(weights.input, claim)
                form = statement.lifted(slack)
            elif first and relation.entry > form.shape[0]:
                value = _wide_input(relation.output, dense(form), weights.input)
                return claim if value <= claim < math.inf else value
            else:
                product = congruence(relation.output.parts, form, relation.places, relation.entry)
                radius = Radius(relation)
                radius.include(relation.output, form)
                product.diagonal().add_(radius.times(torch.ones(relation.side, dtype=torch.float64)))
                form = product
        return _largest_ratio(dense(form), weights.input, claim)


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


def wide_image(v: Tracked, form: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """L with LLᵀ about the form, and LᵀVD with D = weights^{-1/2}, whose squared norm is about λ_max(DVᵀM̂VD).

    Raises:
        NotProved: the form is not positive.
    """
    diagonal = form.diagonal().clamp(min=0.0)
    lifted = form + torch.diag(1e-13 * diagonal + max(1e-15 * float(diagonal.max()), FLOOR))
    factor, info = torch.linalg.cholesky_ex(lifted)
    if int(info):
        raise NotProved("the form on the first layer is not positive.")
    if 0 not in v.parts:  # nothing reads the input
        return factor, torch.zeros(len(form), len(weights), dtype=torch.float64)
    return factor, dense(times(times(factor.T, v.parts[0]), weights.rsqrt()))


def _wide_input(v: Tracked, form: Tensor, weights: Tensor) -> float:
    """λ_max(DVᵀM̂VD) ≤ ‖LᵀVD‖² + what L misses of the form; for inputs larger than the first layer."""
    factor, image = wide_image(v, form, weights)
    scale = weights.rsqrt()
    n, columns = form.shape[0], len(scale)
    lost = 8.0 * (n + 1) * UNDERFLOW  # by underflow in an entry of a product
    bound = factor.abs() @ factor.abs().T + form.abs()
    residual = (factor @ factor.T - form).abs() + bound * (4.0 * gamma(n + 8.0)) + lost
    left = mul_up(float(torch.maximum(residual, residual.T).sum(dim=1).max()), 1.0 + 4.0 * gamma(n + 4.0))
    absolute = times(v.absolute[0], scale) if 0 in v.absolute else torch.zeros(n, columns, dtype=torch.float64)
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
