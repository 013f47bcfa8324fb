"""Diagonal weights T with blockdiag(T_i) ⪰ [A_1 … A_m]ᵀ D [A_1 … A_m]: free directions, the size by a power method."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.multipliers import Edge
from lipcert.search.cost_to_go.plan import Plan

#: Where the power method stands at each edge: a part of a unit vector over all parents, (P, *shape of the parent).
Directions = dict[Edge, Tensor]


def random_directions(plan: Plan, k: int, count: int, like: Tensor, generator: torch.Generator) -> Directions:
    """For an affine node; positive, as the leading vector of many a map nearly is."""
    found = {}
    for i in plan.linked(k):
        shape = (count, *plan.parent_shape((k, i)))
        found[k, i] = (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1).to(like)
    return found


def scaled_weights(
    plan: Plan, k: int, total: Tensor, logs: Mapping[int, Tensor], directions: Directions, steps: int
) -> dict[int, Tensor]:
    """T_i = λ exp(t_i) with λ = λ_max(blockdiag(e^{−t/2}) AᵀDA blockdiag(e^{−t/2})) as far as the steps find it.

    Args:
        plan: the network.
        k: an affine node.
        total: D, (P, *shape) or broadcast to it.
        logs: place of a parent → t_i.
        directions: warm start, replaced.
        steps: of the power method.

    Returns:
        Place of a parent → T_i, with the gradient of log λ in D and t at the direction found: D_j y_j²/λ and −w².
    """
    with torch.no_grad():
        roots = {i: (-0.5 * t).exp() for i, t in logs.items()}
        held = total.detach()
        for _ in range(steps):
            image = _image(plan, k, roots, directions)
            pulled = {i: r * plan.maps[k][i].plain_transpose(held * image) for i, r in roots.items()}
            length = sum(p.flatten(1).square().sum(1) for p in pulled.values()).sqrt().clamp(min=1e-30)
            for i, p in pulled.items():
                directions[k, i] = p / length.reshape(-1, *[1] * (p.dim() - 1))
        square = _image(plan, k, roots, directions).square()
    size = (total * square).flatten(1).sum(1).clamp(min=1e-30).log()
    for i, t in logs.items():
        weight = directions[k, i].square()
        weight = weight.sum_to_size(t.shape) if t.shape != weight.shape else weight
        size = size - (weight * (t - t.detach())).flatten(1).sum(1)
    return {i: (t + size.reshape(-1, *[1] * (t.dim() - 1))).exp() for i, t in logs.items()}


def _image(plan: Plan, k: int, roots: Mapping[int, Tensor], directions: Directions) -> Tensor:
    parts = [plan.maps[k][i].plain(r * directions[k, i]) for i, r in roots.items()]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def largest(
    plan: Plan, k: int, total: Tensor, weights: Mapping[int, Tensor], directions: Directions, steps: int
) -> Tensor:
    """λ_max(blockdiag(T^{−1/2}) AᵀDA blockdiag(T^{−1/2})), (P,), by Lanczos from directions: from below, but close."""
    places = list(weights)
    shapes = [plan.parent_shape((k, i)) for i in places]
    sizes = [s.numel() for s in map(torch.Size, shapes)]
    roots = [w.clamp(min=1e-30).rsqrt() for w in weights.values()]

    def gram(x: Tensor) -> Tensor:
        parts = [p.reshape(-1, *s) for p, s in zip(x.split(sizes, dim=1), shapes, strict=True)]
        image = sum(plan.maps[k][i].plain(r * p) for i, r, p in zip(places, roots, parts, strict=True))
        back = [r * plan.maps[k][i].plain_transpose(total * image) for i, r in zip(places, roots, strict=True)]
        return torch.cat([b.flatten(1) for b in back], dim=1)

    first = torch.cat([directions[k, i].flatten(1) for i in places], dim=1)
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(first)
    noise = noise * (0.1 * first.norm(dim=1) / noise.norm(dim=1)).clamp(min=1e-30)[:, None]
    return _lanczos(gram, first + noise, steps)  # of a map of separate parts the direction may have left some out


def _lanczos(gram, first: Tensor, steps: int) -> Tensor:
    basis = [first / first.norm(dim=1, keepdim=True).clamp(min=1e-30)]
    diagonal, beside = [], []
    for _ in range(min(steps, first.shape[1])):
        x = gram(basis[-1])
        diagonal.append((x * basis[-1]).sum(1))
        known = torch.stack(basis, dim=1)
        for _ in range(2):
            x = x - torch.einsum("bkn,bk->bn", known, torch.einsum("bkn,bn->bk", known, x))
        length = x.norm(dim=1)
        length = torch.where(length > 1e-7 * torch.stack(diagonal).abs().amax(0), length, 0.0)
        beside.append(length)
        basis.append(torch.where(length[:, None] > 0, x / length.clamp(min=1e-30)[:, None], 0.0))
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    if len(beside) > 1:
        off = torch.stack(beside[:-1], 1)
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return torch.linalg.eigvalsh(matrix.double())[:, -1].to(first)
