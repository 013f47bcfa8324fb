"""The certificate of LipSDP-type methods: multipliers that make a quadratic form non-negative."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.certificates.base import Witness, certificate
from lipcert.certificates.blocks import Block, Tracked, congruence, dense, plus, times, transposed
from lipcert.certificates.segments import TINY, Segment, SegmentMatrices, Written, cheapest_segments, matrices
from lipcert.certificates.tame import require_tame
from lipcert.errors import CertificateError, UnsupportedNormError
from lipcert.network.linear import size
from lipcert.network.loop_transform import Cell, LoopTransformed, natural_exponents
from lipcert.numerics.lanczos import kuczynski_wozniakowski_epsilon, lambda_max_ritz
from lipcert.numerics.magnitude import Magnitude
from lipcert.numerics.psd import is_positive_definite_scaled
from lipcert.numerics.rounding import add_up, div_up, gamma, mul_up, sqrt_up
from lipcert.numerics.spectral import estimate_lambda_max, sigma_max_upper
from lipcert.problem import Norm, Problem
from lipcert.result import Bound, BreakdownRow, Guarantee

DELTA = 1e-9

#: Least ρ worth proving; a network whose ρ is below counts as having this one.
FLOOR = 1e-250

#: Pairs of norms (p, q) this kind of certificate covers.
NORMS: tuple[Norm, ...] = tuple((p, q) for p in (2.0, math.inf) for q in (2.0, 1.0, math.inf))

#: Most Lanczos steps of a matrix-free check; each of its at most four attempts spends a quarter of DELTA.
MOST_STEPS = 800

#: Largest change of unit, in powers of two, between neighbouring nodes: beyond it scaling might underflow unseen.
MAX_STEP = 600
#: Largest distance, in powers of two, of the units of a matrix-free certificate from the network's natural ones.
UNITS_APART = 64


@certificate("quadratic")
def check(problem: Problem, witness: Witness, generator: torch.Generator, delta: float = DELTA) -> Bound:
    """L_{p,q} ≤ √ρ, p in {2, ∞}, from multipliers λ ≥ 0.

    LipSDP-Neuron (Fazlyab et al. 2019) on any DAG, in loop-transformed form.

    ``witness.arrays``: ``exponents`` (one integer per node of the expanded network) and ``multipliers.K`` for the
    nonlinear node K, a row per form with one λ per neuron (one for a block); ``input_weights`` for p = ∞ and
    ``output_weights`` for q = 1. ``witness.settings``: ``slack``, the relative lift of the intermediate forms,
    ``rho``, a claim for ρ in the output's units (each a number per form), ``route``, ``dense`` or ``matrix_free``, and
    ``layerwise``, one λ per layer.

    Why this is an upper bound: every increment satisfies δz = c δv + d δw with |δw_j| ≤ |δv_j|, so
    Σ λ_j (w_j² − v_j²) ≤ 0. If ρ‖x‖² + Σ λ w² − ‖y‖² − Σ λ v² ≥ 0 for all (x, w), then ‖y‖² ≤ ρ‖x‖²; ``Weights`` says
    how weighted squares bound the other norms. The form is proved
    non-negative segment by segment from the output: if −‖y‖² + Σ_later λ(w² − v²) ≥ −sᵀ M̂ s for a stored float matrix
    M̂, the next statement is again about stored matrices, each one verified Cholesky factorisation with entrywise
    error radii. ``matrix_free`` instead bounds ‖D_out^{1/2} H D_in^{-1/2}‖ ≤ 1 by Lanczos with a random start
    (Kuczyński & Woźniakowski 1992), H being the linear map (x, w) ↦ (v, y).
    """
    if problem.norm not in NORMS:
        raise UnsupportedNormError(f"no quadratic certificate for l{problem.norm[0]:g} → l{problem.norm[1]:g}.")
    transformed, multipliers, weights = _read(problem, witness)
    exact = all(math.isfinite(m.rounding) for maps in transformed.exact_maps.values() for m in maps)
    route = str(witness.settings.get("route", "dense"))
    claims, slacks = (_numbers(witness, key, len(weights)) for key in ("rho", "slack"))
    guarantee: Guarantee = ("rigorous" if route == "dense" else "probabilistic") if exact else "numerical"
    form = DenseForm(transformed) if route == "dense" else None
    rows = []
    values = [Magnitude.of(0.0)]
    for place, weight in enumerate(weights):
        own = {node: values_of[place] for node, values_of in multipliers.items()}
        if form is not None:
            rho = form.least_rho(own, slacks[place], weight, claims[place])
        else:
            rho = _matrix_free(transformed, own, weight, claims[place], delta / len(weights), generator)
        root = Magnitude.of(sqrt_up(mul_up(rho, weight.factor(problem.norm))))
        value = Magnitude(root.mantissa, root.exponent + transformed.exponents[-1]) if root.mantissa else root
        values.append(value)
        name = "quadratic form" if len(weights) == 1 else f"output {place}"
        remark = f"{sum(c.size for c in transformed.cells)} neurons in {len(transformed.cells)} layers"
        rows.append(BreakdownRow(name, route, float(value), float(value), guarantee, remark))
    final = max(values, key=lambda m: (m.mantissa > 0, m.log10))
    return Bound(float(final), guarantee, "", problem.norm, problem.domain, breakdown=tuple(rows), log10=final.log10)


def _numbers(witness: Witness, key: str, count: int) -> list[float]:
    value = witness.settings.get(key)
    numbers = value if isinstance(value, list) else [value]
    result = [float(n) for n in numbers if isinstance(n, (int, float)) and n >= 0]
    if len(numbers) != count or len(result) != count:
        raise CertificateError(f"the certificate's {key} must be {count} non-negative numbers.")
    return result


def _read(problem: Problem, witness: Witness) -> tuple[LoopTransformed, dict[int, Tensor], list[Weights]]:
    transformed = read_units(problem, witness)
    weights = _read_weights(problem, witness, transformed)
    return transformed, read_multipliers(witness, transformed, len(weights)), weights


def read_units(problem: Problem, witness: Witness) -> LoopTransformed:
    """The loop-transformed network in the witness's units.

    Raises:
        CertificateError: ``exponents`` are not units of this network.
    """
    network = problem.expanded
    exponents = witness.arrays.get("exponents")
    if exponents is None or exponents.shape != (len(network.nodes),):
        raise CertificateError("the certificate's exponents do not fit the network.")
    values = [int(e) for e in exponents]
    transformed = LoopTransformed(network, tuple(values), bool(witness.settings.get("layerwise", False)))
    steps = [values[p] - values[k] for k, node in enumerate(network.nodes) for p in node.parents]
    if (
        values[0] != 0
        or any(abs(step) > MAX_STEP for step in steps)
        or any(values[c.node] != values[c.parent] for c in transformed.cells)
    ):
        raise CertificateError("the certificate's exponents are not units of this network.")
    return transformed


def read_multipliers(witness: Witness, transformed: LoopTransformed, forms: int) -> dict[int, Tensor]:
    """``multipliers.K`` of every nonlinear node K, (forms, neurons), or (forms, 1) for a block.

    Raises:
        CertificateError: missing, negative, not finite or of wrong size.
    """
    multipliers = {}
    for cell in transformed.cells:
        array = witness.arrays.get(f"multipliers.{cell.node}")
        expected = (forms, 1 if cell.block else cell.size)
        if array is None or array.shape != expected or not bool((torch.isfinite(array) & (array >= 0)).all()):
            raise CertificateError(f"the multipliers of node {cell.node} are missing, negative or of wrong size.")
        multipliers[cell.node] = array.double()
    return multipliers


def _read_weights(problem: Problem, witness: Witness, transformed: LoopTransformed) -> list[Weights]:
    """One pair of weights per quadratic form; those a norm fixes are made here, the others are the witness's."""
    p, q = problem.norm
    n, m = size(transformed.network.in_shape), size(transformed.network.out_shape)
    count = m if q == math.inf else 1

    def free(key: str, width: int) -> Tensor:
        array = witness.arrays.get(key)
        if array is None or array.shape != (count, width) or not bool((torch.isfinite(array) & (array > 0)).all()):
            raise CertificateError(f"the certificate's {key} are missing, not positive or of wrong size.")
        return array.double()

    inputs = free("input_weights", n) if p == math.inf else torch.ones(count, n, dtype=torch.float64)
    if q == 1:
        outputs = free("output_weights", m)
    else:
        outputs = torch.eye(m, dtype=torch.float64) if q == math.inf else torch.ones(1, m, dtype=torch.float64)
    return [Weights(inputs[i], outputs[i]) for i in range(count)]


