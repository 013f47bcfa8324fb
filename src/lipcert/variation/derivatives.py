"""Signs of partial derivatives on a domain: where a model is monotone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.errors import MethodError, NumericsError, named
from lipcert.increments.jacobian import jacobian, operations
from lipcert.markup import Shown
from lipcert.numerics.process_state import ordinary
from lipcert.result import place

if TYPE_CHECKING:
    from lipcert.domain import Domain
    from lipcert.problem import Problem

#: Most floating-point operations.
MOST_WORK = 1e12


@dataclass(frozen=True, eq=False)
class DerivativeSigns(Shown):
    """``lower`` ≤ ∂f_i/∂x_j ≤ ``upper`` on a domain, and what that says of signs; rounding included.

    At a kink all of Clarke's generalised derivatives are meant, and differences too: for x, y in the domain
    f(x) − f(y) = J(x − y) for some J between the two.

    Attributes:
        lower, upper: (k, *shape of one example), float64; infinite where nothing is known.
        domain: where they hold (None: everywhere), in the shape of a batch of one example.
        seconds: wall time.
        select: the (k, m) matrix of the combinations of outputs; None: the outputs themselves, flattened.
    """

    lower: Tensor
    upper: Tensor
    domain: Domain = None
    seconds: float = 0.0
    select: Tensor | None = field(default=None, repr=False)

    @property
    def signs(self) -> Tensor:
        """(k, *shape), int8: 1 where f_i never falls as x_j grows, −1 where it never rises, 0 where neither is known.

        0 too where the derivative is 0 all over the domain: there ``lower`` and ``upper`` both are.
        """
        rises, falls = (self.lower >= 0) & (self.upper > 0), (self.upper <= 0) & (self.lower < 0)
        return rises.to(torch.int8) - falls.to(torch.int8)

    def __str__(self) -> str:
        signs, constant = self.signs, (self.lower == 0) & (self.upper == 0)
        up, down, flat = int((signs > 0).sum()), int((signs < 0).sum()), int(constant.sum())
        unknown = signs.numel() - up - down - flat
        return (
            f"{signs.numel()} partial derivatives: {up} ≥ 0, {down} ≤ 0, {flat} zero, {unknown} "
            f"of unknown sign  ({place(self.domain)}; rigorous, interval Jacobian, {self.seconds:.2f} s)"
        )


def derivatives(problem: Problem) -> DerivativeSigns:
    """Of a problem's selected outputs, on its domain.

    Raises:
        MethodError: the network is too large.
        NumericsError: constants without an error bound.
    """
    started = time.perf_counter()
    with named(NumericsError, "the interval Jacobian"), ordinary():
        increments = problem.reduced_increments
        if operations(increments) > MOST_WORK:
            raise MethodError(
                "the network is too large for an interval Jacobian: input, output or layers have too many entries. "
                "Fewer outputs (select=) or a smaller domain, where fewer neurons are undecided, may do."
            )
        box = jacobian(increments)
    shape = (len(box.low), *problem.model.in_shape[1:])
    seconds = time.perf_counter() - started
    return DerivativeSigns(box.low.reshape(shape), box.high.reshape(shape), problem.domain, seconds, problem.select)
