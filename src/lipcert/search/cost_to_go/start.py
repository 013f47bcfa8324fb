"""Where the search begins: slopes and anchors of an attack's best point, curvatures from norms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.multipliers import Edge
from lipcert.search.cost_to_go.dual import Question
from lipcert.search.cost_to_go.inputs import by_row

if TYPE_CHECKING:
    from lipcert.network.nonlinearity import Nonlinearity

#: What a radius or a cost is taken for at least.
SMALL = 1e-12
#: How far a value is taken to move at least, relative to its terms: less would drown in the rounding of the search.
FINE = 1e-3
#: By how much the curvature in front of an activation exceeds what its value's costs need: an activation whose two
#: curvatures cancel pays for its whole range, and the ascent would spend its first steps on making that room.
ROOM = 1.5
#: Unit of slopes at least, relative to what norms allow: at the point the gradient may vanish.
LEAST = 1e-3


@dataclass(frozen=True, eq=False)
class Start:
    """A first point, and in which units to move from there.

    Attributes:
        slope: position of an activation → g, (P, *shape): the gradient at the point, handed on; of a node that linear
            bounds replace all of its cost.
        slope_unit: (P, 1, …): root mean square of g, or a share of what it may be by norms.
        anchor: edge → values at the point.
        anchor_unit: (P, 1, …): how far a coordinate moves on the domain, by norms.
        curvature: position of an activation → log D, (P, 1, …), at which the quadratic cost on the domain is about as
            much as the linear one can change, times a factor to be chosen.
    """

    slope: dict[int, Tensor] = field(default_factory=dict)
    slope_unit: dict[int, Tensor] = field(default_factory=dict)
    anchor: dict[Edge, Tensor] = field(default_factory=dict)
    anchor_unit: dict[Edge, Tensor] = field(default_factory=dict)
    curvature: dict[int, Tensor] = field(default_factory=dict)


def start_at(question: Question, points: Tensor) -> Start:
    """From points of the domains, (P, *in_shape)."""
    plan, start = question.plan, Start()
    values = plan.values_at(points)
    reach = _reach(question)
    nodes = plan.network.nodes
    for k, i in plan.anchored:
        parent = nodes[k].parents[i]
        start.anchor[k, i] = values[parent].clone()
        unit = reach[parent] / math.sqrt(max(1, values[parent][0].numel()))
        start.anchor_unit[k, i] = by_row(unit.clamp(min=SMALL), values[parent])
    linear = {len(nodes) - 1: question.rows.reshape(-1, *plan.network.out_shape)}
    weight: dict[int, Tensor] = {}
    size = {len(nodes) - 1: question.rows.norm(dim=1)}  # of a gradient, at most, by norms
    for k in range(len(nodes) - 1, 0, -1):
        c, total, most = linear.pop(k, None), weight.pop(k, torch.zeros_like(reach[0])), size.pop(k, None)
        if c is None or most is None:
            continue
        if k in plan.functions:
            function, parent = plan.functions[k], nodes[k].parents[0]
            slope = c * _derivative(function, values[parent])
            steep = _steepness(function)
            most = most * steep
            length = torch.maximum(slope.flatten(1).norm(dim=1), LEAST * most) / math.sqrt(max(1, slope[0].numel()))
            start.slope[k], start.slope_unit[k] = slope, by_row(length, slope)
            span = torch.maximum(reach[parent], FINE * _terms(question, parent, values)).clamp(min=SMALL)
            own = c.flatten(1).norm(dim=1) / span
            curvature = torch.where(total > 0, ROOM * total * steep**2, own * steep).clamp(min=SMALL)
            start.curvature[k] = by_row(curvature.log(), slope)
            _add(linear, parent, slope)
            _add(weight, parent, curvature)
            _add(size, parent, most)
        elif k in plan.floors:
            parent = plan.floors[k].maximum
            _add(linear, parent, c * (values[parent] > plan.floors[k].level))
            _add(weight, parent, ROOM * total)  # a maximum moves with any of its entries
            _add(size, parent, most)
        elif k in plan.maxima:
            windows, parent = plan.maxima[k], nodes[k].parents[0]
            flat, index = values[parent].flatten(1), windows.index.to(c.device)
            chosen = torch.where(windows.first.to(c.device), flat[:, index], -math.inf).argmax(-1, keepdim=True)
            slope = torch.zeros_like(flat[:, index]).scatter(2, chosen, c.reshape(len(c), -1, 1))
            most = most * windows.gain(2.0)
            length = torch.maximum(slope.flatten(1).norm(dim=1), LEAST * most) / math.sqrt(max(1, slope[0].numel()))
            start.slope[k], start.slope_unit[k] = slope, by_row(length, slope)
            bending = plan.bending(k)
            span = torch.maximum(reach[bending], FINE * _terms(question, bending, values)).clamp(min=SMALL)
            curvature = torch.where(total > 0, ROOM * total, c.flatten(1).norm(dim=1) / span).clamp(min=SMALL)
            start.curvature[k] = by_row(curvature.log(), slope)
            back = torch.zeros_like(flat).index_add(1, index.reshape(-1), slope.flatten(1))
            _add(linear, parent, back.reshape(values[parent].shape))
            _add(size, parent, most)
            if bending != parent:  # u has an entry for every entry of every window, and costs nothing but a square
                _add(linear, bending, torch.zeros_like(values[bending]))
                _add(size, bending, torch.zeros_like(most))
            _add(weight, bending, curvature * (windows.overlap if bending == parent else 1))
        elif k in plan.relaxed:
            length = torch.maximum(c.flatten(1).norm(dim=1), LEAST * most) / math.sqrt(max(1, c[0].numel()))
            start.slope[k], start.slope_unit[k] = c, by_row(length, c)
            for parent, own in question.relaxed.back(k, c)[0]:
                _add(linear, parent, own)
                _add(size, parent, torch.maximum(own.flatten(1).norm(dim=1), LEAST * most))
        elif k in plan.maps:
            gains = plan.gains(k)
            for i, parent in enumerate(nodes[k].parents):
                _add(linear, parent, plan.maps[k][i].plain(c, back=True))
                _add(weight, parent, total * (gains[i] * sum(gains)))
                _add(size, parent, most * gains[i])
    return start


def _reach(question: Question) -> list[Tensor]:
    """How far each node's value moves from its value at the centre at most, about, by norms and ranges; (P,) each."""
    plan, reach = question.plan, [question.domains.lengths]
    for k, node in enumerate(plan.network.nodes[1:], 1):
        before = [reach[p] for p in node.parents]
        if k in plan.maps:
            found = sum((n * r for n, r in zip(plan.gains(k), before, strict=True)), torch.zeros_like(reach[0]))
        elif k in plan.functions:
            found = _steepness(plan.functions[k]) * before[0]
        elif k in plan.floors:
            found = before[0]
        elif k in plan.maxima:
            found = plan.maxima[k].gain(2.0) * before[0]
        else:
            found = torch.full_like(reach[0], math.inf)
        if k in question.low:
            half = 0.5 * (question.high[k] - question.low[k]).flatten(1).norm(dim=1)
            found = torch.where(found.isfinite(), found, half.nan_to_num(1.0))
        reach.append(torch.where(found.isfinite(), found, torch.ones_like(found)))
    return reach


def _terms(question: Question, k: int, values: dict[int, Tensor]) -> Tensor:
    """Length of a node's value, or about that of what it is the sum of, where that is more: (P,)."""
    plan, lengths = question.plan, {i: t.flatten(1).norm(dim=1) for i, t in values.items()}
    if k not in plan.maps:
        return lengths[k]
    parents = zip(plan.gains(k), plan.network.nodes[k].parents, strict=True)
    terms = [n * lengths[p] for n, p in parents if n < math.inf]
    return torch.stack([lengths[k], *terms]).amax(0)


def _steepness(function: Nonlinearity) -> float:
    steep = function.greatest_slope
    return steep if 0.0 < steep < math.inf else 1.0


def _derivative(function: Nonlinearity, v: Tensor) -> Tensor:
    with torch.enable_grad():
        v = v.detach().requires_grad_(True)
        value = function(v)
        if not value.requires_grad:
            return torch.zeros_like(v)
        (slope,) = torch.autograd.grad(value.sum(), v)
    return slope.nan_to_num(0.0, 0.0, 0.0)


def _add(sums: dict[int, Tensor], k: int, term: Tensor) -> None:
    sums[k] = sums[k] + term if k in sums else term
