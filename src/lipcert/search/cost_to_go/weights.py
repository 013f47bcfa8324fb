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
BLOCK, SIDE, THIN = 8, 64, 1e-5
#: Images of the directions that are used together, and the part of one that is to be new at least: values see its
#: square, and what is less would follow rounding, where eigenvalues come together.
DEEP, FAINT = 3, 1e-3
#: Steps of Lanczos between looks at its greatest values, and their relative change in so many that counts as none.
LOOK, SETTLED = 8, 3e-5
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
        for start in range(0, max(1, steps), DEEP):
            image = _leading_image(plan, k, total.unsqueeze(1), roots, directions, min(DEEP, steps - start))
        square = image.square()
    size = (total * square).flatten(1).sum(1).clamp(min=SMALL).log()
    for i, t in logs.items():
        share = directions[k, i][:, 0].square()
        share = share.sum_to_size(t.shape) if t.shape != share.shape else share
        size = size - (share * (t - t.detach())).flatten(1).sum(1)
    return {i: (t + by_row(size, t)).exp() for i, t in logs.items()}


def _leading_image(
    plan: Plan, k: int, total: Tensor, roots: Mapping[int, Tensor], directions: Directions, steps: int
) -> Tensor:
    """Replace directions by the leading Ritz vectors of what they and their images span; the image of the first.

    With G the map's square, X the directions, that is of X, GX, …, G^steps X: at the cost of as many steps of a power
    method, which would go on with G^steps X alone, it comes much closer to the greatest eigenvalues.
    """
    block = torch.cat([directions[k, i].flatten(2) for i in roots], dim=2)
    shapes = {i: directions[k, i].shape[2:] for i in roots}
    sizes = [shape.numel() for shape in shapes.values()]

    def image_of(rows: Tensor) -> Tensor:
        parts = zip(shapes.items(), rows.split(sizes, dim=2), strict=True)
        return _image(plan, k, roots, {(k, i): part.reshape(*part.shape[:2], *s) for (i, s), part in parts})

    basis, images = [block], [image_of(block)]
    for _ in range(steps):
        pulled = torch.cat([t.flatten(2) for t in _pulled(plan, k, roots, total * images[-1]).values()], dim=2)
        known, length = torch.cat(basis, dim=1), pulled.norm(dim=2, keepdim=True).clamp(min=SMALL)
        pulled = pulled / length
        for _ in range(2):
            pulled = pulled - (pulled @ known.mT) @ known
        length = pulled.norm(dim=2, keepdim=True)
        pulled = torch.where(length > FAINT, pulled / length.clamp(min=FAINT), 0.0)
        basis.append(_turned(pulled) if pulled.shape[1] > 1 else pulled)
        images.append(image_of(basis[-1]))
    spanned, reached = torch.cat(basis, dim=1), torch.cat(images, dim=1)
    count = block.shape[1]
    if len(basis) * count > 1:
        flat = (total.sqrt() * reached).flatten(2)
        turn = _spectrum(flat @ flat.mT)[1].flip(2)[:, :, :count]
        for i, part in zip(roots, (turn.mT @ spanned).split(sizes, dim=2), strict=True):
            directions[k, i] = part.reshape(*part.shape[:2], *shapes[i])
        reached = torch.einsum("pa,pa...->p...", turn[:, :, 0], reached).unsqueeze(1)
    return reached[:, 0]


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
    squares, turn = _spectrum(flat @ flat.mT)
    root = torch.where(squares > THIN, squares.clamp(min=THIN).rsqrt(), 0.0)
    return (turn * root[:, None, :]).mT @ flat


def _spectrum(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and vectors of symmetric matrices (P, n, n).

    In float64 where float32 does not converge, as LAPACK's may not on a matrix of which most rows are zero or next to
    it: it raises, or fills in NaN, with which a function's directions would be lost for good.
    """
    squares = squares.nan_to_num(0.0, 0.0, 0.0)
    try:
        values, vectors = torch.linalg.eigh(squares)
        lost = ~(values.isfinite().all(1) & vectors.isfinite().flatten(1).all(1))
    except RuntimeError:  # torch.linalg.LinAlgError is one
        values, vectors = torch.empty_like(squares[:, 0]), torch.empty_like(squares)
        lost = torch.ones_like(values[:, 0], dtype=torch.bool)
    if bool(lost.any()):
        again = torch.linalg.eigh(squares[lost].double().cpu())
        values[lost], vectors[lost] = (part.to(squares) for part in again)
    return values, vectors


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
    """The greatest Ritz values, (P,), with full reorthogonalisation; a basis that is complete ends with zeros.

    It ends early where they have settled, as they soon have from the directions of a long ascent; each by itself, so
    that no function depends on those beside it.
    """
    steps = min(steps, first.shape[1])
    basis = first.new_zeros(len(first), steps + 1, first.shape[1])
    basis[:, 0] = first / first.norm(dim=1, keepdim=True).clamp(min=SMALL)
    diagonal, beside = (first.new_zeros(len(first), steps) for _ in range(2))
    found = first.new_zeros(len(first), dtype=torch.float64)
    settled = torch.zeros_like(found, dtype=torch.bool)
    tiny = 100.0 * torch.finfo(first.dtype).eps
    for k in range(steps):
        x = gram(basis[:, k])
        diagonal[:, k] = (x * basis[:, k]).sum(1)
        known = basis[:, : k + 1]
        for _ in range(2):
            x = x - torch.einsum("bkn,bk->bn", known, torch.einsum("bkn,bn->bk", known, x))
        length = x.norm(dim=1)
        length = torch.where(length > tiny * diagonal.abs().amax(1), length, 0.0)
        beside[:, k] = length
        basis[:, k + 1] = torch.where(length[:, None] > 0, x / length.clamp(min=SMALL)[:, None], 0.0)
        if (k + 1) % LOOK == 0 or k + 1 == steps:
            now = _greatest(diagonal[:, : k + 1], beside[:, :k])
            before, found = found, torch.where(settled, found, now)
            settled |= found - before <= SETTLED * found
            if bool(settled.all()):
                break
    return found.to(first)


def _greatest(diagonal: Tensor, beside: Tensor) -> Tensor:
    """Eigenvalues of tridiagonal matrices, (P,) float64."""
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    return torch.linalg.eigvalsh(matrix.double().nan_to_num(0.0, 0.0, 0.0))[:, -1]
