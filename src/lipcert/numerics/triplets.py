"""Leading singular triplets of a linear map that is given only as code.

Block Golub-Kahan-Lanczos with thick restarts. Values approach the true ones from below: they are
estimates with residuals, no bounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BatchMap = Callable[[Tensor], Tensor]


def top_singular_triplets(
    apply: BatchMap,
    transpose: BatchMap,
    in_size: int,
    out_size: int,
    k: int,
    block: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    tol: float = 1e-6,
    max_iter: int = 100,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The k leading singular triplets of W from ``x -> W x`` and ``y -> W^T y`` on batches.

    Keeps orthonormal bases V and U with ``W V = U B`` exactly, B small, and ``W^T U = V B^T`` up to
    the newest block (Golub & Kahan 1965; block form with restarts on the kept Ritz vectors, Baglama
    & Reichel 2005). All k vectors converge together, unlike one deflated power method per vector
    (Scaman & Virmaux 2018, Algorithm 2 and its k-vector form), whose results these are.

    Args:
        apply: (b, in_size) -> (b, out_size).
        transpose: (b, out_size) -> (b, in_size), the vector-Jacobian product of ``apply``.
        in_size: columns of W.
        out_size: rows of W.
        k: number of triplets, 1 <= k <= min(in_size, out_size).
        block: vectors per call; default between 4 and 32 by k. Blocks below the multiplicity of a
            singular value may miss copies of it.
        generator: source of the random start, on ``device``.
        dtype: of bases and arguments of the maps.
        device: of the same.
        tol: stop when every residual is at most ``max(tol, 30 eps(dtype)) * S[0]``.
        max_iter: most restarts; after them the triplets come back as they are.

    Returns:
        U (out_size, k), S (k,) descending, V (in_size, k), all on ``device``, and residuals (k,),
        ``sqrt(||W v - s u||^2 + ||W^T u - s v||^2)``, evaluated at the end: read them. Vectors of
        zero singular values are arbitrary orthonormal ones.

    Raises:
        ValueError: k out of range, or the maps return NaN, infinity or wrong shapes.
    """
    rank = min(in_size, out_size)
    if not 1 <= k <= rank:
        raise ValueError(f"k must be between 1 and min(in_size, out_size) = {rank}, got {k}")
    if out_size < in_size:
        u, s, v, residuals = top_singular_triplets(
            transpose, apply, out_size, in_size, k, block, generator, dtype, device, tol, max_iter
        )
        return v, s, u, residuals
    width = min(block or max(4, min(32, k // 4)), rank)
    capacity = min(rank, max(3 * k, k + 6 * width))
    state = _Bidiagonal(apply, transpose, in_size, out_size, generator, dtype, device)
    goal = max(tol, 30 * torch.finfo(dtype).eps)
    keep = min(capacity, k + max(width, (capacity - k) // 3))
    state.expand(capacity, width)
    u, s, v, estimate = state.ritz()
    for _ in range(max_iter):
        if state.full or bool((estimate[:k] <= 0.5 * goal * s[0]).all()):
            break
        state.restart(u, s, v, keep)
        state.expand(capacity, width)
        u, s, v, estimate = state.ritz()
    left, right = u[:, :k].mT @ state.u, v[:, :k].mT @ state.v
    return left.mT, s[:k], right.mT, _residuals(state, left, s[:k], right)


class _Bidiagonal:
    """``W v_j = sum_i b_ij u_i`` for the rows v of ``self.v``, u of ``self.u``; in_size <= out_size."""

    def __init__(
        self,
        apply: BatchMap,
        transpose: BatchMap,
        in_size: int,
        out_size: int,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.apply, self.transpose = apply, transpose
        self.in_size, self.out_size = in_size, out_size
        self.generator = generator
        self.like = torch.empty(0, dtype=dtype, device=device)
        self.v, self.u = self.like.new_empty(0, in_size), self.like.new_empty(0, out_size)
        self.b = self.like.new_empty(0, 0)
        self.next_v: Tensor | None = None
        self.coupling = self.like.new_empty(0, 0)
        self.full = False

    def expand(self, capacity: int, width: int) -> None:
        """Add whole blocks until V and U have at least ``capacity`` rows, and the next block of V."""
        rows = min(capacity + width, self.in_size)
        all_v, all_u = self.like.new_empty(rows, self.in_size), self.like.new_empty(rows, self.out_size)
        b = self.like.new_zeros(rows, rows)
        m = self.v.shape[0]
        all_v[:m], all_u[:m], b[:m, :m] = self.v, self.u, self.b
        self.v = self.u = self.like
        new_v = self.next_v
        if new_v is None:
            new_v, _, _ = self._orthonormal(self._random(width, self.in_size), all_v[:0], width)
        while m < capacity:
            count = new_v.shape[0]
            end = m + count
            image = _checked(self.apply(new_v), (count, self.out_size))
            new_u, over, inner = self._orthonormal(image, all_u[:m], count)
            all_v[m:end], all_u[m:end] = new_v, new_u
            b[:m, m:end], b[m:end, m:end] = over.mT, inner.mT
            pulled = _checked(self.transpose(new_u), (count, self.in_size))
            m = end
            # The part of W^T u_new along V is in b already; the rest spans the next block, which
            # must be kept whole: a direction dropped here could never be found again.
            room = min(count, self.in_size - m)
            new_v, _, self.coupling = self._orthonormal(pulled, all_v[:m], room)
        self.v, self.u, self.b, self.next_v = all_v[:m], all_u[:m], b[:m, :m], new_v
        self.full = m == self.in_size

    def ritz(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """SVD of B and the residual estimates ``||W^T u_i - s_i v_i||``."""
        left, s, right = torch.linalg.svd(self.b)
        tail = self.coupling.shape[0]
        estimate = (self.coupling.mT @ left[left.shape[0] - tail :]).norm(dim=0)
        return left, s, right.mT, estimate

    def restart(self, left: Tensor, s: Tensor, right: Tensor, keep: int) -> None:
        """Replace the bases by the leading ``keep`` Ritz vectors; ``W V = U diag(s)`` still holds."""
        self.v, self.u = right[:, :keep].mT @ self.v, left[:, :keep].mT @ self.u
        self.b = torch.diag(s[:keep])

    def _random(self, rows: int, size: int) -> Tensor:
        like = self.like
        return torch.randn(rows, size, generator=self.generator, dtype=like.dtype, device=like.device)

    def _orthonormal(self, rows: Tensor, basis: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """``rows = over @ basis + inner @ q`` with q orthonormal and orthogonal to the basis.

        q has ``count`` rows, enough for all of ``rows`` beyond the basis; directions that ``rows`` lacks are
        filled with random ones, with zero coefficients, so that the iteration never breaks down.
        """
        eps = torch.finfo(rows.dtype).eps
        size = float(rows.norm(dim=1).max())
        over = rows.new_zeros(rows.shape[0], basis.shape[0])
        rest = rows.clone()
        for _ in range(2):
            part = rest @ basis.mT
            rest, over = rest - part @ basis, over + part
        q, r = torch.linalg.qr(rest.mT)
        x, s, z = torch.linalg.svd(r, full_matrices=False)  # rest^T = (q x) diag(s) z
        good = min(int((s > 32 * eps * size).sum()), count)
        found = (q @ x[:, :good]).mT
        inner = rows.new_zeros(rows.shape[0], count)
        inner[:, :good] = z[:good].mT * s[:good]
        found = torch.cat([found, self._random(count - good, rows.shape[1])])
        # Two passes are enough except for a remainder that is small next to the rows, and for random rows.
        small = not bool((s[:good] > 0.1 * size).all())
        for _ in range(3 if good < count else int(small)):
            found = found - (found @ basis.mT) @ basis
            found[good:] -= (found[good:] @ found[:good].mT) @ found[:good]
            q, r = torch.linalg.qr(found.mT)
            found = (q * torch.sign(r.diagonal())).mT
        return found, over, inner


def _checked(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    y = y.detach()
    if tuple(y.shape) != shape:
        raise ValueError(f"the map returned shape {tuple(y.shape)} instead of {shape}")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("the map returned NaN or infinity")
    return y


def _residuals(state: _Bidiagonal, left: Tensor, s: Tensor, right: Tensor, batch: int = 32) -> Tensor:
    parts = []
    for i in range(0, len(s), batch):
        u, v, scale = left[i : i + batch], right[i : i + batch], s[i : i + batch, None]
        forward = (_checked(state.apply(v), tuple(u.shape)) - scale * u).norm(dim=1)
        backward = (_checked(state.transpose(u), tuple(v.shape)) - scale * v).norm(dim=1)
        parts.append(torch.hypot(forward, backward))
    return torch.cat(parts)
