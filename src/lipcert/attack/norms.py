"""Dual vectors and best directions for the operator norms l_p → l_q, p and q in {1, 2, inf}."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.search.power import dual_power_method

#: Gram matrices up to this side are decomposed instead of iterated on.
_SIDE = 512


def maximiser(gradient: Tensor, p: float) -> Tensor:
    """Per row g of (B, n), the v of ‖v‖_p = 1 with the largest <g, v> (zero rows give some unit vector).

    p = 2: g/‖g‖; p = ∞: sign(g); p = 1: the signed unit vector of the largest entry.
    """
    if p == math.inf:
        return torch.where(gradient >= 0, 1.0, -1.0).to(gradient)
    if p == 1:
        place = gradient.abs().argmax(1, keepdim=True)
        sign = torch.where(gradient.gather(1, place) >= 0, 1.0, -1.0).to(gradient)
        return torch.zeros_like(gradient).scatter_(1, place, sign)
    size = gradient.abs().amax(1, keepdim=True)
    scaled = torch.where(size > 0, gradient / size.clamp(min=1e-300), torch.ones_like(gradient))
    return scaled / scaled.norm(dim=1, keepdim=True)


def dual(image: Tensor, q: float) -> Tensor:
    """Per row y of (B, m), the w with <w, y> = ‖y‖_q and dual norm 1: the gradient of the norm."""
    return maximiser(image, {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[q])


def lengths(rows: Tensor, p: float) -> Tensor:
    """‖row‖_p of each row of (B, n), without overflow of the squares."""
    if p != 2:
        return rows.norm(p=p, dim=1)
    size = rows.abs().amax(1)
    return size * (rows / torch.where(size > 0, size, torch.ones_like(size))[:, None]).norm(dim=1)


def best_directions(jacobians: Tensor, p: float, q: float, iterations: int = 12) -> tuple[Tensor, Tensor]:
    """‖J‖_{p→q} of a batch of matrices, from below, and directions v that attain the values.

    Exact (up to rounding) for p = 1 (best column), q = ∞ (best row) and p = q = 2; for the pairs whose norm
    is NP-hard, (2,1), (∞,1) and (∞,2), the power method of Boyd (1974, *The power method for l^p norms*)
    started from the best row and the best column.

    Args:
        jacobians: (B, m, n).
        p: input norm.
        q: output norm.
        iterations: steps of the power method.

    Returns:
        (values (B,), directions (B, n)); every value is ‖Jv‖_q/‖v‖_p of its own direction.
    """
    count, m, n = jacobians.shape
    if p == 1:
        place = jacobians.norm(p=q, dim=1).argmax(1, keepdim=True)
        starts = [torch.zeros(count, n).to(jacobians).scatter_(1, place, 1.0)]
    elif q == math.inf:
        starts = [maximiser(_best_row(jacobians, p), p)]
    elif p == 2 and q == 2 and min(m, n) <= _SIDE:
        starts = [_top_singular(jacobians)]
    else:
        column = jacobians.norm(p=q, dim=1).argmax(1, keepdim=True)
        unit = torch.zeros(count, n).to(jacobians).scatter_(1, column, 1.0)
        starts = [maximiser(_best_row(jacobians, p), p), maximiser(_pull(jacobians, unit, q), p)]

        def pull(v: Tensor) -> tuple[Tensor, Tensor]:
            image = torch.einsum("bmn,bn->bm", jacobians, v)
            gains = lengths(image, q) / lengths(v, p)
            return gains, torch.einsum("bmn,bm->bn", jacobians, dual(image, q))

        starts = [dual_power_method(pull, lambda g: maximiser(g, p), v, iterations)[1] for v in starts]
    values, directions = _measure(jacobians, starts[0], p, q), starts[0]
    for other in starts[1:]:
        value = _measure(jacobians, other, p, q)
        better = value > values
        values, directions = (
            torch.where(better, value, values),
            torch.where(better[:, None], other, directions),
        )
    return values, directions


def _best_row(jacobians: Tensor, p: float) -> Tensor:
    conjugate = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[p]
    place = jacobians.norm(p=conjugate, dim=2).argmax(1)
    return jacobians[torch.arange(len(jacobians), device=jacobians.device), place]


def _top_singular(jacobians: Tensor) -> Tensor:
    scale = jacobians.abs().amax((1, 2), keepdim=True)
    finite = jacobians.isfinite().all(2, keepdim=True).all(1, keepdim=True)  # eigh raises on NaN
    unit = torch.where(finite, jacobians / torch.where(scale > 0, scale, torch.ones_like(scale)), 0.0)
    wide = unit.shape[1] <= unit.shape[2]
    gram = unit @ unit.mT if wide else unit.mT @ unit
    top = torch.linalg.eigh(gram).eigenvectors[:, :, -1]
    return maximiser(torch.einsum("bmn,bm->bn", unit, top), 2.0) if wide else top


def _pull(jacobians: Tensor, v: Tensor, q: float) -> Tensor:
    image = torch.einsum("bmn,bn->bm", jacobians, v)
    return torch.einsum("bmn,bm->bn", jacobians, dual(image, q))


def _measure(jacobians: Tensor, v: Tensor, p: float, q: float) -> Tensor:
    return lengths(torch.einsum("bmn,bn->bm", jacobians, v), q) / lengths(v, p)
