"""The certificate of LipSDP-type methods: multipliers that make a quadratic form non-negative."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.forms.lmi import multiplier_pair
from lipcert.certificates.forms.multipliers import Notation, in_own_units, read_multipliers
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights
from lipcert.certificates.norms.pass_underflow import Amplification, total
from lipcert.errors import CertificateError, NotProved, UnsupportedNormError
from lipcert.guarantee import BreakdownRow, Guarantee
from lipcert.increments import Cell, ScaledIncrements
from lipcert.network.linear import size
from lipcert.numerics.lanczos import kuczynski_wozniakowski_epsilon, lambda_max_ritz
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.rounding import div_up, mul_up, sqrt_up

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance, Share
    from lipcert.problem import Norm, Problem


#: Pairs of norms (p, q) this kind of certificate covers.
NORMS: tuple[Norm, ...] = tuple((p, q) for p in (2.0, math.inf) for q in (2.0, 1.0, math.inf))

#: Most Lanczos steps of a matrix-free check; each of its at most four attempts draws a chance of its own.
MOST_STEPS = 800

#: Most that underflow may change ‖G‖² by in a matrix-free check, far below what the check leaves for rounding.
NEGLIGIBLE = 1e-14


@certificate("quadratic")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
    """L_{p,q} ≤ √ρ, p in {2, ∞}, from multipliers λ ≥ 0.

    LipSDP-Neuron (Fazlyab et al. 2019) on any DAG, in loop-transformed form.

    ``witness.arrays``: ``multipliers.K`` for the nonlinear node K, a row per form with one λ per neuron (one for a
    block), and ``exponents``, how they are written (``Notation``); ``input_weights`` for p = ∞ and ``output_weights``
    for q = 1. ``witness.settings``: ``slack``, the relative lift of the intermediate forms, ``rho``, a claim for ρ
    (each a number per form), ``route``, ``dense`` or ``matrix_free``, ``layerwise``, one λ per
    layer, and ``steps``, how many Lanczos steps a matrix-free check takes first.

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
    transformed = in_own_units(problem, bool(witness.settings.get("layerwise", False)))
    notation = Notation.of(witness, transformed)
    weights = _read_weights(problem, witness, transformed)
    multipliers = read_multipliers(witness, transformed, notation, len(weights))
    exact = all(math.isfinite(m.rounding) for maps in transformed.maps.values() for m in maps)
    route = str(witness.settings.get("route", "dense"))
    claims, slacks = (_numbers(witness, key, len(weights)) for key in ("rho", "slack"))
    guarantee: Guarantee = ("rigorous" if route == "dense" else "probabilistic") if exact else "numerical"
    means = DenseForm(transformed) if route == "dense" else Amplification(transformed)
    rows = []
    final = ZERO
    share = chance.group(len(weights))
    for place, weight in enumerate(weights):
        own = {node: values_of[place] for node, values_of in multipliers.items()}
        if isinstance(means, DenseForm):
            rho = means.least_rho(own, slacks[place], weight, notation.rho(claims[place]))
        else:
            steps = _first_steps(witness)
            rho = _matrix_free(transformed, own, weight, notation.rho(claims[place]), means, share, steps)
        root = Magnitude.of(sqrt_up(mul_up(rho, weight.factor(problem.norm))))
        value = root.times_power(transformed.exponents[-1])
        final = max(final, value)
        name = "quadratic form" if len(weights) == 1 else f"output {place}"
        remark = f"{sum(c.size for c in transformed.cells)} neurons in {len(transformed.cells)} layers"
        rows.append(BreakdownRow(name, route, float(value), float(value), guarantee, remark))
    return Proof(final, guarantee, tuple(rows))


def _numbers(witness: Witness, key: str, count: int) -> list[float]:
    value = witness.settings.get(key)
    numbers = value if isinstance(value, list) else [value]
    result = [float(n) for n in numbers if isinstance(n, (int, float)) and n >= 0]
    if len(numbers) != count or len(result) != count:
        raise CertificateError(f"the certificate's {key} must be {count} non-negative numbers.")
    return result


def _first_steps(witness: Witness) -> int | None:
    steps = witness.settings.get("steps")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS):
        raise CertificateError(f"the certificate's steps must be an integer from 1 to {MOST_STEPS}.")
    return steps


def _read_weights(problem: Problem, witness: Witness, transformed: ScaledIncrements) -> list[Weights]:
    """One pair of weights per quadratic form; those a norm fixes are made here, the others are the witness's."""
    p, q = problem.norm
    n, m = size(transformed.increments.in_shape), size(transformed.increments.out_shape)
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


