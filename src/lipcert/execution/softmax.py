"""Softmax and its logarithm: the largest entry is subtracted, then exp, a sum and a quotient."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.execution.float32 import FLUSH, LIBRARY, UNIT, gamma, up
from lipcert.execution.outcome import Outcome
from lipcert.execution.registry import executed
from lipcert.execution.value import Call

#: exp(-104) is below the least subnormal number: a larger difference gives 0.
_FAR = 104.0


def _relative(call: Call, dim: int) -> tuple[Tensor, Tensor, float]:
    """(how far arguments of a row are off at most, relative error of its exponentials, relative error of their sum).

    x̂ − max is off by u|x̂ − max|, so exp by that factor of itself; 8 u are exp's own.
    """
    x = call.refined("self")
    off = x.error.amax(dim, keepdim=True)
    spread = (x.high.amax(dim, keepdim=True) - x.low.amin(dim, keepdim=True)).clamp(min=0.0, max=_FAR)
    call.bounded(2.0 * x.reach)
    exponential = torch.expm1(up(spread * UNIT) * 1.01) + (LIBRARY + 2.0) * UNIT
    return off, exponential, gamma(x.error.shape[dim] + 2.0)


@executed("softmax", "_softmax")
def _softmax(call: Call) -> Outcome:
    """Errors of arguments ≤ d change p by a factor in [e^{−2d}, e^{2d}]; so do errors of exponentials and their sum."""
    dim = int(call.get("dim"))
    off, exponential, total = _relative(call, dim)
    entries = call.box.low.shape[dim]
    inner = (1.0 + exponential) ** 2 * (1.0 + total) ** 2 * (1.0 + 8.0 * UNIT) - 1.0
    factor = torch.expm1(2.0 * off) * (1.0 + 2.0**-40) + 2.0**-60
    relative = up((1.0 + inner * 1.01) * (1.0 + factor) - 1.0 + 2.0**-48)
    return Outcome(up(relative * call.box.greatest) + (4.0 * entries + 4.0) * FLUSH)


@executed("log_softmax", "_log_softmax", "logsumexp")
def _log_softmax(call: Call) -> Outcome:
    """x − max − log Σ exp: the sum lies in [1, n], so its logarithm's error is the sum's relative one, and its own."""
    dim = call.get("dim")
    dims = dim if isinstance(dim, list) else [dim]
    if len(dims) != 1:
        raise call.unsupported("it sums over several axes")
    off, exponential, total = _relative(call, int(dims[0]))
    if call.op == "logsumexp" and not call.get("keepdim", False):
        off, exponential = off.squeeze(int(dims[0])), exponential.squeeze(int(dims[0]))
    x = call.refined("self")
    entries = x.error.shape[int(dims[0])]
    sum_error = (1.0 + exponential) * (1.0 + total) - 1.0 + entries * FLUSH
    logarithm = 2.0 * sum_error + LIBRARY * UNIT * float(torch.tensor(float(entries)).log() + 1.0)
    widest = x.reach.amax(int(dims[0]), keepdim=True)
    if call.op == "logsumexp" and not call.get("keepdim", False):
        widest = widest.squeeze(int(dims[0]))
    own = logarithm + 3.0 * UNIT * (2.0 * widest + call.box.greatest + 2.0 * off)
    return Outcome(up((2.0 * off + own) * (1.0 + 2.0**-20)) + 4.0 * FLUSH)


__all__: list[str] = []
