"""Chains of a network, the factors of their linear maps, and the two-layer networks between neighbouring factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.norms.operator_norm import writable
from lipcert.increments import Cell
from lipcert.network.builder import NetworkBuilder
from lipcert.network.linear import Dense, LinearMap, add, compose
from lipcert.network.nodes import ActivationNode, AffineNode, Node, SelectionNode
from lipcert.network.spectrum import leading_triplets
from lipcert.network.stacked import Stacked
from lipcert.problem import Problem

if TYPE_CHECKING:
    from lipcert.network.graph import Network


#: (node, term): the linear map of an affine node at which a chain ends.
Place = tuple[int, int]

#: Relative residual of the singular triplets of layers too large to write down: enough for factors and estimates.
RESIDUAL = 1e-3


@dataclass(frozen=True, eq=False)
class Chain:
    """W_K T_{K−1} W_{K−1} … T_1 W_1, the path that ends with one linear map of an affine node.

    Attributes:
        maps: W_1 … W_K; a W_1 at a sum of several images is the map of the stacked inputs.
        stages: for each T_i its nodes in order: elementwise activations and, on request, selections.
        ends: for each T_i the position of its last node.
        base: positions of the nodes that W_1 takes.
    """

    maps: tuple[LinearMap, ...]
    stages: tuple[tuple[Node, ...], ...]
    ends: tuple[int, ...]
    base: tuple[int, ...]

    def gain(self, i: int) -> float:
        """The greatest factor of stage i in the 2-norm, as a product of its nodes' own constants (not rounded)."""
        return math.prod(stage_gains(self.stages[i]))


def stage_gains(stage: tuple[Node, ...]) -> list[float]:
    """The constant of every node of a stage in the 2-norm."""
    cells = [node.relation(0) for node in stage]
    return [cell.gain(2.0) for cell in cells if isinstance(cell, Cell)]


def chain_to(network: Network, place: Place, through_pools: bool) -> Chain:
    """The maximal chain that ends with the map at ``place``; other readers of its inner nodes do not matter."""
    nodes = network.nodes
    last = nodes[place[0]]
    assert isinstance(last, AffineNode)
    current, at = last.maps[place[1]], last.parents[place[1]]
    maps: list[LinearMap] = []
    stages: list[tuple[Node, ...]] = []
    ends: list[int] = []
    base: tuple[int, ...] | None = None
    while base is None:
        here = nodes[at]
        if isinstance(here, AffineNode) and len(here.maps) == 1:
            current, at = compose(here.maps[0], current), here.parents[0]
            continue
        stage, below = _stage(network, at, through_pools)
        before = nodes[below]
        if not stage or not isinstance(before, AffineNode) or not before.maps:
            base = (at,)
            continue
        maps.append(current)
        stages.append(stage)
        ends.append(at)
        if len(before.maps) == 1:
            current, at = before.maps[0], before.parents[0]
        else:
            current, base = Stacked(before.maps), before.parents
    maps.append(current)
    return Chain(tuple(maps[::-1]), tuple(stages[::-1]), tuple(ends[::-1]), base)


def _stage(network: Network, at: int, through_pools: bool) -> tuple[tuple[Node, ...], int]:
    """The activations (and selections) that end at node ``at``, and the node before them."""
    stage: list[Node] = []
    while True:
        node = network.nodes[at]
        if not isinstance(node, ActivationNode) and not (through_pools and isinstance(node, SelectionNode)):
            return tuple(stage[::-1]), at
        stage.append(node)
        at = node.parents[0]


def needed_chains(network: Network, through_pools: bool) -> dict[Place, Chain]:
    """The chains that the constant of the output asks for: those ending at the output, then those their bases need."""
    chains: dict[Place, Chain] = {}
    seen: set[int] = set()
    waiting = [len(network.nodes) - 1]
    while waiting:
        k = waiting.pop()
        if k in seen:
            continue
        seen.add(k)
        node = network.nodes[k]
        if not isinstance(node, AffineNode):
            waiting += node.parents
            continue
        for term in range(len(node.maps)):
            chain = chain_to(network, (k, term), through_pools)
            chains[k, term] = chain
            waiting += chain.base
        if len(node.maps) > 1:
            waiting += node.parents
    return dict(sorted(chains.items()))


@dataclass(frozen=True, eq=False)
class Factors:
    """W = left · right + residual; None stands for the identity (left, right) or for zero (residual)."""

    left: LinearMap | None
    right: LinearMap | None
    residual: LinearMap | None = None


