"""Dense forms for many branch-and-bound nodes at once: ρ for the multipliers of an ascent, in plain floating point.

Untrusted: the branch-tree certificate proves again what is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.certificates.forms.block_rows import dense
from lipcert.certificates.forms.elimination import Segment
from lipcert.certificates.forms.lmi import CAUTION, CLEAR, room
from lipcert.certificates.forms.quadratic_form import DenseForm
from lipcert.increments import Cell, Linear
from lipcert.methods.branch_ascent import Neurons
from lipcert.network.linear import size
from lipcert.search.float_form import sufficient
from lipcert.search.reach import unreached

_TINY = 1e-300


@dataclass(eq=False)
class BatchForm:
    """``DenseForm`` for a batch of nodes, in plain floating point: the least ρ for given multipliers."""

    form: DenseForm
    neurons: Neurons
    _maps: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _wide: Tensor | None = None

    def __post_init__(self) -> None:
        transformed = self.form.transformed
        for k, maps in transformed.maps.items():
            for parent, linear in zip(transformed.increments.relations[k].parents, maps, strict=True):
                self._maps[k, parent] = linear.matrix()
        first, relation = self.form.segments[0], self.form.relations[0]
        if not first.cells and relation.entry > relation.output.rows:
            image = dense(relation.output.parts[0])
            self._wide = image @ image.T

    def least_rho(
        self, patterns: Tensor, multipliers: Tensor, slack: Tensor, margin: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """ρ (B,), ``inf`` where infeasible, and the multipliers (B, count), repaired if ``margin`` (B,) is given.

        Args:
            patterns: (B, count).
            multipliers: (B, count) λ.
            slack: (B,) relative lift of the intermediate forms.
            margin: as in ``float_form.repaired``.
        """
        c, d = (self.neurons.split(rows) for rows in self.neurons.slopes(patterns))
        lam = {node: rows.clone() for node, rows in self.neurons.split(multipliers).items()}
        m = size(self.form.transformed.increments.out_shape)
        matrix = torch.eye(m, dtype=torch.float64).expand(len(patterns), m, m)
        failed = torch.zeros(len(patterns), dtype=torch.bool)
        rho: Tensor | None = None
        for number in range(len(self.form.segments) - 1, -1, -1):
            segment, relation = self.form.segments[number], self.form.relations[number]
            if segment.cells:
                matrix, bad = self._schur(number, matrix, c, d, lam, slack, margin)
                failed |= bad
            elif segment.start == 0 and self._wide is not None:
                rho = _wide_rho(self._wide, matrix)
            else:
                constant = dense(relation.output.parts[0])
                matrix = constant.T @ matrix @ constant
        if rho is None:
            rho = _largest(matrix)
        repaired = torch.cat([lam[cell.node] for cell in self.neurons.cells], dim=1) if lam else multipliers
        return torch.where(failed | rho.isnan(), torch.inf, rho.clamp(min=0.0)), repaired

    def _schur(
        self,
        number: int,
        form: Tensor,
        c: Mapping[int, Tensor],
        d: Mapping[int, Tensor],
        lam: dict[int, Tensor],
        slack: Tensor,
        margin: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        segment = self.form.segments[number]
        preactivations, output, entry = self._relation(segment, self._maps, c, d)
        absolute = self._absolute(segment, c, d)
        if margin is not None:
            self._repair(segment, preactivations, output, absolute, form, c, d, lam, margin)
        matrix = -(output.mT @ (form @ output))
        on_w = []
        for cell, v in zip(segment.cells, preactivations, strict=True):
            idle = (d[cell.node] == 0) & torch.tensor(not cell.block)
            own = torch.where(idle, 0.0, lam[cell.node])
            on_w.append(torch.where(idle, 1.0, lam[cell.node]))
            on_v = _on_v(cell, own, v.shape[1]) if cell.block else own
            used = v.shape[2]
            matrix[:, :used, :used] -= v.mT @ (on_v[:, :, None] * v)
        corner = matrix[:, entry:, entry:]
        corner.diagonal(dim1=1, dim2=2).add_(torch.cat(on_w, dim=1))
        a, b = matrix[:, :entry, :entry], matrix[:, :entry, entry:]
        factor, info = torch.linalg.cholesky_ex(corner)
        bad = info != 0
        if bool(bad.any()):
            factor = torch.where(bad[:, None, None], torch.eye(factor.shape[1], dtype=torch.float64), factor)
        half = torch.linalg.solve_triangular(factor, b.mT, upper=False)
        schur = half.mT @ half - (a + a.mT) / 2
        if segment.start:
            terms = torch.zeros(len(schur), entry, dtype=torch.float64)
            if absolute is not None:
                terms = terms + _terms(absolute[1], form)[:, :entry]
                for cell, v in zip(segment.cells, absolute[0], strict=True):
                    terms = terms + _terms(v, self._weight(cell, v, d, lam))[:, :entry]
            schur = schur + torch.diag_embed(room(schur.diagonal(dim1=1, dim2=2), terms, slack[:, None], CAUTION))
        return schur, bad

    @staticmethod
    def _weight(cell: Cell, v: Tensor, d: Mapping[int, Tensor], lam: Mapping[int, Tensor]) -> Tensor:
        """λ on the entries of a cell's v, (B, rows); 0 for a neuron with d = 0."""
        if cell.block:
            return _on_v(cell, lam[cell.node], v.shape[1])
        return torch.where(d[cell.node] == 0, 0.0, lam[cell.node])

    def _relation(
        self,
        segment: Segment,
        maps: Mapping[tuple[int, int], Tensor],
        c: Mapping[int, Tensor],
        d: Mapping[int, Tensor],
    ) -> tuple[list[Tensor], Tensor, int]:
        """Pre-activations and output of a segment as matrices (B, rows, columns so far)."""
        transformed = self.form.transformed
        nodes = transformed.increments.relations
        sizes = [size(nodes[k].shape) for k in segment.entering]
        entry = width = sum(sizes)
        rows = torch.eye(entry, dtype=torch.float64).split(sizes)
        known = {k: part[None] for k, part in zip(segment.entering, rows, strict=True)}
        preactivations = []
        for k in range(segment.start + 1, segment.stop + 1):
            node = nodes[k]
            if isinstance(node, Linear):
                total = torch.zeros(1, size(node.shape), width, dtype=torch.float64)
                for parent in node.parents:
                    total = _plus(total, maps[k, parent] @ known[parent])
                known[k] = total
                continue
            cell = transformed.cell_at[k]
            v = known[cell.parent]
            preactivations.append(v)
            z = torch.zeros(len(d[k]), cell.size, width + cell.size, dtype=torch.float64)
            if v.shape[1] == cell.size:
                z[:, :, : v.shape[2]] = c[k][:, :, None] * v
            z[:, :, width:] = torch.diag_embed(d[k])
            width += cell.size
            known[k] = z
        leaving = [_widened(known[k], width) for k in segment.leaving]
        batch = max(len(part) for part in leaving)
        return preactivations, torch.cat([part.expand(batch, -1, -1) for part in leaving], dim=1), entry

    def _absolute(
        self, segment: Segment, c: Mapping[int, Tensor], d: Mapping[int, Tensor]
    ) -> tuple[list[Tensor], Tensor] | None:
        """What dominates the relation, where paths meet in it and may cancel; None elsewhere."""
        nodes = self.form.transformed.increments.relations
        if all(len(nodes[k].parents) < 2 for k in range(segment.start + 1, segment.stop + 1)):
            return None
        maps = {place: matrix.abs() for place, matrix in self._maps.items()}
        return self._relation(segment, maps, {k: values.abs() for k, values in c.items()}, d)[:2]

    def _repair(
        self,
        segment: Segment,
        preactivations: list[Tensor],
        output: Tensor,
        absolute: tuple[list[Tensor], Tensor] | None,
        form: Tensor,
        c: Mapping[int, Tensor],
        d: Mapping[int, Tensor],
        lam: dict[int, Tensor],
        margin: Tensor,
    ) -> None:
        """Raise λ where the curvature on a single w_j demands it, last cell first, by the rules of ``float_form``."""
        ends = [0]
        for cell in segment.cells:
            ends.append(ends[-1] + cell.size)
        entry = output.shape[2] - ends[-1]
        margin = margin[:, None]
        for own in range(len(segment.cells) - 1, -1, -1):
            cell = segment.cells[own]
            place = slice(entry + ends[own], entry + ends[own + 1])
            part = output[:, :, place]
            curvature = (part * (form @ part)).sum(dim=1)
            terms = torch.zeros_like(curvature) if absolute is None else _terms(absolute[1][:, :, place], form)
            for later in range(own + 1, len(segment.cells)):
                other = segment.cells[later]
                v = preactivations[later][:, :, place]
                if v.shape[2] == 0:  # a parallel branch: it does not depend on this cell
                    continue
                weight = self._weight(other, v, d, lam)
                curvature = curvature + (weight[:, :, None] * v.square()).sum(dim=1)
                if absolute is not None:
                    terms = terms + _terms(absolute[0][later][:, :, place], weight)
            error = CLEAR * terms
            blind = unreached(self.form.transformed.increments)[cell.node]
            lam[cell.node] = sufficient(
                cell, lam[cell.node], curvature, error, c[cell.node], d[cell.node], margin, blind
            )


