"""The quadratic form of a network in plain floating point: what multipliers would prove, and feasible ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lipcert.certificates.forms.block_rows import Block, congruence, dense, times
from lipcert.certificates.forms.elimination import Segment, SegmentMatrices
from lipcert.certificates.forms.lmi import (
    CAUTION,
    CLEAR,
    Statement,
    greatest_eigenvalue,
    greatest_ratio,
    least_lift,
    magnitudes,
    multiplier_pair,
    room,
)
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights, wide_image
from lipcert.increments import Cell
from lipcert.search.reach import unreached

#: Multiplier, relative to the curvatures of its layer, of a neuron whose v depends on nothing: it costs nothing.
BLIND = 1e8


def float_rho(form: DenseForm, multipliers: Mapping[int, Tensor], slack: float, weights: Weights) -> float:
    """ρ as ``form.least_rho`` would find it, nothing proved.

    Raises:
        NotProved: the form is not positive on a layer's neurons.
    """
    return _rho(form, dict(multipliers), slack, weights, None)


def repaired(
    form: DenseForm, multipliers: Mapping[int, Tensor], margin: float, weights: Weights
) -> tuple[dict[int, Tensor], float]:
    """Multipliers made feasible where that is a matter of single neurons, and their ρ.

    With Q_jj = d_j² M_jj the curvature that the rest of the network puts on w_j, λ_j > Q_jj is necessary, and
    λ_j = Q_jj (1 + |c_j|/d_j) costs least; multipliers at or below (1 + margin/2) Q_jj are set to that (half,
    as λ_j = Q_jj may be optimal, and lifted by the margin it is fine). A negative multiplier marks a neuron whose
    v is zero: its λ is free and made large.

    Raises:
        NotProved: still infeasible.
    """
    chosen = dict(multipliers)
    rho = _rho(form, chosen, 0.0, weights, margin)
    return chosen, rho


def _rho(
    whole: DenseForm, multipliers: dict[int, Tensor], slack: float, weights: Weights, margin: float | None
) -> float:
    form: Block = weights.output
    for segment, relation in zip(reversed(whole.segments), reversed(whole.relations), strict=True):
        first = segment.start == 0
        if segment.cells:
            if margin is not None:
                _repair(segment, relation, form, multipliers, margin, unreached(whole.transformed.increments))
            statement = Statement.build(segment, relation, form, multipliers)
            if first:
                return greatest_ratio(statement.schur(), weights.input)
            form = statement.schur(least_lift(relation.side))
            lift = max(slack, least_lift(relation.side))
            form = form + torch.diag(room(form.diagonal(), statement.magnitude[: statement.entry], lift, CAUTION))
        elif first and relation.entry > form.shape[0]:
            _, image = wide_image(relation.output, dense(form), weights.input)
            return greatest_eigenvalue(image @ image.T)
        else:
            form = congruence(relation.output.parts, form, relation.places, relation.entry)
    return greatest_ratio(dense(form), weights.input)


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
        found = sufficient(
            cell, multipliers[cell.node][None], curvature[None], error[None], cell.c.reshape(1, -1),
            cell.d.reshape(1, -1), torch.full((1, 1), margin, dtype=torch.float64), blind[cell.node],
        )  # fmt: skip
        multipliers[cell.node] = found[0]


def sufficient(
    cell: Cell,
    multipliers: Tensor,
    curvature: Tensor,
    error: Tensor,
    c: Tensor,
    d: Tensor,
    margin: Tensor,
    blind: Tensor,
) -> Tensor:
    """The multipliers of a cell for a batch of problems, raised where a single neuron's curvature demands it.

    Args:
        cell: whose they are; ``c`` and ``d`` may differ from its own.
        multipliers: (B, k), one of a group of a block, or as often as it has entries; negative where v is zero.
        curvature: (B, size) Q_jj.
        error: (B, size) what rounding may have taken from it.
        c, d: (B or 1, size).
        margin: (B, 1), as in ``repaired``.
        blind: (size,) whether v depends on nothing.
    """
    dead, current = multipliers < 0, multipliers.clamp(min=0.0)
    none = curvature.new_zeros(len(curvature), 1)
    largest = curvature.max(dim=1, keepdim=True).values if curvature.shape[1] else none
    if cell.block:
        terms = (curvature + error).reshape(len(curvature), cell.groups, -1)
        least = terms.amax(dim=2) if curvature.shape[1] else none
        least = least.repeat_interleave(multipliers.shape[1] // least.shape[1], dim=1)
        low = current <= least * (1.0 + 0.5 * margin)
        raised = torch.maximum(current, 2.0 * least).clamp(min=1e-250)
        return torch.where(dead, (1e4 * least).clamp(min=1e-250), torch.where(low, raised, current))
    floor = (1e-30 * largest).clamp(min=1e-250) + error
    ratio = c.abs() / d.clamp(min=1e-300)
    best = curvature * torch.maximum(1.0 + ratio, 1.0 + 2.0 * margin).clamp(max=4.0) + floor
    low = current <= curvature * (1.0 + 0.5 * margin) + floor
    chosen = torch.where(low, torch.maximum(best, current), current)
    chosen = torch.where(dead, 1e4 * torch.maximum(curvature, floor), chosen)
    return torch.where(blind, BLIND * largest.clamp(min=1e-250), chosen)


def _curvature(part: Block | None, form: Block, width: int) -> Tensor:
    """The diagonal of partᵀ · form · part."""
    if part is None:
        return torch.zeros(width, dtype=torch.float64)
    if part.dim() == 1:
        return part.square() * (form if form.dim() == 1 else form.diagonal())
    return (part * times(form, part)).sum(dim=0)
