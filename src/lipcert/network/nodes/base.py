"""What every node of a network knows: its value, its identity, and what its increments obey."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from lipcert.errors import CaptureError
from lipcert.network.linear import Shape
from lipcert.network.origin import Origins
from lipcert.network.relations import Local, LocalGains, Relation


@dataclass(frozen=True, eq=False, kw_only=True)
class Node(ABC):
    """One value of the network.

    Attributes:
        parents: positions in ``Network.nodes``, all before the node's own.
        shape: of the value, the captured graph's batch dimension of 1 included.
        name: short (``conv2d``), for reports.
        origin: the calls in the user's model that the node comes from.
    """

    parents: tuple[int, ...]
    shape: Shape
    name: str
    origin: Origins = ()

    @property
    def where(self) -> str:
        """The place in the user's code, for messages."""
        return str(self.origin[-1]) if self.origin else ""

    @abstractmethod
    def value(self, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
        """The node's value on a batch, from its parents' (B, *shape); ``like`` gives batch, dtype and device."""

    @abstractmethod
    def relation(self, position: int, local: Local | None = None) -> Relation:
        """What the node's increments obey.

        Args:
            position: the node's own.
            local: an activation's slopes, or a block's gains, on the domain; None: on the whole space.
        """

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """The same node with its constants in another dtype and on another device."""
        return self

    def update_hash(self, digest: Any) -> None:
        """Feed kind, wiring, shape and everything that determines the function to a hashlib object."""
        digest.update(repr((type(self).__name__, self.parents, self.shape)).encode())


def explained(error: CaptureError, local: Local | None) -> CaptureError:
    """The error with what is known on the domain of its cause."""
    remark = local.remark if isinstance(local, LocalGains) else ""
    return type(error)(f"{error} {remark}") if remark else error
