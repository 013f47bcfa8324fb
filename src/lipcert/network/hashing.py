"""What the hash of a network is fed: tensors by their numbers, maps that move entries by where they put them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lipcert.network.linear import LinearMap


def update_hash_with_tensor(digest: Any, tensor: Tensor) -> None:
    """Feed dtype, shape and raw bytes of a tensor to ``digest``; float tensors count by their float64 value."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point():
        tensor = tensor.double()
    digest.update(repr((str(tensor.dtype), tuple(tensor.shape))).encode())
    digest.update(tensor.numpy().tobytes())


def index_key(table: Tensor) -> str:
    """Text that identifies, for given shapes, the map that puts entry ``table[i] − 1`` of its input at i, 0 for 0."""
    places = table.detach().reshape(-1).to("cpu", torch.int64)
    if torch.equal(places, torch.arange(1, len(places) + 1)):
        return "entries in order"
    return f"entries {hashlib.sha256(places.contiguous().numpy().tobytes()).hexdigest()}"


def fingerprint(*maps: LinearMap) -> str:
    """SHA-256 of a few maps."""
    digest = hashlib.sha256()
    for linear in maps:
        linear.update_hash(digest)
    return digest.hexdigest()
