"""SeqLip (Scaman & Virmaux 2018, §5): products of the constants of neighbouring layers, each pair certified."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.chains import FactoredChain, most_rank, needed_chains
from lipcert.certificates.layer_pairs import PAIR_KINDS, pack, slot
from lipcert.certificates.vertex_enumeration import MAX_NEURONS, free_neurons
from lipcert.errors import InputError, MethodError, NotProved
from lipcert.methods.autolip import AutoLip
from lipcert.methods.base import Found, Method, Run, method
from lipcert.methods.lipsdp import LipSDP
from lipcert.methods.vertex_search import best_vertex, likely_vertex
from lipcert.network.linear import compose
from lipcert.problem import Norm, Problem
from lipcert.search.power import norm_from_below

#: Power iterations behind the guess whether a truncation can gain.
STEPS = 20


class PairSolver(ABC):
    """What bounds the constant max over σ in [α, β] of ‖P diag(σ) Q‖ of one pair of layers."""

    #: Singular triplets kept of inner layers; None for all.
    rank: int | None = None

    @abstractmethod
    def solve(self, pair: Problem, run: Run) -> Found | None:
        """A witness for the two-layer network; None leaves the product of norms."""


@dataclass(frozen=True, kw_only=True)
class CertifiedPairs(PairSolver):
    """Two-layer LipSDP: never below the true pair constant, and hardly above it on trained layers.

    Attributes:
        inner: the method that solves the two-layer problem; its certificate must be about slopes alone.
    """

    inner: Method = LipSDP()  # noqa: RUF009 (frozen)

    def solve(self, pair: Problem, run: Run) -> Found | None:
        """The inner method's own witness, unless it is the product of norms."""
        try:
            found = self.inner.solve(pair, run)
        except NotProved:
            return None
        kind = found.witness.kind
        if kind == "layer_product":
            return None
        if kind not in PAIR_KINDS:
            raise MethodError(
                f"method {self.inner.name!r} gives certificates of kind {kind!r}, which do not bound a pair; "
                f"kinds that do: {', '.join(PAIR_KINDS)}."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class ExactPairs(PairSolver):
    """The pair constant itself, by looking at every vertex of [α, β]^n.

    Attributes:
        max_neurons: refuse pairs with more neurons that matter (α < β and weights on both sides not all zero).
    """

    max_neurons: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.max_neurons <= MAX_NEURONS:
            raise InputError(f"max_neurons must lie between 1 and {MAX_NEURONS}, not {self.max_neurons}.")

    def solve(self, pair: Problem, run: Run) -> Found | None:
        """The best vertex found by ascent, as a claim that the check proves by looking at all; else the best of all."""
        count = free_neurons(pair)
        if count > self.max_neurons:
            raise MethodError(
                f"a pair of layers has {count} neurons between them, 2^{count} vertices; exact pairs go up to "
                f"{self.max_neurons} (max_neurons=, at most {MAX_NEURONS}). Use pairs=CertifiedPairs() (any size), "
                "pairs=RankKPairs(k) or pairs=BranchAndBound()."
            )
        likely = likely_vertex(pair, run.generator)

        def exhaustive() -> Found:
            return Found(Witness("vertex_enumeration", {}, {"value": best_vertex(pair, likely)}))

        return Found(Witness("vertex_enumeration", {}, {"value": likely}), exhaustive)


@dataclass(frozen=True, kw_only=True)
class RankKPairs(PairSolver):
    """The pairs of the ``k`` leading singular triplets of every inner layer, plus the discarded spectrum.

    The paper truncates and forgets the rest; here ‖B_{i+1}‖ s_{k+1} m_i is added for it, so the result is a bound.

    Attributes:
        k: singular triplets kept of inner layers (a layer with fewer keeps all); the ends of a chain stay whole.
        inner: solver of the pairs.
    """

    k: int
    inner: PairSolver = CertifiedPairs()

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise InputError(f"k must be a positive integer, not {self.k!r}.")

    @property
    def rank(self) -> int:  # type: ignore[override]
        """k."""
        return self.k

    def solve(self, pair: Problem, run: Run) -> Found | None:
        """The inner solver's witness."""
        return self.inner.solve(pair, run)


@method
@dataclass(frozen=True, kw_only=True)
class SeqLip(Method):
    """Products of pair constants along every maximal chain; branches and the rest by the AutoLip rule.

    Attributes:
        pairs: how the pairs are solved: ``CertifiedPairs()``, ``ExactPairs()``, ``RankKPairs(k=…)``, or a method
            (``BranchAndBound()``) that is applied to every pair.
        pools: a max-pool ends a chain and counts by its own constant (``factor``), or stands inside a pair, expanded
            into ReLUs (``through``; certified pairs only).
    """

    name: ClassVar[str] = "seqlip"
    norms: ClassVar[tuple[Norm, ...]] = ((2.0, 2.0),)
    summary: ClassVar[str] = "products of pairs of neighbouring layers, each pair certified; between autolip and lipsdp"

    pairs: PairSolver | Method = CertifiedPairs()
    pools: Literal["factor", "through"] = "factor"

    def __post_init__(self) -> None:
        if not isinstance(self.pairs, (PairSolver, Method)):
            raise InputError(f"pairs must be a pair solver such as lipcert.CertifiedPairs(), not {self.pairs!r}.")
        if self.pools not in ("factor", "through"):
            raise InputError(f"pools is factor or through, not {self.pools!r}.")

    def solve(self, problem: Problem, run: Run) -> Found:
        """Solve every pair of every chain that the output's constant asks for."""
        self.require_norm(problem.norm)
        solver = CertifiedPairs(inner=self.pairs) if isinstance(self.pairs, Method) else self.pairs
        chains = needed_chains(problem.network, self.pools == "through")
        deepest = max((most_rank(chain) for chain in chains.values()), default=0)
        if solver.rank is not None and solver.rank > deepest > 0:
            raise MethodError(
                f"k = {solver.rank} is more than the number of singular values of any inner layer ({deepest}); "
                f"use k ≤ {deepest} or the full spectrum (CertifiedPairs())."
            )
        norms = AutoLip().solve(problem, run).witness.arrays
        todo = []
        for place, chain in chains.items():
            factored = FactoredChain(chain, solver.rank)
            if solver.rank is not None and not _may_gain(factored, run.generator):
                continue
            todo += [(slot(place, i), factored, i) for i in range(len(chain.maps) - 1)]
        found: dict[str, Found] = {}
        weights = [factored.chain.maps[i].out_size ** 2 for _, factored, i in todo]  # shares of the budget
        for number, (name, factored, i) in enumerate(todo):
            run.report(number / len(todo), f"pair {number + 1} of {len(todo)}")
            pair = factored.pair(i)
            share = max(run.left, 1.0) * weights[number] / max(1, sum(weights[number:]))
            own = Run(run.generator, run.device, share, run.report)
            solution = None if pair is None else solver.solve(pair, own)
            if solution is not None:
                found[name] = solution
        return self._packed(found, dict(norms), solver.rank)

    def _packed(self, pairs: dict[str, Found], norms: dict[str, Tensor], rank: int | None) -> Found:
        """The witness; a weaker one has every pair's own weaker one, or the product of norms where there is none."""

        def weaker() -> Found | None:
            if not pairs:
                return None
            others = {name: found.next() for name, found in pairs.items()}
            return self._packed({name: found for name, found in others.items() if found is not None}, norms, rank)

        witnesses = {name: found.witness for name, found in pairs.items()}
        return Found(pack(witnesses, norms, self.pools == "through", rank), weaker)


def _may_gain(factored: FactoredChain, generator: torch.Generator) -> bool:
    """Whether the check's sum of pairs and discarded parts may be below the product of norms; all from below."""
    chain, factors = factored.chain, factored.factors
    value = reach = 1.0
    for i, linear in enumerate(chain.maps[:-1]):
        left, residual, right = factors[i].left, factors[i].residual, factors[i + 1].right
        assert left is not None
        assert right is not None
        pair = norm_from_below(compose(left, right), STEPS, generator) if left.out_shape == right.in_shape else 0.0
        missed = 0.0 if residual is None else norm_from_below(residual, STEPS, generator)
        value = chain.gain(i) * (pair * value + norm_from_below(right, STEPS, generator) * missed * reach)
        reach *= chain.gain(i) * norm_from_below(linear, STEPS, generator)
    return value <= reach * norm_from_below(chain.maps[-1], STEPS, generator)