def multiplier_pair(cell: Cell, multiplier: Tensor, v_size: int) -> tuple[Tensor, Tensor]:
    """λ on w and λ on v as vectors; a neuron with d = 0 has no w and needs no multiplier."""
    if cell.block:
        value = float(multiplier[0])
        return torch.full((cell.size,), value, dtype=torch.float64), torch.full((v_size,), value, dtype=torch.float64)
    idle = cell.d.reshape(-1) == 0
    return torch.where(idle, torch.ones_like(multiplier), multiplier), torch.where(
        idle, torch.zeros_like(multiplier), multiplier
    )


# -- dense route -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Weights:
    """ρ Σ input_i x_i² on the input and Σ output_i y_i² on the output.

    For the input norm 2 ``input`` is all ones; for ∞ any weights do, since Σ input_i x_i² ≤ ‖x‖_∞² Σ input_i. For the
    output norm 2 ``output`` is all ones; for 1, ‖y‖_1² ≤ (Σ 1/output_i)(Σ output_i y_i²); for ∞ it is one-hot, one form
    per output.
    """

    input: Tensor
    output: Tensor

    def factor(self, norm: Norm) -> float:
        """What ρ is multiplied by to bound the squared constant, rounded up."""
        result = 1.0
        if norm[0] == math.inf:
            result = mul_up(result, add_up(*self.input.tolist()))
        if norm[1] == 1:
            result = mul_up(result, add_up(*(div_up(1.0, e) for e in self.output.tolist())))
        return result


