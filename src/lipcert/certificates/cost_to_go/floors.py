"""Maxima over windows that are read by a ReLU alone: both are one function, max(0, v_1, …), and have one cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.network.activations.clamp import Clamp
from lipcert.network.graph import ActivationNode, Network
from lipcert.ranges.build import maximum


@dataclass(frozen=True)
class Floor:
    """z = max(level, m), of a maximum m that nothing else reads.

    Attributes:
        maximum: its position.
        level: a number.
    """

    maximum: int
    level: float


def floors(network: Network) -> dict[int, Floor]:
    """Position of an activation → what it is the floor of."""
    readers: dict[int, int] = {}
    for node in network.nodes:
        for parent in node.parents:
            readers[parent] = readers.get(parent, 0) + 1
    found = {}
    for k, node in enumerate(network.nodes):
        level = _level(node.function) if isinstance(node, ActivationNode) else None
        if level is None:
            continue
        parent = node.parents[0]
        before = network.nodes[parent]
        if maximum(before) is not None and readers[parent] == 1 and before.shape == node.shape:
            found[k] = Floor(parent, level)
    return found


def _level(function: object) -> float | None:
    """The number below which a function ends, where it is the identity above."""
    if not isinstance(function, Clamp) or function.low is None or function.high is not None:
        return None
    return function.low if math.isfinite(function.low) else None


def least_of(level: float, low: Tensor) -> Tensor:
    """What max(level, m) is at least, (…, O), for m from ``low``."""
    return Clamp("floor", 0.0, 1.0, level, None)(low)


def below(high: Tensor, low: Tensor, most: Tensor) -> Tensor:
    """Upper ends of entries, (…, O, K), of which none is above their maximum, ``most``; no end below the lower one."""
    return torch.maximum(torch.minimum(high, most.unsqueeze(-1)), low)


def one_more(entries: Tensor, fill: Tensor | float) -> Tensor:
    """(…, O, K) → (…, O, K + 1), with a number in every window, or the same in all."""
    last = torch.as_tensor(fill, dtype=entries.dtype, device=entries.device)
    last = last.unsqueeze(-1) if last.dim() else last
    return torch.cat([entries, last.expand_as(entries[..., :1])], -1)


def bordered(matrices: Tensor) -> Tensor:
    """(O, K, K) → (O, K + 1, K + 1), with zeros."""
    return F.pad(matrices, (0, 1, 0, 1))
