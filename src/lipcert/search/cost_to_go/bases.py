"""Bases for maxima over windows in which the maps before them are small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.bases import MOST_ENTRIES, classes_of
from lipcert.network.graph import AffineNode, Network
from lipcert.network.linear import LinearMap, Shape, size
from lipcert.ranges.build import maximum

if TYPE_CHECKING:
    from lipcert.network.nonlinearity import MaxSelection

#: Values of an affine node beyond which nothing is looked for.
MOST = 1 << 18
#: Steps of the search, its rate, vectors of the power method, its steps in each and before and after.
STEPS, RATE, BLOCK, POWER, SETTLE = 50, 0.06, 8, 1, 30
#: Shares of the rows' own correlations that the search may start at.
SHARES = (0.0, 0.3, 0.5, 0.7)
#: The least eigenvalue of a correlation matrix, and what part of the square of the norm is to be left at most.
LEAST, WORTH = 1e-2, 0.92


def find_bases(network: Network) -> dict[int, Tensor]:
    """Position of a maximum over windows → B of every class of windows, (classes, K, K) float64, where it is worth it.

    B = C^{−½} for a correlation matrix C, so that the rows of B⁻¹ have length 1, with λ_max(AᵀB²A) small, A the map
    to the windows' entries. With C = 1 that is the square of the norm of A.
    """
    found = {}
    for k, node in enumerate(network.nodes):
        windows = maximum(node)
        if windows is None:
            continue
        before = network.nodes[node.parents[0]]
        if not isinstance(before, AffineNode) or not 1 < windows.index.shape[1] <= MOST_ENTRIES:
            continue
        if windows.index.numel() > MOST or not bool(windows.first.all(dim=1).any()):
            continue
        try:
            basis = _Search(before.maps, before.shape, windows).best()
        except RuntimeError:  # torch.linalg.LinAlgError is one: of numbers beyond float32
            continue
        if basis is not None and bool(basis.isfinite().all()):
            found[k] = basis
    return found


class _Search:
    def __init__(self, maps: Sequence[LinearMap], shape: Shape, windows: MaxSelection) -> None:
        self.maps, self.shape, self.windows = [m.to(torch.float32, "cpu") for m in maps], shape, windows
        self.classes, (self.count, self.size) = classes_of(windows), windows.index.shape
        self.full = windows.first.all(dim=1).reshape(self.classes, -1)[None, :, :, None]
        self.columns = [m.in_size for m in maps]
        self.generator = torch.Generator().manual_seed(0)
        start = torch.randn(BLOCK, sum(self.columns), generator=self.generator)
        self.vectors = start / start.norm(dim=1, keepdim=True).clamp(min=1e-30)

    def best(self) -> Tensor | None:
        """B, if it is worth it."""
        one = torch.eye(self.size).repeat(self.classes, 1, 1)
        rows = self._correlations()
        starts = [(1.0 - share) * one + share * rows for share in SHARES]
        sizes = [self._size(start, SETTLE) for start in starts]
        found = starts[min(range(len(starts)), key=sizes.__getitem__)]
        found = self._improved(found, min(sizes))
        if not self._size(found, SETTLE) < WORTH * sizes[0]:
            return None
        values, vectors = torch.linalg.eigh(found.double())
        return vectors @ torch.diag_embed(values.clamp(min=LEAST).rsqrt()) @ vectors.mT

    def _improved(self, start: Tensor, least: float) -> Tensor:
        """By Adam on the square root's rows; the gradient of the largest eigenvalues at the vectors found."""
        root = torch.linalg.cholesky(start).requires_grad_(True)
        adam = torch.optim.Adam([root], lr=RATE)
        best = start
        for step in range(STEPS):
            rows = root / root.norm(dim=-1, keepdim=True)
            correlations = (1.0 - LEAST) * rows @ rows.mT + LEAST * torch.eye(self.size)
            inverse = torch.linalg.inv(correlations)
            self._iterate(inverse.detach(), POWER)
            entries = self._entries(self.vectors)
            gram = torch.einsum("nawi,aij,mawj->nm", entries, inverse, entries)
            values = torch.linalg.eigvalsh(gram)
            if step >= SETTLE and float(values[-1].detach()) < least:
                best, least = correlations.detach(), float(values[-1].detach())
            sharp = 40.0 / float(values[-1].detach().clamp(min=1e-30))
            adam.zero_grad()
            (torch.logsumexp(sharp * values, 0) / sharp).backward()
            adam.step()
            if not bool(root.isfinite().all()):
                break
        return best

    def _size(self, correlations: Tensor, steps: int) -> float:
        """λ_max(AᵀC⁻¹A), about."""
        inverse = torch.linalg.inv(correlations)
        self._iterate(inverse, steps)
        entries = self._entries(self.vectors)
        value = float(torch.linalg.eigvalsh(torch.einsum("nawi,aij,mawj->nm", entries, inverse, entries))[-1])
        return value if math.isfinite(value) else math.inf

    def _iterate(self, inverse: Tensor, steps: int) -> None:
        for _ in range(steps):
            pulled = self._pulled(self._entries(self.vectors) @ inverse)
            self.vectors = torch.linalg.qr(pulled.nan_to_num(0.0, 0.0, 0.0).T).Q.T

    def _entries(self, x: Tensor) -> Tensor:
        """A x: (n, classes, windows, K), 0 in windows with repetitions."""
        parts = zip(self.maps, x.split(self.columns, dim=1), strict=True)
        with torch.no_grad():
            value = torch.stack([m.apply(part.reshape(-1, *m.in_shape)).flatten(1) for m, part in parts]).sum(0)
        return value[:, self.windows.index].reshape(len(x), self.classes, -1, self.size) * self.full

    def _pulled(self, entries: Tensor) -> Tensor:
        """Aᵀ y."""
        flat = (entries * self.full).reshape(len(entries), -1)
        value = flat.new_zeros(len(flat), size(self.shape)).index_add(1, self.windows.index.reshape(-1), flat)
        value = value.reshape(-1, *self.shape)
        with torch.no_grad():
            return torch.cat([m.transpose(value).flatten(1) for m in self.maps], dim=1)

    def _correlations(self) -> Tensor:
        """Of the rows of A in the middle window of every class."""
        per = self.count // self.classes
        order = (torch.arange(per) - per // 2).abs()
        middle = torch.where(self.full[0, :, :, 0], order, per).argmin(1)
        chosen = self.windows.index.reshape(self.classes, per, self.size)[torch.arange(self.classes), middle]
        unit = torch.zeros(self.classes * self.size, size(self.shape))
        unit[torch.arange(len(unit)), chosen.reshape(-1)] = 1.0
        unit = unit.reshape(-1, *self.shape)
        with torch.no_grad():
            rows = torch.cat([m.transpose(unit).flatten(1) for m in self.maps], dim=1)
        rows = rows.reshape(self.classes, self.size, -1)
        rows = rows / rows.norm(dim=2, keepdim=True).clamp(min=1e-30)
        one = torch.eye(self.size)
        return torch.where(one > 0, one, rows @ rows.mT).nan_to_num(0.0)
