"""The quadratic form of a network whose maps are run as code: its claimed ρ, proved with a probability by Lanczos."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.certificates.forms.lmi import multiplier_pair
from lipcert.certificates.forms.quadratic_form import Weights
from lipcert.certificates.norms.pass_underflow import Amplification, total
from lipcert.errors import NotProved
from lipcert.increments import Cell, ScaledIncrements
from lipcert.network.linear import size
from lipcert.numerics.lanczos import lambda_max_ritz
from lipcert.numerics.magnitude import Magnitude
from lipcert.numerics.probabilistic import kuczynski_wozniakowski_epsilon
from lipcert.numerics.rounding import div_up, mul_up

if TYPE_CHECKING:
    from lipcert.numerics.chance import Share

#: Most Lanczos steps of a matrix-free check; each of its at most four attempts draws a chance of its own.
MOST_STEPS = 800

#: Most that underflow may change ‖G‖² by in a matrix-free check, far below what the check leaves for rounding.
NEGLIGIBLE = 1e-14


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
            half = 0.5 * sum(squares[1:], squares[0])
            if not half.requires_grad:  # nothing reads the input
                return torch.zeros_like(vector)
            (gradient,) = torch.autograd.grad(half, leaf)
        return gradient


def claimed_rho(
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
