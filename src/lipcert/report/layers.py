"""Where the looseness comes from: the product of layer constants against what one increment goes through."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.attack.pushforward import Pair, push
from lipcert.errors import LipcertError
from lipcert.methods.autolip import AutoLip
from lipcert.network.graph import AffineNode, Network, Node
from lipcert.network.linear import LinearMap
from lipcert.network.spectrum import leading_triplets
from lipcert.numerics.chance import Chance
from lipcert.report.findings import Layer, LayerTable
from lipcert.report.sdp import Sdp
from lipcert.result import LowerBound, LowerWitness

if TYPE_CHECKING:
    from lipcert.guarantee import BreakdownRow
    from lipcert.methods.base import Run
    from lipcert.problem import Problem
    from lipcert.result import Bound

#: Singular values that are shown of a map; entries up to which all of them are worked out; entries of the largest map.
SHOWN, WRITTEN, LARGEST = 16, 1_000_000, 50_000_000
#: Share of the budget for singular values.
SPECTRA = 0.5


def layer_table(problem: Problem, lower: LowerBound | None, sdp: Bound | None, run: Run) -> LayerTable:
    """The product rule's steps, each with its loss at the lower bound's witness.

    Let C_k bound ‖δz_k‖ ≤ C_k ‖δx‖ at node k and t_k = ‖δz_k‖/‖δx‖ be what the witness has there. Between two nodes
    through which every path goes C_k/t_k only grows, and over the whole network it grows to product / lower bound. So
    the logarithms of its growth are parts of a whole: the shares.

    Args:
        problem: with equal norms on both sides.
        lower: what shares are of; None: no shares.
        sdp: a Bound with multipliers, if there is one.
        run: circumstances for the layers' norms.

    Raises:
        LipcertError: the network has no product of layer constants.
    """
    bound = AutoLip().own_bound(problem, run, Chance())
    network = problem.network
    rows = bound.breakdown
    known = [row.name for row in rows] == [node.name for node in network.nodes[1:]]
    if not known:  # fixed slopes were merged, say: rows of nothing that has a place in the graph
        return LayerTable(tuple(Layer(0, r.label, r.kind, r.constant) for r in rows), bound.value)
    layers = [Layer(k, row.label, row.kind, row.constant) for k, row in enumerate(rows, start=1)]
    stretches = None if lower is None else witnessed(problem, network, lower)
    if stretches is not None:
        layers = _with_shares(layers, rows, network, stretches, problem.increments.cuts)
    run = replace(run, started=time.perf_counter(), budget=SPECTRA * run.budget)  # norms may have used it up
    table = LayerTable(
        tuple(_with_spectrum(layer, network.nodes[layer.position], run) for layer in layers),
        bound.value,
        None if stretches is None else stretches[-1],
    )
    found = None if sdp is None else Sdp.of(problem, sdp, lower)
    return table if found is None else found.added_to(table, network)


def witnessed(problem: Problem, network: Network, lower: LowerBound) -> list[float] | None:
    """‖δz_k‖_p/‖δx‖_p of every node for the increment of a witness; None where it leaves float64."""
    p = problem.norm[0]
    found = [_length(increment, p) for increment in increments_of(network, lower)]
    if not found[0] > 0.0 or not all(math.isfinite(v) for v in found):
        return None
    return [value / found[0] for value in found]


def increments_of(network: Network, lower: LowerBound) -> list[Tensor]:
    """δz of every node: a derivative along a direction, or a difference of two points; float64."""
    exact = network.to(torch.float64, "cpu")
    shape = (1, *network.in_shape)
    witness = lower.witness
    if not isinstance(witness, LowerWitness):
        with torch.no_grad():
            values = [[v for _, v in exact.values(x.reshape(shape))] for x in (witness.point, witness.anchor)]
        return [a - b for a, b in zip(*values, strict=True)]
    found = [witness.direction.reshape(shape)]

    def keep(_: int, node: Node, before: list[Pair], pair: Pair) -> Pair:
        found.append(pair[1])
        return pair

    with torch.no_grad():
        push(exact, witness.point.reshape(shape), found[0], hook=keep)
    return found


def _length(increment: Tensor, p: float) -> float:
    return float(torch.linalg.vector_norm(increment, p)) if increment.numel() else 0.0


def _with_shares(
    layers: list[Layer],
    rows: tuple[BreakdownRow, ...],
    network: Network,
    stretches: list[float],
    cuts: tuple[int, ...],
) -> list[Layer]:
    constants = [1.0, *(row.cumulative for row in rows)]
    result = [
        replace(layer, stretch=stretches[layer.position] / stretches[parents[0]])
        if len(parents := network.nodes[layer.position].parents) == 1 and stretches[parents[0]] > 0
        else layer
        for layer in layers
    ]
    if not all(0.0 < c < math.inf for c in constants) or not stretches[-1] > 0.0:
        return result
    whole = math.log(constants[-1] / stretches[-1])
    for before, after in pairwise(cuts):
        if stretches[before] > 0.0 and stretches[after] > 0.0 and whole > 1e-9:
            loss = math.log(constants[after] / constants[before] * stretches[before] / stretches[after])
            result[after - 1] = replace(result[after - 1], share=loss / whole)
    return result


def _with_spectrum(layer: Layer, node: Node, run: Run) -> Layer:
    if not isinstance(node, AffineNode) or len(node.maps) != 1 or run.left <= 0.0:
        return layer
    values = spectrum(node.maps[0], run.generator)
    return replace(layer, spectrum=values, complete=len(values) == min(node.maps[0].in_size, node.maps[0].out_size))


def spectrum(linear: LinearMap, generator: torch.Generator, count: int = SHOWN) -> tuple[float, ...]:
    """The leading singular values, estimates; none of what is too large, or holds nothing."""
    entries, rank = linear.in_size * linear.out_size, min(linear.in_size, linear.out_size)
    if not rank > 0 or entries > LARGEST:
        return ()
    try:
        if entries <= WRITTEN:
            values = torch.linalg.svdvals(linear.matrix())
        else:
            values = leading_triplets(linear, min(count // 2, rank), 1e-2, generator).s
    except (LipcertError, ValueError, RuntimeError):  # NaN, or no convergence: nothing that a bound rests on
        return ()
    return tuple(values[:count].tolist())