class DenseForm:
    """The quadratic form of a network cut into factorable segments; the segments' matrices are made once.

    Raises:
        CertificateError: a layer is too wide to factor.
    """

    def __init__(self, transformed: LoopTransformed) -> None:
        segments = cheapest_segments(transformed)
        if segments is None:
            raise CertificateError("a layer is too wide to factor; the certificate needs the matrix-free route.")
        self.transformed = transformed
        self.segments = segments
        self._written: dict[tuple[int, int], Written] = {}
        self.relations = [matrices(transformed, segment, self._written) for segment in segments]

    def fixing(self, fixed: Mapping[int, Tensor]) -> DenseForm:
        """The form of the network with these slopes fixed; what does not depend on them is shared.

        Args:
            fixed: as in ``LoopTransformed``; ``self`` must be of a network without fixed slopes.
        """
        if self.transformed.fixed:
            raise ValueError("this form has fixed slopes already")
        result = copy(self)
        result.transformed = self.transformed.fixing(fixed)
        cell_at = result.transformed.cell_at
        result.segments = [replace(s, cells=tuple(cell_at[c.node] for c in s.cells)) for s in self.segments]
        result.relations = [
            matrices(result.transformed, segment, self._written)
            if any(cell.node in fixed for cell in segment.cells)
            else known
            for segment, known in zip(result.segments, self.relations, strict=True)
        ]
        return result

    def repaired(
        self, multipliers: Mapping[int, Tensor], margin: float, weights: Weights
    ) -> tuple[dict[int, Tensor], float]:
        """Multipliers made feasible where that is a matter of single neurons, and their ρ in plain floating point.

        With Q_jj = d_j² M_jj the curvature that the rest of the network puts on w_j, λ_j > Q_jj is necessary, and
        λ_j = Q_jj (1 + |c_j|/d_j) costs least; multipliers at or below (1 + margin/2) Q_jj are set to that (half,
        as λ_j = Q_jj may be optimal, and lifted by the margin it is fine). A negative multiplier marks a neuron whose
        v is zero: its λ is free and made large. For searches.

        Raises:
            CertificateError: still infeasible.
        """
        chosen = dict(multipliers)
        rho = self.least_rho(chosen, 0.0, weights, prove=False, repair=(chosen, margin))
        return chosen, rho

    def least_rho(
        self,
        multipliers: Mapping[int, Tensor],
        slack: float,
        weights: Weights,
        claim: float = math.inf,
        prove: bool = True,
        repair: tuple[dict[int, Tensor], float] | None = None,
    ) -> float:
        """ρ for given multipliers, every step proved (``prove``) or in plain floating point (for searches).

        Raises:
            CertificateError: no ρ is provable at these multipliers.
        """
        form: Block = weights.output
        start = weights.input
        for segment, relation in zip(reversed(self.segments), reversed(self.relations), strict=True):
            first = segment.start == 0
            if segment.cells:
                if repair is not None:
                    _repair(segment, relation, form, *repair)
                statement = Statement.build(segment, relation, form, multipliers, prove)
                if first:
                    if prove:
                        return statement.least_rho(start, claim)
                    return _greatest_ratio(statement.schur(), start)
                if prove:
                    form = statement.lifted(slack)
                else:
                    form = statement.schur(_least_lift(relation.side))
                    lift = max(slack, _least_lift(relation.side))
                    form = form + torch.diag(lift * form.diagonal().clamp(min=0.0))
            elif first and relation.entry > form.shape[0]:
                value = _wide_input(relation.output, dense(form), start, prove)
                return claim if value <= claim < math.inf else value
            else:
                product = congruence(relation.output.parts, form, relation.places, relation.entry)
                if prove:
                    radius = Radius(relation)
                    radius.include(relation.output, form)
                    product.diagonal().add_(radius.times(torch.ones(relation.side, dtype=torch.float64)))
                form = product
        return _largest_ratio(dense(form), start, claim) if prove else _greatest_ratio(dense(form), start)