def _terms(absolute: Tensor, form: Tensor) -> Tensor:
    """``lmi.magnitudes`` for a batch: (Σ_r |V_ri| √M_rr)², (B, columns)."""
    root = (form if form.dim() == 2 else form.diagonal(dim1=1, dim2=2)).clamp(min=0.0).sqrt()
    return (absolute.mT @ root[:, :, None]).square().squeeze(2)


def _widened(a: Tensor, width: int) -> Tensor:
    return a if a.shape[2] == width else torch.nn.functional.pad(a, (0, width - a.shape[2]))


def _plus(a: Tensor, b: Tensor) -> Tensor:
    width = max(a.shape[2], b.shape[2])
    return _widened(a, width) + _widened(b, width)


def _largest(form: Tensor) -> Tensor:
    """The largest eigenvalue of each matrix; NaN where one is not finite."""
    finite = torch.isfinite(form).all(dim=2).all(dim=1)
    safe = torch.where(finite[:, None, None], form, 0.0)
    if form.shape[1] == 0:
        return torch.zeros(len(form), dtype=torch.float64)
    return torch.where(finite, torch.linalg.eigvalsh((safe + safe.mT) / 2)[:, -1], torch.nan)


def _wide_rho(gram: Tensor, form: Tensor) -> Tensor:
    """λ_max(VᵀMV) from VVᵀ and a Cholesky factor of M, on V's shorter side."""
    diagonal = form.diagonal(dim1=1, dim2=2).clamp(min=0.0)
    scale = diagonal.max(dim=1, keepdim=True).values if diagonal.shape[1] else diagonal
    factor, info = torch.linalg.cholesky_ex(form + torch.diag_embed(1e-13 * diagonal + 1e-15 * scale + 1e-290))
    value = _largest(factor.mT @ gram @ factor)
    return torch.where(info == 0, value, torch.nan)


def _on_v(cell: Cell, on_w: Tensor, entries: int) -> Tensor:
    """λ (B, entries of v) of a block from those on its z: one number per group."""
    each = max(1, cell.size // cell.groups)
    return on_w[:, ::each].repeat_interleave(entries // cell.groups, dim=1)
