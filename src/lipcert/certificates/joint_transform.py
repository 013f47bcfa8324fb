"""LipLT with ranges and constants worked out together (``ranges/course``), for blocks and products on a bounded domain.

The deviation of each node's derivative from that at a point is bounded on the l2 ball in which its argument stays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from lipcert.certificates import loop_transform
from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.joint_recursion import JointRecursion
from lipcert.certificates.merged_recursion import MergedRecursion
from lipcert.certificates.product_rule import rows
from lipcert.certificates.wide_recursion import WideRecursion
from lipcert.errors import CertificateError, NotProved
from lipcert.increments import Increments
from lipcert.ranges.course import reach_of

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem


#: How constants of nodes are worked out: with all maps from sources to nodes as matrices; with sources merged on the
#: way; or by norms of the nodes' own maps, and passes for a few others.
Work = Literal["matrices", "merged", "norms"]


@certificate("joint_transform")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """ℓ_j ≤ ‖A_{j←0}‖ + Σ_{i<j} ‖A_{j←i}‖ ℓ_i as LipLT has it, each relation from the constants before it.

    The witness carries no numbers. ``settings["work"]`` says how (``Work``; absent: ``matrices``), and for ``norms``
    ``settings["rigorous"]`` that nothing may be left to chance. Unless ``settings["alone"]``, what LipLT proves with
    ranges of their own, by ``loop_transform`` with the same settings, counts where it is less.

    Why this is an upper bound: by induction over the nodes. The constants before a node are true of all pairs of points
    of the domain, so the relation that ``Course`` makes of them is, and so is the constant that follows from it and the
    relations before (``loop_transform``; ``MergedRecursion``, ``WideRecursion``).
    """
    if not applies(problem):
        raise NotProved("ranges and constants are worked out together for blocks on bounded domains, between l2 norms.")
    recursion = _recursion(problem, witness, chance)
    steps = recursion.run()
    last = steps[-1]
    found = Proof(last.constant, last.guarantee, rows(Increments(tuple(recursion.relations)), steps), computed=True)
    if witness.settings.get("alone", False) is True:
        return found
    apart = loop_transform.check(problem, Witness("loop_transform", {}, witness.settings), chance)
    return apart if apart.value < found.value and apart.guarantee == "rigorous" else found


def _recursion(problem: Problem, witness: Witness, chance: Chance) -> JointRecursion | WideRecursion:
    work = witness.settings.get("work", "matrices")
    if work == "merged":
        return MergedRecursion(problem, chance)
    if work == "norms":
        return WideRecursion(problem, chance, witness.settings.get("rigorous", False) is True)
    if work != "matrices":
        raise CertificateError(f"the certificate's work must be one of {', '.join(get_args(Work))}, not {work!r}.")
    return JointRecursion(problem, chance)


def applies(problem: Problem) -> bool:
    """Whether there are blocks or products of which a bounded domain leaves little, between l2 norms."""
    if problem.slopes_only or problem.norm != (2.0, 2.0) or not math.isfinite(reach_of(problem.domain)):
        return False
    return problem.nearly_linear or problem.has_parts
