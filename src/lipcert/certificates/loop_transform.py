"""The certificate of LipLT: norms of the loop-transformed network's maps, summed over the nonlinear nodes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.product_rule import Step, rows
from lipcert.certificates.recursions import DenseRecursion, FreeRecursion, SparseRecursion
from lipcert.errors import CertificateError, UnsupportedNormError
from lipcert.guarantee import weakest
from lipcert.increments import Increments, Linear
from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Sum, size

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem


#: A network is worked on with dense matrices up to this side and this many floating-point operations.
MAX_SIDE, MAX_WORK = 4_000, 4e11
#: Up to which side and work the sparse recursion is done.
SPARSE_SIDE, SPARSE_WORK = 6_000, 4e11


@certificate("loop_transform")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """ℓ_j ≤ ‖A_{j←0}‖ + Σ_{i<j} ‖A_{j←i} diag(d_i)‖ ℓ_i (LipLT: Fazlyab et al. 2023), p → p for p in {1, 2, ∞}.

    The witness carries no numbers. ``settings["window"]`` (matrix-free work only) limits how many nonlinear nodes a
    sum reaches back; the sum then starts at a node s that every path passes, with ‖A_{j←s}‖ ℓ_s.

    Why this is an upper bound: with α ≤ slope ≤ β, c = (α + β)/2 and d = (β − α)/2, an increment obeys
    δz = c δv + d δw with |δw| ≤ |δv| entry by entry; so ‖δw_i‖_p ≤ ℓ_i ‖δx‖_p, ℓ_i being a bound for v_i. What is left
    is linear in (δx, δw_1, …), and the triangle inequality over its sources gives the sum. A block starts a source
    of its own and lets nothing pass (c = 0). At every linear node the minimum with the product rule
    Σ_i ‖A_i‖ ℓ_i is taken. Dense: the A_{j←i} are computed with a running bound of their error in the p-norm
    (``written_map``). Of larger networks ``settings["sparse"]`` asks for the same by passes through the maps, most of
    whose entries are 0 in attention and normalisations; otherwise they are bounded by Lanczos, probabilistic. A network
    with selections is done twice, with selections as blocks and expanded into ReLUs, and the smaller value counts; and
    so is on a domain one with softmax or normalisations, as blocks and as a linear part and a rest; one with two
    activations of one value is done with these as a block and as cells that share a slope, too.
    """
    p, q = problem.norm
    if p != q:
        raise UnsupportedNormError(f"LipLT needs equal norms on both sides, not l{p:g} → l{q:g}.")
    window = witness.settings.get("window")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise CertificateError(f"the certificate's window must be a positive integer, not {window!r}.")
    sparse = witness.settings.get("sparse", False) is True
    best: list[Step] = []
    shown = views(problem)[0]
    for increments in views(problem):
        wide = SparseRecursion if sparse and is_sparse(increments) else FreeRecursion
        steps = (DenseRecursion if is_dense(increments) else wide)(increments, p, chance, window).run()
        if not best or steps[-1].constant < best[-1].constant:
            best, shown = steps, increments
    guarantee = weakest([step.guarantee for step in best])
    return Proof(best[-1].constant, guarantee, rows(shown, best), computed=True)


def views(problem: Problem) -> list[Increments]:
    """What the recursion runs on: selections, normalisations and twins as blocks, and these expanded, if any."""
    blocked = [problem.blocked_increments] if problem.has_twins else []
    expanded = [problem.expanded_increments] if problem.is_expanded or problem.has_twins else []
    plain = not problem.nearly_linear or is_dense(problem.increments)
    return [*([problem.increments, *blocked] if plain else []), *expanded]


def is_dense(increments: Increments) -> bool:
    """Whether all maps from sources to nodes can be written down at a moderate price."""
    return operations(increments) <= MAX_WORK


def operations(increments: Increments) -> float:
    """About how many floating-point operations the dense recursion takes; infinite where a node is too wide."""
    work, columns = 0.0, float(size(increments.in_shape))
    if size(increments.in_shape) > 10 * MAX_SIDE:
        return math.inf
    for relation in increments.relations[1:]:
        side = relation.size
        if side > MAX_SIDE:
            return math.inf
        if isinstance(relation, Linear):
            work += sum(2.0 * side * linear.in_size for linear in relation.maps) * columns + 3.0 * side**2 * columns
        else:
            columns += side
    return work


def is_sparse(increments: Increments) -> bool:
    """Whether all maps from sources to nodes can be worked out by passes at a moderate price."""
    return sparse_operations(increments) <= SPARSE_WORK


def sparse_operations(increments: Increments) -> float:
    """About how many operations that takes: every map on every column, and norms of two sides."""
    work, columns = 0.0, float(size(increments.in_shape))
    widest = max(relation.size for relation in increments.relations)
    if widest > SPARSE_SIDE:
        return math.inf
    for k, relation in enumerate(increments.relations[1:], start=1):
        if isinstance(relation, Linear):
            products = sum(products_of(linear) for linear in relation.maps)
            work += 4.0 * (products + relation.size) * columns
            read = any(increments.cell_at.get(reader) for reader in increments.consumers[k])
            work += 8.0 * min(relation.size, size(increments.in_shape)) ** 2 * relation.size if read else 0.0
        else:
            columns += relation.size
    return work + 8.0 * increments.relations[-1].size ** 2 * columns


def products_of(linear: LinearMap) -> float:
    """About how many products one pass takes: entries of the elementary maps that are not zero."""
    if isinstance(linear, (Composition, Sum)):
        return sum(products_of(part) for part in linear.maps)
    if isinstance(linear, Dense):
        return float(linear.in_size * linear.out_size)
    pattern = linear.absolute()
    if isinstance(pattern, OpMap):
        pattern = replace(pattern, constants=tuple(torch.ones_like(c) for c in pattern.constants))
    ones = torch.ones(1, *linear.in_shape, dtype=torch.float64)
    with torch.no_grad():
        return float(pattern.apply(ones).sum()) if not isinstance(linear, Identity) else float(linear.in_size)
