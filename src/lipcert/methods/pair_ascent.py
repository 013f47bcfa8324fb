"""max over T of ‖B T A‖ for one pair of layers, approached from below: T over the Jacobians of what lies between them.

The 2018 paper's greedy and L-BFGS searches. They stop at local maxima, so that nothing here is a bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.network.graph import ActivationNode, Node, SelectionNode
from lipcert.network.nonlinearity import MaxSelection, SortSelection
from lipcert.search.power import power_method

#: Work (neurons² × rows × columns × shorter side) up to which greedy flips neurons one by one.
ONE_BY_ONE = 2e9

#: Shorter side up to which leading singular vectors come from the whole decomposition of B T A.
WHOLE = 400

#: Singular vectors on either side that are paired to start the search with selections; of all pairs the best starts.
ALIGNED = 3
STARTS = 2

#: Relative gain of an ascent below which it ends.
GAIN = 1e-6


class Slopes:
    """diag(σ) with low ≤ σ ≤ high; starts from high."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high, self.sigma = low, high, high.clone()

    def forward(self, x: Tensor) -> Tensor:
        """T x, for x (n, …)."""
        return self.sigma.reshape(-1, *[1] * (x.ndim - 1)) * x

    def backward(self, y: Tensor) -> Tensor:
        """Tᵀ y, for y (n,)."""
        return self.sigma * y

    def improve(self, y: Tensor, x: Tensor) -> None:
        """The T with the greatest yᵀ T x."""
        self.sigma = torch.where(y * x > 0, self.high, self.low)


