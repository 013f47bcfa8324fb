"""The result: how far the executed network may be from the real one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lipcert.domain import NORMS
from lipcert.errors import InputError
from lipcert.markup import Shown
from lipcert.numerics.midrad import lengths

if TYPE_CHECKING:
    from lipcert.domain import Domain


@dataclass(frozen=True, eq=False)
class ExecutionError(Shown):
    """|f̂(x) − f(x)| ≤ ``bounds``, entry by entry, for every float32 tensor x of the domain.

    f is the real-valued function of the stored parameters, of which all bounds speak; f̂ what torch computes on a CPU.

    Attributes:
        bounds: float64, of one example's output shape; with a selection one number for each of its rows.
        arithmetic: of f̂: ``float32``, in any order of summation, with fused multiply-adds or without.
        domain: what x lies in.
        input_shape: of one example.
    """

    bounds: Tensor
    arithmetic: str
    domain: Domain
    input_shape: tuple[int, ...]

    def norm(self, q: float = 2.0) -> float:
        """‖f̂(x) − f(x)‖_q at most, rounded up.

        Args:
            q: 1, 2 or inf.

        Raises:
            InputError: another norm.
        """
        if q not in NORMS:
            raise InputError(f"the norm must be 1, 2 or inf, not {q!r}.")
        if not self.bounds.numel():
            return 0.0
        return float(self.bounds.max() if q == math.inf else lengths(self.bounds.reshape(1, -1), float(q))[0])

    def __str__(self) -> str:
        where = "" if self.domain is None else f"on the {self.domain.describe()}; "
        shape = "×".join(map(str, self.input_shape))
        return (
            f"|executed − real| ≤ {self.norm(math.inf):.6g} in every output, ≤ {self.norm():.6g} in l2  "
            f"({where}{self.arithmetic} on a CPU, any order of summation; input {shape})"
        )

    __repr__ = __str__
