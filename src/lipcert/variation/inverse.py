"""Inverse (lower) Lipschitz constants: how little a network brings points together."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from lipcert.certificates.norms.mixed_norm import MAX_ENTRIES, written_box
from lipcert.certificates.norms.scaling import known_rounding, scaled
from lipcert.domain import Box, Domain
from lipcert.errors import LipcertError
from lipcert.guarantee import BreakdownRow, Guarantee, weakest
from lipcert.increments import Increments
from lipcert.methods.auto import Auto
from lipcert.methods.base import Run, fork
from lipcert.network.graph import AffineNode, InputNode, Network, Node
from lipcert.network.linear import Identity, LinearMap
from lipcert.network.origin import module_paths
from lipcert.network.relations import EntryCell
from lipcert.numerics.chance import Chance
from lipcert.numerics.least_gain import least_gain_lower
from lipcert.numerics.rounding import down, ldexp_down
from lipcert.problem import Problem
from lipcert.ranges.build import Ranges
from lipcert.result import Bound
from lipcert.variation.derived import Derived


@dataclass(frozen=True, eq=False)
class InverseBound(Derived):
    """‖f(x) − f(y)‖_p ≥ ``value`` · ‖x − y‖_p for all x, y of a domain: f⁻¹ has Lipschitz constant ≤ 1/value.

    A ``value`` of 0 says nothing.

    Attributes:
        value: lower bound, in output units per input unit; rounded down.
        guarantee: as of a ``Bound``: the weakest of those behind it.
        norm: p, on both sides.
        domain: where it holds (None: everywhere).
        breakdown: a row for each step: its own constant, and the product up to it.
        branches: the bounds of the residual branches that were used, with certificates of their own.
        delta: probability of error; 0 if rigorous.
        seconds: wall time.
    """

    claim: ClassVar[str] = "inverse Lipschitz constant ≥"

    breakdown: tuple[BreakdownRow, ...] = ()
    branches: tuple[Bound, ...] = ()

    @property
    def norms(self) -> str:
        """Of inputs and outputs."""
        return f"l{self.norm:g} → l{self.norm:g}"


def inverse_bound(problem: Problem, run: Run) -> InverseBound:
    """The better of the products over the network's steps, op by op and with affine ops fused.

    Why this is a lower bound: a step is the part between two values that every path passes; f is their composition, and
    lower constants multiply. A linear step: ``least_gain_lower``. An activation: the least |slope| of each entry, where
    its slopes have one sign: |δz_j| ≥ s|δv_j|. A residual step A x + g(x): ‖Aδ + g(x + δ) − g(x)‖ ≥ (a − Lip(g))‖δ‖,
    Lip(g) a Bound of the branch on the values that x takes. Any other step counts 0.

    Args:
        problem: norms (p, p); its domain is that of x.
        run: budget of the branches' bounds, all together.
    """
    chance, found = Chance(), []
    for number, network in enumerate((problem.network, problem.unfused)):
        own = fork(run, 0.5 if number == 0 else 1.0)
        found.append(_product(problem, network, own, chance))
        if found[-1].value > 0.0 and not found[-1].branches:
            break
    best = max(found, key=lambda one: one.value)
    delta = 0.0 if best.guarantee == "rigorous" else chance.spent
    return replace(best, delta=delta, seconds=time.perf_counter() - run.started)


def _product(problem: Problem, network: Network, run: Run, chance: Chance) -> InverseBound:
    p = problem.norm[0]
    ranges = None
    if problem.domain is not None or problem.model.refusal is not None:
        ranges = Ranges.of(network, problem.domain)
    increments = Increments.of(network, ranges)
    cuts = increments.cuts
    value, rows, branches, guarantees = 1.0, [], [], []
    steps = max(1, len(cuts) - 1)
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        box = None if ranges is None else ranges.boxes[start]
        domain = None if box is None else Box(box.low, box.high)
        step = _Step(network, increments, start, stop, domain, p)
        least, kind, branch = step.least(fork(run, 1.0 / (steps - number)), chance)
        value = max(0.0, down(value * least)) if least != 1.0 else value
        sure: Guarantee = "rigorous" if branch is None else branch.guarantee
        sure = weakest([sure, step.guarantee])
        guarantees.append(sure)
        branches += [] if branch is None else [branch]
        node = network.nodes[stop]
        rows.append(BreakdownRow(node.name, kind, least, value, sure, module=module_paths(node.origin)))
        if value == 0.0:
            break
    return InverseBound(value, weakest(guarantees), p, problem.domain, tuple(rows), tuple(branches))


@dataclass(eq=False)
class _Step:
    """The part of a network from one cut to the next."""

    network: Network
    increments: Increments
    start: int
    stop: int
    domain: Domain
    p: float
    guarantee: Guarantee = "rigorous"

    def least(self, run: Run, chance: Chance) -> tuple[float, str, Bound | None]:
        """The step's own constant from below, its kind, and the bound of a branch behind it."""
        node, relation = self.network.nodes[self.stop], self.increments.relations[self.stop]
        if isinstance(relation, EntryCell) and relation.parent == self.start:
            slopes = torch.maximum(relation.lower, -relation.upper).clamp(min=0.0)
            return (float(slopes.min()) if slopes.numel() else math.inf), "activation", None
        if not isinstance(node, AffineNode) or self.start not in node.parents:
            return 0.0, "other", None
        skip = node.maps[node.parents.index(self.start)]
        own = self._of_map(skip)
        if len(node.parents) == 1:
            return own, "linear", None
        if own == 0.0:
            return 0.0, "residual", None
        try:
            branch = Auto().bound(Problem(self._branch(node), (self.p, self.p), self.domain), run, chance)
        except LipcertError:
            return 0.0, "residual", None
        return max(0.0, down(own - branch.value)), "residual", branch

    def _of_map(self, linear: LinearMap) -> float:
        if isinstance(linear, Identity):
            return abs(linear.scale)
        if linear.is_zero or linear.out_size < linear.in_size or linear.in_size * linear.out_size > MAX_ENTRIES:
            return math.inf if linear.in_size == 0 else 0.0
        unit = scaled(linear)
        if not known_rounding(unit.map):
            self.guarantee = "numerical"
        box = written_box(unit)
        return ldexp_down(least_gain_lower(box.mid, box.radius, self.p), unit.exponent)

    def _branch(self, node: AffineNode) -> Network:
        """The step without its skip, as a network of the cut's value."""
        nodes: list[Node] = [InputNode(parents=(), shape=self.network.nodes[self.start].shape, name="input")]
        for inner in self.network.nodes[self.start + 1 : self.stop]:
            nodes.append(_moved(inner, self.start))
        terms = [(p, m) for p, m in zip(node.parents, node.maps, strict=True) if p != self.start]
        last = replace(node, parents=tuple(p for p, _ in terms), maps=tuple(m for _, m in terms))
        return Network((*nodes, _moved(last, self.start)))


def _moved(node: Node, by: int) -> Node:
    return replace(node, parents=tuple(parent - by for parent in node.parents))
