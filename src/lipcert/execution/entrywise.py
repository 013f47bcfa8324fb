"""Sums, products and quotients entry by entry: one rounding each, of the executed result."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.execution.float32 import FLUSH, LIBRARY, UNIT, gamma, up
from lipcert.execution.outcome import Linear, Outcome, Part, Slopes
from lipcert.execution.registry import executed
from lipcert.execution.value import Call, Executed


def _rounding(call: Call, parts: tuple[Part, ...], own: Tensor, roundings: float = 1.0) -> Outcome:
    """``own`` and the roundings of a result that differs from the real one by the parts and ``own``."""
    shape = call.box.low.shape
    before = Outcome(own.expand(shape), parts)
    reach = call.bounded(up(call.box.greatest + before.error()))
    return Outcome(up(own + (roundings * UNIT) * (1.0 + 2.0**-20) * reach) + 4.0 * FLUSH, parts)


def _scaled(call: Call, operand: Executed, low: Tensor, high: Tensor) -> tuple[Part, ...]:
    """The operand times a number in [low, high] for each entry; nothing for a constant."""
    shape = call.box.low.shape
    return (Slopes(operand, low.expand(shape), high.expand(shape)),) if operand.varies else ()


def _stray(operand: Executed) -> Tensor:
    """The error of a constant; that of a variable is its step's."""
    return torch.zeros_like(operand.error) if operand.varies else operand.error


@executed("add", "sub", "rsub")
def _sum(call: Call) -> Outcome:
    a, b = call.operand("self"), call.operand("other")
    if call.op == "rsub":
        a, b = b, a
    one = torch.ones((), dtype=torch.float64)
    alpha = call.get("alpha", 1)
    if alpha == 1:
        sign = one if call.op == "add" else -one
        parts = _scaled(call, a, one, one) + _scaled(call, b, sign, sign)
        return _rounding(call, parts, _stray(a) + _stray(b))
    if call.op == "rsub":
        raise call.unsupported("it scales by alpha")
    scale = call.operand("alpha")
    sign = scale.box.low if call.op == "add" else -scale.box.low
    own = scale.size * _stray(b) + scale.error * b.reach + UNIT * scale.reach * b.reach
    call.bounded(scale.reach * b.reach)
    return _rounding(call, _scaled(call, a, one, one) + _scaled(call, b, sign, sign), _stray(a) + own)


@executed("mul")
def _product(call: Call) -> Outcome:
    """x̂ŷ − xy = (x̂ − x)(y + ŷ)/2 + (ŷ − y)(x + x̂)/2, the means within the ranges of both."""
    a, b = call.operand("self"), call.operand("other")
    own = FLUSH * (a.reach + b.reach) + _stray(a) * b.reach + _stray(b) * a.reach
    ends = [(v.low, v.high) if v.varies else (v.box.low, v.box.high) for v in (a, b)]
    return _rounding(call, _scaled(call, a, *ends[1]) + _scaled(call, b, *ends[0]), own)


@executed("div")
def _quotient(call: Call) -> Outcome:
    """x̂/ŷ − x/y = (x̂ − x)/y − (x̂/ŷ)(ŷ − y)/y; three roundings, where a kernel multiplies by 1/ŷ."""
    if call.get("rounding_mode") is not None:
        raise call.unsupported("it rounds to whole numbers")
    a, b = call.operand("self"), call.operand("other")
    least = torch.maximum(b.low, -b.high) - 2.0 * FLUSH
    if not bool((least > 2.0**-100).all()):
        raise call.unsupported("its divisor may be zero or nearly so on this domain")
    call.bounded(1.0 / least)
    ends = torch.stack([1.0 / (b.box.low + torch.zeros_like(least)), 1.0 / (b.box.high + torch.zeros_like(least))])
    low, high = ends.amin(0), ends.amax(0)
    low, high = low - 2.0**-50 * low.abs(), high + 2.0**-50 * high.abs()
    quotient = up(a.reach / least)
    steep = up(quotient / least)
    parts = _scaled(call, a, low, high) + _scaled(call, b, -steep, steep)
    own = _stray(a) / least + _stray(b) * steep + 4.0 * FLUSH * (1.0 + a.reach) / least * (1.0 + quotient)
    return _rounding(call, parts, up(own), 3.0)


@executed("neg")
def _negative(call: Call) -> Outcome:
    (x,) = call.varying
    return Outcome(torch.zeros_like(x.error), (Linear(x, torch.neg, lambda t: t),))


@executed("maximum", "minimum")
def _extreme(call: Call) -> Outcome:
    """A mean of both errors, with weights that are not known."""
    a, b = (call.refined(n) for n in ("self", "other"))
    return Outcome(torch.maximum(a.error, b.error) + FLUSH)


@executed("linalg_vector_norm")
def _length(call: Call) -> Outcome:
    """‖x̂‖ − ‖x‖ ≤ ‖x̂ − x‖; half of γ_n of a sum of squares, and a root."""
    if call.get("ord", 2) != 2 or call.get("dtype") is not None:
        raise call.unsupported("it is no Euclidean norm")
    x = call.refined("self")
    shape, dim = x.error.shape, call.get("dim")
    axes = list(range(len(shape))) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    terms = float(math.prod(shape[a] for a in axes))
    call.bounded(up(x.reach.square().sum(), float(x.error.numel())))
    moved = up(call.run(lambda v: v.error), terms)
    relative = gamma(terms + 4.0) + LIBRARY * UNIT
    lost = 2.0 * math.sqrt(terms * FLUSH)  # squares that vanish
    return Outcome(up(moved + relative * (1.0 + relative) * (call.box.greatest + moved)) + lost)


__all__: list[str] = []
