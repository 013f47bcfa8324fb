"""Which entries a linear map makes of which: decided on zeros and ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Sum


def touched(linear: LinearMap, entries: Tensor) -> Tensor:
    """Which entries of the image some of these (truth per entry, a batch) have a part in, through factors not zero.

    Decided on zeros and ones, which do not underflow as sizes and products of small constants may.
    """
    if isinstance(linear, Composition):
        for part in linear.maps:
            entries = touched(part, entries)
        return entries
    if isinstance(linear, Sum):
        result = touched(linear.maps[0], entries)
        for part in linear.maps[1:]:
            result = result | touched(part, entries)
        return result
    if isinstance(linear, Identity):
        return entries & (linear.scale != 0.0)
    pattern = linear.absolute()
    if isinstance(pattern, (OpMap, Dense)) and pattern.constants:
        ones: Any = tuple((c != 0).to(torch.float64) for c in pattern.constants)
        pattern = replace(pattern, constants=ones)
    return pattern.apply(entries.to(torch.float64)) > 0
