"""Proofs that a quadratic cost behind a linear map is at most a diagonal one before it: T ⪰ Aᵀ D A."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.facts import Facts, Written
from lipcert.errors import NotProved
from lipcert.network.graph import AffineNode
from lipcert.network.linear import size
from lipcert.numerics.matrices import Pieces
from lipcert.numerics.midrad import UNIT, UP
from lipcert.numerics.psd import by_first_entry, is_positive_definite_scaled

#: Longest side of a matrix that is factored.
MOST_ROWS = 6_500


def require_order(facts: Facts, position: int, curvature: Tensor, weights: Sequence[Tensor]) -> None:
    """Prove blockdiag(T_1, …, T_m) ⪰ AᵀDA, A = [A_1 … A_m], for every function.

    By D⁻¹ − A T⁻¹ Aᵀ ≻ 0 on the rows with D > 0 where there are fewer of these than columns, else by T − AᵀDA ≻ 0; the
    two are the Schur complements of [[T, Aᵀ], [A, D⁻¹]]. Rounding of the map, of the product and of the reciprocals is
    counted entry by entry. Rows are put in an order in which those of a convolution overlap only with their neighbours,
    which changes no definiteness.

    Args:
        facts: the network's.
        position: of the affine node.
        curvature: D ≥ 0, (P, *shape of the node).
        weights: T > 0 of every parent, (P, *shape of the parent).

    Raises:
        NotProved: it was not.
    """
    node = facts.network.nodes[position]
    assert isinstance(node, AffineNode)
    rows, columns = size(node.shape), sum(linear.in_size for linear in node.maps)
    if min(rows, columns) > MOST_ROWS or rows * columns > 1.2e8:
        raise NotProved(f"a map of {rows} by {columns} entries is too large for quadratic costs of different entries")
    written = facts.written(position)
    for d, *t in zip(curvature.flatten(1), *(w.flatten(1) for w in weights), strict=True):
        whole = torch.cat(t)
        key = sha256(b"".join([struct.pack("<q", position), _bytes(d), _bytes(whole)])).digest()
        if key in facts.orders:  # the domain has no part in it
            continue
        if not _holds(written, d, whole):
            raise NotProved(f"the quadratic costs before {node.name} are not above those behind it")
        facts.orders.add(key)


def _bytes(t: Tensor) -> bytes:
    return t.detach().contiguous().numpy().tobytes()


def _holds(written: Written, d: Tensor, t: Tensor) -> bool:
    """Whether T ⪰ A'ᵀDA' was proved for all A' within the error of A, entry by entry."""
    if not (bool((d >= 0).all()) and bool((t >= 0).all())):
        return False
    used = d > 0
    if not bool(used.any()):
        return True
    if not bool((t > 0).all()) or not all(1e-60 < float(e) < 1e60 for e in (d[used].min(), d.max(), t.min(), t.max())):
        return False
    matrix, majorant, order = written.matrix, written.majorant, written.order
    if not written.transposed:
        used, inner = used[order], t.reciprocal()  # D⁻¹ − A T⁻¹ Aᵀ
        outer = d[order][used].reciprocal()
        matrix, majorant = _rows(matrix, used), _rows(majorant, used)
    elif int(used.sum()) <= len(matrix):
        matrix, majorant = matrix[:, used].mT, majorant[:, used].mT
        places = by_first_entry(matrix)
        matrix, majorant = matrix[places], majorant[places]
        outer, inner = d[used][places].reciprocal(), t[order].reciprocal()
    else:
        outer, inner = t[order], d[used]  # T − AᵀDA, whose inner diagonal is D itself
        if not bool(used.all()):
            matrix, majorant = matrix[:, used], majorant[:, used]
    pieces = written.pieces if matrix is written.matrix else Pieces.of(matrix)
    difference = pieces.weighted_gram(inner).neg_()
    difference.diagonal().add_(outer)
    share = (majorant.shape[1] + 16.0) * UNIT + 2.0 * written.share

    def radius(x: Tensor) -> Tensor:
        """E x: the majorant's |A|T⁻¹|A|ᵀ counts once per rounding of the product, and for the error on either side.

        And 6 units of the outer diagonal: a reciprocal's and the difference's are 2.
        """
        total = share * (majorant @ (inner * (majorant.mT @ x)))
        return (total + 6.0 * UNIT * outer * x + 1e-180 * x.sum()) * (1.0 + 2.0**-20) * UP  # or underflows

    return is_positive_definite_scaled(difference, radius)


def _rows(matrix: Tensor, used: Tensor) -> Tensor:
    """The rows that are used; the matrix itself where all are."""
    return matrix if bool(used.all()) else matrix[used]
