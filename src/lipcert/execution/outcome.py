"""What a rule says of an executed op: how errors of its operands reach the result, and what its own rounding adds.

ẑ − z = Σ parts (x̂ − x) + ε with |ε| ≤ ``own``. A part is a linear map, slopes in an interval, or a choice; forwards it
bounds what an error becomes, backwards it carries a row of sensitivities, known as a middle and a radius.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.execution.float32 import up
from lipcert.execution.value import Executed
from lipcert.numerics.midrad import lengths
from lipcert.numerics.rounding import add_up, mul_up
from lipcert.numerics.spectral import sigma_max_upper

#: Matrices whose smaller side is longer keep the cheap bound of their norm.
LARGEST_MATRIX = 1024

#: (middle, radius) of sensitivities: for each row one real tensor within the radius of the middle; (rows, *shape).
Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Part(ABC):
    """How the error of one operand reaches the result."""

    operand: Executed

    @abstractmethod
    def forwards(self, error: Tensor) -> Tensor:
        """What an error of the operand becomes at most."""

    @abstractmethod
    def backwards(self, rows: Rows) -> Rows:
        """Sensitivities to the operand from those to the result."""

    @abstractmethod
    def gain(self) -> float:
        """The spectral norm at most: the length of an error becomes no more than so many times what it was."""


@dataclass(frozen=True, eq=False)
class Linear(Part):
    """A linear map: ``apply`` in float64, ``size`` the same with the absolute values of its factors.

    ``matrix`` is one that maps blocks of the operand to blocks of the result, where the map is that.
    """

    apply: Callable[[Tensor], Tensor]
    size: Callable[[Tensor], Tensor]
    matrix: Tensor | None = None

    def forwards(self, error: Tensor) -> Tensor:
        """|A| e."""
        return up(self.size(error), error.numel())

    def backwards(self, rows: Rows) -> Rows:
        """Λ A: the middle's sums of at most ``terms`` products are within γ |Λ||A|."""
        middle, radius = rows
        shape = self.operand.error.shape
        terms = float(middle[0].numel())
        moved = _transposed(self.apply, shape, middle)
        slack = _transposed(self.size, shape, radius + (terms + 8.0) * 2.0**-52 * middle.abs())
        return moved, up(slack, terms)

    def gain(self) -> float:
        """σ_max of the matrix, proved; without one √(‖A‖₁ ‖A‖_∞)."""
        ones = torch.ones(self.operand.error.shape, dtype=torch.float64)
        sums = up(self.size(ones), float(ones.numel()))
        columns = _transposed(self.size, ones.shape, torch.ones_like(sums)[None])
        most = float(up(sums.max() * columns.max(), float(sums.numel())).sqrt()) if sums.numel() else 0.0
        if self.matrix is None or min(self.matrix.shape) > LARGEST_MATRIX:
            return most * (1.0 + 2.0**-40)
        return min(most * (1.0 + 2.0**-40), sigma_max_upper(self.matrix))


@dataclass(frozen=True, eq=False)
class Slopes(Part):
    """δz = s δx entry by entry with ``low`` ≤ s ≤ ``high``, broadcast from the operand to the result."""

    low: Tensor
    high: Tensor

    def forwards(self, error: Tensor) -> Tensor:
        """max |s| e; 0 where e is, whatever s."""
        steepest = torch.maximum(self.low.abs(), self.high.abs())
        return torch.where(error > 0, up(steepest * error), torch.zeros_like(steepest))

    def backwards(self, rows: Rows) -> Rows:
        """Λ s within the middle of s times the middle of Λ."""
        middle, radius = rows
        # no error, no slope needed: an infinite one would give 0 · ∞
        live = (self.operand.error > 0).expand(self.low.shape)
        low, high = torch.where(live, self.low, 0.0), torch.where(live, self.high, 0.0)
        centre = 0.5 * low + 0.5 * high
        width = up(torch.maximum(high - centre, centre - low))
        steepest = torch.maximum(low.abs(), high.abs())
        moved = middle * centre
        slack = up(radius * steepest + middle.abs() * width + 2.0**-52 * moved.abs())
        shape = (len(middle), *self.operand.error.shape)
        terms = float(middle[0].numel())
        total = _summed(slack + (terms * 2.0**-52) * moved.abs(), shape)
        return _summed(moved, shape), up(total, terms)

    def gain(self) -> float:
        """The largest slope; an entry that is broadcast counts as often as it is read."""
        live = (self.operand.error > 0).expand(self.low.shape)
        steepest = torch.where(live, torch.maximum(self.low.abs(), self.high.abs()), 0.0)
        if not steepest.numel():
            return 0.0
        readers = self.low.numel() / self.operand.error.numel()
        return float(steepest.max()) * math.sqrt(readers) * (1.0 + 2.0**-48)


