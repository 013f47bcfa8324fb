"""The relaxation of many branch-and-bound nodes at once: vector-neuron ascent and dense forms, batched.

The nodes of a batch differ in their slopes only: c and d carry a leading axis of nodes, the maps are shared.
Untrusted: everything here is plain floating point, and the branch-tree certificate proves again what is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.certificates.blocks import dense
from lipcert.certificates.dense_form import BLIND, DenseForm
from lipcert.certificates.segments import Segment
from lipcert.network.graph import ActivationNode, AffineNode
from lipcert.network.linear import size
from lipcert.network.loop_transform import Cell, LoopTransformed

#: A pattern's entry for a free neuron; 0 and 1 stand for the slopes α and β.
FREE = -1

_TINY = 1e-300


class Neurons:
    """All entries of all cells in one row, with their slopes."""

    def __init__(self, transformed: LoopTransformed) -> None:
        self.cells = transformed.cells
        self.places = []
        ends: list[tuple[Tensor, Tensor]] = []
        start = 0
        for cell in self.cells:
            node = transformed.network.nodes[cell.node]
            self.places.append(slice(start, start + cell.size))
            start += cell.size
            both = node.function.slopes(node.shape) if isinstance(node, ActivationNode) else (cell.c, cell.c)
            ends.append((both[0].reshape(-1), both[1].reshape(-1)))
        self.count = start
        nothing = [torch.zeros(0, dtype=torch.float64)]
        self.low = torch.cat([low for low, _ in ends] or nothing)
        self.high = torch.cat([high for _, high in ends] or nothing)
        self.c = torch.cat([cell.c.reshape(-1) for cell in self.cells] or nothing)
        self.d = torch.cat([cell.d.reshape(-1) for cell in self.cells] or nothing)

    def slopes(self, patterns: Tensor) -> tuple[Tensor, Tensor]:
        """(c, d), each (B, count), for patterns (B, count) of −1, 0 and 1."""
        free = patterns == FREE
        fixed = torch.where(patterns == 1, self.high, self.low)
        return torch.where(free, self.c, fixed), torch.where(free, self.d, torch.zeros_like(self.d))

    def split(self, rows: Tensor) -> dict[int, Tensor]:
        """Rows (..., count) as node → (..., size of the cell)."""
        return {cell.node: rows[..., place] for cell, place in zip(self.cells, self.places, strict=True)}


@dataclass(eq=False)
class Vectors:
    """Points of the relaxation: X (B, r, n) and the unit vectors of all neurons (B, r, count)."""

    x: Tensor
    units: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> Vectors:
        """The points of some nodes."""
        return Vectors(self.x[rows], self.units[rows])


@dataclass(eq=False)
class Ascent:
    """What passes over a batch found: the best points and what belongs to them.

    Attributes:
        rho: (B,) squared value reached.
        multipliers: (B, count) λ_j = d_j‖h_j‖/‖v_j‖ (a block's in each of its entries).
        strength: (B, count) d_j‖h_j‖‖v_j‖.
        cosine: (B, count) between h_j and v_j.
        y: (B, r, m) outputs.
    """

    vectors: Vectors
    rho: Tensor
    multipliers: Tensor
    strength: Tensor
    cosine: Tensor
    y: Tensor

    @classmethod
    def join(cls, parts: list[Ascent]) -> Ascent:
        """One after the other."""

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        vectors = Vectors(torch.cat([p.vectors.x for p in parts]), torch.cat([p.vectors.units for p in parts]))
        return cls(vectors, *(joined(n) for n in ("rho", "multipliers", "strength", "cosine", "y")))


@dataclass(eq=False)
class Climber:
    """The vector-neuron iteration (DESIGN §3) on a batch of nodes: u ← h/‖h‖, X ← G/‖G‖, extrapolated."""

    transformed: LoopTransformed
    neurons: Neurons = field(init=False)

    def __post_init__(self) -> None:
        self.neurons = Neurons(self.transformed)

    def random(self, count: int, columns: int, generator: torch.Generator) -> Vectors:
        """Random points for ``count`` nodes."""
        n = size(self.transformed.network.in_shape)
        x = torch.randn(count, columns, n, generator=generator, dtype=torch.float64)
        units = torch.randn(count, columns, self.neurons.count, generator=generator, dtype=torch.float64)
        return Vectors(x / x.norm(dim=(1, 2), keepdim=True), self._normalised(units, units))

    def _normalised(self, rows: Tensor, otherwise: Tensor) -> Tensor:
        """Unit vectors per neuron (per block); ``otherwise`` where a vector is nearly zero."""
        parts = []
        for cell, place in zip(self.neurons.cells, self.neurons.places, strict=True):
            part = rows[..., place]
            length = _length(part, cell)
            safe = length > 1e-150
            parts.append(torch.where(safe, part / torch.where(safe, length, 1.0), otherwise[..., place]))
        return torch.cat(parts, dim=2) if parts else rows

    def run(self, patterns: Tensor, start: Vectors, passes: int) -> Ascent:
        """``passes`` forward and backward passes from ``start``; the best point of each node."""
        c, d = self.neurons.slopes(patterns)
        x, units = start.x, start.units
        last_x, last_units = x, units
        previous = torch.full((len(x),), -1.0, dtype=torch.float64)
        momentum = torch.zeros(len(x), dtype=torch.float64)
        best: Ascent | None = None
        for _ in range(passes):
            g, h, now = self._evaluate(c, d, x, units)
            fell = (now.rho < previous * (1.0 - 1e-15)) & (momentum > 1)
            previous = torch.where(fell, -1.0, now.rho)
            best = now if best is None else _better(best, now)
            momentum = torch.where(fell, 0.0, momentum + 1)
            weight = ((momentum - 1) / (momentum + 2)).clamp(min=0.0)[:, None, None]
            back = fell[:, None, None]
            length = g.norm(dim=(1, 2), keepdim=True)
            new_x = torch.where(length > 1e-150, g / length.clamp(min=1e-150), x)
            new_units = self._normalised(h, units)
            ahead_x = new_x + weight * (new_x - last_x)
            ahead_x = ahead_x / ahead_x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-150)
            ahead = self._normalised(new_units + weight * (new_units - last_units), new_units)
            x, last_x = torch.where(back, last_x, ahead_x), torch.where(back, last_x, new_x)
            units, last_units = torch.where(back, last_units, ahead), torch.where(back, last_units, new_units)
        assert best is not None
        return best

    def _evaluate(self, c: Tensor, d: Tensor, x: Tensor, units: Tensor) -> tuple[Tensor, Tensor, Ascent]:
        """Gradients with respect to X and to the units (B, r, count), and the point with its multipliers."""
        count, columns, _ = x.shape
        per_cell = {name: self.neurons.split(rows) for name, rows in (("c", c), ("d", d), ("u", units))}
        shape = self.transformed.network.in_shape
        leaf = x.detach().requires_grad_(True)
        outputs: list[Tensor] = []
        inputs: list[Tensor] = []
        lengths: list[Tensor] = []

        def output(cell: Cell, flat: Tensor) -> Tensor:
            v = flat.reshape(count, columns, -1)
            own_d = per_cell["d"][cell.node][:, None]
            length = (v.square().sum(dim=(1, 2) if cell.block else 1, keepdim=True) + _TINY).sqrt()
            z = own_d * length * per_cell["u"][cell.node]
            if v.shape == z.shape:
                z = z + per_cell["c"][cell.node][:, None] * v
            outputs.append(z)
            inputs.append(v.detach())
            lengths.append(length.detach().expand(count, 1, cell.size))
            return z.reshape(-1, *cell.out_shape)

        with torch.enable_grad():
            y = self.transformed.spread(leaf.reshape(-1, *shape), output)[-1].reshape(count, columns, -1)
            value = y.square().sum(dim=(1, 2))
            found: tuple[Tensor | None, ...] = (None,) * (1 + len(outputs))
            if value.requires_grad:
                found = torch.autograd.grad(0.5 * value.sum(), [leaf, *outputs], allow_unused=True)
        g = torch.zeros_like(x) if found[0] is None else found[0]
        if not outputs:
            nothing = torch.zeros(count, 0, dtype=torch.float64)
            point = Ascent(Vectors(x, units), value.detach(), nothing, nothing, nothing, y.detach())
            return g, units, point
        raw = [torch.zeros_like(z) if h is None else h for z, h in zip(outputs, found[1:], strict=True)]
        h = torch.cat(raw, dim=2)
        length = torch.cat(lengths, dim=2)[:, 0]
        pull = d[:, None] * h
        norms = []
        for cell, place in zip(self.neurons.cells, self.neurons.places, strict=True):
            part = pull[..., place]
            norms.append(_length(part, cell).expand(count, 1, cell.size))
        force = torch.cat(norms, dim=2)[:, 0]
        products = [
            (p * v).sum(dim=1) if p.shape == v.shape else torch.zeros(count, p.shape[2], dtype=torch.float64)
            for p, v in zip(pull.split([z.shape[2] for z in outputs], dim=2), inputs, strict=True)
        ]
        strength = force * length
        cosine = torch.cat(products, dim=1) / strength.clamp(min=_TINY)
        # v = 0: nothing is known of λ_j, and the repair gives it what it needs
        multipliers = torch.where(length > 1e-140, force / length.clamp(min=1e-150), 0.0)
        point = Ascent(Vectors(x, units), value.detach(), multipliers, strength, cosine, y.detach())
        return g, h, point


def _length(rows: Tensor, cell: Cell) -> Tensor:
    """‖·‖ of the vectors (B, r, size) of a cell, per entry or per block."""
    return rows.square().sum(dim=(1, 2) if cell.block else 1, keepdim=True).sqrt()


def _better(old: Ascent, new: Ascent) -> Ascent:
    better = new.rho >= old.rho
    if bool(better.all()):
        return new

    def chosen(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(better.reshape(-1, *([1] * (a.dim() - 1))), b, a)

    vectors = Vectors(chosen(old.vectors.x, new.vectors.x), chosen(old.vectors.units, new.vectors.units))
    names = ("rho", "multipliers", "strength", "cosine", "y")
    return Ascent(vectors, *(chosen(getattr(old, name), getattr(new, name)) for name in names))


@dataclass(eq=False)
class BatchForm:
    """``DenseForm`` for a batch of nodes, in plain floating point: the least ρ for given multipliers."""

    form: DenseForm
    neurons: Neurons
    _maps: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _wide: Tensor | None = None

    def __post_init__(self) -> None:
        network, transformed = self.form.transformed.network, self.form.transformed
        for k, maps in transformed.exact_maps.items():
            for parent, linear in zip(network.nodes[k].parents, maps, strict=True):
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
            margin: as in ``DenseForm.repaired``.
        """
        c, d = (self.neurons.split(rows) for rows in self.neurons.slopes(patterns))
        lam = {node: rows.clone() for node, rows in self.neurons.split(multipliers).items()}
        m = size(self.form.transformed.network.out_shape)
        matrix = torch.eye(m, dtype=torch.float64).expand(len(patterns), m, m)
        failed = torch.zeros(len(patterns), dtype=torch.bool)
        rho: Tensor | None = None
        for number in range(len(self.form.segments) - 1, -1, -1):
            segment, relation = self.form.segments[number], self.form.relations[number]
            if segment.cells:
                matrix, bad = self._schur(segment, matrix, c, d, lam, margin)
                failed |= bad
            elif segment.start == 0 and self._wide is not None:
                rho = _wide_rho(self._wide, matrix)
            else:
                constant = dense(relation.output.parts[0])
                matrix = constant.T @ matrix @ constant
            if segment.start:
                diagonal = matrix.diagonal(dim1=1, dim2=2)
                matrix = matrix + torch.diag_embed(slack[:, None] * diagonal.clamp(min=0.0))
        if rho is None:
            rho = _largest(matrix)
        repaired = torch.cat([lam[cell.node] for cell in self.neurons.cells], dim=1) if lam else multipliers
        return torch.where(failed | rho.isnan(), torch.inf, rho.clamp(min=0.0)), repaired

    def _schur(
        self,
        segment: Segment,
        form: Tensor,
        c: Mapping[int, Tensor],
        d: Mapping[int, Tensor],
        lam: dict[int, Tensor],
        margin: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        preactivations, output, entry = self._relation(segment, c, d)
        if margin is not None:
            self._repair(segment, preactivations, output, form, c, d, lam, margin)
        matrix = -(output.mT @ (form @ output))
        on_w = []
        for cell, v in zip(segment.cells, preactivations, strict=True):
            idle = (d[cell.node] == 0) & torch.tensor(not cell.block)
            own = torch.where(idle, 0.0, lam[cell.node])
            on_w.append(torch.where(idle, 1.0, lam[cell.node]))
            on_v = own[:, :1].expand(-1, v.shape[1]) if cell.block else own
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
        return half.mT @ half - (a + a.mT) / 2, bad

    def _relation(
        self, segment: Segment, c: Mapping[int, Tensor], d: Mapping[int, Tensor]
    ) -> tuple[list[Tensor], Tensor, int]:
        """Pre-activations and output of a segment as matrices (B, rows, columns so far)."""
        transformed = self.form.transformed
        nodes = transformed.network.nodes
        entry = size(nodes[segment.start].shape)
        known = {segment.start: torch.eye(entry, dtype=torch.float64)[None]}
        width = entry
        preactivations = []
        for k in range(segment.start + 1, segment.stop + 1):
            node = nodes[k]
            if isinstance(node, AffineNode):
                total = torch.zeros(1, size(node.shape), width, dtype=torch.float64)
                for parent in node.parents:
                    total = _plus(total, self._maps[k, parent] @ known[parent])
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
        return preactivations, _widened(known[segment.stop], width), entry

    def _repair(
        self,
        segment: Segment,
        preactivations: list[Tensor],
        output: Tensor,
        form: Tensor,
        c: Mapping[int, Tensor],
        d: Mapping[int, Tensor],
        lam: dict[int, Tensor],
        margin: Tensor,
    ) -> None:
        """``DenseForm.repaired`` for a batch: raise λ where the curvature on a single w_j demands it."""
        ends = [0]
        for cell in segment.cells:
            ends.append(ends[-1] + cell.size)
        entry = output.shape[2] - ends[-1]
        margin = margin[:, None]
        for number in range(len(segment.cells) - 1, -1, -1):
            cell = segment.cells[number]
            place = slice(entry + ends[number], entry + ends[number + 1])
            part = output[:, :, place]
            curvature = (part * (form @ part)).sum(dim=1)
            for later in range(number + 1, len(segment.cells)):
                other = segment.cells[later]
                v = preactivations[later][:, :, place]
                if v.shape[2] == 0:  # a parallel branch: it does not depend on this cell
                    continue
                weight = torch.where((d[other.node] == 0) & torch.tensor(not other.block), 0.0, lam[other.node])
                weight = weight[:, :1].expand(-1, v.shape[1]) if other.block else weight
                curvature = curvature + (weight[:, :, None] * v.square()).sum(dim=1)
            current = lam[cell.node]
            if cell.block:
                least = curvature.max(dim=1, keepdim=True).values
                low = current <= least * (1.0 + 0.5 * margin)
                lam[cell.node] = torch.where(low, torch.maximum(current, 2.0 * least), current)
                continue
            ratio = c[cell.node].abs() / d[cell.node].clamp(min=_TINY)
            best = curvature * torch.maximum(1.0 + ratio, 1.0 + 2.0 * margin).clamp(max=4.0)
            floor = 1e-30 * curvature.max(dim=1, keepdim=True).values if current.shape[1] else 0.0
            low = current <= curvature * (1.0 + 0.5 * margin) + floor
            raised = torch.maximum(torch.maximum(best, current), torch.as_tensor(floor)).clamp(min=1e-250)
            free = BLIND * curvature.max(dim=1, keepdim=True).values.clamp(min=1e-250)
            blind = self.form.transformed.blind[cell.node]
            lam[cell.node] = torch.where(blind, free, torch.where(low, raised, current))


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
