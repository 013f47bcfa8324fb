"""Softmax, log-softmax and log-sum-exp over one or more axes: blocks of known gain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.expansion import Expansion
from lipcert.network.nonlinearity import GainFunction
from lipcert.network.softmax_expansion import (
    log_softmax_expansion,
    log_sum_exp_expansion,
    softmax_expansion,
    softmax_gains,
)
from lipcert.numerics.interval import Interval
from lipcert.ops.context import Context
from lipcert.ops.left_out import left_out
from lipcert.ops.registry import rule


def round_up(value: float, steps: int = 4) -> float:
    """``value`` moved a few floats up: more than a few correctly rounded operations can have lost."""
    for _ in range(steps):
        value = math.nextafter(value, math.inf)
    return value


def root_up(value: int | float, order: float = 2.0) -> float:
    """An upper bound on ``value ** (1 / order)``, exact when the square root is a whole number."""
    if value in (0, 1):
        return float(value)
    if order == 2.0:
        root = math.sqrt(value)
        return root if root == int(root) and root * root == value else round_up(root, 1)
    # pow is accurate to about an ulp, the rounded exponent adds |log value| ulps.
    return float(value ** (1.0 / order)) * (1.0 + 1e-13)


def _float_only(ctx: Context, dtype: Any) -> None:
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise ctx.not_lipschitz(f"conversion to {dtype} is discontinuous.")


@dataclass(frozen=True, eq=False, repr=False)
class Softmax(GainFunction):
    """exp x/Σ exp x along ``axis``."""

    image = (0.0, 1.0)
    smooth: ClassVar[bool] = True

    axis: int

    @property
    def probabilities(self) -> tuple[Literal["softmax"], tuple[int, ...]]:
        """These."""
        return "softmax", (self.axis,)

    def value(self, x: Tensor) -> Tensor:
        """The probabilities."""
        return torch.softmax(x, self.axis)

    def expansion(self, box: Interval, least: Tensor | None = None) -> Expansion | None:
        """Row by row."""
        return softmax_expansion(box, self.axis)

    def gains_on(self, box: Interval) -> Mapping[float, float]:
        """From bounds of the probabilities."""
        return softmax_gains(box, self.axis)


@dataclass(frozen=True, eq=False, repr=False)
class MaskedSoftmax(Softmax):
    """exp x/Σ exp x along ``axis`` over the entries where ``kept`` is 1; 0 where it is 0, and where nothing is kept."""

    kept: Tensor

    def expansion(self, box: Interval, least: Tensor | None = None) -> Expansion | None:
        """Row by row."""
        return softmax_expansion(box, self.axis, self.kept)

    def gains_on(self, box: Interval) -> Mapping[float, float]:
        """From bounds of the probabilities."""
        return softmax_gains(box, self.axis, self.kept)

    def value(self, x: Tensor) -> Tensor:
        """The probabilities."""
        if not isinstance(x, Tensor):  # numbers of another kind have a rule of their own
            result: Tensor = x.softmax_of_kept(self.axis, self.kept)
            return result
        row = self.kept.amax(self.axis, keepdim=True) > 0
        logits = torch.where((self.kept > 0) | ~row, x, -math.inf)
        return torch.where(row, torch.softmax(logits, self.axis), 0.0)


@dataclass(frozen=True, eq=False, repr=False)
class LogSoftmax(GainFunction):
    """x − log Σ exp x along ``axis``."""

    image = (-math.inf, 0.0)
    smooth: ClassVar[bool] = True

    axis: int

    @property
    def probabilities(self) -> tuple[Literal["log_softmax"], tuple[int, ...]]:
        """Their logarithms."""
        return "log_softmax", (self.axis,)

    def value(self, x: Tensor) -> Tensor:
        """The logarithms of the probabilities."""
        return torch.log_softmax(x, self.axis)

    def expansion(self, box: Interval, least: Tensor | None = None) -> Expansion | None:
        """Row by row."""
        return log_softmax_expansion(box, self.axis)


@dataclass(frozen=True, eq=False, repr=False)
class LogSumExp(GainFunction):
    """log Σ exp x over ``axes``."""

    smooth: ClassVar[bool] = True

    axes: tuple[int, ...]
    keepdim: bool

    @property
    def probabilities(self) -> tuple[Literal["logsumexp"], tuple[int, ...]]:
        """The gradient."""
        return "logsumexp", self.axes

    def value(self, x: Tensor) -> Tensor:
        """The logarithm of the sum."""
        return torch.logsumexp(x, self.axes, self.keepdim)

    def expansion(self, box: Interval, least: Tensor | None = None) -> Expansion | None:
        """Row by row."""
        shape, axes = tuple(box.low.shape), tuple(sorted(self.axes))
        kept = tuple(1 if a in axes else n for a, n in enumerate(shape) if self.keepdim or a not in axes)
        return log_sum_exp_expansion(box, axes, kept)


@rule("softmax.int", "_softmax", kind="gain")
def softmax(ctx: Context, x: Any, dim: int, dtype: Any = None) -> Var:
    """Softmax: 1/2 in l1, l2 and l∞ (Nair 2025, arXiv 2510.23012), attained for two entries at equal logits.

    Why: the Jacobian J = diag(p) − ppᵀ is symmetric with absolute row sums 2 pᵢ(1 − pᵢ) ≤ 1/2, so
    ‖J‖₁ = ‖J‖∞ ≤ 1/2 and ‖J‖₂ ≤ √(‖J‖₁‖J‖∞) ≤ 1/2. Groups along other axes are independent blocks.
    """
    return probabilities(ctx, x, dim, dtype, empty=False)


@rule("_safe_softmax", kind="gain")
def safe_softmax(ctx: Context, x: Any, dim: int, dtype: Any = None) -> Var:
    """Softmax that gives 0 in rows that are −∞ throughout: 1/2 in l1, l2 and l∞, as softmax."""
    return probabilities(ctx, x, dim, dtype, empty=True)


def probabilities(ctx: Context, x: Any, dim: int, dtype: Any = None, empty: bool = True) -> Var:
    """Softmax over the entries that no mask of −∞ leaves out.

    Args:
        ctx: of the call.
        x: the logits.
        dim: the axis of a row.
        dtype: that of the result.
        empty: a row of which all is left out gives 0; otherwise it is not a number, and refused.
    """
    _float_only(ctx, dtype)
    x, places = left_out(ctx, ctx.variable(x))
    axis = _axis(x, dim)
    kept = None if places is None else (~places).to(torch.float64)
    most = _length(x, dim) if kept is None else int(kept.sum(axis).max()) if kept.numel() else 0
    if places is not None and not empty and bool(places.all(axis).any()):
        raise ctx.unsupported("all entries of a row are −∞, so that its softmax is no number; mask no row entirely.")
    gain = 0.0 if most <= 1 else 0.5
    gains = {1.0: gain, 2.0: gain, math.inf: gain}
    source = "softmax: |J| row sums 2p(1−p) ≤ 1/2 (Nair 2025)"
    if kept is None:
        return ctx.gain(x, Softmax("softmax", gains, source, axis))
    return ctx.gain(x, MaskedSoftmax("softmax", gains, source, axis, kept))


@rule("log_softmax.int", "_log_softmax", kind="gain")
def log_softmax(ctx: Context, x: Any, dim: int, dtype: Any = None) -> Var:
    """Log-softmax over n entries: √n in l2, 2 in l∞, n − 1 in l1 (suprema, approached as a probability → 1).

    Why: the Jacobian is I − 1pᵀ. Row sums |1 − pᵢ| + Σ_{j≠i} p_j = 2(1 − pᵢ) < 2; column sums
    1 + (n − 2)p_j ≤ n − 1; and 1pᵀ is a projection (pᵀ1 = 1), so for n ≥ 2 its complement
    has the same 2-norm √n‖p‖₂ ≤ √n.
    """
    _float_only(ctx, dtype)
    x = _whole(ctx, x)
    n = _length(x, dim)
    gains = {1.0: 0.0, 2.0: 0.0, math.inf: 0.0} if n <= 1 else {1.0: n - 1.0, 2.0: root_up(n), math.inf: 2.0}
    source = f"log-softmax over {n} entries: J = I − 1pᵀ, ‖J‖₂ = √n‖p‖₂ ≤ √n"
    return ctx.gain(x, LogSoftmax("log_softmax", gains, source, _axis(x, dim)))


@rule("logsumexp", kind="gain")
def logsumexp(ctx: Context, x: Any, dim: Any, keepdim: bool = False) -> Var:
    """Log-sum-exp: 1 in l1, l2 and l∞; the gradient is a probability vector p with ‖p‖₂ ≤ ‖p‖₁ = 1.

    Why: the dual norms of p are max pᵢ ≤ 1 (l1), ‖p‖₂ ≤ 1 (l2) and Σ pᵢ = 1 (l∞); groups are independent.
    """
    x = _whole(ctx, x)
    axes = tuple(_axis(x, d) for d in (dim if isinstance(dim, (list, tuple)) else (dim,)))
    gains = {1.0: 1.0, 2.0: 1.0, math.inf: 1.0}
    source = "log-sum-exp: its gradient is a probability vector"
    return ctx.gain(x, LogSumExp("logsumexp", gains, source, axes, bool(keepdim)))


def _whole(ctx: Context, x: Any) -> Var:
    x = ctx.variable(x)
    if left_out(ctx, x)[1] is not None:
        raise ctx.unsupported("of masks of −∞ only those before a softmax are understood.")
    return x


def _axis(x: Var, dim: int) -> int:
    return int(dim) % max(1, len(x.shape))


def _length(x: Var, dim: int) -> int:
    return x.shape[dim] if x.shape else 1
