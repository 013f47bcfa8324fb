"""Arguments that several public functions take, checked."""

from __future__ import annotations

import sys

import torch

from lipcert.errors import InputError


def generator_of(seed: int) -> torch.Generator:
    """A generator on the CPU with this seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63 - 1:
        raise InputError(f"seed must be an integer from 0 to 2^63 − 2, not {seed!r}.")
    return torch.Generator().manual_seed(seed)


def device_of(device: str | torch.device | None) -> torch.device:
    """A device that holds numbers."""
    try:
        chosen = torch.device("cpu" if device is None else device)
        torch.zeros(1, device=chosen).item()  # fails on a device that holds no numbers (meta), too
    except Exception as problem:
        raise InputError(f"device {device!r} cannot be used: {problem}") from problem
    return chosen


def budget_of(budget: float) -> float:
    """Seconds, finite and positive."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget > 0:
        raise InputError(f"budget must be a positive number of seconds, not {budget!r}.")
    return float(min(budget, sys.float_info.max))  # a whole number may be larger