def _least_lift(side: int) -> float:
    """Relative lift of a form's diagonal that covers the rounding of a proof of this size.

    Not in proportion to the margin p: a form may have an eigenvalue of order 1/p, and a lift of order p of its
    diagonal would then cost a constant.
    """
    return 2e-13 * side


def _repair(
    segment: Segment, relation: SegmentMatrices, form: Block, multipliers: dict[int, Tensor], margin: float
) -> None:
    """Raise the multipliers of a segment's cells where a single neuron's curvature demands it, last cell first."""
    for number in range(len(segment.cells) - 1, -1, -1):
        cell = segment.cells[number]
        curvature = _curvature(relation.output.parts.get(number + 1), form, cell.size)
        for later in range(number + 1, len(segment.cells)):
            v = relation.preactivations[later]
            _, on_v = multiplier_pair(segment.cells[later], multipliers[segment.cells[later].node], v.rows)
            curvature = curvature + _curvature(v.parts.get(number + 1), on_v, cell.size)
        current = multipliers[cell.node]
        dead = current < 0
        current = current.clamp(min=0.0)
        if cell.block:
            least = float(curvature.max()) if curvature.numel() else 0.0
            if bool(dead):
                multipliers[cell.node] = torch.full_like(current, max(1e4 * least, 1e-250))
            elif float(current) <= least * (1.0 + 0.5 * margin):
                multipliers[cell.node] = current.clamp(min=max(2.0 * least, 1e-250))
            else:
                multipliers[cell.node] = current
            continue
        c, d = cell.c.reshape(-1).abs(), cell.d.reshape(-1)
        best = curvature * (1.0 + c / d.clamp(min=1e-300)).clamp(min=1.0 + 2.0 * margin, max=4.0)
        floor = 1e-30 * float(current.max()) if current.numel() else 0.0
        low = current <= curvature * (1.0 + 0.5 * margin) + floor
        chosen = torch.where(low, torch.maximum(best, current).clamp(min=max(floor, 1e-250)), current)
        multipliers[cell.node] = torch.where(dead, 1e4 * curvature.clamp(min=max(floor, 1e-250)), chosen)


def _curvature(part: Block | None, form: Block, width: int) -> Tensor:
    """The diagonal of partᵀ · form · part."""
    if part is None:
        return torch.zeros(width, dtype=torch.float64)
    if part.dim() == 1:
        return part.square() * (form if form.dim() == 1 else form.diagonal())
    return (part * times(form, part)).sum(dim=0)


class Radius:
    """An entrywise error bound E = Σ γ |V|ᵀ|M̂||V| + diag, kept as code: only products E d are ever needed."""

    def __init__(self, relation: SegmentMatrices) -> None:
        self.places, self.side = relation.places, relation.side
        self.terms: list[tuple[Mapping[int, Block], Block, float]] = []
        self.diagonal = torch.zeros(self.side, dtype=torch.float64)

    def include(self, v: Tracked, form: Block, terms: float = 0.0) -> None:
        """Add the error of ``congruence(v.parts, form)`` against the exact VᵀM̂V."""
        factor = 4.0 * gamma(2.0 * v.rounding + 2.0 * v.rows + terms + 8.0)
        self.terms.append((v.absolute, form.abs(), factor))

    def times(self, d: Tensor) -> Tensor:
        """An upper bound of E d for d ≥ 0; the factor 1 + 1e-9 is more than the rounding of these sums."""
        total = self.diagonal * d + TINY**2 * d.sum()
        for absolute, form, factor in self.terms:
            image: Tensor | None = None
            for i, part in absolute.items():
                image = plus(image, _apply(part, d[self.places[i]]))
            if image is None:
                continue
            image = factor * _apply(form, image)
            for i, part in absolute.items():
                total[self.places[i]] += _apply(transposed(part), image)
        return total * (1.0 + 1e-9)


