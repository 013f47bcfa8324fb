"""A product of norms along the graph in which every layer is taken between the norms that make the product least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lipcert.certificates.base import Witness
from lipcert.errors import LipcertError
from lipcert.methods.autolip import AutoLip
from lipcert.methods.base import ALL_NORMS, Found, Method, Run, method
from lipcert.methods.cost import operations_per_second
from lipcert.methods.norm_effort import maps_of, seconds_at_best
from lipcert.problem import Norm, Problem


@method
@dataclass(frozen=True, kw_only=True)
class MixedProduct(Method):
    """Constants of every node in l1, l2 and l∞, passed on by the least of ‖A‖_{r→s} L^r: a shortest path over norms.

    Any pair of norms, any network that has constants; never above AutoLip with the same norms of layers.
    """

    name: ClassVar[str] = "mixed_product"
    norms: ClassVar[tuple[Norm, ...]] = ALL_NORMS
    summary: ClassVar[str] = "product of layer norms, each layer between the norms that serve best; any pair of norms"

    fallback: ClassVar[str | None] = None

    def solve(self, problem: Problem, run: Run) -> Found:
        """Claim the 2 → 2 norms as AutoLip does; the check works out the others."""
        try:
            return Found(_renamed(AutoLip().solve(problem.between((2.0, 2.0)), run).witness))
        except LipcertError:  # a block without a gain in l2
            return Found(Witness("mixed_product"))

    def obstacle(self, problem: Problem, run: Run) -> str | None:
        """Is there time for all norms?"""
        increments = problem.merged_increments
        entries = sum(float(m.in_size) * m.out_size for r in increments.linears.values() for m in r.maps)
        needed = 200.0 * entries / operations_per_second()
        if needed <= run.left:
            needed += 2.0 * seconds_at_best(maps_of(increments))
        if needed > run.left:
            return f"it would take about {needed:.0f} s; raise budget= or ask for method='mixed_product'"
        return None


def _renamed(witness: Witness) -> Witness:
    settings = {name: value for name, value in witness.settings.items() if name != "fuse"}
    return Witness("mixed_product", witness.arrays, settings)