class FactoredChain:
    """A chain with factors W_i = A_i B_i + R_i: B_1 and A_K are identities, inner factors share the singular values.

    The factors are floating-point matrices from an eigenvalue decomposition (or from ``rank`` leading singular
    triplets); nobody has to trust them, since R_i is defined as what they miss. Where an inner map is too large to be
    decomposed and no rank is given, one of its factors is the map itself, turn by turn.
    """

    def __init__(self, chain: Chain, rank: int | None) -> None:
        self.chain = chain
        self.rank = rank

    @cached_property
    def factors(self) -> tuple[Factors, ...]:
        """One per linear map."""
        maps = self.chain.maps
        result = [Factors(maps[0], None)]
        for i, linear in enumerate(maps[1:-1], start=1):
            if self.rank is None and not writable(linear):
                here = Factors(None, linear) if i % 2 else Factors(linear, None)
            else:
                here = _split(linear, self.rank)
            result.append(here)
        return (*result, Factors(None, maps[-1])) if len(maps) > 1 else tuple(result)

    def pair(self, i: int) -> Problem | None:
        """The two-layer network B_{i+2} T_{i+1} A_{i+1} (counting from i = 0); None if a factor is the identity."""
        left, right = self.factors[i].left, self.factors[i + 1].right
        if left is None or right is None:
            return None
        builder = NetworkBuilder()
        var = builder.affine([(builder.input(left.in_shape), left)], left.out_shape, name="left factor")
        for node in self.chain.stages[i]:
            if isinstance(node, ActivationNode):
                node = replace(node, function=node.function.any_slope())
            var = builder.again(node, [var])
        output = builder.affine([(var, right)], right.out_shape, name="right factor")
        return Problem(builder.finish(output), slopes_only=True)


def _split(linear: LinearMap, rank: int | None) -> Factors:
    """A = U Σ^{1/2} and B = Σ^{1/2} Vᵀ, or their ``rank`` leading columns and rows."""
    if not writable(linear):
        assert rank is not None
        left, right = _leading(linear, rank)
    else:
        left, right = _balanced(linear.matrix(), rank)
    inner = left.shape[1]
    a = Dense((left,), (inner,), linear.out_shape, float(max(left.shape)))
    b = Dense((right,), linear.in_shape, (inner,), float(max(right.shape)))
    minus = Dense((-left,), (inner,), linear.out_shape, float(max(left.shape)))
    return Factors(a, b, add(linear, compose(b, minus)))


def _balanced(matrix: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """From the eigenvectors Q of the smaller Gram matrix: A B = Q Qᵀ W or W Q Qᵀ, whatever the eigenvalues' errors."""
    scale = float(matrix.abs().max()) if matrix.numel() else 0.0
    if scale == 0.0 or not math.isfinite(scale):
        scale = 1.0
    unit = matrix / scale
    wide = matrix.shape[0] <= matrix.shape[1]
    values, vectors = torch.linalg.eigh(unit @ unit.T if wide else unit.T @ unit)
    values, vectors = values.flip(0), vectors.flip(1)
    if rank is not None:
        values, vectors = values[:rank], vectors[:, :rank]
    floor = max(1e-20 * float(values.max()), 1e-280) if values.numel() else 1.0
    roots = values.clamp(min=floor).pow(0.25) * math.sqrt(scale)
    if wide:
        return (vectors * roots).contiguous(), ((vectors.T @ matrix) / roots[:, None]).contiguous()
    return ((matrix @ vectors) / roots).contiguous(), (vectors * roots).T.contiguous()


def _leading(linear: LinearMap, rank: int) -> tuple[Tensor, Tensor]:
    """A B = U Uᵀ W for the leading left singular vectors U, whose errors thus count only to second order."""
    found = leading_triplets(linear, rank, RESIDUAL, torch.Generator().manual_seed(0))
    roots = found.s.clamp(min=1e-280).sqrt()
    images = linear.to(torch.float64, "cpu").transpose(found.u.T.reshape(rank, *linear.out_shape))
    return (found.u * roots).contiguous(), images.reshape(rank, -1) / roots[:, None]


def most_rank(chain: Chain) -> int:
    """The largest number of singular values of an inner map of the chain; 0 if it has none."""
    return max((min(m.in_size, m.out_size) for m in chain.maps[1:-1]), default=0)