class ScaledMap:
    """G = D_out^{1/2} H D_in^{-1/2} with H: (x, w) ↦ (v, y); the form is non-negative exactly if ‖G‖ ≤ 1."""

    def __init__(
        self, transformed: ScaledIncrements, multipliers: Mapping[int, Tensor], weights: Weights, rho: float
    ) -> None:
        self.transformed = transformed
        self.output = weights.output.reshape(transformed.increments.out_shape)
        self.sizes = [size(transformed.increments.in_shape), *(c.size for c in transformed.cells)]
        scale = [(rho * weights.input).rsqrt()]
        self.out: dict[int, Tensor] = {}
        for cell in transformed.cells:
            v_shape = transformed.increments.relations[cell.parent].shape
            on_w, on_v = multiplier_pair(cell, multipliers[cell.node], size(v_shape))
            scale.append(on_w.rsqrt())
            self.out[cell.node] = on_v.sqrt().reshape(v_shape)
        self.scale = torch.cat(scale)

    @property
    def size(self) -> int:
        """Number of entries of (x, w)."""
        return sum(self.sizes)

    def underflow(self, amplification: Amplification) -> Magnitude:
        """What underflow may change GᵀGx by, for ‖x‖ = 1, relative to ‖G‖² where that is at least 1.

        Why: an error of a forward pass reaches (v, y), to which Gᵀ is applied, with the factors of ``backward``; an
        error of the backward pass reaches x with those of ``forward``. Each node may err, and every entry that is
        scaled on the way in or out.
        """
        widest = [float(part.max()) if part.numel() else 0.0 for part in torch.split(self.scale, self.sizes)]
        entering, leaving = (
            {0: widest[0]},
            {len(self.transformed.increments.relations) - 1: float(self.output.max().sqrt())},
        )
        for cell, scale in zip(self.transformed.cells, widest[1:], strict=True):
            entering[cell.node] = mul_up(float(cell.d.max()), scale)
            leaving[cell.parent] = max(leaving.get(cell.parent, 0.0), float(self.out[cell.node].max()))
        factors = total(amplification.forward(entering)) + total(amplification.backward(leaving))
        return (factors + Magnitude.of(float(self.size))) * amplification.loss * Magnitude.of(4.0)

    def gram(self, vector: Tensor) -> Tensor:
        """GᵀG on one flat vector, by one forward and one backward pass."""
        with torch.enable_grad():
            leaf = vector.detach().clone().requires_grad_(True)
            pieces = torch.split(leaf * self.scale, self.sizes)
            shape = self.transformed.increments.in_shape
            order = {c.node: i + 1 for i, c in enumerate(self.transformed.cells)}
            squares = []

            def output(cell: Cell, v: Tensor) -> Tensor:
                squares.append((v * self.out[cell.node]).square().sum())
                w = pieces[order[cell.node]].reshape(1, *cell.shape)
                return cell.d * w if v.shape[1:] != w.shape[1:] else cell.c * v + cell.d * w

            values = self.transformed.run(pieces[0].reshape(1, *shape), output, self.transformed.matrices)
            squares.append((self.output * values[-1].square()).sum())
            (gradient,) = torch.autograd.grad(0.5 * sum(squares[1:], squares[0]), leaf)
        return gradient


def _matrix_free(
    transformed: ScaledIncrements,
    multipliers: Mapping[int, Tensor],
    weights: Weights,
    rho: float,
    amplification: Amplification,
    share: Share,
    first: int | None,
) -> float:
    """The claimed ρ, proved: multipliers and ρ enter as claimed, ‖G‖² ≤ θ/(1 − ε) must come out at most 1."""
    if not 0.0 < rho < math.inf:
        raise NotProved("the matrix-free route needs a claimed rho.")
    least = min(rho, float((rho * weights.input).min()), float(weights.output[weights.output > 0].min()))
    if not least >= 1e-290 or any(bool(((m < 1e-290) | (m > 1e290)).any()) for m in multipliers.values()):
        raise NotProved("the matrix-free route needs multipliers, weights and a rho between 1e-290 and 1e290.")
    scaled = ScaledMap(transformed, multipliers, weights, rho)
    if not float(scaled.underflow(amplification)) <= NEGLIGIBLE:
        raise NotProved("numbers of very different size meet in this form; a pass through the network might underflow.")
    steps = first or (100 if scaled.size <= 300_000 else 240)
    while True:
        steps = min(steps, scaled.size)
        try:
            ritz, _ = lambda_max_ritz(scaled.gram, scaled.size, steps, share.generator)
        except ValueError as error:
            raise NotProved(f"the form cannot be applied: {error}.") from error
        if ritz > 1.0:
            raise NotProved("the multipliers are not feasible.")
        delta = share.draw()
        epsilon = 0.0 if steps == scaled.size else kuczynski_wozniakowski_epsilon(scaled.size, steps, delta)
        if epsilon < 1.0 and div_up(mul_up(ritz, 1.0 + 1e-12), 1.0 - epsilon) <= 1.0:
            return rho
        if steps >= min(MOST_STEPS, scaled.size):
            raise NotProved("the form's margin is too small for the matrix-free check.")
        steps *= 2
        while steps < MOST_STEPS and ritz > 1.0 - kuczynski_wozniakowski_epsilon(scaled.size, steps, delta / 2):
            steps += 20  # the Ritz value will not fall: fewer steps than these cannot succeed
