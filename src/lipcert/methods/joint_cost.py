"""What it takes to work out ranges and constants together, and by which of its ways (``joint_transform.Work``)."""

from __future__ import annotations

from lipcert.certificates import joint_transform
from lipcert.certificates.joint_transform import Work
from lipcert.certificates.loop_transform import products_of
from lipcert.certificates.merged_recursion import MOST_COLUMNS, PIECE, cuts
from lipcert.methods.cost import operations_per_second
from lipcert.network.graph import AffineNode, Network
from lipcert.network.linear import size
from lipcert.problem import Problem
from lipcert.ranges.course import asked, is_source, sides

#: Most floating-point operations with all matrices; beyond the lesser number nothing is done beside it.
JOINT_WORK, JOINT_ALONE = 3e12, 2e10
#: With merged sources: most operations, and most entries of what is kept of one node.
MERGED_WORK, MERGED_ENTRIES = 5e13, 1.5e8
#: Where nothing else is of use: how many times the seconds that are left it may take.
PATIENCE = 10.0
#: Passes through the network that norms of maps take, and those of Jacobians at every node that all paths pass.
_PASSES, _JACOBIAN = 1000.0, 1000.0


def work_of(problem: Problem) -> Work | None:
    """By which way, if any: None where it does not apply, or for wide networks that have not both blocks and products.

    Those, a CNN with a softmax at its end say, are better off with other methods.
    """
    if not joint_transform.applies(problem):
        return None
    if matrix_operations(problem) <= JOINT_WORK:
        return "matrices"
    if not (problem.nearly_linear and problem.has_parts):
        return None
    work, entries = merged_operations(problem.expanded)
    return "merged" if work <= MERGED_WORK and entries <= MERGED_ENTRIES else "norms"


def alone(problem: Problem) -> bool:
    """Whether only ranges that are worked out with the constants are of use: others take long and say less."""
    work = work_of(problem)
    if work == "matrices":
        return problem.nearly_linear and matrix_operations(problem) > JOINT_ALONE
    return work is not None


def seconds_of_joint(problem: Problem) -> float:
    """About what it takes."""
    work = work_of(problem)
    if work is None:
        return 0.0
    count = {
        "matrices": matrix_operations,
        "merged": lambda own: merged_operations(own.expanded)[0],
        "norms": lambda own: wide_operations(own.expanded),
    }[work](problem)
    return count / operations_per_second()


def matrix_operations(problem: Problem) -> float:
    """About how many floating-point operations the norms of all matrices take."""
    return sum(2.0 * entries**2 * columns for entries, columns in sides(problem.expanded))


def merged_operations(network: Network) -> tuple[float, float]:
    """About how many they are with merged sources, and the entries of what is kept of the widest node."""
    n = float(size(network.in_shape))
    passed, wanted = cuts(network), asked(network)
    work, widest, others = 0.0, 0.0, 0.0
    for k, node in enumerate(network.nodes):
        rows = float(size(node.shape))
        columns = n + others
        widest = max(widest, rows * columns)
        if isinstance(node, AffineNode):
            work += 2.0 * sum(products_of(linear) for linear in node.maps) * columns
        if k in passed and others > MOST_COLUMNS * rows:
            work += 2.0 * rows**2 * others + 3.0 * rows**3
            others = rows
        if k in wanted:
            work += 2.0 * min(rows, columns if k in passed else PIECE) * rows * columns
        others += rows if is_source(node) else 0.0
    return work, widest


def wide_operations(network: Network) -> float:
    """About how many they are with norms of maps."""
    products = sum(products_of(m) for node in network.nodes if isinstance(node, AffineNode) for m in node.maps)
    return 2.0 * products * (_PASSES + _JACOBIAN * len(cuts(network) & asked(network)))
