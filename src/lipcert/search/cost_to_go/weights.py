"""Diagonal weights T with blockdiag(T_i) ⪰ [A_1 … A_m]ᵀ D [A_1 … A_m]: free directions, the size by a power method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.linear import size
from lipcert.search.cost_to_go.inputs import by_row
from lipcert.search.cost_to_go.plan import Plan

#: Directions that the power method keeps, of maps beyond a least side (of smaller ones one is enough, and quicker), and
#: the square of a unit vector's part that counts as none.
BLOCK, SIDE, THIN = 8, 64, 1e-5
#: Relative distance from the greatest eigenvalue within which others have their share in its gradient. At the best
#: weights many come together: along the gradient of one alone the ascent zigzags, and what it gains in a long run is
#: only how far the power method has fallen behind.
BLUR = 5e-3
#: Images of the directions that are used together, and the part of one that is to be new at least: values see its
#: square, and what is less would follow rounding, where eigenvalues come together.
DEEP, FAINT = 3, 1e-3
#: Steps of Lanczos between looks at its greatest values, and their relative change in so many that counts as none.
LOOK, SETTLED = 8, 1e-5
#: Where the power method stands at each affine node: orthonormal vectors on the shorter side of its map, (P, BLOCK,
#: length of that side), the leading one first.
Directions = dict[int, Tensor]
#: What a size is taken for at least.
SMALL = 1e-30


@dataclass(frozen=True, eq=False)
class _Scaled:
    """√D [A_1 … A_m] blockdiag(T_i)^{−1/2} of P functions, as a map of rows (P, n, length of a side).

    Attributes:
        plan: the network.
        k: an affine node.
        root: √D, (P, 1, *shape), or broadcast to it.
        roots: place of a parent → T_i^{−1/2}, (P, 1, *shape of the parent), or broadcast to it.
    """

    plan: Plan
    k: int
    root: Tensor
    roots: Mapping[int, Tensor]

    def parts(self, x: Tensor) -> dict[int, Tensor]:
        """Rows of the parents' side, by parent: (P, n, *shape) each."""
        shapes = [self.plan.parent_shape((self.k, i)) for i in self.roots]
        split = x.split([size(shape) for shape in shapes], dim=2)
        return {i: t.reshape(*t.shape[:2], *shape) for i, t, shape in zip(self.roots, split, shapes, strict=True)}

    def image(self, x: Tensor) -> Tensor:
        """Without √D: (P, n, *shape of the node)."""
        shape, maps = self.plan.network.nodes[self.k].shape, self.plan.maps[self.k]
        scaled = {i: self.roots[i] * part for i, part in self.parts(x).items()}
        images = [maps[i].plain(part.flatten(0, 1)).reshape(*x.shape[:2], *shape) for i, part in scaled.items()]
        return torch.stack(images).sum(0) if len(images) > 1 else images[0]

    def forth(self, x: Tensor) -> Tensor:
        """From the parents' side to the node's."""
        return (self.root * self.image(x)).flatten(2)

    def back(self, y: Tensor) -> Tensor:
        """The transposed map."""
        together = (self.root * y.reshape(*y.shape[:2], *self.plan.network.nodes[self.k].shape)).flatten(0, 1)
        pulled = {i: self.plan.maps[self.k][i].plain(together, back=True) for i in self.roots}
        parts = [(r * pulled[i].reshape(*y.shape[:2], *pulled[i].shape[1:])).flatten(2) for i, r in self.roots.items()]
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]

    def across(self, x: Tensor) -> Tensor:
        """From the shorter side to the other."""
        return self.forth(x) if _short(self.plan, self.k) else self.back(x)

    def square(self, across: Tensor) -> Tensor:
        """Back to the shorter side."""
        return self.back(across) if _short(self.plan, self.k) else self.forth(across)


def _short(plan: Plan, k: int) -> bool:
    """Whether the parents' side is the shorter one."""
    return plan.smaller_side(k) < size(plan.network.nodes[k].shape)


