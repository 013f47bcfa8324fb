"""Diagonal weights T with blockdiag(T_i) ⪰ [A_1 … A_m]ᵀ D [A_1 … A_m]: free directions, the size by a power method."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.multipliers import Edge
from lipcert.search.cost_to_go.inputs import by_row
from lipcert.search.cost_to_go.plan import Plan

#: Directions that the power method keeps, of maps beyond a least side (of smaller ones one is enough, and quicker), and
#: the square of a unit vector's part that counts as none.
BLOCK, SIDE, THIN = 4, 64, 1e-5
#: Where the power method stands at each edge: parts of orthonormal vectors over all parents, (P, BLOCK, *shape of the
#: parent), the leading one first.
Directions = dict[Edge, Tensor]
#: What a size is taken for at least.
SMALL = 1e-30


def random_directions(plan: Plan, k: int, count: int, like: Tensor, generator: torch.Generator) -> Directions:
    """For an affine node; the first positive, as the leading vector of many a map nearly is; the same per function."""
    shapes = {i: plan.parent_shape((k, i)) for i in plan.linked(k)}
    rows, beside = {}, BLOCK - 1 if plan.smaller_side(k) > SIDE else 0
    for i, shape in shapes.items():
        first = torch.rand(1, 1, *shape, generator=generator, dtype=torch.float64) + 0.1
        others = torch.randn(1, beside, *shape, generator=generator, dtype=torch.float64)
        rows[i] = torch.cat([first, others], dim=1).to(like)
    return {(k, i): t.repeat(count, *[1] * (t.dim() - 1)) for i, t in _orthonormal(rows).items()}


def scaled_weights(
    plan: Plan, k: int, total: Tensor, logs: Mapping[int, Tensor], directions: Directions, steps: int
) -> dict[int, Tensor]:
    """T_i = λ exp(t_i) with λ = λ_max(blockdiag(e^{−t/2}) AᵀDA blockdiag(e^{−t/2})) as far as the steps find it.

    Several directions are kept: at the best weights the largest eigenvalues come together, and one direction would
    follow now this, now that one, and fall behind.

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
        roots = {i: (-0.5 * t).exp().unsqueeze(1) for i, t in logs.items()}
        wide = total.unsqueeze(1)
        for _ in range(steps):
            pulled = _pulled(plan, k, roots, wide * _image(plan, k, roots, directions))
            directions.update({(k, i): p for i, p in _orthonormal(pulled).items()})
        image = _image(plan, k, roots, directions)
        if image.shape[1] > 1:
            flat = (wide.sqrt() * image).flatten(2)
            turn = torch.linalg.eigh((flat @ flat.mT).nan_to_num(0.0, 0.0, 0.0))[1].flip(2)  # the greatest first
            for i in logs:
                directions[k, i] = torch.einsum("pab,pa...->pb...", turn, directions[k, i])
            image = torch.einsum("pa,pa...->p...", turn[:, :, 0], image).unsqueeze(1)
        square = image[:, 0].square()
    size = (total * square).flatten(1).sum(1).clamp(min=SMALL).log()
    for i, t in logs.items():
        share = directions[k, i][:, 0].square()
        share = share.sum_to_size(t.shape) if t.shape != share.shape else share
        size = size - (share * (t - t.detach())).flatten(1).sum(1)
    return {i: (t + by_row(size, t)).exp() for i, t in logs.items()}


def _orthonormal(rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """A basis, (P, BLOCK, …) over all parents, of what the rows span; zeros where that is less."""
    flat = torch.cat([t.flatten(2) for t in rows.values()], dim=2)
    flat = flat / flat.norm(dim=2, keepdim=True).clamp(min=SMALL)
    if flat.shape[1] > 1:
        flat = _turned(flat)
    parts = flat.split([t[0, 0].numel() for t in rows.values()], dim=2)
    return {i: part.reshape(t.shape) for (i, t), part in zip(rows.items(), parts, strict=True)}


def _turned(flat: Tensor) -> Tensor:
    """Rows of a basis, (P, n, m), for rows of length 1."""
    squares, turn = torch.linalg.eigh((flat @ flat.mT).nan_to_num(0.0, 0.0, 0.0))
    root = torch.where(squares > THIN, squares.clamp(min=THIN).rsqrt(), 0.0)
    return (turn * root[:, None, :]).mT @ flat


def _pulled(plan: Plan, k: int, roots: Mapping[int, Tensor], image: Tensor) -> dict[int, Tensor]:
    """Back to the parents of vectors at the node, (P, n, *shape)."""
    together = image.flatten(0, 1)
    return {
        i: r * plan.maps[k][i].plain(together, back=True).reshape(*image.shape[:2], *plan.parent_shape((k, i)))
        for i, r in roots.items()
    }


def _image(plan: Plan, k: int, roots: Mapping[int, Tensor], vectors: Mapping[Edge, Tensor]) -> Tensor:
    """At the node of vectors at the parents, (P, n, *shape)."""
    scaled = {i: r * vectors[k, i] for i, r in roots.items()}
    shape = plan.network.nodes[k].shape
    parts = [plan.maps[k][i].plain(x.flatten(0, 1)).reshape(*x.shape[:2], *shape) for i, x in scaled.items()]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def excess(
    plan: Plan, k: int, total: Tensor, weights: Mapping[int, Tensor], directions: Directions, steps: int
) -> Tensor:
    """λ_max(blockdiag(T^{−1/2}) AᵀDA blockdiag(T^{−1/2})), (P,), by Lanczos from directions: from below, but close."""
    roots = {i: w.clamp(min=SMALL).rsqrt().unsqueeze(1) for i, w in weights.items()}
    shapes = {i: plan.parent_shape((k, i)) for i in weights}
    sizes = [directions[k, i][0, 0].numel() for i in weights]

    def gram(x: Tensor) -> Tensor:
        parts = zip(weights, x.split(sizes, dim=1), strict=True)
        image = _image(plan, k, roots, {(k, i): part.reshape(-1, 1, *shapes[i]) for i, part in parts})
        pulled = _pulled(plan, k, roots, total.unsqueeze(1) * image)
        return torch.cat([part.flatten(1) for part in pulled.values()], dim=1)

    first = torch.cat([directions[k, i][:, 0].flatten(1) for i in weights], dim=1)
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