class Maxima:
    """One input of every window; starts from the first."""

    def __init__(self, function: MaxSelection) -> None:
        self.index, self.size = function.index, math.prod(function.in_shape)
        self.chosen = self.index[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """T x, for x (n, …)."""
        return x[self.chosen]

    def backward(self, y: Tensor) -> Tensor:
        """Tᵀ y, for y (windows,)."""
        return y.new_zeros(self.size).index_add_(0, self.chosen, y)

    def improve(self, y: Tensor, x: Tensor) -> None:
        """The T with the greatest yᵀ T x: from each window the largest input, or the least where y is negative."""
        best = (x[self.index] * y.sign()[:, None]).argmax(1, keepdim=True)
        self.chosen = self.index.gather(1, best)[:, 0]


class Orders:
    """A permutation of every group; starts from the given order."""

    def __init__(self, function: SortSelection) -> None:
        self.index = function.index
        self.chosen = torch.arange(math.prod(function.in_shape))

    def forward(self, x: Tensor) -> Tensor:
        """T x, for x (n, …)."""
        return x[self.chosen]

    def backward(self, y: Tensor) -> Tensor:
        """Tᵀ y, for y (n,)."""
        return torch.zeros_like(y).index_copy_(0, self.chosen, y)

    def improve(self, y: Tensor, x: Tensor) -> None:
        """The T with the greatest yᵀ T x: in each group the largest to the largest (rearrangement inequality)."""
        to = self.index.gather(1, y[self.index].argsort(1))
        by = self.index.gather(1, x[self.index].argsort(1))
        self.chosen = self.chosen.index_copy(0, to.reshape(-1), by.reshape(-1))


Part = Slopes | Maxima | Orders


class Stage:
    """T = T_r … T_1, the Jacobian of activations and selections that follow one another; ``improve`` changes it."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Stage:
        """All Jacobians that the slopes and windows of these nodes admit."""
        parts: list[Part] = []
        for node in nodes:
            if isinstance(node, SelectionNode):
                function = node.function
                parts.append(Maxima(function) if isinstance(function, MaxSelection) else Orders(function))
                continue
            assert isinstance(node, ActivationNode)
            low, high = (slope.reshape(-1) for slope in node.function.slope_range(node.shape))
            if parts and isinstance(parts[-1], Slopes):
                before = parts.pop()
                assert isinstance(before, Slopes)
                corners = torch.stack([before.low * low, before.low * high, before.high * low, before.high * high])
                low, high = corners.amin(0), corners.amax(0)
            parts.append(Slopes(low, high))
        return cls(parts)

    @property
    def slopes(self) -> Slopes | None:
        """The only part, if it is diagonal."""
        only = self.parts[0] if len(self.parts) == 1 else None
        return only if isinstance(only, Slopes) else None

    def forward(self, x: Tensor) -> Tensor:
        """T x, for x (n, …)."""
        for part in self.parts:
            x = part.forward(x)
        return x

    def backward(self, y: Tensor) -> Tensor:
        """Tᵀ y."""
        for part in reversed(self.parts):
            y = part.backward(y)
        return y

    def improve(self, y: Tensor, x: Tensor) -> None:
        """Raise yᵀ T x, part by part from the last, each to its best while the others stand.

        From T as it is and, since nothing is chosen where slopes are 0, from the high slopes; the better T stays.
        """
        tried = []
        for high in (False, True) if len(self.parts) > 1 else (False,):
            parts = [copy(part) for part in self.parts]
            for part in parts:
                if high and isinstance(part, Slopes):
                    part.sigma = part.high
            _improve(parts, y, x)
            tried.append((float(y @ Stage(parts).forward(x)), parts))
        self.parts = tuple(max(tried, key=lambda attempt: attempt[0])[1])


def _improve(parts: Sequence[Part], y: Tensor, x: Tensor) -> None:
    """Raise yᵀ T_r … T_1 x by the parts in turn, the last first."""
    inputs = [x]
    for part in parts[:-1]:
        inputs.append(part.forward(inputs[-1]))
    for part, here in zip(reversed(parts), reversed(inputs), strict=True):
        part.improve(y, here)
        y = part.backward(y)


#: max over T of ‖B T A‖ for B (m, n), A (n, k), approached from below.
PairMaximiser = Callable[[Tensor, Tensor, Stage], float]


def maximise_greedily(b: Tensor, a: Tensor, stage: Stage) -> float:
    """Greedy SeqLip: from σ = high, flip the neuron that raises the norm most to its other slope, until none does.

    Up to ``ONE_BY_ONE`` of work one by one, as in the paper; beyond, and with selections, all at once that gain to
    first order, uᵀB T A v at the leading singular vectors u, v, which cannot lower the norm either. With selections,
    where no choice is a natural start, it starts from several: the best choices for singular vectors of B and of A.
    """
    if not b.numel() or not a.numel():
        return 0.0
    slopes, side = stage.slopes, min(b.shape[0], a.shape[1])
    if slopes is not None and float(b.shape[1]) ** 2 * b.shape[0] * a.shape[1] * side <= ONE_BY_ONE:
        return _one_by_one(b, a, slopes)
    start = torch.ones(a.shape[1], dtype=torch.float64)
    if slopes is not None:
        return _ascend(b, a, stage, start)
    tried = []
    for u, v in _aligned(b, a):
        stage.improve(u @ b, a @ v)
        tried.append((_leading(b, stage, a, start)[1], stage.parts))
    best = 0.0
    for _, parts in sorted(tried, key=lambda attempt: -attempt[0])[:STARTS]:
        stage.parts = parts
        best = max(best, _ascend(b, a, stage, start))
    return best


def _ascend(b: Tensor, a: Tensor, stage: Stage, v: Tensor) -> float:
    """The norm where improving T at the leading singular vectors ends."""
    best = 0.0
    while True:
        u, value, v = _leading(b, stage, a, v)
        if value <= best * (1.0 + GAIN):
            return max(value, best)
        best = value
        stage.improve(u @ b, a @ v)


def _aligned(b: Tensor, a: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Left singular vectors of B with right ones of A, leading ones first, with both signs: starts for the ascent."""
    left, right = (torch.linalg.eigh(gram).eigenvectors.T.flip(0)[:ALIGNED] for gram in (b @ b.T, a.T @ a))
    for u, v, sign in itertools.product(left, right, (1.0, -1.0)):
        yield u, sign * v


def _one_by_one(b: Tensor, a: Tensor, slopes: Slopes) -> float:
    """Flip the neuron whose flip gains most, until none gains."""
    low, high, sigma = slopes.low, slopes.high, slopes.sigma
    matrix = (b * sigma) @ a
    best = float(torch.linalg.matrix_norm(matrix, 2))
    while True:
        steps = low + high - 2.0 * sigma
        changed = matrix + steps[:, None, None] * (b.T[:, :, None] * a[:, None, :])
        small = changed @ changed.mT if b.shape[0] <= a.shape[1] else changed.mT @ changed
        squares = torch.linalg.eigvalsh(small)[:, -1]
        j = int(squares.argmax())
        value = float(squares[j].clamp(min=0.0).sqrt())
        if value <= best * (1.0 + 1e-10):
            return best
        best, matrix = value, changed[j]
        sigma[j] = low[j] + high[j] - sigma[j]


def _leading(b: Tensor, stage: Stage, a: Tensor, start: Tensor) -> tuple[Tensor, float, Tensor]:
    """The leading singular triplet of B T A; of large ones by the power method on the factors, from a warm start."""
    if min(b.shape[0], a.shape[1]) <= WHOLE:
        u, s, vh = torch.linalg.svd(b @ stage.forward(a), full_matrices=False)
        return u[:, 0], float(s[0]), vh[0]

    def gram(x: Tensor) -> Tensor:
        return a.T @ stage.backward(b.T @ (b @ stage.forward(a @ x)))

    try:
        _, v = power_method(gram, start, 2000, 1e-10)
    except ValueError as reason:
        raise NumericsError("the pair of layers overflows; rescale the network's weights.") from reason
    image = b @ stage.forward(a @ v)
    value = float(image.norm())
    return image / max(value, 1e-300), value, v


def maximise_lbfgs(b: Tensor, a: Tensor, stage: Stage) -> float:
    """L-BFGS-B on σ in [low, high] from the middle of the box, gradient (u·b_j)(a_j·v); slopes only."""
    from scipy.optimize import minimize

    slopes = stage.slopes
    if slopes is None:
        raise ValueError("L-BFGS moves slopes, it cannot choose among the entries of a window.")
    if not b.numel() or not a.numel():
        return 0.0
    last = torch.ones(a.shape[1], dtype=torch.float64)

    def negative(sigma: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal last
        slopes.sigma = torch.from_numpy(sigma)
        u, value, last = _leading(b, stage, a, last)
        return -value, -((u @ b) * (a @ last)).numpy()

    middle = ((slopes.low + slopes.high) / 2).numpy()
    bounds = list(zip(slopes.low.tolist(), slopes.high.tolist(), strict=True))
    result = minimize(negative, middle, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000})
    return -float(result.fun)
