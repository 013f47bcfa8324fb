"""Values without a constant on the whole space: products of two variables, exp, quotients by a variable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from lipcert.errors import CaptureError, NotLipschitzError
from lipcert.network.activations.steep import Power
from lipcert.network.hashing import update_hash_with_tensor
from lipcert.network.nodes.base import Node, explained
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.radial import Radial
from lipcert.network.relations import BlockCell, EntryCell, Local, LocalGains, LocalSlopes, Relation

#: (the parents' values for one example, the call's constants) → the node's value for that example.
Evaluation = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenNode(Node):
    """A value whose increments obey nothing on the whole space, unless a later rule absorbs it (x·sigmoid(x) → SiLU).

    Attributes:
        op: the operation, for pattern rules.
        settings: its arguments, for pattern rules.
        error: what to raise where a constant on the whole space is asked for.
        function: the value for one example; None where only a pattern can make sense of the node.
        constants: tensors that ``function`` needs besides the parents' values.
        key: identifies ``function`` in the network's hash.
        steep: what the node computes, where that is one function of each entry of its one parent (which x·x names
            twice): on an interval it has slopes.
        combines: ``mul`` or ``div`` where the node is just that of two parents, entry by entry; ``blend`` where it is
            n + z(h − n) of parents z, h and n; ``matmul`` where it is the matrix product of two, batches of one shape.
        block: what the node computes of its one parent, where that is a block that has gains away from 0.
    """

    op: str = ""
    settings: tuple[object, ...] = ()
    error: CaptureError
    function: Evaluation | None = None
    constants: tuple[Tensor, ...] = ()
    key: str = ""
    steep: Nonlinearity | None = None
    combines: str = ""
    block: Radial | None = None

    def value(self, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
        """The op's own value, example by example."""
        if self.function is None:
            raise self.error
        function, constants = self.function, self.constants
        rows = [function([value[row] for value in inputs], constants) for row in range(len(like))]
        return torch.stack(rows) if rows else torch.zeros(0, *self.shape, dtype=like.dtype, device=like.device)

    def relation(self, position: int, local: Local | None = None) -> Relation:
        """Slopes where the node is one function of an interval on which that has some, or gains of a block there.

        Raises:
            CaptureError: it is neither, or they are infinite.
        """
        if local is None:
            raise self.error
        if isinstance(local, LocalGains):
            if not local.gains:
                raise explained(self.error, local)
            source = self.block.source if self.block is not None else ""
            return BlockCell(self.parents, self.shape, self.name, self.origin, position, local.gains, "gain", source)
        assert isinstance(local, LocalSlopes)
        steep = ~(local.lower.isfinite() & local.upper.isfinite())
        if not bool(steep.any()):
            own = self.parents[:1]  # x·x names its one parent twice
            return EntryCell(own, self.shape, self.name, self.origin, position, local.lower, local.upper)
        box = local.box
        if not bool((box.low[steep].isfinite() & box.high[steep].isfinite()).any()):
            raise self.error
        low, high = float(box.low[steep].min()), float(box.high[steep].max())
        place, at = f" (in {self.where})" if self.where else "", f"[{low:.4g}, {high:.4g}]"
        if isinstance(self.steep, Power) and self.steep.exponent < 0:
            raise NotLipschitzError(
                f"{self.name}{place} has no Lipschitz constant on this domain as far as is proved: the denominator may "
                f"vanish, being known to lie in {at} only. Choose a smaller domain, or bound it away from 0."
            )
        raise NotLipschitzError(
            f"{self.name}{place} has no Lipschitz constant on this domain as far as is proved: its argument is known "
            f"to lie in {at} only, where its slope is not bounded. Choose a smaller domain."
        )

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """With the floating constants in another dtype, and all of them on another device."""
        moved = (c.to(device=device, dtype=dtype if c.is_floating_point() else c.dtype) for c in self.constants)
        return replace(self, constants=tuple(moved))

    def update_hash(self, digest: Any) -> None:
        """Kind, wiring, op and constants."""
        super().update_hash(digest)
        digest.update(repr((self.name, self.key)).encode())
        if self.block is not None:
            self.block.update_hash(digest)
        for constant in self.constants:
            update_hash_with_tensor(digest, constant)
