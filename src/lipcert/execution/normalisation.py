"""Batch norm in eval mode, and layer, group and RMS norm, whose mean and variance are computed in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.execution.float32 import FLUSH, UNIT, gamma, up
from lipcert.execution.outcome import Outcome, Slopes
from lipcert.execution.registry import executed
from lipcert.execution.value import Call, Executed


@executed("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(call: Call) -> Outcome:
    """y = x·α + (b − μα) with α = w/√(σ² + ε), or ((x − μ)·α) + b.

    Why this is an upper bound: α takes at most eight roundings (ε to float32, a sum, a root to two units in the last
    place, a quotient, a product), the offset two more, the last product and sum two: each term is off by less than
    γ_16 of its size, whichever form a kernel uses and in whatever order.
    """
    x, mean, var = call.operand("input"), call.operand("running_mean"), call.operand("running_var")
    channel = (-1, *([1] * (x.error.dim() - 2)))
    spread = var.low + float(call.get("eps", 1e-5)) * (1.0 - 2.0 * UNIT)
    if not bool((spread > 2.0**-100).all()):
        raise call.unsupported("a running variance plus eps is nearly zero")
    scale = up(1.0 / spread.sqrt())
    weight, bias = ((call.operand(n) if call.get(n) is not None else None) for n in ("weight", "bias"))
    factor = scale if weight is None else scale * weight.reach
    for stored in (mean, var, weight, bias):
        if stored is not None and bool((stored.error > 0).any()):
            raise call.unsupported("its statistics or parameters are no float32 numbers")
    offset = mean.reach * factor + (0.0 if bias is None else bias.reach)
    factor, offset = factor.reshape(channel), offset.reshape(channel)
    call.bounded((x.reach + mean.reach.reshape(channel)) * torch.maximum(factor, torch.ones_like(factor)) + offset)
    total = up(x.reach * factor + offset)
    tiny = 16.0 * FLUSH * (1.0 + x.reach + mean.reach.reshape(channel)) * (1.0 + scale.reshape(channel)) ** 2
    exact = 1.0 / (var.box.low + float(call.get("eps", 1e-5))).sqrt()  # the network's own, ε as the double it is
    signed = (exact if weight is None else exact * weight.box.low).reshape(channel)
    slack = 2.0**-49 * signed.abs()
    part = Slopes(x, (signed - slack).expand(x.error.shape), (signed + slack).expand(x.error.shape))
    return Outcome(up(gamma(16.0) * total) + tiny * (1.0 + factor), (part,))


@executed("layer_norm", "native_layer_norm", "group_norm", "rms_norm")
def _normalised(call: Call) -> Outcome:
    """y = (x − m)/√(v + ε)·w + b with mean m and variance v of each row; m = 0 and v the mean of squares for RMS norm.

    Why this is an upper bound: the rows' Jacobian (I − 1/n − yyᵀ/n)/√(v + ε) has norm ≤ 1/√(v + ε), so errors e of a
    row move every entry by at most ‖e‖/√(v + ε), with the least variance on the box. The executed variance is off by
    at most ``share`` (v + ε), so the quotient by that factor of itself, |x − m|/√(v + ε) ≤ √n; the executed mean by
    ``mean_error``; the rest are single roundings of x, m and what they make, in either order of the products.
    """
    x = call.refined("input")
    shape = x.error.shape
    rows = _rows(call, shape)
    low, high, error = (t.reshape(rows) for t in (x.low, x.high, x.error))
    n = rows[-1]
    eps = call.get("eps")
    eps = float(torch.finfo(torch.float32).eps) if eps is None else float(eps)
    most = torch.maximum(low.abs(), high.abs()).amax(-1, keepdim=True)
    call.bounded(most.square() * float(n))
    centred = call.op != "rms_norm"
    spread = _least_variance(low, high, most, centred) + eps * (1.0 - 2.0 * UNIT)
    if not bool((spread > 2.0**-60).all()):
        raise call.unsupported("a variance plus eps may be nearly zero on this domain")
    mean_error, share = _moments(most, spread, n) if centred else (torch.zeros_like(most), gamma(n + 8.0))
    share = up(torch.as_tensor(share) + 8.0 * UNIT)
    if not bool((share < 0.5).all()):
        raise call.unsupported("the rounding of a variance may be as large as the variance on this domain")
    inverse = up(1.0 / spread.sqrt()) * (1.0 + share)  # of the executed variance, too: (1 − s)^(−1/2) ≤ 1 + s
    moved = up(error.square().sum(-1, keepdim=True).sqrt(), n) * inverse
    size = torch.minimum(torch.full_like(most, math.sqrt(n) + 1.0), 2.0 * most * inverse)
    own = size * up(share + 8.0 * UNIT) + inverse * (mean_error + 16.0 * UNIT * most)
    total = up((moved + own) * (1.0 + 2.0**-20)).expand(rows).reshape(shape)
    factor, offset = (_parameter(call, name, shape) for name in ("weight", "bias"))
    factor = torch.ones_like(total) if factor is None else factor
    reach = call.bounded(up(call.box.greatest + factor * total + (0.0 if offset is None else 2.0 * offset)))
    largest = 64.0 * FLUSH * (1.0 + float(most.max())) * (1.0 + float(inverse.max()))
    own = up(factor * total + 8.0 * UNIT * (reach + factor * (math.sqrt(n) + 1.0)))
    return Outcome(own + largest * (1.0 + factor))


def _rows(call: Call, shape: torch.Size) -> tuple[int, ...]:
    """The shape with the entries that are normalised together on the last axis."""
    if call.op == "group_norm":
        groups = int(call.get("num_groups"))
        return shape[0], groups, math.prod(shape[1:]) // groups
    together = call.get("normalized_shape")
    return (*shape[: len(shape) - len(together)], math.prod(together))


def _parameter(call: Call, name: str, shape: torch.Size) -> Tensor | None:
    """The size of a parameter per channel (group norm) or per entry, so that it broadcasts to the value."""
    if call.get(name) is None:
        return None
    stored: Executed = call.operand(name)
    if bool((stored.error > 0).any()):
        raise call.unsupported("its parameters are no float32 numbers")
    return stored.reach.reshape(-1, *([1] * (len(shape) - 2))) if call.op == "group_norm" else stored.reach


def _least_variance(low: Tensor, high: Tensor, most: Tensor, centred: bool) -> Tensor:
    """A lower bound of the variance of rows in a box of centre c and radii ρ: (‖c − c̄‖ − ‖ρ‖)²/n."""
    n = low.shape[-1]
    centre, radius = 0.5 * (low + high), up(0.5 * (high - low) + 2.0**-52 * (low.abs() + high.abs()))
    middle = centre - centre.mean(-1, keepdim=True) if centred else centre
    away = middle.norm(dim=-1, keepdim=True) * (1.0 - (n + 64.0) * 2.0**-52)
    slack = up(radius.norm(dim=-1, keepdim=True), n) + (n + 8.0) * 2.0**-52 * most * math.sqrt(n)
    return (away - slack).clamp(min=0.0).square() / n * (1.0 - 2.0**-40)


def _moments(most: Tensor, spread: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(error of the mean, error of the variance over v + ε) as PyTorch computes both, in one pass over a row.

    ATen's ``RowwiseMoments`` (all versions since 1.8) runs Welford's update in chunks of 16 vectors and merges chunks
    in a binary tree, then lanes and the rest of the row one by one (Chan, Golub & LeVeque 1983).

    Why these are bounds: each update or merge adds to the error of a mean at most three roundings of a difference
    ≤ 2 max|x̂| and one of the mean, below 8 u max|x̂|, and takes convex combinations of what was there; ``steps``
    follow one another. With means off by e, the update δδ′ (δ, δ′ the deviations from the means before and after,
    Σδδ′ = n v, |δ| ≤ √(2δδ′)) is off by e(|δ| + |δ′|) + e², in all 3 e √v + e² per entry; a merge w(Δm)² with Σ w ≤ n
    per level and Σ w(Δm)² ≤ n v is off by 4 e √(levels v) + 4 e² levels; sums and products add γ of all that. And
    √v/(v + ε) ≤ 1/√(v + ε), greatest at the least v.
    """
    levels = math.log2(n + 1) + 2.0
    steps = min(float(n), 56.0 + levels)
    mean_error = up(8.0 * (steps + 2.0) * UNIT * most)
    relative = mean_error / spread.sqrt()
    share = (3.0 + 4.0 * math.sqrt(levels)) * relative + (1.0 + 4.0 * levels) * relative.square()
    return mean_error, up((share + gamma(2.0 * steps + 24.0) * (1.0 + share)) * (1.0 + 2.0**-20))


__all__: list[str] = []
