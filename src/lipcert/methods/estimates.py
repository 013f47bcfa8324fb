"""The 2018 paper's numbers: greedy, L-BFGS and low-rank SeqLip, and AutoLip by plain power iteration. No bounds.

All of them maximise from below and multiply the results: the product may lie on either side of the truth, and does
(``tests/methods/test_estimates.py`` holds a network whose greedy value is under its true constant).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lipcert.certificates.chains import RESIDUAL, Chain, Place, needed_chains
from lipcert.certificates.norms.operator_norm import writable
from lipcert.errors import InputError, MethodError, UnsupportedNormError
from lipcert.increments import Cell, Linear, Relation
from lipcert.methods.pair_ascent import PairMaximiser, Stage, maximise_greedily, maximise_lbfgs
from lipcert.network.linear import LinearMap
from lipcert.network.spectrum import leading_triplets
from lipcert.network.stacked import Stacked
from lipcert.problem import Problem
from lipcert.result import Estimate
from lipcert.search.power import norm_from_below

#: Number of triplets ``seqlip_rank_k`` keeps unless told (the paper's).
PAPERS_RANK = 200


def estimate(
    problem: Problem,
    method: str,
    k: int | None = None,
    steps: int = 100,
    generator: torch.Generator | None = None,
    pools: Literal["factor", "through"] = "factor",
    device: torch.device | str = "cpu",
) -> Estimate:
    """One of ``METHODS``.

    Args:
        problem: what to estimate; the domain is ignored, these are global numbers.
        method: its name.
        k: singular triplets per layer for ``seqlip_rank_k`` (a layer with fewer keeps all).
        steps: power iterations of ``power_iteration``.
        generator: random starts.
        pools: as for ``SeqLip``: a max-pool ends a chain and counts by its own constant (``factor``), or stands inside
            a pair, where the search also chooses among the inputs of every window (``through``; greedy only).

    Raises:
        InputError: unknown method or unusable option; UnsupportedNormError: norms other than (2, 2).
        MethodError: a layer too large for its full spectrum, or ``k`` above every layer's rank.
    """
    started = time.perf_counter()
    if method not in METHODS:
        raise InputError(f"unknown estimate {method!r}; estimates: {', '.join(METHODS)}.")
    if problem.norm != (2.0, 2.0):
        raise UnsupportedNormError(f"estimates are for l2 → l2, not l{problem.norm[0]:g} → l{problem.norm[1]:g}.")
    if k is not None and method != "seqlip_rank_k":
        raise InputError(f"k= belongs to seqlip_rank_k, not to {method}.")
    for name, number in (("k", k), ("steps", steps)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise InputError(f"{name} must be a positive integer, not {number!r}.")
    if pools not in ("factor", "through"):
        raise InputError(f"pools is factor or through, not {pools!r}.")
    if pools == "through" and method not in ("seqlip_greedy", "seqlip_rank_k"):
        raise InputError(f"pools='through' belongs to seqlip_greedy and seqlip_rank_k, not to {method}.")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    if method == "power_iteration":
        value = _Products(problem, generator, steps, device=device).value()
    else:
        maximiser = maximise_lbfgs if method == "seqlip_lbfgs" else maximise_greedily
        rank = (k or PAPERS_RANK) if method == "seqlip_rank_k" else None
        products = _Products(problem, generator, steps, maximiser, rank, pools == "through", device)
        if k is not None:
            products.require_rank(k)
        value = products.value()
    return Estimate(value, method, problem.norm, time.perf_counter() - started)


#: Names of the estimates.
METHODS = ("seqlip_greedy", "seqlip_lbfgs", "seqlip_rank_k", "power_iteration")


@dataclass(frozen=True, eq=False)
class Factors:
    """W ≈ U diag(s) Vᵀ: u (m, r), s (r,), v (n, r)."""

    u: Tensor
    s: Tensor
    v: Tensor


class _Products:
    """Constants along the graph in plain floating point; chains of layers by pairs if there is a maximiser."""

    def __init__(
        self,
        problem: Problem,
        generator: torch.Generator,
        steps: int,
        maximiser: PairMaximiser | None = None,
        rank: int | None = None,
        through_pools: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.increments, self.generator, self.steps, self.device = problem.increments, generator, steps, device
        self.maximiser, self.rank = maximiser, rank
        self.chains: dict[Place, Chain] = needed_chains(problem.network, through_pools) if maximiser else {}
        self._known: dict[int, float] = {}
        self._triplets: dict[int, tuple[LinearMap, Factors]] = {}

    def require_rank(self, k: int) -> None:
        """Raise if no layer has k singular values."""
        maps = [m for chain in self.chains.values() for m in chain.maps]
        most = max((min(m.in_size, m.out_size) for m in maps), default=0)
        if k > most:
            raise MethodError(
                f"k = {k} is more than the rank of any layer ({most}); use k ≤ {most} or seqlip_greedy (all triplets)."
            )

    def value(self) -> float:
        """The constant of the output."""
        return self.constant(len(self.increments.relations) - 1)

    def constant(self, k: int) -> float:
        """The constant of node k."""
        if k not in self._known:
            self._known[k] = self._constant(self.increments.relations[k], k)
        return self._known[k]

    def _constant(self, node: Relation, k: int) -> float:
        if isinstance(node, Cell):
            return self.constant(node.parent) * node.gain(2.0)
        if isinstance(node, Linear):
            total = sum(self._term(node, (k, term)) for term in range(len(node.maps)))
            if len(node.maps) > 1:
                length = math.hypot(*(self.constant(p) for p in node.parents))
                total = min(total, self._norm(Stacked(node.maps)) * length)
            return total
        return 1.0

    def _term(self, node: Linear, place: Place) -> float:
        linear, parent = node.maps[place[1]], node.parents[place[1]]
        chain = self.chains.get(place)
        if chain is None or len(chain.maps) == 1 or self.maximiser is None:
            return self._norm(linear) * self.constant(parent)
        value = math.hypot(*(self.constant(p) for p in chain.base))
        for i in range(len(chain.maps) - 1):
            a, b = self._factors(chain.maps[i]), self._factors(chain.maps[i + 1])
            left = a.u * (a.s if i == 0 else a.s.sqrt())
            right = b.v * (b.s if i == len(chain.maps) - 2 else b.s.sqrt())
            value *= self.maximiser(right.T.contiguous(), left, Stage.of(chain.stages[i]))
        return value

    def _norm(self, linear: LinearMap) -> float:
        return norm_from_below(linear, self.steps, self.generator, self.device)

    def _factors(self, linear: LinearMap) -> Factors:
        if id(linear) not in self._triplets:
            self._triplets[id(linear)] = (linear, self._decomposed(linear))
        return self._triplets[id(linear)][1]

    def _decomposed(self, linear: LinearMap) -> Factors:
        most = min(linear.in_size, linear.out_size)
        rank = most if self.rank is None else min(self.rank, most)
        if self.rank is None and not writable(linear):
            raise MethodError(
                f"a layer of {linear.out_size} × {linear.in_size} is too large for a full spectrum; use seqlip_rank_k."
            )
        if writable(linear) and (rank > most // 4 or most <= 256):
            u, s, vh = torch.linalg.svd(linear.matrix(), full_matrices=False)
            return Factors(u[:, :rank], s[:rank], vh[:rank].T)
        found = leading_triplets(linear, rank, RESIDUAL, self.generator, torch.float32)
        return Factors(found.u.double(), found.s.double(), found.v.double())