def _apply(block: Block, vector: Tensor) -> Tensor:
    return block * vector if block.dim() == 1 else block @ vector


class Statement:
    """One segment: blkdiag(M_start, Λ) − V_stopᵀ M̂ V_stop − Σ V_cellᵀ Λ V_cell ⪰ 0, with M_start still open."""

    def __init__(self, matrix: Tensor, radius: Radius | None, entry: int) -> None:
        self.matrix, self.radius, self.entry = matrix, radius, entry

    @classmethod
    def build(
        cls,
        segment: Segment,
        relation: SegmentMatrices,
        form: Block,
        multipliers: Mapping[int, Tensor],
        prove: bool,
    ) -> Statement:
        """blkdiag(0, Λ) − V_stopᵀ M̂ V_stop − Σ V_cellᵀ Λ V_cell, with an entrywise error bound if ``prove``."""
        radius = Radius(relation) if prove else None
        matrix = congruence(relation.output.parts, form, relation.places, relation.side).neg_()
        if radius is not None:
            radius.include(relation.output, form, 2.0 * len(segment.cells))
        on_w = [torch.zeros(relation.entry, dtype=torch.float64)]
        for cell, v in zip(segment.cells, relation.preactivations, strict=True):
            lam_w, lam_v = multiplier_pair(cell, multipliers[cell.node], v.rows)
            on_w.append(lam_w)
            matrix -= congruence(v.parts, lam_v, relation.places, relation.side)
            if radius is not None:
                radius.include(v, lam_v, 2.0 * len(segment.cells))
        diagonal = torch.cat(on_w)
        matrix.diagonal().add_(diagonal)
        if radius is not None:
            radius.diagonal = diagonal * (4.0 * gamma(2.0 * len(segment.cells) + 4.0))
        return cls(matrix, radius, relation.entry)

    def schur(self, shift: float = 0.0) -> Tensor:
        """The float matrix that M_start has to exceed: B C⁻¹ Bᵀ − A for the blocks of the statement.

        With ``shift``, C has its diagonal lowered by this relative amount. That leaves the whole statement a margin on
        the neurons, at a cost only where C is nearly singular; lifting the start by as much would not do: there the
        start's own share of the null vectors is as small as C's least eigenvalue.
        """
        n = self.entry
        a, b, c = self.matrix[:n, :n], self.matrix[:n, n:], self.matrix[n:, n:]
        factor, info = torch.linalg.cholesky_ex(c - torch.diag(shift * c.diagonal()))
        if int(info):
            raise CertificateError("the multipliers do not make the form positive on a layer's neurons.")
        half = torch.linalg.solve_triangular(factor, b.T, upper=False)
        result = half.T @ half - a
        return (result + result.T) / 2

    def proves(self, start: Tensor) -> bool:
        """Whether blkdiag(start, ·) makes the statement true, rounding included."""
        n, radius = self.entry, self.radius
        if radius is None:
            raise ValueError("a statement built without error bounds proves nothing")
        matrix = self.matrix.clone()
        matrix[:n, :n] += start
        added = (start.abs() + matrix[:n, :n].abs()) * gamma(4.0)

        def errors(d: Tensor) -> Tensor:
            total = radius.times(d)
            total[:n] += (added @ d[:n]) * (1.0 + 1e-9)
            return total

        # The block at the start is a small difference; errors are those of its terms, so these set the scale.
        scale = torch.cat([start.diagonal(), matrix.diagonal()[n:]])
        return is_positive_definite_scaled(matrix, errors, scale) or is_positive_definite_scaled(matrix, errors)

    def lifted(self, slack: float) -> Tensor:
        """A stored M̂_start that is proved to work: the Schur complement with its diagonal lifted a little."""
        least = _least_lift(self.matrix.shape[0])
        for attempt in range(6):
            shift = least * 16.0**attempt
            schur, lift = self.schur(shift), max(slack, shift)
            diagonal = schur.diagonal().clamp(min=0.0)
            positive = diagonal[diagonal > 0]  # entries without curvature get a little, next to the least that has some
            floor = max(1e-12 * 16.0**attempt * float(positive.min()), FLOOR) if positive.numel() else FLOOR
            start = schur + torch.diag(lift * diagonal + floor)
            if self.proves(start):
                return start
        raise CertificateError("a segment's form is not provably non-negative at these multipliers.")

    def least_rho(self, start: Tensor, claim: float) -> float:
        """The claim if it can be proved, else the least ρ that can, with M_start = ρ diag(start)."""
        weights = torch.diag(start)
        if math.isfinite(claim) and self.proves(claim * weights):
            return claim
        rho = _greatest_ratio(self.schur(_least_lift(self.matrix.shape[0])), start)
        lift = 1e-10
        while lift < 1e-2:
            candidate = rho * (1.0 + lift) + FLOOR
            if self.proves(candidate * weights):
                return candidate
            lift *= 10.0
        raise CertificateError("no ρ near the computed one is provable at these multipliers.")


