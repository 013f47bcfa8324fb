"""Diagonal weights T with blockdiag(T_i) ⪰ [A_1 … A_m]ᵀ D [A_1 … A_m]: free directions, the size by a power method."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.multipliers import Edge
from lipcert.search.cost_to_go.inputs import by_row
from lipcert.search.cost_to_go.plan import Plan

#: Where the power method stands at each edge: a part of a unit vector over all parents, (P, *shape of the parent).
Directions = dict[Edge, Tensor]
#: What a size is taken for at least.
SMALL = 1e-30


def random_directions(plan: Plan, k: int, count: int, like: Tensor, generator: torch.Generator) -> Directions:
    """For an affine node; positive, as the leading vector of many a map nearly is; the same for every function."""
    found = {}
    for i in plan.linked(k):
        row = torch.rand(1, *plan.parent_shape((k, i)), generator=generator, dtype=torch.float64) + 0.1
        found[k, i] = row.to(like).repeat(count, *[1] * (row.dim() - 1))
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
        for _ in range(steps):
            image = total * _image(plan, k, roots, directions)
            pulled = {i: r * plan.maps[k][i].plain(image, back=True) for i, r in roots.items()}
            squares = torch.stack([p.flatten(1).square().sum(1) for p in pulled.values()])
            length = squares.sum(0).sqrt().clamp(min=SMALL)
            for i, p in pulled.items():
                directions[k, i] = p / by_row(length, p)
        square = _image(plan, k, roots, directions).square()
    size = (total * square).flatten(1).sum(1).clamp(min=SMALL).log()
    for i, t in logs.items():
        share = directions[k, i].square()
        share = share.sum_to_size(t.shape) if t.shape != share.shape else share
        size = size - (share * (t - t.detach())).flatten(1).sum(1)
    return {i: (t + by_row(size, t)).exp() for i, t in logs.items()}


def _image(plan: Plan, k: int, roots: Mapping[int, Tensor], directions: Directions) -> Tensor:
    parts = [plan.maps[k][i].plain(r * directions[k, i]) for i, r in roots.items()]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def excess(
    plan: Plan, k: int, total: Tensor, weights: Mapping[int, Tensor], directions: Directions, steps: int
) -> Tensor:
    """λ_max(blockdiag(T^{−1/2}) AᵀDA blockdiag(T^{−1/2})), (P,), by Lanczos from directions: from below, but close."""
    roots = {i: w.clamp(min=SMALL).rsqrt() for i, w in weights.items()}
    shapes = {i: plan.parent_shape((k, i)) for i in weights}
    sizes = [directions[k, i][0].numel() for i in weights]

    def gram(x: Tensor) -> Tensor:
        parts = zip(weights, x.split(sizes, dim=1), strict=True)
        image = total * _image(plan, k, roots, {(k, i): part.reshape(-1, *shapes[i]) for i, part in parts})
        return torch.cat([(r * plan.maps[k][i].plain(image, back=True)).flatten(1) for i, r in roots.items()], dim=1)

    first = torch.cat([directions[k, i].flatten(1) for i in weights], dim=1)
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(first)
    noise = noise * (0.1 * first.norm(dim=1) / noise.norm(dim=1)).clamp(min=1e-30)[:, None]
    return _lanczos(gram, first + noise, steps)  # of a map of separate parts the direction may have left some out


def _lanczos(gram: Callable[[Tensor], Tensor], first: Tensor, steps: int) -> Tensor:
    """The greatest Ritz values, (P,), with full reorthogonalisation; a basis that is complete ends with zeros."""
    basis = [first / first.norm(dim=1, keepdim=True).clamp(min=SMALL)]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    tiny = 100.0 * torch.finfo(first.dtype).eps
    for _ in range(min(steps, first.shape[1])):
        x = gram(basis[-1])
        diagonal.append((x * basis[-1]).sum(1))
        known = torch.stack(basis, dim=1)
        for _ in range(2):
            x = x - torch.einsum("bkn,bk->bn", known, torch.einsum("bkn,bn->bk", known, x))
        length = x.norm(dim=1)
        length = torch.where(length > tiny * torch.stack(diagonal).abs().amax(0), length, 0.0)
        beside.append(length)
        basis.append(torch.where(length[:, None] > 0, x / length.clamp(min=SMALL)[:, None], 0.0))
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    if len(beside) > 1:
        off = torch.stack(beside[:-1], 1)
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return torch.linalg.eigvalsh(matrix.double().nan_to_num(0.0, 0.0, 0.0))[:, -1].to(first)
