"""LipSDP by a dense primal–dual interior point: the second, independent solver, and the oracle of the first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights
from lipcert.errors import InputError, MethodError, NotProved, NumericsError
from lipcert.increments import Cell, ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.base import Found, Method, Run, method
from lipcert.network.linear import size
from lipcert.problem import Norm, Problem
from lipcert.search.float_form import repaired
from lipcert.search.interior_point import Program, Solution, solve
from lipcert.search.passes import Passes, steps_to_output

#: Geometric lifts tried on the solution, smallest first; and on tiny multipliers when the output is constant.
LIFTS: Sequence[float] = (1e-9, 1e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2, 0.1)
STEEP_LIFTS = (1e4, 1e8, 1e16, 1e40)
#: Passes of the vector-neuron iteration that find the scale of every multiplier.
SCALING_PASSES = 60
#: Multipliers, relative to their guess, of a neuron whose pre-activation never changes, and of one that is never read.
BLIND, UNUSED = 1e6, 1e-30


@method
@dataclass(frozen=True, kw_only=True)
class LipSDPInteriorPoint(Method):
    """LipSDP-Neuron to seven digits on any graph that fits into dense matrices, with its primal–dual gap.

    Source: Fazlyab et al. 2019 for the program (global constants of every neuron); Helmberg et al. 1996 for the method.
    The witness' settings hold ``dual_value`` (below the relaxation's optimum), ``gap`` and ``iterations``.

    Attributes:
        tolerance: relative primal–dual gap to stop at.
        max_iterations: most predictor–corrector steps.
        max_size: most inputs plus neurons; the cost grows with its cube.
        layerwise: one multiplier per layer instead of one per neuron.
    """

    name: ClassVar[str] = "lipsdp_ipm"
    norms: ClassVar[tuple[Norm, ...]] = ((2.0, 2.0),)
    summary: ClassVar[str] = "LipSDP by a dense interior point: seven digits, small networks only"

    tolerance: float = 1e-7
    max_iterations: int = 60
    max_size: int = 3_000
    layerwise: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1 or self.max_iterations < 1 or self.max_size < 1:
            raise InputError("LipSDPInteriorPoint needs 0 < tolerance < 1, max_iterations ≥ 1 and max_size ≥ 1.")

    def solve(self, problem: Problem, run: Run) -> Found:
        """Solve the program, then lift its multipliers as little as the check allows."""
        self.require_norm(problem.norm)
        increments = problem.expanded_increments.layerwise() if self.layerwise else problem.expanded_increments
        transformed = ScaledIncrements(increments, natural_exponents(increments))
        self._require_size(transformed)
        relation = Relation.of(transformed)
        rho, scale = _guess(relation, run.generator)
        program, alive, blind = relation.program(scale, rho or 1.0)
        multipliers = UNUSED * scale
        solution: Solution | None = None
        if rho > 0:
            solution = solve(
                program, self.tolerance, self.max_iterations,
                lambda iteration, gap: run.report(min(0.99, iteration / 30.0), f"gap {gap:.1e}"),
            )  # fmt: skip
            multipliers[alive] = scale[alive] * solution.multipliers
        if solution is None:  # the output is constant: whatever grows steeply towards the input proves it
            multipliers = torch.where(blind, torch.ones_like(scale), torch.full_like(scale, 1e-200))
        else:
            multipliers[blind] = BLIND * scale[blind]
        pieces = dict(zip((c.node for c in transformed.cells), multipliers.split(list(relation.counts)), strict=True))
        witness = self._witness(transformed, pieces, LIFTS if solution is not None else STEEP_LIFTS)
        settings = dict(witness.settings)
        if solution is not None:
            log10 = 0.5 * math.log10(max(solution.primal * rho, 1e-300))
            log10 += transformed.exponents[-1] * math.log10(2.0)
            settings |= {
                "dual_value": 10.0**log10 if abs(log10) < 300 else 0.0, "gap": solution.gap,
                "infeasibility": solution.infeasibility, "iterations": solution.iterations,
            }  # fmt: skip
        return Found(Witness(witness.kind, witness.arrays, settings))

    def _require_size(self, transformed: ScaledIncrements) -> None:
        neurons = sum(cell.size for cell in transformed.cells)
        inputs = size(transformed.increments.in_shape)
        reduced = min(inputs, neurons + size(transformed.increments.out_shape))
        if reduced + neurons > self.max_size or inputs > 2 * self.max_size:
            raise MethodError(
                f"method 'lipsdp_ipm' works on dense matrices: {inputs} inputs and {neurons} neurons are more than "
                f"max_size={self.max_size}. Methods without such a limit: lipsdp, lipsdp_layer, liplt, autolip; "
                "or raise max_size (the cost grows with its cube)."
            )

    def _witness(
        self, transformed: ScaledIncrements, multipliers: Mapping[int, Tensor], lifts: Sequence[float]
    ) -> Witness:
        """The least lift that passes."""
        form = DenseForm(transformed)
        network = transformed.increments
        weights = Weights(*(torch.ones(size(s), dtype=torch.float64) for s in (network.in_shape, network.out_shape)))
        steps = steps_to_output(transformed)
        best: tuple[float, dict[int, Tensor]] | None = None
        for p in lifts:
            lifted = {k: m * (1.0 + p) ** min(steps[k], 350.0 / math.log10(10.0 + p)) for k, m in multipliers.items()}
            try:
                chosen, _ = repaired(form, lifted, min(p, 0.1), weights)
                rho = form.least_rho(chosen, 0.0, weights)
            except NotProved:
                continue
            if best is None or rho < best[0]:
                best = (rho, chosen)
        if best is None:
            raise NotProved("the interior point's multipliers cannot be made feasible; try method 'lipsdp'.")
        rho, chosen = best
        arrays = {f"multipliers.{k}": m.double().reshape(1, -1) for k, m in chosen.items()}
        arrays["exponents"] = torch.tensor(transformed.exponents, dtype=torch.int64)
        settings = {"rho": rho * (1.0 + 1e-12), "slack": 0.0, "route": "dense", "layerwise": self.layerwise}
        return Witness("quadratic", arrays, settings)


def _guess(relation: Relation, generator: torch.Generator) -> tuple[float, Tensor]:
    """ρ and multipliers of the right order of magnitude, by plain vector-neuron passes on the dense relation.

    On the reduced relation and without extrapolation: 60 passes of ``VectorNeuron`` gave scales at which an
    ill-conditioned network took 51 iterations instead of 6. Outliers are moved towards their layer's median: scales
    need no more than an order of magnitude.
    """
    cells = relation.transformed.cells
    n, columns = relation.inputs, 8

    def random(rows: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    values = torch.zeros(relation.v.shape[1], columns, dtype=torch.float64)
    x = random(n)
    units = [_unit(random(cell.size), cell) for cell in cells]
    lengths: list[Tensor] = [torch.ones(())] * len(cells)
    pieces = relation.pieces
    rho, result = 0.0, [torch.zeros(c.groups, dtype=torch.float64) for c in cells]
    for _ in range(SCALING_PASSES):
        values[:n] = x / x.norm().clamp(min=1e-300)
        images = []
        for i, (cell, (z, v)) in enumerate(zip(cells, pieces, strict=True)):
            image = relation.v[v, : z.start] @ values[: z.start]
            images.append(image)
            lengths[i] = _lengths(image, cell)
            values[z] = cell.d.reshape(-1, 1) * _each(lengths[i], cell.size) * units[i]
            if len(image) == cell.size:
                values[z] += cell.c.reshape(-1, 1) * image
        y = relation.y @ values
        gradient = relation.y.T @ y
        rho = float(y.square().sum())
        for i in range(len(cells) - 1, -1, -1):
            cell, (z, v) = cells[i], pieces[i]
            h = cell.d.reshape(-1, 1) * gradient[z]
            size_h = _lengths(h, cell)
            safe = lengths[i].clamp(min=1e-150)
            seen = lengths[i] > 1e-8 * (lengths[i].max() if lengths[i].numel() else 0.0)
            result[i] = torch.where(seen, size_h / safe, torch.zeros_like(safe)).reshape(-1)
            along = h * units[i]
            along = (along.reshape(cell.groups, -1) if cell.block else along).sum(dim=1, keepdim=True)
            inner = images[i] * _each(along / safe, len(images[i]))
            if len(inner) == cell.size:
                inner = inner + cell.c.reshape(-1, 1) * gradient[z]
            gradient = gradient + relation.v[v].T @ inner
            units[i] = torch.where(_each(size_h, cell.size) > 0, _unit(h, cell), units[i])
        x = gradient[:n] if float(gradient[:n].norm()) > 0 else x
    if not math.isfinite(rho):
        raise NumericsError("the scaling passes overflowed; rescale the network's weights.")
    typical = [float(m[m > 0].median()) if bool((m > 0).any()) else 0.0 for m in result]
    least = min((t for t in typical if t > 0), default=1.0)
    centres = [t or least for t in typical]
    moved = [m.clamp(min=1e-3 * t, max=1e3 * t) for m, t in zip(result, centres, strict=True)]
    return rho, torch.cat([torch.zeros(0, dtype=torch.float64), *moved])


def _lengths(h: Tensor, cell: Cell) -> Tensor:
    """(groups, 1): over columns, and of a block over the entries of each group."""
    return (h.reshape(cell.groups, -1) if cell.block else h).norm(dim=1, keepdim=True)


def _each(values: Tensor, entries: int) -> Tensor:
    """(groups, 1) as (entries, 1)."""
    return values.repeat_interleave(entries // max(1, len(values)), dim=0)


def _unit(h: Tensor, cell: Cell) -> Tensor:
    return h / _each(_lengths(h, cell), len(h)).clamp(min=1e-300)


@dataclass(frozen=True, eq=False)
class Relation:
    """The dense relation (x, z) ↦ (v of every cell, y) of a network, in its units, inputs reduced to their rank.

    Attributes:
        v, y: rows of all cells' v, and of y; columns of x, then of all cells' z. A neuron with d = 0 is z = c·v.
        inputs: number of columns of x.
        counts: number of multipliers of each cell.
    """

    transformed: ScaledIncrements
    v: Tensor
    y: Tensor
    inputs: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, transformed: ScaledIncrements) -> Relation:
        """Run the network's affine maps on unit vectors."""
        network, cells = transformed.increments, transformed.cells
        inputs = size(network.in_shape)
        places = dict(zip((c.node for c in cells), _starts(inputs, [c.size for c in cells]), strict=True))
        units = torch.eye(inputs + sum(c.size for c in cells), dtype=torch.float64)
        rows = [torch.zeros(0, len(units), dtype=torch.float64)]

        def output(cell: Cell, v: Tensor) -> Tensor:
            rows.append(v.reshape(len(units), -1).T)
            z = units[:, places[cell.node] : places[cell.node] + cell.size].reshape(len(units), *cell.shape)
            return torch.where(cell.d == 0, cell.c * v, z) if v.shape == z.shape else z * (cell.d != 0)

        with torch.no_grad():
            values = Passes(transformed).forward(units[:, :inputs].reshape(len(units), *network.in_shape), output)
        y = values[-1].reshape(len(units), -1).T
        v = torch.cat(rows)
        on_x = _reduced(torch.cat([v[:, :inputs], y[:, :inputs]]))
        v = torch.cat([on_x[: len(v)], v[:, inputs:]], dim=1)
        y = torch.cat([on_x[len(v) :], y[:, inputs:]], dim=1)
        return cls(transformed, v, y, on_x.shape[1], tuple(c.groups for c in cells))

    @property
    def pieces(self) -> list[tuple[slice, slice]]:
        """The columns of each cell's z and the rows of its v."""
        result, z, v = [], self.inputs, 0
        for cell in self.transformed.cells:
            v_size = self.transformed.increments.relations[cell.parent].size
            result.append((slice(z, z + cell.size), slice(v, v + v_size)))
            z, v = z + cell.size, v + v_size
        return result

    def program(self, scale: Tensor, rho: float) -> tuple[Program, Tensor, Tensor]:
        """The program in variables scaled so that its optimum is near 1, without neurons that cannot matter.

        Args:
            scale: a guess of every multiplier, positive.
            rho: a guess of ρ.

        Returns:
            The program; which multipliers it keeps; those left out because their v is always zero.
        """
        z_group, v_group, slope = self._groups()
        n = self.inputs
        p, q, group, owner = self._terms(z_group, v_group)
        alive, blind = self._alive(z_group, v_group, len(scale))
        kept = torch.cat([torch.ones(n, dtype=torch.bool), alive[z_group] & (slope > 0)])
        root = scale.sqrt()
        stretch = torch.cat([torch.full((n,), rho**-0.5, dtype=torch.float64), slope / root[z_group]])
        rows = alive[group] & owner
        number = torch.cumsum(alive.long(), 0) - 1
        p, q = ((root[group][:, None] * m * stretch)[rows][:, kept] for m in (p, q))
        program = Program(n, p, q, number[group[rows]], (self.y * stretch)[:, kept], int(alive.sum()))
        return program, alive, blind

    def _groups(self) -> tuple[Tensor, Tensor, Tensor]:
        """The multiplier of each z, of each v, and d of each z."""
        z_group, v_group = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
        slope = [torch.zeros(0, dtype=torch.float64)]
        for cell, start in zip(self.transformed.cells, _starts(0, self.counts), strict=True):
            v_size = self.transformed.increments.relations[cell.parent].size
            number = start + torch.arange(cell.groups)
            z_group.append(number.repeat_interleave(cell.size // max(1, cell.groups)))
            v_group.append(number.repeat_interleave(v_size // max(1, cell.groups)))
            slope.append(cell.d.reshape(-1))
        return torch.cat(z_group), torch.cat(v_group), torch.cat(slope)

    def _terms(self, z_group: Tensor, v_group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w² − v² with w = (z − c v)/d as p·q: rows p, q, their multipliers, and which rows count at all."""
        p, q, group, counts = [], [], [], []
        z_place, v_place = 0, 0
        eye = torch.eye(len(z_group), dtype=torch.float64)
        for cell in self.transformed.cells:
            v = self.v[v_place : v_place + self.transformed.increments.relations[cell.parent].size]
            e = torch.zeros(cell.size, self.v.shape[1], dtype=torch.float64)
            e[:, self.inputs :] = eye[z_place : z_place + cell.size]
            groups = z_group[z_place : z_place + cell.size]
            c, d = cell.c.reshape(-1, 1), cell.d.reshape(-1, 1)
            idle = d == 0
            inverse = 1.0 / torch.where(idle, torch.ones_like(d), d)
            if len(v) == cell.size and not (cell.block and bool(idle.any())):
                p.append((e - (c - d) * v) * inverse)
                q.append((e - (c + d) * v) * inverse)
                group.append(groups)
                counts.append(~idle[:, 0])
            else:
                p += [e * inverse, v] if len(v) != cell.size else [(e - c * v) * inverse, v]
                q += [p[-2], -v]
                group += [groups, v_group[v_place : v_place + len(v)]]
                counts += [~idle[:, 0], torch.ones(len(v), dtype=torch.bool)]
            z_place, v_place = z_place + cell.size, v_place + len(v)
        columns = self.v.shape[1]
        empty = torch.zeros(0, columns, dtype=torch.float64)
        none = torch.zeros(0, dtype=torch.int64)
        rows = torch.cat([empty, *p]), torch.cat([empty, *q])
        return *rows, torch.cat([none, *group]), torch.cat([none.bool(), *counts])

    def _alive(self, z_group: Tensor, v_group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """Multipliers whose z reaches the output and whose v depends on the input; those where only z does."""
        n = self.inputs
        driven = torch.zeros(groups, dtype=torch.bool)
        matters = torch.zeros(groups, dtype=torch.bool)
        while True:
            before = int(driven.sum()) + int(matters.sum())
            sources = torch.cat([torch.ones(n, dtype=torch.bool), driven[z_group]])
            driven[v_group[(self.v[:, sources] != 0).any(dim=1)]] = True
            matters[z_group[(self.y[:, n:] != 0).any(dim=0) | (self.v[matters[v_group]][:, n:] != 0).any(dim=0)]] = True
            if int(driven.sum()) + int(matters.sum()) == before:
                return driven & matters, matters & ~driven


def _starts(first: int, counts: Sequence[int]) -> list[int]:
    return list(itertools.accumulate(counts, initial=first))[: len(counts)]


def _reduced(on_x: Tensor) -> Tensor:
    """A matrix of full column rank with the same product AAᵀ."""
    if on_x.shape[1] > on_x.shape[0]:
        on_x = torch.linalg.qr(on_x.T, mode="r").R.T
    left, singular, _ = torch.linalg.svd(on_x, full_matrices=False)
    rank = max(1, int((singular > 1e-13 * singular.max()).sum())) if len(singular) else 0
    return left[:, :rank] * singular[:rank]
