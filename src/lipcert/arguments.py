"""Arguments that several public functions take, checked."""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

import torch

from lipcert.errors import InputError


def whole(value: Any) -> int | None:
    """A whole number, whatever holds it: an int, a NumPy integer, an array or tensor of one; None for anything else.

    Truth values are no numbers, and neither is 3.0.
    """
    kind = getattr(value, "dtype", None)
    if isinstance(value, bool) or kind == torch.bool or getattr(kind, "kind", "i") == "b" or getattr(value, "ndim", 0):
        return None
    try:
        return operator.index(value)
    except Exception:  # tensors raise errors of their own
        return None


def real(value: Any) -> float:
    """A number as a float, whatever holds it; NaN for what is none, or a truth value."""
    number = whole(value)
    if number is not None:
        return float(number) if abs(number) < sys.float_info.max else math.inf if number > 0 else -math.inf
    kind = getattr(value, "dtype", None)
    plain = isinstance(value, float) or getattr(kind, "kind", "") == "f" or getattr(kind, "is_floating_point", False)
    try:
        return float(value) if plain and not getattr(value, "ndim", 0) else math.nan
    except Exception:
        return math.nan


def seed_of(seed: Any) -> int:
    """A seed as a plain int."""
    number = whole(seed)
    if number is None or not 0 <= number < 2**63 - 1:
        raise InputError(f"seed must be an integer from 0 to 2^63 − 2, not {seed!r}.")
    return number


def generator_of(seed: Any) -> torch.Generator:
    """A generator on the CPU with this seed."""
    return torch.Generator().manual_seed(seed_of(seed))


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
    seconds = real(budget)
    if not seconds > 0:
        raise InputError(f"budget must be a positive number of seconds, not {budget!r}.")
    return min(seconds, sys.float_info.max)
