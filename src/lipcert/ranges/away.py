"""How far the image of an affine map stays from the points that a normalisation has no constant near."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.network.graph import AffineNode, Network
from lipcert.network.linear import LinearMap
from lipcert.network.radial import Radial
from lipcert.network.touched import touched
from lipcert.numerics.midrad import TINY, UNIT, UP
from lipcert.numerics.psd import is_positive_definite_scaled
from lipcert.ranges.lengths import groups_of

#: Entries of the matrix of a node, and columns of one group, up to which it is looked at.
MOST_ENTRIES, MOST_COLUMNS = 1 << 22, 1000
#: Shares of the squared distance that are given up until what is left is proved.
_GIVEN_UP = (1e-9, 1e-6, 1e-3)


def distances(network: Network, position: int, function: Radial) -> Tensor | None:
    """(groups,) lower bounds of ‖Px‖ for all values x = Au + b of an affine node, whatever u is; None where all are 0.

    P is the projection off the mean for a normalisation that centres, else the identity. A is all maps of the node side
    by side. Only where a group reads fewer numbers than it has entries can its distance be more than 0.

    Why these are lower bounds: if K = [PA Pb]ᵀ[PA Pb] − d² e eᵀ, e the last unit vector, is positive definite, then
    ‖PAu + Pb‖² ≥ d² for every u: it is that form at (u, 1), plus d². The matrices are known to an error, which is added
    up entry by entry and given to the proof.
    """
    node = network.nodes[position]
    if not isinstance(node, AffineNode) or node.offset is None or not node.parents:
        return None
    columns = sum(linear.in_size for linear in node.maps)
    shape = torch.Size(node.shape)
    places = groups_of(function, shape)
    if columns >= len(places) * (places.shape[1] - int(function.centred)):
        return None
    offset = node.known_offset
    if offset is None or columns * shape.numel() > MOST_ENTRIES or not bool(offset.rad.isfinite().all()):
        return None
    if any(not linear.rounding < 2.0**30 for linear in node.maps):
        return None
    matrix = torch.cat([linear.matrix() for linear in node.maps], dim=1)
    gamma = [2.0 * (linear.rounding + 4.0) * UNIT for linear in node.maps]
    error = torch.cat([m.absolute().matrix() * g for m, g in zip(node.maps, gamma, strict=True)], dim=1) + TINY
    whole = torch.cat([matrix, offset.mid.reshape(-1, 1)], dim=1)
    wrong = torch.cat([error, offset.rad.reshape(-1, 1)], dim=1)
    read = torch.cat([_reads(linear) for linear in node.maps], dim=1)
    found = torch.zeros(len(places), dtype=torch.float64)
    for group, rows in enumerate(places):
        found[group] = _distance(whole[rows], wrong[rows], read[rows].any(dim=0), function.centred)
    return found if bool(found.any()) else None


def _reads(linear: LinearMap) -> Tensor:
    """Which entries of the matrix are not exactly 0, as truth values; however small a number is, u may be large."""
    units = torch.eye(linear.in_size, dtype=torch.bool).reshape(-1, *linear.in_shape)
    return touched(linear, units).reshape(linear.in_size, linear.out_size).T


def _distance(rows: Tensor, wrong: Tensor, read: Tensor, centred: bool) -> float:
    """For one group: rows [A b], what their entries may be off by, and which columns of A are not 0."""
    n, k = len(rows), int(read.sum())
    if k >= n - int(centred) or k > MOST_COLUMNS:
        return 0.0
    kept = torch.cat([read, torch.ones(1, dtype=torch.bool)])
    own, off = rows[:, kept], wrong[:, kept]
    if centred:
        mean = own.mean(dim=0, keepdim=True)
        off = off + off.mean(dim=0, keepdim=True) + (n + 4.0) * 2.0 * UNIT * (own.abs() + own.abs().mean(0, True))
        own = own - mean
    gram, sizes = own.T @ own, own.abs()
    radius = sizes.T @ off + off.T @ sizes + off.T @ off + (n + 4.0) * UNIT * UP * (sizes.T @ sizes)
    radius = (radius + radius.T) * 0.5 * (1.0 + 1e-9) + n * TINY
    gram = 0.5 * (gram + gram.T)
    solution = torch.linalg.lstsq(own[:, :-1], own[:, -1:]).solution if k else own.new_zeros(0, 1)
    square = float((own[:, :-1] @ solution - own[:, -1:]).square().sum())
    if not math.isfinite(square):
        return 0.0
    for share in _GIVEN_UP:
        left = square * (1.0 - share)
        shifted = gram.clone()
        shifted[-1, -1] -= left
        slack = radius.clone()
        slack[-1, -1] += 4.0 * UNIT * (float(gram[-1, -1]) + left)
        if left > 0 and is_positive_definite_scaled(shifted, slack):
            return math.sqrt(left) * (1.0 - 4.0 * UNIT)
    return 0.0


def any_away(network: Network) -> bool:
    """Whether some normalisation reads a value that stays away from where it has no constant."""
    for node in network.nodes:
        block = getattr(node, "function", None)
        if isinstance(block, Radial) and distances(network, node.parents[0], block) is not None:
            return True
    return False
