"""The 2018 paper's power method on one layer: a norm approached from below, for judging and for estimates."""

from __future__ import annotations

import math

import torch

from lipcert.certificates.norms.scaling import scaled
from lipcert.network.linear import LinearMap
from lipcert.search.power_method import power_method


def norm_from_below(linear: LinearMap, steps: int, generator: torch.Generator) -> float:
    """‖W‖₂ after some steps from a random start (Scaman & Virmaux 2018, Algorithm 2): never above it, no bound."""
    here, size = scaled(linear.to(torch.float64, "cpu")), linear.in_size
    if not size:
        return 0.0
    unit = here.map
    value = power_method(lambda x: unit.gram(x.reshape(1, *unit.in_shape)).reshape(-1), size, steps, generator)
    return math.ldexp(value, here.exponent)
