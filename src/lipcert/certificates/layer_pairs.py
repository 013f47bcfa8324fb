"""The certificate of SeqLip: products over chains of the constants of neighbouring pairs of layers."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lipcert.certificates import layer_product
from lipcert.certificates.base import Proof, Witness, certificate, prove
from lipcert.certificates.chains import Chain, FactoredChain, Place, needed_chains, stage_gains
from lipcert.certificates.norms.operator_norm import NormBound, map_norm
from lipcert.certificates.product_rule import Step, length
from lipcert.errors import CertificateError, UnsupportedNormError
from lipcert.guarantee import BreakdownRow, Guarantee, weakest
from lipcert.increments import Cell, Increments, Linear
from lipcert.network.linear import LinearMap
from lipcert.network.stacked import Stacked
from lipcert.numerics.magnitude import ONE, ZERO, Magnitude

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Problem


#: Kinds of certificates of pairs. Their checks use nothing of an activation but its slopes.
PAIR_KINDS = ("quadratic", "vertex_enumeration", "branch_tree")

#: What a check knows of a value: a magnitude and how sure it is.
Known = tuple[Magnitude, Guarantee]


def options(witness: Witness) -> tuple[bool, int | None]:
    """(pools inside pairs, rank of the inner factors) as the witness wants them."""
    pools, rank = witness.settings.get("pools", "factor"), witness.settings.get("rank")
    if pools not in ("factor", "through"):
        raise CertificateError(f"the certificate's pools must be 'factor' or 'through', not {pools!r}.")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise CertificateError(f"the certificate's rank must be a positive integer, not {rank!r}.")
    return pools == "through", rank


def slot(place: Place, pair: int) -> str:
    """The name of a pair in a witness: node, term and number of the pair on the chain that ends there."""
    return f"{place[0]}.{place[1]}.{pair}"


def pack(
    pairs: Mapping[str, Witness], norms: Mapping[str, torch.Tensor], through_pools: bool, rank: int | None
) -> Witness:
    """One witness from those of the pairs and the claimed norms of ``layer_product``."""
    arrays = dict(norms)
    kinds = {}
    for name, witness in pairs.items():
        arrays |= {f"pair.{name}/{key}": value for key, value in witness.arrays.items()}
        kinds[name] = {"kind": witness.kind, "settings": dict(witness.settings)}
    settings = {"pools": "through" if through_pools else "factor", "rank": rank, "pairs": kinds}
    return Witness("layer_pairs", arrays, settings)


def unpack(witness: Witness) -> dict[str, Witness]:
    """The witnesses of the pairs by slot.

    Raises:
        CertificateError: a pair has no kind, or one whose check is not about slopes alone.
    """
    stored = witness.settings.get("pairs", {})
    if not isinstance(stored, Mapping):
        raise CertificateError("the certificate's pairs have the wrong form.")
    result = {}
    for name, inner in stored.items():
        if not isinstance(inner, Mapping) or not isinstance(inner.get("settings"), Mapping):
            raise CertificateError(f"pair {name!r} of the certificate has the wrong form.")
        if inner.get("kind") not in PAIR_KINDS:
            raise CertificateError(f"pair {name!r}: certificates of kind {inner.get('kind')!r} do not bound a pair.")
        prefix = f"pair.{name}/"
        arrays = {k.removeprefix(prefix): v for k, v in witness.arrays.items() if k.startswith(prefix)}
        result[str(name)] = Witness(inner["kind"], arrays, inner["settings"])
    return result


@certificate("layer_pairs")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """Products of pair constants along chains (SeqLip: Scaman & Virmaux 2018, eq. 8), l2 → l2; the rest as in AutoLip.

    The witness holds a certificate per pair (``pair.SLOT/…``, ``settings["pairs"]``), claimed norms for the AutoLip
    rule (``norms``), ``settings["rank"]`` (None: the full spectrum) and ``settings["pools"]``.

    Why this is an upper bound: on a chain the increments obey δz_{i+1} = T_{i+1} W_{i+1} δz_i, where T is diagonal with
    entries in [α, β] (selections: max(a, b) = b + relu(a − b), so T is a product of such matrices and linear maps).
    Let W_i = A_i B_i + R_i hold *exactly*, with any stored matrices A_i, B_i, R_i being what they miss, ‖R_i‖ ≤ e_i
    (certified, not assumed: no property of a singular value decomposition is used), B_1 = I, R_1 = 0, A_K = I,
    R_K = 0. Let g_i be the greatest ‖T_i‖, c_i ≥ ‖B_{i+1} T A_i‖ for *every* admissible T, b_i ≥ ‖B_i δz_{i−1}‖ and
    m_i ≥ ‖δz_{i−1}‖ (the AutoLip constant of that node). Then, since W_i δz_{i−1} = A_i (B_i δz_{i−1}) + R_i δz_{i−1},

        ‖B_{i+1} δz_i‖ ≤ ‖B_{i+1} T_i A_i‖ b_i + ‖B_{i+1}‖ ‖T_i‖ ‖R_i‖ ‖δz_{i−1}‖
                       ≤ c_i b_i + ‖B_{i+1}‖ g_i e_i m_i =: b_{i+1},

    and the chain's increment is B_K δz_{K−1}. With exact factors this is Π c_i; with factors of low rank the second
    term is the discarded spectrum. c_i is the certified constant of the two-layer network B_{i+1} φ(A_i u) whose
    activation is known by its slopes only: such a check holds for the linear φ(v) = σ v of every σ in [α, β], that is
    for every admissible T. A pair without certificate has c_i = ‖B_{i+1}‖ g_i ‖A_i‖. A chain starts from √(Σ L²) of
    the nodes it takes. At every affine node the images of its terms add up (or, stacked, ‖[A_1 …]‖ √(Σ L²)),
    and where AutoLip's constant is smaller, that counts. All sums and products round up.
    """
    if problem.norm != (2.0, 2.0):
        raise UnsupportedNormError(f"SeqLip bounds l2 → l2 only, not l{problem.norm[0]:g} → l{problem.norm[1]:g}.")
    through_pools, rank = options(witness)
    recursion = _Recursion(problem, witness, through_pools, rank, chance)
    with _deep(4 * len(problem.increments.relations)):
        value, guarantee = recursion.constant(len(problem.increments.relations) - 1)
    rows = recursion.rows or [
        BreakdownRow("no pairs", "chain", 1.0, float(value), guarantee,
                     "no two consecutive linear layers: SeqLip = AutoLip")
    ]  # fmt: skip
    return Proof(value, guarantee, tuple(rows), computed=True)


@dataclass(frozen=True)
class _Step:
    """A bound b_i of ‖B_i δz_{i−1}‖."""

    value: Magnitude
    used: tuple[Guarantee, ...]


@contextmanager
def _deep(frames: int) -> Iterator[None]:
    """Room for a recursion of ``frames`` calls: networks may be deeper than Python's own limit."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


