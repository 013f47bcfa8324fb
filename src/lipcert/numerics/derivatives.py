"""Derivatives of the usual smooth functions in midpoint–radius arithmetic: g(x) for every x of a ``Range``, enclosed.

Written so that nothing cancels in the tails: where the derivative tends to 0 the enclosure is tight relative to it.
"""

from __future__ import annotations

import math

import torch

from lipcert.numerics.midrad import ULPS, Range

#: 2/√π and 1/√(2π), to within half a unit in the last place (``Range.literal`` grants four).
_ERF, _NORMAL = 1.1283791670955126, 0.3989422804014327


def logistic(x: Range) -> Range:
    """σ(x), the derivative of softplus."""
    return x.increasing(torch.sigmoid)


def sigmoid(x: Range) -> Range:
    """σ'(x) = q/(1 + q)², q = e^(−|x|)."""
    q = (-x.abs()).exp()
    return q * (q + Range.literal(1)).square().reciprocal()


def tanh(x: Range) -> Range:
    """tanh'(x) = 4σ'(2x)."""
    return Range.literal(4) * sigmoid(x + x)


def erf(x: Range) -> Range:
    """2/√π · exp(−x²)."""
    return Range.literal(_ERF) * (-x.square()).exp()


def atan(x: Range) -> Range:
    """1/(1 + x²)."""
    return (x.square() + Range.literal(1)).reciprocal()


def asinh(x: Range) -> Range:
    """1/√(1 + x²)."""
    return (x.square() + Range.literal(1)).sqrt().reciprocal()


def softsign(x: Range) -> Range:
    """1/(1 + |x|)²."""
    return (x.abs() + Range.literal(1)).square().reciprocal()


def normal(x: Range) -> Range:
    """Φ(x), the distribution function of the normal law."""
    half = x * Range.literal(-math.sqrt(0.5))
    return (-half).increasing(lambda t: torch.erfc(-t), 2 * ULPS) * Range.literal(0.5)


def gelu(x: Range) -> Range:
    """Φ(x) + x Φ'(x), the derivative of x Φ(x)."""
    density = Range.literal(_NORMAL) * (-(x.square() * Range.literal(0.5))).exp()
    return normal(x) + x * density


def gelu_tanh(x: Range, cubic: Range) -> Range:
    """½ (1 + tanh u) + ½ x u' sech²u with u = x + rx³: σ(2u) + 2x σ'(2u)(1 + 3rx²)."""
    square = cubic * x.square()
    u = x * (square + Range.literal(1))
    return logistic(u + u) + (x + x) * sigmoid(u + u) * (square + square + square + Range.literal(1))


def silu(x: Range) -> Range:
    """σ(x) + x σ'(x), the derivative of x σ(x)."""
    return logistic(x) + x * sigmoid(x)


def mish(x: Range) -> Range:
    """w/(w + 2) + 4x q(1 + q)/(w + 2)², q = eˣ, w = q(q + 2): the derivative of x·tanh(softplus(x))."""
    q = x.exp()
    w = q * (q + Range.literal(2))
    below = (w + Range.literal(2)).reciprocal()
    return w * below + Range.literal(4) * x * q * (q + Range.literal(1)) * below.square()
