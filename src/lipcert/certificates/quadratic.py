"""The certificate of LipSDP-type methods: multipliers that make a quadratic form non-negative."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.forms import matrix_free
from lipcert.certificates.forms.multipliers import Notation, in_own_units, read_multipliers
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights
from lipcert.certificates.norms.pass_underflow import Amplification
from lipcert.errors import CertificateError, UnsupportedNormError
from lipcert.guarantee import BreakdownRow, Guarantee
from lipcert.increments import ScaledIncrements
from lipcert.network.linear import size
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.rounding import mul_up, sqrt_up

if TYPE_CHECKING:
    from lipcert.numerics.chance import Chance
    from lipcert.problem import Norm, Problem


#: Pairs of norms (p, q) this kind of certificate covers.
NORMS: tuple[Norm, ...] = tuple((p, q) for p in (2.0, math.inf) for q in (2.0, 1.0, math.inf))


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
            rho = matrix_free.claimed_rho(transformed, own, weight, notation.rho(claims[place]), means, share, steps)
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
    if steps is not None and (
        isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= matrix_free.MOST_STEPS
    ):
        raise CertificateError(f"the certificate's steps must be an integer from 1 to {matrix_free.MOST_STEPS}.")
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
