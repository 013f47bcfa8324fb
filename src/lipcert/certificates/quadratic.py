"""The certificate of LipSDP-type methods: multipliers that make a quadratic form non-negative."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lipcert.certificates.base import Proof, Witness, certificate
from lipcert.certificates.dense_form import DenseForm, Weights
from lipcert.certificates.statement import multiplier_pair
from lipcert.certificates.tame import require_tame
from lipcert.errors import CertificateError, NotProved, UnsupportedNormError
from lipcert.network.linear import size
from lipcert.network.loop_transform import Cell, LoopTransformed, natural_exponents
from lipcert.numerics.chance import Chance, Share
from lipcert.numerics.lanczos import kuczynski_wozniakowski_epsilon, lambda_max_ritz
from lipcert.numerics.magnitude import ZERO, Magnitude
from lipcert.numerics.rounding import div_up, mul_up, sqrt_up
from lipcert.problem import Norm, Problem
from lipcert.result import BreakdownRow, Guarantee

#: Pairs of norms (p, q) this kind of certificate covers.
NORMS: tuple[Norm, ...] = tuple((p, q) for p in (2.0, math.inf) for q in (2.0, 1.0, math.inf))

#: Most Lanczos steps of a matrix-free check; each of its at most four attempts draws a chance of its own.
MOST_STEPS = 800

#: Largest change of unit, in powers of two, between neighbouring nodes: beyond it scaling might underflow unseen.
MAX_STEP = 600

#: Largest distance, in powers of two, of the units of a matrix-free certificate from the network's natural ones.
UNITS_APART = 64


@certificate("quadratic")
def check(problem: Problem, witness: Witness, chance: Chance) -> Proof:
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
    final = ZERO
    share = chance.group(len(weights))
    for place, weight in enumerate(weights):
        own = {node: values_of[place] for node, values_of in multipliers.items()}
        if form is not None:
            rho = form.least_rho(own, slacks[place], weight, claims[place])
        else:
            rho = _matrix_free(transformed, own, weight, claims[place], share)
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
    share: Share,
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
        ritz, _ = lambda_max_ritz(scaled.gram, scaled.size, steps, share.generator)
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
