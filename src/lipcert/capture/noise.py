"""How much of a difference between the Network and the model is rounding: where values cancel, nearly all of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.network.graph import Network

#: How often the rounding of one order of summation another one's may be.
_TIMES = 64.0
#: Precisions in which that is looked at; in lower ones the tolerances say little already.
_LOOKED_AT = (torch.float64, torch.float32)


def rounding_noise(high: Tensor, low: Callable[[], Tensor], judged: torch.dtype = torch.float64) -> float:
    """About what rounding in ``judged`` may do to the greatest entry: what it does in float32, in proportion.

    Nothing is proved by it, and nothing rests on it: it tells a network that was captured wrongly from one whose values
    cancel, as x + 10¹² − 10¹² does. Both values must be those of one and the same function.

    Args:
        high: a value in float64.
        low: gives the same in float32; if it breaks, nothing is known.
        judged: the precision in which two ways of computing it differ.
    """
    if judged not in _LOOKED_AT or not high.numel():
        return 0.0
    try:
        own = low().double()
    except Exception:  # whatever an op does not do in float32
        return 0.0
    known = own.isfinite() & high.isfinite()
    if not bool(known.any()):
        return 0.0
    share = torch.finfo(judged).eps / torch.finfo(torch.float32).eps
    return _TIMES * share * float((own - high)[known].abs().max())


def network_noise(network: Network, x: Tensor, high: Tensor, judged: torch.dtype = torch.float64) -> float:
    """The same of f at a batch (B, *in_shape) of points, where it is ``high``."""
    return rounding_noise(high, lambda: network.to(torch.float32, "cpu").forward(x.float()), judged)