def _row_sums(radius: Tensor) -> Tensor:
    return radius.sum(dim=1) * (1.0 + 4.0 * gamma(radius.shape[0] + 4.0)) + 1e-300


def _greatest_eigenvalue(form: Tensor) -> float:
    if not bool(torch.isfinite(form).all()):
        raise CertificateError("the form overflows at these multipliers.")
    scale = float(form.abs().max()) if form.numel() else 0.0
    if scale == 0.0:
        return 0.0
    if form.shape[0] <= 300:
        return max(float(torch.linalg.eigvalsh(form)[-1]), 0.0)
    return scale * estimate_lambda_max(form / scale)


def _greatest_ratio(form: Tensor, weights: Tensor) -> float:
    """The largest eigenvalue of diag(weights)^{-1/2} form diag(weights)^{-1/2}, in floating point."""
    scale = weights.rsqrt()
    return _greatest_eigenvalue(form * scale[:, None] * scale)


def _largest_ratio(form: Tensor, weights: Tensor, claim: float) -> float:
    """The claim, or the least ρ found, with ρ diag(weights) ⪰ form proved by a verified Cholesky factorisation."""
    estimate = _greatest_ratio(form, weights)
    candidates = [claim] if math.isfinite(claim) else []
    candidates += [estimate * (1.0 + 10.0**-e) + FLOOR for e in range(12, 2, -1)]
    for rho in candidates:
        matrix = torch.diag(rho * weights) - form
        rounding = torch.diag((rho * weights + form.diagonal().abs()) * (4.0 * gamma(4.0)))
        if is_positive_definite_scaled(matrix, rounding):
            return rho
    raise CertificateError("the largest eigenvalue of the last form cannot be enclosed.")


def _wide_input(v: Tracked, form: Tensor, weights: Tensor, prove: bool) -> float:
    """λ_max(DVᵀM̂VD) = ‖LᵀVD‖² for M̂ = LLᵀ, D = weights^{-1/2}, on V's shorter side; residuals are added."""
    scale = weights.rsqrt()
    diagonal = form.diagonal().clamp(min=0.0)
    lifted = form + torch.diag(1e-13 * diagonal + max(1e-15 * float(diagonal.max()), FLOOR))
    factor, info = torch.linalg.cholesky_ex(lifted)
    if int(info):
        raise CertificateError("the form on the first layer is not positive.")
    image = dense(times(times(factor.T, v.parts[0]), scale))
    if not prove:
        return _greatest_eigenvalue(image @ image.T)
    n = form.shape[0]
    bound = factor.abs() @ factor.abs().T + form.abs()
    residual = (factor @ factor.T - form).abs() + bound * (4.0 * gamma(n + 8.0))
    left = float(_row_sums(torch.maximum(residual, residual.T)).max())
    absolute = times(v.absolute[0], scale)
    wide = dense(times(factor.abs().T, absolute))
    error = mul_up(4.0 * gamma(v.rounding + n + 16.0), 1.0 + 1e-9, float(wide.norm()))
    sigma = sigma_max_upper(image, error)
    plain = mul_up(1.0 + 1e-9, float(absolute.norm()))
    return add_up(mul_up(sigma, sigma), mul_up(left, plain, plain))


