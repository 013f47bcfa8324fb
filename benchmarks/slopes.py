"""CROWN and α-CROWN on the networks and balls of a row, for comparison: own implementations, α-CROWN not proved.

CROWN is what lipcert's linear bounds prove without a search, rounding included (Zhang et al., NeurIPS 2018). α-CROWN
(Xu et al., ICLR 2021) also optimises the slopes of the lower lines of undecided ReLUs, here of the last bound, one set
per pair of classes, on CROWN's ranges, which stay; in float64, rounding not counted, and from CROWN's slopes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.walk import Setting
from lipcert.certificates.outputs import Subject
from lipcert.domain import Ball
from lipcert.network.activations.clamp import RELU
from lipcert.network.graph import AffineNode
from lipcert.network.linear import size
from lipcert.ranges.build import applied
from lipcert.ranges.input_rows import DUAL
from lipcert.ranges.linear_bounds import LinearBounds
from lipcert.ranges.lines import Lines
from lipcert.ranges.maxima import WindowLines
from lipcert.robustness.outputs import Task
from lipcert.search.cost_to_go.maps import BothWays

#: Steps of Adam, its rate, and the factor of that per step, as auto_LiRPA's defaults.
STEPS, RATE, DECAY = 100, 0.5, 0.98


@dataclass(frozen=True, eq=False)
class Ranged:
    """An image's ball with its linear bounds, and what they alone prove of the margins, (k,)."""

    task: Task
    bounds: LinearBounds
    plain: Tensor


def crown(subject: Subject, task: Task) -> Ranged:
    """Linear bounds as the check of an output bound works them out."""
    with torch.no_grad():
        setting = Setting(subject.facts, task.domain, True)
        return Ranged(task, setting.bounds, setting.plain(task.rows))


def alpha_crown(subject: Subject, ranged: Ranged, steps: int = STEPS) -> Tensor:
    """Margins (k,): of those that CROWN leaves open the greatest that the steps come to."""
    open_ = (~(ranged.plain > 0.0)).nonzero().reshape(-1)
    if not len(open_) or not bool(ranged.plain.isfinite().all()):
        return ranged.plain
    walk = _Walk(subject, ranged.bounds, ranged.task.rows[open_], ranged.task.domain)  # type: ignore[arg-type]
    best = ranged.plain.clone()
    rate = RATE
    optimiser = torch.optim.Adam(list(walk.alphas.values()), lr=rate) if walk.alphas else None
    for _ in range(steps):
        value = walk.value()
        best[open_] = torch.maximum(best[open_], value.detach())
        if optimiser is None or bool((best > 0.0).all()):
            break
        optimiser.zero_grad()
        (-value.sum()).backward()
        optimiser.step()
        with torch.no_grad():
            for alpha in walk.alphas.values():
                alpha.clamp_(0.0, 1.0)
        for group in optimiser.param_groups:
            group["lr"] *= DECAY
    return best


class _Walk:
    """Rows of the output, taken back to the input along lines; of undecided ReLUs with slopes of their own."""

    def __init__(self, subject: Subject, bounds: LinearBounds, rows: Tensor, ball: Ball) -> None:
        self.network, self.bounds, self.rows, self.ball = subject.network, bounds, rows, ball
        self.maps = {
            k: [BothWays(linear) for linear in node.maps]
            for k, node in enumerate(self.network.nodes)
            if isinstance(node, AffineNode)
        }
        self.open: dict[int, Tensor] = {}
        self.alphas: dict[int, Tensor] = {}
        for k, lines in bounds.lines.items():
            node = self.network.nodes[k]
            function = applied(node)
            if function is None or function != RELU:
                continue
            box = bounds.boxes[node.parents[0]].reshaped(node.shape)
            self.open[k] = (box.low < 0.0) & (box.high > 0.0)
            start = torch.where(self.open[k], lines.lower_slope, 0.0).expand(len(rows), *node.shape)
            self.alphas[k] = start.clone().clamp(0.0, 1.0).requires_grad_(True)

    def value(self) -> Tensor:
        """Lower bounds of the rows, (P,), differentiable in the slopes."""
        nodes, count = self.network.nodes, len(self.rows)
        pending: dict[int, Tensor] = {len(nodes) - 1: self.rows.reshape(count, *nodes[-1].shape)}
        total = torch.zeros(count, dtype=torch.float64)
        for k in range(len(nodes) - 1, 0, -1):
            cost = pending.pop(k, None)
            if cost is None:
                continue
            node = nodes[k]
            if isinstance(node, AffineNode):
                if node.offset is not None:
                    total = total + (cost * node.offset).reshape(count, -1).sum(1)
                for parent, both in zip(node.parents, self.maps[k], strict=True):
                    self._hand(pending, parent, both.transpose(cost))
            elif k in self.bounds.lines:
                cost, offset = self._through(k, self.bounds.lines[k], cost)
                total = total + offset
                parent = node.parents[0]
                self._hand(pending, parent, cost.reshape(count, *nodes[parent].shape))
            elif isinstance(windows := self.bounds.planes.get(k), WindowLines):
                positive, negative = cost.clamp(min=0.0), cost.clamp(max=0.0)
                total = total + (positive * windows.least + negative * windows.greatest).reshape(count, -1).sum(1)
                shape = nodes[node.parents[0]].shape
                back, _ = windows.back(negative.flatten(1), positive.flatten(1), size(shape))
                self._hand(pending, node.parents[0], back.reshape(count, *shape))
            else:
                box = self.bounds.boxes[k]
                parts = cost.clamp(min=0.0) * box.low + cost.clamp(max=0.0) * box.high
                total = total + parts.reshape(count, -1).sum(1)
        linear = pending[0].reshape(count, -1)
        centre = self.ball.center.reshape(-1)
        return total + linear @ centre - self.ball.radius * torch.linalg.vector_norm(linear, DUAL[self.ball.p], dim=1)

    def _through(self, k: int, lines: Lines, cost: Tensor) -> tuple[Tensor, Tensor]:
        positive, negative = cost.clamp(min=0.0), cost.clamp(max=0.0)
        slope, offset = lines.lower_slope, lines.lower_offset
        if k in self.alphas:
            slope = torch.where(self.open[k], self.alphas[k], slope)
            offset = torch.where(self.open[k], 0.0, offset)
        parts = positive * offset + negative * lines.upper_offset
        return positive * slope + negative * lines.upper_slope, parts.reshape(len(cost), -1).sum(1)

    @staticmethod
    def _hand(pending: dict[int, Tensor], parent: int, cost: Tensor) -> None:
        pending[parent] = pending[parent] + cost if parent in pending else cost


def certified(margins: Mapping[int, Tensor] | Sequence[Tensor]) -> list[int]:
    """Places whose margins are all positive."""
    pairs = margins.items() if isinstance(margins, Mapping) else enumerate(margins)
    return [i for i, m in pairs if bool((m > 0.0).all()) and not math.isnan(float(m.sum()))]
