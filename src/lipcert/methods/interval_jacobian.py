"""The Jacobian in a box, entry by entry, and the largest norm of a matrix in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lipcert.certificates.base import Witness
from lipcert.certificates.interval_jacobian import MOST_WORK
from lipcert.errors import MethodError
from lipcert.increments.jacobian import operations
from lipcert.methods.base import ALL_NORMS, Found, Method, Run, method
from lipcert.methods.cost import operations_per_second
from lipcert.problem import Norm, Problem


@method
@dataclass(frozen=True, kw_only=True)
class IntervalJacobian(Method):
    """Interval arithmetic for derivatives, from the input and from the output; what lies in both boxes counts.

    Tight on small domains, where few slopes are free, and for pairs of norms that look at single entries or rows.
    """

    name: ClassVar[str] = "interval_jacobian"
    norms: ClassVar[tuple[Norm, ...]] = ALL_NORMS
    summary: ClassVar[str] = "every derivative in an interval; for small domains and pairs of norms with 1 or inf"

    fallback: ClassVar[str | None] = "mixed_product"

    def solve(self, problem: Problem, run: Run) -> Found:
        """Nothing to search: the check works out the boxes."""
        if operations(problem.reduced_increments) > MOST_WORK:
            raise MethodError(
                "the network is too large for an interval Jacobian: input, output or layers have too many entries; "
                "use mixed_product."
            )
        return Found(Witness("interval_jacobian"))

    def obstacle(self, problem: Problem, run: Run) -> str | None:
        """Is there time?"""
        needed = 4.0 * operations(problem.reduced_increments) / operations_per_second()
        if needed > run.left:
            return f"it would take about {needed:.0f} s; raise budget= or ask for method='interval_jacobian'"
        return None
