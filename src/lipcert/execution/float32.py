"""IEEE binary32 as a model is run in, and float64 sums of non-negative numbers that are never too small."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Unit roundoff of float32, rounding to nearest.
UNIT = 2.0**-24
#: The largest float32 number.
LARGEST = float(torch.finfo(torch.float32).max)
#: Least normal number: what one operation may lose by underflow, also where subnormal numbers are flushed to zero.
FLUSH = 2.0**-126
#: Roundings granted to exp, log, tanh, erf …: 4 units in the last place.
LIBRARY = 8.0


def gamma(count: float) -> float:
    """k u/(1 − k u) of float32, rounded up; infinite where it means nothing. Higham 2002, Lemma 3.1."""
    share = count * UNIT
    return share / (1.0 - share) * (1.0 + 2.0**-48) if share < 0.25 else math.inf


def up(total: Tensor, terms: float = 0.0) -> Tensor:
    """A float64 result of non-negative numbers made larger than all its roundings: ``terms`` in the longest sum."""
    return total * (1.0 + (terms + 64.0) * 2.0**-52)


def to_float32(value: Tensor) -> Tensor:
    """The float32 numbers next to float64 ones, as float64."""
    return value.to(torch.float32).to(torch.float64)