# -- matrix-free route -------------------------------------------------------------------------------------------


class ScaledMap:
    """G = D_out^{1/2} H D_in^{-1/2} with H: (x, w) ↦ (v, y); the form is non-negative exactly if ‖G‖ ≤ 1."""

    def __init__(
        self, transformed: LoopTransformed, multipliers: Mapping[int, Tensor], weights: Weights, rho: float
    ) -> None:
        self.transformed = transformed
        self.output = weights.output.reshape(transformed.network.out_shape)
        self.sizes = [size(transformed.network.in_shape), *(c.size for c in transformed.cells)]
        scale = [(rho * weights.input).rsqrt()]
        self.out: dict[int, Tensor] = {}
        for cell in transformed.cells:
            v_shape = transformed.network.nodes[cell.parent].shape
            on_w, on_v = multiplier_pair(cell, multipliers[cell.node], size(v_shape))
            scale.append(on_w.rsqrt())
            self.out[cell.node] = on_v.sqrt().reshape(v_shape)
        self.scale = torch.cat(scale)

    @property
    def size(self) -> int:
        """Number of entries of (x, w)."""
        return sum(self.sizes)

    def gram(self, vector: Tensor) -> Tensor:
        """GᵀG on one flat vector, by one forward and one backward pass."""
        with torch.enable_grad():
            leaf = vector.detach().clone().requires_grad_(True)
            pieces = torch.split(leaf * self.scale, self.sizes)
            shape = self.transformed.network.in_shape
            order = {c.node: i + 1 for i, c in enumerate(self.transformed.cells)}
            squares = []

            def output(cell: Cell, v: Tensor) -> Tensor:
                squares.append((v * self.out[cell.node]).square().sum())
                w = pieces[order[cell.node]].reshape(1, *cell.out_shape)
                return cell.d * w if v.shape[1:] != w.shape[1:] else cell.c * v + cell.d * w

            values = self.transformed.spread(pieces[0].reshape(1, *shape), output)
            squares.append((self.output * values[-1].square()).sum())
            (gradient,) = torch.autograd.grad(0.5 * sum(squares[1:], squares[0]), leaf)
        return gradient


def _matrix_free(
    transformed: LoopTransformed,
    multipliers: Mapping[int, Tensor],
    weights: Weights,
    rho: float,
    delta: float,
    generator: torch.Generator,
) -> float:
    """The claimed ρ, proved: multipliers and ρ enter as claimed, ‖G‖² ≤ θ/(1 − ε) must come out at most 1."""
    if not 0.0 < rho < math.inf:
        raise CertificateError("the matrix-free route needs a claimed rho.")
    least = min(rho, float((rho * weights.input).min()), float(weights.output[weights.output > 0].min()))
    if not least >= 1e-290 or any(bool(((m < 1e-290) | (m > 1e290)).any()) for m in multipliers.values()):
        raise CertificateError("the matrix-free route needs multipliers, weights and a rho between 1e-290 and 1e290.")
    usual = natural_exponents(transformed.network)
    if any(abs(a - b) > UNITS_APART for a, b in zip(usual, transformed.exponents, strict=True)):
        raise CertificateError("the certificate's units are far from the network's own; numbers might underflow.")
    require_tame(transformed)
    scaled = ScaledMap(transformed, multipliers, weights, rho)
    steps = 100 if scaled.size <= 300_000 else 240
    while True:
        steps = min(steps, scaled.size)
        ritz, _ = lambda_max_ritz(scaled.gram, scaled.size, steps, generator)
        if ritz > 1.0:
            raise CertificateError("the multipliers are not feasible.")
        epsilon = 0.0 if steps == scaled.size else kuczynski_wozniakowski_epsilon(scaled.size, steps, delta / 4)
        if epsilon < 1.0 and div_up(mul_up(ritz, 1.0 + 1e-12), 1.0 - epsilon) <= 1.0:
            return rho
        if steps >= min(MOST_STEPS, scaled.size):
            raise CertificateError("the form's margin is too small for the matrix-free check.")
        steps *= 2
        while steps < MOST_STEPS and ritz > 1.0 - kuczynski_wozniakowski_epsilon(scaled.size, steps, delta / 8):
            steps += 20  # the Ritz value will not fall: fewer steps than these cannot succeed
