"""Attention heads among the nodes of a network, recognised by what they are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.attention_bound import Logits
from lipcert.network.graph import Network
from lipcert.network.images import image
from lipcert.network.linear import Composition, Identity, LinearMap, OpMap, Shape
from lipcert.network.moves import DIAGONAL
from lipcert.network.nodes import AffineNode, GainNode, OpenNode
from lipcert.numerics.midrad import Range

#: How much the factors of one head's logits may differ, relative to the largest.
_ALIKE = 1e-6
#: Attributes of maps that multiply entries by constants.
_TIMES = ("times", DIAGONAL)


@dataclass(frozen=True)
class Head:
    """Positions of Q, Kᵀ and V, and what the softmax is of."""

    parents: tuple[int, int, int]
    logits: Logits


def head_of(network: Network, position: int) -> Head | None:
    """The heads whose outputs a node of a fused network is; None if it is nothing of the kind.

    That is a product of a softmax along the last axis and another value, where the softmax is of a product of two
    values, times one number per head, with an offset. Entries that a mask leaves out may have any factor.
    """
    node = network.nodes[position]
    if not isinstance(node, OpenNode) or node.combines != "matmul":
        return None
    weights = network.nodes[node.parents[0]]
    shape = weights.shape
    if not isinstance(weights, GainNode) or weights.function.probabilities != ("softmax", (len(shape) - 1,)):
        return None
    scores = network.nodes[weights.parents[0]]
    affine = scores if isinstance(scores, AffineNode) and len(scores.parents) == 1 else None
    scores = scores if affine is None else network.nodes[affine.parents[0]]
    if not isinstance(scores, OpenNode) or scores.combines != "matmul" or scores.shape != shape or not math.prod(shape):
        return None
    left: Tensor | None = getattr(weights.function, "kept", None)
    kept = None if left is None else _by_heads((left > 0).expand(shape))
    q, k = scores.parents
    logits = _logits(affine, kept, shape)
    return None if logits is None else Head((q, k, node.parents[1]), logits)


def _by_heads(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


def _logits(affine: AffineNode | None, kept: Tensor | None, shape: Shape) -> Logits | None:
    """What the softmax is of, if that is known; ``affine`` is between it and the product."""
    heads = math.prod(shape[:-2])
    if affine is None:
        return Logits(Range.exact(torch.ones(heads)), None, kept)
    (linear,), offset = affine.maps, affine.known_offset
    if not _diagonal(linear) or not math.isfinite(linear.rounding):
        return None
    if offset is not None and not bool(offset.reach.isfinite().all()):
        return None
    factors = image(linear, Range.exact(torch.ones(1, *shape))).map(lambda t: t.reshape(heads, -1))
    low, high = factors.low, factors.high
    if kept is not None:
        there = kept.flatten(1)
        low, high = torch.where(there, low, math.inf), torch.where(there, high, -math.inf)
    low, high = low.amin(1), high.amax(1)
    none = low > high  # heads of which nothing is kept
    low, high = torch.where(none, 0.0, low), torch.where(none, 0.0, high)
    if not bool((high - low <= _ALIKE * torch.maximum(low.abs(), high.abs())).all() & high.isfinite().all()):
        return None
    return Logits(Range.between(low, high), None if offset is None else offset.map(_by_heads), kept)


def _diagonal(linear: LinearMap) -> bool:
    """Whether a map is known to multiply entries by constants and do nothing else."""
    if isinstance(linear, Composition):
        return all(_diagonal(part) for part in linear.maps)
    if isinstance(linear, OpMap):
        return linear.attributes in _TIMES and linear.in_shape == linear.out_shape
    return isinstance(linear, Identity)