class _Recursion:
    """Constants L of the nodes that the output asks for, with chains wherever a chain ends."""

    def __init__(
        self, problem: Problem, witness: Witness, through_pools: bool, rank: int | None, chance: Chance
    ) -> None:
        self.increments, self.rank, self.chance = problem.increments, rank, chance
        self.chains = needed_chains(problem.network, through_pools)
        self.pairs = unpack(witness)
        self.claims = layer_product.read_claims(witness, layer_product.claim_slots(self.increments, 2.0))
        uses = sum(4 * len(chain.maps) + 2 for chain in self.chains.values()) + 1
        self.share = chance.group(uses)
        steps = layer_product.recursion(self.increments, 2.0, witness, chance)
        self.autolip: list[Known] = [
            (step.constant, guarantee) for step, guarantee in zip(steps, _running(self.increments, steps), strict=True)
        ]
        self.rows: list[BreakdownRow] = []
        self._known: dict[int, Known] = {}
        self._norms: dict[int, tuple[LinearMap, NormBound]] = {}

    def constant(self, k: int) -> Known:
        """L of node k, at most AutoLip's."""
        if k not in self._known:
            found = self._constant(k)
            self._known[k] = found if found[0] < self.autolip[k][0] else self.autolip[k]
        return self._known[k]

    def _constant(self, k: int) -> Known:
        relation = self.increments.relations[k]
        if isinstance(relation, Linear):
            if relation.maps and (k, 0) not in self.chains:  # the linear part of a product, say, which ends no chain
                return self.autolip[k]
            return self._linear(k, relation)
        if isinstance(relation, Cell):
            value, used = self.constant(relation.parent)
            return value * Magnitude.of(relation.gain(2.0)), used
        return ONE, "rigorous"

    def _linear(self, k: int, node: Linear) -> Known:
        total, used = ZERO, []
        for term in range(len(node.maps)):
            value, guarantee = self._chain((k, term))
            total = total + value
            used.append(guarantee)
        claim = self.claims.get((k, -1), math.nan)
        if len(node.maps) > 1 and not math.isnan(claim):
            norm = map_norm(Stacked(node.maps), 2.0, claim, self.share)
            together, guarantee = self._length(node.parents)
            if norm.magnitude * together < total:
                return norm.magnitude * together, weakest([guarantee, norm.guarantee])
        return total, weakest(used)

    def _length(self, positions: tuple[int, ...]) -> Known:
        """√(Σ L²) of some nodes."""
        known = [self.constant(k) for k in positions]
        return length([value for value, _ in known]), weakest([guarantee for _, guarantee in known])

    def _chain(self, place: Place) -> Known:
        chain = self.chains[place]
        start, sure = self._length(chain.base)
        if len(chain.maps) == 1:
            linear = chain.maps[0]
            own = self.increments.linears[place[0]].maps[place[1]]
            claim = self.claims[place] if linear is own else math.nan
            norm = map_norm(linear, 2.0, None if math.isnan(claim) else claim, self.share)
            return norm.magnitude * start, weakest([sure, norm.guarantee])
        if not any(slot(place, i) in self.pairs for i in range(len(chain.maps) - 1)):
            return self._unpaired(place, chain, start, sure)
        factored = FactoredChain(chain, self.rank)
        step = _Step(start, (sure,))
        for i in range(len(chain.maps) - 1):
            step = self._next(step, place, factored, i)
        return step.value, weakest(list(step.used))

    def _unpaired(self, place: Place, chain: Chain, start: Magnitude, sure: Guarantee) -> Known:
        """The product of the norms of a chain without certified pairs."""
        value, used = start, [sure]
        positions = [stage[0].parents[0] for stage in chain.stages] + [place[0]]
        for i, linear in enumerate(chain.maps):
            term = place[1] if i == len(chain.maps) - 1 else -1 if isinstance(linear, Stacked) else 0
            node = self.increments.linears[positions[i]]
            own = isinstance(linear, Stacked) or linear is node.maps[term]
            claim = self.claims.get((positions[i], term), math.nan) if own else math.nan
            norm = map_norm(linear, 2.0, None if math.isnan(claim) else claim, self.share)
            value = value * norm.magnitude
            used.append(norm.guarantee)
            for gain in stage_gains(chain.stages[i]) if i < len(chain.stages) else ():
                value = value * Magnitude.of(gain)
        name = f"{self._name(chain, place, 0)} → … → {self._name(chain, place, len(chain.maps) - 1)}"
        self.rows.append(BreakdownRow(name, "chain", float(value), float(value), weakest(used), "product of norms"))
        return value, weakest(used)

    def _next(self, step: _Step, place: Place, factored: FactoredChain, i: int) -> _Step:
        """b_{i+1} from b_i."""
        chain = factored.chain
        here, after = factored.factors[i], factored.factors[i + 1]
        gain = ONE
        for own in stage_gains(chain.stages[i]):
            gain = gain * Magnitude.of(own)
        own_pair = self._pair(slot(place, i), factored, i)
        pair, sure, remark = (
            own_pair if own_pair else (*self._product(here.left, after.right, gain), "product of norms")
        )
        used = [*step.used, sure]
        value = pair * step.value
        if here.residual is not None:
            missed = self._norm(here.residual)
            reach, reached = self.autolip[chain.ends[i - 1]]
            right = self._norm(after.right)
            value = value + right.magnitude * gain * missed.magnitude * reach
            used += [missed.guarantee, reached, right.guarantee]
        name = f"{self._name(chain, place, i)} → {self._name(chain, place, i + 1)}"
        self.rows.append(BreakdownRow(name, "pair", float(pair), float(value), weakest(used), remark))
        return _Step(value, tuple(used))

    def _pair(self, name: str, factored: FactoredChain, i: int) -> tuple[Magnitude, Guarantee, str] | None:
        """The certified constant of a pair, if the witness has one."""
        witness = self.pairs.get(name)
        problem = factored.pair(i) if witness is not None else None
        if witness is None or problem is None:
            return None
        if witness.kind not in PAIR_KINDS:
            raise CertificateError(f"certificates of kind {witness.kind!r} do not bound a pair.")
        proof = prove(problem, witness, self.chance)
        return proof.value, proof.guarantee, witness.kind

    def _product(self, left: LinearMap | None, right: LinearMap | None, gain: Magnitude) -> Known:
        first, second = self._norm(left), self._norm(right)
        return second.magnitude * gain * first.magnitude, weakest([first.guarantee, second.guarantee])

    def _norm(self, linear: LinearMap | None) -> NormBound:
        if linear is None:
            return NormBound(ONE, "rigorous")
        if id(linear) not in self._norms:
            self._norms[id(linear)] = (linear, map_norm(linear, 2.0, None, self.share))
        return self._norms[id(linear)][1]

    def _name(self, chain: Chain, place: Place, i: int) -> str:
        """The report's name of linear map i of a chain."""
        if i == len(chain.maps) - 1:
            return self.increments.relations[place[0]].name
        stage = chain.stages[i]
        return self.increments.relations[stage[0].parents[0]].name


def _running(increments: Increments, steps: list[Step]) -> list[Guarantee]:
    """The weakest guarantee on any path to each node."""
    used = [step.guarantee for step in steps]
    return increments.walk(
        lambda k, _: used[k],
        lambda k, _, before: weakest([used[k], *before]),
        lambda k, _, before: weakest([used[k], before]),
    )
