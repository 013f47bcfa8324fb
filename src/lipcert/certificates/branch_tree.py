"""The certificate of branch and bound: a tree of fixed slopes with multipliers at its leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.forms.multipliers import Notation, in_own_units, read_multipliers
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights
from lipcert.errors import CertificateError, NotProved, UnsupportedNormError
from lipcert.guarantee import BreakdownRow, Guarantee
from lipcert.increments import EntryCell, ScaledIncrements
from lipcert.network.linear import size
from lipcert.numerics.magnitude import Magnitude
from lipcert.numerics.rounding import sqrt_up

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem


#: Mark of a leaf in ``tree``.
LEAF = -1


@certificate("branch_tree")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """L_{2,2} ≤ √(max over the leaves of ρ): every leaf a quadratic form with some neurons' slopes fixed.

    ``witness.arrays``: ``exponents`` as in the quadratic certificate; ``tree``, the nodes of a binary tree in preorder,
    each the number of the neuron it splits (neurons counted through the nonlinear nodes in order) or −1 for a leaf, the
    child of the lower slope first; ``multipliers.K``, a row per leaf in the same order; ``slack``, one per leaf. On a
    domain some leaves may be empty: ``empty``, their numbers, ascending, and ``emptiness``, a row of numbers for each,
    one per neuron, ≥ 0 unless that is the whole space; they have no multipliers and no slack.
    ``witness.settings``: ``rho``, a claim for the largest ρ.

    Why this is an upper bound. (1) An increment of an activation is δz_j = s_j δv_j with some s_j in [α_j, β_j], so
    δy = A(s) δx for a point s of the box B = Π [α_j, β_j] (a gain block contributes a factor of its own, any linear
    map T with ‖T‖ ≤ g, held fixed in what follows). (2) The graph has no cycle: v_j does not depend on s_j, nor does
    what comes after z_j, so A is affine in each s_j and s_j ↦ ‖A(s)‖ convex: moving one coordinate after the other to
    the better end of its interval never lowers the norm. Hence ‖A(s)‖ ≤ ‖A(σ)‖ for some vertex σ of B, and
    L ≤ vertex maximum = max over σ in Π {α_j, β_j} (and over T) of ‖A(σ)‖. Nothing here needs φ to be piecewise linear,
    or the patterns to be reachable. (3) The tree's leaves cover all vertices: a node leaves a set of patterns to two
    children, one for σ_j = α_j and one for σ_j = β_j, and the fixed slopes of a leaf are nothing but the steps from the
    root to it; the reader accepts one complete tree and no part of one. (4) For a leaf, the quadratic form with c_j =
    the fixed slope and d_j = 0 proves ‖A(s)‖² ≤ ρ for every s in B that agrees with the leaf's fixed slopes, vertices
    included: exactly the quadratic certificate of a network whose fixed neurons are linear, each step of it a
    verified Cholesky factorisation. So every vertex is below its leaf's ρ, and L² ≤ max ρ.

    Why empty leaves may be left out. The region of a leaf are the points of the domain at which every fixed neuron of
    two linear pieces has its argument v_j on the piece of its fixed slope, the kink included (``Neurons``, who know
    from the network which neurons these are). On a bounded domain Σ μ_j s_j (v_j − kink_j) with μ ≥ 0 is nowhere
    negative there; a bound below 0, which linear bounds prove with every rounding paid, says that there is no such
    point. On the whole space a chain of inequalities from 0 ≤ 0 back to 0 ≤ 0·x + c, with c < 0, says the same, and
    with c ≤ 0 that almost no point is in the region (``SpaceRegions.empty``). Now let x and y be two points of the
    domain, which is convex, and x(t) the segment between them. (a) Slopes and gains are finite, so every node's value
    along the segment is Lipschitz in t, and for almost every t all of them have derivatives. These obey what increments
    obey, divided by the step: ∂z_j = s_j ∂v_j with s_j in [α_j, β_j], and ‖∂z‖ ≤ g‖∂v‖ for a block. (b) For a neuron of
    two pieces and almost every t, s_j may be taken as the slope of a piece that has v_j(x(t)): off the kink φ is this
    piece around v_j; and at the kink ∂v_j = 0, since the t with v_j = kink and ∂v_j ≠ 0 are isolated, so ∂z_j = 0 and
    any slope will do. (c) As in (2), with these s_j held, ‖∂f‖ ≤ ‖A(σ)‖‖y − x‖ for a vertex σ whose entries at neurons
    of two pieces are the slopes of pieces that have v_j(x(t)). So x(t) lies in the region of the leaf that σ agrees
    with: if no point does, this leaf is not empty, and its ρ is proved. (d) ‖f(y) − f(x)‖ is at most ∫ ‖∂f‖ dt, so at
    most √(max ρ) ‖y − x‖, over the other leaves. (e) On the whole space a null set N of points may lie in regions that
    count as empty. For almost every vector u the segment from x + u to y + u meets N for almost no t (Fubini), and
    then ‖f(y + u) − f(x + u)‖ ≤ √(max ρ) ‖y − x‖; f is continuous, so u → 0 gives the same for x and y. Of chords
    from an anchor (b) is not true, and where only slopes are meant (the pairs of SeqLip) v_j is not what is read there:
    such problems have no ``regions`` and no empty leaves, nor have domains that are unbounded, but not the whole space.
    """
    if problem.norm != (2.0, 2.0):
        raise UnsupportedNormError(
            f"no branch-tree certificate for l{problem.norm[0]:g} → l{problem.norm[1]:g}, only l2 → l2."
        )
    if witness.settings.get("layerwise"):
        raise CertificateError("a branch tree has one multiplier per neuron.")
    transformed = in_own_units(problem)
    notation = Notation.of(witness, transformed)
    every = list(leaf_fixings(_tree(witness), branchable(transformed)))
    empty = _empty(problem, witness, transformed, every)
    leaves = [fixings for number, fixings in enumerate(every) if number not in empty]
    if not leaves:
        raise NotProved("every leaf is said to be empty, which no domain is.")
    multipliers = read_multipliers(witness, transformed, notation, len(leaves))
    slack, claim = _slack(witness, len(leaves)), notation.rho(_claim(witness))
    form, slopes = DenseForm(transformed), Slopes(transformed)
    weights = Weights(
        torch.ones(size(transformed.increments.in_shape), dtype=torch.float64),
        torch.ones(size(transformed.increments.out_shape), dtype=torch.float64),
    )
    rho = 0.0
    for place, fixings in enumerate(leaves):
        own = {node: values[place] for node, values in multipliers.items()}
        proved = form.fixing(slopes.fixed(fixings)).least_rho(own, slack[place], weights, claim)
        if not proved >= 0.0:
            raise NotProved("a leaf's ρ is not a number.")
        rho = max(rho, proved)
    value = Magnitude.of(sqrt_up(rho)).times_power(transformed.exponents[-1])
    exact = all(math.isfinite(m.rounding) for maps in transformed.maps.values() for m in maps)
    guarantee: Guarantee = "rigorous" if exact else "numerical"
    depth = max(len(fixings) for fixings in every)
    remark = f"{len(every)} leaves, up to {depth} of {int(branchable(transformed).sum())} neurons fixed"
    if empty:
        remark += f"; {len(empty)} of them empty"
    row = BreakdownRow("branch tree", "dense", float(value), float(value), guarantee, remark)
    return Proof(value, guarantee, (row,))


def branchable(transformed: ScaledIncrements) -> Tensor:
    """For every neuron, counted through the cells in order, whether it has two slopes to choose from."""
    flags = []
    for cell in transformed.cells:
        flags.append(cell.free if isinstance(cell, EntryCell) else torch.zeros(cell.size, dtype=torch.bool))
    return torch.cat(flags) if flags else torch.zeros(0, dtype=torch.bool)


def leaf_fixings(tree: list[int], allowed: Tensor) -> Iterator[dict[int, int]]:
    """The leaves of a tree in preorder, each as neuron → 0 (slope α) or 1 (slope β).

    Every pattern agrees with exactly one leaf: by induction, the subtree at a node covers the patterns that agree with
    the node's own fixings, since a split adds σ_j = α_j for one child and σ_j = β_j for the other.

    Raises:
        CertificateError: not one complete binary tree, or it splits what cannot be split.
    """
    waiting: list[dict[int, int]] = [{}]
    for neuron in tree:
        if not waiting:
            raise CertificateError("the branch tree goes on after its last leaf.")
        fixings = waiting.pop()
        if neuron == LEAF:
            yield fixings
            continue
        if not 0 <= neuron < len(allowed) or not bool(allowed[neuron]) or neuron in fixings:
            raise CertificateError(f"the branch tree splits neuron {neuron}, which has no two slopes there.")
        waiting += [{**fixings, neuron: 1}, {**fixings, neuron: 0}]
    if waiting:
        raise CertificateError(f"the branch tree leaves {len(waiting)} of its branches open.")


class Slopes:
    """Fixings as the per-node slopes that ``Increments.fixing`` takes."""

    def __init__(self, transformed: ScaledIncrements) -> None:
        self._places: list[tuple[int, int]] = []
        self._ends: dict[int, tuple[Tensor, Tensor]] = {}
        for cell in transformed.cells:
            if isinstance(cell, EntryCell):
                self._ends[cell.node] = cell.lower, cell.upper
            self._places += [(cell.node, entry) for entry in range(cell.size)]

    @property
    def ends(self) -> Tensor:
        """(2, neurons): α and β of every neuron; NaN for those of blocks."""
        rows = torch.full((2, len(self._places)), math.nan, dtype=torch.float64)
        for neuron, (node, entry) in enumerate(self._places):
            if node in self._ends:
                rows[0, neuron], rows[1, neuron] = (end.reshape(-1)[entry] for end in self._ends[node])
        return rows

    def fixed(self, fixings: Mapping[int, int]) -> dict[int, Tensor]:
        """Node → slopes, NaN where free; only the nodes that have a fixed neuron."""
        result: dict[int, Tensor] = {}
        for neuron, end in fixings.items():
            node, entry = self._places[neuron]
            slopes = self._ends[node][end]
            if node not in result:
                result[node] = torch.full(slopes.shape, math.nan, dtype=torch.float64)
            result[node].view(-1)[entry] = slopes.reshape(-1)[entry]
        return result


def _empty(
    problem: Problem, witness: Witness, transformed: ScaledIncrements, leaves: Sequence[Mapping[int, int]]
) -> set[int]:
    """The numbers of the leaves that the witness says are empty, each of them proved.

    Raises:
        CertificateError: they are not numbers of leaves, with numbers ≥ 0 for every neuron.
        NotProved: the bound of one is not below 0, or there are no regions to speak of.
    """
    stored, weights = witness.arrays.get("empty"), witness.arrays.get("emptiness")
    if stored is None and weights is None:
        return set()
    allowed = branchable(transformed)
    if stored is None or stored.dim() != 1 or stored.dtype not in (torch.int32, torch.int64):
        raise CertificateError("the certificate's empty leaves are not a row of numbers.")
    empty = [int(number) for number in stored.tolist()]
    if empty != sorted(set(empty)) or any(not 0 <= number < len(leaves) for number in empty):
        raise CertificateError("the certificate's empty leaves are not ascending numbers of leaves.")
    if weights is None or weights.shape != (len(empty), len(allowed)) or not weights.is_floating_point():
        raise CertificateError("the proofs that leaves are empty are missing or of wrong size.")
    if not bool(torch.isfinite(weights).all()):
        raise CertificateError("the proofs that leaves are empty hold numbers that are not finite.")
    regions = problem.regions
    if regions is None:
        raise NotProved("leaves are empty on the whole space or a bounded domain, without an anchor, only.")
    ends = Slopes(transformed).ends[:, allowed]
    if not torch.equal(ends, torch.stack([regions.lower, regions.upper])) or not bool(ends.isfinite().all()):
        raise NotProved("the neurons of the regions are not those of the increments.")
    fixings = torch.full((len(empty), len(allowed)), -1, dtype=torch.int8)
    for row, number in enumerate(empty):
        for neuron, end in leaves[number].items():
            fixings[row, neuron] = end
    if not bool(regions.empty(fixings[:, allowed], weights.double()[:, allowed]).all()):
        raise NotProved("a leaf that is said to be empty is not proved to be.")
    return set(empty)


def _tree(witness: Witness) -> list[int]:
    tree = witness.arrays.get("tree")
    if tree is None or tree.dim() != 1 or tree.dtype not in (torch.int32, torch.int64):
        raise CertificateError("the certificate holds no branch tree.")
    return [int(neuron) for neuron in tree.tolist()]


def _slack(witness: Witness, count: int) -> list[float]:
    slack = witness.arrays.get("slack")
    if slack is None or slack.shape != (count,) or not bool((torch.isfinite(slack) & (slack >= 0)).all()):
        raise CertificateError(f"the certificate's slack must be {count} non-negative numbers.")
    return [float(value) for value in slack.double().tolist()]


def _claim(witness: Witness) -> float:
    claim = witness.settings.get("rho")
    if isinstance(claim, bool) or not isinstance(claim, (int, float)) or not claim >= 0:
        raise CertificateError("the certificate's rho must be a non-negative number.")
    return float(claim)