@dataclass(frozen=True, eq=False)
class Choice(Part):
    """Each entry of the result is the greatest of some entries: δz is a mean of their errors.

    Why: max is convex, so by the mean value theorem its increment is Σ w_i δ_i with weights w of a subgradient, which
    are ≥ 0, sum to 1 and vanish for entries that cannot be the greatest.

    Attributes:
        index: (results, candidates) flat places in the operand.
        open: which candidates may be the greatest, of executed or real values or of those between.
    """

    index: Tensor
    open: Tensor

    def forwards(self, error: Tensor) -> Tensor:
        """The largest error of a candidate."""
        return torch.where(self.open, error.reshape(-1)[self.index], 0.0).amax(-1)

    def backwards(self, rows: Rows) -> Rows:
        """One candidate: Λ moves there. Several: each may get all of it."""
        middle, radius = (t.reshape(len(t), -1) for t in rows)
        decided = self.open.sum(-1) == 1
        winner = torch.gather(self.index, 1, self.open.to(torch.int64).argmax(-1, keepdim=True))[:, 0]
        shape = (len(middle), self.operand.error.numel())
        moved = torch.zeros(shape, dtype=torch.float64)
        slack = torch.zeros_like(moved)
        moved.index_add_(1, winner[decided], middle[:, decided])
        slack.index_add_(1, winner[decided], radius[:, decided] + 2.0**-40 * middle[:, decided].abs())
        several = (self.open & ~decided[:, None]).nonzero()
        slack.index_add_(1, self.index[several[:, 0], several[:, 1]], (middle.abs() + radius)[:, several[:, 0]])
        full = (len(middle), *self.operand.error.shape)
        return moved.reshape(full), up(slack, float(len(self.index))).reshape(full)

    def gain(self) -> float:
        """Σ_j (Σ_i w_i δ_i)² ≤ Σ_j Σ_i w_i δ_i² by convexity: √ of how many windows an entry may win."""
        wins = torch.zeros(self.operand.error.numel(), dtype=torch.float64)
        ones = torch.ones(int(self.open.sum()), dtype=torch.float64)
        wins.index_add_(0, self.index[self.open], ones)
        return math.sqrt(float(wins.max())) * (1.0 + 2.0**-48) if wins.numel() else 0.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """The parts and the op's own error; without parts ``own`` is all of the error."""

    own: Tensor
    parts: tuple[Part, ...] = ()

    def error(self) -> Tensor:
        """All of the error, from those of the operands."""
        total = self.own
        for part in self.parts:
            total = total + part.forwards(part.operand.error).reshape(self.own.shape)
        return up(total, float(len(self.parts)))

    def length(self) -> float:
        """The Euclidean length of all of the error, from those of the operands."""
        total = float(lengths(self.own.reshape(1, -1), 2.0)[0]) if self.own.numel() else 0.0
        for part in self.parts:
            if part.operand.length > 0.0:
                total = add_up(total, mul_up(part.gain(), part.operand.length))
        return total


def _transposed(apply: Callable[[Tensor], Tensor], shape: torch.Size, rows: Tensor) -> Tensor:
    """Aᵀ on each row, by differentiating the linear map A."""
    if not len(rows):
        return torch.zeros((0, *shape), dtype=torch.float64)
    with torch.enable_grad():
        x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        y = apply(x)
    if not y.requires_grad:  # an operand of which only the shape is read
        return torch.zeros((len(rows), *shape), dtype=torch.float64)
    outputs = rows.reshape(len(rows), *y.shape)
    if len(rows) > 1:
        try:
            return torch.autograd.grad(y, x, outputs, retain_graph=True, is_grads_batched=True)[0]
        except RuntimeError:  # an op without a batched derivative
            pass
    return torch.stack([torch.autograd.grad(y, x, row, retain_graph=True)[0] for row in outputs])


def _summed(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Summed over the axes along which an operand was broadcast."""
    return rows.sum_to_size(shape) if rows.dim() == len(shape) else _aligned(rows, shape)


def _aligned(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    extra = tuple(range(1, 1 + rows.dim() - len(shape)))
    return rows.sum(extra).sum_to_size(shape)