def random_directions(plan: Plan, k: int, count: int, like: Tensor, generator: torch.Generator) -> Directions:
    """For an affine node; the first positive, as the leading vector of many a map nearly is; the same per function."""
    side = plan.smaller_side(k)
    first = torch.rand(1, 1, side, generator=generator, dtype=torch.float64) + 0.1
    others = torch.randn(1, BLOCK - 1 if side > SIDE else 0, side, generator=generator, dtype=torch.float64)
    rows = torch.cat([first, others], dim=1).to(like)
    rows = rows / rows.norm(dim=2, keepdim=True)
    return {k: (_turned(rows) if rows.shape[1] > 1 else rows).repeat(count, 1, 1)}


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
        Place of a parent → T_i, with the gradient in D and t of the logarithm of a smooth maximum of the eigenvalues:
        a mean of D_j y_j²/λ and of −w² over the directions, those of smaller ones counting less (softmax by ``BLUR``).
    """
    with torch.no_grad():
        roots = {i: (-0.5 * t).exp().unsqueeze(1) for i, t in logs.items()}
        scaled = _Scaled(plan, k, total.sqrt().unsqueeze(1), roots)
        for start in range(0, max(1, steps), DEEP):
            directions[k] = _leading(scaled, directions[k], min(DEEP, steps - start))
        rows = directions[k] if _short(plan, k) else scaled.back(directions[k])
        length = rows.norm(dim=2, keepdim=True)
        seen = length > FAINT * length.amax(dim=1, keepdim=True)  # the others' values are next to 0
        rows = torch.where(seen, rows / length.clamp(min=SMALL), 0.0)
        squares, parts = scaled.image(rows).square(), scaled.parts(rows.square())
        values = (total.unsqueeze(1) * squares).flatten(2).sum(2)  # Rayleigh quotients, (P, n)
        greatest = values.amax(1).clamp(min=SMALL)
        counts = ((values / greatest[:, None] - 1.0) / BLUR).softmax(1)
        square = _mean(squares, torch.where(values > SMALL, counts / values.clamp(min=SMALL), 0.0))
        shares = {i: _mean(part, counts) for i, part in parts.items()}
    one = (total * square).flatten(1).sum(1)
    log = greatest.log() + (one - one.detach())
    for i, t in logs.items():
        share = shares[i]
        share = share.sum_to_size(t.shape) if t.shape != share.shape else share
        log = log - (share * (t - t.detach())).flatten(1).sum(1)
    return {i: (t + by_row(log, t)).exp() for i, t in logs.items()}


def _mean(rows: Tensor, counts: Tensor) -> Tensor:
    """Σ_n counts · rows, (P, *shape), of (P, n, *shape) and (P, n)."""
    return torch.einsum("pn,pn...->p...", counts, rows)


def _leading(scaled: _Scaled, block: Tensor, steps: int) -> Tensor:
    """The leading Ritz vectors of what directions and their images span.

    With G the map's square, X the directions, that is of X, GX, …, G^steps X: at the cost of as many steps of a power
    method, which would go on with G^steps X alone, it comes much closer to the greatest eigenvalues. All of it on the
    map's shorter side, where most of the time would go to vectors otherwise.
    """
    count = block.shape[1]
    basis, across, squares = block, scaled.across(block), []
    for _ in range(steps):
        squares.append(scaled.square(across))
        fresh = squares[-1] / squares[-1].norm(dim=2, keepdim=True).clamp(min=SMALL)
        for _ in range(2):
            fresh = fresh - (fresh @ basis.mT) @ basis
        length = fresh.norm(dim=2, keepdim=True)
        fresh = torch.where(length > FAINT, fresh / length.clamp(min=FAINT), 0.0)
        if count > 1:
            fresh = _turned(fresh)
            fresh = fresh - (fresh @ basis.mT) @ basis  # of which turning may have enlarged what rounding had left
            length = fresh.norm(dim=2, keepdim=True)
            fresh = torch.where(length > 0.5, fresh / length.clamp(min=0.5), 0.0)
        basis, across = torch.cat([basis, fresh], dim=1), scaled.across(fresh)
    if basis.shape[1] == 1:
        return block
    whole = across @ across.mT  # of the last directions; of the others with all of them
    if squares:
        before = torch.cat(squares, dim=1) @ basis.mT
        whole = torch.cat([before, torch.cat([before[:, :, -count:].mT, whole], dim=2)], dim=1)
    whole = (0.5 * (whole + whole.mT)).nan_to_num(0.0, 0.0, 0.0)
    unit = whole.diagonal(dim1=1, dim2=2).amax(1).clamp(min=SMALL)[:, None, None]
    empty = torch.diag_embed((basis.square().sum(dim=2) < 0.5).to(whole))  # what was no new direction comes last
    found = _spectrum(whole / unit - empty)[1].flip(2)[:, :, :count].mT @ basis
    return torch.linalg.qr(found.mT)[0].mT if count > 1 else found  # which keeps the first, and rounding from adding up


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


def excess(
    plan: Plan, k: int, total: Tensor, weights: Mapping[int, Tensor], directions: Directions, steps: int
) -> Tensor:
    """λ_max(blockdiag(T^{−1/2}) AᵀDA blockdiag(T^{−1/2})), (P,), by Lanczos from directions: from below, but close."""
    roots = {i: w.clamp(min=SMALL).rsqrt().unsqueeze(1) for i, w in weights.items()}
    scaled, first = _Scaled(plan, k, total.sqrt().unsqueeze(1), roots), directions[k][:, 0]
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(first)
    noise = noise * (0.1 * first.norm(dim=1) / noise.norm(dim=1)).clamp(min=1e-30)[:, None]
    # noise: of a map of separate parts the direction may have left some out
    return _lanczos(lambda x: scaled.square(scaled.across(x[:, None]))[:, 0], first + noise, steps)


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
