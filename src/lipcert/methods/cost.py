"""What work will take: seconds on this machine, measured where one step is cheap and estimated where it is not."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable

import torch

#: Memory to count on where the machine does not say, and the share of the free memory that one search may take.
_UNKNOWN_MEMORY, MEMORY_SHARE = 4e9, 0.4

#: Seconds that keeping one entry of Lanczos's basis orthogonal to one vector takes: two sweeps through memory, twice.
SWEEP = 2e-9


@functools.cache
def operations_per_second() -> float:
    """Floating-point operations per second in a float64 matrix product, measured once."""
    a = torch.ones(400, 400, dtype=torch.float64)
    return 2.0 * 400.0**3 / max(min(seconds_of(lambda: a @ a) for _ in range(3)), 1e-9)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def free_memory() -> float:
    """Bytes that one search may take."""
    try:
        return MEMORY_SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return MEMORY_SHARE * _UNKNOWN_MEMORY
